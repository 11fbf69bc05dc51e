//! The files of one commit in the cache: blobs named by their hashes, links to them by path, locks, and what was fetched of a
//! file so far.

use crate::hash::Sha256;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha1::{Digest, Sha1};

use super::options::SLICE;
use super::tree::{Entry, Hash};
use super::{HubOptions, Repository};
use crate::error::UserError;
use crate::user_bail;

/// Files up to this size are hashed whenever they are used; the name of a larger blob is trusted.
const SMALL: u64 = 16 << 20;

/// Where the files of one commit are.
pub(super) struct Cache<'a> {
    options: &'a HubOptions,
    blobs: PathBuf,
    snapshot: PathBuf,
    locks: PathBuf,
}

impl<'a> Cache<'a> {
    pub fn new(repository: &Repository, commit: &str, options: &'a HubOptions) -> Result<Self> {
        let folder = repository.folder(options)?;
        let name = folder.file_name().unwrap_or_default();
        let locks = options.cache()?.join(".locks").join(name);
        let snapshot = repository.snapshot(commit, options)?;
        Ok(Self { options, blobs: folder.join("blobs"), snapshot, locks })
    }

    /// Where the file is once it is there.
    pub fn path(&self, entry: &Entry) -> PathBuf {
        self.snapshot.join(&entry.path)
    }

    fn blob(&self, entry: &Entry) -> PathBuf {
        self.blobs.join(entry.hash.hex())
    }

    /// Whether something is there, right or not.
    pub fn knows(&self, entry: &Entry) -> bool {
        [self.path(entry), self.blob(entry)].iter().any(|path| path.exists())
    }

    /// Whether the file is there, whole and right as far as that can be told in no time.
    pub fn has(&self, entry: &Entry) -> Result<bool> {
        let path = self.path(entry);
        // Where links are not possible the file is a copy under its own name.
        let copy = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file());
        self.is_sound(&path, entry, copy || self.is_named(&path, entry))
    }

    /// Whether a path leads to the file's blob.
    fn is_named(&self, path: &Path, entry: &Entry) -> bool {
        path.canonicalize().is_ok_and(|to| to.ends_with(entry.hash.hex()))
    }

    /// Whether the blob is there and right, so that only the link to it was missing, which is made. That is rare: another
    /// program or commit brought the blob, or the user removed the link to get rid of it. Therefore large ones are hashed.
    pub fn has_blob(&self, entry: &Entry) -> Result<bool> {
        if !self.is_sound(&self.blob(entry), entry, false)? {
            return Ok(false);
        }
        self.link(entry)?;
        Ok(true)
    }

    fn is_sound(&self, path: &Path, entry: &Entry, named: bool) -> Result<bool> {
        let length = fs::metadata(path).ok().filter(|metadata| metadata.is_file()).map(|metadata| metadata.len());
        if length != Some(entry.size) {
            return Ok(false);
        }
        if named && entry.size > SMALL {
            return Ok(true);
        }
        let mut hasher = Hasher::new(entry);
        let read = File::open(path).and_then(|mut file| self.hash_rest(&mut file, &mut hasher));
        read.with_context(|| format!("cannot read {}", path.display()))??;
        Ok(hasher.hex() == entry.hash.hex())
    }

    /// Feeds what is left of a file to the hasher. The inner result is a wish to stop.
    fn hash_rest(&self, file: &mut File, hasher: &mut Hasher) -> io::Result<Result<u64>> {
        let (mut buffer, mut length) = (vec![0; 1 << 20], 0);
        loop {
            if let Err(stop) = self.options.check_stop() {
                return Ok(Err(stop));
            }
            match file.read(&mut buffer) {
                Ok(0) => return Ok(Ok(length)),
                Ok(read) => {
                    hasher.update(&buffer[..read]);
                    length += read as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Keeps other programs from fetching the same blob, Python's libraries among them, until the lock is dropped. The
    /// system drops it with the process; the empty file stays, as others may wait for it. `None` where files cannot be
    /// locked.
    pub fn lock(&self, entry: &Entry) -> Result<Option<File>> {
        let path = self.locks.join(format!("{}.lock", entry.hash.hex()));
        let cannot = || format!("cannot lock {}", path.display());
        fs::create_dir_all(&self.locks).with_context(cannot)?;
        let mut silent = true;
        loop {
            let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
            let file = match opened {
                // Another user of a shared cache made it: it can be locked all the same.
                Err(error) if error.kind() == ErrorKind::PermissionDenied => File::open(&path),
                other => other,
            };
            let file = file.with_context(cannot)?;
            match file.try_lock() {
                // Some remove the file when they are done: then others lock another one.
                Ok(()) if is_same(&file, &path) => return Ok(Some(file)),
                Ok(()) => {
                    self.options.check_stop()?;
                    continue;
                }
                Err(TryLockError::WouldBlock) => {}
                // Some network file systems have no locks. What is fetched is checked in any case.
                Err(TryLockError::Error(error)) => {
                    let line = format!("{} ({error}): two programs may fetch the same at a time", cannot());
                    self.options.log(&line);
                    return Ok(None);
                }
            }
            if silent {
                silent = false;
                self.options.log(&format!("waiting for another program that fetches {} ...", entry.path));
            }
            self.options.pause(SLICE)?;
        }
    }

    /// Opens what was fetched of a file so far, by this run or an earlier one. The caller holds the lock.
    pub fn partial(&self, entry: &Entry) -> Result<Partial> {
        let path = self.blobs.join(format!("{}.incomplete", entry.hash.hex()));
        let cannot = || format!("cannot write {}", path.display());
        fs::create_dir_all(&self.blobs).with_context(cannot)?;
        // What is no regular file, such as a link, is not ours to write through.
        if fs::symlink_metadata(&path).is_ok_and(|metadata| !metadata.is_file()) {
            fs::remove_file(&path).with_context(cannot)?;
        }
        let mut options = OpenOptions::new();
        let mut file = options.create(true).truncate(false).read(true).write(true).open(&path).with_context(cannot)?;
        let mut hasher = Hasher::new(entry);
        let length = if file.metadata().with_context(cannot)?.len() <= entry.size {
            self.hash_rest(&mut file, &mut hasher).with_context(cannot)??
        } else {
            0
        };
        let mut partial = Partial { file, path, hasher, length, entry: entry.clone() };
        if length == 0 {
            partial.restart()?;
        }
        Ok(partial)
    }

    /// Gives a file that is whole and right its name, and links to it.
    pub fn publish(&self, partial: Partial) -> Result<()> {
        let Partial { file, path, entry, .. } = partial;
        let blob = self.blob(&entry);
        // Some network file systems grant a lock to everybody.
        if !is_same(&file, &path) {
            let path = path.display();
            user_bail!("another program has written {path} at the same time"; "give the same command again");
        }
        // Its name says that it is whole: that must hold after a power cut, too.
        file.sync_data().with_context(|| format!("cannot write {}", path.display()))?;
        drop(file);
        fs::rename(&path, &blob).with_context(|| format!("cannot write {}", blob.display()))?;
        self.link(&entry)
    }

    /// Makes the file's path a link to its blob.
    fn link(&self, entry: &Entry) -> Result<()> {
        let (blob, path) = (self.blob(entry), self.path(entry));
        let up = "../".repeat(2 + entry.path.matches('/').count());
        let named = || symlink(&format!("{up}blobs/{}", entry.hash.hex()), &path);
        let make = || {
            fs::create_dir_all(path.parent().unwrap_or(&self.snapshot))?;
            match named() {
                Ok(()) => return Ok(()),
                // Another program has just made it. Were it made again, others would see a model without it for a moment.
                Err(error) if error.kind() == ErrorKind::AlreadyExists && self.is_named(&path, entry) => return Ok(()),
                Err(_) => {}
            }
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
                _ => link(&blob, &path, named),
            }
        };
        make().with_context(|| format!("cannot write {}", path.display()))
    }
}

/// A symbolic link, or what comes next where there are none: another name for the same file, or a copy.
fn link(blob: &Path, path: &Path, symlink: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    symlink().or_else(|_| fs::hard_link(blob, path)).or_else(|_| fs::copy(blob, path).map(drop))
}

#[cfg(unix)]
fn symlink(to: &str, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(to, path)
}

#[cfg(windows)]
fn symlink(to: &str, path: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(to.replace('/', "\\"), path)
}

/// Whether `path` still names `file`.
#[cfg(unix)]
fn is_same(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let place = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let (ours, theirs) = (file.metadata().ok().map(place), fs::metadata(path).ok().map(place));
    ours.is_some() && ours == theirs
}

/// A file that is open cannot be removed here.
#[cfg(not(unix))]
fn is_same(_: &File, _: &Path) -> bool {
    true
}

/// What was fetched of a file so far.
pub(super) struct Partial {
    file: File,
    path: PathBuf,
    hasher: Hasher,
    length: u64,
    entry: Entry,
}

impl Partial {
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Throws away what was fetched.
    pub fn restart(&mut self) -> Result<()> {
        let empty = || {
            self.file.set_len(0)?;
            io::Seek::rewind(&mut &self.file)
        };
        empty().with_context(|| format!("cannot write {}", self.path.display()))?;
        (self.length, self.hasher) = (0, Hasher::new(&self.entry));
        Ok(())
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if let Err(error) = self.file.write_all(bytes) {
            return Err(self.unwritable(error));
        }
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Whether these are the bytes that the hub states.
    pub fn is_right(&self) -> bool {
        self.length == self.entry.size && self.hasher.hex() == self.entry.hash.hex()
    }

    fn unwritable(&self, error: io::Error) -> anyhow::Error {
        let folder = self.path.parent().unwrap_or(&self.path).display();
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                let (name, missing) = (&self.entry.path, self.entry.size - self.length);
                let user = UserError::new(format!("no room for {name} in {folder}: {missing} more bytes are needed"))
                    .hint("free some space, or set HF_HUB_CACHE to a folder on another disk; what was fetched is kept");
                anyhow::Error::new(error).context(user)
            }
            _ => anyhow::Error::new(error).context(format!("cannot write {}", self.path.display())),
        }
    }
}

/// Computes the kind of hash that the hub states for a file.
enum Hasher {
    Sha256(Sha256),
    Git(Sha1),
}

impl Hasher {
    fn new(entry: &Entry) -> Self {
        match entry.hash {
            Hash::Sha256(_) => Self::Sha256(Sha256::new()),
            Hash::Git(_) => Self::Git(Sha1::new_with_prefix(format!("blob {}\0", entry.size))),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Git(hasher) => hasher.update(bytes),
        }
    }

    fn hex(&self) -> String {
        match self {
            Self::Sha256(hasher) => hasher.hex(),
            Self::Git(hasher) => format!("{:x}", hasher.clone().finalize()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_links_are_not_possible_the_file_is_there_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (blob, path) = (folder.path().join("blob"), folder.path().join("path"));
        fs::write(&blob, "x").unwrap();
        link(&blob, &path, || Err(ErrorKind::Unsupported.into())).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"x");
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
    }

    /// Other programs may be opening the model.
    #[cfg(unix)]
    #[test]
    fn a_link_that_is_right_is_not_made_again() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        let options = HubOptions::default();
        let [blobs, snapshot, locks] = ["blobs", "snapshots/commit", "locks"].map(|name| folder.path().join(name));
        let cache = Cache { options: &options, blobs, snapshot, locks };
        let entry = Entry { path: "a/b.json".into(), size: 1, hash: Hash::Git("1234".into()) };
        fs::create_dir_all(&cache.blobs).unwrap();
        fs::write(cache.blob(&entry), "x").unwrap();
        // A number may be given again, a time is not.
        let made = || {
            let link = fs::symlink_metadata(cache.path(&entry)).unwrap();
            (link.ino(), link.modified().unwrap())
        };
        cache.link(&entry).unwrap();
        let first = made();
        std::thread::sleep(std::time::Duration::from_millis(50));
        cache.link(&entry).unwrap();
        assert_eq!((made(), fs::read(cache.path(&entry)).unwrap()), (first, b"x".to_vec()));
        // One that leads elsewhere is replaced.
        fs::remove_file(cache.path(&entry)).unwrap();
        symlink("../../../blobs/other", &cache.path(&entry)).unwrap();
        cache.link(&entry).unwrap();
        assert_eq!(fs::read(cache.path(&entry)).unwrap(), b"x");
    }

    #[test]
    fn hashes_are_those_of_git_and_sha256sum() {
        // `git hash-object` and `sha256sum` of the text.
        let text = b"hello\n";
        for (hash, expected) in [
            (Hash::Git(String::new()), "ce013625030ba8dba906f756967f9e9ca394464a"),
            (Hash::Sha256(String::new()), "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"),
        ] {
            let mut hasher = Hasher::new(&Entry { path: String::new(), size: 6, hash });
            hasher.update(&text[..2]);
            hasher.update(&text[2..]);
            assert_eq!(hasher.hex(), expected);
        }
    }
}

//! A file that keeps a second process out of a folder.

use rustix::fs::OFlags;
use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Some file systems give a file another number each time they are asked: there the holder's word must do.
const ATTEMPTS: usize = 16;

/// A lock that is held until it is dropped, which removes its file. The system releases that of a process that dies; its file
/// then stays, and is taken over.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    /// Takes the lock; `None` while another process holds it. What is there is neither followed, if it is a link, nor
    /// emptied. Some network file systems have no locks: there nothing keeps two processes apart.
    ///
    /// # Errors
    /// If the file cannot be made, or is none.
    pub fn take(path: &Path) -> io::Result<Option<Self>> {
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
        let mut attempt = 0;
        loop {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).custom_flags(flags).open(path)?;
            if !file.metadata()?.is_file() {
                return Err(io::Error::other("it is in the way: no file of softlm's"));
            }
            if let Err(TryLockError::WouldBlock) = file.try_lock() {
                return Ok(None);
            }
            attempt += 1;
            let lock = Self { path: path.into(), file };
            // The one who held it may have removed it in between: a lock on a file without a name keeps nobody out.
            if lock.is_named() || attempt == ATTEMPTS {
                return Ok(Some(lock));
            }
        }
    }

    /// Whether the file still has its name.
    fn is_named(&self) -> bool {
        let number = |meta: Metadata| (meta.dev(), meta.ino());
        let named = self.path.symlink_metadata().map(number).ok();
        named.is_some() && named == self.file.metadata().map(number).ok()
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.is_named() {
            // Removed while it is held. Nothing better can be done about a left-over, which the next one takes over.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn one_at_a_time_and_nothing_left() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("lock");
        let held = Lock::take(&path).unwrap().expect("free");
        assert!(Lock::take(&path).unwrap().is_none());
        drop(held);
        assert!(!path.exists());
        // Left by a process that died.
        fs::write(&path, "").unwrap();
        drop(Lock::take(&path).unwrap().expect("free"));
        assert!(!path.exists());
    }

    #[test]
    fn a_lock_whose_file_was_replaced_leaves_the_other_alone() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("lock");
        let first = Lock::take(&path).unwrap().expect("free");
        fs::remove_file(&path).unwrap();
        let second = Lock::take(&path).unwrap().expect("another file");
        drop(first);
        assert!(path.exists() && Lock::take(&path).unwrap().is_none());
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn links_are_not_followed_and_files_not_emptied() {
        let place = tempfile::tempdir().unwrap();
        let (path, thesis) = (place.path().join("lock"), place.path().join("thesis.txt"));
        fs::write(&thesis, "mine").unwrap();
        symlink(&thesis, &path).unwrap();
        assert!(Lock::take(&path).is_err());
        assert_eq!(fs::read(&thesis).unwrap(), b"mine");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(Lock::take(&path).is_err());
    }
}

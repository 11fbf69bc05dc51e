//! Files that appear whole or not at all: a temporary name, fsync, then a rename.

use super::{TensorData, header};
use crate::error::UserError;
use crate::user_bail;
use anyhow::{Context, Result, ensure};
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Permissions of a new file, less what the process masks.
const MODE: u32 = 0o666;

/// A file under a temporary name. Dropped without [`publish`](Pending::publish), it disappears.
pub(super) struct Pending {
    path: PathBuf,
    temporary: PathBuf,
    needed: u64,
    out: Option<BufWriter<File>>,
}

impl Pending {
    /// Starts `path` beside its final place as `<name>.tmp`; an older file of that name, left by a process that died, is
    /// removed. `needed` is its final size in bytes, for errors.
    pub fn create(path: &Path, needed: u64) -> Result<Pending> {
        Self::with_mode(path, needed, MODE)
    }

    /// [`create`](Self::create) of a file with these permissions, less what the process masks.
    pub fn with_mode(path: &Path, needed: u64, mode: u32) -> Result<Pending> {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".tmp");
        let temporary = PathBuf::from(temporary);
        if let Ok(found) = temporary.symlink_metadata() {
            // A link could lead anywhere, and whoever made it was not this program.
            if !found.is_file() {
                user_bail!("{} is in the way: it is no file of softlm's", temporary.display(); "remove or rename it");
            }
            fs::remove_file(&temporary).map_err(|error| unwritable(path, needed, &error))?;
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary);
        let file = file.map_err(|error| unwritable(path, needed, &error))?;
        Ok(Pending { path: path.into(), temporary, needed, out: Some(BufWriter::with_capacity(1 << 20, file)) })
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let out = self.out.as_mut().context("written after the end")?;
        out.write_all(bytes).map_err(|error| unwritable(&self.path, self.needed, &error).into())
    }

    /// Brings everything to the disk and closes the file; it keeps its temporary name.
    pub fn finish(&mut self) -> Result<()> {
        let Some(out) = self.out.take() else { return Ok(()) };
        let synced = out.into_inner().map_err(io::IntoInnerError::into_error).and_then(|file| file.sync_all());
        synced.map_err(|error| unwritable(&self.path, self.needed, &error).into())
    }

    /// Gives the finished file its name, replacing an older one.
    pub fn publish(mut self) -> Result<()> {
        self.finish()?;
        fs::rename(&self.temporary, &self.path).map_err(|error| unwritable(&self.path, self.needed, &error))?;
        self.temporary.clear();
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.temporary.as_os_str().is_empty() {
            self.out = None;
            // Nothing better can be done about a left-over while another error is on its way.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Why a file could not be written.
pub(super) fn unwritable(path: &Path, needed: u64, error: &io::Error) -> UserError {
    let hint = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "free some space, or choose an output on another disk",
        ErrorKind::FileTooLarge => "choose smaller shards (--max-shard-size) or another file system",
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => "choose an output folder that you may write to",
        ErrorKind::NotFound | ErrorKind::NotADirectory => "the output must lie in an existing folder",
        _ => "check the disk, or choose another output folder",
    };
    UserError::new(format!("cannot write {} ({needed} bytes needed): {error}", path.display())).hint(hint)
}

/// Makes renames in a folder last through a power failure.
pub fn sync_folder(dir: &Path) -> Result<()> {
    let sync = || File::open(dir)?.sync_all();
    sync().with_context(|| format!("cannot bring the folder {} to the disk", dir.display()))
}

/// Writes a small file atomically: temporary name, fsync, rename. An existing file is replaced.
///
/// # Errors
/// A [`UserError`] naming the file and the bytes it needs; the name then holds what it held before.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = Pending::create(path, bytes.len() as u64)?;
    file.write(bytes)?;
    file.publish()?;
    sync_folder(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

/// Writes one small safetensors file atomically, such as the tensors of one block or a site's statistics. Each tensor
/// is name, dtype, shape and little-endian data. Read it back with [`TensorFile`](super::TensorFile).
///
/// # Errors
/// As [`write_file`]; also if a shape does not fit its data or a name repeats.
pub fn write_tensors<T: TensorData>(path: &Path, tensors: &[T], metadata: &BTreeMap<String, String>) -> Result<()> {
    let mut order: Vec<&T> = tensors.iter().collect();
    order.sort_by(|a, b| file_order((a.dtype(), a.name()), (b.dtype(), b.name())));
    for tensor in &order {
        let (name, shape, size) = (tensor.name(), tensor.shape(), tensor.size());
        let bits = shape.iter().product::<usize>() * tensor.dtype().bitsize();
        ensure!(bits == size * 8, "tensor {name} of shape {shape:?} does not fit its {size} bytes");
    }
    if let Some(pair) = order.windows(2).find(|pair| pair[0].name() == pair[1].name()) {
        anyhow::bail!("tensor {} is given twice", pair[0].name());
    }
    let header = header::build(metadata, order.iter().map(|t| (t.name(), t.dtype(), t.shape(), t.size())));
    let needed = header.len() + order.iter().map(|t| t.size()).sum::<usize>();
    let mut file = Pending::create(path, needed as u64)?;
    file.write(&header)?;
    for tensor in order {
        file.write(&tensor.data()?)?;
    }
    file.publish()?;
    sync_folder(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

/// Fails if a file could not be written in that place; nothing is left there.
///
/// # Errors
/// As [`write_file`].
pub fn check_place(path: &Path) -> Result<()> {
    if path.file_name().is_none() {
        user_bail!("{} is not the name of a file", path.display(); "name a file in an existing folder");
    }
    Pending::create(path, 0).map(drop)
}

/// Order of tensors within a file: wide elements first, so that each tensor lies at a multiple of its element size as
/// other readers need it; then by name.
pub(super) fn file_order(a: (Dtype, &str), b: (Dtype, &str)) -> std::cmp::Ordering {
    b.0.bitsize().cmp(&a.0.bitsize()).then_with(|| a.1.cmp(b.1))
}

/// Bytes that an ordinary user may still write on the disk that holds an existing folder.
pub fn free_space(dir: &Path) -> Result<u64> {
    let disk =
        rustix::fs::statvfs(dir).with_context(|| format!("cannot ask for the free space of {}", dir.display()))?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::super::NamedTensor;
    use super::super::TensorFile;
    use super::*;

    fn names_in(dir: &Path) -> Vec<String> {
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_dropped_before_the_end_leaves_nothing_and_the_old_one_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_file(&path, b"old").unwrap();
        let mut pending = Pending::create(&path, 3).unwrap();
        pending.write(b"ne").unwrap();
        assert_eq!(names_in(dir.path()).len(), 2);
        drop(pending);
        assert_eq!(names_in(dir.path()), ["a.json"]);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        write_file(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn what_lies_in_the_way_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, victim) = (dir.path().join("a.json"), dir.path().join("thesis.txt"));
        fs::write(&victim, "mine").unwrap();
        std::os::unix::fs::symlink(&victim, dir.path().join("a.json.tmp")).unwrap();
        let error = write_file(&path, b"new").unwrap_err().to_string();
        assert!(error.contains("a.json.tmp"), "{error}");
        assert_eq!(fs::read(&victim).unwrap(), b"mine");
        // A link under the final name is replaced itself.
        fs::remove_file(dir.path().join("a.json.tmp")).unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        fs::write(dir.path().join("a.json.tmp"), "of one that died").unwrap();
        write_file(&path, b"new").unwrap();
        assert!(!path.is_symlink() && fs::read(&path).unwrap() == b"new");
        assert_eq!(fs::read(&victim).unwrap(), b"mine");
    }

    #[test]
    fn a_full_disk_is_reported_with_file_and_size() {
        let Ok(full) = File::options().write(true).open("/dev/full") else {
            return println!("skipped: this system has no /dev/full");
        };
        let mut pending = Pending {
            path: "out/model.safetensors".into(),
            temporary: PathBuf::new(),
            needed: 12345,
            out: Some(BufWriter::new(full)),
        };
        pending.write(b"data").unwrap();
        let error = pending.finish().unwrap_err();
        let text = error.to_string();
        assert!(text.contains("out/model.safetensors") && text.contains("12345 bytes"), "{text}");
        assert!(error.downcast_ref::<UserError>().unwrap().hint_text().unwrap().contains("space"));
    }

    #[test]
    fn tensors_come_back_and_lie_aligned() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("block.safetensors");
        let tensors = [
            NamedTensor::new("a", Dtype::U8, [3], vec![1, 2, 3]),
            NamedTensor::f64("b", [], &[1.5]),
            NamedTensor::new("c", Dtype::F16, [0, 4], vec![]),
            NamedTensor::new("d", Dtype::F32, [1, 2], vec![7; 8]),
        ];
        let metadata = BTreeMap::from([("k".to_string(), "v".to_string())]);
        write_tensors(&path, &tensors, &metadata).unwrap();
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.metadata(), &metadata);
        assert_eq!(file.names().collect::<Vec<_>>(), ["a", "b", "c", "d"]);
        for tensor in &tensors {
            assert_eq!(file.read(&tensor.name).unwrap(), *tensor);
            assert_eq!(file.info(&tensor.name).unwrap().range.start * 8 % tensor.dtype.bitsize(), 0, "{}", tensor.name);
        }
        assert!(write_tensors(&path, &[NamedTensor::new("x", Dtype::F32, [2], vec![0; 4])], &metadata).is_err());
        let twice = NamedTensor::new("x", Dtype::U8, [1], vec![0]);
        assert!(write_tensors(&path, &[twice.clone(), twice], &metadata).is_err());
    }

    #[test]
    fn free_space_is_known_for_folders_only_that_exist() {
        assert!(free_space(&std::env::temp_dir()).unwrap() > 0);
        assert!(free_space(Path::new("/no/such/folder")).is_err());
    }
}

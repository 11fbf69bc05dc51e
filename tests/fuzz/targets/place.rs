//! A folder for the files of one input after the other.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A folder in memory where the system has that, empty but for what the current input put there.
pub struct Place {
    dir: TempDir,
    written: RefCell<Vec<PathBuf>>,
}

impl Place {
    pub fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let dir = match memory.is_dir() {
            true => tempfile::Builder::new().prefix("softlm-fuzz-").tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        Self { dir: dir.expect("a folder for temporary files"), written: RefCell::default() }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file. Those of the input before are removed by [`clear`](Self::clear).
    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).expect("a folder");
        }
        fs::write(&path, content).expect("written");
        self.written.borrow_mut().push(path.clone());
        path
    }

    /// Removes what the current input put here, and whatever lies at these names.
    pub fn clear(&self, also: &[&str]) {
        let written = self.written.take();
        for path in written.into_iter().chain(also.iter().map(|name| self.path().join(name))) {
            if path.is_dir() {
                fs::remove_dir_all(&path).expect("removed");
            } else if path.symlink_metadata().is_ok() {
                fs::remove_file(&path).expect("removed");
            }
        }
    }
}

//! Opening what a folder holds: regular files only, and no more of them in memory than a file of its kind can need.

use super::header::DAMAGED;
use crate::error::UserError;
use crate::user_bail;
use anyhow::Result;
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Largest settings, vocabulary or index that is read: the vocabularies of today have some 30 MB.
pub const LARGEST_SETTINGS: u64 = 256 << 20;

/// Opens a file, through links. What is none (a folder, a device, a pipe, which could keep a reader waiting for ever) is
/// refused.
///
/// # Errors
/// A [`UserError`] naming the file.
pub fn open_file(path: &Path) -> Result<File> {
    let not_waiting = OFlags::NONBLOCK.bits() as i32;
    let open = || OpenOptions::new().read(true).custom_flags(not_waiting).open(path);
    let file = open().map_err(|error| unreadable(path, &error))?;
    if !file.metadata().map_err(|error| unreadable(path, &error))?.is_file() {
        user_bail!(
            "{} is not a file but a folder, a device or a pipe", path.display();
            "put the file itself there"
        );
    }
    Ok(file)
}

/// Reads a file of settings.
///
/// # Errors
/// A [`UserError`] for what [`open_file`] refuses, and for more than [`LARGEST_SETTINGS`] bytes.
pub fn read_settings(path: &Path) -> Result<Vec<u8>> {
    read_at_most(path, LARGEST_SETTINGS)
}

/// [`read_settings`] of a file whose kind is never larger than `most` bytes.
pub(super) fn read_at_most(path: &Path, most: u64) -> Result<Vec<u8>> {
    let file = open_file(path)?;
    let size = file.metadata().map_err(|error| unreadable(path, &error))?.len();
    let mut bytes = Vec::new();
    let read = match size > most {
        true => Ok(0),
        // What a file says of its size is not what some of them hold.
        false => {
            bytes.reserve_exact(size as usize);
            file.take(most + 1).read_to_end(&mut bytes)
        }
    };
    read.map_err(|error| unreadable(path, &error))?;
    let size = size.max(bytes.len() as u64);
    if size > most {
        user_bail!(
            "{} has {size} bytes, more than any file of its kind ({most} at most are read)", path.display();
            "get the model's original files"
        );
    }
    Ok(bytes)
}

/// A file that the system would not let us read.
pub(super) fn unreadable(path: &Path, error: &io::Error) -> UserError {
    let hint = match error.kind() {
        io::ErrorKind::NotFound => "check the name, or copy the missing file into the folder",
        io::ErrorKind::PermissionDenied => "give yourself the right to read it",
        io::ErrorKind::IsADirectory => "a file is needed here",
        _ => DAMAGED,
    };
    UserError::new(format!("cannot read {}: {error}", path.display())).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_files_are_read_and_only_so_much() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        std::fs::write(at("a.json"), "{}").unwrap();
        symlink(at("a.json"), at("link.json")).unwrap();
        assert_eq!(read_settings(&at("link.json")).unwrap(), b"{}");
        symlink("/dev/zero", at("zero.json")).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(at("pipe.json")).status().unwrap().success());
        for name in ["zero.json", "pipe.json", "."] {
            let error = read_settings(&at(name)).unwrap_err().to_string();
            assert!(error.contains("is not a file"), "{name}: {error}");
        }
        // A hole takes no room on the disk.
        File::create(at("huge.json")).unwrap().set_len(LARGEST_SETTINGS + 1).unwrap();
        let error = read_settings(&at("huge.json")).unwrap_err().to_string();
        assert!(error.contains("huge.json") && error.contains("268435457"), "{error}");
    }
}

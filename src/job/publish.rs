//! The last step of a run: what was assembled becomes the output.

use super::{Job, WORK};
use crate::checkpoint::{sync_folder, write_file};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;

/// One of these moves last into an output, and leaves first: without it no folder is a model, or the factors of one.
pub(super) const COMPLETE: [&str; 2] = ["config.json", "factors.json"];
/// What is found in a fresh file system and belongs to nobody.
const LOST_AND_FOUND: &str = "lost+found";
/// File of the work folder that says what moves into an output, or out of it, one by one.
const MANIFEST: &str = "moving";

/// As [`fs::rename`]; tests have others.
pub(super) type Rename<'a> = &'a dyn Fn(&Path, &Path) -> io::Result<()>;

impl Job {
    /// Makes the assembled folder the output and removes the work folder.
    pub fn publish(self) -> Result<()> {
        self.publish_by(&|from, to| fs::rename(from, to))
    }

    pub(super) fn publish_by(self, rename: Rename) -> Result<()> {
        let inside = self.dir.parent() == Some(&self.output);
        let swapped = if inside { None } else { Some(self.swap(rename)) };
        match swapped {
            Some(Ok(())) => {}
            Some(Err(error)) if !only_by_parts(&error) => {
                return Err(error).with_context(|| format!("creating {}", self.output.display()));
            }
            // The output cannot be replaced as a whole, or lies on another file system.
            None | Some(Err(_)) => self.fill(rename)?,
        }
        fs::remove_dir_all(&self.dir).with_context(|| format!("removing {}", self.dir.display()))
    }

    /// Puts the assembled folder in the output's place.
    fn swap(&self, rename: Rename) -> io::Result<()> {
        let there = self.output.symlink_metadata().is_ok();
        if self.replace && there && !empty_but_for(&self.output, &[]) {
            let old = self.dir.join("replaced");
            if old.exists() {
                fs::remove_dir_all(&old)?;
            }
            rename(&self.output, &old)?;
        }
        rename(&self.assembled(), &self.output)
    }

    /// Moves what was assembled into the output folder, in place of what is there. A run that dies meanwhile leaves a
    /// folder without `config.json` and the list of what in it is its own.
    fn fill(&self, rename: Rename) -> Result<()> {
        let (from, output) = (self.assembled(), &self.output);
        let shown = output.display().to_string();
        fs::create_dir_all(output).with_context(|| format!("creating {shown}"))?;
        let (mut new, mut old) = (names(&from)?, names(output)?);
        old.retain(|name| name != WORK && name != LOST_AND_FOUND);
        let all = new.iter().chain(&old).map(|name| name.to_string_lossy().into_owned()).collect();
        Manifest(all).write(&self.dir)?;
        old.sort_by_key(|name| !completes(name));
        for name in &old {
            remove(&output.join(name)).with_context(|| format!("replacing {shown}"))?;
        }
        sync_folder(output)?;
        new.sort_by_key(completes);
        for name in &new {
            if completes(name) {
                sync_folder(output)?;
            }
            move_to(&from.join(name), &output.join(name), rename).with_context(|| format!("creating {shown}"))?;
        }
        sync_folder(output)
    }
}

fn completes(name: &OsString) -> bool {
    COMPLETE.iter().any(|file| name == file)
}

/// Why a rename may fail although files can be written there.
fn only_by_parts(error: &io::Error) -> bool {
    use ErrorKind::{CrossesDevices, DirectoryNotEmpty, PermissionDenied, ResourceBusy};
    [ResourceBusy, CrossesDevices, DirectoryNotEmpty, PermissionDenied].contains(&error.kind())
        // EINVAL: some network and overlay file systems.
        || error.kind() == ErrorKind::InvalidInput
}

/// A file or folder to another name, which may be on another file system.
fn move_to(from: &Path, to: &Path, rename: Rename) -> Result<()> {
    match rename(from, to) {
        Err(error) if error.kind() == ErrorKind::CrossesDevices => {}
        result => return Ok(result?),
    }
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for name in names(from)? {
            move_to(&from.join(&name), &to.join(&name), rename)?;
        }
        return Ok(fs::remove_dir(from)?);
    }
    fs::copy(from, to)?;
    File::open(to)?.sync_all()?;
    Ok(fs::remove_file(from)?)
}

fn names(dir: &Path) -> Result<Vec<OsString>> {
    let entries = fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    Ok(entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<_>>()?)
}

fn remove(path: &Path) -> io::Result<()> {
    let real_folder = path.symlink_metadata()?.is_dir();
    if real_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// Whether a folder holds nothing but `names`, a work folder, and what a fresh file system has. A link to a folder is none.
pub(super) fn empty_but_for(dir: &Path, names: &[String]) -> bool {
    let real = dir.symlink_metadata().is_ok_and(|meta| meta.is_dir());
    let ours = |name: &OsString| name == WORK || name == LOST_AND_FOUND || names.iter().any(|other| name == &**other);
    real && self::names(dir).is_ok_and(|found| found.iter().all(ours))
}

/// Whether another file system, or another part of the same, begins at this folder.
pub(super) fn is_mount_point(dir: &Path) -> bool {
    let Ok(dir) = dir.canonicalize() else { return false };
    if let Some(root) = mount_root(&dir) {
        return root;
    }
    let device = |path: &Path| rustix::fs::stat(path).map(|stat| stat.st_dev).ok();
    dir.parent().is_none_or(|parent| device(parent) != device(&dir))
}

/// What the kernel says, where it says something: a mount of a folder of the same disk has the same device.
#[cfg(target_os = "linux")]
fn mount_root(dir: &Path) -> Option<bool> {
    use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
    let found = statx(CWD, dir, AtFlags::empty(), StatxFlags::BASIC_STATS).ok()?;
    let known = found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT);
    known.then(|| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

#[cfg(not(target_os = "linux"))]
fn mount_root(_: &Path) -> Option<bool> {
    None
}

/// Names in an output folder that are a run's own while it fills the folder.
#[derive(Serialize, Deserialize)]
pub(super) struct Manifest(Vec<String>);

impl Manifest {
    /// That of the work folder `dir`, if a run died while it filled its output.
    pub fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(dir.join(MANIFEST)).ok()?).ok()
    }

    /// The names.
    pub fn names(&self) -> &[String] {
        &self.0
    }

    fn write(&self, dir: &Path) -> Result<()> {
        write_file(&dir.join(MANIFEST), &serde_json::to_vec(self)?)
    }

    /// Removes from `output` what is a run's own.
    pub fn remove_from(&self, output: &Path) -> Result<()> {
        for path in self.0.iter().map(|name| output.join(name)).filter(|path| path.symlink_metadata().is_ok()) {
            remove(&path).with_context(|| format!("removing {}", path.display()))?;
        }
        Ok(())
    }

    /// Removes the list itself.
    pub fn forget(&self, dir: &Path) -> Result<()> {
        fs::remove_file(dir.join(MANIFEST)).with_context(|| format!("clearing {}", dir.display()))
    }
}

//! The last step of a run: what was assembled becomes the output.

use super::output::{Belongings, COMPLETE};
use super::{Job, MANIFEST, REPLACED, folder};
use crate::checkpoint::{read_settings, sync_folder, write_file};
use crate::hash::sha256;
use crate::user_bail;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;

/// What is found in a fresh file system and belongs to nobody.
pub(super) const LOST_AND_FOUND: &str = "lost+found";

/// As [`fs::rename`].
pub(super) type Rename<'a> = &'a dyn Fn(&Path, &Path) -> io::Result<()>;

/// What the system does with names; tests have others.
pub(super) struct Moves<'a> {
    /// Gives something another name, in place of what has it.
    pub rename: Rename<'a>,
    /// Lets two change their names, which not every file system can.
    pub exchange: Rename<'a>,
}

/// What a run found in the place of its output and left there.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Kept(pub Vec<String>);

impl Kept {
    /// A sentence about it for the user of `output`, if there was anything.
    pub fn note(&self, output: &Path) -> Option<String> {
        let (shown, names) = (output.display(), self.0.join(", "));
        (!self.0.is_empty())
            .then(|| format!("{shown} also holds what softlm did not put there, left as it was: {names}"))
    }
}

impl Job {
    /// Makes the assembled folder the output and removes the work folder. Of what was in the output's place, only what an
    /// earlier output held is removed; what else there was is returned.
    pub fn publish(self) -> Result<Kept> {
        self.publish_by(&Moves { rename: &|from, to| fs::rename(from, to), exchange: &exchange })
    }

    pub(super) fn publish_by(self, moves: &Moves) -> Result<Kept> {
        let shown = self.output.display().to_string();
        let new = Belongings::listed(&self.assembled(), &[]).with_context(|| format!("reading {shown}"))?;
        let new = files_below(&self.assembled(), new.others)?;
        let there = match self.output.symlink_metadata() {
            Err(_) => None,
            Ok(_) => Some(Belongings::of_output(&self.output, &new).with_context(|| format!("reading {shown}"))?),
        };
        if !self.replace && there.as_ref().is_some_and(|there| !there.own.is_empty() || !there.others.is_empty()) {
            user_bail!(
                "{shown} was not there when the run began, and is not its output";
                "move it elsewhere and give the same command again: the run's work is kept"
            );
        }
        let others = there.as_ref().map_or(Vec::new(), |there| there.others.clone());
        let inside = self.dir.parent() == Some(&self.output);
        let swapped = if inside || !others.is_empty() { None } else { Some(self.swap(there.is_some(), moves)) };
        match swapped {
            Some(Ok(())) => {}
            Some(Err(error)) if !only_by_parts(&error) => {
                return Err(error).with_context(|| format!("creating {shown}"));
            }
            // The output cannot be replaced as a whole, or lies on another file system, or holds what is not ours.
            None | Some(Err(_)) => self.fill(&new, there.unwrap_or_default(), moves.rename)?,
        }
        folder::remove(&self.dir)?;
        Ok(Kept(others))
    }

    /// Puts the assembled folder in the output's place.
    fn swap(&self, there: bool, moves: &Moves) -> io::Result<()> {
        let (old, rename) = (self.dir.join(REPLACED), moves.rename);
        if there {
            // At no time is there no output.
            if (moves.exchange)(&self.assembled(), &self.output).is_ok() {
                return Ok(());
            }
            if old.exists() {
                fs::remove_dir_all(&old)?;
            }
            rename(&self.output, &old)?;
        }
        rename(&self.assembled(), &self.output).inspect_err(|_| {
            // Whatever went wrong, the earlier output is not lost. Nothing better can be done if this fails as well.
            if there {
                let _ = rename(&old, &self.output);
            }
        })
    }

    /// Moves what was assembled into the output folder, in place of the files of an earlier one. A run that dies meanwhile
    /// leaves a folder without `config.json` and the list of what in it is its own.
    fn fill(&self, new: &[String], there: Belongings, rename: Rename) -> Result<()> {
        let (from, output) = (self.assembled(), &self.output);
        let shown = output.display().to_string();
        fs::create_dir_all(output).with_context(|| format!("creating {shown}"))?;
        let (mut new, mut old) = (new.to_vec(), there.own);
        let own = new.iter().chain(&old).cloned().collect();
        Manifest { own, others: there.others }.write(&self.dir)?;
        old.sort_by_key(|name| !completes(name));
        remove_files(output, &old)?;
        sync_folder(output)?;
        new.sort_by_key(|name| completes(name));
        for name in &new {
            if completes(name) {
                sync_folder(output)?;
            }
            let to = output.join(name);
            let made = to.parent().map_or(Ok(()), fs::create_dir_all);
            made.and_then(|()| move_to(&from.join(name), &to, rename)).with_context(|| format!("creating {shown}"))?;
        }
        sync_folder(output)
    }
}

#[cfg(target_os = "linux")]
fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}

#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

fn completes(name: &str) -> bool {
    COMPLETE.contains(&name)
}

/// Why a rename may fail although files can be written there.
fn only_by_parts(error: &io::Error) -> bool {
    use ErrorKind::{CrossesDevices, DirectoryNotEmpty, PermissionDenied, ResourceBusy};
    [ResourceBusy, CrossesDevices, DirectoryNotEmpty, PermissionDenied].contains(&error.kind())
        // EINVAL: some network and overlay file systems.
        || error.kind() == ErrorKind::InvalidInput
}

/// A file to another name, which may be on another file system.
fn move_to(from: &Path, to: &Path, rename: Rename) -> io::Result<()> {
    match rename(from, to) {
        Err(error) if error.kind() == ErrorKind::CrossesDevices => {}
        result => return result,
    }
    fs::copy(from, to)?;
    File::open(to)?.sync_all()?;
    fs::remove_file(from)
}

/// The relative names of all files below these names of `dir`, of which a folder ends in `/`.
fn files_below(dir: &Path, names: Vec<String>) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for name in names {
        if !name.ends_with('/') {
            files.push(name);
            continue;
        }
        let below = Belongings::listed(&dir.join(&name), &[]).with_context(|| format!("reading {}", dir.display()))?;
        files.extend(files_below(dir, below.others.into_iter().map(|file| format!("{name}{file}")).collect())?);
    }
    Ok(files)
}

/// Removes these files of `dir`, and the folders that are empty without them.
fn remove_files(dir: &Path, names: &[String]) -> Result<()> {
    for name in names {
        let path = dir.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", path.display()));
            }
            _ => {}
        }
    }
    for name in names {
        let parents = Path::new(name).ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty());
        // One that holds something else stays.
        parents.for_each(|parent| drop(fs::remove_dir(dir.join(parent))));
    }
    Ok(())
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

/// What is in an output folder while a run fills it, by relative names.
#[derive(Serialize, Deserialize)]
pub(super) struct Manifest {
    /// Files of the run and of the output that it replaces.
    own: Vec<String>,
    /// What else was there.
    others: Vec<String>,
}

impl Manifest {
    /// That of the work folder `dir`, if a run died while it filled its output.
    ///
    /// # Errors
    /// A [`UserError`](crate::error::UserError) if it was changed: files are removed by it.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(MANIFEST);
        if path.symlink_metadata().is_err() {
            return Ok(None);
        }
        let bytes = read_settings(&path)?;
        let text = std::str::from_utf8(&bytes).ok().and_then(|text| text.split_once('\n'));
        let sound = text.filter(|(sum, json)| *sum == sha256(json));
        let Some(manifest) = sound.and_then(|(_, json)| serde_json::from_str(json).ok()) else {
            user_bail!(
                "{} is damaged: it lists what an unfinished run has moved into its output", path.display();
                "remove {} and what of that output is there, then give the command again", dir.display()
            );
        };
        Ok(Some(manifest))
    }

    /// Whether a folder holds nothing but what the manifest knows.
    pub fn accounts_for(&self, output: &Path) -> bool {
        let found = Belongings::listed(output, &self.own);
        found.is_ok_and(|found| found.others.iter().all(|name| self.others.contains(name)))
    }

    fn write(&self, dir: &Path) -> Result<()> {
        let json = serde_json::to_string(self)?;
        write_file(&dir.join(MANIFEST), format!("{}\n{json}", sha256(&json)).as_bytes())
    }

    /// Removes from `output` what is a run's own.
    pub fn remove_from(&self, output: &Path) -> Result<()> {
        remove_files(output, &self.own)
    }

    /// Removes the list itself.
    pub fn forget(&self, dir: &Path) -> Result<()> {
        fs::remove_file(dir.join(MANIFEST)).with_context(|| format!("clearing {}", dir.display()))
    }
}

//! What may lie in a work folder. Nothing else is ever removed from one, and nothing there is followed to somewhere else.

use super::{ASSEMBLED, FINGERPRINT, LOCK, MANIFEST, REPLACED};
use crate::checkpoint::read_settings;
use crate::error::UserError;
use crate::lock::Lock;
use crate::user_bail;
use anyhow::{Context, Result};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Files of one block, before its number.
const OF_BLOCKS: [&str; 4] = ["gradients", "decompositions", "block", "healed"];
/// Files of the whole run, but for those of this module's parent.
pub(super) const OF_THE_RUN: [&str; 4] =
    ["weights.safetensors", "learning.safetensors", "healing.safetensors", "trials.safetensors"];
/// Digits of a block's number.
const DIGITS: usize = 5;
/// Names told in a refusal.
const NAMED: usize = 3;

/// The name of a block's file of one of these kinds.
pub(super) fn block_name(kind: &str, index: usize) -> String {
    format!("{kind}-{index:0DIGITS$}.safetensors")
}

/// What lies in a work folder, found to be nothing but what a run leaves there.
pub(super) struct Contents {
    /// Finished work and what belongs to it, by name; not the lock and the fingerprint.
    pub work: Vec<String>,
    /// What decides the result of the run that left it, if it came so far to say.
    pub fingerprint: Option<String>,
}

impl Contents {
    /// Looks through `dir`.
    ///
    /// # Errors
    /// A [`UserError`] for a link in its place, and for anything in it that no run leaves there.
    pub fn of(dir: &Path) -> Result<Self> {
        let shown = dir.display();
        let found = dir.symlink_metadata().with_context(|| format!("reading {shown}"))?;
        if !found.is_dir() {
            let what = if found.is_symlink() { "a link" } else { "not a folder" };
            user_bail!("{shown} is {what}, where the run would keep its work"; "remove or rename it, or choose another -o");
        }
        let (mut work, mut strange) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(dir).with_context(|| format!("reading {shown}"))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type()?;
            let folder = [ASSEMBLED, REPLACED].contains(&name.as_str());
            let known = if folder { kind.is_dir() } else { kind.is_file() && is_known(&name) };
            match known {
                false => strange.push(name),
                true if name != LOCK && name != FINGERPRINT => work.push(name),
                true => {}
            }
        }
        strange.sort();
        let fingerprint = read_fingerprint(dir);
        // The fingerprint comes before all work and goes after it.
        if strange.is_empty() && fingerprint.is_none() {
            strange.extend(work.iter().filter(|name| !is_temporary(name)).cloned());
        }
        if let Some(first) = strange.first() {
            let more = match strange.len() {
                1 => String::new(),
                n if n <= NAMED => format!(" and {}", strange[1..].join(", ")),
                n => format!(" and {} more", n - 1),
            };
            user_bail!(
                "{shown} holds {first}{more}, not put there by a run for this output";
                "the run would work there: move what you need elsewhere and remove {shown}, or choose another -o"
            );
        }
        Ok(Self { work, fingerprint })
    }

    /// Whether a run could continue from it.
    pub fn holds_work(&self) -> bool {
        self.work.iter().any(|name| !is_temporary(name))
    }
}

/// Whether a run leaves files of this name.
pub(super) fn is_known(name: &str) -> bool {
    let name = name.strip_suffix(".tmp").unwrap_or(name);
    if [LOCK, FINGERPRINT, MANIFEST].contains(&name) || OF_THE_RUN.contains(&name) {
        return true;
    }
    let Some((kind, number)) = name.strip_suffix(".safetensors").and_then(|name| name.split_once('-')) else {
        return false;
    };
    OF_BLOCKS.contains(&kind) && number.len() >= DIGITS && number.bytes().all(|digit| digit.is_ascii_digit())
}

fn is_temporary(name: &str) -> bool {
    name.ends_with(".tmp")
}

/// The fingerprint of the run that works or worked in `dir`. One that was damaged is that of no run.
fn read_fingerprint(dir: &Path) -> Option<String> {
    let path = dir.join(FINGERPRINT);
    path.symlink_metadata().ok()?;
    Some(read_settings(&path).map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// Makes `dir` unless it is there and takes its lock.
///
/// # Errors
/// [`Refused`] where the folder cannot be made or written to; a [`UserError`] for another process that holds the lock, and as
/// [`Contents::of`].
pub(super) fn lock(dir: &Path, shown: &dyn std::fmt::Display) -> Result<Lock> {
    loop {
        make(dir)?;
        match Contents::of(dir) {
            // Another run for this output is just removing the folder.
            Err(_) if dir.symlink_metadata().is_err() => continue,
            found => found?,
        };
        match Lock::take(&dir.join(LOCK)) {
            Ok(Some(lock)) => return Ok(lock),
            Ok(None) => user_bail!("another softlm is working on {shown}"; "wait for it, or choose another -o"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Refused(dir.to_path_buf(), error).into()),
        }
    }
}

fn make(dir: &Path) -> Result<()> {
    let refused = |error| Refused(dir.to_path_buf(), error);
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(refused)?;
    }
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => Ok(made.map_err(refused)?),
    }
}

/// A work folder that cannot be made or written to.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to {}: {}", .0.display(), .1)]
pub(super) struct Refused(PathBuf, pub io::Error);

impl Refused {
    /// The same for the user.
    pub fn explain(&self) -> UserError {
        UserError::new(self.to_string()).hint("choose an output folder you can write to")
    }
}

/// Removes what runs left in `dir`, but for the lock and the fingerprint. Each name stays until its content is gone.
pub(super) fn clear(dir: &Path) -> Result<()> {
    for name in Contents::of(dir)?.work {
        let path = dir.join(&name);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| format!("clearing {}", path.display()))?;
    }
    Ok(())
}

/// Removes the whole folder, the fingerprint after all work and the lock last. Others than runs may have put something there
/// meanwhile: then it stays, and the error says so.
pub(super) fn remove(dir: &Path) -> Result<()> {
    clear(dir)?;
    for name in [FINGERPRINT, LOCK] {
        match fs::remove_file(dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", dir.join(name).display()));
            }
            _ => {}
        }
    }
    fs::remove_dir(dir).with_context(|| format!("removing {}", dir.display()))
}

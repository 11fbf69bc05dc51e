//! The work folder of a run: what makes it resumable, and an unfinished output invisible.
//!
//! Usually everything is built in `<output>.softlm-work`, beside the output, which then appears in one rename. A folder
//! that is already there, empty, is worked in instead, in `<output>/.softlm-work`: it may be a mount point (a volume of a
//! container, a disk), which no rename replaces, lie in a folder that may not be written to, or be where somebody stands.
//! Such an output is filled: files move into it one after the other, `config.json` as the last, without which no folder is
//! a model.

mod publish;
#[cfg(test)]
mod tests;

use crate::checkpoint::{TensorFile, write_file};
use crate::error::UserError;
use crate::user_bail;
use anyhow::{Context, Result};
use publish::{COMPLETE, Manifest, empty_but_for, is_mount_point};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Display, Path, PathBuf};

/// Key in the header of an export's weight files.
pub const EXPORT_MARK: &str = "softlm_export";

/// Files of a work folder that hold no work.
const BOOKKEEPING: [&str; 2] = ["lock", "fingerprint"];
/// What a work folder is called inside an output, and how its name ends beside one.
const WORK: &str = ".softlm-work";

/// A run's work folder, locked for this process.
pub struct Job {
    dir: PathBuf,
    output: PathBuf,
    resumed: bool,
    /// Files of the earlier run that could not be read and are made again.
    damaged: Vec<String>,
    replace: bool,
    _lock: File,
}

impl Job {
    /// Opens or creates the work folder of `output`.
    ///
    /// `fingerprint` stands for everything that determines the result: work found there is continued only if it was
    /// made under the same one. With `force`, an existing output is replaced at the end and other work thrown away.
    pub fn open(output: &Path, fingerprint: &str, force: bool) -> Result<Self> {
        let shown = output.display();
        // A link to a folder stands for that folder, and so does `.`.
        let elsewhere = output.is_dir() && (output.is_symlink() || output.file_name().is_none());
        let target = if elsewhere { output.canonicalize().ok() } else { None };
        let output = target.as_deref().unwrap_or(output);
        may_become_output(output, &shown, force)?;
        let (dir, lock) = work_folder(output, &shown)?;
        // Some network file systems have no locks: there nothing keeps two runs apart, as nowhere else.
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            user_bail!("another softlm is working on {shown}"; "wait for it, or choose another -o");
        }
        // The other one may have finished between the first look and the lock.
        may_become_output(output, &shown, force)?;
        let stamp = dir.join("fingerprint");
        let before = fs::read_to_string(&stamp).ok();
        let resumed = before.as_deref() == Some(fingerprint);
        if before.is_some() && !resumed && !force && holds_work(&dir) {
            user_bail!(
                "{} holds an unfinished run with other options, another model or another text", dir.display();
                "repeat that run's command to finish it, or add --force to start over"
            );
        }
        let damaged = if resumed { remove_damaged(&dir)? } else { Vec::new() };
        let job = Self { dir, output: output.to_path_buf(), resumed, damaged, replace: force, _lock: lock };
        // What a run that died while it filled its output has put there is made again from its work.
        if let Some(manifest) = Manifest::read(&job.dir) {
            if !is_output(&job.output) {
                manifest.remove_from(&job.output)?;
            }
            manifest.forget(&job.dir)?;
        }
        if !resumed {
            job.clear()?;
            // All or nothing: half a fingerprint would make the same command look like another one.
            write_file(&stamp, fingerprint.as_bytes())?;
        }
        Ok(job)
    }

    /// Whether finished work of an earlier run may be there.
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// Names of files of the earlier run that were cut short or damaged. They are gone, so that their blocks are done again.
    pub fn damaged(&self) -> &[String] {
        &self.damaged
    }

    /// Where the survey of block `index` is kept: its decompositions, up to break-even.
    pub fn survey_file(&self, index: usize) -> PathBuf {
        self.dir.join(format!("survey-{index:05}.safetensors"))
    }

    /// Where all components of block `index` are kept, for a learned method to choose from.
    pub fn basis_file(&self, index: usize) -> PathBuf {
        self.dir.join(format!("basis-{index:05}.safetensors"))
    }

    /// Where the finished tensors of block `index` are kept.
    pub fn block_file(&self, index: usize) -> PathBuf {
        self.dir.join(format!("block-{index:05}.safetensors"))
    }

    /// Where the tensors of block `index` are kept after healing.
    pub fn healed_file(&self, index: usize) -> PathBuf {
        self.dir.join(format!("healed-{index:05}.safetensors"))
    }

    /// A small file of the job.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// An empty folder to assemble the output in.
    pub fn assembly(&self) -> Result<PathBuf> {
        let dir = self.assembled();
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("clearing {}", dir.display()))?;
        }
        fs::create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(dir)
    }

    fn assembled(&self) -> PathBuf {
        self.dir.join("out")
    }

    fn clear(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name == "lock") {
                continue;
            }
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.with_context(|| format!("clearing {}", path.display()))?;
        }
        Ok(())
    }
}

/// A run that failed before it finished anything leaves nothing behind.
impl Drop for Job {
    fn drop(&mut self) {
        if !holds_work(&self.dir) {
            // Nothing better can be done about a left-over while an error is on its way.
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Where the work folder of `output` may be: beside it and, if it is there, in it.
fn places(output: &Path) -> impl Iterator<Item = PathBuf> {
    let beside = output.file_name().map(|name| {
        let mut name = name.to_owned();
        name.push(WORK);
        output.with_file_name(name)
    });
    beside.into_iter().chain(output.is_dir().then(|| output.join(WORK)))
}

/// The work folder of `output` and the lock in it: one that is there already, else wherever it may be made.
fn work_folder(output: &Path, shown: &Display) -> Result<(PathBuf, File)> {
    let mut places: Vec<PathBuf> = places(output).collect();
    if empty_but_for(output, &[]) || is_mount_point(output) {
        places.reverse();
    }
    places.sort_by_key(|dir| !dir.exists());
    let mut refusal = None;
    for dir in places {
        let lock = fs::create_dir_all(&dir).and_then(|()| File::create(dir.join("lock")));
        let error = match lock {
            Ok(lock) => return Ok((dir, lock)),
            Err(error) => error,
        };
        refusal.get_or_insert_with(|| {
            UserError::new(format!("cannot write to {}: {error}", dir.display()))
                .hint("choose an output folder you can write to")
        });
        // A mount point is filled, never replaced: what cannot be written to now cannot be at the end.
        let is_final = dir.starts_with(output) && is_mount_point(output);
        if is_final || ![ErrorKind::PermissionDenied, ErrorKind::ReadOnlyFilesystem].contains(&error.kind()) {
            break;
        }
    }
    match refusal {
        Some(error) => Err(error.into()),
        None => user_bail!("output {shown} is not the name of a new folder"; "for example -o out"),
    }
}

/// Removes files of tensors and of numbers that cannot be read and returns their names: work that was finished is never written in place,
/// so what is cut short was damaged afterwards.
fn remove_damaged(dir: &Path) -> Result<Vec<String>> {
    let mut damaged = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let broken = match path.extension().and_then(OsStr::to_str) {
            Some("safetensors") => TensorFile::open(&path).is_err(),
            Some("json") => fs::read(&path).is_ok_and(|bytes| serde_json::from_slice::<Value>(&bytes).is_err()),
            _ => false,
        };
        if broken {
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            damaged.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    damaged.sort();
    Ok(damaged)
}

/// Whether there is anything in a work folder that a run could continue from.
fn holds_work(dir: &Path) -> bool {
    let is_work = |name: &OsStr| !BOOKKEEPING.iter().any(|file| name == *file);
    fs::read_dir(dir).is_ok_and(|mut entries| entries.any(|entry| entry.is_ok_and(|e| is_work(&e.file_name()))))
}

/// Fails when something is in the way that must not, or with `force` should not, be replaced.
fn may_become_output(output: &Path, shown: &Display, force: bool) -> Result<()> {
    if output.symlink_metadata().is_err() || empty_but_for(output, &[]) {
        return Ok(());
    }
    // Left by a run that died while it filled the folder: everything there is its own.
    if !is_output(output)
        && places(output).filter_map(|dir| Manifest::read(&dir)).any(|own| empty_but_for(output, own.names()))
    {
        return Ok(());
    }
    if !force {
        user_bail!("output {shown} already exists"; "choose another -o, or add --force to replace it");
    }
    // A mistyped -o must not cost anybody a folder that holds something else.
    if !is_output(output) {
        user_bail!(
            "output {shown} already exists and was not written by softlm, so --force does not replace it";
            "choose another -o, or remove it yourself"
        );
    }
    Ok(())
}

/// Whether softlm wrote this folder: an output says so in its config.json, an export in the header of its weights.
fn is_output(path: &Path) -> bool {
    let config = fs::read(path.join("config.json")).ok();
    let config = config.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    let complete = COMPLETE.iter().any(|file| path.join(file).exists());
    config.is_some_and(|config| config.get("softlm").is_some()) || complete && is_export(path)
}

fn is_export(path: &Path) -> bool {
    let first = |name: &str| name == "model.safetensors" || name.starts_with("model-00001-of-");
    let marked = |path: &Path| TensorFile::open(path).is_ok_and(|file| file.metadata().contains_key(EXPORT_MARK));
    let Ok(mut entries) = fs::read_dir(path) else { return false };
    entries.any(|entry| entry.is_ok_and(|e| e.file_name().to_str().is_some_and(first) && marked(&e.path())))
}

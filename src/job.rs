//! The work folder beside the output: what makes a run resumable, and an unfinished output invisible.
//!
//! Everything is built in `<output>.softlm-work`. The output folder itself appears in one rename at the very end.

use crate::checkpoint::{TensorFile, write_file};
use crate::error::UserError;
use crate::user_bail;
use anyhow::{Context, Result};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

/// Key in the header of an export's weight files.
pub const EXPORT_MARK: &str = "softlm_export";

/// Files of a work folder that hold no work.
const BOOKKEEPING: [&str; 2] = ["lock", "fingerprint"];

/// A run's work folder, locked for this process.
pub struct Job {
    dir: PathBuf,
    output: PathBuf,
    resumed: bool,
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
        may_become_output(output, force)?;
        let Some(name) = output.file_name() else {
            user_bail!("output {shown} is not the name of a new folder"; "for example -o out")
        };
        let mut name = name.to_owned();
        name.push(".softlm-work");
        let dir = output.with_file_name(name);
        let create = || -> Result<File> {
            fs::create_dir_all(&dir)?;
            Ok(File::create(dir.join("lock"))?)
        };
        let lock = create().map_err(|e| {
            UserError::new(format!("cannot write to {}: {e:#}", dir.display()))
                .hint("choose an output folder you can write to")
        })?;
        // Some network file systems have no locks: there nothing keeps two runs apart, as nowhere else.
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            user_bail!("another softlm is working on {shown}"; "wait for it, or choose another -o");
        }
        // The other one may have finished between the first look and the lock.
        may_become_output(output, force)?;
        let stamp = dir.join("fingerprint");
        let before = fs::read_to_string(&stamp).ok();
        let resumed = before.as_deref() == Some(fingerprint);
        if before.is_some() && !resumed && !force && holds_work(&dir) {
            user_bail!(
                "{} holds an unfinished run with other options, another model or another text", dir.display();
                "repeat that run's command to finish it, or add --force to start over"
            );
        }
        let job = Self { dir, output: output.to_path_buf(), resumed, replace: force, _lock: lock };
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
        let dir = self.dir.join("out");
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("clearing {}", dir.display()))?;
        }
        fs::create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(dir)
    }

    /// Makes the assembled folder the output and removes the work folder.
    pub fn publish(self) -> Result<()> {
        let assembled = self.dir.join("out");
        let shown = self.output.display().to_string();
        if self.replace && self.output.symlink_metadata().is_ok() && !is_empty_dir(&self.output) {
            let old = self.dir.join("replaced");
            if old.exists() {
                fs::remove_dir_all(&old)?;
            }
            fs::rename(&self.output, &old).with_context(|| format!("replacing {shown}"))?;
        }
        fs::rename(&assembled, &self.output).with_context(|| format!("creating {shown}"))?;
        fs::remove_dir_all(&self.dir).with_context(|| format!("removing {}", self.dir.display()))
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

/// Whether there is anything in a work folder that a run could continue from.
fn holds_work(dir: &Path) -> bool {
    let is_work = |name: &OsStr| !BOOKKEEPING.iter().any(|file| name == *file);
    fs::read_dir(dir).is_ok_and(|mut entries| entries.any(|entry| entry.is_ok_and(|e| is_work(&e.file_name()))))
}

/// Fails when something is in the way that must not, or with `force` should not, be replaced.
fn may_become_output(output: &Path, force: bool) -> Result<()> {
    let shown = output.display();
    if output.symlink_metadata().is_err() || is_empty_dir(output) {
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
    config.is_some_and(|config| config.get("softlm").is_some()) || is_export(path)
}

fn is_export(path: &Path) -> bool {
    let first = |name: &str| name == "model.safetensors" || name.starts_with("model-00001-of-");
    let marked = |path: &Path| TensorFile::open(path).is_ok_and(|file| file.metadata().contains_key(EXPORT_MARK));
    let Ok(mut entries) = fs::read_dir(path) else { return false };
    entries.any(|entry| entry.is_ok_and(|e| e.file_name().to_str().is_some_and(first) && marked(&e.path())))
}

/// A real folder, not a link to one: only that can be replaced by a rename.
fn is_empty_dir(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|meta| meta.is_dir())
        && fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

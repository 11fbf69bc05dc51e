//! The work folder of a run: what makes it resumable, and an unfinished output invisible.
//!
//! Usually everything is built in `<output>.softlm-work`, beside the output, which then appears in one rename. A folder
//! that is already there, empty, is worked in instead, in `<output>/.softlm-work`: it may be a mount point (a volume of a
//! container, a disk), which no rename replaces, lie in a folder that may not be written to, or be where somebody stands.
//! Such an output is filled: files move into it one after the other, `config.json` as the last, without which no folder is
//! a model.
//!
//! Nothing is removed but what runs and outputs are known to hold: a folder of the work folder's name that holds anything
//! else, or is a link, is refused, and what lies beside the files of an output that is replaced stays there.

mod copied;
mod folder;
mod output;
mod publish;
#[cfg(test)]
mod tests;

pub use copied::Copied;
pub use output::{EXPORT_FINGERPRINT, EXPORT_MARK, SURVEY, SURVEY_ORIGIN};
pub use publish::Kept;

use crate::checkpoint::{TensorFile, write_file};
use crate::lock::Lock;
use crate::user_bail;
use anyhow::{Context, Result};
use folder::{Contents, Refused, block_name};
use output::{Belongings, is_output, marks};
use publish::{Manifest, is_mount_point};
use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Display, Path, PathBuf};

/// What a work folder is called inside an output, and how its name ends beside one.
const WORK: &str = ".softlm-work";
/// File that keeps other processes away.
const LOCK: &str = "lock";
/// File that tells runs apart.
const FINGERPRINT: &str = "fingerprint";
/// File that says what moves into an output, or out of it, one by one.
const MANIFEST: &str = "moving";
/// Folder in which the output is put together.
const ASSEMBLED: &str = "out";
/// Folder for an output on its way out.
const REPLACED: &str = "replaced";

/// A run's work folder, locked for this process.
pub struct Job {
    dir: PathBuf,
    output: PathBuf,
    /// Where what serves every size is: the folder itself, or that of an elastic output.
    shared: PathBuf,
    /// Whether the weights of linears against each other are among that.
    weights_shared: bool,
    resumed: bool,
    /// Files of the earlier run that could not be read and are made again.
    damaged: Vec<String>,
    replace: bool,
    _lock: Lock,
}

impl Job {
    /// Opens or creates the work folder of `output`.
    ///
    /// `fingerprint`, a hexadecimal sha256, stands for everything that determines the result: work found there is continued
    /// only if it was made under the same one. With `force`, an existing output is replaced at the end and other work thrown
    /// away.
    ///
    /// # Errors
    /// A [`UserError`](crate::error::UserError) for an output that is in the way, for work of another run, for a work folder
    /// that holds anything else or is a link, and for places that cannot be written to.
    pub fn open(output: &Path, fingerprint: &str, force: bool) -> Result<Self> {
        let shown = output.display();
        let target = real_place(output);
        let output = target.as_deref().unwrap_or(output);
        may_become_output(output, &shown, force)?;
        let (dir, lock) = work_folder(output, &shown)?;
        // The other one may have finished between the first look and the lock.
        may_become_output(output, &shown, force)?;
        let before = Contents::of(&dir)?;
        let resumed = before.fingerprint.as_deref() == Some(fingerprint);
        if before.fingerprint.is_some() && !resumed && !force && before.holds_work() {
            user_bail!(
                "{} holds an unfinished run with other options, another model or another text", dir.display();
                "repeat that run's command to finish it, or add --force to start over"
            );
        }
        let damaged = if resumed { remove_damaged(&dir)? } else { Vec::new() };
        let job = Self {
            shared: dir.clone(),
            weights_shared: false,
            dir,
            output: output.to_path_buf(),
            resumed,
            damaged,
            replace: force,
            _lock: lock,
        };
        // What a run that died while it filled its output has put there is made again from its work.
        if let Some(manifest) = Manifest::read(&job.dir)? {
            if !is_output(&job.output) {
                manifest.remove_from(&job.output)?;
            }
            manifest.forget(&job.dir)?;
        }
        if !resumed {
            folder::clear(&job.dir)?;
            // All or nothing: half a fingerprint would make the same command look like another one.
            write_file(&job.dir.join(FINGERPRINT), fingerprint.as_bytes())?;
        }
        Ok(job)
    }

    /// Removes the work folder that a run of this fingerprint left when it died with its output finished.
    pub fn clean_up(output: &Path, fingerprint: &str) -> Result<()> {
        let target = real_place(output);
        let output = target.as_deref().unwrap_or(output);
        for dir in places(output).filter(|dir| dir.symlink_metadata().is_ok()) {
            // Whatever else may be there has nothing to do with the finished output.
            let ours = |found: &Contents| found.fingerprint.as_deref().is_none_or(|other| other == fingerprint);
            if Contents::of(&dir).is_ok_and(|found| ours(&found)) {
                // Held by the one that has just finished the output, it is being removed.
                let Ok(Some(_lock)) = Lock::take(&dir.join(LOCK)) else { continue };
                folder::remove(&dir)?;
            }
        }
        Ok(())
    }

    /// Whether `output` is a finished export with this fingerprint.
    pub fn is_export(output: &Path, fingerprint: &str) -> bool {
        is_output(output) && marks(output).get(EXPORT_FINGERPRINT).is_some_and(|mark| mark == fingerprint)
    }

    /// Whether finished work of an earlier run may be there.
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// Names of files of the earlier run that were cut short or damaged. They are gone, so that their blocks are done again.
    pub fn damaged(&self) -> &[String] {
        &self.damaged
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reads what serves every size from the folder `shared`, the weights of linears against each other among it if they
    /// are the same for every size (`with_weights`).
    pub fn share(&mut self, shared: PathBuf, with_weights: bool) {
        self.shared = shared;
        self.weights_shared = with_weights;
    }

    /// Names of the files that serve every size of a model of `blocks` blocks, `with_gradients` and `with_weights` or without.
    pub fn shared_names(blocks: usize, with_gradients: bool, with_weights: bool) -> Vec<String> {
        let gradients = (0..blocks).filter(|_| with_gradients).map(|index| block_name("gradients", index));
        let decompositions = (0..blocks).map(|index| block_name("decompositions", index));
        let weights = with_weights.then(|| folder::OF_THE_RUN[0].to_string());
        gradients.chain(decompositions).chain(weights).collect()
    }

    /// Where the second moments of the gradients of block `index` are kept.
    pub fn gradients_file(&self, index: usize) -> PathBuf {
        self.shared.join(block_name("gradients", index))
    }

    /// Where the decompositions of block `index` are kept.
    pub fn decompositions_file(&self, index: usize) -> PathBuf {
        self.shared.join(block_name("decompositions", index))
    }

    /// Where the finished tensors of block `index` are kept.
    pub fn block_file(&self, index: usize) -> PathBuf {
        self.dir.join(block_name("block", index))
    }

    /// Where the tensors of block `index` are kept after healing.
    pub fn healed_file(&self, index: usize) -> PathBuf {
        self.dir.join(block_name("healed", index))
    }

    /// Where the weights of linears against each other are kept.
    pub fn weights_file(&self) -> PathBuf {
        if self.weights_shared { &self.shared } else { &self.dir }.join(folder::OF_THE_RUN[0])
    }

    /// Where the state of a learned method is kept.
    pub fn learning_file(&self) -> PathBuf {
        self.dir.join(folder::OF_THE_RUN[1])
    }

    /// Where the state of healing is kept.
    pub fn healing_file(&self) -> PathBuf {
        self.dir.join(folder::OF_THE_RUN[2])
    }

    /// Where the sizes that were tried are kept.
    pub fn trials_file(&self) -> PathBuf {
        self.dir.join(folder::OF_THE_RUN[3])
    }

    /// An empty folder to assemble the output in.
    pub fn assembly(&self) -> Result<PathBuf> {
        self.discard_assembly()?;
        let dir = self.assembled();
        fs::create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(dir)
    }

    /// Removes what was assembled so far.
    pub fn discard_assembly(&self) -> Result<()> {
        let dir = self.assembled();
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("clearing {}", dir.display()))?;
        }
        Ok(())
    }

    fn assembled(&self) -> PathBuf {
        self.dir.join(ASSEMBLED)
    }
}

/// A run that failed before it finished anything leaves nothing behind.
impl Drop for Job {
    fn drop(&mut self) {
        if Contents::of(&self.dir).is_ok_and(|found| !found.holds_work()) {
            // Nothing better can be done about a left-over while an error is on its way.
            let _ = folder::remove(&self.dir);
        }
    }
}

/// Where a link to a folder leads, which it stands for, and what `.` is called.
fn real_place(output: &Path) -> Option<PathBuf> {
    let elsewhere = output.is_dir() && (output.is_symlink() || output.file_name().is_none());
    if elsewhere { output.canonicalize().ok() } else { None }
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
fn work_folder(output: &Path, shown: &Display) -> Result<(PathBuf, Lock)> {
    let mut places: Vec<PathBuf> = places(output).collect();
    if is_empty(output) || is_mount_point(output) {
        places.reverse();
    }
    places.sort_by_key(|dir| dir.symlink_metadata().is_err());
    let mut first = None;
    for dir in places {
        let error = match folder::lock(&dir, shown) {
            Ok(lock) => return Ok((dir, lock)),
            Err(error) => error,
        };
        let refused = error.downcast::<Refused>()?;
        // A mount point is filled, never replaced: what cannot be written to now cannot be at the end.
        let is_final = dir.starts_with(output) && is_mount_point(output);
        let elsewhere = [ErrorKind::PermissionDenied, ErrorKind::ReadOnlyFilesystem].contains(&refused.1.kind());
        first.get_or_insert(refused);
        if is_final || !elsewhere {
            break;
        }
    }
    match first {
        Some(refused) => Err(refused.explain().into()),
        None => user_bail!("output {shown} is not the name of a new folder"; "for example -o out"),
    }
}

/// Removes files that do not hold what was written and returns their names: work that was finished is never written in
/// place, so what does not fit its checksum was damaged afterwards.
fn remove_damaged(dir: &Path) -> Result<Vec<String>> {
    let mut damaged = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let sealed = path.extension().and_then(OsStr::to_str) == Some("safetensors");
        if sealed && TensorFile::open_sealed(&path).is_err() {
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            damaged.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    damaged.sort();
    Ok(damaged)
}

/// Whether there is nothing in a folder but a work folder and what a fresh file system has. A link to a folder is none.
fn is_empty(dir: &Path) -> bool {
    let real = dir.symlink_metadata().is_ok_and(|found| found.is_dir());
    real && Belongings::listed(dir, &[]).is_ok_and(|found| found.others.is_empty())
}

/// Fails when something is in the way that must not, or with `force` should not, be replaced.
fn may_become_output(output: &Path, shown: &Display, force: bool) -> Result<()> {
    if output.symlink_metadata().is_err() || is_empty(output) {
        return Ok(());
    }
    // Left by a run that died while it filled the folder: everything there is its own, or was seen by it.
    if !is_output(output) {
        for dir in places(output) {
            if Manifest::read(&dir)?.is_some_and(|manifest| manifest.accounts_for(output)) {
                return Ok(());
            }
        }
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

//! Statistics on disk: a folder with one file per block and a description, `stats.json`.
//!
//! While it is being filled the description is called `unfinished.json`. It gets its final name, and the checksums of all
//! blocks, last: a folder with `stats.json` once had everything. What a process that died has left is continued by the same
//! command, and nothing in the description or the files depends on when or by whom they were made.

use super::block::{BlockFile, Owner, REPEAT, damaged};
use super::collect::BlockStats;
use super::origin::{Description, Origin};
use crate::checkpoint::{sync_folder, write_file};
use crate::error::UserError;
use crate::hash::sha256;
use crate::lock::Lock;
use crate::model::{Model, Site};
use crate::progress::Progress;
use crate::user_bail;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

const FINISHED: &str = "stats.json";
const UNFINISHED: &str = "unfinished.json";
const LOCK: &str = "lock";
/// What is found in a fresh file system and belongs to nobody.
const LOST_AND_FOUND: &str = "lost+found";
/// Names in an error.
const NAMED: usize = 4;

/// A folder of statistics, being filled or complete.
pub struct StatsStore {
    dir: PathBuf,
    /// What the statistics were made from.
    pub origin: Origin,
    /// Of every block, if all are there.
    checksums: Vec<String>,
    /// Held while the folder is filled.
    lock: Mutex<Option<Lock>>,
    /// Whether the folder itself is new.
    created: bool,
}

impl StatsStore {
    /// Whether `dir` holds statistics, finished or not.
    pub fn is_there(dir: &Path) -> bool {
        [FINISHED, UNFINISHED].iter().any(|name| dir.join(name).exists())
    }

    /// Opens `dir` to read what it holds; `None` if that is no statistics.
    ///
    /// # Errors
    /// If the description is damaged, or of another format.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        refuse_file(dir)?;
        for name in [FINISHED, UNFINISHED] {
            let path = dir.join(name);
            if path.symlink_metadata().is_ok() {
                let Description { origin, checksums } = Description::read(&path, name == FINISHED)?;
                let checksums = if name == FINISHED { checksums } else { Vec::new() };
                return Ok(Some(Self { dir: dir.into(), origin, checksums, lock: Mutex::new(None), created: false }));
            }
        }
        Ok(None)
    }

    /// Opens `dir` to be filled with the statistics that `origin` describes: a new folder, an empty one, or one of the same
    /// statistics. Blocks that are there are read once; what is damaged is removed, to be made again.
    ///
    /// # Errors
    /// If there is anything else in it, or another process fills it.
    pub fn fill(dir: &Path, origin: Origin, progress: &dyn Progress) -> Result<Self> {
        let shown = dir.display();
        let known = format!("{shown} already holds these statistics");
        if let Some(store) = Self::open(dir)? {
            store.refuse_other(&origin)?;
            if store.is_finished() && store.find_damaged()?.is_empty() {
                store.remove_stale_lock();
                progress.note(&known);
                return Ok(store);
            }
        }
        refuse_unknown(dir, origin.blocks)?;
        let created = !dir.exists();
        let lock = fs::create_dir_all(dir).and_then(|()| Lock::take(&dir.join(LOCK))).map_err(|error| {
            UserError::new(format!("cannot write to {shown}: {error}")).hint("name a folder that you may write to")
        })?;
        if lock.is_none() {
            user_bail!("another softlm is filling {shown}"; "wait for it, or name another folder");
        }
        // The other one may have got on between the first look and the lock.
        let mut damaged = Vec::new();
        if let Some(found) = Self::open(dir)? {
            found.refuse_other(&origin)?;
            damaged = found.find_damaged()?;
            if found.is_finished() {
                if damaged.is_empty() {
                    progress.note(&known);
                    return Ok(found);
                }
                fs::rename(dir.join(FINISHED), dir.join(UNFINISHED)).with_context(|| format!("opening {shown}"))?;
            }
        }
        if !damaged.is_empty() {
            progress.note(&format!("damaged or missing statistics are made again: {}", damaged.join(", ")));
        }
        let store = Self { dir: dir.into(), origin, checksums: Vec::new(), lock: Mutex::new(lock), created };
        store.tidy(&damaged)?;
        store.describe(Vec::new())?;
        store.finish_if_whole()?;
        Ok(store)
    }

    /// Removes the lock of a process that died when it had just finished the folder.
    pub fn remove_stale_lock(&self) {
        let path = self.dir.join(LOCK);
        if path.symlink_metadata().is_ok() {
            // It is only untidy: whoever may not remove it, or finds it held, can do without.
            drop(Lock::take(&path));
        }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether the folder is complete, as far as its description knows.
    pub fn is_finished(&self) -> bool {
        self.dir.join(FINISHED).exists()
    }

    /// Whether block `index` is there.
    pub fn has(&self, index: usize) -> bool {
        self.path(index).exists()
    }

    /// Indices of the blocks that are there.
    pub fn present(&self) -> Result<Vec<usize>> {
        let entries = fs::read_dir(&self.dir).with_context(|| format!("reading {}", self.dir.display()))?;
        let mut present = Vec::new();
        for entry in entries {
            present.extend(entry?.file_name().to_str().and_then(|name| index_of(name, self.origin.blocks)));
        }
        present.sort_unstable();
        Ok(present)
    }

    /// The first block that is not there.
    pub fn missing(&self) -> Option<usize> {
        (0..self.origin.blocks).find(|&index| !self.has(index))
    }

    /// Fails unless these are statistics of `model`, which `origin` speaks of, and every block that is there has the sites and
    /// sizes that this model's has. Reads headers alone.
    pub fn check(&self, model: &Model, origin: &Origin) -> Result<()> {
        if let Some(difference) = self.origin.differences(origin).first() {
            user_bail!(
                "{} was made from {}, from which {} differs: {difference}", self.dir.display(), self.origin.model, origin.model;
                "collect statistics of this model, or name another folder"
            );
        }
        for index in self.present()? {
            let (file, sites) = (self.path(index), self.block(index)?.sites()?);
            let widths = model.site_widths(index);
            if let Some(site) = model.block_sites(index).into_iter().find(|site| !sites.contains_key(site)) {
                if matches!(site, Site::SsmConv | Site::SsmDt) {
                    user_bail!(
                        "{} has nothing of {site}: these statistics are without the small linears", file.display();
                        "leave --small-linears out, or name a new folder"
                    );
                }
                return Err(damaged(&file, &format!("it has nothing of {site}")));
            }
            for (site, size) in sites {
                match widths.get(&site) {
                    Some(&width) if width == size.width => {}
                    Some(width) => {
                        return Err(damaged(&file, &format!("{site} has {} inputs, the model's {width}", size.width)));
                    }
                    None => return Err(damaged(&file, &format!("the model has no {site} in this block"))),
                }
            }
        }
        Ok(())
    }

    /// Stores the statistics of block `index`. With the last one the folder is finished.
    pub fn put(&self, index: usize, stats: &BlockStats) -> Result<()> {
        super::block::write(&self.path(index), &self.origin, index, stats)?;
        self.finish_if_whole()
    }

    /// Reads the statistics of block `index`, every byte of which is checked.
    pub fn get(&self, index: usize) -> Result<BlockStats> {
        BlockFile::open_whole(&self.path(index), self.owner(index))?.read(&self.origin)
    }

    /// One hash for all that a finished folder holds, hexadecimal.
    pub fn fingerprint(&self) -> Result<String> {
        Ok(sha256([self.origin.id()?, self.checksums.join(" ")].join(" ")))
    }

    /// The header of block `index`.
    pub(super) fn block(&self, index: usize) -> Result<BlockFile> {
        let path = self.path(index);
        if !path.exists() {
            user_bail!("{} lacks the statistics of block {index}", self.dir.display(); "{REPEAT}");
        }
        BlockFile::open(&path, self.owner(index))
    }

    fn owner(&self, index: usize) -> Owner<'_> {
        Owner { origin: &self.origin, index, checksum: self.checksums.get(index).map(String::as_str) }
    }

    fn path(&self, index: usize) -> PathBuf {
        self.dir.join(block_name(index))
    }

    /// Fails if the folder holds other statistics than `origin` describes.
    fn refuse_other(&self, origin: &Origin) -> Result<()> {
        if self.origin.is_same(origin) {
            return Ok(());
        }
        let (shown, mine) = (self.dir.display(), &self.origin);
        if let Some(difference) = mine.differences(origin).first() {
            user_bail!(
                "{shown} was made from {}, from which {} differs: {difference}", mine.model, origin.model;
                "name a new folder"
            );
        }
        let held = |origin: &Origin| format!("{} ({} tokens held out)", origin.texts.join("; "), origin.heldout);
        let what = if self.missing().is_none() { "statistics" } else { "statistics of only some blocks" };
        user_bail!(
            "{shown} holds {what} by softlm {} of {}; these would be by softlm {} of {}",
            mine.softlm, held(mine), origin.softlm, held(origin);
            "name a new folder; `softlm calibrate --merge` adds folders up"
        );
    }

    /// Names of the blocks' files that are damaged; of a finished folder also those that are missing.
    fn find_damaged(&self) -> Result<Vec<String>> {
        let mut damaged = Vec::new();
        for index in 0..self.origin.blocks {
            let path = self.path(index);
            let sound = match path.symlink_metadata() {
                Ok(_) => {
                    BlockFile::open_whole(&path, self.owner(index)).and_then(|block| block.read(&self.origin)).is_ok()
                }
                Err(_) => !self.is_finished(),
            };
            if !sound {
                damaged.push(block_name(index));
            }
        }
        Ok(damaged)
    }

    /// Removes what a process that died had not finished, and what is damaged.
    fn tidy(&self, damaged: &[String]) -> Result<()> {
        let names = fs::read_dir(&self.dir)?.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>>>()?;
        let unfinished = names.iter().filter_map(|name| name.to_str()).filter(|name| name.ends_with(".tmp"));
        for name in unfinished.chain(damaged.iter().map(String::as_str)) {
            let path = self.dir.join(name);
            if path.symlink_metadata().is_ok() {
                fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            }
        }
        Ok(())
    }

    fn describe(&self, checksums: Vec<String>) -> Result<()> {
        let description = Description { origin: self.origin.clone(), checksums };
        write_file(&self.dir.join(UNFINISHED), description.to_json()?.as_bytes())
    }

    /// Gives the description its final name once every block is there.
    fn finish_if_whole(&self) -> Result<()> {
        if self.missing().is_some() {
            return Ok(());
        }
        let checksums = (0..self.origin.blocks).map(|index| self.block(index)?.checksum());
        self.describe(checksums.collect::<Result<_>>()?)?;
        let (from, to) = (self.dir.join(UNFINISHED), self.dir.join(FINISHED));
        fs::rename(from, &to).with_context(|| format!("creating {}", to.display()))?;
        sync_folder(&self.dir)?;
        drop(self.take_lock());
        Ok(())
    }

    fn take_lock(&self) -> Option<Lock> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A run that failed before it stored anything leaves nothing behind.
impl Drop for StatsStore {
    fn drop(&mut self) {
        let Some(lock) = self.take_lock() else { return };
        let empty = self.present().is_ok_and(|present| present.is_empty());
        // Nothing better can be done about a left-over while an error is on its way.
        if empty {
            let _ = fs::remove_file(self.dir.join(UNFINISHED));
        }
        drop(lock);
        if empty && self.created {
            let _ = fs::remove_dir(&self.dir);
        }
    }
}

fn block_name(index: usize) -> String {
    format!("block-{index:05}.safetensors")
}

/// Which of so many blocks a file is of.
fn index_of(name: &str, blocks: usize) -> Option<usize> {
    let index = name.strip_prefix("block-")?.strip_suffix(".safetensors")?.parse().ok()?;
    (index < blocks && block_name(index) == name).then_some(index)
}

fn refuse_file(dir: &Path) -> Result<()> {
    let Ok(found) = dir.symlink_metadata() else { return Ok(()) };
    if !dir.is_dir() {
        let what = if found.is_symlink() && !dir.exists() { "a link that leads nowhere" } else { "a file" };
        user_bail!("{} is {what}; statistics need a folder", dir.display(); "name a new folder");
    }
    Ok(())
}

/// Fails if a folder to be filled holds anything but the files of statistics.
fn refuse_unknown(dir: &Path, blocks: usize) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    let shown = dir.display();
    let mut unknown = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("reading {shown}"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == LOST_AND_FOUND {
            continue;
        }
        let own = name.strip_suffix(".tmp").unwrap_or(&name);
        if ![FINISHED, UNFINISHED, LOCK].contains(&own) && index_of(own, blocks).is_none() {
            unknown.push(name);
        } else if !entry.file_type()?.is_file() {
            user_bail!(
                "{} is in the way: it is a link or a folder, not a file of softlm's", entry.path().display();
                "remove or rename it, or name a new folder"
            );
        }
    }
    unknown.sort();
    if !unknown.is_empty() {
        let more = unknown.len().saturating_sub(NAMED);
        unknown.truncate(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        user_bail!("{shown} holds {}{more}, which are not statistics", unknown.join(", "); "name a new or an empty folder");
    }
    Ok(())
}

//! Which folders are outputs and exports of ours, and which of their files were written with them.

use super::WORK;
use super::copied::COPIED;
use super::folder::is_known;
use super::publish::LOST_AND_FOUND;
use crate::checkpoint::{TensorFile, read_settings};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

/// Key in the header of an export's weight files: its form.
pub const EXPORT_MARK: &str = "softlm_export";
/// Key in the header of an export's weight files: what decides its bytes.
pub const EXPORT_FINGERPRINT: &str = "softlm_fingerprint";
/// What softlm writes under these names itself.
pub(super) const WRITTEN: [&str; 6] =
    ["config.json", "report.json", "README.md", "softlm.toml", "modeling_softlm.py", "factors.json"];
/// The folder of an elastic output that holds what every size is cut from.
pub const SURVEY: &str = "survey";
/// What it holds beside files of blocks and of the run.
pub const SURVEY_ORIGIN: &str = "survey.json";
const INDEX: &str = "model.safetensors.index.json";
/// One of these moves last into an output, and leaves first: without it no folder is a model, or the factors of one.
pub(super) const COMPLETE: [&str; 2] = ["config.json", "factors.json"];

/// Whether softlm wrote this folder: an output says so in its config.json, an export in the header of its weights.
pub(super) fn is_output(path: &Path) -> bool {
    let config = settings(&path.join("config.json"));
    let complete = COMPLETE.iter().any(|file| path.join(file).exists());
    config.is_some_and(|config| config.get("softlm").is_some()) || complete && marks(path).contains_key(EXPORT_MARK)
}

fn settings(path: &Path) -> Option<Value> {
    serde_json::from_slice(&read_settings(path).ok()?).ok()
}

/// The free-form strings in the header of the first weight file.
pub(super) fn marks(dir: &Path) -> BTreeMap<String, String> {
    let first = |name: &str| name == "model.safetensors" || name.starts_with("model-00001-of-");
    let Ok(entries) = fs::read_dir(dir) else { return BTreeMap::new() };
    let files = entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(first));
    let mut marks = files.filter_map(|entry| TensorFile::open(&entry.path()).ok()).map(|file| file.metadata().clone());
    marks.next().unwrap_or_default()
}

fn is_weights(name: &str) -> bool {
    let shard = || name.starts_with("model-") && name.contains("-of-") && name.ends_with(".safetensors");
    name == "model.safetensors" || name == INDEX || shard()
}

/// Relative names of the files, but for weights, that were written with the output or export `dir`.
fn written_with(dir: &Path) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = WRITTEN.into_iter().map(String::from).collect();
    let copied = marks(dir).remove(COPIED).and_then(|list| serde_json::from_str::<Vec<String>>(&list).ok());
    names.extend(copied.into_iter().flatten());
    // Version 0.2.0 listed none, but its report has hashes of those that matter.
    let report = settings(&dir.join("report.json"));
    let files = report.as_ref().and_then(|report| report["output"]["files"].as_array());
    names.extend(files.into_iter().flatten().filter_map(|file| Some(file["file"].as_str()?.to_string())));
    let survey = fs::read_dir(dir.join(SURVEY)).into_iter().flatten().flatten();
    let survey = survey.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let ours = survey.filter(|name| name == SURVEY_ORIGIN || is_known(name));
    names.extend(ours.map(|name| format!("{SURVEY}/{name}")));
    names
}

/// The files of an output folder, told apart.
#[derive(Debug, Default)]
pub(super) struct Belongings {
    /// Relative names of the files that are the output's.
    pub own: Vec<String>,
    /// Relative names of what else is there; a folder ends in `/`.
    pub others: Vec<String>,
}

impl Belongings {
    /// What is in the output `dir`, which is to be replaced by files of the names `new`.
    pub fn of_output(dir: &Path, new: &[String]) -> io::Result<Self> {
        let mut names = written_with(dir);
        names.extend(new.iter().cloned());
        Self::told_by(dir, &|name| is_weights(name) || names.contains(name), &|folder| {
            names.range(folder.to_string()..).next().is_some_and(|name| name.starts_with(folder))
        })
    }

    /// What is in `dir`, where the files of these names are the output's.
    pub fn listed(dir: &Path, names: &[String]) -> io::Result<Self> {
        let names: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        Self::told_by(dir, &|name| names.contains(name), &|folder| {
            names.range(folder..).next().is_some_and(|name| name.starts_with(folder))
        })
    }

    fn told_by(dir: &Path, own: &dyn Fn(&str) -> bool, leads_to_own: &dyn Fn(&str) -> bool) -> io::Result<Self> {
        let mut found = Self::default();
        found.walk(dir, "", own, leads_to_own)?;
        found.own.sort();
        found.others.sort();
        Ok(found)
    }

    fn walk(
        &mut self,
        dir: &Path,
        prefix: &str,
        own: &dyn Fn(&str) -> bool,
        leads_to_own: &dyn Fn(&str) -> bool,
    ) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let last = entry.file_name().to_string_lossy().into_owned();
            // The work of a run, and what is found in a fresh file system and belongs to nobody.
            if prefix.is_empty() && (last == WORK || last == LOST_AND_FOUND) {
                continue;
            }
            let name = format!("{prefix}{last}");
            if entry.file_type()?.is_dir() {
                let folder = format!("{name}/");
                match leads_to_own(&folder) {
                    true => self.walk(&entry.path(), &folder, own, leads_to_own)?,
                    false => self.others.push(folder),
                }
            } else if own(&name) {
                self.own.push(name);
            } else {
                self.others.push(name);
            }
        }
        Ok(())
    }
}

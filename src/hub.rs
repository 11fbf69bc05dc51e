//! The Hugging Face hub, and the only place that knows it and its environment variables.
//!
//! | variable | meaning |
//! |---|---|
//! | `HF_HUB_CACHE` | where fetched files are kept; otherwise `$HF_HOME/hub`, otherwise `~/.cache/huggingface/hub` |
//! | `HF_TOKEN` | who you are, for private and gated repositories; otherwise the file `$HF_HOME/token` |
//! | `HF_ENDPOINT` | another hub than huggingface.co |
//! | `HF_HUB_OFFLINE` | `1`: use nothing but the cache |
//!
//! The cache is shared with Python's libraries, in their layout. A model is pinned to one commit before its first file
//! is fetched, files that arrived are kept whatever happens to the next, each is checked against the length that the hub
//! states, and the name of the revision is written last: a revision that the cache knows by name is complete.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::user_bail;

#[cfg(feature = "hub")]
mod net;

/// Whether `path`, relative to a repository, belongs to a module that sentence-transformers puts behind the transformer, such
/// as `1_Pooling/config.json` and `2_Dense/model.safetensors`.
pub(crate) fn is_module_file(path: &str) -> bool {
    let Some((folder, file)) = path.split_once('/') else { return false };
    let number = folder.split_once('_').map_or("", |(number, _)| number);
    let numbered = !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit());
    numbered && matches!(file, "config.json" | "model.safetensors")
}

/// Receives one line of text at a time while files are fetched.
pub type Log = Arc<dyn Fn(&str) + Send + Sync>;

/// How to reach the hub. `Default` is the public hub with the user's own cache directory unset; [`HubOptions::from_env`]
/// is what programs want.
#[derive(Clone)]
pub struct HubOptions {
    /// Base URL of the hub; `None` is huggingface.co.
    pub endpoint: Option<String>,
    /// Folder of the cache; `None` is the one that the environment names.
    pub cache: Option<PathBuf>,
    /// Access token; `None` is the one stored by a login, if any.
    pub token: Option<String>,
    /// Use nothing but the cache.
    pub offline: bool,
    /// Branch, tag or commit of models; `None` is `main`. Data sets have revisions of their own.
    pub revision: Option<String>,
    /// How often a request that failed for no lasting reason is made, at least once.
    pub attempts: u32,
    /// Pause before the second attempt; it doubles with each one after.
    pub backoff: Duration,
    /// Told what is being fetched.
    pub log: Option<Log>,
}

impl Default for HubOptions {
    fn default() -> Self {
        Self {
            endpoint: None,
            cache: None,
            token: None,
            offline: false,
            revision: None,
            attempts: 5,
            backoff: Duration::from_millis(500),
            log: None,
        }
    }
}

impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The token is a secret: options end up in logs.
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "..."))
            .field("offline", &self.offline)
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

impl HubOptions {
    /// What the environment variables say.
    pub fn from_env() -> Self {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    /// What the variables say that `lookup` knows. Empty ones count as unset.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let folder = |name: &str, below: &str| get(name).map(|value| Path::new(&value).join(below));
        let cache = folder("HF_HUB_CACHE", "")
            .or_else(|| folder("HUGGINGFACE_HUB_CACHE", ""))
            .or_else(|| folder("HF_HOME", "hub"))
            .or_else(|| folder("XDG_CACHE_HOME", "huggingface/hub"))
            .or_else(|| folder("HOME", ".cache/huggingface/hub"));
        let offline = get("HF_HUB_OFFLINE")
            .is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on"));
        Self { endpoint: get("HF_ENDPOINT"), cache, token: get("HF_TOKEN"), offline, ..Self::default() }
    }

    fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    #[cfg(feature = "hub")]
    fn log(&self, line: &str) {
        if let Some(log) = &self.log {
            log(line);
        }
    }

    fn cache(&self) -> Result<&Path> {
        match &self.cache {
            Some(cache) => Ok(cache),
            None => user_bail!("there is no folder to keep files of the hub in"; "set HF_HOME or HF_HUB_CACHE"),
        }
    }
}

/// A model in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Folder with its `config.json`, weights and tokenizer; the files are links into the cache.
    pub dir: PathBuf,
    /// The commit.
    pub revision: Option<String>,
}

/// A file of a data set in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetFile {
    /// Where it is.
    pub path: PathBuf,
    /// The commit it belongs to.
    pub commit: String,
}

/// Whether this could be the id of a repository: `name` or `owner/name`.
pub fn is_id(id: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part.len() <= 96
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
            && !part.contains("..")
            && !part.contains("--")
    };
    let mut parts = id.split('/');
    parts.next().is_some_and(part) && parts.next().is_none_or(part) && parts.next().is_none()
}

/// Fetches `config.json`, the safetensors weights, the tokenizer and other small files of a model, or finds them in the
/// cache. Pickled weights are never fetched. If the hub cannot be reached at all, a complete copy in the cache is used.
///
/// # Errors
/// A [`UserError`](crate::error::UserError) with a hint for: an id that is none, a model that does not exist, a private
/// or gated one, one without safetensors weights, one that is not cached when offline, and a hub that cannot be reached.
pub fn model(id: &str, options: &HubOptions) -> Result<Snapshot> {
    if !is_id(id) {
        user_bail!("{id:?} is neither a folder nor the id of a model"; "ids look like owner/name; check the path otherwise");
    }
    let repository = Repository { kind: "models", id };
    if !options.offline {
        return online::model(&repository, options);
    }
    match repository.cached_model(options)? {
        Some(snapshot) => Ok(snapshot),
        None => user_bail!(
            "the model {id} is not in the cache, at least not completely, and HF_HUB_OFFLINE is set";
            "run once without HF_HUB_OFFLINE, or give the path of a folder"
        ),
    }
}

/// Fetches one file of a data set, or finds it in the cache.
///
/// # Errors
/// As for [`model`].
pub fn dataset_file(repository: &str, path: &str, revision: &str, options: &HubOptions) -> Result<DatasetFile> {
    let repository = Repository { kind: "datasets", id: repository };
    if !options.offline {
        return online::dataset_file(&repository, path, revision, options);
    }
    match repository.cached_file(path, revision, options)? {
        Some(file) => Ok(file),
        None => user_bail!(
            "{path} of the data set {repository} is not in the cache, and HF_HUB_OFFLINE is set";
            "run once without HF_HUB_OFFLINE, or give a local file as NAME=PATH"
        ),
    }
}

/// A repository and its place in the cache.
struct Repository<'a> {
    /// `models` or `datasets`.
    kind: &'static str,
    id: &'a str,
}

impl fmt::Display for Repository<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id)
    }
}

impl Repository<'_> {
    fn folder(&self, options: &HubOptions) -> Result<PathBuf> {
        Ok(options.cache()?.join(format!("{}--{}", self.kind, self.id.replace('/', "--"))))
    }

    fn snapshot(&self, commit: &str, options: &HubOptions) -> Result<PathBuf> {
        Ok(self.folder(options)?.join("snapshots").join(commit))
    }

    /// The commit that the cache knows for a revision. A full commit stands for itself.
    fn cached_commit(&self, revision: &str, options: &HubOptions) -> Result<Option<String>> {
        if is_commit(revision) {
            return Ok(Some(revision.to_owned()));
        }
        let name = self.folder(options)?.join("refs").join(revision);
        Ok(fs::read_to_string(name).ok().map(|commit| commit.trim().to_owned()).filter(|commit| is_commit(commit)))
    }

    /// Writes down which commit a revision is, once all its files are there.
    #[cfg(feature = "hub")]
    fn remember(&self, revision: &str, commit: &str, options: &HubOptions) -> Result<()> {
        if is_commit(revision) {
            return Ok(());
        }
        let name = self.folder(options)?.join("refs").join(revision);
        if let Some(parent) = name.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&name, commit).with_context(|| format!("cannot write {}", name.display()))
    }

    fn cached_file(&self, path: &str, revision: &str, options: &HubOptions) -> Result<Option<DatasetFile>> {
        let Some(commit) = self.cached_commit(revision, options)? else { return Ok(None) };
        let path = self.snapshot(&commit, options)?.join(path);
        Ok(path.is_file().then_some(DatasetFile { path, commit }))
    }

    /// The model in the cache if it is complete: others write to this cache too, and may have wanted only a tokenizer.
    fn cached_model(&self, options: &HubOptions) -> Result<Option<Snapshot>> {
        let Some(commit) = self.cached_commit(options.revision(), options)? else { return Ok(None) };
        let dir = self.snapshot(&commit, options)?;
        let weights = match shards(&dir.join("model.safetensors.index.json")) {
            Ok(shards) if !dir.join("model.safetensors").exists() => shards,
            _ => vec!["model.safetensors".to_owned()],
        };
        let complete = dir.join("config.json").is_file() && weights.iter().all(|file| dir.join(file).is_file());
        Ok(complete.then_some(Snapshot { dir, revision: Some(commit) }))
    }
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The files that an index of shards names, each once.
fn shards(index: &Path) -> Result<Vec<String>> {
    let index: Value = serde_json::from_slice(&fs::read(index)?)?;
    let map = index["weight_map"].as_object().context("model.safetensors.index.json has no weight_map")?;
    let mut files: Vec<String> = map.values().filter_map(Value::as_str).map(str::to_owned).collect();
    files.sort_unstable();
    files.dedup();
    Ok(files)
}

#[cfg(feature = "hub")]
use net as online;

#[cfg(not(feature = "hub"))]
mod online {
    //! Stands in for the network in a build without it: only the cache is left.
    use super::*;

    pub fn model(repository: &Repository, options: &HubOptions) -> Result<Snapshot> {
        match repository.cached_model(options)? {
            Some(snapshot) => Ok(snapshot),
            None => user_bail!("this softlm cannot fetch {repository}: it was built without the hub"; "{HINT}"),
        }
    }

    pub fn dataset_file(
        repository: &Repository,
        path: &str,
        revision: &str,
        options: &HubOptions,
    ) -> Result<DatasetFile> {
        match repository.cached_file(path, revision, options)? {
            Some(file) => Ok(file),
            None => user_bail!("this softlm cannot fetch {repository}: it was built without the hub"; "{HINT}"),
        }
    }

    const HINT: &str = "give a local path, or build with the default features";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_told_by_their_folders() {
        for path in ["1_Pooling/config.json", "2_Dense/model.safetensors", "12_Dense_512/config.json"] {
            assert!(is_module_file(path), "{path}");
        }
        for path in [
            "config.json",
            "onnx/config.json",
            "Dense/model.safetensors",
            "_x/config.json",
            "2_Dense/pytorch_model.bin",
        ] {
            assert!(!is_module_file(path), "{path}");
        }
    }

    #[test]
    fn ids_are_told_from_paths() {
        for id in ["gpt2", "owner/name", "openai-community/gpt2", "a/b_c-1.5B", "x"] {
            assert!(is_id(id), "{id}");
        }
        for other in ["", "/abs", "./rel", "a/b/c", "a//b", "a/", "-a/b", "a/b.", "a/..", "a--b/c", "a b", "c:\\x", "é"]
        {
            assert!(!is_id(other), "{other}");
        }
    }

    #[test]
    fn the_environment_is_read_in_the_usual_order() {
        let with = |pairs: &[(&str, &str)]| {
            let pairs: Vec<(String, String)> = pairs.iter().map(|&(a, b)| (a.into(), b.into())).collect();
            HubOptions::from_lookup(move |name| {
                pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
            })
        };
        let cache = |pairs: &[(&str, &str)]| with(pairs).cache.map(|path| path.to_string_lossy().replace('\\', "/"));
        assert_eq!(cache(&[("HOME", "/h")]).as_deref(), Some("/h/.cache/huggingface/hub"));
        assert_eq!(cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]).as_deref(), Some("/x/huggingface/hub"));
        assert_eq!(cache(&[("HF_HOME", "/hf"), ("XDG_CACHE_HOME", "/x")]).as_deref(), Some("/hf/hub"));
        assert_eq!(cache(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/hf")]).as_deref(), Some("/c/"));
        assert_eq!(cache(&[]), None);
        for (value, offline) in
            [("1", true), ("TRUE", true), ("yes", true), ("0", false), ("", false), ("false", false)]
        {
            assert_eq!(with(&[("HF_HUB_OFFLINE", value)]).offline, offline, "{value}");
        }
        let options = with(&[("HF_TOKEN", "hf_secret"), ("HF_ENDPOINT", "http://mirror")]);
        assert_eq!(options.token.as_deref(), Some("hf_secret"));
        assert_eq!(options.endpoint.as_deref(), Some("http://mirror"));
        assert!(!format!("{options:?}").contains("secret"));
        assert_eq!(with(&[("HF_TOKEN", "")]).token, None);
    }
}

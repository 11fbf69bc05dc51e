//! The Hugging Face hub, and the only place that knows it and its environment variables.
//!
//! | variable | meaning |
//! |---|---|
//! | `HF_HUB_CACHE` | where fetched files are kept; otherwise `$HF_HOME/hub`, otherwise `~/.cache/huggingface/hub` |
//! | `HF_TOKEN` | who you are, for private and gated repositories; otherwise the file `HF_TOKEN_PATH`, otherwise `$HF_HOME/token` |
//! | `HF_HUB_DISABLE_IMPLICIT_TOKEN` | `1`: send no token |
//! | `HF_ENDPOINT` | another hub than huggingface.co; a user and a password in it are sent to that server instead of a token |
//! | `HF_HUB_OFFLINE` | `1`: use nothing but the cache |
//! | `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY` | through which proxy servers are reached, as curl reads them |
//! | `SSL_CERT_FILE`, `SSL_CERT_DIR` | certificates to trust instead of the system's |
//!
//! The cache is shared with Python's libraries, in their layout, with their locks. A model is pinned to one commit before
//! its first file is fetched, files that arrived are kept whatever happens to the next, and the name of the revision is
//! written last: a revision that the cache knows by name is complete.
//!
//! A hub, a mirror or what stands between is not trusted. Names become paths only if they stay inside their folder. A file
//! gets its name only once its bytes have the hash that the listing of the commit states: the SHA-256 of files in Git LFS,
//! the git hash of others; the name of a blob is that hash, never what a server calls it. What was fetched of a file before
//! the connection broke or the program was killed is used by the next request or run. The token goes to the endpoint
//! alone, not to where it redirects. Every wait is bounded, said if it is long, and ends at once when the user wants it.
//!
//! A file in the cache counts if it has the stated length and, up to 16 MiB, the stated hash. Of larger ones, whose hash
//! would take seconds per run, the blob's name is trusted: it was checked when it got that name. A large file under another
//! name is hashed, and so is one whose link is gone: to have a file checked and, if need be, fetched again, remove the link.

use std::collections::BTreeSet;
use std::fmt;
#[cfg(feature = "hub")]
use std::fs;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
#[cfg(feature = "hub")]
use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(feature = "hub")]
use anyhow::Context;
use anyhow::{Result, bail};
use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::user_bail;

#[cfg(feature = "hub")]
mod answer;
#[cfg(feature = "hub")]
mod cache;
#[cfg(feature = "hub")]
mod endpoint;
#[cfg(feature = "hub")]
mod fetch;
#[cfg(feature = "hub")]
mod http;
mod names;
#[cfg(feature = "hub")]
mod net;
mod options;
#[cfg(feature = "hub")]
mod proxy;
#[cfg(feature = "hub")]
mod retry;
#[cfg(feature = "hub")]
mod tree;

pub use names::is_id;
pub(crate) use names::{is_inside, is_module_file};
pub use options::{HubOptions, Log, Timeouts};

/// Side files and indexes beyond this size are no settings.
const LARGEST_SIDE_FILE: u64 = 256 << 20;

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
    check_revision(options.revision())?;
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
    if !is_id(repository) || !names::is_plain(path) {
        user_bail!("{path:?} of {repository:?} is no file of a data set"; "give a local file as NAME=PATH");
    }
    check_revision(revision)?;
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

/// Refuses what cannot be the name of a branch, tag or commit: it becomes a path below `refs`.
/// Asks the hub once, with the token if there is one, and gives back its name.
///
/// # Errors
/// A [`UserError`](crate::error::UserError) that says how it failed.
pub fn reach(options: &HubOptions) -> Result<String> {
    online::reach(options)
}

fn check_revision(revision: &str) -> Result<()> {
    if !names::is_plain(revision) {
        user_bail!("{revision:?} is no revision"; "give the name of a branch or tag, such as main, or a commit");
    }
    Ok(())
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
        if let Some(commit) = names::commit(revision) {
            return Ok(Some(commit));
        }
        let mut content = String::new();
        let name = self.folder(options)?.join("refs").join(revision);
        let read = File::open(name).and_then(|file| file.take(64).read_to_string(&mut content));
        Ok(read.ok().and_then(|_| names::commit(content.trim())))
    }

    /// Writes down which commit a revision is, once all its files are there.
    #[cfg(feature = "hub")]
    fn remember(&self, revision: &str, commit: &str, options: &HubOptions) -> Result<()> {
        if self.cached_commit(revision, options)?.as_deref() == Some(commit) {
            return Ok(());
        }
        let folder = self.folder(options)?;
        let name = folder.join("refs").join(revision);
        // Beside `refs`, where everything is taken for a revision.
        static UNIQUE: AtomicU64 = AtomicU64::new(0);
        let new = folder.join(format!(".ref-{}-{}", std::process::id(), UNIQUE.fetch_add(1, Ordering::Relaxed)));
        let write = || {
            fs::create_dir_all(name.parent().unwrap_or(&folder))?;
            fs::write(&new, commit)?;
            fs::rename(&new, &name)
        };
        write().with_context(|| format!("cannot write {}", name.display())).inspect_err(|_| drop(fs::remove_file(&new)))
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
            _ => BTreeSet::from(["model.safetensors".to_owned()]),
        };
        let complete = dir.join("config.json").is_file() && weights.iter().all(|file| dir.join(file).is_file());
        Ok(complete.then_some(Snapshot { dir, revision: Some(commit) }))
    }
}

/// The files that an index of shards names, each once. They stay inside the index's folder.
fn shards(index: &Path) -> Result<BTreeSet<String>> {
    /// The values of a map of strings.
    struct Values(BTreeSet<String>);
    impl<'de> Deserialize<'de> for Values {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Collect;
            impl<'de> Visitor<'de> for Collect {
                type Value = Values;
                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("a map from tensors to files")
                }
                fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Values, A::Error> {
                    let mut values = BTreeSet::new();
                    while let Some((_, value)) = map.next_entry::<IgnoredAny, String>()? {
                        if !names::is_plain(&value) {
                            return Err(de::Error::custom(format_args!(
                                "{value:?} is no name of a file in its folder"
                            )));
                        }
                        values.insert(value);
                    }
                    Ok(Values(values))
                }
            }
            deserializer.deserialize_map(Collect)
        }
    }
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: Values,
    }
    let file = File::open(index)?;
    if file.metadata()?.len() > LARGEST_SIDE_FILE {
        bail!("it is larger than any index");
    }
    let mut bytes = Vec::new();
    file.take(LARGEST_SIDE_FILE).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice::<Index>(&bytes)?.weight_map.0)
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

    pub fn reach(_options: &HubOptions) -> Result<String> {
        user_bail!("this softlm was built without the hub"; "{HINT}")
    }

    const HINT: &str = "give a local path, or build with the default features";
}

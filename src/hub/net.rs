//! Fetching: the part of [`crate::hub`] that speaks to a server.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};
use hf_hub::repository::RepoTreeEntry;
use hf_hub::{HFClientSync, HFError, HFRepositorySync, HFResult, RepoType, split_id};

use super::{DatasetFile, HubOptions, Log, Repository, Snapshot, is_module_file, shards};
use crate::error::UserError;
use crate::user_bail;

/// Side files beyond this size are no settings.
const LARGEST_SIDE_FILE: u64 = 256 << 20;
/// Pause between two lines about one large file.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// See [`super::model`].
pub(super) fn model(repository: &Repository, options: &HubOptions) -> Result<Snapshot> {
    let (owner, name) = split_id(repository.id);
    let remote = client(options)?.model(owner, name);
    let revision = options.revision();
    let cached = repository.cached_model(options)?;
    let commit = match retry(&patience(cached.is_some(), options), || remote.info().revision(revision).send()) {
        Ok(info) => info.sha.with_context(|| format!("the hub names no commit for {repository}@{revision}"))?,
        Err(error) => return instead(cached, error, repository, revision, options),
    };
    let fetch = Fetch { remote, repository, commit: &commit, options };
    let tree = retry(options, || fetch.remote.list_tree().revision(commit.as_str()).send());
    let files: Vec<(String, u64)> =
        tree.map_err(|error| explain(error, repository, revision, options))?.into_iter().filter_map(file).collect();
    let size = |name: &str| files.iter().find(|(path, _)| path == name).map(|&(_, size)| size);

    if size("config.json").is_none() {
        user_bail!("{repository} has no config.json, so it is no model that can be run"; "check the id");
    }
    const INDEX: &str = "model.safetensors.index.json";
    let mut wanted: Vec<String> = vec!["config.json".into()];
    if size("model.safetensors").is_some() {
        wanted.push("model.safetensors".into());
    } else if let Some(length) = size(INDEX) {
        wanted
            .extend(shards(&fetch.file(INDEX, length)?).with_context(|| format!("{repository}: {INDEX} is damaged"))?);
        wanted.push(INDEX.into());
    } else {
        return Err(no_weights(repository, &files).into());
    }
    wanted.extend(files.iter().filter(|(path, size)| is_side_file(path, *size)).map(|(path, _)| path.clone()));
    for (index, path) in wanted.iter().enumerate() {
        let Some(size) = size(path) else {
            user_bail!("{repository} is incomplete: its index names {path}, which is not there"; "tell its owner");
        };
        if !wanted[..index].contains(path) {
            fetch.file(path, size)?;
        }
    }
    repository.remember(revision, &commit, options)?;
    Ok(Snapshot { dir: repository.snapshot(&commit, options)?, revision: Some(commit) })
}

/// See [`super::dataset_file`].
pub(super) fn dataset_file(
    repository: &Repository,
    path: &str,
    revision: &str,
    options: &HubOptions,
) -> Result<DatasetFile> {
    let (owner, name) = split_id(repository.id);
    let remote = client(options)?.dataset(owner, name);
    let cached = repository.cached_file(path, revision, options)?;
    let commit = match retry(&patience(cached.is_some(), options), || remote.info().revision(revision).send()) {
        Ok(info) => info.sha.with_context(|| format!("the hub names no commit for {repository}@{revision}"))?,
        Err(error) => return instead(cached, error, repository, revision, options),
    };
    let fetch = Fetch { remote, repository, commit: &commit, options };
    let entries =
        retry(options, || fetch.remote.get_paths_info().paths(vec![path.to_owned()]).revision(commit.as_str()).send());
    let entries = entries.map_err(|error| explain(error, repository, revision, options))?;
    let Some((_, size)) = entries.into_iter().filter_map(file).find(|(name, _)| name == path) else {
        user_bail!("the data set {repository} has no file {path} at {revision}"; "give a local file as NAME=PATH");
    };
    let path = fetch.file(path, size)?;
    repository.remember(revision, &commit, options)?;
    Ok(DatasetFile { path, commit })
}

/// With a copy in the cache nobody waits for a hub that is down.
fn patience(cached: bool, options: &HubOptions) -> HubOptions {
    HubOptions { attempts: if cached { 1 } else { options.attempts }, ..options.clone() }
}

/// The copy in the cache if no hub answered, otherwise the error.
fn instead<R>(
    cached: Option<R>,
    error: HFError,
    repository: &Repository,
    revision: &str,
    options: &HubOptions,
) -> Result<R> {
    match cached {
        Some(copy) if unreachable(&error) => {
            options.log(&format!("the hub cannot be reached; using the copy of {repository} in the cache"));
            Ok(copy)
        }
        _ => Err(explain(error, repository, revision, options)),
    }
}

fn client(options: &HubOptions) -> Result<HFClientSync> {
    // Retries are ours: the library's do not cover a body that breaks off.
    let mut builder = hf_hub::HFClientBuilder::new()
        .cache_dir(options.cache()?)
        .retry_max_attempts(0)
        .user_agent(concat!("softlm/", env!("CARGO_PKG_VERSION")));
    if let Some(endpoint) = &options.endpoint {
        builder = builder.endpoint(endpoint);
    }
    if let Some(token) = &options.token {
        builder = builder.token(token);
    }
    builder.build_sync().map_err(|error| match &options.endpoint {
        Some(endpoint) => UserError::new(format!("cannot use the hub at {endpoint}: {error}"))
            .hint("HF_ENDPOINT must be a URL like https://huggingface.co")
            .into(),
        None => anyhow::Error::new(error).context("cannot set up the connection to the hub"),
    })
}

fn file(entry: RepoTreeEntry) -> Option<(String, u64)> {
    match entry {
        RepoTreeEntry::File { path, size, .. } => Some((path, size)),
        RepoTreeEntry::Directory { .. } => None,
    }
}

/// Tokenizer, generation settings, chat template, licence, the card that names it: everything small beside the weights, and
/// nothing that describes weights in another format. What sentence-transformers puts behind the transformer lies in folders.
fn is_side_file(path: &str, size: u64) -> bool {
    let licence = ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY"].iter().any(|start| path.starts_with(start));
    let settings = [".json", ".txt", ".model", ".jinja"].iter().any(|end| path.ends_with(end));
    let named = licence || settings || path == "README.md";
    let beside = !path.contains('/') && named && !path.ends_with(".index.json");
    (beside || is_module_file(path)) && size <= LARGEST_SIDE_FILE
}

fn no_weights(repository: &Repository, files: &[(String, u64)]) -> UserError {
    let pickled = files.iter().find(|(path, _)| [".bin", ".pt", ".pth", ".ckpt"].iter().any(|end| path.ends_with(end)));
    let adapter = files.iter().any(|(path, _)| path == "adapter_model.safetensors");
    if adapter {
        return UserError::new(format!("{repository} is an adapter, not a whole model"))
            .hint("merge it into its base model first");
    }
    match pickled {
        Some((path, _)) => {
            UserError::new(format!("{repository} has no safetensors weights, only pickled ones ({path})")).hint(
                "loading a pickle can run any code; convert it where you trust it: \
             AutoModelForCausalLM.from_pretrained(ID).save_pretrained(DIR), then give softlm that folder",
            )
        }
        None => UserError::new(format!("{repository} has no model.safetensors"))
            .hint("choose a repository with safetensors weights in transformers' layout"),
    }
}

/// What is being fetched from where.
struct Fetch<'a, T: RepoType> {
    remote: HFRepositorySync<T>,
    repository: &'a Repository<'a>,
    commit: &'a str,
    options: &'a HubOptions,
}

impl<T: RepoType> Fetch<'_, T> {
    /// Fetches one file of `size` bytes unless the cache has it.
    fn file(&self, path: &str, size: u64) -> Result<PathBuf> {
        let local = self.repository.snapshot(self.commit, self.options)?.join(path);
        let length = || fs::metadata(&local).map(|metadata| metadata.len()).ok();
        if length() == Some(size) {
            return Ok(local);
        }
        self.options.log(&format!("fetching {}/{path} ({})", self.repository, megabytes(size)));
        retry(self.options, || {
            // A wrong length is an earlier accident, or an error page that was taken for the file: fetch it anew.
            discard(&local);
            let meter = self.options.log.clone().map(|log| Meter::new(log, path));
            let request = self.remote.download_file().filename(path).revision(self.commit);
            request.maybe_progress(meter).send()?;
            match length() {
                Some(length) if length == size => Ok(()),
                other => {
                    discard(&local);
                    let got = other.unwrap_or(0);
                    let message = format!("{path} has {got} bytes where the hub states {size}");
                    Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, message).into())
                }
            }
        })
        .map_err(|error| explain(error, self.repository, self.commit, self.options))?;
        Ok(local)
    }
}

/// Removes a file of a snapshot and what it links to.
fn discard(link: &Path) {
    if let Ok(blob) = fs::canonicalize(link) {
        let _ = fs::remove_file(blob);
    }
    let _ = fs::remove_file(link);
}

/// Tells about a file that takes long.
struct Meter {
    log: Log,
    name: String,
    last: Mutex<Instant>,
}

impl Meter {
    fn new(log: Log, name: &str) -> Self {
        Self { log, name: name.to_owned(), last: Mutex::new(Instant::now()) }
    }
}

impl ProgressHandler for Meter {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(DownloadEvent::Progress { files }) = event else { return };
        let Some(file) = files.last() else { return };
        let Ok(mut last) = self.last.lock() else { return };
        if file.total_bytes > 0 && last.elapsed() >= REPORT_EVERY {
            *last = Instant::now();
            let percent = 100.0 * file.bytes_completed as f64 / file.total_bytes as f64;
            (self.log)(&format!("fetching {}: {percent:.0} % of {}", self.name, megabytes(file.total_bytes)));
        }
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// Repeats a request that fails for a passing reason, with doubling pauses or the pause that the server asks for.
fn retry<R>(options: &HubOptions, mut request: impl FnMut() -> HFResult<R>) -> HFResult<R> {
    let mut pause = options.backoff;
    for attempt in 1.. {
        match request() {
            Err(error) if attempt < options.attempts && is_passing(&error) => {
                let wait = match &error {
                    HFError::RateLimited { retry_after: Some(wait), .. } => (*wait).min(Duration::from_secs(120)),
                    _ => pause,
                };
                options.log(&format!("the hub failed ({error}); trying again in {:.1} s", wait.as_secs_f64()));
                thread::sleep(wait);
                pause *= 2;
            }
            done => return done,
        }
    }
    unreachable!("the loop ends by returning")
}

fn is_passing(error: &HFError) -> bool {
    match error {
        HFError::Request { source, .. } => !source.is_builder() && !source.is_redirect(),
        HFError::RateLimited { .. } | HFError::CacheLockTimeout { .. } | HFError::Xet { .. } => true,
        HFError::Io(error) => error.kind() == std::io::ErrorKind::UnexpectedEof,
        HFError::Http { context } => matches!(context.status.as_u16(), 408 | 500..=599),
        _ => false,
    }
}

/// Whether no server answered, so that a copy in the cache is as good as it gets.
fn unreachable(error: &HFError) -> bool {
    matches!(error, HFError::Request { .. })
        || matches!(error, HFError::Http { context } if context.status.as_u16() >= 500)
}

/// Says what a user can do about it.
fn explain(error: HFError, repository: &Repository, revision: &str, options: &HubOptions) -> anyhow::Error {
    let kind = if repository.kind == "models" { "model" } else { "data set" };
    let hub = options.endpoint.as_deref().unwrap_or("huggingface.co");
    let status = match &error {
        HFError::Http { context } | HFError::AuthRequired { context } | HFError::Forbidden { context } => {
            context.status.as_u16()
        }
        HFError::RepoNotFound { .. } | HFError::RevisionNotFound { .. } | HFError::EntryNotFound { .. } => 404,
        _ => 0,
    };
    let local = if kind == "model" { "give the path of a folder" } else { "give a local file as NAME=PATH" };
    let user = match (status, &error) {
        (401, _) => {
            UserError::new(format!("the {kind} {repository} does not exist on {hub}, or you may not read it (401)"))
                .hint("check the spelling; for a private or gated one set HF_TOKEN to an access token of yours")
        }
        (403, _) => UserError::new(format!("{hub} refuses access to the {kind} {repository} (403)"))
            .hint("if it is gated, accept its terms on its page; then set HF_TOKEN to an access token of yours"),
        (404, _) => UserError::new(format!("there is no {kind} {repository} at revision {revision} on {hub}"))
            .hint(format!("check the spelling, or {local}")),
        (_, HFError::Request { .. }) => UserError::new(format!("cannot reach {hub} for the {kind} {repository}"))
            .hint(format!("check the connection, set HF_ENDPOINT to a mirror, or {local}")),
        (500..=599, _) => {
            UserError::new(format!("{hub} fails for the {kind} {repository}, again and again ({status})"))
                .hint(format!("try again later, set HF_ENDPOINT to a mirror, or {local}"))
        }
        (_, HFError::RateLimited { .. }) => UserError::new(format!("{hub} answers too many requests for {repository}"))
            .hint("wait some minutes; with HF_TOKEN set the limit is higher"),
        _ => return anyhow::Error::new(error).context(format!("the hub failed for the {kind} {repository}")),
    };
    anyhow::Error::new(error).context(user)
}

//! Fetching models and data sets: the part of [`crate::hub`] that speaks to a server.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, anyhow};

use super::cache::Cache;
use super::endpoint::Endpoint;
use super::fetch::Fetch;
use super::http::{Ask, Http};
use super::retry::{Failure, retry};
use super::tree::{Entry, Remote};
use super::{DatasetFile, HubOptions, LARGEST_SIDE_FILE, Repository, Snapshot, is_module_file, shards};
use crate::error::UserError;
use crate::user_bail;

/// See [`super::model`].
pub(super) fn model(repository: &Repository, options: &HubOptions) -> Result<Snapshot> {
    let http = Http::new(options)?;
    let revision = options.revision();
    let say = |failure| explain(failure, repository, revision, &http.endpoint);
    let remote = Remote { http: &http, repository, options };
    let cached = repository.cached_model(options)?;
    let commit = match current(&remote, revision, cached.is_some()) {
        Ok(commit) => commit,
        Err(failure) => return instead(cached, failure, repository, options).map_err(say),
    };
    let files = remote.files(&commit).map_err(say)?;
    let fetch = Fetch { remote, cache: Cache::new(repository, &commit, options)?, commit: &commit };

    const CONFIG: &str = "config.json";
    const SINGLE: &str = "model.safetensors";
    const INDEX: &str = "model.safetensors.index.json";
    if !files.contains_key(CONFIG) {
        user_bail!("{repository} has no {CONFIG}, so it is no model that can be run"; "check the id");
    }
    let mut weights = BTreeSet::new();
    if files.contains_key(SINGLE) {
        weights.insert(SINGLE.to_owned());
    } else if let Some(index) = files.get(INDEX) {
        if index.size > LARGEST_SIDE_FILE {
            user_bail!("{INDEX} of {repository} has {} bytes, more than any index", index.size; "tell its owner");
        }
        let path = fetch.file(index).map_err(say)?;
        let damaged = || {
            UserError::new(format!("{repository}: {INDEX} is damaged, or no index"))
                .hint("do not trust this checkpoint")
        };
        weights = shards(&path).with_context(damaged)?;
    } else {
        return Err(no_weights(repository, &files).into());
    }
    let mut wanted = Vec::new();
    for path in std::iter::once(CONFIG).chain(weights.iter().map(String::as_str)) {
        match files.get(path) {
            Some(entry) => wanted.push(entry),
            None => user_bail!(
                "{repository} is incomplete: its index names {path}, which is not there";
                "tell its owner"
            ),
        }
    }
    let beside = files.values().filter(|entry| is_side_file(entry) && !weights.contains(&entry.path));
    wanted.extend(beside.filter(|entry| entry.path != CONFIG));
    for entry in wanted {
        fetch.file(entry).map_err(say)?;
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
    let http = Http::new(options)?;
    let say = |failure| explain(failure, repository, revision, &http.endpoint);
    let remote = Remote { http: &http, repository, options };
    let cached = repository.cached_file(path, revision, options)?;
    let commit = match current(&remote, revision, cached.is_some()) {
        Ok(commit) => commit,
        Err(failure) => return instead(cached, failure, repository, options).map_err(say),
    };
    let Some(entry) = remote.file(&commit, path).map_err(say)? else {
        user_bail!("the data set {repository} has no file {path} at {revision}"; "give a local file as NAME=PATH");
    };
    let fetch = Fetch { remote, cache: Cache::new(repository, &commit, options)?, commit: &commit };
    let path = fetch.file(&entry).map_err(say)?;
    repository.remember(revision, &commit, options)?;
    Ok(DatasetFile { path, commit })
}

/// See [`super::reach`].
pub(super) fn reach(options: &HubOptions) -> Result<String> {
    let http = Http::new(options)?;
    let hub = http.endpoint.to_string();
    match http.request(&Ask::get(http.endpoint.first_model())) {
        Ok(_) => Ok(hub),
        Err(failure) => user_bail!(
            "{hub} does not answer: {failure}";
            "check the connection, HF_ENDPOINT and HTTPS_PROXY; or work from folders and the cache with --offline"
        ),
    }
}

/// The commit that the hub knows for a revision. With a copy in the cache nobody waits for a hub that is down.
fn current(remote: &Remote, revision: &str, cached: bool) -> Result<String, Failure> {
    retry(remote.options, || match remote.commit(revision) {
        Err(failure @ Failure::Status { status: 429, .. }) => Err(failure),
        Err(failure) if cached && failure.is_unreachable() => Ok(Err(failure)),
        Err(failure) => Err(failure),
        Ok(commit) => Ok(Ok(commit)),
    })?
}

/// The copy in the cache if no hub answered, otherwise the failure.
fn instead<R>(
    cached: Option<R>,
    failure: Failure,
    repository: &Repository,
    options: &HubOptions,
) -> Result<R, Failure> {
    match cached {
        Some(copy) if failure.is_unreachable() => {
            options.log(&format!("the hub cannot be reached ({failure}); using the copy of {repository} in the cache"));
            Ok(copy)
        }
        _ => Err(failure),
    }
}

/// Tokenizer, generation settings, chat template, licence, the card that names it: everything small beside the weights, and
/// nothing that describes weights in another format. What sentence-transformers puts behind the transformer lies in folders.
fn is_side_file(entry: &Entry) -> bool {
    let path = entry.path.as_str();
    let licence = ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY"].iter().any(|start| path.starts_with(start));
    let settings = [".json", ".txt", ".model", ".jinja"].iter().any(|end| path.ends_with(end));
    let named = licence || settings || path == "README.md";
    let beside = !path.contains('/') && named && !path.ends_with(".index.json");
    (beside || is_module_file(path)) && entry.size <= LARGEST_SIDE_FILE
}

fn no_weights(repository: &Repository, files: &BTreeMap<String, Entry>) -> UserError {
    let pickled = files.keys().find(|path| [".bin", ".pt", ".pth", ".ckpt"].iter().any(|end| path.ends_with(end)));
    if files.contains_key("adapter_model.safetensors") {
        return UserError::new(format!("{repository} is an adapter, not a whole model"))
            .hint("merge it into its base model first");
    }
    match pickled {
        Some(path) => UserError::new(format!("{repository} has no safetensors weights, only pickled ones ({path})"))
            .hint(
                "loading a pickle can run any code; convert it where you trust it: \
             AutoModelForCausalLM.from_pretrained(ID).save_pretrained(DIR), then give softlm that folder",
            ),
        None => UserError::new(format!("{repository} has no model.safetensors"))
            .hint("choose a repository with safetensors weights in transformers' layout"),
    }
}

/// Says what a user can do about it.
fn explain(failure: Failure, repository: &Repository, revision: &str, hub: &Endpoint) -> anyhow::Error {
    let (kind, local) = match repository.kind {
        "models" => ("model", "give the path of a folder"),
        _ => ("data set", "give a local file as NAME=PATH"),
    };
    let cause = anyhow!("{failure}");
    let (what, hint) = match failure {
        Failure::Lasting(error) => return error,
        Failure::Status { status: 401, .. } => (
            format!("the {kind} {repository} does not exist on {hub}, or you may not read it (401)"),
            "check the spelling; for a private or gated one set HF_TOKEN to an access token of yours".to_owned(),
        ),
        Failure::Status { status: 403, .. } => (
            format!("{hub} refuses access to the {kind} {repository} (403)"),
            "if it is gated, accept its terms on its page; then set HF_TOKEN to an access token of yours".to_owned(),
        ),
        Failure::Status { status: 404, .. } => (
            format!("there is no {kind} {repository} at revision {revision} on {hub}"),
            format!("check the spelling, or {local}"),
        ),
        Failure::Status { status: 429, .. } => (
            format!("{hub} answers too many requests for {repository} (429)"),
            "wait some minutes; with HF_TOKEN set the limit is higher".to_owned(),
        ),
        Failure::Status { status: status @ (408 | 500..=599), .. } => (
            format!("{hub} fails for the {kind} {repository}, again and again ({status})"),
            format!("try again later, set HF_ENDPOINT to a mirror, or {local}"),
        ),
        Failure::Status { status, .. } => (
            format!("{hub} answers {status} for the {kind} {repository}"),
            format!("check the spelling and HF_ENDPOINT, or {local}"),
        ),
        Failure::Unreachable { lasting: true, .. } => (
            format!("there is no connection to {hub} that can be trusted, for the {kind} {repository}"),
            "behind a proxy that looks into connections, set SSL_CERT_FILE to its certificate".to_owned(),
        ),
        Failure::Unreachable { .. } => (
            format!("cannot reach {hub} for the {kind} {repository}"),
            format!("check the connection, set HF_ENDPOINT to a mirror, or {local}"),
        ),
        Failure::WebPage { host } => (
            format!("{host} answers with a web page where data of {repository} was asked for"),
            "a network may want you to log in first: open any page in a browser; else check HF_ENDPOINT".to_owned(),
        ),
        Failure::Damaged(_) => (
            format!("{hub} sends damaged files for the {kind} {repository}"),
            format!("a mirror or proxy may change them: set HF_ENDPOINT to another hub, or {local}"),
        ),
    };
    cause.context(UserError::new(what).hint(hint))
}

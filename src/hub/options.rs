//! How to reach the hub: what callers and the environment variables say.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Result;

use crate::user_bail;

/// Receives one line of text at a time while files are fetched.
pub type Log = Arc<dyn Fn(&str) + Send + Sync>;

/// How long a server may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Finding the address of a host, and again setting up a connection to it, TLS included.
    pub connect: Duration,
    /// From the request to the end of the answer's headers.
    pub response: Duration,
    /// Between two parts of a body: no byte at all, or less than a kilobyte in that time.
    pub idle: Duration,
    /// After this long a wait is said.
    pub notice: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let [connect, response, idle, notice] = [10, 30, 60, 5].map(Duration::from_secs);
        Self { connect, response, idle, notice }
    }
}

/// How to reach the hub. `Default` is the public hub with the user's own cache directory unset; [`HubOptions::from_env`]
/// is what programs want.
#[derive(Clone)]
pub struct HubOptions {
    /// Base URL of the hub; `None` is huggingface.co. It may carry a user and a password for that server.
    pub endpoint: Option<String>,
    /// Folder of the cache; `None` is the one that the environment names.
    pub cache: Option<PathBuf>,
    /// Access token, sent to the endpoint alone.
    pub token: Option<String>,
    /// Where a login stores the token; read if there is no `token`, and if something is fetched at all.
    pub token_file: Option<PathBuf>,
    /// Use nothing but the cache.
    pub offline: bool,
    /// Branch, tag or commit of models; `None` is `main`. Data sets have revisions of their own.
    pub revision: Option<String>,
    /// How often a request that failed for no lasting reason is made, at least once. Requests that went on with a file are
    /// not counted.
    pub attempts: u32,
    /// Pause before the second attempt; it doubles with each one after.
    pub backoff: Duration,
    /// How long a server may take.
    pub timeouts: Timeouts,
    /// Told what is being fetched, what is waited for, and what failed and is tried again.
    pub log: Option<Log>,
    /// Once set, fetching ends with [`Interrupted`](crate::progress::Interrupted), whatever it waits for.
    pub stop: Option<Arc<AtomicBool>>,
}

impl Default for HubOptions {
    fn default() -> Self {
        Self {
            endpoint: None,
            cache: None,
            token: None,
            token_file: None,
            offline: false,
            revision: None,
            attempts: 5,
            backoff: Duration::from_millis(500),
            timeouts: Timeouts::default(),
            log: None,
            stop: None,
        }
    }
}

impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The token and a password are secrets: options end up in logs.
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint.as_deref().map(without_credentials))
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "..."))
            .field("token_file", &self.token_file)
            .field("offline", &self.offline)
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

/// `endpoint` without what could be a user and a password, well-formed or not.
fn without_credentials(endpoint: &str) -> String {
    match endpoint.rsplit_once('@') {
        Some((before, host)) => {
            let scheme = before.split_once("://").map_or(String::new(), |(scheme, _)| format!("{scheme}://"));
            format!("{scheme}...@{host}")
        }
        None => endpoint.to_owned(),
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
        let is_set = |name: &str| {
            get(name).is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on"))
        };
        let folder = |name: &str, below: &str| get(name).map(|value| Path::new(&value).join(below));
        let home = folder("HF_HOME", "")
            .or_else(|| folder("XDG_CACHE_HOME", "huggingface"))
            .or_else(|| folder("HOME", ".cache/huggingface"));
        let cache = folder("HF_HUB_CACHE", "")
            .or_else(|| folder("HUGGINGFACE_HUB_CACHE", ""))
            .or_else(|| home.as_ref().map(|home| home.join("hub")));
        let (mut token, mut token_file) = (None, None);
        if !is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            token = get("HF_TOKEN").or_else(|| get("HUGGING_FACE_HUB_TOKEN"));
            token_file = get("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| home.map(|home| home.join("token")));
        }
        let (endpoint, offline) = (get("HF_ENDPOINT"), is_set("HF_HUB_OFFLINE"));
        Self { endpoint, cache, token, token_file, offline, ..Self::default() }
    }

    pub(super) fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    pub(super) fn cache(&self) -> Result<&Path> {
        match &self.cache {
            Some(cache) => Ok(cache),
            None => user_bail!("there is no folder to keep files of the hub in"; "set HF_HOME or HF_HUB_CACHE"),
        }
    }
}

#[cfg(feature = "hub")]
impl HubOptions {
    pub(super) fn log(&self, line: &str) {
        if let Some(log) = &self.log {
            log(line);
        }
    }

    /// Fails with [`Interrupted`](crate::progress::Interrupted) once the user wants to stop.
    pub(super) fn check_stop(&self) -> Result<()> {
        match &self.stop {
            Some(stop) if stop.load(std::sync::atomic::Ordering::SeqCst) => Err(crate::progress::Interrupted.into()),
            _ => Ok(()),
        }
    }

    /// Waits, unless the user wants to stop.
    pub(super) fn pause(&self, wait: Duration) -> Result<()> {
        let start = std::time::Instant::now();
        loop {
            self.check_stop()?;
            match wait.checked_sub(start.elapsed()) {
                Some(left) if !left.is_zero() => std::thread::sleep(left.min(SLICE)),
                _ => return Ok(()),
            }
        }
    }
}

/// Waits are cut into slices of this length, so that a wish to stop is seen at once.
#[cfg(feature = "hub")]
pub(super) const SLICE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> HubOptions {
        HubOptions::from_lookup(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_environment_is_read_in_the_usual_order() {
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
    }

    #[test]
    fn the_token_comes_from_where_a_login_puts_it() {
        let options = with(&[("HF_TOKEN", "hf_secret"), ("HF_ENDPOINT", "http://mirror")]);
        assert_eq!(options.token.as_deref(), Some("hf_secret"));
        assert_eq!(options.endpoint.as_deref(), Some("http://mirror"));
        assert_eq!(with(&[("HF_TOKEN", "")]).token, None);
        assert_eq!(with(&[("HUGGING_FACE_HUB_TOKEN", "old")]).token.as_deref(), Some("old"));
        let file =
            |pairs: &[(&str, &str)]| with(pairs).token_file.map(|path| path.to_string_lossy().replace('\\', "/"));
        assert_eq!(file(&[("HOME", "/h")]).as_deref(), Some("/h/.cache/huggingface/token"));
        assert_eq!(file(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")]).as_deref(), Some("/hf/token"));
        assert_eq!(file(&[("HF_HOME", "/hf"), ("HF_TOKEN_PATH", "/t")]).as_deref(), Some("/t"));
        let without = with(&[("HF_TOKEN", "x"), ("HOME", "/h"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]);
        assert_eq!((without.token, without.token_file), (None, None));
    }

    #[test]
    fn secrets_are_not_shown() {
        for endpoint in
            ["http://me:secret@mirror", "http://me:sec@secret@mirror", "me:secret@mirror", "https://secret/x@mirror"]
        {
            let shown = format!("{:?}", with(&[("HF_TOKEN", "hf_secret"), ("HF_ENDPOINT", endpoint)]));
            assert!(!shown.contains("secret") && shown.contains("...@mirror"), "{shown}");
        }
        assert!(format!("{:?}", with(&[("HF_ENDPOINT", "http://mirror/x")])).contains("http://mirror/x"));
    }
}

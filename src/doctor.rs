//! What of this machine, its disks and its network softlm depends on, and what to do about each that is not well.

use crate::checkpoint::free_space;
use crate::device::{Choice, describe};
use crate::error::UserError;
use crate::hub::{self, HubOptions};
use crate::linalg::bf16;
use crate::machine;
use crate::memory::{available, scratch_file};
use crate::report::{bytes, count};
use anyhow::{Context, Result};
use candle_core::Device;
use serde::Serialize;
use std::env;
use std::path::{Path, PathBuf};

/// Free space below which a disk is mentioned: less than the weights of a small model.
const LITTLE_SPACE: u64 = 2_000_000_000;
/// Memory below which it is mentioned: a model of 100 M parameters is compressed in about half.
const LITTLE_MEMORY: u64 = 1_000_000_000;

/// How well something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Fine,
    /// Works, but something else would be better or is absent.
    Note,
    /// What depends on it fails.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What, in a word or two.
    pub subject: &'static str,
    /// How it is.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    fn new(subject: &'static str, state: State, found: impl Into<String>) -> Self {
        Self { subject, state, found: found.into(), advice: None }
    }

    fn advise(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }

    /// What went wrong, with the hint that comes with it.
    fn failed(subject: &'static str, state: State, error: &anyhow::Error) -> Self {
        let hint = error.downcast_ref::<UserError>().and_then(|error| error.hint_text()).map(str::to_owned);
        Self { advice: hint, ..Self::new(subject, state, format!("{error:#}")) }
    }
}

/// Looks at everything. With `options.offline` the network is left alone.
pub fn examine(options: &HubOptions) -> Vec<Finding> {
    vec![
        version(),
        processor(),
        threads(),
        memory(),
        gpu(),
        temporary(),
        cache(options),
        token(options),
        server(options),
    ]
}

fn version() -> Finding {
    let parts = [("hub", cfg!(feature = "hub")), ("cuda", cfg!(feature = "cuda"))];
    let with: Vec<&str> = parts.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect();
    let with = if with.is_empty() { "no features".to_string() } else { with.join(", ") };
    let found = format!("softlm {} with {with}", env!("CARGO_PKG_VERSION"));
    if cfg!(debug_assertions) {
        let note = format!("{found}, built for debugging");
        return Finding::new("version", State::Note, note).advise("build with --release: it is many times as fast");
    }
    Finding::new("version", State::Fine, found)
}

fn processor() -> Finding {
    let name = machine::describe("cpu").cpu;
    let rate = machine::product_rate(&Device::Cpu)
        .ok()
        .map(|rate| format!(", {} multiplications and additions a second in f32", count(rate as u64)));
    let found = format!("{name}: {}{}", instructions(), rate.unwrap_or_default());
    if cfg!(target_arch = "x86_64") && !has_avx2() {
        return Finding::new("processor", State::Note, found)
            .advise("without AVX2 and FMA products are several times slower: use another machine for large models");
    }
    Finding::new("processor", State::Fine, found)
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx2() -> bool {
    false
}

/// The instructions that products use.
fn instructions() -> String {
    #[cfg(target_arch = "x86_64")]
    let wide = [("AVX2", has_avx2()), ("AVX-512", is_x86_feature_detected!("avx512f"))];
    #[cfg(not(target_arch = "x86_64"))]
    let wide = [("NEON", cfg!(target_arch = "aarch64"))];
    let all = wide.into_iter().chain([("AVX512-BF16 (--matmul-precision medium)", bf16::is_supported())]);
    let there: Vec<&str> = all.filter(|(_, there)| *there).map(|(name, _)| name).collect();
    if there.is_empty() { "no vector instructions that are known".to_string() } else { there.join(", ") }
}

fn threads() -> Finding {
    let (used, cores) = (rayon::current_num_threads(), std::thread::available_parallelism().map_or(1, usize::from));
    let found = format!("{used} of {cores} cores");
    if used > cores {
        return Finding::new("threads", State::Note, found)
            .advise("more threads than cores only wait for each other: leave --threads and RAYON_NUM_THREADS out");
    }
    Finding::new("threads", State::Fine, found)
}

fn memory() -> Finding {
    match available() {
        None => Finding::new("memory", State::Note, "the system does not say how much there is")
            .advise("--max-memory says what softlm may take"),
        Some(free) if free < LITTLE_MEMORY => Finding::new("memory", State::Note, format!("{} free", bytes(free)))
            .advise("enough for small models; --max-memory makes larger ones go in pieces, or says that they cannot"),
        Some(free) => Finding::new("memory", State::Fine, format!("{} free", bytes(free))),
    }
}

fn gpu() -> Finding {
    match Choice::Cuda(0).open(|_| ()) {
        Ok(device) => Finding::new("GPU", State::Fine, describe(&device)),
        Err(error) => Finding::failed("GPU", State::Note, &error),
    }
}

fn temporary() -> Finding {
    match scratch_file() {
        Ok(_) => Finding::new("temporary files", State::Fine, "can be written"),
        Err(error) => Finding::failed("temporary files", State::Problem, &error)
            .advise("set TMPDIR to a folder on a disk that can be written to"),
    }
}

fn cache(options: &HubOptions) -> Finding {
    let Some(folder) = &options.cache else {
        return Finding::new("cache", State::Problem, "there is no folder to keep files of the hub in")
            .advise("set HF_HOME or HF_HUB_CACHE");
    };
    match writable(folder) {
        Ok(free) => {
            let found = format!("{}, {} free", folder.display(), bytes(free));
            if free < LITTLE_SPACE {
                return Finding::new("cache", State::Note, found)
                    .advise("little space for models: remove some, or set HF_HUB_CACHE to a larger disk");
            }
            Finding::new("cache", State::Fine, found)
        }
        Err(error) => Finding::failed("cache", State::Problem, &error)
            .advise("make it writable, or set HF_HUB_CACHE to another folder"),
    }
}

/// Free bytes of `folder`, which can be written to, or could be made.
fn writable(folder: &Path) -> Result<u64> {
    let there = std::path::absolute(folder).unwrap_or_else(|_| PathBuf::from(folder));
    let there = there.ancestors().find(|path| path.exists()).context("no folder of this path is there")?;
    let what = || format!("{} cannot be written to", there.display());
    tempfile::tempfile_in(there).with_context(what)?;
    free_space(there)
}

fn token(options: &HubOptions) -> Finding {
    let file = options.token_file.as_deref().filter(|path| path.is_file());
    match (&options.token, file) {
        (Some(_), _) => Finding::new("token", State::Fine, "one for the hub, from the environment"),
        (None, Some(path)) => Finding::new("token", State::Fine, format!("one for the hub, in {}", path.display())),
        (None, None) => Finding::new("token", State::Note, "none: private and gated models cannot be fetched")
            .advise("set HF_TOKEN, or log in with `hf auth login`"),
    }
}

fn server(options: &HubOptions) -> Finding {
    if options.offline {
        return Finding::new("hub", State::Note, "not asked: --offline, or HF_HUB_OFFLINE is set")
            .advise("only folders and what is in the cache can be used");
    }
    match hub::reach(options) {
        Ok(name) => Finding::new("hub", State::Fine, format!("{name} answers")),
        // Folders and what is cached work without.
        Err(error) => Finding::failed("hub", State::Note, &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_writable_if_it_is_or_could_be_made() {
        let dir = tempfile::tempdir().unwrap();
        assert!(writable(&dir.path().join("not/yet/there")).unwrap() > 0);
        assert!(!dir.path().join("not").exists(), "looking makes nothing");
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let error = writable(&file.join("below")).unwrap_err();
        assert!(format!("{error:#}").contains("file cannot be written to"), "{error:#}");
    }

    #[test]
    fn what_is_missing_is_a_problem_or_a_note_with_advice() {
        let nothing = HubOptions { offline: true, ..HubOptions::default() };
        let of = |subject| examine(&nothing).into_iter().find(|finding| finding.subject == subject).unwrap();
        assert_eq!((of("cache").state, of("token").state, of("hub").state), (State::Problem, State::Note, State::Note));
        assert!(examine(&nothing).iter().all(|finding| finding.state == State::Fine || finding.advice.is_some()));
    }

    #[test]
    fn tokens_are_named_and_never_shown() {
        let options = HubOptions { token: Some("secret".into()), ..HubOptions::default() };
        assert!(!format!("{:?}", token(&options)).contains("secret"));
        assert_eq!(token(&options).state, State::Fine);
    }
}

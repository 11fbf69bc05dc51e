//! Text that a model writes, token by token.

use crate::error::UserError;
use crate::model::{Decoder, Model};
use crate::text::{TextStream, Tokenizer};
use crate::user_bail;
use anyhow::{Context, Result};
use candle_core::Tensor;
use candle_transformers::generation::{LogitsProcessor, Sampling};
use candle_transformers::utils::apply_repeat_penalty;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::time::Instant;

/// Logits divided by less than this are no numbers any more: only the largest has a chance, as at temperature 0.
const GREEDY: f64 = 1e-30;

/// How tokens are chosen, and how many.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choosing {
    /// Tokens at most.
    pub max_tokens: usize,
    /// What logits are divided by; at 0, and so close to it that it makes no difference, the most likely token is taken.
    pub temperature: f64,
    /// Only the most likely tokens that together have this probability.
    pub top_p: Option<f64>,
    /// Only so many of the most likely tokens.
    pub top_k: Option<usize>,
    /// Seed of the choice.
    pub seed: u64,
    /// What the logits of tokens that have occurred are divided by where positive, multiplied with where negative.
    pub repeat_penalty: f64,
}

impl Default for Choosing {
    fn default() -> Self {
        Self { max_tokens: 128, temperature: 0.0, top_p: None, top_k: None, seed: 0, repeat_penalty: 1.0 }
    }
}

impl Choosing {
    /// Fails, naming the option, when a value makes no sense.
    pub fn check(&self) -> Result<()> {
        let Self { max_tokens, temperature, top_p, top_k, repeat_penalty, .. } = *self;
        if max_tokens == 0 {
            user_bail!("--max-tokens is 0"; "use at least 1");
        }
        // Logits are f32.
        if !(temperature >= 0.0 && (temperature as f32).is_finite()) {
            user_bail!("--temperature {temperature} is not a number from 0 to {:e}", f32::MAX; "0 takes the most likely token, 1 samples as the model predicts");
        }
        if let Some(p) = top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            user_bail!("--top-p {p} is outside (0, 1]"; "0.9 leaves out the least likely tokens that together have 10 %");
        }
        if top_k == Some(0) {
            user_bail!("--top-k is 0"; "use at least 1, or leave it out to choose among all tokens");
        }
        if !(repeat_penalty > 0.0 && (repeat_penalty as f32).is_normal()) {
            user_bail!("--repeat-penalty {repeat_penalty} is not a positive number"; "1 changes nothing, 1.1 makes repetitions rarer");
        }
        if temperature == 0.0 && (top_p.is_some() || top_k.is_some()) {
            user_bail!("--top-p and --top-k choose among several tokens, but at temperature 0 there is no choice"; "add --temperature 0.8");
        }
        Ok(())
    }

    fn sampling(&self) -> Sampling {
        let temperature = self.temperature;
        match (self.top_k, self.top_p) {
            _ if temperature < GREEDY => Sampling::ArgMax,
            // A share that is 0 in f32 leaves the most likely token alone.
            (_, Some(p)) if p as f32 == 0.0 => Sampling::ArgMax,
            (None, None) => Sampling::All { temperature },
            (Some(k), None) => Sampling::TopK { k, temperature },
            (None, Some(p)) => Sampling::TopP { p, temperature },
            (Some(k), Some(p)) => Sampling::TopKThenTopP { k, p, temperature },
        }
    }
}

/// Why no more was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stopped {
    /// The model ended its text.
    EndOfText,
    /// As many tokens as were asked for.
    MaxTokens,
    /// The model's context is full.
    Context,
    /// Whoever reads it has seen enough.
    Reader,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Generated {
    /// The ids in front.
    pub prompt_ids: Vec<u32>,
    /// Those that were written, without the one that ends a text.
    pub ids: Vec<u32>,
    /// Their text.
    pub text: String,
    /// Why no more was written.
    pub stopped: Stopped,
    /// Seconds from the start to the first token: loading the model and reading the prompt.
    pub prompt_seconds: f64,
    /// Seconds from there to the end.
    pub seconds: f64,
}

/// Continues `prompt`, ids that begin a text. `show` sees each piece of text as soon as it is certain, and says whether
/// it wants more.
///
/// # Errors
/// An encoder, a prompt that is empty or fills the model's context, and what [`Choosing::check`] and [`Decoder::read`] refuse.
pub fn generate(
    model: &Model,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    choosing: &Choosing,
    show: &mut dyn FnMut(&str) -> Result<bool>,
) -> Result<Generated> {
    choosing.check()?;
    if model.is_encoder() {
        user_bail!(
            "{} is an encoder: it does not predict what comes next", model.source().label();
            "`softlm eval` measures encoders; to write, take a decoder"
        );
    }
    if prompt.is_empty() {
        user_bail!("the prompt is empty, and {} has no token that begins a text", model.source().label(); "give a --prompt");
    }
    if prompt.len() >= model.context() {
        user_bail!(
            "the prompt has {} tokens, the context of {} is {}", prompt.len(), model.source().label(), model.context();
            "shorten the prompt"
        );
    }
    let ends = end_ids(model, tokenizer)?;
    let mut processor = LogitsProcessor::from_sampling(choosing.seed, choosing.sampling());
    let started = Instant::now();
    let mut decoder = Decoder::new(model)?;
    let mut logits = decoder.read(prompt)?;
    let prompt_seconds = started.elapsed().as_secs_f64();
    let mut stream = TextStream::new(tokenizer, prompt)?;
    let (mut ids, mut text) = (prompt.to_vec(), String::new());
    let stopped = loop {
        if ids.len() - prompt.len() == choosing.max_tokens {
            break Stopped::MaxTokens;
        }
        refuse_not_finite(model, &logits, ids.len())?;
        if choosing.repeat_penalty != 1.0 {
            logits = apply_repeat_penalty(&logits, choosing.repeat_penalty as f32, &ids)?;
        }
        let id = processor.sample(&logits).context("choosing a token")?;
        if ends.contains(&id) {
            break Stopped::EndOfText;
        }
        ids.push(id);
        let piece = stream.push(id)?;
        text += &piece;
        if !piece.is_empty() && !show(&piece)? {
            break Stopped::Reader;
        }
        if ids.len() == model.context() {
            break Stopped::Context;
        }
        if ids.len() - prompt.len() < choosing.max_tokens {
            logits = decoder.read(&[id])?;
        }
    };
    let rest = stream.finish()?;
    text += &rest;
    if !rest.is_empty() && stopped != Stopped::Reader {
        show(&rest)?;
    }
    let seconds = started.elapsed().as_secs_f64() - prompt_seconds;
    let ids = ids.split_off(prompt.len());
    Ok(Generated { prompt_ids: prompt.to_vec(), ids, text, stopped, prompt_seconds, seconds })
}

/// Fails if what the model says of the token behind `read` others is not made of numbers: any token could be chosen then.
fn refuse_not_finite(model: &Model, logits: &Tensor, read: usize) -> Result<()> {
    if logits.to_vec1::<f32>()?.iter().all(|logit| logit.is_finite()) {
        return Ok(());
    }
    let what = format!("the logits of {} behind {read} tokens are NaN or infinite", model.source().label());
    Err(UserError::not_finite(what).hint("its weights are damaged, or make numbers too large for f32").into())
}

/// Every id that ends a text: those that the tokenizer, config.json and generation_config.json name.
fn end_ids(model: &Model, tokenizer: &Tokenizer) -> Result<BTreeSet<u32>> {
    let settings: Map<String, Value> = match model.source().side_file("generation_config.json")? {
        Some(bytes) => match serde_json::from_slice(&bytes) {
            Ok(settings) => settings,
            Err(error) => user_bail!("generation_config.json is damaged: {error}"; "get the model's original one"),
        },
        None => Map::new(),
    };
    let named =
        [model.source().config(), model.config(), &settings].into_iter().filter_map(|map| map.get("eos_token_id"));
    let ids = named.flat_map(|value| value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice));
    let ids = ids.filter_map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()));
    Ok(ids.chain(tokenizer.eos()).collect())
}

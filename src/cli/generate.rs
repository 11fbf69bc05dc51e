//! `softlm generate`

use super::page::{print_json, print_part};
use super::values::switch;
use super::{Context, Outcome};
use crate::generate::{Choosing, Generated, generate};
use crate::pipeline;
use crate::progress::Progress;
use crate::text;
use crate::visible::visible_lines;
use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};
use std::io::stdin;

#[derive(Args)]
pub struct Generate {
    /// Model or output that writes: `demo`, a folder, or a hub id
    #[arg(env = "SOFTLM_MODEL")]
    model: String,
    /// Text to continue; `-` reads it from standard input, without the line end behind it
    #[arg(long, env = "SOFTLM_PROMPT", default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    prompt: String,
    /// Tokens at most
    #[arg(long, env = "SOFTLM_MAX_TOKENS", default_value_t = Choosing::default().max_tokens)]
    max_tokens: usize,
    /// 0 takes the most likely token each time, 1 samples as the model predicts
    #[arg(long, env = "SOFTLM_TEMPERATURE", default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f64,
    /// Sample only among the most likely tokens that together have this probability
    #[arg(long, env = "SOFTLM_TOP_P", allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// Sample only among so many of the most likely tokens
    #[arg(long, env = "SOFTLM_TOP_K")]
    top_k: Option<usize>,
    /// Seed of the sampling: the same seed gives the same text
    #[arg(long, env = "SOFTLM_SEED", default_value_t = 0)]
    seed: u64,
    /// Above 1 makes tokens that have occurred less likely
    #[arg(long, env = "SOFTLM_REPEAT_PENALTY", default_value_t = 1.0, allow_negative_numbers = true)]
    repeat_penalty: f64,
    /// Write control characters as they are; otherwise those that a terminal would act on are written out, but for line
    /// ends and tabs
    #[arg(long, env = "SOFTLM_RAW", value_parser = switch(), conflicts_with = "json")]
    raw: bool,
    /// Print one JSON object at the end
    #[arg(long, env = "SOFTLM_JSON", value_parser = switch())]
    json: bool,
}

impl Generate {
    pub fn run(self, context: &Context) -> Result<Outcome> {
        let choosing = Choosing {
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            seed: self.seed,
            repeat_penalty: self.repeat_penalty,
        };
        choosing.check()?;
        let source = pipeline::open_source(&self.model, &context.hub)?;
        let model = pipeline::load_model(source, &context.compute, context.ui)?.holding_half();
        let tokenizer = pipeline::tokenizer(model.source())?;
        let prompt = self.prompt()?;
        let ids = tokenizer.encode_prompt(&prompt)?;
        let mut show = |text: &str| {
            context.ui.step(1)?;
            match (self.json, self.raw) {
                (true, _) => Ok(true),
                (false, true) => print_part(text),
                (false, false) => print_part(&visible_lines(text)),
            }
        };
        let generated = generate(&model, &tokenizer, &ids, &choosing, &mut show)?;
        if self.json {
            print_json(&self.describe(&prompt, &generated)?.to_string())?;
        } else {
            print_part("\n")?;
        }
        if context.verbose {
            context.ui.done(&timing(&generated));
        }
        Ok(Outcome::Fine)
    }

    fn prompt(&self) -> Result<String> {
        if self.prompt != "-" {
            return Ok(self.prompt.clone());
        }
        let text = text::prompt("standard input", stdin().lock())?;
        let line = text.strip_suffix('\n').unwrap_or(&text);
        Ok(line.strip_suffix('\r').unwrap_or(line).to_string())
    }

    fn describe(&self, prompt: &str, generated: &Generated) -> Result<Value> {
        let mut object = json!({ "schema": 1, "model": self.model, "prompt": prompt });
        if let (Value::Object(all), Value::Object(rest)) = (&mut object, serde_json::to_value(generated)?) {
            all.extend(rest);
        }
        Ok(object)
    }
}

/// `prompt 12 tokens in 0.010 s; wrote 100 tokens in 0.50 s, 200 tokens/s`
fn timing(generated: &Generated) -> String {
    let Generated { prompt_ids, ids, prompt_seconds, seconds, .. } = generated;
    let speed = ids.len() as f64 / seconds.max(1e-9);
    let (prompt, written) = (prompt_ids.len(), ids.len());
    format!(
        "prompt {prompt} tokens in {prompt_seconds:.3} s; wrote {written} tokens in {seconds:.3} s, {speed:.1} tokens/s"
    )
}

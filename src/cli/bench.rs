//! `softlm bench`

use super::page::{page_width, print_json, print_result, stdout_color};
use super::values::switch;
use super::{Context, Outcome};
use crate::bench::bench;
use crate::model::Model;
use crate::pipeline;
use crate::report::{BenchOptions, bench_table};
use anyhow::Result;
use clap::Args;

#[derive(Args)]
pub struct Bench {
    /// Model: an output of compress, `demo`, a folder or a hub id
    #[arg(value_name = "MODEL")]
    model: String,
    /// Measure this one too, in turns, and say how much faster MODEL is
    #[arg(long, env = "SOFTLM_AGAINST", value_name = "BASE")]
    against: Option<String>,
    /// Sequences at once
    #[arg(long, env = "SOFTLM_BATCH", value_name = "N,…", value_delimiter = ',', default_value = "1,8")]
    batch: Vec<usize>,
    /// Tokens of each prompt; no more than the model has room for
    #[arg(long, env = "SOFTLM_CONTEXT", value_name = "N,…", value_delimiter = ',', default_value = "128,512,2048")]
    context: Vec<usize>,
    /// Tokens written behind it
    #[arg(long, env = "SOFTLM_TOKENS", value_name = "N", default_value_t = 32)]
    tokens: usize,
    /// Measurements of each
    #[arg(long, env = "SOFTLM_REPEATS", value_name = "N", default_value_t = 5)]
    repeats: usize,
    /// Fewer of them where they take longer than this together
    #[arg(long, env = "SOFTLM_SECONDS", value_name = "F", default_value_t = 20.0, allow_negative_numbers = true)]
    seconds: f64,
    /// Print one JSON object
    #[arg(long, env = "SOFTLM_JSON", value_parser = switch())]
    json: bool,
}

impl Bench {
    pub fn run(self, context: &Context) -> Result<Outcome> {
        let options = BenchOptions {
            batches: self.batch,
            contexts: self.context,
            tokens: self.tokens,
            repeats: self.repeats,
            seconds: self.seconds,
        };
        let load = |name: &String| -> Result<(String, Model)> {
            let source = pipeline::open_source(name, &context.hub)?;
            Ok((name.clone(), pipeline::load_model(source, &context.compute, context.ui)?.holding_half()))
        };
        let models = [Some(&self.model), self.against.as_ref()].into_iter().flatten().map(load);
        let report = bench(models.collect::<Result<_>>()?, &options, context.ui)?;
        context.ui.finish();
        if self.json {
            print_json(&serde_json::to_string_pretty(&report)?)?;
        } else {
            print_result(&bench_table(&report, page_width(), stdout_color()))?;
        }
        Ok(Outcome::Fine)
    }
}

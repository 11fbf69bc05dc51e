//! `softlm compress`

use super::gates::Gates;
use super::html::Html;
use super::page::{page_width, print_json, print_result, stdout_color};
use super::values::{MemoryLimits, limit, switch};
use super::{Context, Outcome};
use crate::error::is_not_finite;
use crate::model::{Model, Output};
use crate::pipeline::{self, ResultNotMeasured};
use crate::recipe::Options;
use crate::report::{self, Entry, Report};
use crate::user_bail;
use anyhow::Result;
use clap::Args;
use std::path::{Path, PathBuf};

const NOTES: &str = "\
--calib-windows is also SOFTLM_CALIB_WINDOWS in the environment and calib_windows in a recipe, and so with every option. \
`softlm methods NAME` explains a method and lists the options that it alone has, `-h` shows the most used options.";

/// What `-h` shows.
pub const OFTEN: &str = "model json method output set config force keep target_params target_bytes calib calib_windows \
                         window heal task ppl max_ppl";

#[derive(Args)]
#[command(after_help = NOTES)]
pub struct Compress {
    #[command(flatten)]
    options: Options,
    /// Recipe file (TOML); flags and environment go before it
    #[arg(long, value_name = "FILE", help_heading = "What")]
    config: Option<PathBuf>,
    /// Replace an existing output, or another unfinished run
    #[arg(long, value_parser = switch(), help_heading = "What")]
    force: bool,
    /// Fail (exit 1) above this on any --ppl corpus
    #[arg(long, value_name = "F", value_parser = limit, help_heading = "Evaluation")]
    max_ppl: Option<f64>,
    #[command(flatten)]
    html: Html,
    #[command(flatten)]
    memory: MemoryLimits,
    /// Print the report as JSON
    #[arg(long, value_parser = switch())]
    json: bool,
}

impl Compress {
    pub fn run(self, context: &Context) -> Result<Outcome> {
        let options = self.options.split_names();
        let options = match &self.config {
            Some(path) => options.or_file(path)?,
            None => options,
        };
        let recipe = options.resolve()?;
        self.html.check(Some(&recipe.output), self.force)?;
        let compute = self.memory.of(context)?;
        if self.max_ppl.is_some() && recipe.ppl.is_empty() {
            user_bail!("--max-ppl needs a corpus, but --ppl is none"; "add --ppl sample");
        }
        if self.max_ppl.is_some() && !predicts_tokens(&recipe.model, context)? {
            user_bail!("--max-ppl checks a perplexity, and {} predicts no tokens", recipe.model; "leave it out");
        }
        let report = match pipeline::compress(&recipe, self.force, &context.hub, &compute, context.ui) {
            Err(error) if self.max_ppl.is_some() && error.is::<ResultNotMeasured>() && is_not_finite(&error) => {
                let limit = self.max_ppl.unwrap_or_default();
                context.ui.check_failed(&format!("no perplexity that --max-ppl {limit} could hold for: {error:#}"));
                return Ok(Outcome::CheckFailed);
            }
            result => result?,
        };
        self.html.write(&[Entry { name: recipe.output.display().to_string(), report: report.clone() }])?;
        finish(&report, self.json, &recipe.output, context)?;
        let gates = Gates { max_ppl: self.max_ppl, ..Gates::default() };
        let mut failures: Vec<String> =
            report.evaluation.iter().flat_map(|pair| gates.failures(&pair.after, Some(&pair.before))).collect();
        if gates.any() && report.evaluation.is_empty() {
            failures.push("no perplexity was measured that --max-ppl could hold for".to_string());
        }
        failures.iter().for_each(|text| context.ui.check_failed(text));
        Ok(if failures.is_empty() { Outcome::Fine } else { Outcome::CheckFailed })
    }
}

/// Prints the report of a run that is done.
pub(super) fn finish(report: &Report, json: bool, output: &Path, context: &Context) -> Result<()> {
    context.ui.finish();
    if json {
        return print_json(&serde_json::to_string_pretty(report)?);
    }
    print_result(&report::table(report, page_width(), stdout_color()))?;
    if context.verbose {
        print_result(&report::details(report))?;
    }
    context.ui.done(&format!("the output is {}", output.display()));
    Ok(())
}

fn predicts_tokens(name: &str, context: &Context) -> Result<bool> {
    let model = Model::load(pipeline::open_source(name, &context.hub)?, &context.compute)?;
    Ok(matches!(model.output(), Output::NextToken | Output::MaskedToken))
}

//! `softlm cut`

use super::compress::finish;
use super::values::{MemoryLimits, switch};
use super::{Context, Outcome};
use crate::pipeline;
use crate::recipe::Options;
use crate::user_bail;
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
pub struct Cut {
    /// Output of compress --elastic
    #[arg(value_name = "OUTPUT")]
    folder: PathBuf,
    /// Fraction of the linears to keep
    #[arg(long, allow_negative_numbers = true, value_name = "F")]
    keep: Option<f64>,
    /// Instead: parameters of the whole model, at most
    #[arg(long, conflicts_with = "keep", value_name = "N")]
    target_params: Option<u64>,
    /// Instead: bytes of all weights, at most (`1.5GiB`)
    #[arg(long, conflicts_with_all = ["keep", "target_params"], value_name = "SIZE")]
    target_bytes: Option<String>,
    /// Instead: as small as the perplexity on every --ppl corpus allows, which may rise by this much (`5%`)
    #[arg(long, conflicts_with_all = ["keep", "target_params", "target_bytes"], value_name = "P")]
    max_ppl_increase: Option<String>,
    /// New folder for the result [default: OUTPUT-KEEP]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Where the model is that the output was made from, if not where it was
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// Evaluate before and after on these corpora, or `none` [default: those of the elastic output]
    #[arg(long, value_name = "TEXT")]
    ppl: Option<Vec<String>>,
    /// Tokens per window
    #[arg(long, value_name = "N")]
    eval_window: Option<usize>,
    /// Evaluate on at most this many windows per corpus
    #[arg(long, value_name = "N")]
    max_windows: Option<usize>,
    /// Replace an existing output, or another unfinished run
    #[arg(long, value_parser = switch())]
    force: bool,
    #[command(flatten)]
    memory: MemoryLimits,
    /// Print the report as JSON
    #[arg(long, value_parser = switch())]
    json: bool,
}

impl Cut {
    pub fn run(self, context: &Context) -> Result<Outcome> {
        let size = match (&self.target_params, &self.target_bytes, &self.max_ppl_increase) {
            (Some(params), ..) => format!("{params}-params"),
            (_, Some(bytes), _) => bytes.clone(),
            (.., Some(increase)) => format!("plus{}", increase.replace('%', "percent")),
            _ => match self.keep {
                Some(keep) => keep.to_string(),
                None => user_bail!("no size is given"; "for example --keep 0.7"),
            },
        };
        let shown = self.folder.display().to_string();
        let output = self.output.unwrap_or_else(|| PathBuf::from(format!("{}-{size}", shown.trim_end_matches('/'))));
        let wanted = Options {
            // What is written names it where it is now.
            model: self.base.clone(),
            keep: self.keep,
            target_params: self.target_params,
            target_bytes: self.target_bytes,
            max_ppl_increase: self.max_ppl_increase,
            output: Some(output),
            ppl: self.ppl,
            eval_window: self.eval_window,
            max_windows: self.max_windows,
            ..Options::default()
        };
        let recipe = pipeline::cut_recipe(&self.folder, wanted.split_names())?;
        let compute = self.memory.of(context)?;
        let base = self.base.as_deref();
        let report = pipeline::cut(&self.folder, base, &recipe, self.force, &context.hub, compute, context.ui)?;
        finish(&report, self.json, &recipe.output, context)?;
        Ok(Outcome::Fine)
    }
}

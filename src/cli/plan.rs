//! `softlm plan`

use super::page::{page_width, print_json, print_result, stdout_color};
use super::values::{MemoryLimits, switch};
use super::{Context, Outcome};
use crate::pipeline;
use crate::recipe::Options;
use crate::report::forecast_table;
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
pub struct Plan {
    #[command(flatten)]
    options: Options,
    /// Recipe file (TOML); flags and environment go before it
    #[arg(long, value_name = "FILE", help_heading = "What")]
    config: Option<PathBuf>,
    #[command(flatten)]
    memory: MemoryLimits,
    /// Print one JSON object
    #[arg(long, value_parser = switch())]
    json: bool,
}

impl Plan {
    pub fn run(self, context: &Context) -> Result<Outcome> {
        let options = self.options.split_names();
        let options = match &self.config {
            Some(path) => options.or_file(path)?,
            None => options,
        };
        let recipe = options.resolve()?;
        let compute = self.memory.of(context)?;
        let forecast = pipeline::forecast(&recipe, &context.hub, compute, context.ui)?;
        context.ui.finish();
        if self.json {
            print_json(&serde_json::to_string_pretty(&forecast)?)?;
        } else {
            print_result(&forecast_table(&forecast, page_width(), stdout_color()))?;
        }
        Ok(Outcome::Fine)
    }
}

//! `softlm verify`

use super::page::print_result;
use super::values::switch;
use super::{Context, Outcome};
use crate::checkpoint::{self, Section};
use crate::pipeline;
use anyhow::Result;
use clap::Args;
use serde_json::json;

#[derive(Args)]
pub struct Verify {
    /// Folder to check
    output: String,
    /// The model it was made from: proves that nothing is missing
    #[arg(long, env = "SOFTLM_AGAINST")]
    against: Option<String>,
    /// Print one JSON object
    #[arg(long, env = "SOFTLM_JSON", value_parser = switch())]
    json: bool,
}

impl Verify {
    pub fn run(self, context: &Context) -> Result<Outcome> {
        let output = pipeline::open_source(&self.output, &context.hub)?;
        let made_from = Section::of(output.config()).and_then(|section| section.base_model);
        let base = match (&self.against, &made_from) {
            (Some(name), _) => Some(pipeline::open_source(name, &context.hub)?),
            // Without the original what can be checked alone still is.
            (None, Some(name)) => pipeline::open_source(name, &context.hub).ok(),
            (None, None) => None,
        };
        let result = checkpoint::verify(&output, base.as_ref())?;
        if self.json {
            print_result(
                &json!({
                    "schema": 1,
                    "model": self.output,
                    "against": base.as_ref().map(|b| b.label()),
                    "tensors": result.tensors,
                    "factorised": result.factorised,
                    "problems": result.problems,
                })
                .to_string(),
            )?;
        } else {
            let mut text =
                format!("{}: {} tensors, {} factorised linears", self.output, result.tensors, result.factorised);
            text += &match &base {
                Some(base) => format!(", compared with {}\n", base.label()),
                None => ", original not at hand: checked alone\n".to_string(),
            };
            for problem in &result.problems {
                text += &format!("problem: {problem}\n");
            }
            if result.problems.is_empty() {
                text += "whole\n";
            }
            print_result(&text)?;
        }
        Ok(if result.problems.is_empty() { Outcome::Fine } else { Outcome::CheckFailed })
    }
}

//! `softlm verify`

use super::page::{print_json, print_result};
use super::values::switch;
use super::{Context, Outcome};
use crate::checkpoint::Source;
use crate::model;
use crate::pipeline::{self, Found, Original};
use crate::progress::Progress;
use crate::visible::visible;
use anyhow::Result;
use clap::Args;
use serde_json::json;

#[derive(Args)]
pub struct Verify {
    /// Folder to check
    output: String,
    /// Where the model is now that it was made from; its hashes must be the recorded ones [default: where it was]
    #[arg(long, env = "SOFTLM_BASE", conflicts_with = "against")]
    base: Option<String>,
    /// Compare with this model, whichever it is, instead of the one it was made from
    #[arg(long, env = "SOFTLM_AGAINST")]
    against: Option<String>,
    /// Print one JSON object
    #[arg(long, env = "SOFTLM_JSON", value_parser = switch())]
    json: bool,
}

impl Verify {
    pub fn run(self, context: &Context) -> Result<Outcome> {
        let output = pipeline::open_source(&self.output, &context.hub)?;
        let original = Original::of(&output)?;
        let base = self.base(original.as_ref(), context)?;
        // A folder without a tokenizer is a model all the same.
        let tokens = pipeline::tokenizer(&output).ok().map(|tokenizer| tokenizer.vocab_size());
        let mut result = model::verify(&output, base.as_ref(), tokens)?;
        let changes = original.as_ref().map(|original| original.changes(&output)).transpose()?;
        match &changes {
            Some(Some(changes)) => {
                let said =
                    changes.iter().map(|change| format!("{change}: it was changed or damaged after it was written."));
                result.problems.splice(0..0, said);
            }
            Some(None) => {
                result.notes.push("it does not record its own hashes: changed weights cannot be seen".to_string())
            }
            None => {}
        }
        if self.json {
            print_json(
                &json!({
                        "schema": 1,
                        "model": self.output,
                        "against": base.as_ref().map(|b| b.label()),
                        "tensors": result.tensors,
                        "factorised": result.factorised,
                        "unused_tensors": result.unused,
                        "as_recorded": changes.flatten().map(|changes| changes.is_empty()),
                        "problems": result.problems,
                        "notes": result.notes,
                })
                .to_string(),
            )?;
        } else {
            let mut text = format!(
                "{}: {} tensors, {} factorised linears",
                visible(&self.output),
                result.tensors,
                result.factorised
            );
            text += &match &base {
                Some(base) => format!(", compared with {}\n", visible(base.label())),
                None => ", original not at hand: checked alone\n".to_string(),
            };
            if let (count @ 1.., Some(first)) = (result.unused.len(), result.unused.first()) {
                text += &format!("{count} of the tensors are read by nothing, {} for one\n", visible(first));
            }
            for note in &result.notes {
                text += &format!("note: {}\n", visible(note));
            }
            for problem in &result.problems {
                text += &format!("problem: {}\n", visible(problem));
            }
            if result.problems.is_empty() {
                text += "whole\n";
            }
            print_result(&text)?;
        }
        Ok(if result.problems.is_empty() { Outcome::Fine } else { Outcome::CheckFailed })
    }

    /// What to compare with. Without the original what can be checked alone still is.
    fn base(&self, original: Option<&Original>, context: &Context) -> Result<Option<Source>> {
        match (&self.against, original) {
            (Some(name), _) => pipeline::open_source(name, &context.hub).map(Some),
            (None, Some(original)) => match original.find(self.base.as_deref(), &context.hub, context.ui)? {
                Found::Here(source) => Ok(Some(*source)),
                Found::Absent(e) => {
                    context.ui.note(&format!(
                        "{} was made from {}, which cannot be opened: {e:#}; --base PATH says where it is now",
                        self.output,
                        original.name()
                    ));
                    Ok(None)
                }
            },
            (None, None) => pipeline::refuse_base(&self.output, self.base.as_deref()).map(|()| None),
        }
    }
}

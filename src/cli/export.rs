//! `softlm export`

use super::page::{print_json, print_result};
use super::values::switch;
use super::{Context, Outcome};
use crate::export::{ExportOptions, FACTORS_SCHEMA, Form, export};
use crate::pipeline::{self, Original};
use crate::recipe::{StoredType, parse_bytes};
use crate::report::bytes;
use crate::user_bail;
use crate::visible::visible;
use anyhow::Result;
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  softlm export out --to dense -o out-dense      loads wherever the base loads: transformers, llama.cpp's converter, …
  softlm export out --to plain -o out-plain      an output of lorap: as small as pruning made it, without factors
  softlm export out --to factors -o out-factors  the factors as they are, and factors.json that says which is what
  softlm export --schema                         JSON Schema of factors.json

dense and plain need none of softlm's code and have none of its size: products of factors are matrices again, only the
narrower feed-forward layers of `plain` stay smaller. A learned method adds biases to layers that had none; where the
base's config.json has a key for such biases it is set, otherwise the export is refused (`compress --deviation false`
adds none).";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Export {
    /// Folder that `softlm compress` wrote
    #[arg(required_unless_present = "schema")]
    model: Option<String>,
    /// What to write
    #[arg(long, env = "SOFTLM_TO", required_unless_present = "schema")]
    to: Option<Form>,
    /// New folder
    #[arg(short, long, env = "SOFTLM_OUTPUT", required_unless_present = "schema")]
    output: Option<PathBuf>,
    /// Type of all weights; auto leaves each its own and gives a product that of its factors
    #[arg(long, env = "SOFTLM_DTYPE", default_value = "auto")]
    dtype: StoredType,
    /// Largest weight file
    #[arg(long, env = "SOFTLM_MAX_SHARD_SIZE", default_value = "5GB")]
    max_shard_size: String,
    /// Replace an earlier export or output
    #[arg(long, env = "SOFTLM_FORCE", value_parser = switch())]
    force: bool,
    /// Print the JSON Schema of factors.json and do nothing else
    #[arg(long, exclusive = true)]
    schema: bool,
    /// Print one JSON object
    #[arg(long, env = "SOFTLM_JSON", value_parser = switch())]
    json: bool,
}

impl Export {
    pub fn run(self, context: &Context) -> Result<Outcome> {
        if self.schema {
            print_result(FACTORS_SCHEMA)?;
            return Ok(Outcome::Fine);
        }
        let (Some(model), Some(form), Some(output)) = (self.model, self.to, self.output) else {
            user_bail!("an export needs a model, --to and -o"; "for example softlm export out --to dense -o out-dense");
        };
        let options = ExportOptions {
            form,
            output,
            dtype: self.dtype,
            max_shard_bytes: parse_bytes("--max-shard-size", &self.max_shard_size)?,
            force: self.force,
        };
        let source = pipeline::open_source(&model, &context.hub)?;
        if let Some(original) = Original::of(&source)? {
            original.check_output(&source, context.ui)?;
        }
        let exported = export(source, &options, context.ui)?;
        context.ui.finish();
        let place = options.output.display();
        if self.json {
            let mut facts = json!({ "schema": 1, "model": model, "output": options.output });
            if let (Some(facts), Some(more)) = (facts.as_object_mut(), json!(exported).as_object()) {
                facts.extend(more.clone());
            }
            print_json(&facts.to_string())?;
            return Ok(Outcome::Fine);
        }
        let mut text = format!(
            "{}: {} tensors, {} computed, {} ({} in {})\n",
            visible(&place.to_string()),
            exported.tensors,
            exported.computed,
            bytes(exported.bytes),
            bytes(exported.bytes_before),
            visible(&model),
        );
        for note in &exported.notes {
            text += &format!("note: {}\n", visible(note));
        }
        print_result(&text)?;
        Ok(Outcome::Fine)
    }
}

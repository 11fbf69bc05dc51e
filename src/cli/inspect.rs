//! `softlm inspect`

use super::page::{page_width, print_json, print_result, stdout_color};
use super::values::switch;
use super::{Context, Outcome};
use crate::calibrate::StatsStore;
use crate::checkpoint::Source;
use crate::model::{Model, UNBOUNDED};
use crate::pipeline::{self, checkpoint_sizes};
use crate::report::{self, Report, UnusedTensors};
use crate::visible::visible;
use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::{Value, json};
use std::path::Path;

/// Key of the tensors that nothing reads.
const UNUSED: &str = "unused_tensors";
/// Names of them in a line.
const NAMED: usize = 8;

#[derive(Args)]
pub struct Inspect {
    /// A model (`demo`, folder, hub id), an output, or a folder of statistics
    what: String,
    /// List every tensor
    #[arg(long, env = "SOFTLM_TENSORS", value_parser = switch())]
    tensors: bool,
    /// Print one JSON object
    #[arg(long, env = "SOFTLM_JSON", value_parser = switch())]
    json: bool,
}

impl Inspect {
    pub fn run(self, context: &Context) -> Result<Outcome> {
        let path = Path::new(&self.what);
        if StatsStore::is_there(path) {
            return self.statistics(path);
        }
        let source = pipeline::open_source(&self.what, &context.hub)?;
        if self.json {
            print_json(&describe(&source, context)?.to_string())?;
            return Ok(Outcome::Fine);
        }
        if let Some(report) = source.side_file("report.json")?.filter(|_| !self.tensors) {
            let report: Report = serde_json::from_slice(&report).context("report.json is damaged")?;
            print_result(&report::table(&report, page_width(), stdout_color()))?;
            print_result(&report::details(&report))?;
            if let Some(unused) = &report.model.unused_tensors {
                print_result(&format!("unused: {}\n", visible(&unused.describe(NAMED))))?;
            }
            return Ok(Outcome::Fine);
        }
        print_result(&self.listing(&source, context)?)?;
        Ok(Outcome::Fine)
    }

    fn listing(&self, source: &Source, context: &Context) -> Result<String> {
        let facts = describe(source, context)?;
        let mut text = String::new();
        for (key, value) in facts.as_object().into_iter().flatten().filter(|(key, _)| *key != "tensors") {
            let value = match (key.as_str(), value) {
                (UNUSED, names) => unused(names),
                (_, Value::String(text)) => text.clone(),
                (_, value) => value.to_string(),
            };
            text += &format!("{key:<16} {}\n", visible(&value));
        }
        if self.tensors {
            for tensor in facts["tensors"].as_array().into_iter().flatten() {
                let name = visible(tensor["name"].as_str().unwrap_or_default());
                text +=
                    &format!("{name:<56} {:<5} {}\n", tensor["dtype"].as_str().unwrap_or_default(), tensor["shape"]);
            }
        }
        Ok(text)
    }

    fn statistics(&self, path: &Path) -> Result<Outcome> {
        let store = StatsStore::open(path)?.context("no statistics")?;
        let mut blocks = Vec::new();
        let present = store.present()?;
        for &index in &present {
            for (site, stats) in store.get(index)? {
                blocks.push(json!({
                    "block": index, "site": site.to_string(), "width": stats.width(), "tokens": stats.tokens,
                    "heldout_tokens": stats.heldout_tokens(),
                }));
            }
        }
        if self.json {
            let finished = store.is_finished();
            let facts = json!({ "schema": 1, "finished": finished, "origin": store.origin, "sites": blocks });
            print_json(&facts.to_string())?;
            return Ok(Outcome::Fine);
        }
        let origin = &store.origin;
        let mut text = format!("model            {}\nblocks           {}\n", visible(&origin.model), origin.blocks);
        if !store.is_finished() {
            text += &format!("finished         {} of {} blocks\n", present.len(), origin.blocks);
        }
        text += &format!("softlm           {}\n", visible(&origin.softlm));
        for line in &origin.texts {
            text += &format!("text             {}\n", visible(line));
        }
        for site in blocks {
            text += &format!(
                "block {:<4} {:<9} width {:<6} tokens {:<8} held out {}\n",
                site["block"],
                site["site"].as_str().unwrap_or_default(),
                site["width"],
                site["tokens"],
                site["heldout_tokens"]
            );
        }
        print_result(&text)?;
        Ok(Outcome::Fine)
    }
}

/// A line about the tensors that nothing reads.
fn unused(names: &Value) -> String {
    let names: Vec<String> =
        names.as_array().into_iter().flatten().filter_map(|name| name.as_str().map(str::to_string)).collect();
    match names.len() {
        0 => "none".to_string(),
        count => UnusedTensors { count, names }.describe(NAMED),
    }
}

/// What the headers say. A model of an unknown family is still shown as tensors.
fn describe(source: &Source, context: &Context) -> Result<Value> {
    let (params, bytes) = checkpoint_sizes(source);
    let shape = |name: &str| source.info(name).map(|info| info.shape.clone());
    let tensors: Vec<Value> = source
        .names()
        .map(|name| {
            let dtype = source.info(name).map(|info| format!("{:?}", info.dtype));
            json!({ "name": name, "dtype": dtype, "shape": shape(name) })
        })
        .collect();
    let mut facts = json!({
        "model": source.label(),
        "model_type": source.config().get("model_type"),
        "parameters": params,
        "bytes": bytes,
        "files": source.files().len(),
        "tensor_count": tensors.len(),
    });
    if let Some(section) = source.config().get("softlm") {
        facts["softlm"] = section.clone();
    }
    let model = Model::load(source.clone(), &context.device);
    if let Err(error) = &model {
        facts["not_run"] = json!(format!("{error:#}"));
    }
    if let Ok(model) = model {
        if model.inside().is_some() {
            facts["family"] = json!(model.described_family());
        }
        facts["blocks"] = json!(model.blocks());
        facts["hidden"] = json!(model.hidden());
        facts["linears"] = json!(model.linears().len());
        facts["vocabulary"] = json!(model.vocab());
        facts["context"] = json!(Some(model.context()).filter(|&context| context != UNBOUNDED));
        if model.is_encoder() {
            facts["encoder"] = json!(model.output());
        }
        facts[UNUSED] = json!(model.unused_tensors());
    }
    facts["tensors"] = json!(tensors);
    Ok(facts)
}

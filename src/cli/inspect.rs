//! `softlm inspect`

use super::page::{Pieces, page_width, print_json, print_result, stdout_color};
use super::values::switch;
use super::{Context, Outcome};
use crate::calibrate::StatsStore;
use crate::checkpoint::{Source, TensorInfo};
use crate::model::{Model, UNBOUNDED};
use crate::pipeline::{self, checkpoint_sizes};
use crate::report::{self, Report, UnusedTensors};
use crate::visible::visible;
use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::{Map, Value, json};
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
            list_json(&source, context)?;
            return Ok(Outcome::Fine);
        }
        if let Some(report) = source.side_file("report.json")?.filter(|_| !self.tensors) {
            let report = Report::parse(&report, &format!("the report.json of {}", self.what))?;
            print_result(&report::table(&report, page_width(), stdout_color()))?;
            print_result(&report::details(&report))?;
            if let Some(unused) = &report.model.unused_tensors {
                print_result(&format!("unused: {}\n", visible(&unused.describe(NAMED))))?;
            }
            return Ok(Outcome::Fine);
        }
        self.list(&source, context)?;
        Ok(Outcome::Fine)
    }

    fn list(&self, source: &Source, context: &Context) -> Result<()> {
        let (facts, model) = describe(source, context)?;
        let mut lines = Pieces::text();
        for (key, value) in &facts {
            let value = match value {
                Value::String(text) => text.clone(),
                value => value.to_string(),
            };
            lines.push(&format!("{key:<16} {}\n", visible(&value)))?;
        }
        if let Some(model) = &model {
            let unused = UnusedTensors::of(model).map_or("none".to_string(), |unused| unused.describe(NAMED));
            lines.push(&format!("{UNUSED:<16} {}\n", visible(&unused)))?;
        }
        if self.tensors {
            for (name, info) in tensors(source) {
                let (name, dtype) = (visible(name), format!("{:?}", info.dtype));
                lines.push(&format!("{name:<56} {dtype:<5} {}\n", json!(info.shape)))?;
            }
        }
        lines.end()
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

fn tensors(source: &Source) -> impl Iterator<Item = (&str, &TensorInfo)> {
    source.names().filter_map(|name| Some((name, source.info(name)?)))
}

/// One object with everything, tensors last.
fn list_json(source: &Source, context: &Context) -> Result<()> {
    let (facts, model) = describe(source, context)?;
    let mut json = Pieces::json();
    let whole = Value::Object(facts).to_string();
    json.push(whole.strip_suffix('}').unwrap_or(&whole))?;
    let mut list = |key: &str, items: &mut dyn Iterator<Item = Value>| -> Result<()> {
        json.push(&format!(",\"{key}\":["))?;
        for (i, item) in items.enumerate() {
            json.push(&format!("{}{item}", if i > 0 { "," } else { "" }))?;
        }
        json.push("]")
    };
    if let Some(model) = &model {
        list(UNUSED, &mut model.unused_tensors().into_iter().map(Value::from))?;
    }
    let tensor = |(name, info): (&str, &TensorInfo)| json!({ "name": name, "dtype": format!("{:?}", info.dtype), "shape": info.shape });
    list("tensors", &mut tensors(source).map(tensor))?;
    json.push("}\n")?;
    json.end()
}

/// What the headers say. A model of an unknown family is still shown as tensors.
fn describe(source: &Source, context: &Context) -> Result<(Map<String, Value>, Option<Model>)> {
    let (params, bytes) = checkpoint_sizes(source);
    let mut facts = Map::new();
    let mut fact = |key: &str, value: Value| drop(facts.insert(key.to_string(), value));
    fact("model", json!(source.label()));
    fact("model_type", json!(source.config().get("model_type")));
    fact("parameters", json!(params));
    fact("bytes", json!(bytes));
    fact("files", json!(source.files().len()));
    fact("tensor_count", json!(source.names().count()));
    if let Some(section) = source.config().get("softlm") {
        fact("softlm", section.clone());
    }
    let model = match Model::load(source.clone(), &context.compute) {
        Ok(model) => model,
        Err(error) => {
            fact("not_run", json!(format!("{error:#}")));
            return Ok((facts, None));
        }
    };
    if model.inside().is_some() {
        fact("family", json!(model.described_family()));
    }
    fact("blocks", json!(model.blocks()));
    fact("hidden", json!(model.hidden()));
    fact("linears", json!(model.linears().len()));
    fact("vocabulary", json!(model.vocab()));
    fact("context", json!(Some(model.context()).filter(|&context| context != UNBOUNDED)));
    if model.is_encoder() {
        fact("encoder", json!(model.output()));
    }
    Ok((facts, Some(model)))
}

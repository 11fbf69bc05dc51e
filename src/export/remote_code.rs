//! Outputs as transformers loads them: `modeling_softlm.py`, which every output carries, and what config.json tells it.
//!
//! The loading code builds the base's own class and replaces the linears that config.json lists, so it needs no table of
//! families. [`StoredLinear`] is one entry of that list.

use crate::checkpoint::{Entry, FORMAT, Section, wrap_config};
use crate::model::{LinearSpec, Model, Output, Stored};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Name and content of the file with the loading code.
pub const LOADING_CODE: (&str, &str) = ("modeling_softlm.py", include_str!("modeling_softlm.py"));

/// The heads that the loading code has a class for.
const HEADS: [&str; 5] =
    ["ForCausalLM", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"];

/// How a linear that differs from the base's is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredLinear {
    /// Inputs.
    #[serde(rename = "in")]
    pub input: usize,
    /// Outputs.
    pub out: usize,
    /// Rank of the factors `<name>.factor_a.weight` (rank, in) and `<name>.factor_b.weight` (out, rank); a dense
    /// `<name>.weight` without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// Whether it has a bias: `<name>.bias`, or for a part of a fused matrix the slice of that matrix's.
    pub bias: bool,
    /// Whether the dense weight is stored as (in, out).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub transposed: bool,
    /// The fused matrix that it is a part of in the base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_of: Option<String>,
    /// Which outputs of that matrix: start, run and stride of [`RowRuns`](crate::model::RowRuns). A run of null reaches to the
    /// next part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<(usize, Option<usize>, usize)>,
    /// Of fewer outputs per head than the base has: the heads, and the dimensions that one has in the base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_heads: Option<(usize, usize)>,
    /// The same of inputs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_heads: Option<(usize, usize)>,
}

/// config.json of an output: that of `model`, the base, with the section and the marks of an output.
///
/// `stored` is everything that the output holds; `widths` are new feed-forward widths by their key.
pub fn output_config(
    model: &Model,
    stored: &[Entry],
    widths: &BTreeMap<&str, usize>,
    section: Section,
) -> Map<String, Value> {
    let shapes: BTreeMap<&str, &[usize]> = stored.iter().map(|e| (e.name.as_str(), e.shape.as_slice())).collect();
    let mut config = model.source().config().clone();
    let mut section = Section { format: FORMAT, ..section };
    for (&key, &width) in widths {
        let before = model.config_in(&mut config).insert(key.to_string(), json!(width));
        section.base_config.insert(format!("{}{key}", model.config_path()), before.unwrap_or(Value::Null));
    }
    let (architecture, auto_map) = classes(model);
    wrap_config(config, section, linears(model, &shapes), &architecture, auto_map)
}

/// Every linear that is stored in another way than the base has it, by name.
fn linears(model: &Model, shapes: &BTreeMap<&str, &[usize]>) -> Value {
    let shape = |name: &str, suffix: &str| shapes.get(format!("{name}.{suffix}").as_str()).copied();
    let is_split = |matrix: &str| shape(matrix, "weight").is_none();
    let split: BTreeSet<&str> = model.linears().iter().filter_map(LinearSpec::fused).filter(|m| is_split(m)).collect();
    let mut found = Map::new();
    for spec in model.linears() {
        let own_bias = shape(&spec.name, "bias").is_some();
        let mut entry = StoredLinear {
            input: spec.input,
            out: spec.out,
            rank: None,
            bias: own_bias,
            transposed: false,
            part_of: None,
            rows: None,
            out_heads: None,
            in_heads: None,
        };
        let fused = spec.fused().filter(|matrix| split.contains(matrix));
        if let Some(matrix) = fused {
            entry.part_of = Some(matrix.to_string());
            if let Stored::Part { rows, .. } = &spec.stored {
                entry.rows = Some((rows.start, (rows.run != usize::MAX).then_some(rows.run), rows.stride));
            }
        }
        if let (Some(a), Some(b)) = (shape(&spec.name, "factor_a.weight"), shape(&spec.name, "factor_b.weight")) {
            (entry.rank, entry.input, entry.out) = (a.first().copied(), a[1], b[0]);
        } else if let Some(&[rows, columns]) = shape(&spec.name, "weight") {
            entry.transposed = spec.transposed() && fused.is_none();
            (entry.out, entry.input) = if entry.transposed { (columns, rows) } else { (rows, columns) };
            let same = (entry.out, entry.input) == (spec.out, spec.input);
            if same && fused.is_none() && own_bias == spec.bias {
                continue;
            }
        } else {
            continue;
        }
        let heads = model.heads(spec.id.block);
        let heads = heads.and_then(|heads| Some((heads.count(spec.id.role)?, heads.head_dim)));
        entry.out_heads = heads.filter(|_| entry.out != spec.out);
        entry.in_heads = heads.filter(|_| entry.input != spec.input);
        found.insert(spec.name.clone(), json!(entry));
    }
    Value::Object(found)
}

/// The loading code's class for the head of `model`, and which of its classes the Auto classes stand for.
fn classes(model: &Model) -> (String, Value) {
    let class = |head: &str| format!("Softlm{head}");
    let autos = [("AutoConfig".to_string(), class("Config")), ("AutoModel".to_string(), class("Model"))];
    let heads = HEADS.map(|head| (format!("AutoModel{head}"), class(head)));
    let map = autos.into_iter().chain(heads).map(|(auto, class)| (auto, json!(format!("modeling_softlm.{class}"))));
    // Heads that softlm does not run are stored all the same.
    let given = model.source().config().get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
    let head = match model.output() {
        Output::NextToken => "ForCausalLM",
        Output::MaskedToken => "ForMaskedLM",
        Output::Classes(_) => "ForSequenceClassification",
        Output::States => {
            HEADS.into_iter().find(|head| given.is_some_and(|given| given.ends_with(head))).unwrap_or("Model")
        }
    };
    (class(head), Value::Object(map.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::GUARD;

    #[test]
    fn the_loading_code_knows_the_format_and_takes_the_guard_out() {
        let code = LOADING_CODE.1;
        assert!(code.contains(&format!("\nFORMAT = {FORMAT}\n")));
        let plain = |text: &str| text.replace(['"', '\n', ' '], "");
        assert!(plain(code).contains(&plain(GUARD)));
        assert!(HEADS.iter().all(|head| code.contains(&format!("class Softlm{head}"))));
    }
}

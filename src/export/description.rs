//! `factors.json`: what the raw format holds, for programs that are to run it. Its schema is `factors.schema.json`.

use super::linears::{Held, bias_name, factors, own_bias, own_weight};
use super::plan::Plan;
use crate::checkpoint::{Dtype, Section, Source, family_config};
use crate::model::{Description, LinearSpec, Stored};
use anyhow::Result;
use serde::Serialize;
use serde_json::{Map, Value};

/// Name of the description in the raw format.
pub const FACTORS_FILE: &str = "factors.json";

/// JSON Schema of the file.
pub const FACTORS_SCHEMA: &str = include_str!("factors.schema.json");

const VERSION: u32 = 1;

#[derive(Serialize)]
pub(super) struct Factors<'a> {
    format: &'static str,
    version: u32,
    softlm: &'static str,
    method: String,
    keep: f64,
    base: Base,
    config: Map<String, Value>,
    linears: Vec<LinearEntry>,
    tensors: Vec<TensorEntry<'a>>,
}

#[derive(Serialize)]
struct Base {
    name: Option<String>,
    revision: Option<String>,
    model_type: &'static str,
}

#[derive(Serialize)]
struct LinearEntry {
    id: String,
    name: String,
    #[serde(rename = "in")]
    input: usize,
    out: usize,
    #[serde(flatten)]
    weight: Weight,
    #[serde(skip_serializing_if = "Option::is_none")]
    bias: Option<Part>,
    #[serde(skip_serializing_if = "Option::is_none")]
    heads: Option<HeadsLeft>,
}

/// Heads whose values have fewer dimensions than the base's.
#[derive(Serialize)]
struct HeadsLeft {
    count: usize,
    base_dimensions: usize,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Weight {
    Factors { rank: usize, a: String, b: String },
    Dense { weight: Part },
}

/// A tensor, or some of its rows.
#[derive(Serialize)]
struct Part {
    tensor: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    transposed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    rows: Option<Rows>,
}

#[derive(Serialize)]
struct Rows {
    start: usize,
    run: usize,
    stride: usize,
}

#[derive(Serialize)]
struct TensorEntry<'a> {
    name: &'a str,
    dtype: String,
    shape: &'a [usize],
    file: String,
}

/// Describes what `plan` wrote; `file_of` tells where.
pub(super) fn factors_json(
    source: &Source,
    have: &Description,
    held: &[Held],
    plan: &Plan,
    file_of: impl Fn(&str) -> String,
) -> Result<Vec<u8>> {
    let section = Section::of(source.config()).unwrap_or_default();
    let tensor = |(name, dtype, shape): (_, Dtype, _)| TensorEntry {
        name,
        dtype: dtype.to_string(),
        shape,
        file: file_of(name),
    };
    let factors = Factors {
        format: "softlm-factors",
        version: VERSION,
        softlm: env!("CARGO_PKG_VERSION"),
        method: section.method,
        keep: section.keep,
        base: Base { name: section.base_model, revision: section.base_revision, model_type: have.family() },
        config: family_config(source.config()),
        linears: held.iter().map(|linear| linear_entry(source, have, linear)).collect(),
        tensors: plan.tensors().map(tensor).collect(),
    };
    let mut json = serde_json::to_vec_pretty(&factors)?;
    json.push(b'\n');
    Ok(json)
}

fn linear_entry(source: &Source, have: &Description, Held { spec, rank }: &Held) -> LinearEntry {
    let own = |name: String| Part { tensor: name, transposed: false, rows: None };
    let weight = match rank {
        Some(rank) => {
            let [a, b] = factors(spec);
            Weight::Factors { rank: *rank, a, b }
        }
        None if spec.fused().is_some() && source.is_stored(&own_weight(spec)) => {
            Weight::Dense { weight: own(own_weight(spec)) }
        }
        None => Weight::Dense {
            weight: Part { tensor: spec.weight_name(), transposed: spec.transposed(), rows: rows(spec) },
        },
    };
    let bias = spec.bias.then(|| match source.is_stored(&own_bias(spec)) {
        true => own(own_bias(spec)),
        false => Part { rows: rows(spec), ..own(bias_name(spec)) },
    });
    let heads = heads_left(have, spec);
    LinearEntry {
        id: spec.id.to_string(),
        name: spec.name.clone(),
        input: spec.input,
        out: spec.out,
        weight,
        bias,
        heads,
    }
}

/// What is left of the heads of v or o, if their values are smaller than the base's.
fn heads_left(have: &Description, spec: &LinearSpec) -> Option<HeadsLeft> {
    let heads = have.heads(spec.id.block)?;
    let count = heads.count(spec.id.role)?;
    let smaller = spec.inner() != Some(count * heads.head_dim);
    smaller.then_some(HeadsLeft { count, base_dimensions: heads.head_dim })
}

/// Which rows of a fused matrix a linear is.
fn rows(spec: &LinearSpec) -> Option<Rows> {
    match (&spec.stored, spec.fused()) {
        (Stored::Part { rows, .. }, Some(_)) => {
            let run = rows.run.min(spec.out);
            Some(Rows { start: rows.start, run, stride: if rows.run == run { rows.stride } else { run } })
        }
        _ => None,
    }
}

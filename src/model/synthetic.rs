//! What a plain checkpoint of a configuration holds, when there is none yet.

use super::needed::{Form, Needed};
use super::opened::describe;
use super::spec::LinearSpec;
use crate::checkpoint::{Section, Source};
use crate::user_bail;
use anyhow::Result;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Keys by which configurations call the number of blocks.
const BLOCKS: [&str; 4] = ["num_hidden_layers", "n_layer", "n_layers", "num_layers"];

/// What a tensor is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The weight of a linear in a block, or several of them side by side.
    Linear,
    /// What a norm multiplies with.
    Norm,
    /// What is added: a bias.
    Bias,
    /// Anything else: embeddings, heads, convolutions.
    Other,
}

/// A tensor of a checkpoint that does not exist yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// What it is good for.
    pub purpose: Purpose,
}

/// `config` with this many blocks; lists with an entry per block become as long.
///
/// # Errors
/// If the configuration says nowhere how many it has, or has too few for its lists.
pub fn with_blocks(config: &Map<String, Value>, blocks: usize) -> Result<Map<String, Value>> {
    let mut config = config.clone();
    let own = BLOCKS.iter().any(|key| config.contains_key(*key));
    let inner = config.get_mut("text_config").and_then(Value::as_object_mut).filter(|_| !own).cloned();
    let mut described = inner.clone().unwrap_or_else(|| config.clone());
    let Some((key, had)) = BLOCKS.iter().find_map(|key| Some((*key, described.get(*key)?.as_u64()? as usize))) else {
        user_bail!("config.json says nowhere how many blocks the model has"; "give it num_hidden_layers");
    };
    for (list, value) in &mut described {
        if let Some(entries) = value.as_array_mut().filter(|entries| entries.len() == had) {
            if blocks > had {
                user_bail!("{list} of config.json has {had} entries, not enough for {blocks} blocks"; "use fewer --blocks");
            }
            entries.truncate(blocks);
        }
    }
    described.insert(key.to_string(), blocks.into());
    if inner.is_some() {
        config.insert("text_config".to_string(), described.into());
        return Ok(config);
    }
    Ok(described)
}

/// Every tensor that a checkpoint of this configuration holds, each once, by name. An encoder has no head here: which one it
/// has is said by its tensors alone.
///
/// # Errors
/// If the family is not known, or the configuration is one of a compressed model.
pub fn describe_tensors(label: &str, config: Map<String, Value>) -> Result<Vec<Described>> {
    if Section::of(&config).is_some() {
        user_bail!("{label} is the configuration of a compressed model"; "use that of the model it was made from");
    }
    let mut source = Source::without_weights(label, config)?;
    let (layout, _) = describe(&mut source)?;
    let norms = layout.blocks.iter().flat_map(|block| &block.norms).chain(&layout.embedding.norm);
    let norms = norms.chain(layout.token_head().and_then(|head| head.norm.as_ref()));
    let of_norms: BTreeSet<String> = norms.filter_map(|norm| norm.parts(&source).into_iter().next()).collect();
    let mut tensors: BTreeMap<String, Described> = BTreeMap::new();
    let mut add = |name: String, shape: Vec<usize>, purpose: Purpose| {
        let known = tensors.entry(name.clone()).or_insert(Described { name, shape: shape.clone(), purpose });
        // Parts of a fused matrix: it reaches as far as the last of them.
        known.shape.iter_mut().zip(shape).for_each(|(known, size)| *known = size.max(*known));
    };
    for needed in layout.needed(&source) {
        match needed {
            Needed::Tensor(tensor) => {
                let purpose = match tensor.shape.len() {
                    _ if of_norms.contains(&tensor.name) => Purpose::Norm,
                    1 => Purpose::Bias,
                    _ => Purpose::Other,
                };
                add(tensor.name, tensor.shape, purpose);
            }
            Needed::Linear(spec) => {
                let (name, shape) = stored(spec, &source);
                add(name, shape, Purpose::Linear);
                if spec.bias {
                    let name = spec.bias_name(&source);
                    let own = name == format!("{}.bias", spec.name);
                    add(name, vec![if own { spec.out } else { reach(spec) }], Purpose::Bias);
                }
            }
        }
    }
    Ok(tensors.into_values().collect())
}

/// Rows that a fused matrix must have for this part.
fn reach(spec: &LinearSpec) -> usize {
    spec.row(spec.out - 1) + 1
}

/// The tensor a linear is read from, and the shape that it must have for that.
fn stored(spec: &LinearSpec, source: &Source) -> (String, Vec<usize>) {
    match spec.form(source) {
        Form::Matrix => {
            let rows = reach(spec);
            let shape = if spec.transposed() { vec![spec.input, rows] } else { vec![rows, spec.input] };
            (spec.weight_name(), shape)
        }
        Form::Own | Form::Factors => (spec.own_weight_name(), vec![spec.out, spec.input]),
    }
}

//! Checkpoints of real shapes and made-up weights: good for times and memory, not for perplexities.
//!
//! ```text
//! W = G₁ diag(k^-1/2) G₂ / √(in · Σ 1/k)        k = 1 … min(out, in), entries of G₁ and G₂ normal
//! ```
//! The weight of a linear has entries of about 1/√in and singular values that fall. Norms multiply with 1, biases are 0,
//! everything else is normal with entries of 0.02.

use crate::checkpoint::{Dtype, Entry, Origin, Source, encode, sync_folder, write_computed, write_file};
use crate::hash::sha256;
use crate::linalg::{RowMajor, nn_product};
use crate::model::{Described, Purpose, describe_tensors, with_blocks};
use crate::progress::Progress;
use crate::random::SplitMix64;
use crate::text::Tokenizer;
use crate::user_bail;
use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Rows that are made at a time.
const ROWS: usize = 256;
/// Rows of a product that one thread makes.
const ROWS_PER_THREAD: usize = 32;
/// Tokenizers are copied by these names.
const TOKENIZER: [&str; 4] = ["tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"];

/// What to write.
#[derive(Debug, Clone)]
pub struct SyntheticOptions {
    /// Number of blocks, if not the configuration's.
    pub blocks: Option<usize>,
    /// What the numbers follow from.
    pub seed: u64,
    /// Type of all tensors.
    pub dtype: Dtype,
}

/// Writes a checkpoint of the configuration `config` into the new or empty folder `output`; `config.json` comes last, so that
/// nothing takes an interrupted one for a model. The tokenizer beside `config` is copied; without one it is the demo's.
///
/// In memory: a factor of the largest weight, in f32, and a few of its rows. The bytes follow from the arguments alone.
pub fn write_synthetic(
    config: &Path,
    output: &Path,
    options: &SyntheticOptions,
    progress: &dyn Progress,
) -> Result<()> {
    let label = config.display().to_string();
    let mut described: Map<String, Value> = match serde_json::from_slice(&crate::checkpoint::read_settings(config)?) {
        Ok(described) => described,
        Err(error) => user_bail!("{label} is not a JSON object: {error}"; "give the config.json of a model"),
    };
    if let Some(blocks) = options.blocks {
        described = with_blocks(&described, blocks)?;
    }
    let tensors = describe_tensors(&label, described.clone())?;
    let tokenizer = tokenizer(config, &described)?;
    if output.exists() && fs::read_dir(output).map_or(true, |mut entries| entries.next().is_some()) {
        user_bail!("{} is there already", output.display(); "choose another -o");
    }
    fs::create_dir_all(output).with_context(|| format!("creating {}", output.display()))?;
    let entry = |tensor: &Described| Entry {
        name: tensor.name.clone(),
        dtype: options.dtype,
        shape: tensor.shape.clone(),
        from: Origin::Computed,
    };
    let entries: Vec<Entry> = tensors.iter().map(entry).collect();
    let by_name: BTreeMap<&str, &Described> = tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let nothing = Source::without_weights(&label, Map::new())?;
    progress.stage("writing", entries.len() as u64);
    let compute = |name: &str, write: &mut dyn FnMut(&[u8]) -> Result<()>| {
        make(by_name.get(name).with_context(|| format!("nobody described {name}"))?, options, write)?;
        progress.step(1)
    };
    write_computed(output, &entries, &nothing, 5_000_000_000, &BTreeMap::new(), &mut |_| {}, &compute)?;
    for (name, bytes) in tokenizer {
        write_file(&output.join(name), &bytes)?;
    }
    write_file(&output.join("config.json"), &serde_json::to_vec_pretty(&described)?)?;
    sync_folder(output)
}

/// The files of the tokenizer beside `config`, or of the demo's.
fn tokenizer(config: &Path, described: &Map<String, Value>) -> Result<Vec<(String, Vec<u8>)>> {
    let beside = config.parent().unwrap_or(Path::new("."));
    let mut files = Vec::new();
    for name in TOKENIZER {
        let path = beside.join(name);
        if path.exists() {
            files.push((name.to_string(), crate::checkpoint::read_settings(&path)?));
        }
    }
    if files.is_empty() {
        let demo = Source::demo();
        for name in &TOKENIZER[..2] {
            files.extend(demo.side_file(name)?.map(|bytes| (name.to_string(), bytes.into_owned())));
        }
        let file = |name: &str| Ok(files.iter().find(|(known, _)| known == name).map(|(_, bytes)| bytes.clone()));
        let needed = Tokenizer::load("demo", &file, demo.config())?.vocab_size();
        let inner = described.get("text_config").and_then(Value::as_object).unwrap_or(described);
        let vocab = inner.get("vocab_size").and_then(Value::as_u64).unwrap_or(0);
        if vocab < needed as u64 {
            user_bail!(
                "a vocabulary of {vocab} is too small for the demo's tokenizer, which has {needed} tokens";
                "put the model's own tokenizer.json beside its config.json"
            );
        }
    }
    Ok(files)
}

/// Passes the bytes of a tensor on, a few rows at a time.
fn make(tensor: &Described, options: &SyntheticOptions, write: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let count: usize = tensor.shape.iter().product();
    let seed = |part: &str| -> Result<u64> {
        let digest = sha256(format!("{} {} {part}", options.seed, tensor.name));
        Ok(u64::from_str_radix(&digest[..16], 16)?)
    };
    let constant = match tensor.purpose {
        Purpose::Norm => Some(1.0),
        Purpose::Bias => Some(0.0),
        Purpose::Linear | Purpose::Other => None,
    };
    if let Some(value) = constant {
        return write(&encoded(options.dtype, &vec![1.0; count], value)?);
    }
    let (rows, columns) = match tensor.shape[..] {
        [rows, columns] if tensor.purpose == Purpose::Linear => (rows, columns),
        _ => {
            let seed = seed("")?;
            let width = tensor.shape.last().copied().unwrap_or(1).max(1);
            let mut part = vec![0f32; (ROWS * width).min(count)];
            for first in (0..count).step_by(ROWS * width) {
                let part = &mut part[..(ROWS * width).min(count - first)];
                SplitMix64::fill_normal(seed, first, part);
                write(&encoded(options.dtype, part, 0.02)?)?;
            }
            return Ok(());
        }
    };
    let inner = rows.min(columns);
    let energy: f32 = (1..=inner).map(|k| 1.0 / k as f32).sum();
    let (left_seed, right_seed) = (seed("left")?, seed("right")?);
    let mut right = vec![0f32; inner * columns];
    right.par_chunks_mut(columns).enumerate().for_each(|(k, row)| {
        SplitMix64::fill_normal(right_seed, k * columns, row);
        let value = 1.0 / ((k + 1) as f32 * energy * columns as f32).sqrt();
        row.iter_mut().for_each(|x| *x *= value);
    });
    let right = RowMajor { data: &right, rows: inner, cols: columns, stride: columns };
    for first in (0..rows).step_by(ROWS) {
        let mut part = vec![0f32; ROWS.min(rows - first) * columns];
        part.par_chunks_mut(ROWS_PER_THREAD * columns).enumerate().for_each(|(i, out)| {
            let count = out.len() / columns;
            let mut left = vec![0f32; count * inner];
            SplitMix64::fill_normal(left_seed, (first + i * ROWS_PER_THREAD) * inner, &mut left);
            nn_product(out, columns, RowMajor { data: &left, rows: count, cols: inner, stride: inner }, right);
        });
        write(&encoded(options.dtype, &part, 1.0)?)?;
    }
    Ok(())
}

fn encoded(dtype: Dtype, numbers: &[f32], scale: f64) -> Result<Vec<u8>> {
    let numbers: Vec<f64> = numbers.iter().map(|x| f64::from(*x) * scale).collect();
    let mut bytes = Vec::new();
    match encode(&numbers, dtype, &mut bytes) {
        Ok(()) => Ok(bytes),
        Err(value) => bail!("{value} is beyond {dtype:?}"),
    }
}

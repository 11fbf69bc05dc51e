//! Proof that a checkpoint is whole: what can be checked of a folder alone. [`whole`](super::whole) compares it with
//! the model it came from.
//!
//! A factorised linear of shape (out, in) is stored as `<name>.factor_a.weight` (rank, in) and `<name>.factor_b.weight`
//! (out, rank), its bias as `<name>.bias`. Where a family fuses linears into one matrix `<fused>.weight`, such as q, k and
//! v, they may be stored apart as `<fused>.q`, `.k`, `.v`, each dense (out, in) or as factors, and `<fused>.weight` is
//! gone.

use super::convert;
use super::source::{Source, not_finite};
use super::whole;
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};

pub(super) const FACTOR_A: &str = ".factor_a.weight";
pub(super) const FACTOR_B: &str = ".factor_b.weight";
pub(super) const WEIGHT: &str = ".weight";
/// Linears that are stored transposed, (in, out), as long as they are whole and dense.
const TRANSPOSED: &[&str] = &["c_attn", "c_proj", "c_fc"];
/// Matrices that several linears share, and what these are called when they are stored apart.
const FUSED: &[(&str, &[&str])] = &[
    ("c_attn", &["q", "k", "v"]),
    ("qkv_proj", &["q", "k", "v"]),
    ("query_key_value", &["q", "k", "v"]),
    ("gate_up_proj", &["gate", "up"]),
];
/// Feed-forward layers by their names inside a block: those whose outputs are the channels, with how many outputs each
/// channel has, and the one whose inputs they are.
const FEED_FORWARD: &[(&[(&str, usize)], &str)] = &[
    (&[("gate_proj", 1), ("up_proj", 1), ("gate_up_proj", 2)], "down_proj"),
    (&[("gate_up_proj.gate", 1), ("gate_up_proj.up", 1)], "down_proj"),
    (&[("w1", 1), ("w3", 1)], "w2"),
    (&[("c_fc", 1)], "c_proj"),
    (&[("fc1", 1)], "fc2"),
    (&[("dense_h_to_4h", 1)], "dense_4h_to_h"),
];
/// Bytes checked for NaN before their pages are given back.
const STRIDE: usize = 4 << 20;

/// What [`verify`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verification {
    /// Stored tensors.
    pub tensors: usize,
    /// Linears stored as two factors.
    pub factorised: usize,
    /// Matrices stored dense, embeddings among them.
    pub dense: usize,
    /// One sentence for each thing that is wrong, with names and values; empty for a whole checkpoint.
    pub problems: Vec<String>,
}

/// Checks a checkpoint completely and collects everything that is wrong with it.
///
/// Alone: factors come in pairs of fitting shapes, with a rank below break-even and no dense twin; fused attention is
/// split completely or not at all; feed-forward widths agree within a block; the index lists every tensor where it is
/// and sums up to its `total_size`; no weight is NaN or infinite. With the `base` it was made from also: every tensor
/// of the base is there, dense or as factors, in its shape (a feed-forward layer may be narrower if `config.json` has a
/// `softlm` section), and nothing is there that the base does not explain.
///
/// # Errors
/// Only if a file cannot be read; findings are in [`Verification::problems`].
pub fn verify(output: &Source, base: Option<&Source>) -> Result<Verification> {
    let mut problems = Vec::new();
    let linears = factors(output, &mut problems);
    for (name, linear) in &linears {
        check_factors(output, name, linear, &mut problems);
    }
    check_parts(output, &mut problems);
    check_feed_forward(output, &mut problems);
    check_index(output, &mut problems);
    check_numbers(output, &mut problems)?;
    if let Some(base) = base {
        whole::compare(output, base, &mut problems);
    }
    let is_dense = |name: &&str| {
        let matrix = output.info(name).is_some_and(|info| info.shape.len() == 2);
        matrix && !name.ends_with(FACTOR_A) && !name.ends_with(FACTOR_B)
    };
    Ok(Verification {
        tensors: output.names().count(),
        factorised: linears.values().filter(|linear| linear.a.is_some() && linear.b.is_some()).count(),
        dense: output.names().filter(is_dense).count(),
        problems,
    })
}

/// The factors of a linear: (rows, columns) of each that is stored as a matrix.
#[derive(Debug, Default)]
struct Factors {
    a: Option<(usize, usize)>,
    b: Option<(usize, usize)>,
}

/// All linears of which a factor is stored.
fn factors(output: &Source, problems: &mut Vec<String>) -> BTreeMap<String, Factors> {
    let mut linears: BTreeMap<String, Factors> = BTreeMap::new();
    for name in output.names() {
        for (suffix, is_a) in [(FACTOR_A, true), (FACTOR_B, false)] {
            let Some(linear) = name.strip_suffix(suffix) else { continue };
            let found = linears.entry(linear.into()).or_default();
            match matrix(output, name) {
                Some(shape) if is_a => found.a = Some(shape),
                Some(shape) => found.b = Some(shape),
                None => problems.push(format!("{name} is not a matrix.")),
            }
        }
    }
    linears
}

fn check_factors(output: &Source, name: &str, linear: &Factors, problems: &mut Vec<String>) {
    if output.info(&format!("{name}{WEIGHT}")).is_some() {
        problems.push(format!("{name} is stored both dense and as factors."));
    }
    let (Some((rank, input)), Some((out, columns))) = (linear.a, linear.b) else {
        let is_stored = |suffix: &str| output.info(&format!("{name}{suffix}")).is_some();
        if !is_stored(FACTOR_A) || !is_stored(FACTOR_B) {
            let (there, gone) = if is_stored(FACTOR_A) { ("a", "b") } else { ("b", "a") };
            problems.push(format!("{name} has factor {there} but lacks factor {gone}."));
        }
        return;
    };
    if rank != columns {
        problems.push(format!("The factors of {name} disagree on the rank: {rank} in a, {columns} in b."));
        return;
    }
    if rank == 0 {
        problems.push(format!("{name} has factors of rank 0."));
    } else if rank * (out + input) >= out * input {
        problems.push(format!(
            "{name} has rank {rank}, which is not below break-even for shape ({out}, {input}): dense would be smaller."
        ));
    }
    if let Some(bias) = output.info(&format!("{name}.bias"))
        && bias.shape != [out]
    {
        problems.push(format!("{name}.bias has shape {:?}, but the layer has {out} outputs.", bias.shape));
    }
}

/// A fused attention matrix is there whole, or all its parts are.
fn check_parts(output: &Source, problems: &mut Vec<String>) {
    let fused: BTreeSet<&str> = output.names().filter_map(linear_of).filter_map(fused_of).collect();
    for fused in fused {
        if output.info(&format!("{fused}{WEIGHT}")).is_some() {
            problems.push(format!("{fused} is stored both whole and in parts."));
        }
        for part in parts_of(fused) {
            if shape_of(output, &format!("{fused}.{part}")).is_none() {
                problems.push(format!("{fused} is stored in parts, but {part} is missing."));
            }
        }
    }
}

/// Channels of a feed-forward layer are counted alike by all its linears and biases.
fn check_feed_forward(output: &Source, problems: &mut Vec<String>) {
    let linears: BTreeSet<&str> = output.names().filter_map(linear_of).collect();
    for linear in linears {
        let Some((block, leaf)) = linear.rsplit_once('.') else { continue };
        let Some((_, channels)) = shape_of(output, linear) else { continue };
        let layers = FEED_FORWARD.iter().filter(|(_, narrow)| *narrow == leaf);
        for (wide, each) in layers.flat_map(|(wide, _)| wide.iter()) {
            let wide = format!("{block}.{wide}");
            if let Some((out, _)) = shape_of(output, &wide)
                && out != channels * each
            {
                problems.push(format!("{wide} makes {} channels, but {linear} takes {channels}.", out / each));
            }
            if let Some(bias) = output.info(&format!("{wide}.bias"))
                && bias.shape != [channels * each]
            {
                problems
                    .push(format!("{wide}.bias has shape {:?}, but {linear} takes {channels} channels.", bias.shape));
            }
        }
    }
}

/// The index lists every tensor, each in the shard that holds it, and their total size.
fn check_index(output: &Source, problems: &mut Vec<String>) {
    let Some(index) = &output.index else { return };
    let mut total = 0;
    for name in output.names() {
        let Some(info) = output.info(name) else { continue };
        total += info.bytes() as u64;
        // Opening has checked the other direction: what is listed is there.
        if !index.weight_map.contains_key(name) {
            let file = output.file_of(info).name();
            problems.push(format!("{name} lies in {file}, but the index does not list it."));
        }
    }
    match index.total_size {
        Some(size) if size == total => {}
        Some(size) => problems.push(format!("The index gives {size} bytes in total, but the tensors have {total}.")),
        None => problems.push(format!("The index has no metadata.total_size; the tensors have {total} bytes.")),
    }
}

/// No stored weight is NaN or infinite. Reads everything, in the memory of one stride.
fn check_numbers(output: &Source, problems: &mut Vec<String>) -> Result<()> {
    for name in output.names() {
        let (file, info) = output.locate(name)?;
        let Some(size) = convert::float_size(info.dtype) else { continue };
        if is_buffer(name) {
            continue;
        }
        for start in info.range.clone().step_by(STRIDE) {
            let piece = start..info.range.end.min(start + STRIDE);
            let bad = convert::first_bad(info.dtype, file.at(piece.clone()));
            file.release(piece);
            if let Some(bad) = bad {
                let index = (start - info.range.start) / size + bad.index;
                problems.push(format!("{}.", not_finite(name, &info.shape, index, bad.stored)));
                break;
            }
        }
    }
    Ok(())
}

/// Masks and frequencies that old checkpoints store although the program computes them. A mask may hold infinities.
pub(super) fn is_buffer(name: &str) -> bool {
    let ends = [".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"];
    ends.iter().any(|end| name.ends_with(end))
}

/// The linear that a weight or factor belongs to.
pub(super) fn linear_of(name: &str) -> Option<&str> {
    [FACTOR_A, FACTOR_B, WEIGHT].iter().find_map(|suffix| name.strip_suffix(suffix))
}

/// The fused matrix that a linear is a part of.
pub(super) fn fused_of(linear: &str) -> Option<&str> {
    let (fused, part) = linear.rsplit_once('.')?;
    parts_of(fused).contains(&part).then_some(fused)
}

/// What the linears that share a matrix are called; none for a matrix that is one linear.
fn parts_of(linear: &str) -> &'static [&'static str] {
    FUSED.iter().find(|(fused, _)| *fused == leaf(linear)).map_or(&[], |(_, parts)| parts)
}

fn leaf(linear: &str) -> &str {
    linear.rsplit_once('.').map_or(linear, |(_, leaf)| leaf)
}

/// Which side of a linear counts feed-forward channels, and may be narrower after pruning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Channels {
    Out,
    In,
    Neither,
}

/// Where a linear's feed-forward channels are; `source` tells the attention's `c_proj` from the feed-forward one.
pub(super) fn channels(source: &Source, linear: &str) -> Channels {
    let Some((block, leaf)) = linear.rsplit_once('.') else { return Channels::Neither };
    let has = |(wide, _): &(&str, usize)| shape_of(source, &format!("{block}.{wide}")).is_some();
    for (wide, narrow) in FEED_FORWARD {
        if wide.iter().any(|(wide, _)| *wide == leaf) {
            return Channels::Out;
        }
        if *narrow == leaf && wide.iter().any(has) {
            return Channels::In;
        }
    }
    Channels::Neither
}

fn matrix(source: &Source, name: &str) -> Option<(usize, usize)> {
    match source.info(name)?.shape[..] {
        [rows, columns] => Some((rows, columns)),
        _ => None,
    }
}

/// (out, in) of a linear however it is stored: dense, as factors, or in parts that have the same inputs.
pub(super) fn shape_of(source: &Source, linear: &str) -> Option<(usize, usize)> {
    if let Some((rows, columns)) = matrix(source, &format!("{linear}{WEIGHT}")) {
        let transposed = TRANSPOSED.contains(&leaf(linear));
        return Some(if transposed { (columns, rows) } else { (rows, columns) });
    }
    let a = matrix(source, &format!("{linear}{FACTOR_A}"));
    let b = matrix(source, &format!("{linear}{FACTOR_B}"));
    if let (Some((_, input)), Some((out, _))) = (a, b) {
        return Some((out, input));
    }
    let parts: Option<Vec<_>> =
        parts_of(linear).iter().map(|part| shape_of(source, &format!("{linear}.{part}"))).collect();
    let parts = parts?;
    let input = parts.first()?.1;
    parts.iter().all(|part| part.1 == input).then(|| (parts.iter().map(|part| part.0).sum(), input))
}

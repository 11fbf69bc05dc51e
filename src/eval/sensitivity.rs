//! What the model's predictions lose when one part of a block alone is changed: KL(original ‖ changed), measured. Of an encoder
//! that predicts no tokens: 1 − the cosine between its final states and the original's.
//!
//! All variants share the original's states up to their own block. They go through the model in groups, so that each
//! block is read once per group and memory stays bounded whatever the depth.

use super::modules::cosine;
use super::score::logits;
use crate::forward::{States, each_block};
use crate::memory;
use crate::model::{Head, Linear, Model, Output, Role};
use crate::ops::Reference;
use crate::progress::Progress;
use crate::text::Windows;
use anyhow::Result;
use candle_core::Tensor;

/// Share of the memory for states that those of all variants take together: one part in so many.
pub const SENSITIVITY_STATES: usize = 8;

/// What replaces linears of a block.
pub type Replacements = Vec<(Role, Linear)>;

/// Linears of one block and what replaces them.
pub struct Variant<'a> {
    /// Which block.
    pub block: usize,
    /// Loads the replacements.
    pub load: Box<dyn Fn() -> Result<Replacements> + 'a>,
}

/// Mean KL(original ‖ variant) per token in nats, or mean 1 − cosine per token, for each variant. Variants must be in block order.
pub fn sensitivities(
    model: &Model,
    variants: &[Variant],
    windows: &Windows,
    progress: &dyn Progress,
) -> Result<Vec<f64>> {
    let tokens = windows.rows.len() * windows.window;
    let group = (model.compute().limits.states / SENSITIVITY_STATES / (4 * tokens * model.hidden()).max(1)).max(1);
    let ids: Vec<&[u32]> = windows.rows.iter().map(|w| w.ids.as_slice()).collect();
    let head = match model.output() {
        Output::NextToken | Output::MaskedToken => Some(model.head()?),
        Output::Classes(_) | Output::States => None,
    };
    let mut result = Vec::with_capacity(variants.len());
    for group in variants.chunks(group) {
        let mut original = States::embed(model, &ids)?;
        let mut changed: Vec<States> = Vec::with_capacity(group.len());
        let mut waiting = group.iter().peekable();
        each_block(model, |index, mut block| {
            for states in &mut changed {
                states.advance(&block)?;
            }
            while let Some(variant) = waiting.next_if(|v| v.block == index) {
                let swap = |(role, linear)| Ok((role, block.swap_linear(role, linear)?));
                let kept = (variant.load)()?.into_iter().map(swap).collect::<Result<Vec<_>>>()?;
                let mut states = original.copy()?;
                states.advance(&block)?;
                for (role, linear) in kept {
                    block.swap_linear(role, linear)?;
                }
                changed.push(states);
            }
            original.advance(&block)?;
            progress.step(group.len() as u64)
        })?;
        // What the blocks have left would keep logits apart from it.
        memory::trim();
        result.extend(match &head {
            Some(head) => compare(head, &original, &changed)?,
            None => changed.iter().map(|changed| turned(&original, changed)).collect::<Result<Vec<_>>>()?,
        });
    }
    Ok(result)
}

/// Mean KL per token of each of `changed` against `original`.
fn compare(head: &Head, original: &States, changed: &[States]) -> Result<Vec<f64>> {
    // The addends of every variant, read in one go.
    let mut addends = vec![Vec::new(); changed.len()];
    let mut tokens = 0;
    let chunk = head.positions_at_once(2);
    for (i, batch) in original.batches().enumerate() {
        let rows = flat(&batch?)?;
        let total = rows.dim(0)?;
        for start in (0..total).step_by(chunk) {
            let len = chunk.min(total - start);
            let reference = Reference::new(&logits(head, &rows, start, len)?)?;
            for (addends, states) in addends.iter_mut().zip(changed) {
                addends.push(reference.divergence(&logits(head, &flat(&states.batch(i)?)?, start, len)?)?);
            }
            tokens += len;
        }
    }
    let mean = |addends: Vec<Tensor>| -> Result<f64> {
        let sum = if addends.is_empty() { 0.0 } else { Tensor::cat(&addends, 0)?.to_vec1::<f64>()?.iter().sum() };
        // Rounding can leave a KL of two equal distributions just below zero.
        Ok((sum / tokens.max(1) as f64).max(0.0))
    };
    addends.into_iter().map(mean).collect()
}

/// Mean 1 − cosine per token.
fn turned(original: &States, changed: &States) -> Result<f64> {
    let (mut sum, mut tokens) = (0.0, 0);
    for (a, b) in original.batches().zip(changed.batches()) {
        let (a, b): (Vec<Vec<f32>>, Vec<Vec<f32>>) = (flat(&a?)?.to_vec2()?, flat(&b?)?.to_vec2()?);
        sum += a.iter().zip(&b).map(|(a, b)| 1.0 - cosine(a, b)).sum::<f64>();
        tokens += a.len();
    }
    Ok((sum / tokens.max(1) as f64).max(0.0))
}

fn flat(batch: &Tensor) -> Result<Tensor> {
    let (b, t, h) = batch.dims3()?;
    Ok(batch.reshape((b * t, h))?)
}

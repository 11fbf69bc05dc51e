//! Sequences of any length through an encoder, in batches padded to their longest.

use super::modules::Modules;
use crate::calibrate::BATCH_TOKENS;
use crate::model::Model;
use crate::progress::Progress;
use crate::text::{Padded, Sequence, Windows, batches};
use crate::user_bail;
use anyhow::{Context, Result};
use candle_core::Tensor;

/// Hidden states kept at once, in numbers (f32): 256 MiB.
const GROUP_ELEMENTS: usize = 64 << 20;

/// A batch behind the last block.
pub(super) struct Batch<'a> {
    /// Which sequences it holds.
    pub indices: &'a [usize],
    /// (sequences, t, hidden); what lies behind a sequence's length means nothing.
    pub states: &'a Tensor,
    pub lengths: &'a [usize],
}

/// Calls `see` with the final states of all sequences, batch by batch, the short ones first. Weights are read once per
/// group of batches. Steps once per sequence and block.
pub(super) fn each_batch(
    model: &Model,
    sequences: &[Sequence],
    progress: &dyn Progress,
    see: &mut dyn FnMut(Batch) -> Result<()>,
) -> Result<()> {
    let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.ids.len()).collect();
    if let Some(longest) = lengths.iter().max().filter(|&&t| t > model.context()) {
        user_bail!(
            "a text of {longest} tokens is longer than the model's context of {}", model.context();
            "use a smaller --max-length or --window"
        );
    }
    let batches = batches(&lengths, BATCH_TOKENS);
    let per_group = (GROUP_ELEMENTS / (BATCH_TOKENS * model.hidden()).max(1)).max(1);
    for group in batches.chunks(per_group) {
        let mut states: Vec<Tensor> =
            group.iter().map(|batch| embed(model, sequences, batch)).collect::<Result<_>>()?;
        let lengths: Vec<Vec<usize>> = group.iter().map(|batch| batch.iter().map(|&i| lengths[i]).collect()).collect();
        for index in 0..model.blocks() {
            let block = model.block(index)?;
            for (states, lengths) in states.iter_mut().zip(&lengths) {
                let next = block.forward_padded(states, Some(lengths), &mut ())?;
                *states = next.context("a forward pass without a tap was stopped")?;
                progress.step(lengths.len() as u64)?;
            }
        }
        for ((indices, states), lengths) in group.iter().zip(&states).zip(&lengths) {
            see(Batch { indices, states, lengths })?;
        }
    }
    Ok(())
}

fn embed(model: &Model, sequences: &[Sequence], batch: &[usize]) -> Result<Tensor> {
    let padded = Padded::new(&batch.iter().map(|&i| &sequences[i]).collect::<Vec<_>>());
    model.embed_typed(&slices(&padded.ids), Some(&slices(&padded.types)))
}

fn slices(rows: &[Vec<u32>]) -> Vec<&[u32]> {
    rows.iter().map(Vec::as_slice).collect()
}

/// The embedding of every sequence.
pub(super) fn embeddings(
    model: &Model,
    sequences: &[Sequence],
    modules: &Modules,
    progress: &dyn Progress,
) -> Result<Vec<Vec<f64>>> {
    modules.check(model.hidden())?;
    let mut found = vec![Vec::new(); sequences.len()];
    each_batch(model, sequences, progress, &mut |batch| {
        for (i, (&index, &length)) in batch.indices.iter().zip(batch.lengths).enumerate() {
            found[index] = modules.embed(&batch.states.get(i)?.narrow(0, 0, length)?)?;
        }
        Ok(())
    })?;
    Ok(found)
}

/// Windows as sequences of one text.
pub(super) fn of_windows(windows: &Windows) -> Vec<Sequence> {
    windows.rows.iter().map(|row| Sequence { ids: row.ids.clone(), types: vec![0; row.ids.len()] }).collect()
}

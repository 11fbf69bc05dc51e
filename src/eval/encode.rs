//! Sequences of any length through an encoder, in batches padded to their longest.

use super::modules::Modules;
use crate::forward::States;
use crate::model::Model;
use crate::progress::Progress;
use crate::text::{Padded, Sequence, Windows, batches};
use crate::user_bail;
use anyhow::Result;
use candle_core::Tensor;

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
    let limits = model.compute().limits;
    let batches = batches(&lengths, limits.batch_tokens);
    let per_group = (limits.states / (4 * limits.batch_tokens * model.hidden()).max(1)).max(1);
    for group in batches.chunks(per_group) {
        let pad = |batch: &Vec<usize>| Padded::new(&batch.iter().map(|&i| &sequences[i]).collect::<Vec<_>>());
        let padded: Vec<Padded> = group.iter().map(pad).collect();
        let mut states = States::embed_padded(model, &padded)?;
        states.finish(model, group.iter().map(|batch| batch.len() as u64).sum(), progress)?;
        for ((indices, states), padded) in group.iter().zip(states.batches()).zip(&padded) {
            see(Batch { indices, states: &states?, lengths: &padded.lengths })?;
        }
    }
    Ok(())
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

//! Pseudo-perplexity: how well an encoder guesses each token of a text when that token alone is masked and all others are
//! seen, both ways (Salazar et al. 2020, "Masked Language Model Scoring", arXiv 1910.14659).
//!
//! A window of S tokens takes one pass per target. Its first and last token, which frame the text, are no targets.

use super::encode::each_batch;
use super::perplexity::{Evaluation, summarise};
use super::score::{Unread, read, score_rows};
use crate::model::Model;
use crate::progress::Progress;
use crate::text::{Sequence, Window, Windows};
use anyhow::Result;
use candle_core::Tensor;
use std::ops::Range;

/// Measures `model` on `windows` and, when there is a base, the base by the same protocol. `mask` is the id that stands in
/// for a token to be guessed.
pub fn evaluate_masked(
    model: &Model,
    base: Option<&Model>,
    corpus: &str,
    windows: &Windows,
    mask: u32,
    progress: &dyn Progress,
) -> Result<(Evaluation, Option<Evaluation>)> {
    let head = model.head()?;
    let base_head = base.map(Model::head).transpose()?;
    let score = |window: &Window| -> Result<Unread> {
        let states = masked_states(model, window, mask, progress)?;
        let base_states = base.map(|base| masked_states(base, window, mask, progress)).transpose()?;
        let reference = base_head.as_ref().zip(base_states.as_ref());
        score_rows(&head, &states, reference, &window.ids[targets(window)])
    };
    let scores = read(&windows.rows.iter().map(score).collect::<Result<Vec<_>>>()?)?;
    let (mut own, mut other) = summarise(model, base, corpus, windows, &scores);
    for evaluation in std::iter::once(&mut own).chain(&mut other) {
        evaluation.perplexity.masked = true;
    }
    Ok((own, other))
}

/// The positions of a window that are guessed.
fn targets(window: &Window) -> Range<usize> {
    window.first_target..window.ids.len() - 1
}

/// The final state at each target when it alone is masked: (targets, hidden).
fn masked_states(model: &Model, window: &Window, mask: u32, progress: &dyn Progress) -> Result<Tensor> {
    let masked = |position: usize| {
        let mut ids = window.ids.clone();
        ids[position] = mask;
        Sequence { types: vec![0; ids.len()], ids }
    };
    let sequences: Vec<Sequence> = targets(window).map(masked).collect();
    let mut rows = Vec::with_capacity(sequences.len());
    // Equal lengths: batches keep the order.
    each_batch(model, &sequences, progress, &mut |batch| {
        for (i, &index) in batch.indices.iter().enumerate() {
            rows.push(batch.states.get(i)?.get(window.first_target + index)?);
        }
        Ok(())
    })?;
    Ok(Tensor::stack(&rows, 0)?)
}

//! Windows through a model, block by block, to negative log-likelihoods.
//!
//! Weights are read once per group of windows, so memory is one block plus the group's hidden states, whatever the
//! model's depth. Log-sums over the vocabulary are taken in f64.

use crate::error::UserError;
use crate::forward::{KeptStates, States};
use crate::model::{Head, Model};
use crate::ops::{self, Score};
use crate::progress::Progress;
use crate::text::{Window, Windows};
use anyhow::{Context, Result};
use candle_core::Tensor;

/// The original that a model is compared with.
#[derive(Clone, Copy)]
pub struct Base<'a> {
    /// It.
    pub model: &'a Model,
    /// Its states of windows that it ran before, where several models are compared with it.
    pub kept: Option<&'a KeptStates>,
}

impl<'a> From<&'a Model> for Base<'a> {
    fn from(model: &'a Model) -> Self {
        Self { model, kept: None }
    }
}

impl Base<'_> {
    fn final_states(&self, rows: &[Window], progress: &dyn Progress) -> Result<Vec<Tensor>> {
        let running = || format!("running {}, which is compared with", self.model.source().label());
        let run = || final_states(self.model, rows, progress).with_context(running);
        let Some(kept) = self.kept else { return run() };
        let ids: Vec<&[u32]> = rows.iter().map(|window| window.ids.as_slice()).collect();
        let (states, were_kept) = kept.of(&ids, run)?;
        if were_kept {
            progress.step((rows.len() * self.model.blocks()) as u64)?;
        }
        Ok(states)
    }
}

/// Sums over the targets of one window.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct WindowScore {
    pub targets: usize,
    /// Σ −log p(target), nats.
    pub nll: f64,
    /// The same under the base; 0 without one.
    pub base_nll: f64,
    /// Σ KL(base ‖ model), nats; 0 without a base.
    pub kl: f64,
    /// Targets where both models' most likely token is the same.
    pub agree: usize,
}

/// The score of one window, not read yet: where a device computes it is waited for once, not window by window.
pub(super) struct Unread {
    targets: usize,
    /// What [`ops::score`] gave of its targets, part by part.
    parts: Vec<Tensor>,
}

/// The scores of all windows.
pub(super) fn read(windows: &[Unread]) -> Result<Vec<WindowScore>> {
    let parts: Vec<Tensor> = windows.iter().flat_map(|window| &window.parts).cloned().collect();
    let mut parts = Score::read(&parts)?.into_iter();
    let sum = |window: &Unread| {
        let mut total = WindowScore { targets: window.targets, ..WindowScore::default() };
        for part in parts.by_ref().take(window.parts.len()) {
            total.nll += part.nll;
            total.base_nll += part.base_nll;
            total.kl += part.kl;
            total.agree += part.agree;
        }
        if !(total.nll + total.base_nll + total.kl).is_finite() {
            let whose = if total.nll.is_finite() { "the original's" } else { "the model's" };
            let error = UserError::not_finite(format!("{whose} output is NaN or infinite"));
            return Err(error.hint("no perplexity can be given; its weights are damaged or overflow f32").into());
        }
        Ok(total)
    };
    windows.iter().map(sum).collect()
}

/// Scores every window under `model` and, when given, against `base`.
pub(super) fn score(
    model: &Model,
    base: Option<Base>,
    windows: &Windows,
    progress: &dyn Progress,
) -> Result<Vec<WindowScore>> {
    let per_window = windows.window * model.hidden();
    let group = (model.compute().limits.states / (4 * per_window).max(1)).max(1);
    let head = model.head()?;
    let base_head = base.map(|base| base.model.head()).transpose()?;
    let mut scores = Vec::with_capacity(windows.rows.len());
    for rows in windows.rows.chunks(group) {
        let states = final_states(model, rows, progress)?;
        let base_states = base.map(|base| base.final_states(rows, progress)).transpose()?;
        let mut unread = Vec::with_capacity(rows.len());
        for (i, window) in rows.iter().enumerate() {
            let reference = base_states.as_ref().zip(base_head.as_ref()).map(|(states, head)| (head, &states[i]));
            unread.push(score_window(&head, &states[i], reference, window)?);
        }
        scores.extend(read(&unread)?);
    }
    Ok(scores)
}

/// The hidden states behind the last block, one (t, hidden) tensor per window. Steps once per block and batch.
fn final_states(model: &Model, rows: &[Window], progress: &dyn Progress) -> Result<Vec<Tensor>> {
    let ids: Vec<&[u32]> = rows.iter().map(|w| w.ids.as_slice()).collect();
    let mut states = States::embed(model, &ids)?;
    states.finish(model, rows.len() as u64, progress)?;
    let mut out = Vec::with_capacity(rows.len());
    for batch in states.batches() {
        let batch = batch?;
        for i in 0..batch.dim(0)? {
            out.push(batch.get(i)?);
        }
    }
    Ok(out)
}

fn score_window(head: &Head, states: &Tensor, base: Option<(&Head, &Tensor)>, window: &Window) -> Result<Unread> {
    // The state at position p predicts token p + 1.
    let part = |states: &Tensor| states.narrow(0, window.first_target - 1, window.targets());
    let own = part(states)?;
    let base = base.map(|(head, states)| Ok::<_, anyhow::Error>((head, part(states)?))).transpose()?;
    let base = base.as_ref().map(|(head, states)| (*head, states));
    score_rows(head, &own, base, &window.ids[window.first_target..])
}

/// Scores `targets`, each predicted from its row of `states` (targets, hidden).
pub(super) fn score_rows(
    head: &Head,
    states: &Tensor,
    base: Option<(&Head, &Tensor)>,
    targets: &[u32],
) -> Result<Unread> {
    let mut parts = Vec::new();
    let chunk = head.positions_at_once(1);
    for (i, targets) in targets.chunks(chunk).enumerate() {
        let (start, len) = (i * chunk, targets.len());
        let logits = logits(head, states, start, len)?;
        let base_logits = base.map(|(head, states)| self::logits(head, states, start, len)).transpose()?;
        parts.push(ops::score(&logits, base_logits.as_ref(), targets)?);
    }
    Ok(Unread { targets: targets.len(), parts })
}

pub(super) fn logits(head: &Head, states: &Tensor, start: usize, len: usize) -> Result<Tensor> {
    head.logits(&states.narrow(0, start, len)?.contiguous()?)
}

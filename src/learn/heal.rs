//! Healing: the factors of a finished compression trained a little, so that the model predicts what the original does.
//!
//! Minimised is KL(original ‖ compressed) on the calibration windows, or what else a [`Lesson`] makes of the model and
//! of labels. Whether that helps is judged on windows apart from them, with the factors rounded to the type they will be
//! stored in; the best state seen is the result, and the one before the first step is among them. Everything but the
//! factors stays as it is.
//!
//! The learning rate is relative: a step moves an entry of a factor by about `lr` times the root mean square of that
//! factor's entries at the start. Methods scale their two factors very differently, and so do the layers of a model. What
//! a model can bear differs too: when some looks in a row bring no better state, training goes back to the best one and on
//! at half the rate.
//!
//! In memory: the factors in f32 with gradient and moments (16 bytes per number kept) and the best state so far (4 more),
//! the graph of one block, and all blocks of the model if they fit, otherwise the one at work.

use super::course::{Aim, Lesson};
use super::patient::Patient;
use super::schedule::{Decay, Schedule};
use super::watch::Watch;
use crate::model::{Block, Role};
use crate::progress::Progress;
use anyhow::Result;
use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Looks at the held-out windows without a better state after which training goes back.
const PATIENCE: usize = 3;
/// Times in a row that it goes back before it stops.
const RETURNS: usize = 4;
/// Gradients are scaled down to this norm.
const CLIP: f64 = 1.0;

/// How long and how fast.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HealOptions {
    /// Steps at most.
    pub steps: usize,
    /// Learning rate, relative to the size of each factor.
    pub lr: f64,
    /// Seconds it may take, if there is a limit.
    pub seconds: Option<f64>,
}

impl HealOptions {
    /// Steps between two looks at the held-out windows, after each of which the state is saved.
    fn interval(&self) -> usize {
        self.steps.div_ceil(20).clamp(1, 50)
    }
}

/// Everything healing works with.
pub struct Healing<'a> {
    /// The original and the text.
    pub lesson: Lesson<'a>,
    /// Puts the compressed linears of a block into the original's.
    pub install: &'a dyn Fn(usize, &mut Block) -> Result<()>,
    /// The type that the factors of a linear will be stored in.
    pub stored: &'a dyn Fn(usize, Role) -> Result<DType>,
    /// The file that makes it resumable.
    pub state: &'a Path,
    /// How long and how fast.
    pub options: HealOptions,
}

/// A look at the held-out windows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct HealPoint {
    /// Steps done.
    pub step: usize,
    /// Mean training loss since the look before.
    #[serde(default, with = "crate::number::optional", skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Mean held-out loss; absent, in JSON `"NaN"`, when it is not finite.
    #[serde(with = "crate::number::finite")]
    pub heldout_loss: Option<f64>,
}

/// What healing did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HealReport {
    /// What was minimised.
    pub aim: Aim,
    /// Steps asked for.
    pub steps: usize,
    /// Steps done.
    pub done: usize,
    /// The step whose state was kept; 0 is the state before.
    pub best_step: usize,
    /// Steps after which training went back to the best state and on at half the rate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slowed: Vec<usize>,
    /// Windows or examples per step.
    pub batch: usize,
    /// Relative learning rate.
    pub lr: f64,
    /// Training tokens seen, repeated ones included.
    pub tokens: u64,
    /// Held-out tokens that were judged by.
    pub heldout_tokens: usize,
    /// Mean loss on them before.
    #[serde(with = "crate::number")]
    pub loss_before: f64,
    /// Mean loss on them with the state that was kept.
    #[serde(with = "crate::number")]
    pub loss_after: f64,
    /// Why it ended early, if it did.
    pub stopped: Option<String>,
    /// The loss curve.
    pub curve: Vec<HealPoint>,
}

impl HealReport {
    /// The last step that led to a better state or back to one.
    fn turn(&self) -> usize {
        self.best_step.max(self.slowed.last().copied().unwrap_or(0))
    }

    /// What learning rates are multiplied with in the next step. Behind every return they rise anew: the optimiser knows
    /// nothing yet.
    fn rate(&self) -> f64 {
        let warm_up = self.steps / 20;
        let schedule = Schedule { steps: self.steps, warm_up, decay: Decay::Cosine, floor: 0.0 };
        let risen = self.slowed.last().map_or(1.0, |&step| (self.done - step + 1) as f64 / (warm_up + 1) as f64);
        0.5f64.powi(self.slowed.len() as i32) * risen.min(1.0) * schedule.factor(self.done)
    }
}

/// The result of healing.
pub struct Healed {
    /// What was done.
    pub report: HealReport,
    /// Factors by block and role: A (rank, in) and B (out, rank), f32.
    pub factors: BTreeMap<(usize, Role), (Tensor, Tensor)>,
}

/// Trains the factors of all factorised linears.
///
/// Steps `progress` once per step. A run that was interrupted goes on from the last saved state and ends with the same
/// bits.
pub fn heal(job: &Healing, progress: &dyn Progress) -> Result<Healed> {
    let patient = Patient::new(job)?;
    let (mut optimiser, mut report) = (patient.optimiser()?, patient.before()?);
    let mut best = patient.snapshot()?;
    let mut spent = 0.0;
    if job.state.exists() {
        (report, best, spent) = patient.resume(job.state, &mut optimiser)?;
        progress.step(report.done as u64)?;
    }
    // Labels are noisy: the loss may rise at high learning rates and come down with them.
    let patience = if report.aim.is_labelled() { 2 * PATIENCE } else { PATIENCE };
    let watch = Watch::start(job.options.seconds, spent);
    let (mut loss, mut terms) = (0.0, 0);
    while report.done < report.steps && report.stopped.is_none() {
        let mut taught = patient.taught(report.done)?;
        let step = report.done + 1;
        if !taught.loss.is_finite() {
            let loss = taught.loss;
            report.stopped = Some(format!("the loss was {loss} at step {step}: the best state was restored"));
            break;
        }
        taught.gradients.clip(CLIP)?;
        optimiser.step(&taught.gradients.all(), report.rate())?;
        loss += taught.loss;
        terms += taught.terms;
        report.done = step;
        report.tokens += taught.tokens;
        report.steps = watch.fitting(step, report.steps);
        let over = watch.is_over();
        if over {
            report.stopped = Some(format!("the time was up after {step} steps"));
        }
        if step % job.options.interval() == 0 || step == report.steps || over {
            let heldout = patient.heldout_loss()?;
            report.curve.push(HealPoint { step, loss: Some(loss / terms as f64), heldout_loss: finite(heldout) });
            (loss, terms) = (0.0, 0);
            if heldout < report.loss_after {
                (report.loss_after, report.best_step) = (heldout, step);
                best = patient.snapshot()?;
            } else if step - report.turn() >= patience * job.options.interval() {
                if report.slowed.iter().filter(|&&step| step > report.best_step).count() == RETURNS {
                    report.stopped = Some(format!("no better state since step {}", report.best_step));
                } else {
                    report.slowed.push(step);
                    patient.restore(&best)?;
                    optimiser.forget()?;
                }
            }
            patient.save(job.state, &optimiser, &report, &best, watch.elapsed())?;
        }
        progress.step(1)?;
    }
    Ok(Healed { report, factors: patient.factors(best)? })
}

/// `None` for what is no loss to compare with.
pub(super) fn finite(x: f64) -> Option<f64> {
    x.is_finite().then_some(x)
}

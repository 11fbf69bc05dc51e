//! Learning which components of a model's linears matter: the training of the learned methods.
//!
//! Every step lowers KL(original ‖ student), or what else a [`Distillation`] asks for, on a batch and, as long as the student
//! is too large, puts pressure on the method's controls. Now and then the student is cut to the budget and judged on held-out
//! windows: such cuts have one size, so they can be compared over the whole run, and the best one is the result.

mod gated;
mod training;

use super::distillation::{Aim, Distillation};
use super::trainer::train;
use crate::method::{Decomposition, Phase, Spectral, SpectralSettings};
use crate::model::LinearSpec;
use crate::plan::Plan;
use crate::progress::Progress;
use anyhow::Result;
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use std::path::Path;
use training::SpectralTraining;

/// Learning rates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SpectralRates {
    /// Of the controls.
    pub control: f64,
    /// Of B, A and ρ, relative to their size.
    pub basis: f64,
    /// Of the deviation.
    pub deviation: f64,
}

/// How long and how fast.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SpectralOptions {
    /// Steps at most.
    pub steps: usize,
    /// Learning rates.
    pub rates: SpectralRates,
    /// Share of the steps in which the size falls to the budget.
    pub explore: f64,
    /// Share of the steps in which it stays around the budget. The rest is the last phase.
    pub refine: f64,
    /// Seconds it may take, if there is a limit.
    pub seconds: Option<f64>,
}

/// Everything the training works with.
pub struct SpectralJob<'a> {
    /// The original and the text.
    pub distillation: Distillation<'a>,
    /// Gate, pressure and score.
    pub method: &'a dyn Spectral,
    /// Their constants.
    pub settings: &'a SpectralSettings,
    /// The components of a linear, W = B A. They are asked for once, linear after linear in model order.
    pub basis: &'a dyn Fn(&LinearSpec) -> Result<Decomposition>,
    /// What the sizes √energy of each linear's components are divided by, in model order.
    pub units: &'a [f64],
    /// Shares the budget out by what components are worth, linears in model order.
    pub plan: &'a dyn Fn(&[Vec<f64>]) -> Result<Plan>,
    /// Shares the budget out evenly.
    pub even: &'a dyn Fn() -> Result<Plan>,
    /// Share of the linears' parameters that may be left, which the pressure aims at.
    pub keep: f64,
    /// The file that makes it resumable.
    pub state: &'a Path,
    /// How long and how fast.
    pub options: SpectralOptions,
}

/// A look at the training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SpectralPoint {
    /// Steps done.
    pub step: usize,
    /// The phase they were in.
    pub phase: Phase,
    /// Mean training loss since the look before. The student is not cut.
    #[serde(default, with = "crate::number::optional", skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Share of the linears' parameters that the student's own count asks for.
    #[serde(with = "crate::number")]
    pub ratio: f64,
    /// The pressure.
    #[serde(with = "crate::number")]
    pub pressure: f64,
    /// Mean held-out loss of the cut student; absent when it is not finite.
    #[serde(with = "crate::number::finite")]
    pub heldout_loss: Option<f64>,
}

/// What the training did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpectralReport {
    /// What was minimised.
    pub aim: Aim,
    /// Steps planned.
    pub steps: usize,
    /// Steps done.
    pub done: usize,
    /// The step whose state was kept.
    pub best_step: usize,
    /// Windows or examples per step.
    pub batch: usize,
    /// Trained numbers.
    pub trained: usize,
    /// Training tokens seen, repeated ones included.
    pub tokens: u64,
    /// Held-out tokens that were judged by.
    pub heldout_tokens: usize,
    /// Mean loss on them of the cut that was kept.
    #[serde(with = "crate::number")]
    pub loss: f64,
    /// Why it ended early, if it did.
    pub stopped: Option<String>,
    /// The loss curve.
    pub curve: Vec<SpectralPoint>,
}

/// One linear after training.
pub struct LearnedLinear {
    /// Which one.
    pub spec: LinearSpec,
    /// B (m, r) of the components that are left, all of them for a dense one.
    pub b: Tensor,
    /// A (r, n).
    pub a: Tensor,
    /// d (m), if the method trains it.
    pub deviation: Option<Tensor>,
    /// Size of every component now, in the recipe's unit.
    pub sigma: Vec<f64>,
    /// Gate of every component; 0 for those dropped.
    pub gates: Vec<f64>,
    /// The method's controls: one threshold, or one number per component.
    pub control: Vec<f64>,
    /// What every component was worth.
    pub worth: Vec<f64>,
}

/// The result.
pub struct Learned {
    /// What was done.
    pub report: SpectralReport,
    /// What becomes of each linear.
    pub plan: Plan,
    /// Every linear, in model order.
    pub linears: Vec<LearnedLinear>,
}

/// Trains, cuts to the budget and folds the gates into factors.
///
/// Steps `progress` once per step. A run that was interrupted goes on from the last saved state and ends with the same
/// bits.
pub fn learn_spectra(job: &SpectralJob, progress: &dyn Progress) -> Result<Learned> {
    let mut training = SpectralTraining::new(job)?;
    let log = train(&mut training, job.options.steps, job.options.seconds, job.state, progress)?;
    training.finish(log)
}

#[cfg(test)]
mod tests;

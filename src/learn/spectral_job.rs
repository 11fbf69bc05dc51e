//! What the training of a learned method is given, and what it answers with.

use super::course::{Aim, Lesson};
use super::spectrum::{Components, SpectralRates};
use crate::method::{Phase, Spectral, SpectralSettings};
use crate::model::LinearSpec;
use crate::plan::Plan;
use anyhow::Result;
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use std::path::Path;

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
    pub lesson: Lesson<'a>,
    /// Gate, pressure and score.
    pub method: &'a dyn Spectral,
    /// Their constants.
    pub settings: &'a SpectralSettings,
    /// The components of the linears of a block, in their order.
    pub basis: &'a dyn Fn(usize) -> Result<Vec<Components>>,
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

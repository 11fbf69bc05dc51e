//! Healing: the factors and narrowed weights of a finished compression trained a little, so that the model predicts what the
//! original does.
//!
//! Minimised is KL(original ‖ compressed) on the calibration windows, or what else a [`Distillation`] makes of the model and
//! of labels. Whether that helps is judged on windows apart from them, with everything rounded to the type it will be
//! stored in; the best state seen is the result, and the one before the first step is among them. Linears that are as they
//! were in the original stay so, and norms and biases.
//!
//! The learning rate is relative: a step moves an entry of a matrix by about `lr` times the root mean square of that
//! matrix's entries at the start. Methods scale their two factors very differently, and so do the layers of a model. What
//! a model can bear differs too: where no rate is given, a few steps are tried with each of several, and when some looks in a
//! row bring no better state, training goes back to the best one and on at half the rate.
//!
//! In memory: what is trained in f32 with gradient and moments (16 bytes per number kept) and the best state so far (4 more),
//! the graph of one block, and all blocks of the model if they fit, otherwise the one at work.

mod factors;

use super::distillation::{Aim, Distillation};
use super::trainer::{LossPoint, RateTrial, train};
use crate::model::{Block, Role};
use crate::progress::Progress;
use anyhow::{Context, Result};
use candle_core::{DType, Tensor};
use factors::FactorTraining;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// How long and how fast.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HealOptions {
    /// Steps at most.
    pub steps: usize,
    /// Learning rate, relative to the size of each matrix.
    pub lr: f64,
    /// Whether that is no more than a usual one, and a better one is looked for.
    pub find_rate: bool,
    /// Seconds it may take, if there is a limit.
    pub seconds: Option<f64>,
}

/// Everything healing works with.
pub struct HealJob<'a> {
    /// The original and the text.
    pub distillation: Distillation<'a>,
    /// Puts the compressed linears of a block into the original's.
    pub install: &'a dyn Fn(usize, &mut Block) -> Result<()>,
    /// The type that a linear will be stored in.
    pub stored: &'a dyn Fn(usize, Role) -> Result<DType>,
    /// The file that makes it resumable.
    pub state: &'a Path,
    /// How long and how fast.
    pub options: HealOptions,
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
    /// The rates that were tried, where none was given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rates_tried: Vec<RateTrial>,
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
    pub curve: Vec<LossPoint>,
}

/// The result of healing.
pub struct Healed {
    /// What was done.
    pub report: HealReport,
    /// What was trained, by block and role, f32.
    pub matrices: TrainedMatrices,
}

/// What was trained of the linears of a model, by block and role, f32.
pub type TrainedMatrices = BTreeMap<(usize, Role), Vec<(TrainedMatrix, Tensor)>>;

/// A matrix of a linear that is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrainedMatrix {
    /// A (rank, in).
    FactorA,
    /// B (out, rank).
    FactorB,
    /// A weight that has fewer rows or columns than the original's.
    Weight,
}

/// Trains the factors of all factorised linears and the weights of all narrowed ones.
///
/// Steps `progress` once per step. A run that was interrupted goes on from the last saved state and ends with the same
/// bits.
pub fn heal(job: &HealJob, progress: &dyn Progress) -> Result<Healed> {
    let mut training = FactorTraining::new(job)?;
    let log = train(&mut training, job.options.steps, job.options.seconds, job.state, progress)?;
    let before = log.curve.first().and_then(|point| point.heldout_loss);
    let lr = job.options.lr * log.found_rate();
    let report = HealReport {
        aim: job.distillation.aim(),
        steps: log.steps,
        done: log.done,
        best_step: log.best_step,
        slowed: log.slowed,
        batch: job.distillation.batch,
        lr,
        rates_tried: log.tried.iter().map(|tried| RateTrial { lr: job.options.lr * tried.lr, ..*tried }).collect(),
        tokens: log.tokens,
        heldout_tokens: job.distillation.heldout_tokens(),
        loss_before: before.context("the model was judged before the first step")?,
        loss_after: log.best_loss,
        stopped: log.stopped,
        curve: log.curve,
    };
    Ok(Healed { report, matrices: training.matrices()? })
}

//! The factors and narrowed weights of a compressed model in training beside the original.

use super::{HealJob, TrainedMatrices, TrainedMatrix};
use crate::backward::BlockStack;
use crate::learn::adamw::{AdamW, AdamWOptions, Group};
use crate::learn::distillation::DistillationLoss;
use crate::learn::root_mean_square;
use crate::learn::schedule::Schedule;
use crate::learn::trainer::{Log, Training};
use crate::model::{Block, Role};
use crate::user_bail;
use anyhow::{Context, Result};
use candle_core::{DType, Var};
use std::collections::BTreeMap;

/// Looks without a better state after which training goes back.
const PATIENCE: usize = 3;

/// A matrix in training.
struct Trained {
    block: usize,
    /// Its name in the block: `attn.q.factor_a`.
    name: String,
    var: Var,
    /// What it is rounded to when stored.
    stored: DType,
}

impl Trained {
    /// Its name in the model: `3.attn.q.factor_a`.
    fn key(&self) -> String {
        format!("{}.{}", self.block, self.name)
    }
}

/// The compressed model beside the original.
pub(super) struct FactorTraining<'a> {
    job: &'a HealJob<'a>,
    loss: DistillationLoss<'a>,
    /// The compressed blocks, if they fit.
    kept: Vec<Block<'a>>,
    trained: Vec<Trained>,
}

impl<'a> FactorTraining<'a> {
    /// Loads both models and makes the factors trainable.
    pub(super) fn new(job: &'a HealJob<'a>) -> Result<Self> {
        let loss = DistillationLoss::new(job.distillation)?;
        let mut training = Self { job, loss, kept: Vec::new(), trained: Vec::new() };
        for index in 0..job.distillation.model.blocks() {
            let mut block = training.loss.original(index)?;
            // The narrowed ones are those of another shape than the original's.
            let mut whole = BTreeMap::new();
            block.map_weights(&mut |name, weight| {
                whole.insert(name.to_string(), weight.dims().to_vec());
                Ok(weight.clone())
            })?;
            (job.install)(index, &mut block)?;
            let trained = &mut training.trained;
            block.map_weights(&mut |name, weight| {
                let found = matrix(name).filter(|_| whole.get(name).is_none_or(|shape| shape != weight.dims()));
                let Some((role, _)) = found else { return Ok(weight.clone()) };
                let (var, stored) = (Var::from_tensor(weight)?, (job.stored)(index, role)?);
                let tensor = var.as_tensor().clone();
                trained.push(Trained { block: index, name: name.to_string(), var, stored });
                Ok(tensor)
            })?;
            if job.distillation.keeps_blocks() {
                training.kept.push(block);
            }
        }
        Ok(training)
    }

    /// Block `index` as it was compressed.
    fn untrained_block(&self, index: usize) -> Result<Block<'a>> {
        let mut block = self.loss.original(index)?;
        (self.job.install)(index, &mut block)?;
        Ok(block)
    }

    /// Block `index` as it is now.
    fn student_block(&self, index: usize) -> Result<Block<'a>> {
        if let Some(block) = self.kept.get(index) {
            return Ok(block.clone());
        }
        let mut block = self.untrained_block(index)?;
        block.map_weights(&mut |name, weight| {
            let trained = self.in_block(index).find(|trained| trained.name == name);
            Ok(trained.map_or_else(|| weight.clone(), |trained| trained.var.as_tensor().clone()))
        })?;
        Ok(block)
    }

    fn in_block(&self, index: usize) -> impl Iterator<Item = &Trained> {
        self.trained.iter().filter(move |trained| trained.block == index)
    }

    /// What is trained, as it is now, sorted by linear.
    pub(super) fn matrices(&self) -> Result<TrainedMatrices> {
        let mut found = TrainedMatrices::new();
        for trained in &self.trained {
            let (role, which) = matrix(&trained.name).context("only weights of linears are trained")?;
            found.entry((trained.block, role)).or_default().push((which, trained.var.as_detached_tensor()));
        }
        Ok(found)
    }
}

/// The role of the linear that a matrix belongs to, and which of it it is.
fn matrix(name: &str) -> Option<(Role, TrainedMatrix)> {
    let (role, which) = name.rsplit_once('.')?;
    let which = match which {
        "factor_a" => TrainedMatrix::FactorA,
        "factor_b" => TrainedMatrix::FactorB,
        "weight" => TrainedMatrix::Weight,
        _ => return None,
    };
    // Norms have weights too.
    Some((role.parse().ok()?, which))
}

impl BlockStack for FactorTraining<'_> {
    fn blocks(&self) -> usize {
        self.job.distillation.model.blocks()
    }

    fn block(&self, index: usize) -> Result<Block<'_>> {
        self.student_block(index)
    }

    fn parameters(&self, index: usize) -> Vec<Var> {
        self.in_block(index).map(|trained| trained.var.clone()).collect()
    }
}

impl Training for FactorTraining<'_> {
    const RETURNS: usize = 4;

    fn student(&self) -> &dyn BlockStack {
        self
    }

    fn loss(&self) -> &DistillationLoss<'_> {
        &self.loss
    }

    /// One group per matrix: what a learning rate means depends on how large its entries are.
    fn optimiser(&self) -> Result<AdamW> {
        let group = |trained: &Trained| -> Result<Group> {
            let lr = self.job.options.lr * root_mean_square(&trained.var)?;
            Ok(Group { lr, weight_decay: 0.0, parameters: vec![(trained.key(), trained.var.clone())] })
        };
        AdamW::new(self.trained.iter().map(group).collect::<Result<_>>()?, AdamWOptions::default())
    }

    fn finds_rate(&self) -> bool {
        self.job.options.find_rate
    }

    fn schedule(&self, log: &Log) -> (usize, Schedule) {
        (0, Schedule { steps: log.steps, floor: 0.0 })
    }

    /// With everything as it would be stored.
    fn evaluate(&mut self, log: &Log) -> Result<f64> {
        let loss = self.loss.heldout_loss(&|index| {
            let mut block = self.student_block(index)?;
            block.map_weights(&mut |name, weight| {
                let stored = self.in_block(index).find(|trained| trained.name == name).map(|trained| trained.stored);
                let weight = weight.detach();
                Ok(stored.map_or(Ok(weight.clone()), |dtype| weight.to_dtype(dtype)?.to_dtype(DType::F32))?)
            })?;
            block.leave_unchecked();
            Ok(block)
        })?;
        if log.done == 0 && !loss.is_finite() {
            user_bail!("the compressed model's output is NaN or infinite"; "keep more, or choose another method");
        }
        Ok(loss)
    }

    /// Labels are noisy: the loss may rise at high learning rates and come down with them.
    fn is_out_of_patience(&self, log: &Log) -> bool {
        let is_labelled = self.job.distillation.aim().is_labelled();
        log.looks_in_vain() >= if is_labelled { 2 * PATIENCE } else { PATIENCE }
    }
}

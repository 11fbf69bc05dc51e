//! Distillation to the original model: what a student is compared with, batch by batch.

use super::backward::{Gradients, Student, backward, forward};
use super::loss::{Objective, Teacher, divergence, loss_gradient};
use crate::calibrate::{BATCH_TOKENS, States};
use crate::model::{Block, Head, Model};
use crate::text::{Windows, shuffle};
use anyhow::{Context, Result};
use candle_core::Tensor;

/// The original, the text to train on and the text to judge by.
#[derive(Clone, Copy)]
pub struct Lesson<'a> {
    /// The original.
    pub model: &'a Model,
    /// What to train on.
    pub train: &'a Windows,
    /// What to judge by.
    pub heldout: &'a Windows,
    /// Windows per step.
    pub batch: usize,
    /// Seed of the order of the windows.
    pub seed: u64,
    /// Bytes that the linears of the original may take for all blocks to be kept in memory.
    pub memory: usize,
}

impl Lesson<'_> {
    /// Whether all blocks are kept in memory.
    pub(super) fn fits(&self) -> bool {
        self.model.linears().iter().map(|spec| 4 * spec.params()).sum::<usize>() <= self.memory
    }
}

/// The teacher, ready to be asked.
pub(super) struct Distillation<'a> {
    lesson: Lesson<'a>,
    head: Head,
    /// The original's blocks, if they fit.
    blocks: Option<Vec<Block<'a>>>,
    /// The original's final states of the held-out windows.
    target: States,
}

impl<'a> Distillation<'a> {
    /// Loads the original and runs it over the held-out windows.
    pub(super) fn new(lesson: Lesson<'a>) -> Result<Self> {
        let model = lesson.model;
        let blocks = if lesson.fits() {
            Some((0..model.blocks()).map(|index| model.block(index)).collect::<Result<_>>()?)
        } else {
            None
        };
        let target = States::embed(model, &lesson.heldout.ids())?;
        let mut this = Self { lesson, head: model.head()?, blocks, target };
        for index in 0..model.blocks() {
            let block = this.original(index)?;
            this.target.advance(&block)?;
        }
        Ok(this)
    }

    /// Block `index` of the original.
    pub(super) fn original(&self, index: usize) -> Result<Block<'a>> {
        match &self.blocks {
            Some(blocks) => Ok(blocks[index].clone()),
            None => self.lesson.model.block(index),
        }
    }

    /// The windows of `step`: epoch after epoch, each in an order of its own.
    pub(super) fn batch(&self, step: usize) -> Vec<&'a [u32]> {
        let (windows, batch) = (&self.lesson.train.rows, self.lesson.batch);
        let mut order: Vec<usize> = Vec::new();
        let mut current = None;
        let pick = |place: usize| {
            let epoch = place / windows.len();
            if current != Some(epoch) {
                order = (0..windows.len()).collect();
                shuffle(&mut order, self.lesson.seed.wrapping_add(epoch as u64 + 1));
                current = Some(epoch);
            }
            windows[order[place % windows.len()]].ids.as_slice()
        };
        (step * batch..(step + 1) * batch).map(pick).collect()
    }

    /// KL(original ‖ student) summed over `rows`, and the gradient of its mean over their targets, in parts that fit
    /// into memory. When the sum is not finite the gradients mean nothing.
    pub(super) fn gradients(&self, student: &dyn Student, rows: &[&[u32]]) -> Result<(f64, Gradients)> {
        let length = rows.first().map_or(1, |row| row.len());
        let scale = 1.0 / (rows.len() * (length - 1)).max(1) as f64;
        let mut sum = 0.0;
        let mut gradients = Gradients::new(student);
        for rows in rows.chunks((BATCH_TOKENS / length).max(1)) {
            let x = self.lesson.model.embed(rows)?;
            let mut target = x.clone();
            for index in 0..self.lesson.model.blocks() {
                let y = self.original(index)?.forward(&target, &mut ())?;
                target = y.context("a forward pass without a tap was stopped")?;
            }
            let pass = forward(student, &x)?;
            let teacher = Teacher { head: &self.head, states: &target };
            let (loss, gradient) =
                loss_gradient(&self.head, &pass.output, Some(teacher), rows, &Objective::DISTIL, scale)?;
            sum += loss;
            if !loss.is_finite() {
                break;
            }
            backward(student, pass, gradient, &mut gradients)?;
        }
        Ok((sum, gradients))
    }

    /// Mean KL(original ‖ student) per held-out token, nats; `block` gives the student's blocks in order.
    pub(super) fn heldout_kl(&self, block: &dyn Fn(usize) -> Result<Block<'a>>) -> Result<f64> {
        let ids = self.lesson.heldout.ids();
        let mut states = States::embed(self.lesson.model, &ids)?;
        for index in 0..self.lesson.model.blocks() {
            states.advance(&block(index)?)?;
        }
        let mut rows = ids.as_slice();
        let mut sum = 0.0;
        for (states, target) in states.batches().iter().zip(self.target.batches()) {
            let (these, others) = rows.split_at(states.dim(0)?);
            sum += divergence(&self.head, states, Teacher { head: &self.head, states: target }, these)?;
            rows = others;
        }
        Ok(sum / ids.iter().map(|row| row.len() - 1).sum::<usize>() as f64)
    }
}

/// √ mean x² of a parameter: what its learning rate is relative to.
pub(super) fn root_mean_square(tensor: &Tensor) -> Result<f64> {
    Ok(f64::from(tensor.sqr()?.mean_all()?.to_scalar::<f32>()?).sqrt())
}

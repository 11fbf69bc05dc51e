//! The loss of a student beside the original: of a step, with gradients, and on what is judged by.

use super::batch::{TrainingBatch, bucketed_by_length, shuffled};
use super::teacher::TeacherStates;
use super::{Dataset, Distillation};
use crate::backward::{
    BlockStack, Gradients, Objective, Segment, Teacher, class_loss_gradient, cosine_loss_gradient, loss_and_gradients,
    token_loss, token_loss_gradient,
};
use crate::model::{Block, Classifier, Head, Output};
use anyhow::{Context, Result};
use candle_core::Tensor;

/// What stands behind the last block.
enum End {
    Tokens(Head),
    Classes(Classifier),
    States,
}

/// The loss of one step.
pub(in crate::learn) struct StepLoss {
    /// Summed loss. When it is not finite the gradients mean nothing.
    pub loss: f64,
    /// Terms of that sum.
    pub terms: usize,
    /// Tokens that were shown.
    pub tokens: u64,
    /// Of the mean loss.
    pub gradients: Gradients,
}

/// The loss that a [`Distillation`] asks for, with everything loaded that it takes.
pub(in crate::learn) struct DistillationLoss<'a> {
    distillation: Distillation<'a>,
    end: End,
    /// The original's blocks, if they fit.
    blocks: Option<Vec<Block<'a>>>,
    /// The original's final states of what is trained on.
    teacher: TeacherStates,
    /// What to judge by, and the original's final states of it where they are what is right.
    heldout: Vec<(TrainingBatch<'a>, Option<Tensor>)>,
}

impl<'a> DistillationLoss<'a> {
    /// Loads the original and, unless there are labels, runs it over what is judged by.
    pub(in crate::learn) fn new(distillation: Distillation<'a>) -> Result<Self> {
        distillation.check()?;
        let model = distillation.model;
        let end = match model.output() {
            Output::NextToken | Output::MaskedToken => End::Tokens(model.head()?),
            Output::Classes(_) => End::Classes(model.classifier()?.context("a model with classes has a classifier")?),
            Output::States => End::States,
        };
        let blocks = if distillation.keeps_blocks() {
            Some((0..model.blocks()).map(|index| model.block(index)).collect::<Result<_>>()?)
        } else {
            None
        };
        let tokens = model.compute().limits.batch_tokens;
        let batches = match distillation.dataset {
            Dataset::Text { heldout, .. } => {
                TrainingBatch::of_windows(heldout, &(0..heldout.len()).collect::<Vec<_>>(), tokens)
            }
            Dataset::Labelled { heldout, .. } => {
                TrainingBatch::of_examples(&heldout.iter().collect::<Vec<_>>(), tokens)
            }
        };
        let teacher = TeacherStates::new(distillation.teacher_memory);
        let mut this = Self { distillation, end, blocks, teacher, heldout: Vec::new() };
        let wanted = if distillation.has_teacher() {
            let states = this.run(&batches.iter().collect::<Vec<_>>(), &|index| this.original(index))?;
            states.into_iter().map(Some).collect()
        } else {
            vec![None; batches.len()]
        };
        this.heldout = batches.into_iter().zip(wanted).collect();
        Ok(this)
    }

    /// Block `index` of the original.
    pub(in crate::learn) fn original(&self, index: usize) -> Result<Block<'a>> {
        match &self.blocks {
            Some(blocks) => Ok(blocks[index].clone()),
            None => self.distillation.model.block(index),
        }
    }

    /// What is shown in `step`, in parts that fit into memory.
    fn batches(&self, step: usize) -> Vec<TrainingBatch<'a>> {
        let Distillation { batch, seed, model, .. } = self.distillation;
        let tokens = model.compute().limits.batch_tokens;
        match self.distillation.dataset {
            Dataset::Text { train, .. } => {
                TrainingBatch::of_windows(train, &shuffled(train.len(), batch, seed, step), tokens)
            }
            Dataset::Labelled { train, .. } => {
                let lengths: Vec<usize> = train.iter().map(|example| example.sequence.ids.len()).collect();
                let picked = bucketed_by_length(&lengths, batch, seed, step);
                TrainingBatch::of_examples(&picked.into_iter().map(|i| &train[i]).collect::<Vec<_>>(), tokens)
            }
        }
    }

    /// The loss of `student` in `step` and the gradient of its mean.
    pub(in crate::learn) fn step(&self, student: &dyn BlockStack, step: usize) -> Result<StepLoss> {
        let batches = self.batches(step);
        let terms: usize = batches.iter().map(|batch| self.terms(batch)).sum();
        let tokens = batches.iter().map(TrainingBatch::tokens).sum::<usize>() as u64;
        let scale = 1.0 / terms.max(1) as f64;
        let mut of_step = StepLoss { loss: 0.0, terms, tokens, gradients: Gradients::new(student) };
        for batch in &batches {
            let wanted = self.teacher_states(batch)?;
            let input = batch.embed(self.distillation.model)?;
            let segment = Segment { blocks: 0..student.blocks(), input: &input, lengths: batch.lengths() };
            let end = |states: &Tensor| self.loss(states, wanted.as_ref(), batch, &self.distillation.objective, scale);
            of_step.loss += loss_and_gradients(student, segment, &end, None, &mut of_step.gradients)?;
            if !of_step.loss.is_finite() {
                break;
            }
        }
        Ok(of_step)
    }

    /// The original's final states of `batch`, if they are what is right.
    fn teacher_states(&self, batch: &TrainingBatch<'a>) -> Result<Option<Tensor>> {
        let (true, TrainingBatch::Windows { indices, rows }) = (self.distillation.has_teacher(), batch) else {
            return Ok(None);
        };
        let compute = |places: &[usize]| {
            let alone =
                |&place: &usize| TrainingBatch::Windows { indices: vec![indices[place]], rows: vec![rows[place]] };
            let batches: Vec<TrainingBatch> = places.iter().map(alone).collect();
            self.run(&batches.iter().collect::<Vec<_>>(), &|index| self.original(index))
        };
        self.teacher.of(indices, compute).map(Some)
    }

    /// Mean loss on what is judged by; `block` gives the student's blocks in order.
    pub(in crate::learn) fn heldout_loss(&self, block: &dyn Fn(usize) -> Result<Block<'a>>) -> Result<f64> {
        let batches: Vec<&TrainingBatch> = self.heldout.iter().map(|(batch, _)| batch).collect();
        // A higher temperature is a way to learn, no measure.
        let objective = Objective { temperature: 1.0, ..self.distillation.objective };
        let (mut sum, mut terms) = (0.0, 0);
        for (states, (batch, wanted)) in self.run(&batches, block)?.iter().zip(&self.heldout) {
            sum += match &self.end {
                End::Tokens(head) => {
                    let teacher = wanted.as_ref().map(|states| Teacher { head, states });
                    token_loss(head, states, teacher, &batch.rows(), &objective)?
                }
                _ => self.loss(states, wanted.as_ref(), batch, &objective, 0.0)?.0,
            };
            terms += self.terms(batch);
        }
        Ok(sum / terms.max(1) as f64)
    }

    /// Terms of the loss over `batch`.
    fn terms(&self, batch: &TrainingBatch) -> usize {
        match self.end {
            End::Tokens(_) => batch.tokens() - batch.len(),
            End::Classes(_) => batch.len(),
            End::States => batch.tokens(),
        }
    }

    /// The summed loss of final `states`, and `scale` times its gradient on them.
    fn loss(
        &self,
        states: &Tensor,
        wanted: Option<&Tensor>,
        batch: &TrainingBatch,
        objective: &Objective,
        scale: f64,
    ) -> Result<(f64, Tensor)> {
        match &self.end {
            End::Tokens(head) => {
                let teacher = wanted.map(|states| Teacher { head, states });
                token_loss_gradient(head, states, teacher, &batch.rows(), objective, scale)
            }
            End::Classes(classifier) => {
                class_loss_gradient(classifier, states, wanted, batch.labels(), objective, scale)
            }
            End::States => cosine_loss_gradient(states, wanted.context("states are compared with others")?, scale),
        }
    }

    /// The final states of `batches`; every block is asked for once.
    fn run(&self, batches: &[&TrainingBatch], block: &dyn Fn(usize) -> Result<Block<'a>>) -> Result<Vec<Tensor>> {
        let embed = |batch: &&TrainingBatch| batch.embed(self.distillation.model);
        let mut states: Vec<Tensor> = batches.iter().map(embed).collect::<Result<_>>()?;
        for index in 0..self.distillation.model.blocks() {
            let mut block = block(index)?;
            // Nobody asks this pass for gradients: its graph would reach through all blocks.
            block.map_weights(&mut |_, weight| Ok(weight.detach()))?;
            for (states, batch) in states.iter_mut().zip(batches) {
                let next = block.forward_padded(states, batch.lengths(), &mut ())?;
                *states = next.context("a forward pass without a tap was stopped")?;
            }
        }
        Ok(states)
    }
}

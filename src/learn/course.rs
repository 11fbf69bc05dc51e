//! What a student is shown, and what it is compared with.
//!
//! | the model gives | shown windows of text | shown labelled examples |
//! |---|---|---|
//! | next or masked tokens | KL(original ‖ student) per token, or a mean of it and the likelihood of the next | |
//! | classes | KL(original ‖ student) per window | cross-entropy per example |
//! | a score | squared distance to the original's, per window | squared error per example |
//! | states alone | 1 − cosine to the original's, per token | |

use super::backward::{Gradients, Student, backward, forward};
use super::batch::{Batch, Labelled};
use super::ends;
use super::loss::{Objective, Teacher, loss_alone, loss_gradient};
use crate::forward::BATCH_TOKENS;
use crate::model::{Block, Classifier, Head, Model, Output};
use crate::text::{Windows, shuffle};
use crate::user_bail;
use anyhow::{Context, Result, bail};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

/// Steps whose examples are sorted by length together.
const ALIKE: usize = 16;

/// The original, what to train on and what to judge by.
#[derive(Clone, Copy)]
pub struct Lesson<'a> {
    /// The original.
    pub model: &'a Model,
    /// What the student is shown.
    pub material: Material<'a>,
    /// What is minimised of predictions on text.
    pub objective: Objective,
    /// Windows or examples per step.
    pub batch: usize,
    /// Seed of their order.
    pub seed: u64,
    /// Bytes that the linears of the original may take for all blocks to be kept in memory.
    pub memory: usize,
}

/// What the student is shown.
#[derive(Clone, Copy)]
pub enum Material<'a> {
    /// Text: the original says what is right.
    Text {
        /// To train on.
        train: &'a Windows,
        /// To judge by.
        heldout: &'a Windows,
    },
    /// Labelled examples for a model with a classifier: the labels say what is right.
    Labelled {
        /// To train on.
        train: &'a [Labelled],
        /// To judge by.
        heldout: &'a [Labelled],
    },
}

/// What is minimised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aim {
    /// KL(original ‖ student), nats.
    Kl,
    /// A mean of KL(original ‖ student) and −log of the probability of the next token, nats.
    KlAndLikelihood,
    /// −log of the probability of the next token, nats.
    Likelihood,
    /// −log of the probability of the labelled class, nats.
    CrossEntropy,
    /// Squared distance of scores.
    SquaredError,
    /// 1 − cosine between the states of student and original.
    Cosine,
}

impl Aim {
    /// As a reader knows it: `KL`, `KL and NLL`, `NLL`, `cross-entropy`, `squared error`, `1 − cosine`.
    pub fn name(self) -> &'static str {
        match self {
            Aim::Kl => "KL",
            Aim::KlAndLikelihood => "KL and NLL",
            Aim::Likelihood => "NLL",
            Aim::CrossEntropy => "cross-entropy",
            Aim::SquaredError => "squared error",
            Aim::Cosine => "1 − cosine",
        }
    }

    /// Whether labels, not the original, say what is right.
    pub(super) fn is_labelled(self) -> bool {
        self == Aim::CrossEntropy || self == Aim::SquaredError
    }
}

impl Lesson<'_> {
    /// Whether all blocks are kept in memory.
    pub(super) fn fits(&self) -> bool {
        self.model.linears().iter().map(|spec| 4 * spec.params()).sum::<usize>() <= self.memory
    }

    /// Refuses what the model cannot be taught.
    pub fn check(&self) -> Result<()> {
        let output = self.model.output();
        if matches!(self.material, Material::Labelled { .. }) && !matches!(output, Output::Classes(_)) {
            bail!("labels are for models with a classifier");
        }
        let share = self.objective.likelihood;
        if share > 0.0 && output != Output::NextToken {
            user_bail!("--likelihood {share} is for models that predict the next token, and this one does not"; "leave it out");
        }
        Ok(())
    }

    /// What is minimised.
    pub fn aim(&self) -> Aim {
        match (self.model.output(), self.material) {
            (Output::NextToken, _) if self.objective.divergence == 0.0 => Aim::Likelihood,
            (Output::NextToken, _) if self.objective.likelihood > 0.0 => Aim::KlAndLikelihood,
            (Output::NextToken | Output::MaskedToken, _) => Aim::Kl,
            (Output::Classes(1), _) => Aim::SquaredError,
            (Output::Classes(_), Material::Text { .. }) => Aim::Kl,
            (Output::Classes(_), Material::Labelled { .. }) => Aim::CrossEntropy,
            (Output::States, _) => Aim::Cosine,
        }
    }

    /// Tokens to judge by.
    pub(super) fn heldout_tokens(&self) -> usize {
        match self.material {
            Material::Text { heldout, .. } => heldout.tokens(),
            Material::Labelled { heldout, .. } => heldout.iter().map(|example| example.sequence.ids.len()).sum(),
        }
    }
}

/// What stands behind the last block.
enum End {
    Tokens(Head),
    Classes(Classifier),
    States,
}

/// A step's worth of learning.
pub(super) struct Taught {
    /// Summed loss. When it is not finite the gradients mean nothing.
    pub loss: f64,
    /// Terms of that sum.
    pub terms: usize,
    /// Tokens that were shown.
    pub tokens: u64,
    /// Of the mean loss.
    pub gradients: Gradients,
}

/// A lesson, ready to be given.
pub(super) struct Course<'a> {
    lesson: Lesson<'a>,
    end: End,
    /// The original's blocks, if they fit.
    blocks: Option<Vec<Block<'a>>>,
    /// What to judge by, and the original's final states of it where they are what is right.
    heldout: Vec<(Batch<'a>, Option<Tensor>)>,
}

impl<'a> Course<'a> {
    /// Loads the original and, unless there are labels, runs it over what is judged by.
    pub(super) fn new(lesson: Lesson<'a>) -> Result<Self> {
        lesson.check()?;
        let model = lesson.model;
        let end = match model.output() {
            Output::NextToken | Output::MaskedToken => End::Tokens(model.head()?),
            Output::Classes(_) => End::Classes(model.classifier()?.context("a model with classes has a classifier")?),
            Output::States => End::States,
        };
        let blocks = if lesson.fits() {
            Some((0..model.blocks()).map(|index| model.block(index)).collect::<Result<_>>()?)
        } else {
            None
        };
        let batches = match lesson.material {
            Material::Text { heldout, .. } => Batch::of_windows(heldout.ids(), BATCH_TOKENS),
            Material::Labelled { heldout, .. } => Batch::of_examples(&heldout.iter().collect::<Vec<_>>(), BATCH_TOKENS),
        };
        let mut this = Self { lesson, end, blocks, heldout: Vec::new() };
        let right = if this.asks() {
            let states = this.run(&batches.iter().collect::<Vec<_>>(), &|index| this.original(index))?;
            states.into_iter().map(Some).collect()
        } else {
            vec![None; batches.len()]
        };
        this.heldout = batches.into_iter().zip(right).collect();
        Ok(this)
    }

    /// Whether the original is asked what is right.
    fn asks(&self) -> bool {
        matches!(self.lesson.material, Material::Text { .. }) && self.lesson.aim() != Aim::Likelihood
    }

    /// Block `index` of the original.
    pub(super) fn original(&self, index: usize) -> Result<Block<'a>> {
        match &self.blocks {
            Some(blocks) => Ok(blocks[index].clone()),
            None => self.lesson.model.block(index),
        }
    }

    /// What is shown in `step`, in parts that fit into memory: epoch after epoch, each in an order of its own.
    pub(super) fn batch(&self, step: usize) -> Vec<Batch<'a>> {
        match self.lesson.material {
            Material::Text { train, .. } => {
                let rows = self.picked(step, train.len()).into_iter().map(|i| train.rows[i].ids.as_slice()).collect();
                Batch::of_windows(rows, BATCH_TOKENS)
            }
            Material::Labelled { train, .. } => {
                let lengths: Vec<usize> = train.iter().map(|example| example.sequence.ids.len()).collect();
                let picked = alike(&lengths, self.lesson.batch, self.lesson.seed, step);
                Batch::of_examples(&picked.into_iter().map(|i| &train[i]).collect::<Vec<_>>(), BATCH_TOKENS)
            }
        }
    }

    /// Which of `count` things are shown in `step`.
    fn picked(&self, step: usize, count: usize) -> Vec<usize> {
        let batch = self.lesson.batch;
        let mut order: Vec<usize> = Vec::new();
        let mut current = None;
        let pick = |place: usize| {
            let epoch = place / count;
            if current != Some(epoch) {
                order = (0..count).collect();
                shuffle(&mut order, self.lesson.seed.wrapping_add(epoch as u64 + 1));
                current = Some(epoch);
            }
            order[place % count]
        };
        (step * batch..(step + 1) * batch).map(pick).collect()
    }

    /// The loss over `batches` and the gradient of its mean.
    pub(super) fn teach(&self, student: &dyn Student, batches: &[Batch]) -> Result<Taught> {
        let terms: usize = batches.iter().map(|batch| self.terms(batch)).sum();
        let tokens = batches.iter().map(Batch::tokens).sum::<usize>() as u64;
        let scale = 1.0 / terms.max(1) as f64;
        let mut taught = Taught { loss: 0.0, terms, tokens, gradients: Gradients::new(student) };
        for batch in batches {
            let right = match self.asks() {
                true => self.run(&[batch], &|index| self.original(index))?.pop(),
                false => None,
            };
            let pass = forward(student, &batch.embed(self.lesson.model)?, batch.lengths())?;
            let (loss, gradient) = self.loss(&pass.output, right.as_ref(), batch, &self.lesson.objective, scale)?;
            taught.loss += loss;
            if !loss.is_finite() {
                break;
            }
            backward(student, pass, gradient, &mut taught.gradients)?;
        }
        Ok(taught)
    }

    /// Mean loss on what is judged by; `block` gives the student's blocks in order.
    pub(super) fn judge(&self, block: &dyn Fn(usize) -> Result<Block<'a>>) -> Result<f64> {
        let batches: Vec<&Batch> = self.heldout.iter().map(|(batch, _)| batch).collect();
        // A higher temperature is a way to learn, no measure.
        let objective = Objective { temperature: 1.0, ..self.lesson.objective };
        let (mut sum, mut terms) = (0.0, 0);
        for (states, (batch, right)) in self.run(&batches, block)?.iter().zip(&self.heldout) {
            sum += match &self.end {
                End::Tokens(head) => {
                    let teacher = right.as_ref().map(|states| Teacher { head, states });
                    loss_alone(head, states, teacher, &batch.rows(), &objective)?
                }
                _ => self.loss(states, right.as_ref(), batch, &objective, 0.0)?.0,
            };
            terms += self.terms(batch);
        }
        Ok(sum / terms.max(1) as f64)
    }

    /// Terms of the loss over `batch`.
    fn terms(&self, batch: &Batch) -> usize {
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
        right: Option<&Tensor>,
        batch: &Batch,
        objective: &Objective,
        scale: f64,
    ) -> Result<(f64, Tensor)> {
        match &self.end {
            End::Tokens(head) => {
                let teacher = right.map(|states| Teacher { head, states });
                loss_gradient(head, states, teacher, &batch.rows(), objective, scale)
            }
            End::Classes(classifier) => ends::classes(classifier, states, right, batch.labels(), objective, scale),
            End::States => ends::turned(states, right.context("states are compared with others")?, scale),
        }
    }

    /// The final states of `batches`; every block is asked for once.
    fn run(&self, batches: &[&Batch], block: &dyn Fn(usize) -> Result<Block<'a>>) -> Result<Vec<Tensor>> {
        let embed = |batch: &&Batch| batch.embed(self.lesson.model);
        let mut states: Vec<Tensor> = batches.iter().map(embed).collect::<Result<_>>()?;
        for index in 0..self.lesson.model.blocks() {
            let block = block(index)?;
            for (states, batch) in states.iter_mut().zip(batches) {
                let next = block.forward_padded(states, batch.lengths(), &mut ())?;
                *states = next.context("a forward pass without a tap was stopped")?;
            }
        }
        Ok(states)
    }
}

/// Which examples are shown in `step`, epoch after epoch: of a few steps' worth those of about one length, so that little is
/// padded.
fn alike(lengths: &[usize], batch: usize, seed: u64, step: usize) -> Vec<usize> {
    let per_epoch = lengths.len().div_ceil(batch);
    let (epoch, place) = (step / per_epoch, step % per_epoch);
    let seed = seed.wrapping_add(epoch as u64 + 1);
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    shuffle(&mut order, seed);
    let mut steps: Vec<Vec<usize>> = Vec::new();
    for some in order.chunks_mut(ALIKE * batch) {
        some.sort_by_key(|&i| lengths[i]);
        steps.extend(some.chunks(batch).map(<[usize]>::to_vec));
    }
    // Otherwise long examples would follow short ones at a steady beat.
    let mut places: Vec<usize> = (0..steps.len()).collect();
    shuffle(&mut places, seed);
    steps.swap_remove(places[place])
}

/// √ mean x² of a parameter: what its learning rate is relative to.
pub(super) fn root_mean_square(tensor: &Tensor) -> Result<f64> {
    Ok(f64::from(tensor.sqr()?.mean_all()?.to_scalar::<f32>()?).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_shows_every_example_once_beside_others_of_its_length() {
        let lengths: Vec<usize> = (0..203).map(|i| 3 + (i * 37) % 60).collect();
        let epoch = |number: usize| (0..26).map(|place| alike(&lengths, 8, 5, 26 * number + place)).collect::<Vec<_>>();
        let spread = |picked: &Vec<usize>| {
            let lengths: Vec<usize> = picked.iter().map(|&i| lengths[i]).collect();
            lengths.iter().max().unwrap() - lengths.iter().min().unwrap()
        };
        for steps in [epoch(0), epoch(3)] {
            let mut all = steps.concat();
            all.sort_unstable();
            assert_eq!(all, (0..203).collect::<Vec<_>>());
            assert!(steps.iter().map(spread).max() < Some(12), "{steps:?}");
            let shortest = |picked: &Vec<usize>| picked.iter().map(|&i| lengths[i]).min();
            assert!(!steps.is_sorted_by_key(shortest), "steps go from short to long");
        }
        assert_ne!(epoch(0), epoch(1));
        assert_eq!(epoch(2), epoch(2));
    }
}

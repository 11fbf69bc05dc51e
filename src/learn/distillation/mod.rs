//! What a student is shown, and what it is compared with.
//!
//! | the model gives | shown windows of text | shown labelled examples |
//! |---|---|---|
//! | next or masked tokens | KL(original ‖ student) per token, or a mean of it and the likelihood of the next | |
//! | classes | KL(original ‖ student) per window | cross-entropy per example |
//! | a score | squared distance to the original's, per window | squared error per example |
//! | states alone | 1 − cosine to the original's, per token | |

mod batch;
mod loss;
mod teacher;

pub(super) use loss::DistillationLoss;

use crate::backward::Objective;
use crate::model::{Model, Output};
use crate::text::{Sequence, Windows};
use crate::user_bail;
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

/// The original, what to train on and what to judge by.
#[derive(Clone, Copy)]
pub struct Distillation<'a> {
    /// The original: the teacher.
    pub model: &'a Model,
    /// What the student is shown.
    pub dataset: Dataset<'a>,
    /// What is minimised of predictions on text.
    pub objective: Objective,
    /// Windows or examples per step.
    pub batch: usize,
    /// Seed of their order.
    pub seed: u64,
    /// Bytes that the linears of the original may take for all blocks to be kept in memory.
    pub block_memory: usize,
    /// Bytes that final states of the original may take: those of as many training windows as fit are kept, not computed in
    /// every epoch.
    pub teacher_memory: usize,
}

/// What the student is shown.
#[derive(Clone, Copy)]
pub enum Dataset<'a> {
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

/// A text or a pair of texts with what is to be said of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Labelled {
    /// Its tokens.
    pub sequence: Sequence,
    /// The class as a whole number, or the score.
    pub label: f64,
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

impl Distillation<'_> {
    /// Whether all blocks are kept in memory.
    pub(super) fn keeps_blocks(&self) -> bool {
        self.model.linears().iter().map(|spec| 4 * spec.params()).sum::<usize>() <= self.block_memory
    }

    /// Refuses what the model cannot be taught.
    pub fn check(&self) -> Result<()> {
        let output = self.model.output();
        if matches!(self.dataset, Dataset::Labelled { .. }) && !matches!(output, Output::Classes(_)) {
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
        match (self.model.output(), self.dataset) {
            (Output::NextToken, _) if self.objective.divergence == 0.0 => Aim::Likelihood,
            (Output::NextToken, _) if self.objective.likelihood > 0.0 => Aim::KlAndLikelihood,
            (Output::NextToken | Output::MaskedToken, _) => Aim::Kl,
            (Output::Classes(1), _) => Aim::SquaredError,
            (Output::Classes(_), Dataset::Text { .. }) => Aim::Kl,
            (Output::Classes(_), Dataset::Labelled { .. }) => Aim::CrossEntropy,
            (Output::States, _) => Aim::Cosine,
        }
    }

    /// Tokens to judge by.
    pub(super) fn heldout_tokens(&self) -> usize {
        match self.dataset {
            Dataset::Text { heldout, .. } => heldout.tokens(),
            Dataset::Labelled { heldout, .. } => heldout.iter().map(|example| example.sequence.ids.len()).sum(),
        }
    }

    /// Whether the original is asked what is right.
    fn has_teacher(&self) -> bool {
        matches!(self.dataset, Dataset::Text { .. }) && self.aim() != Aim::Likelihood
    }
}

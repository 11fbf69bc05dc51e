//! Sequences that go through a model together.

use crate::model::Model;
use crate::text::{Padded, Sequence, batches};
use anyhow::Result;
use candle_core::Tensor;

/// A text or a pair of texts with what is to be said of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Labelled {
    /// Its tokens.
    pub sequence: Sequence,
    /// The class as a whole number, or the score.
    pub label: f64,
}

/// Windows of one length, or examples padded to the longest.
pub(super) enum Batch<'a> {
    Windows(Vec<&'a [u32]>),
    Examples { padded: Padded, labels: Vec<f64> },
}

impl<'a> Batch<'a> {
    /// Windows of one length in batches of at most `tokens` tokens.
    pub(super) fn of_windows(rows: Vec<&'a [u32]>, tokens: usize) -> Vec<Self> {
        let length = rows.first().map_or(1, |row| row.len());
        rows.chunks((tokens / length).max(1)).map(|rows| Batch::Windows(rows.to_vec())).collect()
    }

    /// Examples in batches of at most `tokens` tokens, padding included: the short ones together.
    pub(super) fn of_examples(examples: &[&Labelled], tokens: usize) -> Vec<Self> {
        let lengths: Vec<usize> = examples.iter().map(|example| example.sequence.ids.len()).collect();
        let batch = |part: Vec<usize>| Batch::Examples {
            padded: Padded::new(&part.iter().map(|&i| &examples[i].sequence).collect::<Vec<_>>()),
            labels: part.iter().map(|&i| examples[i].label).collect(),
        };
        batches(&lengths, tokens).into_iter().map(batch).collect()
    }

    /// Number of sequences.
    pub(super) fn len(&self) -> usize {
        match self {
            Batch::Windows(rows) => rows.len(),
            Batch::Examples { labels, .. } => labels.len(),
        }
    }

    /// Number of tokens, padding left out.
    pub(super) fn tokens(&self) -> usize {
        match self {
            Batch::Windows(rows) => rows.iter().map(|row| row.len()).sum(),
            Batch::Examples { padded, .. } => padded.lengths.iter().sum(),
        }
    }

    /// The ids of every sequence, padding included.
    pub(super) fn rows(&self) -> Vec<&[u32]> {
        match self {
            Batch::Windows(rows) => rows.clone(),
            Batch::Examples { padded, .. } => padded.ids.iter().map(Vec::as_slice).collect(),
        }
    }

    /// Tokens of each sequence, where they differ.
    pub(super) fn lengths(&self) -> Option<&[usize]> {
        match self {
            Batch::Windows(_) => None,
            Batch::Examples { padded, .. } => Some(&padded.lengths),
        }
    }

    /// What is to be said of each sequence, if that is known.
    pub(super) fn labels(&self) -> Option<&[f64]> {
        match self {
            Batch::Windows(_) => None,
            Batch::Examples { labels, .. } => Some(labels),
        }
    }

    /// What enters the first block, (sequences, t, hidden).
    pub(super) fn embed(&self, model: &Model) -> Result<Tensor> {
        match self {
            Batch::Windows(rows) => model.embed(rows),
            Batch::Examples { padded, .. } => {
                let types: Vec<&[u32]> = padded.types.iter().map(Vec::as_slice).collect();
                model.embed_typed(&self.rows(), Some(&types))
            }
        }
    }
}

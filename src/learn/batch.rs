//! Sequences that go through a model together.

use crate::model::Model;
use crate::text::Sequence;
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
    Examples { ids: Vec<Vec<u32>>, types: Vec<Vec<u32>>, lengths: Vec<usize>, labels: Vec<f64> },
}

impl<'a> Batch<'a> {
    /// Windows of one length in batches of at most `tokens` tokens.
    pub(super) fn of_windows(rows: Vec<&'a [u32]>, tokens: usize) -> Vec<Self> {
        let length = rows.first().map_or(1, |row| row.len());
        rows.chunks((tokens / length).max(1)).map(|rows| Batch::Windows(rows.to_vec())).collect()
    }

    /// Examples in batches of at most `tokens` tokens, padding included: the short ones together.
    pub(super) fn of_examples(mut examples: Vec<&Labelled>, tokens: usize) -> Vec<Self> {
        examples.sort_by_key(|example| example.sequence.ids.len());
        let mut parts: Vec<Vec<&Labelled>> = Vec::new();
        for example in examples {
            let length = example.sequence.ids.len();
            match parts.last_mut().filter(|part| (part.len() + 1) * length <= tokens) {
                Some(part) => part.push(example),
                None => parts.push(vec![example]),
            }
        }
        parts.iter().map(|part| Self::padded(part)).collect()
    }

    fn padded(examples: &[&Labelled]) -> Self {
        let lengths: Vec<usize> = examples.iter().map(|example| example.sequence.ids.len()).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        // Any id will do: nobody sees it.
        let pad = |row: &[u32]| [row, &vec![0; longest - row.len()]].concat();
        Batch::Examples {
            ids: examples.iter().map(|example| pad(&example.sequence.ids)).collect(),
            types: examples.iter().map(|example| pad(&example.sequence.types)).collect(),
            labels: examples.iter().map(|example| example.label).collect(),
            lengths,
        }
    }

    /// Number of sequences.
    pub(super) fn len(&self) -> usize {
        match self {
            Batch::Windows(rows) => rows.len(),
            Batch::Examples { ids, .. } => ids.len(),
        }
    }

    /// Number of tokens, padding left out.
    pub(super) fn tokens(&self) -> usize {
        match self {
            Batch::Windows(rows) => rows.iter().map(|row| row.len()).sum(),
            Batch::Examples { lengths, .. } => lengths.iter().sum(),
        }
    }

    /// The ids of every sequence, padding included.
    pub(super) fn rows(&self) -> Vec<&[u32]> {
        match self {
            Batch::Windows(rows) => rows.clone(),
            Batch::Examples { ids, .. } => ids.iter().map(Vec::as_slice).collect(),
        }
    }

    /// Tokens of each sequence, where they differ.
    pub(super) fn lengths(&self) -> Option<&[usize]> {
        match self {
            Batch::Windows(_) => None,
            Batch::Examples { lengths, .. } => Some(lengths),
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
            Batch::Examples { types, .. } => {
                let types: Vec<&[u32]> = types.iter().map(Vec::as_slice).collect();
                model.embed_typed(&self.rows(), Some(&types))
            }
        }
    }
}

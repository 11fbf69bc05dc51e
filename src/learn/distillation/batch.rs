//! Which windows or examples a step is shown, and how they go through a model.

use super::Labelled;
use crate::model::Model;
use crate::text::{Padded, Windows, batches, shuffle};
use anyhow::Result;
use candle_core::Tensor;

/// Steps whose examples are sorted by length together.
const BUCKETED: usize = 16;

/// Windows of one length, or examples padded to the longest.
pub(super) enum TrainingBatch<'a> {
    Windows {
        /// Their places among all windows.
        indices: Vec<usize>,
        rows: Vec<&'a [u32]>,
    },
    Examples {
        padded: Padded,
        labels: Vec<f64>,
    },
}

impl<'a> TrainingBatch<'a> {
    /// The windows at `indices` in batches of at most `tokens` tokens.
    pub(super) fn of_windows(windows: &'a Windows, indices: &[usize], tokens: usize) -> Vec<Self> {
        let row = |&index: &usize| windows.rows[index].ids.as_slice();
        let length = indices.first().map_or(1, |index| row(index).len());
        let batch = |part: &[usize]| Self::Windows { indices: part.to_vec(), rows: part.iter().map(row).collect() };
        indices.chunks((tokens / length).max(1)).map(batch).collect()
    }

    /// Examples in batches of at most `tokens` tokens, padding included: the short ones together.
    pub(super) fn of_examples(examples: &[&Labelled], tokens: usize) -> Vec<Self> {
        let lengths: Vec<usize> = examples.iter().map(|example| example.sequence.ids.len()).collect();
        let batch = |part: Vec<usize>| Self::Examples {
            padded: Padded::new(&part.iter().map(|&i| &examples[i].sequence).collect::<Vec<_>>()),
            labels: part.iter().map(|&i| examples[i].label).collect(),
        };
        batches(&lengths, tokens).into_iter().map(batch).collect()
    }

    /// Number of sequences.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Windows { rows, .. } => rows.len(),
            Self::Examples { labels, .. } => labels.len(),
        }
    }

    /// Number of tokens, padding left out.
    pub(super) fn tokens(&self) -> usize {
        match self {
            Self::Windows { rows, .. } => rows.iter().map(|row| row.len()).sum(),
            Self::Examples { padded, .. } => padded.lengths.iter().sum(),
        }
    }

    /// The ids of every sequence, padding included.
    pub(super) fn rows(&self) -> Vec<&[u32]> {
        match self {
            Self::Windows { rows, .. } => rows.clone(),
            Self::Examples { padded, .. } => padded.ids.iter().map(Vec::as_slice).collect(),
        }
    }

    /// Tokens of each sequence, where they differ.
    pub(super) fn lengths(&self) -> Option<&[usize]> {
        match self {
            Self::Windows { .. } => None,
            Self::Examples { padded, .. } => Some(&padded.lengths),
        }
    }

    /// What is to be said of each sequence, if that is known.
    pub(super) fn labels(&self) -> Option<&[f64]> {
        match self {
            Self::Windows { .. } => None,
            Self::Examples { labels, .. } => Some(labels),
        }
    }

    /// What enters the first block, (sequences, t, hidden).
    pub(super) fn embed(&self, model: &Model) -> Result<Tensor> {
        match self {
            Self::Windows { rows, .. } => model.embed(rows),
            Self::Examples { padded, .. } => {
                let types: Vec<&[u32]> = padded.types.iter().map(Vec::as_slice).collect();
                model.embed_typed(&self.rows(), Some(&types))
            }
        }
    }
}

/// Which of `count` windows are shown in `step`, epoch after epoch, each in an order of its own.
pub(super) fn shuffled(count: usize, batch: usize, seed: u64, step: usize) -> Vec<usize> {
    let mut order: Vec<usize> = Vec::new();
    let mut current = None;
    let pick = |place: usize| {
        let epoch = place / count;
        if current != Some(epoch) {
            order = (0..count).collect();
            shuffle(&mut order, seed.wrapping_add(epoch as u64 + 1));
            current = Some(epoch);
        }
        order[place % count]
    };
    (step * batch..(step + 1) * batch).map(pick).collect()
}

/// Which examples are shown in `step`, epoch after epoch: of a few steps' worth those of about one length, so that little is
/// padded.
pub(super) fn bucketed_by_length(lengths: &[usize], batch: usize, seed: u64, step: usize) -> Vec<usize> {
    let per_epoch = lengths.len().div_ceil(batch);
    let (epoch, place) = (step / per_epoch, step % per_epoch);
    let seed = seed.wrapping_add(epoch as u64 + 1);
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    shuffle(&mut order, seed);
    let mut steps: Vec<Vec<usize>> = Vec::new();
    for bucket in order.chunks_mut(BUCKETED * batch) {
        bucket.sort_by_key(|&i| lengths[i]);
        steps.extend(bucket.chunks(batch).map(<[usize]>::to_vec));
    }
    // Otherwise long examples would follow short ones at a steady beat.
    let mut places: Vec<usize> = (0..steps.len()).collect();
    shuffle(&mut places, seed);
    steps.swap_remove(places[place])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_shows_every_example_once_beside_others_of_its_length() {
        let lengths: Vec<usize> = (0..203).map(|i| 3 + (i * 37) % 60).collect();
        let epoch = |number: usize| {
            (0..26).map(|place| bucketed_by_length(&lengths, 8, 5, 26 * number + place)).collect::<Vec<_>>()
        };
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

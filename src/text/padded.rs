//! Sequences of several lengths as one rectangle.

use super::Sequence;

/// Sequences filled up to the longest.
pub struct Padded {
    /// Token ids, all rows of one length.
    pub ids: Vec<Vec<u32>>,
    /// Which of two texts each token belongs to, likewise.
    pub types: Vec<Vec<u32>>,
    /// Tokens of each row that are its own.
    pub lengths: Vec<usize>,
}

impl Padded {
    /// Any id will do as padding: nobody sees it.
    pub fn new(sequences: &[&Sequence]) -> Self {
        let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.ids.len()).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let pad = |row: &[u32]| [row, &vec![0; longest - row.len()]].concat();
        Self {
            ids: sequences.iter().map(|sequence| pad(&sequence.ids)).collect(),
            types: sequences.iter().map(|sequence| pad(&sequence.types)).collect(),
            lengths,
        }
    }
}

/// Which of the sequences of these lengths go together, so that a batch holds at most `tokens` tokens, padding included: the
/// short ones first. A longer one is alone.
pub fn batches(lengths: &[usize], tokens: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| lengths[i]);
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for i in order {
        match batches.last_mut().filter(|batch| (batch.len() + 1) * lengths[i] <= tokens) {
            Some(batch) => batch.push(i),
            None => batches.push(vec![i]),
        }
    }
    batches
}

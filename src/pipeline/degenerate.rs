//! Calibration text that says less than it seems to: what a user should hear before hours are spent on it.

use super::texts::Calibration;
use crate::model::Model;
use crate::text::Windows;
use std::collections::{BTreeSet, HashSet};

/// Fewer windows than were wanted, by this factor, are worth a warning: up to here the sums are only a little noisier.
const SHORT: usize = 2;
/// Of the hidden width, so many distinct tokens at least. What enters the first block of a model is a function of the token
/// alone (and its position), so its linears see no more directions than there are distinct tokens. Ordinary prose has far
/// more: some 400 among a thousand tokens, 3,000 among 16,000.
const DISTINCT_PER_WIDTH: usize = 2;
/// Of the vocabulary, so many distinct tokens are always enough: a vocabulary of bytes or characters has no more to give.
const DISTINCT_PER_VOCABULARY: usize = 4;
/// So many windows among which one is a copy are worth a warning: boilerplate repeats in real text too, but less.
const REPEATED: usize = 10;

impl Calibration {
    /// Whether the text gave far fewer windows than were `wanted`. How long the built-in text is nobody has chosen; whether
    /// it is enough is for the other questions.
    pub fn is_short(&self, wanted: usize) -> bool {
        let built_in = self.corpora.iter().any(|corpus| corpus.origin == crate::text::BUILT_IN);
        SHORT * self.windows.len() < wanted && !built_in
    }

    /// What makes this calibration doubtful, a sentence each: windows `wanted` and not there, directions and tokens never
    /// seen, text that repeats.
    pub fn doubts(&self, model: &Model, wanted: usize) -> Vec<String> {
        let mut doubts: Vec<String> = without_bos(model, &self.windows).into_iter().collect();
        let (count, length) = (self.windows.len(), self.windows.window);
        if self.is_short(wanted) {
            doubts.push(format!(
                "the calibration text is short: it gave {count} windows of {length} tokens where {wanted} were wanted"
            ));
        }
        let tokens = self.windows.tokens();
        if let Some(widest) = model.linears().iter().max_by_key(|spec| spec.input).filter(|spec| tokens < spec.input) {
            let (inputs, id) = (widest.input, widest.id);
            doubts.push(format!(
                "the calibration has {tokens} tokens, fewer than the {inputs} inputs of {id}: at least {} directions of what \
                 enters it were never seen, and what it does to them counts for nothing",
                inputs - tokens
            ));
        }
        let distinct = self.windows.rows.iter().flat_map(|row| &row.ids).collect::<BTreeSet<_>>().len();
        let enough = (model.hidden() / DISTINCT_PER_WIDTH).min(model.vocab() / DISTINCT_PER_VOCABULARY);
        if distinct < enough {
            doubts.push(format!(
                "the calibration has {distinct} distinct tokens among {tokens}, few for a hidden width of {} and a vocabulary \
                 of {}: most of what the model can read it was never shown",
                model.hidden(),
                model.vocab()
            ));
        }
        let seen: HashSet<&[u32]> = self.windows.ids().into_iter().collect();
        let copies = count - seen.len();
        if REPEATED * copies > count {
            doubts.push(format!("{copies} of {count} calibration windows repeat others word for word"));
        }
        let known = self.heldout.ids().into_iter().filter(|ids| seen.contains(ids)).count();
        if REPEATED * known > self.heldout.len() {
            doubts.push(format!(
                "{known} of {} held-out windows are also calibration windows: what is measured on them says nothing of other \
                 text",
                self.heldout.len()
            ));
        }
        doubts
    }
}

/// That a model which cannot do without BOS is shown windows that do not begin with it.
pub fn without_bos(model: &Model, windows: &Windows) -> Option<String> {
    (model.needs_bos() && !windows.bos).then(|| {
        format!(
            "{} is of a family whose predictions are worth nothing without BOS in front, and no window begins with it",
            model.source().label()
        )
    })
}

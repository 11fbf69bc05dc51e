//! Which keys a query sees.

use candle_core::{Device, Result, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// Which keys a query sees.
#[derive(Debug, Clone)]
pub enum AttentionMask {
    /// Those up to its own position.
    Causal {
        /// How many of these at most, its own among them; by default all.
        sliding_window: Option<usize>,
    },
    /// All of its sequence.
    Bidirectional {
        /// Where lengths are given, sequence b has `lengths[b]` keys, at least one; what follows is padding.
        lengths: Option<Arc<[usize]>>,
    },
}

impl AttentionMask {
    /// The keys that the query at position `i` of sequence `b` sees, of so many.
    pub(super) fn visible(&self, b: usize, i: usize, keys: usize) -> Range<usize> {
        match self {
            Self::Causal { sliding_window } => first_visible(*sliding_window, i)..i + 1,
            Self::Bidirectional { lengths: None } => 0..keys,
            Self::Bidirectional { lengths: Some(lengths) } => 0..lengths[b],
        }
    }

    /// The keys that any of `len` queries from position `start` on may see, of so many.
    pub(super) fn span(&self, start: usize, len: usize, keys: usize) -> Range<usize> {
        match self {
            Self::Causal { sliding_window } => first_visible(*sliding_window, start)..start + len,
            Self::Bidirectional { .. } => 0..keys,
        }
    }

    /// What is added to the scores (batch · kv, group, len, span) of `len` queries from position `start` on: 0 where a key
    /// is visible, −∞ where it is not. `None` where all are.
    pub(super) fn additive(
        &self,
        (batch, kv): (usize, usize),
        (start, len, keys): (usize, usize, usize),
        device: &Device,
    ) -> Result<Option<Tensor>> {
        let sequences = match self {
            Self::Bidirectional { lengths: None } => return Ok(None),
            Self::Bidirectional { lengths: Some(_) } => batch * kv,
            Self::Causal { .. } => 1,
        };
        let span = self.span(start, len, keys);
        let mut mask = Vec::with_capacity(sequences * len * span.len());
        for row in 0..sequences * len {
            let visible = self.visible(row / len / kv, start + row % len, keys);
            mask.extend(span.clone().map(|j| if visible.contains(&j) { 0.0 } else { f32::NEG_INFINITY }));
        }
        Ok(Some(Tensor::from_vec(mask, (sequences, 1, len, span.len()), device)?))
    }
}

fn first_visible(sliding_window: Option<usize>, i: usize) -> usize {
    sliding_window.map_or(0, |window| (i + 1).saturating_sub(window))
}

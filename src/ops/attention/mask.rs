//! Which keys a query sees.

use candle_core::{Device, Result, Tensor};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

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
    ///
    /// A causal mask is kept: every layer asks for it, and a device would be waited for whenever it is sent one.
    pub(super) fn additive(
        &self,
        (batch, kv): (usize, usize),
        (start, len, keys): (usize, usize, usize),
        device: &Device,
    ) -> Result<Option<Tensor>> {
        match self {
            Self::Bidirectional { lengths: None } => Ok(None),
            Self::Bidirectional { lengths: Some(_) } => self.make(batch * kv, kv, (start, len, keys), device).map(Some),
            Self::Causal { sliding_window } => {
                let key = (start, len, *sliding_window);
                let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(known) =
                    kept.iter().find(|known| known.key == key && known.mask.device().same_device(device))
                {
                    return Ok(Some(known.mask.clone()));
                }
                let mask = self.make(1, kv, (start, len, keys), device)?;
                let numbers: usize = kept.iter().map(|known| known.mask.elem_count()).sum();
                if numbers + mask.elem_count() > KEPT_NUMBERS {
                    kept.clear();
                }
                kept.push(Kept { key, mask: mask.clone() });
                Ok(Some(mask))
            }
        }
    }

    /// The mask (sequences, 1, len, span), of `kv` rows for every sequence of a batch or of one row for all.
    fn make(
        &self,
        sequences: usize,
        kv: usize,
        (start, len, keys): (usize, usize, usize),
        device: &Device,
    ) -> Result<Tensor> {
        let span = self.span(start, len, keys);
        let mut mask = Vec::with_capacity(sequences * len * span.len());
        for row in 0..sequences * len {
            let visible = self.visible(row / len / kv, start + row % len, keys);
            mask.extend(span.clone().map(|j| if visible.contains(&j) { 0.0 } else { f32::NEG_INFINITY }));
        }
        Tensor::from_vec(mask, (sequences, 1, len, span.len()), device)
    }
}

/// A causal mask by first position, number of queries and sliding window.
struct Kept {
    key: (usize, usize, Option<usize>),
    mask: Tensor,
}

static KEPT: Mutex<Vec<Kept>> = Mutex::new(Vec::new());
/// Numbers of all masks that are kept, at most.
const KEPT_NUMBERS: usize = 16 << 20;

fn first_visible(sliding_window: Option<usize>, i: usize) -> usize {
    sliding_window.map_or(0, |window| (i + 1).saturating_sub(window))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_that_are_kept_are_those_that_were_asked_for() {
        let ask = |window, at| {
            let mask = AttentionMask::Causal { sliding_window: window };
            let found = mask.additive((3, 2), at, &Device::Cpu).unwrap().unwrap();
            let made = mask.make(1, 2, at, &Device::Cpu).unwrap();
            assert_eq!(found.dims(), made.dims());
            assert_eq!(
                found.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
                made.flatten_all().unwrap().to_vec1::<f32>().unwrap()
            );
            assert!(
                KEPT.lock().unwrap().iter().map(|kept| kept.mask.elem_count()).sum::<usize>()
                    <= KEPT_NUMBERS.max(made.elem_count())
            );
        };
        for _ in 0..2 {
            for at in [(0, 5, 5), (0, 6, 6), (2, 5, 7), (0, 5, 5), (0, 4097, 4097), (3, 1, 4)] {
                [None, Some(3), Some(2), None].into_iter().for_each(|window| ask(window, at));
            }
        }
    }
}

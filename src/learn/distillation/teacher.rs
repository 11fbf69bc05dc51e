//! The original's final states of training windows, kept as far as there is room: windows come back every epoch.

use anyhow::{Context, Result};
use candle_core::Tensor;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Final states by window, (1, t, hidden) each.
///
/// Once there is no room for another window, those that come later are computed anew whenever they are shown: every window
/// comes back once an epoch, so that dropping any for another would save nothing.
///
/// Each window goes through the original alone. The last bits of an expert's output can depend on how many tokens it sees
/// at once, and neither the room nor an interruption may change the result.
pub(super) struct TeacherStates {
    /// Bytes that may be used.
    limit: usize,
    kept: RefCell<BTreeMap<usize, Tensor>>,
}

impl TeacherStates {
    /// Nothing yet; at most `limit` bytes later.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, kept: RefCell::default() }
    }

    /// The states (windows, t, hidden) of the windows at `indices`; `compute` makes those at some of their places, (1, t,
    /// hidden) each.
    pub(super) fn of(
        &self,
        indices: &[usize],
        compute: impl FnOnce(&[usize]) -> Result<Vec<Tensor>>,
    ) -> Result<Tensor> {
        let mut kept = self.kept.borrow_mut();
        let mut states: Vec<Option<Tensor>> = indices.iter().map(|index| kept.get(index).cloned()).collect();
        let missing: Vec<usize> = (0..indices.len()).filter(|&place| states[place].is_none()).collect();
        if !missing.is_empty() {
            for (&place, state) in missing.iter().zip(compute(&missing)?) {
                let bytes = state.elem_count() * state.dtype().size_in_bytes();
                if (kept.len() + 1) * bytes <= self.limit {
                    kept.insert(indices[place], state.clone());
                }
                states[place] = Some(state);
            }
        }
        let states = states.into_iter().collect::<Option<Vec<_>>>().context("states of every window")?;
        Ok(Tensor::cat(&states, 0)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn what_fits_is_computed_once_and_what_does_not_every_time() {
        // Two windows of three states of two channels.
        let cache = TeacherStates::new(2 * 3 * 2 * 4);
        let computed = RefCell::new(Vec::<usize>::new());
        let ask = |indices: &[usize]| {
            let state = |&place: &usize| {
                let window = indices[place];
                computed.borrow_mut().push(window);
                let values: Vec<f32> = (0..6).map(|i| (10 * window + i) as f32).collect();
                Ok(Tensor::from_vec(values, (1, 3, 2), &Device::Cpu)?)
            };
            let states = cache.of(indices, |places| places.iter().map(state).collect());
            let found = states.unwrap().to_vec3::<f32>().unwrap();
            for (window, &index) in found.iter().zip(indices) {
                assert_eq!(window[2], [(10 * index + 4) as f32, (10 * index + 5) as f32]);
            }
            assert_eq!(found.len(), indices.len());
            computed.take()
        };
        assert_eq!(ask(&[4]), [4]);
        assert_eq!(ask(&[7, 4]), [7]);
        assert!(ask(&[7, 4, 7]).is_empty());
        assert_eq!(ask(&[4, 1, 7]), [1], "there is no room for a third");
        assert_eq!(ask(&[1, 2, 1]), [1, 2, 1]);
        assert!(ask(&[4, 7]).is_empty(), "the first two are still there");
    }
}

//! The original's final states of training windows, kept as far as there is room: windows come back every epoch.

use anyhow::Result;
use candle_core::Tensor;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Final states by window, (1, t, hidden) each.
///
/// Once there is no room for another window, those that come later are computed anew whenever they are shown: every window
/// comes back once an epoch, so that dropping any for another would save nothing.
///
/// On the CPU a window's states do not depend on those it is computed together with, so the cache changes no bit of the
/// result. The exception is a linear of more than 512 inputs and at most 64 outputs shown at most 64 tokens at once, whose
/// sums are then split elsewhere.
pub(super) struct TeacherStates {
    /// Bytes that may be used, and that are.
    limit: usize,
    used: RefCell<usize>,
    kept: RefCell<BTreeMap<usize, Tensor>>,
}

impl TeacherStates {
    /// Nothing yet; at most `limit` bytes later.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, used: RefCell::new(0), kept: RefCell::default() }
    }

    /// The states (windows, t, hidden) of the windows at `indices`; `compute` makes those at some of their places.
    pub(super) fn of(&self, indices: &[usize], compute: impl FnOnce(&[usize]) -> Result<Tensor>) -> Result<Tensor> {
        let (mut kept, mut used) = (self.kept.borrow_mut(), self.used.borrow_mut());
        let mut states: Vec<Option<Tensor>> = indices.iter().map(|index| kept.get(index).cloned()).collect();
        let missing: Vec<usize> = (0..indices.len()).filter(|&place| states[place].is_none()).collect();
        if !missing.is_empty() {
            let computed = compute(&missing)?;
            for (row, &place) in missing.iter().enumerate() {
                let state = computed.narrow(0, row, 1)?;
                let bytes = state.elem_count() * state.dtype().size_in_bytes();
                if *used + bytes <= self.limit && !kept.contains_key(&indices[place]) {
                    *used += bytes;
                    // A view would hold on to all that were computed together.
                    kept.insert(indices[place], state.force_contiguous()?);
                }
                states[place] = Some(state);
            }
            if missing.len() == indices.len() {
                return Ok(computed);
            }
        }
        Ok(Tensor::cat(&states.into_iter().flatten().collect::<Vec<_>>(), 0)?)
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
            let states = cache.of(indices, |places| {
                let windows: Vec<usize> = places.iter().map(|&place| indices[place]).collect();
                let values: Vec<f32> = windows.iter().flat_map(|&w| (0..6).map(move |i| (10 * w + i) as f32)).collect();
                computed.borrow_mut().extend(&windows);
                Ok(Tensor::from_vec(values, (windows.len(), 3, 2), &Device::Cpu)?)
            });
            let found = states.unwrap().to_vec3::<f32>().unwrap();
            for (window, &index) in found.iter().zip(indices) {
                assert_eq!(window[2], [(10 * index + 4) as f32, (10 * index + 5) as f32]);
            }
            assert_eq!(found.len(), indices.len());
            computed.take()
        };
        assert_eq!(ask(&[4]), [4]);
        assert_eq!(ask(&[7, 4, 7]), [7, 7], "one window twice");
        assert!(ask(&[7, 4]).is_empty());
        assert_eq!(ask(&[4, 1, 7]), [1]);
        assert_eq!(ask(&[1, 2]), [1, 2], "there is no room for a third");
        assert!(ask(&[7, 4, 4]).is_empty(), "the first two are still there");
    }
}

//! Several linears at a time, as many as memory allows whatever the number of threads.

use super::Run;
use crate::device;
use crate::linalg::{CheckedSolver, on_one_thread, solving_with};
use crate::memory;
use crate::model::LinearSpec;
use anyhow::Result;
use rayon::prelude::*;
use std::cmp::Reverse;
use std::sync::atomic::{AtomicUsize, Ordering};

impl Run<'_> {
    /// `work` for every item, in order, as many at a time as memory allows. Large matrices are the business of the device.
    pub(super) fn in_waves<T: Sync, R: Send>(
        &self,
        items: &[T],
        spec: impl Fn(&T) -> &LinearSpec,
        work: impl Fn(&T) -> Result<R> + Sync,
    ) -> Result<Vec<R>> {
        self.solving(|solver| {
            let limit = self.model.compute().limits.decompositions;
            in_waves(limit, items, spec, |item| solving_with(solver, || work(item)))
        })
    }

    /// `work`, which is handed what the device has for large matrices.
    pub(super) fn solving<R>(&self, work: impl FnOnce(Option<&'static CheckedSolver>) -> R) -> R {
        let solver = device::solver(self.model.device(), self.progress);
        let result = work(solver);
        if let Some(trouble) = solver.and_then(CheckedSolver::take_trouble) {
            self.progress.warn(&trouble);
        }
        self.model.compute().room.tell(self.progress);
        result
    }
}

/// `work` for every item, in order, those together that take at most `limit` bytes by the estimate of [`bytes`]. Linears
/// are independent and none of their arithmetic depends on the number of threads, so neither does the result.
fn in_waves<T: Sync, R: Send>(
    limit: usize,
    items: &[T],
    spec: impl Fn(&T) -> &LinearSpec,
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let sizes: Vec<usize> = items.iter().map(|item| bytes(spec(item))).collect();
    let mut results = Vec::with_capacity(items.len());
    let mut rest = items;
    for len in waves(limit, &sizes) {
        if !results.is_empty() {
            // What the wave before has left would keep large matrices apart.
            memory::trim();
        }
        let (wave, after) = rest.split_at(len);
        rest = after;
        if len < rayon::current_num_threads() {
            // Threads without a linear of their own help with the products of the others.
            results.extend(wave.par_iter().map(&work).collect::<Result<Vec<_>>>()?);
        } else {
            results.extend(largest_first(wave, |item| bytes(spec(item)), |item| on_one_thread(|| work(item)))?);
        }
    }
    Ok(results)
}

/// `work` for every item on a thread of its own, the large ones first so that no thread is left with one at the end.
fn largest_first<T: Sync, R: Send>(
    items: &[T],
    size: impl Fn(&T) -> usize,
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|&i| Reverse(size(&items[i])));
    let next = AtomicUsize::new(0);
    let worker = |_| {
        let mut done = Vec::new();
        while let Some(&i) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            done.push((i, work(&items[i])?));
        }
        Ok(done)
    };
    let threads = rayon::current_num_threads().min(items.len());
    let done = (0..threads).into_par_iter().with_max_len(1).map(worker).collect::<Result<Vec<_>>>()?;
    let mut done: Vec<(usize, R)> = done.into_iter().flatten().collect();
    done.sort_by_key(|(i, _)| *i);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

/// Places of the linears that are in memory together in each wave: all of a small one, of a large one as many of the largest
/// as there are threads.
pub fn side_by_side(limit: usize, specs: &[&LinearSpec]) -> Vec<Vec<usize>> {
    let sizes: Vec<usize> = specs.iter().map(|spec| bytes(spec)).collect();
    let mut start = 0;
    let mut together = Vec::new();
    for len in waves(limit, &sizes) {
        let mut wave: Vec<usize> = (start..start + len).collect();
        wave.sort_by_key(|&place| Reverse(sizes[place]));
        wave.truncate(rayon::current_num_threads());
        together.push(wave);
        start += len;
    }
    together
}

/// Lengths of the waves.
fn waves(limit: usize, sizes: &[usize]) -> Vec<usize> {
    let mut waves = Vec::new();
    let mut sum = 0;
    for &size in sizes {
        match waves.last_mut() {
            Some(len) if sum + size <= limit => {
                *len += 1;
                sum += size;
            }
            _ => {
                waves.push(1);
                sum = size;
            }
        }
    }
    waves
}

/// What decomposing W (m, n) takes in f64: copies of W, and square matrices of its smaller side.
fn bytes(spec: &LinearSpec) -> usize {
    let small = spec.out.min(spec.input);
    8 * (4 * spec.params() + 5 * small * small)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_hold_every_item_once_and_stay_below_the_limit() {
        assert_eq!(waves(200, &[]), [] as [usize; 0]);
        assert_eq!(waves(200, &[100, 100, 100]), [2, 1]);
        assert_eq!(waves(200, &[300, 1, 100, 100]), [1, 2, 1]);
        assert_eq!(waves(200, &[1; 100]), [100]);
    }
}

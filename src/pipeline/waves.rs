//! Several linears at a time, as many as memory allows whatever the number of threads.

use crate::linalg::on_one_thread;
use crate::model::LinearSpec;
use anyhow::Result;
use rayon::prelude::*;

/// Memory that the decompositions of one wave may take together, by the estimate of [`bytes`]. A linear that needs more
/// has a wave to itself.
const WAVE_BYTES: usize = 1 << 30;

/// `work` for every item, in order. Linears are independent and none of their arithmetic depends on the number of
/// threads, so neither does the result.
pub fn in_waves<T: Sync, R: Send>(
    items: &[T],
    spec: impl Fn(&T) -> &LinearSpec,
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let sizes: Vec<usize> = items.iter().map(|item| bytes(spec(item))).collect();
    let mut results = Vec::with_capacity(items.len());
    let mut rest = items;
    for len in waves(&sizes) {
        let (wave, after) = rest.split_at(len);
        rest = after;
        if len < rayon::current_num_threads() {
            // Threads without a linear of their own help with the products of the others.
            results.extend(wave.par_iter().map(&work).collect::<Result<Vec<_>>>()?);
        } else {
            let one = |item| on_one_thread(|| work(item));
            results.extend(wave.par_iter().map(one).collect::<Result<Vec<_>>>()?);
        }
    }
    Ok(results)
}

/// Lengths of the waves.
fn waves(sizes: &[usize]) -> Vec<usize> {
    let mut waves = Vec::new();
    let mut sum = 0;
    for &size in sizes {
        match waves.last_mut() {
            Some(len) if sum + size <= WAVE_BYTES => {
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
        let half = WAVE_BYTES / 2;
        assert_eq!(waves(&[]), [] as [usize; 0]);
        assert_eq!(waves(&[half, half, half]), [2, 1]);
        assert_eq!(waves(&[3 * half, 1, half, half]), [1, 2, 1]);
        assert_eq!(waves(&[1; 100]), [100]);
    }
}

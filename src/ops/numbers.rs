//! The numbers of tensors: looking at them, and dividing them among threads.

use super::cpu::numbers;
use crate::linalg::simd;
use candle_core::{D, Result, Tensor};
use rayon::prelude::*;

/// Numbers handed to a thread at once.
pub(super) const PIECE: usize = 1 << 14;

/// Shows the numbers of an f32 tensor, without a copy where it lies in one piece in this machine's memory.
pub fn with_numbers<R>(x: &Tensor, look: impl FnOnce(&[f32]) -> R) -> Result<R> {
    match numbers(x) {
        Ok(numbers) => Ok(look(&numbers)),
        Err(_) => Ok(look(&x.flatten_all()?.to_vec1()?)),
    }
}

/// A number that is finite exactly when every element of `x` is (short of overflowing f32 altogether), where `x` is: a sum
/// of magnitudes.
pub fn magnitude(x: &Tensor) -> Result<Tensor> {
    x.abs()?.mean_keepdim(D::Minus1)?.sum_all()
}

/// Whether every element of `x` is finite. Waits for the device.
pub fn is_finite(x: &Tensor) -> Result<bool> {
    if !x.device().is_cpu() {
        return Ok(magnitude(x)?.to_scalar::<f32>()?.is_finite());
    }
    with_numbers(x, |numbers| numbers.par_chunks(PIECE).all(all_finite))
}

simd::for_each_width! {
    /// Whether no element is NaN or infinite.
    pub fn all_finite(x: &[f32]) -> bool {
        // An integer maximum vectorises where a chain of float comparisons with early exit would not.
        let mut largest = 0;
        for &x in x {
            let magnitude = x.to_bits() & 0x7fff_ffff;
            largest = if magnitude > largest { magnitude } else { largest };
        }
        largest < 0x7f80_0000
    }
}

/// What `f` makes of every row of `width` numbers.
pub(super) fn by_rows(x: &[f32], width: usize, f: impl Fn(&[f32], &mut [f32]) + Sync) -> Vec<f32> {
    let width = width.max(1);
    let mut y = vec![0f32; x.len()];
    let piece = row_piece(width);
    y.par_chunks_mut(piece).zip(x.par_chunks(piece)).for_each(|(y, x)| {
        y.chunks_exact_mut(width).zip(x.chunks_exact(width)).for_each(|(y, x)| f(x, y));
    });
    y
}

/// Numbers handed to a thread at once where whole rows belong together.
pub(super) fn row_piece(width: usize) -> usize {
    width * (PIECE / width).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn what_is_not_finite_is_never_hidden() {
        for at in [0, 3, 15, 16, 40] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x: Vec<f32> = (0..41).map(|i| (i as f32).sin()).collect();
                assert!(all_finite(&x));
                x[at] = bad;
                assert!(!all_finite(&x), "{bad} at {at}");
                let x = Tensor::from_vec(x, 41, &Device::Cpu).unwrap();
                assert!(!is_finite(&x).unwrap(), "{bad} at {at}");
                assert!(!magnitude(&x).unwrap().to_scalar::<f32>().unwrap().is_finite(), "{bad} at {at}");
            }
        }
    }

    #[test]
    fn numbers_are_seen_in_order_whatever_the_layout() {
        let x = Tensor::arange(0f32, 6.0, &Device::Cpu).unwrap().reshape((2, 3)).unwrap();
        assert_eq!(with_numbers(&x.narrow(0, 1, 1).unwrap(), <[f32]>::to_vec).unwrap(), [3.0, 4.0, 5.0]);
        assert_eq!(with_numbers(&x.t().unwrap(), <[f32]>::to_vec).unwrap(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    }
}

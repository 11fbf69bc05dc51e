//! Functions of each number alone, and of pairs of numbers, on the CPU: one pass over the numbers each way.
//!
//! ```text
//! y_i = f(x_i)      ∂x_i = g_i f'(x_i)           sum: y = a + b      ∂a = ∂b = g
//! ```
//! g is the gradient on y.

use super::cpu::{CpuOp, Input, apply};
use super::numbers::PIECE;
use crate::linalg::simd;
use candle_core::{Result, Shape, Tensor};
use rayon::prelude::*;

/// a + b, of the same shape.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    // candle's own sum works on one thread.
    if a.device().is_cpu() { apply(Add, [a, b]) } else { a + b }
}

simd::for_each_width! {
    /// y ← a + b
    pub fn sum(a: &[f32], b: &[f32], y: &mut [f32]) {
        for ((&a, &b), y) in a.iter().zip(b).zip(y) {
            *y = a + b;
        }
    }
}

/// y ← f(x)
type OfEach = fn(&[f32], &mut [f32]);
/// y ← f(a, b)
type OfPairs = fn(&[f32], &[f32], &mut [f32]);

/// Applies `f` to each number of a tensor of the CPU; `back` makes of numbers and the gradients on their f the gradients
/// on them.
pub(super) fn elementwise(x: &Tensor, f: OfEach, back: OfPairs) -> Result<Tensor> {
    apply(Elementwise { f, back }, [x])
}

/// f of all pairs.
pub(super) fn of_pairs(f: OfPairs, a: &[f32], b: &[f32]) -> Vec<f32> {
    let mut y = vec![0f32; a.len()];
    let pieces = y.par_chunks_mut(PIECE).zip(a.par_chunks(PIECE)).zip(b.par_chunks(PIECE));
    pieces.for_each(|((y, a), b)| f(a, b, y));
    y
}

struct Elementwise {
    f: OfEach,
    back: OfPairs,
}

impl CpuOp<1> for Elementwise {
    const NAME: &'static str = "elementwise";

    fn forward(&self, [x]: [Input; 1]) -> Result<(Vec<f32>, Shape)> {
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).for_each(|(y, x)| (self.f)(x, y));
        Ok((y, x.shape.clone()))
    }

    fn backward(&self, [x]: [Input; 1], g: &[f32], _: [bool; 1]) -> Result<[Vec<f32>; 1]> {
        Ok([of_pairs(self.back, &x, g)])
    }
}

struct Add;

impl CpuOp<2> for Add {
    const NAME: &'static str = "add";

    fn forward(&self, [a, b]: [Input; 2]) -> Result<(Vec<f32>, Shape)> {
        Ok((of_pairs(sum, &a, &b), a.shape.clone()))
    }

    fn backward(&self, _: [Input; 2], g: &[f32], wanted: [bool; 2]) -> Result<[Vec<f32>; 2]> {
        Ok(wanted.map(|wanted| if wanted { g.to_vec() } else { Vec::new() }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::parity;
    use super::*;

    #[test]
    fn sums_agree_with_plain_operations() {
        let inputs = [parity::wave(&[3, 700, 37], 0.0), parity::wave(&[3, 700, 37], 1.0)];
        parity::agree("sum", &inputs, |x| add(&x[0], &x[1]), |x| &x[0] + &x[1]);
    }
}

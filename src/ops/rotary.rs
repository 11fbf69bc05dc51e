//! Rotary position embedding, half-split layout: dimension i turns with dimension i + r/2, r of d dimensions being rotated.
//!
//! ```text
//! y_i = x_i cos θ_i − x_{i+r/2} sin θ_i        y_{i+r/2} = x_i sin θ_i + x_{i+r/2} cos θ_i        i < r/2
//! ```
//! Back it is the same rotation by −θ.

use super::cpu::{CpuOp, Input, apply};
use candle_core::{D, Result, Shape, Tensor};
use rayon::prelude::*;

/// Rotates `x` (batch, t, heads, d) by the angles whose cosines and sines are given, each (t, r/2): tables, which have no
/// gradients. Where r < d, the last dimensions stay.
pub fn rotary(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { apply(Rotary, [x, cos, sin]) } else { plain(x, cos, sin) }
}

/// [`rotary`] by tensor operations.
fn plain(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (half, d) = (cos.dim(1)?, x.dim(3)?);
    let (cos, sin) = (&cos.unsqueeze(1)?, &sin.unsqueeze(1)?);
    let (first, second) = (x.narrow(3, 0, half)?, x.narrow(3, half, half)?);
    let left = (first.broadcast_mul(cos)? - second.broadcast_mul(sin)?)?;
    let right = (first.broadcast_mul(sin)? + second.broadcast_mul(cos)?)?;
    match 2 * half == d {
        true => Tensor::cat(&[left, right], D::Minus1),
        false => Tensor::cat(&[left, right, x.narrow(3, 2 * half, d - 2 * half)?], D::Minus1),
    }
}

struct Rotary;

impl Rotary {
    /// Of `x` by the angles times `sign`.
    fn rotate(&self, x: &[f32], shape: &Shape, cos: &[f32], sin: &[f32], sign: f32) -> Result<Vec<f32>> {
        let (_, t, heads, d) = shape.dims4()?;
        let (width, half) = (heads * d, cos.len() / t);
        let mut y = vec![0f32; x.len()];
        let rows = y.par_chunks_mut(width).zip(x.par_chunks(width)).enumerate().with_min_len(64);
        rows.for_each(|(row, (y, x))| {
            let at = row % t * half..(row % t + 1) * half;
            let (cos, sin) = (&cos[at.clone()], &sin[at]);
            for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                y[2 * half..].copy_from_slice(&x[2 * half..]);
                let ((y1, y2), (x1, x2)) = (y.split_at_mut(half), x.split_at(half));
                for i in 0..half {
                    let sin = sign * sin[i];
                    y1[i] = x1[i] * cos[i] - x2[i] * sin;
                    y2[i] = x1[i] * sin + x2[i] * cos[i];
                }
            }
        });
        Ok(y)
    }
}

impl CpuOp<3> for Rotary {
    const NAME: &'static str = "rotary";

    fn forward(&self, [x, cos, sin]: [Input; 3]) -> Result<(Vec<f32>, Shape)> {
        Ok((self.rotate(&x, x.shape, &cos, &sin, 1.0)?, x.shape.clone()))
    }

    fn backward(&self, [x, cos, sin]: [Input; 3], g: &[f32], _: [bool; 3]) -> Result<[Vec<f32>; 3]> {
        Ok([self.rotate(g, x.shape, &cos, &sin, -1.0)?, Vec::new(), Vec::new()])
    }
}

#[cfg(test)]
mod tests {
    use super::super::parity;
    use super::*;

    #[test]
    fn forms_agree() {
        // All dimensions are rotated, or six of eight.
        for half in [4, 3] {
            let x = [parity::wave(&[2, 70, 3, 8], 0.0)];
            let angles = parity::wave(&[70, half], 1.0);
            let tables = |x: &Tensor| -> Result<[Tensor; 2]> {
                let angles = angles.to_device(x.device())?;
                Ok([angles.cos()?, angles.sin()?])
            };
            let run = |f: fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>, x: &Tensor| {
                let [cos, sin] = tables(x)?;
                f(x, &cos, &sin)
            };
            parity::agree("rotary", &x, |x| run(rotary, &x[0]), |x| run(plain, &x[0]));
        }
    }
}

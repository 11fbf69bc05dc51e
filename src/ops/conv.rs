//! Causal convolution of each channel for itself.
//!
//! ```text
//! y_t = b + Σ_k w_k ∘ x_{t − K + 1 + k}        k < K, x being zero before its start, or what stood there
//! ```
//! Back, with g the gradient on y: on x_s it is Σ_k w_k ∘ g_{s + K − 1 − k}, on w_k Σ_t g_t ∘ x_{t − K + 1 + k}, on b Σ_t g_t.

use super::cpu::{CpuOp, Input, apply};
use crate::linalg::simd;
use candle_core::{Result, Shape, Tensor};
use rayon::prelude::*;

/// Rows that one thread convolves at once.
const ROWS: usize = 32;

/// `x` is (batch, t, channels), `weight` (channels, 1, K), `bias` (channels); `before`, (batch, K − 1, channels), is what
/// stands in front of x in place of zeros.
pub fn causal_conv1d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, before: Option<&Tensor>) -> Result<Tensor> {
    let padded = padded(x, weight.dim(2)?, before)?;
    if !x.device().is_cpu() {
        return plain(&padded, weight, bias);
    }
    let zeros = Tensor::zeros(weight.dim(0)?, x.dtype(), x.device())?;
    apply(CausalConv, [&padded, weight, bias.unwrap_or(&zeros)])
}

/// The last K − 1 rows of `x` (batch, t, channels) behind `before`: what stands in front of what comes next.
pub fn conv1d_state(x: &Tensor, taps: usize, before: Option<&Tensor>) -> Result<Tensor> {
    let padded = padded(x, taps, before)?;
    padded.narrow(1, padded.dim(1)? + 1 - taps, taps - 1)?.contiguous()
}

/// `x` behind `before`, or behind as many rows of zeros: (batch, K − 1 + t, channels).
fn padded(x: &Tensor, taps: usize, before: Option<&Tensor>) -> Result<Tensor> {
    if taps == 1 {
        return x.contiguous();
    }
    let (batch, _, channels) = x.dims3()?;
    let before = match before {
        Some(before) => before.clone(),
        None => Tensor::zeros((batch, taps - 1, channels), x.dtype(), x.device())?,
    };
    Tensor::cat(&[&before, &x.contiguous()?], 1)
}

/// The convolution of padded rows by tensor operations.
fn plain(padded: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (channels, _, taps) = weight.dims3()?;
    let t = padded.dim(1)? + 1 - taps;
    let tap = |k: usize| padded.narrow(1, k, t)?.broadcast_mul(&weight.narrow(2, k, 1)?.reshape(channels)?);
    let y = (1..taps).try_fold(tap(0)?, |y, k| y + tap(k)?)?;
    bias.map_or(Ok(y.clone()), |bias| y.broadcast_add(bias))
}

/// Of padded rows (batch, K − 1 + t, channels) to (batch, t, channels).
struct CausalConv;

/// The weight (channels, 1, K) as (K, channels), and K.
fn taps_first(weight: &[f32], channels: usize) -> (Vec<f32>, usize) {
    let taps = weight.len() / channels.max(1);
    ((0..weight.len()).map(|i| weight[i % channels * taps + i / channels]).collect(), taps)
}

impl CpuOp<3> for CausalConv {
    const NAME: &'static str = "causal-conv1d";

    fn forward(&self, [x, weight, bias]: [Input; 3]) -> Result<(Vec<f32>, Shape)> {
        let (batch, length, channels) = x.shape.dims3()?;
        let (weight, taps) = taps_first(&weight, channels);
        let t = length + 1 - taps;
        let mut y = vec![0f32; batch * t * channels];
        let pieces = y.par_chunks_mut(t * channels).enumerate().flat_map(|(b, y)| {
            y.par_chunks_mut(ROWS * channels).enumerate().map(move |(i, y)| (b * length + i * ROWS, y))
        });
        pieces.for_each(|(first, y)| convolve(&x[first * channels..], &weight, &bias, y));
        Ok((y, (batch, t, channels).into()))
    }

    fn backward(&self, [x, weight, bias]: [Input; 3], g: &[f32], wanted: [bool; 3]) -> Result<[Vec<f32>; 3]> {
        let (batch, length, channels) = x.shape.dims3()?;
        let (by_tap, taps) = taps_first(&weight, channels);
        let size = (length + 1 - taps) * channels;
        let mut on_x = vec![0f32; x.len()];
        on_x.par_chunks_mut(length * channels).zip(g.par_chunks(size)).for_each(|(on_x, g)| {
            let pieces = on_x.par_chunks_mut(ROWS * channels).enumerate();
            pieces.for_each(|(i, on_x)| convolve_back(g, i * ROWS, &by_tap, channels, on_x));
        });
        if !wanted[1] && !wanted[2] {
            return Ok([on_x, Vec::new(), Vec::new()]);
        }
        // On the weight as (K, channels), then on the bias; of each sequence, to be summed in order.
        let of_sequence = |b: usize| {
            let mut sums = vec![0f32; weight.len() + bias.len()];
            correlate(&x[b * length * channels..], &g[b * size..(b + 1) * size], channels, &mut sums);
            sums
        };
        let parts: Vec<Vec<f32>> = (0..batch).into_par_iter().map(of_sequence).collect();
        let mut sums = vec![0f32; weight.len() + bias.len()];
        parts.iter().for_each(|part| sums.iter_mut().zip(part).for_each(|(sum, x)| *sum += x));
        let on_bias = sums.split_off(weight.len());
        let on_weight = (0..sums.len()).map(|i| sums[i % taps * channels + i / taps]).collect();
        Ok([on_x, on_weight, on_bias])
    }
}

simd::for_each_width! {
    /// Rows of y, the first of which ends at row K − 1 of x; the weight is (K, channels).
    pub fn convolve(x: &[f32], weight: &[f32], bias: &[f32], y: &mut [f32]) {
        let channels = bias.len();
        for (t, y) in y.chunks_exact_mut(channels).enumerate() {
            y.copy_from_slice(bias);
            for (k, weight) in weight.chunks_exact(channels).enumerate() {
                let x = &x[(t + k) * channels..][..channels];
                for ((y, w), x) in y.iter_mut().zip(weight).zip(x) {
                    *y += w * x;
                }
            }
        }
    }
}

simd::for_each_width! {
    /// Adds the gradient on padded rows from row `first` on; g (t, channels) is that on y.
    pub fn convolve_back(g: &[f32], first: usize, weight: &[f32], channels: usize, on_x: &mut [f32]) {
        for (i, on_x) in on_x.chunks_exact_mut(channels).enumerate() {
            for (k, weight) in weight.chunks_exact(channels).enumerate() {
                let Some(t) = (first + i).checked_sub(k) else { break };
                let Some(g) = g.get(t * channels..(t + 1) * channels) else { continue };
                for ((on_x, w), g) in on_x.iter_mut().zip(weight).zip(g) {
                    *on_x += w * g;
                }
            }
        }
    }
}

simd::for_each_width! {
    /// Adds to (K + 1, channels) what padded rows and the gradient g (t, channels) on y leave on the weight and the bias.
    pub fn correlate(x: &[f32], g: &[f32], channels: usize, sums: &mut [f32]) {
        let taps = sums.len() / channels - 1;
        for (t, g) in g.chunks_exact(channels).enumerate() {
            for (k, sum) in sums.chunks_exact_mut(channels).enumerate() {
                if k == taps {
                    for (sum, g) in sum.iter_mut().zip(g) {
                        *sum += g;
                    }
                } else {
                    for ((sum, x), g) in sum.iter_mut().zip(&x[(t + k) * channels..]).zip(g) {
                        *sum += x * g;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parity;
    use super::*;

    #[test]
    fn forms_agree_also_in_pieces() {
        for (batch, t, channels, taps) in [(1, 1, 3, 4), (2, 70, 5, 4), (3, 40, 16, 2), (1, 9, 2, 1)] {
            let wave = |shape: &[usize], phase| parity::wave(shape, phase);
            let x = wave(&[batch, t, channels], 0.0);
            let inputs = [x.clone(), wave(&[channels, 1, taps], 1.0), wave(&[channels], 2.0)];
            let alone = |x: &[Tensor]| plain(&padded(&x[0], taps, None)?, &x[1], x.get(2));
            let what = format!("convolution {batch} {t} {channels} {taps}");
            parity::agree(&what, &inputs, |x| causal_conv1d(&x[0], &x[1], x.get(2), None), alone);
            parity::agree(&what, &inputs[..2], |x| causal_conv1d(&x[0], &x[1], None, None), alone);

            let (first, rest) = (x.narrow(1, 0, t / 2 + t % 2).unwrap(), t / 2);
            if rest == 0 {
                continue;
            }
            let whole = causal_conv1d(&x, &inputs[1], None, None).unwrap().narrow(1, t - rest, rest).unwrap();
            let before = conv1d_state(&first, taps, None).unwrap();
            assert_eq!(before.dims(), [batch, taps - 1, channels]);
            let second = x.narrow(1, t - rest, rest).unwrap();
            let second = causal_conv1d(&second, &inputs[1], None, Some(&before)).unwrap();
            assert_eq!(second.to_vec3::<f32>().unwrap(), whole.to_vec3::<f32>().unwrap(), "{what}");
        }
    }
}

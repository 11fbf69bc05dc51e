//! What stands in front of the scan: a causal convolution of each channel for itself, and softplus.

use super::super::ops::{Elementwise, with_numbers};
use super::super::simd::{self, exp32};
use anyhow::Result;
use candle_core::{D, Tensor};
use rayon::prelude::*;

/// Rows that one thread convolves at once.
const ROWS: usize = 32;

/// y_t = bias + Σ_k w_k ∘ x_{t − taps + 1 + k}, x being zero before its start, or `before` (batch, taps − 1, channels).
/// `x` is (batch, t, channels), `weight` (channels, 1, taps), `bias` (channels).
pub fn causal_conv(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, before: Option<&Tensor>) -> Result<Tensor> {
    let (batch, t, channels) = x.dims3()?;
    let taps = weight.dim(2)?;
    let padded = padded(x, taps, before)?;
    let weight: Vec<f32> = weight.reshape((channels, taps))?.t()?.flatten_all()?.to_vec1()?;
    let bias = bias.map_or(Ok(vec![0f32; channels]), |bias| bias.to_vec1())?;
    let mut y = vec![0f32; batch * t * channels];
    with_numbers(&padded, |padded| {
        let length = t + taps - 1;
        let pieces = y.par_chunks_mut(t * channels).enumerate().flat_map(|(b, y)| {
            y.par_chunks_mut(ROWS * channels).enumerate().map(move |(i, y)| (b * length + i * ROWS, y))
        });
        pieces.for_each(|(first, y)| convolve(&padded[first * channels..], &weight, &bias, y));
    })?;
    Ok(Tensor::from_vec(y, (batch, t, channels), x.device())?)
}

/// `x` behind `before`, or behind as many rows of zeros: (batch, taps − 1 + t, channels).
fn padded(x: &Tensor, taps: usize, before: Option<&Tensor>) -> Result<Tensor> {
    if taps == 1 {
        return Ok(x.contiguous()?);
    }
    let (batch, _, channels) = x.dims3()?;
    let before = match before {
        Some(before) => before.clone(),
        None => Tensor::zeros((batch, taps - 1, channels), x.dtype(), x.device())?,
    };
    Ok(Tensor::cat(&[&before, &x.contiguous()?], 1)?)
}

simd::for_each_width! {
    /// Rows of y, the first of which ends at row taps − 1 of x; the weight is (taps, channels).
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

/// [`causal_conv`] from the start of a sequence, by operations that carry gradients.
pub fn causal_conv_differentiable(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (_, t, channels) = x.dims3()?;
    let taps = weight.dim(2)?;
    let padded = padded(x, taps, None)?;
    let tap = |k: usize| -> Result<Tensor> {
        let weight = weight.narrow(2, k, 1)?.reshape(channels)?;
        Ok(padded.narrow(1, k, t)?.broadcast_mul(&weight)?)
    };
    let mut y = tap(0)?;
    for k in 1..taps {
        y = (y + tap(k)?)?;
    }
    match bias {
        Some(bias) => Ok(y.broadcast_add(bias)?),
        None => Ok(y),
    }
}

/// log(1 + e^x), element by element.
pub fn softplus(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        return Ok(x.contiguous()?.apply_op1_no_bwd(&Elementwise(softplus_of))?);
    }
    softplus_differentiable(x)
}

simd::for_each_width! {
    /// y ← log(1 + e^x) = max(x, 0) + 2 artanh(e / (2 + e)) with e = e^−|x|.
    pub fn softplus_of(x: &[f32], y: &mut [f32]) {
        for (&x, y) in x.iter().zip(y) {
            let e = exp32(-x.abs());
            let s = e / (2.0 + e);
            let q = s * s;
            let mut p = 1.0 / 15.0;
            p = p * q + 1.0 / 13.0;
            p = p * q + 1.0 / 11.0;
            p = p * q + 1.0 / 9.0;
            p = p * q + 1.0 / 7.0;
            p = p * q + 1.0 / 5.0;
            p = p * q + 1.0 / 3.0;
            p = p * q + 1.0;
            *y = x.max(0.0) + 2.0 * s * p;
        }
    }
}

/// [`softplus`] by operations that carry gradients: max(x, 0) + log(1 + e^−|x|).
pub fn softplus_differentiable(x: &Tensor) -> Result<Tensor> {
    Ok((x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?)?)
}

/// The last `rows` rows of `x` (batch, t, channels) behind `before`: what the next call has to see.
pub fn tail(x: &Tensor, taps: usize, before: Option<&Tensor>) -> Result<Tensor> {
    let padded = padded(x, taps, before)?;
    let length = padded.dim(D::Minus2)?;
    Ok(padded.narrow(D::Minus2, length + 1 - taps, taps - 1)?.contiguous()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn softplus_agrees_with_f64() {
        for range in [0.01f32, 1.0, 20.0, 80.0] {
            let x: Vec<f32> = (0..1003).map(|i| ((i * 7919 % 10007) as f32 / 5003.0 - 1.0) * range).collect();
            let mut y = x.clone();
            softplus_of(&x, &mut y);
            for (x, y) in x.iter().zip(&y) {
                let wanted = f64::from(*x).exp().ln_1p();
                assert!((f64::from(*y) - wanted).abs() <= 3e-7 * wanted, "{x}: {y} for {wanted}");
            }
        }
        let mut y = [1f32; 4];
        softplus_of(&[f32::NAN, f32::INFINITY, 1e30, f32::NEG_INFINITY], &mut y);
        assert!(y[0].is_nan() && y[1] == f32::INFINITY && y[2..] == [1e30, 0.0]);
    }

    #[test]
    fn the_convolution_is_the_same_both_ways_and_in_pieces() {
        for (batch, t, channels, taps) in [(1, 1, 3, 4), (2, 70, 5, 4), (3, 40, 16, 2), (1, 9, 2, 1)] {
            let random = |shape: &[usize]| Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
            let (x, weight, bias) = (random(&[batch, t, channels]), random(&[channels, 1, taps]), random(&[channels]));
            for bias in [None, Some(&bias)] {
                let distance = |a: &Tensor, b: &Tensor| {
                    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
                };
                let fast = causal_conv(&x, &weight, bias, None).unwrap();
                let slow = causal_conv_differentiable(&x, &weight, bias).unwrap();
                assert!(distance(&fast, &slow) < 1e-5, "{batch} {t} {channels} {taps}");
                let (first, rest) = (x.narrow(1, 0, t / 2 + t % 2).unwrap(), t / 2);
                if rest > 0 {
                    let before = tail(&first, taps, None).unwrap();
                    assert_eq!(before.dims(), [batch, taps - 1, channels]);
                    let second = x.narrow(1, t - rest, rest).unwrap();
                    let second = causal_conv(&second, &weight, bias, Some(&before)).unwrap();
                    assert!(distance(&second, &fast.narrow(1, t - rest, rest).unwrap().contiguous().unwrap()) < 1e-6);
                }
            }
        }
    }
}

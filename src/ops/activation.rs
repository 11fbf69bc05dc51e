//! Non-linearities, alone and with a gate, and softplus.
//!
//! ```text
//! silu x = x σ(x)      gelu x = x Φ(x)      gelu_tanh x = ½ x (1 + tanh u) = x σ(2u),  u = √(2/π) (x + 0.044715 x³)
//! relu x = max(x, 0)   tanh x               softplus x = log(1 + eˣ)            gated: act(gate) ∘ up
//! ```
//! σ is the logistic function, Φ the normal distribution's.

use super::cpu::{CpuOp, Input, apply};
use super::elementwise::{elementwise, of_pairs};
use super::numbers::PIECE;
use crate::linalg::simd::{self, exp32};
use candle_core::{Result, Shape, Tensor};
use rayon::prelude::*;

/// Non-linearity of a feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x)
    Silu,
    /// Exact GELU, x · Φ(x)
    Gelu,
    /// GELU's tanh approximation
    GeluTanh,
    /// max(x, 0)
    Relu,
    /// tanh x, of poolers
    Tanh,
}

/// Applies the non-linearity element by element.
pub fn activation(kind: Activation, x: &Tensor) -> Result<Tensor> {
    match kind {
        Activation::Silu if x.device().is_cpu() => elementwise(x, silu, silu_back),
        Activation::Gelu if x.device().is_cpu() => elementwise(x, gelu, gelu_back),
        Activation::GeluTanh if x.device().is_cpu() => elementwise(x, gelu_tanh, gelu_tanh_back),
        _ => plain(kind, x),
    }
}

/// [`activation`] by tensor operations.
fn plain(kind: Activation, x: &Tensor) -> Result<Tensor> {
    match kind {
        Activation::Silu => x.silu(),
        Activation::Gelu => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::Relu => x.relu(),
        Activation::Tanh => x.tanh(),
    }
}

/// act(gate) ∘ up, of the same shape.
pub fn gated_activation(kind: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if kind == Activation::Silu && gate.device().is_cpu() {
        return apply(SiluTimes, [gate, up]);
    }
    activation(kind, gate)? * up
}

/// log(1 + eˣ), element by element.
pub fn softplus(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { elementwise(x, softplus_of, softplus_back) } else { plain_softplus(x) }
}

/// [`softplus`] by tensor operations: max(x, 0) + log(1 + e^−|x|).
fn plain_softplus(x: &Tensor) -> Result<Tensor> {
    x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?
}

/// σ(x)
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp32(-x))
}

/// The slope of silu at x, where σ(x) is s.
#[inline(always)]
fn silu_slope(x: f32, s: f32) -> f32 {
    s * (1.0 + x * (1.0 - s))
}

simd::for_each_width! {
    /// y ← silu x
    pub fn silu(x: &[f32], y: &mut [f32]) {
        for (&x, y) in x.iter().zip(y) {
            *y = x / (1.0 + exp32(-x));
        }
    }
}

simd::for_each_width! {
    /// The gradient on x of silu x, on which it is g.
    pub fn silu_back(x: &[f32], g: &[f32], on_x: &mut [f32]) {
        for ((&x, &g), on_x) in x.iter().zip(g).zip(on_x) {
            *on_x = g * silu_slope(x, sigmoid(x));
        }
    }
}

simd::for_each_width! {
    /// y ← silu(x) · up
    pub fn silu_times(x: &[f32], up: &[f32], y: &mut [f32]) {
        for ((&x, &up), y) in x.iter().zip(up).zip(y) {
            *y = x / (1.0 + exp32(-x)) * up;
        }
    }
}

simd::for_each_width! {
    /// The gradients on gate and up of silu(gate) · up, on which it is g.
    pub fn silu_times_back(gate: &[f32], up: &[f32], g: &[f32], on_gate: &mut [f32], on_up: &mut [f32]) {
        for ((((&x, &up), &g), on_gate), on_up) in gate.iter().zip(up).zip(g).zip(on_gate).zip(on_up) {
            let s = sigmoid(x);
            *on_up = g * x * s;
            *on_gate = g * up * silu_slope(x, s);
        }
    }
}

/// 2 √(2/π)
const TWICE: f32 = 1.595_769_2;

simd::for_each_width! {
    /// y ← gelu_tanh x
    pub fn gelu_tanh(x: &[f32], y: &mut [f32]) {
        for (&x, y) in x.iter().zip(y) {
            *y = x / (1.0 + exp32(-TWICE * (x + 0.044715 * x * x * x)));
        }
    }
}

simd::for_each_width! {
    /// The gradient on x of gelu_tanh x, on which it is g.
    pub fn gelu_tanh_back(x: &[f32], g: &[f32], on_x: &mut [f32]) {
        for ((&x, &g), on_x) in x.iter().zip(g).zip(on_x) {
            let s = sigmoid(TWICE * (x + 0.044715 * x * x * x));
            *on_x = g * s * (1.0 + x * (1.0 - s) * TWICE * (1.0 + 3.0 * 0.044715 * x * x));
        }
    }
}

/// Φ(x) to 1e-7 and exp(−x²/2): Abramowitz and Stegun 7.1.26, erfc(z) = (a₁ t + … + a₅ t⁵) exp(−z²) for z ≥ 0,
/// t = 1 / (1 + p z).
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    const P: f32 = 0.327_591_1;
    const A: [f32; 5] = [0.254_829_6, -0.284_496_74, 1.421_413_7, -1.453_152, 1.061_405_4];
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + P * z);
    let series = t * (A[0] + t * (A[1] + t * (A[2] + t * (A[3] + t * A[4]))));
    let bell = exp32(-z * z);
    let half = 0.5 * series * bell;
    (if x < 0.0 { half } else { 1.0 - half }, bell)
}

simd::for_each_width! {
    /// y ← gelu x
    pub fn gelu(x: &[f32], y: &mut [f32]) {
        for (&x, y) in x.iter().zip(y) {
            *y = x * normal(x).0;
        }
    }
}

simd::for_each_width! {
    /// The gradient on x of gelu x, on which it is g.
    pub fn gelu_back(x: &[f32], g: &[f32], on_x: &mut [f32]) {
        const DENSITY: f32 = 0.398_942_3;
        for ((&x, &g), on_x) in x.iter().zip(g).zip(on_x) {
            let (phi, bell) = normal(x);
            *on_x = g * (phi + x * DENSITY * bell);
        }
    }
}

simd::for_each_width! {
    /// y ← log(1 + eˣ) = max(x, 0) + 2 artanh(e / (2 + e)) with e = e^−|x|.
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

simd::for_each_width! {
    /// The gradient on x of softplus x, on which it is g.
    pub fn softplus_back(x: &[f32], g: &[f32], on_x: &mut [f32]) {
        for ((&x, &g), on_x) in x.iter().zip(g).zip(on_x) {
            *on_x = g * sigmoid(x);
        }
    }
}

/// silu(gate) ∘ up
struct SiluTimes;

impl CpuOp<2> for SiluTimes {
    const NAME: &'static str = "silu-times";

    fn forward(&self, [gate, up]: [Input; 2]) -> Result<(Vec<f32>, Shape)> {
        Ok((of_pairs(silu_times, &gate, &up), gate.shape.clone()))
    }

    fn backward(&self, [gate, up]: [Input; 2], g: &[f32], _: [bool; 2]) -> Result<[Vec<f32>; 2]> {
        let (mut on_gate, mut on_up) = (vec![0f32; gate.len()], vec![0f32; gate.len()]);
        let inputs = gate.par_chunks(PIECE).zip(up.par_chunks(PIECE)).zip(g.par_chunks(PIECE));
        let outputs = on_gate.par_chunks_mut(PIECE).zip(on_up.par_chunks_mut(PIECE));
        outputs
            .zip(inputs)
            .for_each(|((on_gate, on_up), ((gate, up), g))| silu_times_back(gate, up, g, on_gate, on_up));
        Ok([on_gate, on_up])
    }
}

#[cfg(test)]
mod tests {
    use super::super::parity;
    use super::*;

    #[test]
    fn forms_agree() {
        let (x, up) = (parity::wave(&[2, 500, 37], 0.0), parity::wave(&[2, 500, 37], 1.0));
        let inputs = [(x.affine(4.0, 0.3).unwrap()), up];
        for kind in [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Tanh] {
            let what = format!("{kind:?}");
            parity::agree(&what, &inputs[..1], |x| activation(kind, &x[0]), |x| plain(kind, &x[0]));
            let what = format!("gated {kind:?}");
            parity::agree(&what, &inputs, |x| gated_activation(kind, &x[0], &x[1]), |x| plain(kind, &x[0])? * &x[1]);
        }
        parity::agree("softplus", &inputs[..1], |x| softplus(&x[0]), |x| plain_softplus(&x[0]));
    }

    /// Values on both sides of zero, of every size that occurs.
    fn values(len: usize, range: f32) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 % 10007) as f32 / 5003.0 - 1.0) * range).collect()
    }

    #[test]
    fn silu_and_gelu_tanh_agree_with_f64() {
        let (x, up) = (values(1003, 30.0), values(1003, 2.0));
        let (mut alone, mut gated, mut gelu) = (x.clone(), x.clone(), x.clone());
        silu(&x, &mut alone);
        silu_times(&x, &up, &mut gated);
        gelu_tanh(&x, &mut gelu);
        for i in 0..x.len() {
            let (v, w) = (f64::from(x[i]), f64::from(up[i]));
            let silu = v / (1.0 + (-v).exp());
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v.powi(3));
            let close = |got: f32, wanted: f64| (f64::from(got) - wanted).abs() <= 1e-6 * wanted.abs().max(1e-6);
            assert!(close(alone[i], silu) && close(gated[i], silu * w), "silu({v})");
            // 1 + tanh cancels where the sigmoid does not; compare where f64 still has digits.
            assert!((f64::from(gelu[i]) - 0.5 * v * (1.0 + inner.tanh())).abs() <= 3e-6 * v.abs(), "gelu({v})");
        }
        let mut bad = [f32::NAN, f32::INFINITY];
        silu(&bad.clone(), &mut bad);
        assert!(bad[0].is_nan() && bad[1] == f32::INFINITY);
    }

    #[test]
    fn exact_gelu_agrees_with_f64() {
        // erf by its series, which converges everywhere.
        let erf = |z: f64| {
            let (mut term, mut sum) = (z, z);
            for n in 1..200 {
                term *= -z * z / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            sum * 2.0 / std::f64::consts::PI.sqrt()
        };
        let x = values(1003, 5.0);
        let mut y = x.clone();
        gelu(&x, &mut y);
        for (&x, &y) in x.iter().zip(&y) {
            let v = f64::from(x);
            let wanted = 0.5 * v * (1.0 + erf(v / std::f64::consts::SQRT_2));
            assert!((f64::from(y) - wanted).abs() <= 5e-7 * v.abs(), "gelu({v}): {y} for {wanted}");
        }
        let mut bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -30.0];
        gelu(&bad.clone(), &mut bad);
        assert!(bad[0].is_nan() && bad[1] == f32::INFINITY && bad[3] == 0.0);
    }

    #[test]
    fn softplus_agrees_with_f64() {
        for range in [0.01f32, 1.0, 20.0, 80.0] {
            let x = values(1003, range);
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
}

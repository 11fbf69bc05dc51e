//! Normalisation over the last dimension.
//!
//! ```text
//! rms_norm(x)   = x / √(mean x² + ε) ∘ w
//! layer_norm(x) = (x − mean x) / √(var x + ε) ∘ w + b
//! ```
//! Back, with z the normalised row, s = 1 / √(… + ε) and g the gradient on the result: on x it is
//! s (g w − mean(g w z) z), less s mean(g w) in `layer_norm`; on w the sum of g z over rows, on b that of g.

use super::cpu::{CpuOp, Input, apply};
use super::numbers::{by_rows, row_piece};
use crate::linalg::simd::{self, LANES, fold, sum_of};
use candle_core::{D, Result, Shape, Tensor};
use rayon::prelude::*;

/// Root mean square normalisation of x (…, width) with `weight` (width).
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    match x.device().is_cpu() {
        true => apply(RmsNorm { eps: eps as f32 }, [x, weight]),
        false => plain_rms_norm(x, weight, eps),
    }
}

/// Layer normalisation of x (…, width) with `weight` and `bias` (width).
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    match x.device().is_cpu() {
        true => apply(LayerNorm { eps: eps as f32 }, [x, weight, bias]),
        false => plain_layer_norm(x, weight, bias, eps),
    }
}

/// [`rms_norm`] by tensor operations.
fn plain_rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    x.broadcast_div(&(x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?)?.broadcast_mul(weight)
}

/// [`layer_norm`] by tensor operations.
fn plain_layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    plain_rms_norm(&centred, weight, eps)?.broadcast_add(bias)
}

struct RmsNorm {
    eps: f32,
}

impl CpuOp<2> for RmsNorm {
    const NAME: &'static str = "rms-norm";

    fn forward(&self, [x, weight]: [Input; 2]) -> Result<(Vec<f32>, Shape)> {
        Ok((by_rows(&x, weight.len(), |x, y| rms_norm_row(x, &weight, self.eps, y)), x.shape.clone()))
    }

    fn backward(&self, [x, weight]: [Input; 2], g: &[f32], [_, on_weight]: [bool; 2]) -> Result<[Vec<f32>; 2]> {
        let moments = |x: &[f32]| (0.0, 1.0 / (sum_of_squares(x) / x.len() as f32 + self.eps).sqrt());
        let [on_x, on_weight, _] = gradients(&x, &weight, g, false, [on_weight, false], moments);
        Ok([on_x, on_weight])
    }
}

struct LayerNorm {
    eps: f32,
}

impl LayerNorm {
    /// Mean and 1 / √(variance + ε) of a row. Summed one by one, as candle does it.
    fn moments(&self, x: &[f32]) -> (f32, f32) {
        let (sum, squares) = x.iter().fold((0f32, 0f32), |(sum, squares), x| (sum + x, squares + x * x));
        let mean = sum / x.len() as f32;
        let variance = squares / x.len() as f32 - mean * mean;
        (mean, (variance + self.eps).sqrt().recip())
    }
}

impl CpuOp<3> for LayerNorm {
    const NAME: &'static str = "layer-norm";

    fn forward(&self, [x, weight, bias]: [Input; 3]) -> Result<(Vec<f32>, Shape)> {
        let of_row = |x: &[f32], y: &mut [f32]| {
            let (mean, scale) = self.moments(x);
            scale_row(x, mean, scale, &weight, &bias, y);
        };
        Ok((by_rows(&x, weight.len(), of_row), x.shape.clone()))
    }

    fn backward(&self, [x, weight, _]: [Input; 3], g: &[f32], wanted: [bool; 3]) -> Result<[Vec<f32>; 3]> {
        Ok(gradients(&x, &weight, g, true, [wanted[1], wanted[2]], |x| self.moments(x)))
    }
}

/// The gradients on x, and on weight and bias where they are `wanted`. `moments` gives what is taken from a row if it is
/// `centred`, and what it is multiplied with then.
fn gradients(
    x: &[f32],
    weight: &[f32],
    g: &[f32],
    centred: bool,
    wanted: [bool; 2],
    moments: impl Fn(&[f32]) -> (f32, f32) + Sync,
) -> [Vec<f32>; 3] {
    let width = weight.len().max(1);
    let zeros = || wanted.map(|wanted| vec![0f32; if wanted { width } else { 0 }]);
    let mut on_x = vec![0f32; x.len()];
    let piece = row_piece(width);
    let pieces = on_x.par_chunks_mut(piece).zip(x.par_chunks(piece)).zip(g.par_chunks(piece));
    let of_piece = |((on_x, x), g): ((&mut [f32], &[f32]), &[f32])| {
        let [mut on_w, mut on_b] = zeros();
        for ((on_x, x), g) in on_x.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(g.chunks_exact(width)) {
            let (mean, scale) = moments(x);
            normalise_back(x, mean, scale, centred, weight, g, on_x);
            on_w.iter_mut().zip(x).zip(g).for_each(|((w, x), g)| *w += (x - mean) * scale * g);
            on_b.iter_mut().zip(g).for_each(|(b, g)| *b += g);
        }
        [on_w, on_b]
    };
    let parts: Vec<[Vec<f32>; 2]> = pieces.map(of_piece).collect();
    // Summed in order, whatever the number of threads.
    let mut sums = zeros();
    for part in &parts {
        let numbers = sums.iter_mut().flatten().zip(part.iter().flatten());
        numbers.for_each(|(sum, x)| *sum += x);
    }
    let [on_w, on_b] = sums;
    [on_x, on_w, on_b]
}

simd::for_each_width! {
    /// y ← x / √(mean x² + eps) · weight
    pub fn rms_norm_row(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
        let sum = sum_of(x, #[inline(always)] |x| x * x);
        let rms = (sum / x.len() as f32 + eps).sqrt();
        for ((&x, &weight), y) in x.iter().zip(weight).zip(y) {
            *y = x / rms * weight;
        }
    }
}

simd::for_each_width! {
    /// Σ x²
    pub fn sum_of_squares(x: &[f32]) -> f32 {
        sum_of(x, #[inline(always)] |x| x * x)
    }
}

simd::for_each_width! {
    /// y ← (x − mean) · scale · weight + bias
    pub fn scale_row(x: &[f32], mean: f32, scale: f32, weight: &[f32], bias: &[f32], y: &mut [f32]) {
        for (((&x, &weight), &bias), y) in x.iter().zip(weight).zip(bias).zip(y) {
            *y = (x - mean) * scale * weight + bias;
        }
    }
}

simd::for_each_width! {
    /// on_x ← scale · (g w − mean(g w z) z), less scale · mean(g w) if `centred`, where z = (x − mean) · scale.
    pub fn normalise_back(
        x: &[f32],
        mean: f32,
        scale: f32,
        centred: bool,
        w: &[f32],
        g: &[f32],
        on_x: &mut [f32]
    ) {
        for ((&g, &w), on_x) in g.iter().zip(w).zip(on_x.iter_mut()) {
            *on_x = g * w;
        }
        let width = x.len() as f32;
        let shift = if centred { sum_of(on_x, #[inline(always)] |x| x) / width } else { 0.0 };
        let (mut lanes, mut along) = ([0f32; LANES], 0f32);
        let ((x_chunks, x_rest), (g_chunks, g_rest)) = (x.as_chunks::<LANES>(), on_x.as_chunks::<LANES>());
        for (x, g) in x_chunks.iter().zip(g_chunks) {
            for ((lane, &x), &g) in lanes.iter_mut().zip(x).zip(g) {
                *lane += (x - mean) * g;
            }
        }
        for (&x, &g) in x_rest.iter().zip(g_rest) {
            along += (x - mean) * g;
        }
        let along = (fold(lanes, |a, b| a + b) + along) * scale * scale / width;
        for (&x, on_x) in x.iter().zip(on_x) {
            *on_x = scale * (*on_x - shift - along * (x - mean));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parity;
    use super::*;

    #[test]
    fn forms_agree() {
        for width in [1, 5, 16, 37] {
            let shape = [3, 700, width];
            let inputs = [parity::wave(&shape, 0.0), parity::wave(&[width], 1.0), parity::wave(&[width], 2.0)];
            let (fast, plain) = (rms_norm, plain_rms_norm);
            let eps = 0.01;
            parity::agree("rms norm", &inputs[..2], |x| fast(&x[0], &x[1], eps), |x| plain(&x[0], &x[1], eps));
            if width > 1 {
                let (fast, plain) = (layer_norm, plain_layer_norm);
                let fast = |x: &[Tensor]| fast(&x[0], &x[1], &x[2], eps);
                parity::agree("layer norm", &inputs, fast, |x| plain(&x[0], &x[1], &x[2], eps));
            }
        }
    }

    #[test]
    fn norms_agree_with_f64() {
        let values = |range: f32| (0..1003).map(move |i| ((i * 7919 % 10007) as f32 / 5003.0 - 1.0) * range);
        let (x, weight): (Vec<f32>, Vec<f32>) = (values(30.0).collect(), values(2.0).collect());
        let (mut rms, mut layer, bias) = (x.clone(), x.clone(), vec![0.5; x.len()]);
        rms_norm_row(&x, &weight, 1e-5, &mut rms);
        let (mean, scale) = LayerNorm { eps: 1e-5 }.moments(&x);
        scale_row(&x, mean, scale, &weight, &bias, &mut layer);
        let moment = |f: &dyn Fn(f64) -> f64| x.iter().map(|&x| f(f64::from(x))).sum::<f64>() / x.len() as f64;
        let mean = moment(&|x| x);
        let (root, deviation) = (moment(&|x| x * x) + 1e-5, moment(&|x| (x - mean) * (x - mean)) + 1e-5);
        for i in 0..x.len() {
            let (v, w) = (f64::from(x[i]), f64::from(weight[i]));
            let close = |got: f32, wanted: f64| (f64::from(got) - wanted).abs() <= 1e-6 * wanted.abs().max(1.0);
            assert!(close(rms[i], v / root.sqrt() * w), "{i}");
            assert!(close(layer[i], (v - mean) / deviation.sqrt() * w + 0.5), "{i}");
        }
    }
}

//! The operations of a block again, from parts that carry gradients.
//!
//! Fused kernels have no backward: behind one of them a gradient is silently zero, and through a residual connection it
//! is silently wrong. A block that is being differentiated uses these instead; the numbers agree to rounding.

use super::attention::Sight;
use super::fused;
use super::ops::{Activation, Norm};
use super::simd;
use anyhow::Result;
use candle_core::{CpuStorage, CustomOp1, D, Layout, Shape, Tensor};
use rayon::prelude::*;
use std::ops::Range;

/// Queries handled at once: bounds the score matrix at heads · 512 · context.
const QUERY_CHUNK: usize = 512;

/// Applies the non-linearity element by element.
pub(super) fn activation(kind: Activation, x: &Tensor) -> Result<Tensor> {
    Ok(match kind {
        Activation::Silu => x.silu()?,
        Activation::Gelu => x.gelu_erf()?,
        Activation::GeluTanh => x.gelu()?,
        Activation::Relu => x.relu()?,
        Activation::Tanh => x.tanh()?,
    })
}

/// act(gate) ∘ up, of the same shape.
pub(super) fn activation_times(kind: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if kind == Activation::Silu && gate.device().is_cpu() {
        return fused::silu_times(gate, up);
    }
    Ok((activation(kind, gate)? * up)?)
}

/// Normalises `x` (…, width).
pub(super) fn norm(norm: &Norm, x: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return composed_norm(norm, x);
    }
    Ok(match norm {
        Norm::Rms { weight, eps } => fused::normalise(x, weight, *eps, false)?,
        Norm::Layer { weight, bias, eps } => fused::normalise(x, weight, *eps, true)?.broadcast_add(bias)?,
    })
}

fn composed_norm(norm: &Norm, x: &Tensor) -> Result<Tensor> {
    Ok(match norm {
        Norm::Rms { weight, eps } => scaled(x, *eps)?.broadcast_mul(weight)?,
        Norm::Layer { weight, bias, eps } => {
            let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
            scaled(&centred, *eps)?.broadcast_mul(weight)?.broadcast_add(bias)?
        }
    })
}

/// x / √(mean x² + ε)
fn scaled(x: &Tensor, eps: f64) -> Result<Tensor> {
    Ok(x.broadcast_div(&(x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?)?)
}

/// Turns dimension i of `x` (batch, t, heads, d) with dimension i + d/2 by the angles whose cosines and sines are
/// given, each (t, d/2).
pub(super) fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let (cos, sin) = (&cos.unsqueeze(1)?, &sin.unsqueeze(1)?);
    let (first, second) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let left = (first.broadcast_mul(cos)? - second.broadcast_mul(sin)?)?;
    let right = (first.broadcast_mul(sin)? + second.broadcast_mul(cos)?)?;
    Ok(Tensor::cat(&[left, right], D::Minus1)?)
}

/// Attention with grouped key/value heads.
///
/// `q` is (batch, heads, t, d), `k` and `v` are (batch, kv_heads, t, d); the result is (batch, t, heads · d). Query
/// head h reads key/value head h / (heads / kv_heads).
pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, sight: &Sight) -> Result<Tensor> {
    in_chunks(q, k, v, sight, QUERY_CHUNK)
}

/// [`attention`] for so many queries at once.
fn in_chunks(q: &Tensor, k: &Tensor, v: &Tensor, sight: &Sight, chunk: usize) -> Result<Tensor> {
    let kind = sight.scores;
    let (batch, heads, t, d) = q.dims4()?;
    let kv = k.dim(1)?;
    let group = heads / kv;
    let q = (q * kind.scale(d))?.reshape((batch * kv, group, t, d))?;
    let keys = k.reshape((batch * kv, t, d))?.transpose(1, 2)?;
    let values = v.reshape((batch * kv, t, d))?;
    let mut parts = Vec::new();
    for start in (0..t).step_by(chunk) {
        let len = chunk.min(t - start);
        let span = sight.span(start, len, t);
        let (first, seen) = (span.start, span.len());
        let rows = q.narrow(2, start, len)?.contiguous()?.reshape((batch * kv, group * len, d))?;
        let scores = kind.cap(rows.matmul(&keys.narrow(2, first, seen)?.contiguous()?)?)?;
        let scores = scores.reshape((batch * kv, group, len, seen))?;
        let softmax = MaskedSoftmax { sight: sight.clone(), start, first, t, heads: (heads, kv) };
        let weights = softmax.of(&scores)?.reshape((batch * kv, group * len, seen))?;
        let mixed = weights.matmul(&values.narrow(1, first, seen)?.contiguous()?)?;
        parts.push(mixed.reshape((batch, heads, len, d))?);
    }
    let mixed = if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(&parts, 2)? };
    Ok(mixed.transpose(1, 2)?.reshape((batch, t, heads * d))?)
}

/// Softmax over the keys that each query may look at: query i of the scores (batch · kv, group, len, seen) stands at
/// position start + i of t, key j at first + j. On the CPU forward and backward touch no masked key.
struct MaskedSoftmax {
    sight: Sight,
    start: usize,
    first: usize,
    t: usize,
    /// Of queries, of keys and values.
    heads: (usize, usize),
}

impl MaskedSoftmax {
    fn of(self, scores: &Tensor) -> Result<Tensor> {
        if scores.device().is_cpu() {
            return Ok(scores.contiguous()?.apply_op1(self)?);
        }
        let (sequences, _, len, _) = scores.dims4()?;
        let kv = self.heads.1;
        let mask = self.sight.mask((sequences / kv, kv), (self.start, len, self.t), scores.device())?;
        let scores = match mask {
            Some(mask) => scores.broadcast_add(&mask)?,
            None => scores.clone(),
        };
        Ok(candle_nn::ops::softmax(&scores, D::Minus1)?)
    }

    /// Keys that row number `row` of scores with `len` queries may look at.
    fn visible(&self, row: usize, len: usize) -> Range<usize> {
        let visible = self.sight.visible(row / (len * self.heads.0), self.start + row % len, self.t);
        visible.start - self.first..visible.end - self.first
    }
}

impl CustomOp1 for MaskedSoftmax {
    fn name(&self) -> &'static str {
        "differentiable-masked-softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (from, to) = layout.contiguous_offsets().ok_or_else(|| candle_core::Error::msg("scores in one piece"))?;
        let scores = &storage.as_slice::<f32>()?[from..to];
        let (len, seen) = last_two(layout.dims());
        let mut out = vec![0f32; scores.len()];
        out.par_chunks_exact_mut(seen).zip(scores.par_chunks_exact(seen)).enumerate().with_min_len(64).for_each(
            |(row, (out, scores))| {
                let visible = self.visible(row, len);
                out[visible.clone()].copy_from_slice(&scores[visible.clone()]);
                simd::softmax(&mut out[visible], 1.0);
            },
        );
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    /// With p the softmax and g the gradient on it: p ∘ (g − Σ g p) on the scores.
    fn bwd(&self, _: &Tensor, p: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (len, seen) = last_two(p.dims());
        let mut on_scores = vec![0f32; p.elem_count()];
        let mut back = |p: &[f32], g: &[f32]| {
            let rows = on_scores.par_chunks_exact_mut(seen).zip(p.par_chunks_exact(seen).zip(g.par_chunks_exact(seen)));
            rows.enumerate().with_min_len(64).for_each(|(row, (on_scores, (p, g)))| {
                let visible = self.visible(row, len);
                simd::softmax_back(&p[visible.clone()], &g[visible.clone()], &mut on_scores[visible]);
            });
        };
        fused::numbers(p, |p| fused::numbers(g, |g| back(p, g)))??;
        Ok(Some(Tensor::from_vec(on_scores, p.shape(), p.device())?))
    }
}

fn last_two(dims: &[usize]) -> (usize, usize) {
    (dims[dims.len() - 2], dims[dims.len() - 1])
}

#[cfg(test)]
mod tests {
    use super::super::attention::{Reach, Scores};
    use super::*;
    use candle_core::{Device, Var};

    fn var(shape: &[usize], phase: f32) -> Var {
        let values: Vec<f32> = (0..shape.iter().product()).map(|i| 1.5 * (phase + 1.7 * i as f32).sin()).collect();
        Var::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// Compares `a` and `b`, which are made of `vars`, and their gradients on these.
    fn agree(a: Result<Tensor>, b: Result<Tensor>, vars: &[&Var], what: &str) {
        let (a, b) = (a.unwrap(), b.unwrap());
        let weights = var(a.dims(), 0.4).as_detached_tensor();
        let graph = |y: &Tensor| (y * &weights).unwrap().sum_all().unwrap().backward().unwrap();
        let (on_a, on_b) = (graph(&a), graph(&b));
        let gradients = vars.iter().map(|var| (on_a.get(var).unwrap().clone(), on_b.get(var).unwrap().clone()));
        for (i, (a, b)) in std::iter::once((a.detach(), b.detach())).chain(gradients).enumerate() {
            let apart = (&a - &b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            let size = b.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(
                a.dims() == b.dims() && size > 0.1 && apart < 1e-5 * size.max(1.0),
                "{what} {i}: {apart:e} of {size}"
            );
        }
    }

    #[test]
    fn fused_operations_are_what_devices_without_them_compute() {
        let (x, weight, bias) = (var(&[3, 700, 37], 0.0), var(&[37], 1.0), var(&[37], 2.0));
        let rms = Norm::Rms { weight: weight.as_tensor().clone(), eps: 0.01 };
        agree(norm(&rms, &x), composed_norm(&rms, &x), &[&x, &weight], "root mean square norm");
        let (weight_, bias_) = (weight.as_tensor().clone(), bias.as_tensor().clone());
        let layer = Norm::Layer { weight: weight_, bias: bias_, eps: 0.01 };
        agree(norm(&layer, &x), composed_norm(&layer, &x), &[&x, &weight, &bias], "layer norm");
        let (gate, up) = (var(&[2, 500, 37], 0.0), var(&[2, 500, 37], 1.0));
        let composed = || Ok((activation(Activation::Silu, &gate)? * up.as_tensor())?);
        agree(activation_times(Activation::Silu, &gate, &up), composed(), &[&gate, &up], "gate");
    }

    #[test]
    fn chunks_of_queries_change_neither_attention_nor_its_gradients() {
        let var = |heads: usize, phase: f32| {
            let values: Vec<f32> = (0..2 * heads * 13 * 6).map(|i| (phase + 1.7 * i as f32).sin()).collect();
            Var::from_vec(values, (2, heads, 13, 6), &Device::Cpu).unwrap()
        };
        let vars = [var(4, 0.0), var(2, 1.0), var(2, 2.0)];
        let weights = var(4, 3.0).transpose(1, 2).unwrap().reshape((2, 13, 24)).unwrap().detach();
        let run = |sight: &Sight, chunk| {
            let y = in_chunks(&vars[0], &vars[1], &vars[2], sight, chunk).unwrap();
            let graph = (&y * &weights).unwrap().sum_all().unwrap().backward().unwrap();
            let gradients = vars.iter().map(|var| graph.get(var).unwrap().clone());
            std::iter::once(y.detach()).chain(gradients).collect::<Vec<_>>()
        };
        let windowed = Scores { scale: Some(0.8), soft_cap: Some(2.0), window: Some(4) };
        let back = |scores| Sight { scores, reach: Reach::Back };
        let both = |lengths: Option<Vec<usize>>| Reach::BothWays(lengths.map(Into::into));
        let both = [None, Some(vec![13, 6])].map(|lengths| Sight { reach: both(lengths), ..Sight::default() });
        for sight in [back(Scores::default()), back(windowed)].iter().chain(&both) {
            for (whole, parts) in run(sight, 512).iter().zip(run(sight, 5)) {
                let apart = (whole - parts).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                let size = whole.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                assert!(size > 0.1 && apart < 1e-5, "{sight:?}: {apart:e} of {size}");
            }
        }
    }
}

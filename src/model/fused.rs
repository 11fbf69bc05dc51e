//! Operations of a block with a backward pass of their own, on the CPU: one pass over the numbers each way, where a
//! composition keeps and walks a tensor for every elementary step.

use super::attention::slice;
use super::ops::{PIECE, Pairwise, by_rows, row_piece, with_numbers};
use super::simd;
use anyhow::Result;
use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};
use rayon::prelude::*;

/// x (…, width) normalised over its last dimension and multiplied by `weight` (width): x / √(mean x² + ε), from which the
/// mean is taken first if it is `centred`.
pub(super) fn normalise(x: &Tensor, weight: &Tensor, eps: f64, centred: bool) -> Result<Tensor> {
    Ok(x.contiguous()?.apply_op2(weight, Normalise { eps: eps as f32, centred })?)
}

/// silu(gate) ∘ up, of the same shape.
pub(super) fn silu_times(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    Ok(gate.contiguous()?.apply_op2(&up.contiguous()?, SiluTimes)?)
}

struct Normalise {
    eps: f32,
    centred: bool,
}

impl Normalise {
    /// Mean, if it counts, and 1 / √(variance + ε) of a row.
    fn moments(&self, x: &[f32]) -> (f32, f32) {
        let width = x.len() as f32;
        let mean = if self.centred { simd::sum(x) / width } else { 0.0 };
        (mean, 1.0 / (simd::sum_of_squares(x, mean) / width + self.eps).sqrt())
    }
}

impl CustomOp2 for Normalise {
    fn name(&self) -> &'static str {
        "differentiable-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, weight) = (slice(x, layout)?, slice(weight, weight_layout)?);
        let y = by_rows(x, weight.len(), |x, y| {
            let (mean, scale) = self.moments(x);
            simd::scaled(x, mean, scale, weight, y);
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    /// With z the normalised row, s its scale, w the weight and g the gradient on z ∘ w: s (g w − mean(g w z) z) on x, less
    /// s mean(g w) if the row was centred, and the sum of g z over rows on w.
    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let width = weight.elem_count().max(1);
        let (shape, device) = (x.shape().clone(), x.device().clone());
        let w: Vec<f32> = weight.to_vec1()?;
        let learns = weight.track_op();
        let mut on_x = vec![0f32; x.elem_count()];
        let piece = row_piece(width);
        let parts: Vec<Vec<f32>> = numbers(x, |x| {
            numbers(gradient, |gradient| {
                let pieces = on_x.par_chunks_mut(piece).zip(x.par_chunks(piece)).zip(gradient.par_chunks(piece));
                let of_piece = |((on_x, x), gradient): ((&mut [f32], &[f32]), &[f32])| {
                    let mut on_w = vec![0f32; if learns { width } else { 0 }];
                    let rows = on_x.chunks_exact_mut(width).zip(x.chunks_exact(width));
                    for ((on_x, x), g) in rows.zip(gradient.chunks_exact(width)) {
                        let (mean, scale) = self.moments(x);
                        simd::normalise_back(x, mean, scale, self.centred, &w, g, on_x);
                        if learns {
                            on_w.iter_mut().zip(x).zip(g).for_each(|((w, x), g)| *w += (x - mean) * scale * g);
                        }
                    }
                    on_w
                };
                pieces.map(of_piece).collect()
            })
        })??;
        let on_weight = if learns {
            // Summed in order, whatever the number of threads.
            let mut sum = vec![0f32; width];
            parts.iter().for_each(|part| sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += x));
            Some(Tensor::from_vec(sum, weight.shape(), &device)?)
        } else {
            None
        };
        Ok((Some(Tensor::from_vec(on_x, shape, &device)?), on_weight))
    }
}

struct SiluTimes;

impl CustomOp2 for SiluTimes {
    fn name(&self) -> &'static str {
        "differentiable-silu-times"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        Pairwise(simd::silu_times).cpu_fwd(gate, layout, up, up_layout)
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (shape, device) = (gate.shape().clone(), gate.device().clone());
        let (mut on_gate, mut on_up) = (vec![0f32; gate.elem_count()], vec![0f32; gate.elem_count()]);
        numbers(gate, |gate| {
            numbers(up, |up| {
                numbers(gradient, |g| {
                    let inputs = gate.par_chunks(PIECE).zip(up.par_chunks(PIECE)).zip(g.par_chunks(PIECE));
                    on_gate.par_chunks_mut(PIECE).zip(on_up.par_chunks_mut(PIECE)).zip(inputs).for_each(
                        |((on_gate, on_up), ((gate, up), g))| simd::silu_times_back(gate, up, g, on_gate, on_up),
                    );
                })
            })
        })???;
        let tensor = |numbers| Tensor::from_vec(numbers, shape.clone(), &device);
        Ok((Some(tensor(on_gate)?), Some(tensor(on_up)?)))
    }
}

/// [`with_numbers`] inside an operation.
pub(super) fn numbers<R>(x: &Tensor, look: impl FnOnce(&[f32]) -> R) -> candle_core::Result<R> {
    with_numbers(x, look).map_err(|error| candle_core::Error::msg(error.to_string()))
}

//! Rotary position embedding, half-split layout: dimension i turns with dimension i + d/2.
//!
//! `parameters.rs` reads what a config says, `scaling.rs` makes frequencies of it; here positions are turned. Cosines and
//! sines are computed for the positions that have been asked for, however long the context is.

mod parameters;
mod scaling;

pub use parameters::{Rotation, Spelling, parameters};

use super::attention::slice;
use anyhow::Result;
use candle_core::{CpuStorage, CustomOp3, D, Device, Layout, Shape, Tensor};
use rayon::prelude::*;
use scaling::Frequencies;
use std::sync::{PoisonError, RwLock};

/// Positions for which a table is made at least.
const FIRST_POSITIONS: usize = 256;

/// Cosines and sines of every position. Where fewer dimensions than a head has are rotated, the others stay.
#[derive(Debug)]
pub struct Rope {
    usual: Table,
    /// What takes its place in sequences longer than this.
    beyond: Option<(usize, Table)>,
}

/// Cosines and sines of the first positions.
#[derive(Debug)]
struct Table {
    frequencies: Frequencies,
    /// Each (positions, rotated / 2) in f32.
    made: RwLock<Option<(Tensor, Tensor)>>,
}

impl Table {
    fn new(frequencies: Frequencies) -> Self {
        Self { frequencies, made: RwLock::new(None) }
    }

    /// Those of `t` positions from `start` on.
    fn rows(&self, start: usize, t: usize, device: &Device) -> Result<(Tensor, Tensor)> {
        let narrow =
            |(cos, sin): &(Tensor, Tensor)| -> Result<_> { Ok((cos.narrow(0, start, t)?, sin.narrow(0, start, t)?)) };
        // A table is replaced as a whole: one that a panic left behind is as good as any.
        let made = self.made.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = made.as_ref().filter(|(cos, _)| cos.dims()[0] >= start + t) {
            return narrow(table);
        }
        drop(made);
        let table = self.make((start + t).next_power_of_two().max(FIRST_POSITIONS), device)?;
        let rows = narrow(&table);
        let mut made = self.made.write().unwrap_or_else(PoisonError::into_inner);
        if made.as_ref().is_none_or(|(cos, _)| cos.dims()[0] < table.0.dims()[0]) {
            *made = Some(table);
        }
        rows
    }

    fn make(&self, positions: usize, device: &Device) -> Result<(Tensor, Tensor)> {
        let Frequencies { each, times } = &self.frequencies;
        let angles = |f: fn(f64) -> f64| -> Result<Tensor> {
            let row = |p: usize| each.iter().map(move |w| (times * f(p as f64 * w)) as f32);
            let table: Vec<f32> = (0..positions).flat_map(row).collect();
            Ok(Tensor::from_vec(table, (positions, each.len()), device)?)
        };
        Ok((angles(f64::cos)?, angles(f64::sin)?))
    }
}

impl Rope {
    /// The rotation in a model with so long a context.
    pub fn new(rotation: &Rotation, context: usize) -> Result<Self> {
        let (usual, beyond) = scaling::frequencies(rotation, context)?;
        let beyond = beyond.map(|(longest, frequencies)| (longest, Table::new(frequencies)));
        Ok(Self { usual: Table::new(usual), beyond })
    }

    /// Length of sequence behind which all positions, the first ones too, are rotated in another way.
    pub fn turning_point(&self) -> Option<usize> {
        self.beyond.as_ref().map(|(longest, _)| *longest)
    }

    /// Cosines and sines for `t` positions from `start` on in a sequence of this length.
    fn table(&self, start: usize, t: usize, length: usize, device: &Device) -> Result<(Tensor, Tensor)> {
        let table = match &self.beyond {
            Some((longest, beyond)) if length > *longest => beyond,
            _ => &self.usual,
        };
        table.rows(start, t, device)
    }

    /// Rotates `x` (batch, t, heads, d), whose first row stands at position `start` of a sequence of this length.
    pub fn apply(&self, x: &Tensor, start: usize, length: usize) -> Result<Tensor> {
        let (t, d) = (x.dim(1)?, x.dim(3)?);
        let (cos, sin) = self.table(start, t, length, x.device())?;
        if x.device().is_cpu() {
            return Ok(x.contiguous()?.apply_op3_no_bwd(&cos, &sin, &Rotate)?);
        }
        let rotated = 2 * cos.dim(1)?;
        let turned = candle_nn::rotary_emb::rope_thd(&x.narrow(3, 0, rotated)?.contiguous()?, &cos, &sin)?;
        with_rest(turned, x, rotated, d)
    }
}

/// `turned`, followed by the dimensions of x (…, d) from `rotated` on.
fn with_rest(turned: Tensor, x: &Tensor, rotated: usize, d: usize) -> Result<Tensor> {
    if rotated == d {
        return Ok(turned);
    }
    Ok(Tensor::cat(&[turned, x.narrow(D::Minus1, rotated, d - rotated)?], D::Minus1)?)
}

/// The rotation on the CPU.
struct Rotate;

impl CustomOp3 for Rotate {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        cos: &CpuStorage,
        cos_layout: &Layout,
        sin: &CpuStorage,
        sin_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (_, t, heads, d) = x_layout.shape().dims4()?;
        let (x, cos, sin) = (slice(x, x_layout)?, slice(cos, cos_layout)?, slice(sin, sin_layout)?);
        let (width, half) = (heads * d, cos_layout.shape().dims2()?.1);
        let mut y = vec![0f32; x.len()];
        let rows = y.par_chunks_mut(width).zip(x.par_chunks(width)).enumerate().with_min_len(64);
        rows.for_each(|(row, (y, x))| {
            let at = row % t * half..(row % t + 1) * half;
            let (cos, sin) = (&cos[at.clone()], &sin[at]);
            for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                y[2 * half..].copy_from_slice(&x[2 * half..]);
                let ((y1, y2), (x1, x2)) = (y.split_at_mut(half), x.split_at(half));
                for i in 0..half {
                    y1[i] = x1[i] * cos[i] - x2[i] * sin[i];
                    y2[i] = x1[i] * sin[i] + x2[i] * cos[i];
                }
            }
        });
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    /// The same angle the other way.
    fn bwd(
        &self,
        _: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        Ok((Some(gradient.contiguous()?.apply_op3_no_bwd(cos, &sin.neg()?, &Rotate)?), None, None))
    }
}

impl Rope {
    /// [`Rope::apply`] of x (batch, t, heads, d) by operations that carry gradients.
    pub(super) fn apply_differentiable(&self, x: &Tensor) -> Result<Tensor> {
        let t = x.dim(1)?;
        let (cos, sin) = self.table(0, t, t, x.device())?;
        if x.device().is_cpu() {
            return Ok(x.contiguous()?.apply_op3(&cos, &sin, Rotate)?);
        }
        composed(x, &cos, &sin)
    }
}

/// [`Rotate`] made of operations that every device has.
fn composed(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let rotated = 2 * cos.dim(1)?;
    let turned = super::grad::rotate(&x.narrow(3, 0, rotated)?, cos, sin)?;
    with_rest(turned, x, rotated, x.dim(3)?)
}

#[cfg(test)]
mod tests {
    use super::parameters::Scaling;
    use super::*;
    use candle_core::Var;

    #[test]
    fn the_rotation_and_its_gradient_are_those_of_plain_operations() {
        let wave = |len: usize, phase: f32| (0..len).map(|i| (phase + 1.7 * i as f32).sin()).collect::<Vec<_>>();
        // Six of eight dimensions are rotated.
        let x = Var::from_vec(wave(2 * 70 * 3 * 8, 0.0), (2, 70, 3, 8), &Device::Cpu).unwrap();
        let weights = Tensor::from_vec(wave(2 * 70 * 3 * 8, 1.0), (2, 70, 3, 8), &Device::Cpu).unwrap();
        let rotation = Rotation { theta: 100.0, rotated: 6, scaling: Scaling::None };
        let rope = Rope::new(&rotation, 128).unwrap();
        let (cos, sin) = rope.table(0, 70, 70, &Device::Cpu).unwrap();
        let results = [rope.apply_differentiable(&x), composed(&x, &cos, &sin)].map(|y| {
            let y = y.unwrap();
            let graph = (&y * &weights).unwrap().sum_all().unwrap().backward().unwrap();
            [y.detach(), graph.get(&x).unwrap().clone()]
        });
        for (fused, plain) in results[0].iter().zip(&results[1]) {
            let apart = (fused - plain).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(apart < 1e-6, "{apart:e}");
        }
        let moved = (&results[0][0] - x.as_detached_tensor()).unwrap().abs().unwrap().max_all().unwrap();
        assert!(moved.to_scalar::<f32>().unwrap() > 0.5);
    }

    #[test]
    fn tables_are_as_long_as_what_is_asked_of_them() {
        let rotation = Rotation { theta: 10.0, rotated: 4, scaling: Scaling::None };
        let rope = Rope::new(&rotation, 1_000_000_000_000).unwrap();
        let positions = |rope: &Rope| rope.usual.made.read().unwrap().as_ref().map_or(0, |(cos, _)| cos.dims()[0]);
        assert_eq!(positions(&rope), 0);
        for (start, t, held) in [(0, 7, 256), (200, 56, 256), (256, 1, 512), (3, 2, 512), (4000, 97, 8192)] {
            let (cos, sin) = rope.table(start, t, start + t, &Device::Cpu).unwrap();
            assert_eq!((cos.dims(), positions(&rope)), (&[t, 2][..], held));
            for (i, (cos, sin)) in cos.to_vec2::<f32>().unwrap().iter().zip(sin.to_vec2::<f32>().unwrap()).enumerate() {
                for (j, frequency) in [1.0, 10f64.powf(-0.5)].into_iter().enumerate() {
                    let angle = (start + i) as f64 * frequency;
                    assert_eq!((cos[j], sin[j]), (angle.cos() as f32, angle.sin() as f32));
                }
            }
        }
    }
}

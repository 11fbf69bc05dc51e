//! Angles of the rotary position embedding.
//!
//! `parameters.rs` reads what a config says, `scaling.rs` makes frequencies of it; here they become tables. Cosines and
//! sines are computed for the positions that have been asked for, however long the context is.

mod parameters;
mod scaling;

pub use parameters::{Rotation, Spelling, parameters};

use crate::ops;
use anyhow::Result;
use candle_core::{Device, Tensor};
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

    /// Length of sequence behind which all positions, the first ones too, are rotated in another way
    /// (`original_max_position_embeddings`).
    pub fn original_context(&self) -> Option<usize> {
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
        let (cos, sin) = self.table(start, x.dim(1)?, length, x.device())?;
        Ok(ops::rotary(x, &cos, &sin)?)
    }
}

#[cfg(test)]
mod tests {
    use super::parameters::Scaling;
    use super::*;

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

//! The decompositions of a model on disk, one file per block: what a budget is shared out by and cut from.
//!
//! Of every linear its sizes and errors can be read without its factors, and of the factors as many components as are
//! wanted: components lie in the order of their worth, so any budget can be cut from one file.

use crate::checkpoint::{Dtype, NamedTensor, TensorFile, write_sealed};
use crate::linalg::Mat;
use crate::method::{Decomposition, HeldoutCurve};
use crate::model::LinearSpec;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// One linear decomposed.
pub struct Decomposed {
    pub parts: Decomposition,
    pub heldout: HeldoutCurve,
    /// Seconds that took.
    pub seconds: f64,
}

impl Decomposed {
    /// As tensors, with the first `rank` components in f32, or f64 for a weight that is.
    pub fn encode(&self, spec: &LinearSpec, rank: usize, dtype: Dtype) -> Result<Vec<NamedTensor>> {
        let (parts, heldout) = (&self.parts, &self.heldout);
        let factor = |name: &str, factor: Mat| {
            let shape = [factor.rows(), factor.cols()];
            match dtype {
                Dtype::F64 => NamedTensor::f64(key(spec, name), shape, &factor.to_rows()),
                _ => NamedTensor::f32(key(spec, name), shape, &factor.to_f32_rows()),
            }
        };
        let vector = |name: &str, values: &[f64]| NamedTensor::f64(key(spec, name), [values.len()], values);
        let mut tensors = vec![
            factor("a", parts.a.row_range(0..rank)),
            factor("b", parts.b.col_range(0..rank)),
            vector("energy", &parts.energy),
            vector("heldout", &heldout.error),
            vector("facts", &[heldout.total, self.seconds]),
        ];
        tensors.extend(parts.note.as_ref().map(|note| NamedTensor::text(key(spec, "note"), note)));
        Ok(tensors)
    }
}

/// The file of one block, opened.
pub struct Decompositions(TensorFile);

impl Decompositions {
    /// Writes what [`Decomposed::encode`] gave for the linears of a block.
    pub fn write(path: &Path, tensors: &[NamedTensor]) -> Result<()> {
        write_sealed(path, tensors, &BTreeMap::new())
    }

    /// Opens a file; nothing but its header is read.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self(TensorFile::open_unfinished(path)?))
    }

    /// The energy of every component of a linear, of those too that are not in the file.
    pub fn energy(&self, spec: &LinearSpec) -> Result<Vec<f64>> {
        self.0.f64s(&key(spec, "energy"))
    }

    /// A linear with its first `rank` components, or as many as there are.
    pub fn linear(&self, spec: &LinearSpec, rank: usize) -> Result<Decomposed> {
        let facts = self.0.f64s(&key(spec, "facts"))?;
        let note = key(spec, "note");
        let note = self.0.info(&note).map(|_| self.0.text(&note)).transpose()?;
        let (a, b) = (self.factor(spec, "a")?, self.factor(spec, "b")?);
        let rank = rank.min(a.rows());
        let parts =
            Decomposition { a: a.row_range(0..rank), b: b.col_range(0..rank), energy: self.energy(spec)?, note };
        let heldout = HeldoutCurve { total: facts[0], error: self.0.f64s(&key(spec, "heldout"))? };
        Ok(Decomposed { parts, heldout, seconds: facts[1] })
    }

    fn factor(&self, spec: &LinearSpec, name: &str) -> Result<Mat> {
        let name = key(spec, name);
        let info = self.0.info(&name).with_context(|| format!("{} has no tensor {name}", self.0.name()))?;
        let (rows, cols) = (info.shape[0], info.shape[1]);
        Ok(match info.dtype {
            Dtype::F64 => Mat::from_rows(rows, cols, &self.0.f64s(&name)?),
            _ => Mat::from_f32_rows(rows, cols, &self.0.f32s(&name)?),
        })
    }
}

fn key(spec: &LinearSpec, part: &str) -> String {
    format!("{}.{part}", spec.id.role)
}

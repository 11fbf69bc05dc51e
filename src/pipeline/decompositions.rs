//! The decompositions of a model on disk, one file per block: what a budget is shared out by and cut from.
//!
//! Where a budget is shared out over forms, linears that change together have one entry, under the last of them.
//!
//! Of every linear its sizes and errors can be read without its factors, and of the factors as many components as are
//! wanted: components lie in the order of their worth, so any budget can be cut from one file.

use crate::checkpoint::{Dtype, NamedTensor, TensorFile, write_sealed};
use crate::linalg::Mat;
use crate::method::{Decomposition, HeldoutCurve};
use crate::model::LinearSpec;
use crate::user_bail;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// Name of the losses in a file.
const LOSS: &str = "loss";
/// Name of the time that a linear took.
const SECONDS: &str = "seconds";

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
            vector("total", &[heldout.total]),
            vector(SECONDS, &[self.seconds]),
        ];
        tensors.extend(parts.note.as_ref().map(|note| NamedTensor::text(key(spec, "note"), note)));
        Ok(tensors)
    }
}

/// The losses of a linear's ranks as a tensor beside those of [`Decomposed::encode`].
pub fn encode_losses(spec: &LinearSpec, losses: &[f64]) -> NamedTensor {
    NamedTensor::f64(key(spec, LOSS), [losses.len()], losses)
}

/// What it takes to make linears smaller that change together.
pub struct Narrowing {
    /// Σ z zᵀ of what enters the last of them, (n, n); without the mean where a bias takes that over.
    pub gram: Mat,
    /// Channels in the order in which they should be kept; empty where it is not channels that go.
    pub order: Vec<usize>,
    /// Mean of what enters the last of them, where its bias takes it over.
    pub mean: Vec<f64>,
    /// What is lost with each size, from nothing to all of it.
    pub losses: Vec<f64>,
    /// Seconds that took.
    pub seconds: f64,
}

impl Narrowing {
    /// As tensors.
    pub fn encode(&self, spec: &LinearSpec) -> Vec<NamedTensor> {
        let vector = |name: &str, values: &[f64]| NamedTensor::f64(key(spec, name), [values.len()], values);
        let order: Vec<f64> = self.order.iter().map(|&channel| channel as f64).collect();
        let shape = [self.gram.rows(), self.gram.cols()];
        let mut tensors = vec![
            NamedTensor::f32(key(spec, "gram"), shape, &self.gram.to_f32_rows()),
            encode_losses(spec, &self.losses),
            vector(SECONDS, &[self.seconds]),
        ];
        let known =
            [("order", order), ("mean", self.mean.clone())].into_iter().filter(|(_, values)| !values.is_empty());
        tensors.extend(known.map(|(name, values)| vector(name, &values)));
        tensors
    }
}

/// The file of one block, opened. That of an elastic output may come from anywhere: what does not fit its linear is a
/// [`UserError`](crate::error::UserError).
pub struct Decompositions(TensorFile);

impl Decompositions {
    /// Writes what was encoded of the linears of a block.
    pub fn write(path: &Path, tensors: &[NamedTensor]) -> Result<()> {
        write_sealed(path, tensors, &BTreeMap::new())
    }

    /// Opens a file; nothing but its header is read.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self(TensorFile::open_unfinished(path)?))
    }

    /// Writes all of it but how long that took, so that the same recipe gives the same bytes.
    pub fn write_without_times(&self, path: &Path) -> Result<()> {
        let names = self.0.names().filter(|name| name.rsplit('.').next() != Some(SECONDS));
        Self::write(path, &names.map(|name| self.0.read(name)).collect::<Result<Vec<_>>>()?)
    }

    /// The energy of every component of a linear, of those too that are not in the file.
    pub fn energy(&self, spec: &LinearSpec) -> Result<Vec<f64>> {
        self.0.f64s(&key(spec, "energy"))
    }

    /// A linear with its first `rank` components, or as many as there are.
    pub fn linear(&self, spec: &LinearSpec, rank: usize) -> Result<Decomposed> {
        let [total] = self.0.f64s(&key(spec, "total"))?[..] else { return self.damaged(spec, "total") };
        let note = key(spec, "note");
        let note = self.0.info(&note).map(|_| self.0.text(&note)).transpose()?;
        let (a, b) = (self.matrix(spec, "a")?, self.matrix(spec, "b")?);
        if a.cols() != spec.input {
            return self.damaged(spec, "a");
        }
        if (b.rows(), b.cols()) != (spec.out, a.rows()) {
            return self.damaged(spec, "b");
        }
        let rank = rank.min(a.rows());
        let parts =
            Decomposition { a: a.row_range(0..rank), b: b.col_range(0..rank), energy: self.energy(spec)?, note };
        let heldout = HeldoutCurve { total, error: self.0.f64s(&key(spec, "heldout"))? };
        Ok(Decomposed { parts, heldout, seconds: self.vector(spec, SECONDS)?.first().copied().unwrap_or(0.0) })
    }

    /// What is lost with each size of what `spec` is the last linear of, from nothing to all of it.
    pub fn losses(&self, spec: &LinearSpec) -> Result<Vec<f64>> {
        self.0.f64s(&key(spec, LOSS))
    }

    /// Linears that change together and end in `spec`.
    pub fn narrowing(&self, spec: &LinearSpec) -> Result<Narrowing> {
        let (gram, mean) = (self.matrix(spec, "gram")?, self.vector(spec, "mean")?);
        let order: Vec<usize> = self.vector(spec, "order")?.into_iter().map(|channel| channel as usize).collect();
        let mut channels = order.clone();
        channels.sort_unstable();
        if (gram.rows(), gram.cols()) != (spec.input, spec.input) {
            return self.damaged(spec, "gram");
        }
        if !order.is_empty() && !channels.into_iter().eq(0..spec.input) {
            return self.damaged(spec, "order");
        }
        if !mean.is_empty() && mean.len() != spec.input {
            return self.damaged(spec, "mean");
        }
        Ok(Narrowing {
            gram,
            order,
            mean,
            losses: self.losses(spec)?,
            seconds: self.vector(spec, SECONDS)?.first().copied().unwrap_or(0.0),
        })
    }

    /// A vector; empty where there is none.
    fn vector(&self, spec: &LinearSpec, name: &str) -> Result<Vec<f64>> {
        let name = key(spec, name);
        self.0.info(&name).map_or(Ok(Vec::new()), |_| self.0.f64s(&name))
    }

    fn matrix(&self, spec: &LinearSpec, name: &str) -> Result<Mat> {
        let key = key(spec, name);
        let info = self.0.info(&key).with_context(|| format!("{} has no tensor {key}", self.0.name()))?;
        let [rows, cols] = info.shape[..] else { return self.damaged(spec, name) };
        Ok(match info.dtype {
            Dtype::F64 => Mat::from_rows(rows, cols, &self.0.f64s(&key)?),
            _ => Mat::from_f32_rows(rows, cols, &self.0.f32s(&key)?),
        })
    }

    fn damaged<T>(&self, spec: &LinearSpec, part: &str) -> Result<T> {
        user_bail!(
            "{} is damaged: its tensor {} does not fit {}", self.0.name(), key(spec, part), spec.id;
            "make the elastic output again, or start over with --force"
        )
    }
}

fn key(spec: &LinearSpec, part: &str) -> String {
    format!("{}.{part}", spec.id.role)
}

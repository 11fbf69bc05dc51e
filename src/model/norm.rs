//! Norms with their weights.

use super::layout::{NormKind, NormSpec};
use crate::checkpoint::Source;
use crate::compute::Compute;
use crate::ops;
use anyhow::Result;
use candle_core::Tensor;

/// Normalisation over the last dimension.
#[derive(Debug, Clone)]
pub(super) enum Norm {
    /// x / rms(x) · weight
    Rms { weight: Tensor, eps: f64 },
    /// (x − mean) / std · weight + bias
    Layer { weight: Tensor, bias: Tensor, eps: f64 },
}

impl Norm {
    /// Reads the norm that `spec` describes.
    pub fn load(source: &Source, spec: &NormSpec, compute: &Compute) -> Result<Self> {
        let [weight, bias] = spec.parts(source);
        let read = |name: &str| compute.read(source, name, &[spec.width]);
        let weight = read(&weight)?;
        Ok(match spec.kind {
            NormKind::Rms(eps) => Norm::Rms { weight, eps },
            NormKind::RmsPlusOne(eps) => Norm::Rms { weight: (weight + 1.0)?, eps },
            NormKind::Layer(eps) => Norm::Layer { weight, bias: read(&bias)?, eps },
        })
    }

    /// Normalises `x` (…, width).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Norm::Rms { weight, eps } => ops::rms_norm(x, weight, *eps)?,
            Norm::Layer { weight, bias, eps } => ops::layer_norm(x, weight, bias, *eps)?,
        })
    }
}

//! From the last block's output to logits: z = cap(norm(h) Wᵀ + bias), cap(z) = c tanh(z / c).

use super::grad;
use super::layout::Layout;
use super::ops::Norm;
use crate::checkpoint::Source;
use anyhow::Result;
use candle_core::{DType, Device, Tensor};

/// Final norm and output projection.
pub struct Head {
    norm: Option<Norm>,
    weight: Tensor,
    bias: Option<Tensor>,
    soft_cap: Option<f64>,
}

impl Head {
    pub(super) fn load(source: &Source, layout: &Layout, device: &Device) -> Result<Self> {
        let (head, vocab) = (&layout.head, layout.vocab);
        let read = |name: &str, shape: &[usize]| source.tensor(name, shape, DType::F32, device);
        Ok(Self {
            norm: head.norm.as_ref().map(|norm| Norm::load(source, norm, device)).transpose()?,
            weight: read(&head.weight, &[vocab, layout.hidden])?,
            bias: head.bias.as_ref().map(|name| read(name, &[vocab])).transpose()?,
            soft_cap: head.soft_cap,
        })
    }

    /// h (rows, hidden) to logits (rows, vocab).
    pub fn logits(&self, h: &Tensor) -> Result<Tensor> {
        match &self.norm {
            Some(norm) => self.project(&norm.forward(h)?),
            None => self.project(h),
        }
    }

    /// Number of logits.
    pub fn vocab(&self) -> usize {
        self.weight.dims()[0]
    }

    /// The final norm of h (rows, hidden), by operations that carry gradients.
    pub fn normalise(&self, h: &Tensor) -> Result<Tensor> {
        match &self.norm {
            Some(norm) => grad::norm(norm, h),
            None => Ok(h.clone()),
        }
    }

    /// Normalised states (rows, hidden) to logits (rows, vocab).
    pub fn project(&self, normalised: &Tensor) -> Result<Tensor> {
        let mut z = normalised.matmul(&self.weight.t()?)?;
        if let Some(bias) = &self.bias {
            z = z.broadcast_add(bias)?;
        }
        match self.soft_cap {
            Some(cap) => Ok(((z / cap)?.tanh()? * cap)?),
            None => Ok(z),
        }
    }

    /// Takes a gradient on `logits` (rows, vocab), which [`Head::project`] gave, back to the normalised states
    /// (rows, hidden).
    pub fn project_back(&self, gradient: &Tensor, logits: &Tensor) -> Result<Tensor> {
        match self.soft_cap {
            // d cap(z) / dz = 1 − tanh²(z / c)
            Some(cap) => {
                let slope = (logits / cap)?.sqr()?.affine(-1.0, 1.0)?;
                Ok((gradient * slope)?.matmul(&self.weight)?)
            }
            None => Ok(gradient.matmul(&self.weight)?),
        }
    }
}

//! What training needs of a block and a head beyond running them.

use super::decoder::{Block, Head};
use super::grad;
use super::linear::Linear;
use super::ops::Norm;
use anyhow::Result;
use candle_core::Tensor;

impl Block<'_> {
    /// Whether the forward pass may use nothing but operations that carry gradients. It is slower then, and leaves the
    /// search for NaN to the one who sees the loss.
    pub fn set_differentiable(&mut self, on: bool) {
        self.differentiable = on;
    }

    /// Replaces every weight by what `f` makes of its name and value; the shape must stay.
    ///
    /// Names are `attn_norm.weight`, `mlp_norm.bias`, and per linear `attn.q.weight` or `attn.q.factor_a` and
    /// `attn.q.factor_b`, and `attn.q.bias`.
    pub fn map_weights(&mut self, f: &mut dyn FnMut(&str, &Tensor) -> Result<Tensor>) -> Result<()> {
        for (name, norm) in [("attn_norm", &mut self.attn_norm), ("mlp_norm", &mut self.mlp_norm)] {
            let (weight, bias) = match norm {
                Norm::Rms { weight, .. } => (weight, None),
                Norm::Layer { weight, bias, .. } => (weight, Some(bias)),
            };
            *weight = f(&format!("{name}.weight"), weight)?;
            if let Some(bias) = bias {
                *bias = f(&format!("{name}.bias"), bias)?;
            }
        }
        for (role, linear) in &mut self.linears {
            let bias = match linear {
                Linear::Dense { weight, bias } => {
                    *weight = f(&format!("{role}.weight"), weight)?;
                    bias
                }
                Linear::LowRank { a, b, bias } => {
                    *a = f(&format!("{role}.factor_a"), a)?;
                    *b = f(&format!("{role}.factor_b"), b)?;
                    bias
                }
            };
            if let Some(bias) = bias {
                *bias = f(&format!("{role}.bias"), bias)?;
            }
        }
        Ok(())
    }
}

impl Head {
    /// Number of logits.
    pub fn vocab(&self) -> usize {
        self.weight.dims()[0]
    }

    /// The final norm of h (rows, hidden), by operations that carry gradients.
    pub fn normalise(&self, h: &Tensor) -> Result<Tensor> {
        grad::norm(&self.norm, h)
    }

    /// Normalised states (rows, hidden) to logits (rows, vocab).
    pub fn project(&self, normalised: &Tensor) -> Result<Tensor> {
        Ok(normalised.matmul(&self.weight.t()?)?)
    }

    /// Takes a gradient on the logits (rows, vocab) back to the normalised states (rows, hidden).
    pub fn project_back(&self, gradient: &Tensor) -> Result<Tensor> {
        Ok(gradient.matmul(&self.weight)?)
    }
}

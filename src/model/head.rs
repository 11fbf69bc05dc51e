//! From the last block's output to logits: of tokens, z = cap(norm(act(D h + d)) Wᵀ + bias) with cap(z) = c tanh(z / c), or
//! of classes, z = C act(P h₀ + p) + c.

use super::layout::{ClassLayout, DenseLayout, HeadLayout, Layout};
use super::linear::Linear;
use super::norm::Norm;
use crate::checkpoint::Source;
use crate::compute::Compute;
use crate::ops::MatmulPrecision;
use crate::ops::{Activation, activation, linear, linear_back};
use anyhow::Result;
use candle_core::Tensor;

/// What turns final states into logits of tokens: final norm and output projection, and what else is in front of that.
pub struct Head {
    dense: Option<Dense>,
    norm: Option<Norm>,
    weight: Tensor,
    bias: Option<Tensor>,
    soft_cap: Option<f64>,
    precision: MatmulPrecision,
    /// Bytes that logits may take.
    limit: usize,
    /// Bytes of one of them.
    number: usize,
}

/// act(D h + d)
struct Dense {
    linear: Linear,
    activation: Activation,
    precision: MatmulPrecision,
}

impl Dense {
    fn load(source: &Source, layout: &DenseLayout, width: usize, compute: &Compute) -> Result<Self> {
        let linear = dense(source, &layout.name, width, width, compute)?;
        Ok(Self { linear, activation: layout.activation, precision: compute.precision })
    }

    /// h (rows, hidden) to (rows, hidden).
    fn forward(&self, h: &Tensor) -> Result<Tensor> {
        Ok(activation(self.activation, &self.linear.forward(h, self.precision)?)?)
    }
}

/// The layer `name`, which is never factorised.
fn dense(source: &Source, name: &str, out: usize, input: usize, compute: &Compute) -> Result<Linear> {
    let read = |part: &str, shape: &[usize]| compute.read(source, &format!("{name}.{part}"), shape);
    Ok(Linear::Dense { weight: read("weight", &[out, input])?, bias: Some(read("bias", &[out])?) })
}

impl Head {
    pub(super) fn load(source: &Source, layout: &Layout, head: &HeadLayout, compute: &Compute) -> Result<Self> {
        let (hidden, vocab) = (layout.hidden, layout.vocab);
        let read = |name: &str, shape: &[usize]| compute.read(source, name, shape);
        Ok(Self {
            dense: head.dense.as_ref().map(|dense| Dense::load(source, dense, hidden, compute)).transpose()?,
            norm: head.norm.as_ref().map(|norm| Norm::load(source, norm, compute)).transpose()?,
            weight: compute.matrix(source, &head.weight.name, &[vocab, hidden])?,
            bias: head.bias.as_ref().map(|name| read(name, &[vocab])).transpose()?,
            soft_cap: head.soft_cap,
            precision: compute.precision,
            limit: compute.limits.logits,
            number: compute.dtype.size_in_bytes(),
        })
    }

    /// h (rows, hidden) to logits (rows, vocab).
    pub fn logits(&self, h: &Tensor) -> Result<Tensor> {
        self.project(&self.normalise(h)?)
    }

    /// Positions whose logits may be in memory at once where so many sets of them are.
    pub fn positions_at_once(&self, sets: usize) -> usize {
        (self.limit / sets / self.number / self.vocab().max(1)).max(1)
    }

    /// Numbers in the matrix of the projection, and the bytes that it takes in memory.
    pub fn storage(&self) -> (usize, usize) {
        (self.weight.elem_count(), self.weight.elem_count() * self.weight.dtype().size_in_bytes())
    }

    /// Number of logits.
    pub fn vocab(&self) -> usize {
        self.weight.dims()[0]
    }

    /// What is in front of the projection, on h (rows, hidden).
    pub fn normalise(&self, h: &Tensor) -> Result<Tensor> {
        let h = self.dense.as_ref().map_or_else(|| Ok(h.clone()), |dense| dense.forward(h))?;
        self.norm.as_ref().map_or(Ok(h.clone()), |norm| norm.forward(&h))
    }

    /// Normalised states (rows, hidden) to logits (rows, vocab).
    pub fn project(&self, normalised: &Tensor) -> Result<Tensor> {
        let mut z = linear(normalised, &self.weight, self.precision)?;
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
                Ok(linear_back(&(gradient * slope)?, &self.weight, self.precision)?)
            }
            None => Ok(linear_back(gradient, &self.weight, self.precision)?),
        }
    }
}

/// What turns final states into logits of classes.
pub struct Classifier {
    pooler: Dense,
    linear: Linear,
    classes: usize,
}

impl Classifier {
    pub(super) fn load(source: &Source, hidden: usize, layout: &ClassLayout, compute: &Compute) -> Result<Self> {
        Ok(Self {
            pooler: Dense::load(source, &layout.pooler, hidden, compute)?,
            linear: dense(source, &layout.name, layout.classes, hidden, compute)?,
            classes: layout.classes,
        })
    }

    /// Final states (sequences, t, hidden) to logits (sequences, classes). Nothing but the first position is looked at.
    pub fn logits(&self, states: &Tensor) -> Result<Tensor> {
        let first = states.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?;
        self.linear.forward(&self.pooler.forward(&first)?, self.pooler.precision)
    }

    /// Number of classes; 1 if the logit is a score.
    pub fn classes(&self) -> usize {
        self.classes
    }
}

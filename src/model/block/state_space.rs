//! The state-space block: a gated recurrence in the place of attention and feed-forward layer.
//!
//! ```text
//! a = norm(x)      y = x + Out(scan(c, Δ, B, C) ∘ gate(z))             norm `norm`
//!
//! projected:  u, z = In a            c = act(conv(u))    δ, B, C = X c     Δ = softplus(Dt δ)
//! direct:     z, u, δ = In a         c, B, C = act(conv(u))                Δ = clamp(softplus(δ + bias))
//! ```
//! (`projected` is Mamba, `direct` is Mamba-2, which also has a norm `gate_norm` of what enters Out.) The scan is that of
//! `ops/scan/`, with A = −exp(`a_log`) and D = `skip`; the convolution is causal and sees each channel alone, with the
//! tensors `conv.weight` and `conv.bias`. Sites, in order: `ssm_in` sees a, and in the projected kind `ssm_conv` c and
//! `ssm_dt` δ; `ssm_out` what enters Out.

use super::super::ids::{Role, Site};
use super::{Block, Pass, activate};
use crate::ops::{self, Activation, Scan, add, causal_conv1d, conv1d_state, softplus};
use anyhow::Result;
use candle_core::Tensor;

#[derive(Debug)]
pub(in crate::model) struct StateSpace {
    pub scan: Scan,
    pub activation: Activation,
    /// Of z, which may be another one than that of the convolution.
    pub gate: Activation,
    pub selection: Selection,
}

/// Where Δ, B and C come from.
#[derive(Debug, Clone, Copy)]
pub(in crate::model) enum Selection {
    /// From what the convolution gave, by linears of their own.
    Projected {
        /// Width of δ.
        rank: usize,
    },
    /// From the input projection.
    Direct {
        /// Smallest and largest Δ.
        limits: [f64; 2],
    },
}

/// What stays the same of a block's input.
struct Selected {
    /// z (batch, t, channels).
    gate: Tensor,
    /// c, Δ, B, C (batch, t, width of the scan).
    rows: Tensor,
}

impl StateSpace {
    pub(super) fn forward(&self, block: &Block, x: &Tensor, pass: &mut Pass) -> Result<Option<Tensor>> {
        let a = block.normalise("norm", x)?;
        if pass.stops_at(Site::SsmIn, &a)? {
            return Ok(None);
        }
        let projected = block.apply(Role::SsmIn, &a)?;
        let selected = match self.selection {
            Selection::Projected { rank } => self.select(block, &projected, rank, pass)?,
            Selection::Direct { limits } => Some(self.split(block, &projected, limits, pass)?),
        };
        let Some(Selected { gate, rows }) = selected else { return Ok(None) };
        let scanned = self.scan(block, &rows, pass)?;
        let gated = activate(self.gate, Some(&gate), &scanned)?;
        let gated = block.normalise_if_any("gate_norm", gated)?;
        if pass.stops_at(Site::SsmOut, &gated)? {
            return Ok(None);
        }
        let out = block.apply(Role::SsmOut, &gated)?;
        Ok(Some(add(x, &out)?))
    }

    /// By the linears X and Dt; `None` when the tap stopped it.
    fn select(&self, block: &Block, projected: &Tensor, rank: usize, pass: &mut Pass) -> Result<Option<Selected>> {
        let (channels, bc) = (self.scan.channels(), 2 * self.scan.groups * self.scan.state);
        let c = self.convolve(block, &part(projected, 0, channels)?, pass)?;
        if pass.stops_at(Site::SsmConv, &c)? {
            return Ok(None);
        }
        let parameters = block.apply(Role::SsmX, &c)?;
        let narrow_dt = part(&parameters, 0, rank)?;
        if pass.stops_at(Site::SsmDt, &narrow_dt)? {
            return Ok(None);
        }
        let dt = softplus(&block.apply(Role::SsmDt, &narrow_dt)?)?;
        let rows = Tensor::cat(&[&c, &dt, &part(&parameters, rank, bc)?], 2)?;
        Ok(Some(Selected { gate: part(projected, channels, channels)?, rows }))
    }

    /// Everything lies in the input projection.
    fn split(&self, block: &Block, projected: &Tensor, limits: [f64; 2], pass: &mut Pass) -> Result<Selected> {
        let (channels, heads) = (self.scan.channels(), self.scan.heads);
        let bc = 2 * self.scan.groups * self.scan.state;
        let convolved = self.convolve(block, &part(projected, channels, channels + bc)?, pass)?;
        let dt = part(projected, 2 * channels + bc, heads)?.broadcast_add(block.tensor("dt_bias")?)?;
        let mut dt = softplus(&dt)?;
        if limits != [0.0, f64::INFINITY] {
            dt = dt.clamp(limits[0], limits[1])?;
        }
        let rows = Tensor::cat(&[&part(&convolved, 0, channels)?, &dt, &part(&convolved, channels, bc)?], 2)?;
        Ok(Selected { gate: part(projected, 0, channels)?, rows })
    }

    /// act(conv(u)), behind what is cached.
    fn convolve(&self, block: &Block, u: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let (weight, bias) = (block.tensor("conv.weight")?, block.tensors.get("conv.bias"));
        let before = pass.cache.as_ref().and_then(|cache| cache.conv_state.clone());
        if let Some(cache) = &mut pass.cache {
            cache.conv_state = Some(conv1d_state(u, weight.dim(2)?, before.as_ref())?);
        }
        activate(self.activation, None, &causal_conv1d(u, weight, bias, before.as_ref())?)
    }

    /// The recurrence, from the cached state on.
    fn scan(&self, block: &Block, rows: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let a = block.tensor("a_log")?.exp()?.neg()?.reshape((self.scan.heads, ()))?;
        let skip = block.tensor("skip")?;
        let Some(cache) = &mut pass.cache else { return Ok(ops::selective_scan(self.scan, rows, &a, skip)?) };
        let (y, state) = ops::selective_scan_from(self.scan, rows, &a, skip, cache.ssm_state.as_ref())?;
        cache.ssm_state = Some(state);
        Ok(y)
    }
}

/// Entries `from..from + len` of the last of three dimensions.
fn part(x: &Tensor, from: usize, len: usize) -> Result<Tensor> {
    Ok(x.narrow(2, from, len)?.contiguous()?)
}

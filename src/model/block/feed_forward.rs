//! The feed-forward layer as part of a block.
//!
//! ```text
//! y = Down · (act(Gate m) ∘ Up m)        or, without a gate, Down · act(Up m)
//! ```
//! Sites, in order: `mlp_in` sees m, `mlp_out` what enters Down.

use super::super::ids::{Role, Site};
use super::{Block, Pass, activate};
use crate::ops::Activation;
use anyhow::Result;
use candle_core::Tensor;

#[derive(Debug, Clone, Copy)]
pub(in crate::model) struct FeedForward {
    pub activation: Activation,
}

impl FeedForward {
    /// m (…, hidden) to (…, hidden); `None` when the tap stopped it.
    pub(super) fn forward(&self, block: &Block, m: &Tensor, pass: &mut Pass) -> Result<Option<Tensor>> {
        if pass.stops_at(Site::MlpIn, m)? {
            return Ok(None);
        }
        let up = block.apply(Role::Up, m)?;
        let gate = block.linear(Role::Gate).map(|_| block.apply(Role::Gate, m)).transpose()?;
        let inner = activate(self.activation, gate.as_ref(), &up)?;
        if pass.stops_at(Site::MlpOut, &inner)? {
            return Ok(None);
        }
        block.apply(Role::Down, &inner).map(Some)
    }
}

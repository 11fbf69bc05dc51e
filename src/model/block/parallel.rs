//! The decoder block whose attention and feed-forward layer stand side by side.
//!
//! ```text
//! y = x + attention(norm(x)) + feed-forward(norm'(x))        norms `attn_norm` and `mlp_norm`
//! ```
//! Sites: those of the attention (`attention.rs`), then those of the feed-forward layer (`feed_forward.rs`).

use super::{Attention, Block, FeedForward, Pass};
use crate::ops::add;
use anyhow::Result;
use candle_core::Tensor;

#[derive(Debug)]
pub(in crate::model) struct Parallel {
    pub attention: Attention,
    pub feed_forward: FeedForward,
}

impl Parallel {
    pub(super) fn forward(&self, block: &Block, x: &Tensor, pass: &mut Pass) -> Result<Option<Tensor>> {
        let a = block.normalise("attn_norm", x)?;
        let Some(mixed) = self.attention.forward(block, &a, pass)? else { return Ok(None) };
        let m = block.normalise("mlp_norm", x)?;
        let Some(out) = self.feed_forward.forward(block, &m, pass)? else { return Ok(None) };
        Ok(Some(add(x, &add(&mixed, &out)?)?))
    }
}

//! The decoder block whose attention and feed-forward layer stand side by side.
//!
//! ```text
//! y = x + attention(norm(x)) + feed-forward(norm'(x))        norms `attn_norm` and `mlp_norm`
//! ```
//! Sites: those of the attention (`attend.rs`), then those of the feed-forward layer (`feed_forward.rs`).

use super::{Attend, Block, FeedForward, Pass};
use anyhow::Result;
use candle_core::Tensor;

#[derive(Debug)]
pub(in crate::model) struct Parallel {
    pub attend: Attend,
    pub feed_forward: FeedForward,
}

impl Parallel {
    pub(super) fn forward(&self, block: &Block, x: &Tensor, pass: &mut Pass) -> Result<Option<Tensor>> {
        let a = block.normalise("attn_norm", x)?;
        let Some(mixed) = self.attend.forward(block, &a, pass)? else { return Ok(None) };
        let m = block.normalise("mlp_norm", x)?;
        let Some(out) = self.feed_forward.forward(block, &m, pass)? else { return Ok(None) };
        Ok(Some(block.add(x, &block.add(&mixed, &out)?)?))
    }
}

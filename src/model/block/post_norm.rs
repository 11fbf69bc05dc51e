//! The post-norm encoder block: every position sees the whole sequence.
//!
//! ```text
//! h = norm(x + attention(x))             norm `attn_norm`
//! y = norm'(h + feed-forward(h))         norm' `mlp_norm`
//! ```
//! Sites: those of the attention (`attention.rs`), then those of the feed-forward layer (`feed_forward.rs`). Padding is seen by
//! nobody; what stands at its positions means nothing.

use super::{Attention, Block, FeedForward, Pass};
use crate::ops::add;
use anyhow::Result;
use candle_core::Tensor;

#[derive(Debug)]
pub(in crate::model) struct PostNorm {
    pub attention: Attention,
    pub feed_forward: FeedForward,
}

impl PostNorm {
    pub(super) fn forward(&self, block: &Block, x: &Tensor, pass: &mut Pass) -> Result<Option<Tensor>> {
        let Some(mixed) = self.attention.forward_bidirectional(block, x, pass)? else { return Ok(None) };
        let h = block.normalise("attn_norm", &add(x, &mixed)?)?;
        let Some(out) = self.feed_forward.forward(block, &h, pass)? else { return Ok(None) };
        Ok(Some(block.normalise("mlp_norm", &add(&h, &out)?)?))
    }
}

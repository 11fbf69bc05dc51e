//! The pre-norm decoder block.
//!
//! ```text
//! a = norm(x)      h = x + post(attention(a))         norms `attn_norm` and, if there is one, `attn_post_norm`
//! m = norm(h)      y = h + post(feed-forward(m))      norms `mlp_norm` and, if there is one, `mlp_post_norm`
//! ```
//! Sites: those of the attention (`attend.rs`), then those of the feed-forward layer (`feed_forward.rs`).

use super::{Attend, Block, FeedForward, Pass};
use anyhow::Result;
use candle_core::Tensor;

#[derive(Debug)]
pub(in crate::model) struct PreNorm {
    pub attend: Attend,
    pub feed_forward: FeedForward,
}

impl PreNorm {
    pub(super) fn forward(&self, block: &Block, x: &Tensor, pass: &mut Pass) -> Result<Option<Tensor>> {
        let a = block.normalise("attn_norm", x)?;
        let Some(mixed) = self.attend.forward(block, &a, pass)? else { return Ok(None) };
        let h = block.add(x, &block.normalise_if_any("attn_post_norm", mixed)?)?;
        let m = block.normalise("mlp_norm", &h)?;
        let Some(out) = self.feed_forward.forward(block, &m, pass)? else { return Ok(None) };
        Ok(Some(block.add(&h, &block.normalise_if_any("mlp_post_norm", out)?)?))
    }
}

//! The pre-norm decoder block.
//!
//! ```text
//! a = norm(x)      h = x + post(attention(a))         norms `attn_norm` and, if there is one, `attn_post_norm`
//! m = norm(h)      y = h + post(feed-forward(m))      norms `mlp_norm` and, if there is one, `mlp_post_norm`
//! ```
//! Sites: those of the attention (`attention.rs`), then those of the feed-forward layer (`feed_forward.rs`) or layers
//! (`experts.rs`).

use super::{Attention, Block, Experts, FeedForward, Pass};
use crate::ops::add;
use anyhow::Result;
use candle_core::Tensor;

#[derive(Debug)]
pub(in crate::model) struct PreNorm {
    pub attention: Attention,
    pub inner: Inner,
}

/// What stands where the feed-forward layer does.
#[derive(Debug, Clone, Copy)]
pub(in crate::model) enum Inner {
    One(FeedForward),
    Experts(Experts),
}

impl PreNorm {
    pub(super) fn forward(&self, block: &Block, x: &Tensor, pass: &mut Pass) -> Result<Option<Tensor>> {
        let a = block.normalise("attn_norm", x)?;
        let Some(mixed) = self.attention.forward(block, &a, pass)? else { return Ok(None) };
        let h = add(x, &block.normalise_if_any("attn_post_norm", mixed)?)?;
        let m = block.normalise("mlp_norm", &h)?;
        let out = match &self.inner {
            Inner::One(feed_forward) => feed_forward.forward(block, &m, pass)?,
            Inner::Experts(experts) => experts.forward(block, &m, pass)?,
        };
        let Some(out) = out else { return Ok(None) };
        Ok(Some(add(&h, &block.normalise_if_any("mlp_post_norm", out)?)?))
    }
}

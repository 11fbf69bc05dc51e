//! Self-attention as part of a block.
//!
//! ```text
//! q = rope(norm(Q a))   k = rope(norm(K a))   v = V a   y = O · attention(q, k, v)
//! ```
//! A head's values may have fewer dimensions than the base's. The norms, per head, are `q_norm` and `k_norm`, where the block
//! has them. Sites, in order: `attn_in` sees a, `attn_out` what enters O.

use super::super::ids::{Role, Site};
use super::super::rope::Rope;
use super::{Block, Pass};
use crate::ops::{AttentionMask, Scores, attention};
use anyhow::Result;
use candle_core::Tensor;
use std::sync::Arc;

#[derive(Debug)]
pub(in crate::model) struct Attention {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Blocks share the tables.
    pub rope: Option<Arc<Rope>>,
    pub scores: Scores,
    /// Keys that a query sees at most where it looks back, its own among them; by default all.
    pub sliding_window: Option<usize>,
}

impl Attention {
    /// a (batch, t, hidden) to (batch, t, hidden), each position looking back; `None` when the tap stopped it.
    pub(super) fn forward(&self, block: &Block, a: &Tensor, pass: &mut Pass) -> Result<Option<Tensor>> {
        self.run(block, a, &AttentionMask::Causal { sliding_window: self.sliding_window }, pass)
    }

    /// The same with each position looking at the whole sequence but its padding.
    pub(super) fn forward_bidirectional(&self, block: &Block, a: &Tensor, pass: &mut Pass) -> Result<Option<Tensor>> {
        self.run(block, a, &AttentionMask::Bidirectional { lengths: pass.lengths.map(Into::into) }, pass)
    }

    fn run(&self, block: &Block, a: &Tensor, mask: &AttentionMask, pass: &mut Pass) -> Result<Option<Tensor>> {
        if pass.stops_at(Site::AttnIn, a)? {
            return Ok(None);
        }
        let mixed = self.mix(block, a, mask, pass)?;
        if pass.stops_at(Site::AttnOut, &mixed)? {
            return Ok(None);
        }
        block.apply(Role::O, &mixed).map(Some)
    }

    /// (batch, t, hidden) to (batch, t, heads · dimensions of a value).
    fn mix(&self, block: &Block, a: &Tensor, mask: &AttentionMask, pass: &mut Pass) -> Result<Tensor> {
        let (batch, t, _) = a.dims3()?;
        let split =
            |role, heads| -> Result<Tensor> { Ok(block.apply(role, a)?.reshape((batch, t, heads, self.head_dim))?) };
        let mut q = block.normalise_if_any("q_norm", split(Role::Q, self.heads)?)?;
        let mut k = block.normalise_if_any("k_norm", split(Role::K, self.kv_heads)?)?;
        // As many dimensions per head as the linear leaves.
        let mut v = block.apply(Role::V, a)?.reshape((batch, t, self.kv_heads, ()))?;
        if let Some(rope) = &self.rope {
            let (start, length) = pass.place(t);
            (q, k) = (rope.apply(&q, start, length)?, rope.apply(&k, start, length)?);
        }
        if let Some(cache) = &mut pass.cache {
            (k, v) = cache.append(&k, &v)?;
        }
        Ok(attention(&q, &k, &v, self.scores, mask)?)
    }
}

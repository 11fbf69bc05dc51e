//! What a block keeps of the positions it has seen, so that later ones can be run without them.

use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use candle_nn::kv_cache::KvCache;

/// Positions for which room is made at once.
const ROOM: usize = 256;

/// The cache of one block: keys and values of attention; of a state-space block the end of its convolution's input and its
/// state. Nothing in it carries gradients.
#[derive(Debug, Default)]
pub struct Cache {
    /// Positions seen so far.
    seen: usize,
    /// Length that the sequence is known to reach.
    pub(super) expected: usize,
    /// (batch, seen, kv heads, d)
    keys_values: Option<KvCache>,
    /// (batch, taps − 1, channels)
    pub(super) conv_state: Option<Tensor>,
    /// (batch, channels, state)
    pub(super) ssm_state: Option<Tensor>,
}

impl Cache {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Positions seen so far.
    pub fn seen(&self) -> usize {
        self.seen
    }

    /// Says that the sequence will be at least so long: blocks that rotate long sequences in another way have to know
    /// from the first position on.
    pub fn expect(&mut self, length: usize) {
        self.expected = length;
    }

    pub(super) fn advance(&mut self, positions: usize) {
        self.seen += positions;
    }

    /// Adds the keys and values (batch, t, kv heads, d) of new positions; gives those of all.
    pub(super) fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        ensure!(!k.track_op() && !v.track_op(), "keys and values in a cache carry no gradients");
        let cache = self.keys_values.get_or_insert_with(|| KvCache::new(1, ROOM));
        cache.append(&k.contiguous()?, &v.contiguous()?).context("caching keys and values")
    }
}

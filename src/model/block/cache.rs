//! What a block keeps of the positions it has seen, so that later ones can be run without them.

use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use candle_nn::kv_cache::KvCache;

/// Positions for which room is made at once, where nobody knows how many there will be.
const ROOM: usize = 256;

/// The cache of one block: keys and values of attention; of a state-space block the end of its convolution's input and its
/// state. Nothing in it carries gradients.
#[derive(Debug)]
pub struct Cache {
    /// Positions for which room is made at once.
    room: usize,
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

impl Default for Cache {
    fn default() -> Self {
        Self::with_room(ROOM)
    }
}

impl Cache {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing seen yet, and room for so many positions; more are possible.
    pub fn with_room(positions: usize) -> Self {
        let room = positions.max(1);
        Self { room, seen: 0, expected: 0, keys_values: None, conv_state: None, ssm_state: None }
    }

    /// The cache of sequences that all begin with sequences seen here, and go on by up to `more` positions: sequence r begins
    /// with sequence `beginnings`\[r\], counted from 0 (u32). This cache stays what it is.
    pub fn branch(&self, beginnings: &Tensor, more: usize) -> Result<Self> {
        let select = |x: &Option<Tensor>| x.as_ref().map(|x| x.index_select(beginnings, 0)).transpose();
        let mut branched = Self {
            seen: self.seen,
            expected: self.expected,
            conv_state: select(&self.conv_state)?,
            ssm_state: select(&self.ssm_state)?,
            ..Self::with_room(self.seen + more)
        };
        if let Some(cache) = &self.keys_values
            && let (Some(k), Some(v)) = (select(&cache.k()?)?, select(&cache.v()?)?)
        {
            branched.append(&k, &v)?;
        }
        Ok(branched)
    }

    /// Positions seen so far.
    pub fn seen(&self) -> usize {
        self.seen
    }

    /// Bytes of what it holds of the positions seen.
    pub fn bytes(&self) -> Result<usize> {
        let of = |x: &Tensor| x.elem_count() * x.dtype().size_in_bytes();
        let states: usize = [&self.conv_state, &self.ssm_state].into_iter().flatten().map(of).sum();
        let Some(cache) = &self.keys_values else { return Ok(states) };
        Ok(states + [cache.k()?, cache.v()?].iter().flatten().map(of).sum::<usize>())
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
        let cache = self.keys_values.get_or_insert_with(|| KvCache::new(1, self.room));
        cache.append(&k.contiguous()?, &v.contiguous()?).context("caching keys and values")
    }
}

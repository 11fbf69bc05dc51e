//! A model that reads tokens one after the other and says what may come next.

use super::block::{Block, Cache};
use super::head::Head;
use super::opened::Model;
use anyhow::{Result, ensure};
use candle_core::Tensor;

/// Tokens that go through the blocks at once.
const PIECE: usize = 512;

/// A model with all its blocks in memory, each with a cache of what it has seen: a token costs one position, however
/// many stand before it.
pub struct Decoder<'m> {
    model: &'m Model,
    blocks: Vec<(Block<'m>, Cache)>,
    head: Head,
    /// Everything read.
    ids: Vec<u32>,
}

impl<'m> Decoder<'m> {
    /// Loads every block. Nothing has been read.
    pub fn new(model: &'m Model) -> Result<Self> {
        let blocks = (0..model.blocks()).map(|index| Ok((model.block(index)?, Cache::new()))).collect::<Result<_>>()?;
        Ok(Self { model, blocks, head: model.head()?, ids: Vec::new() })
    }

    /// Reads `ids`, at least one, behind everything read so far. The logits (vocab) of what follows.
    ///
    /// # Errors
    /// An id outside the embedding, more tokens than the model's context, activations that are not finite.
    pub fn read(&mut self, ids: &[u32]) -> Result<Tensor> {
        ensure!(!ids.is_empty(), "there is nothing to read");
        let (seen, length) = (self.ids.len(), self.ids.len() + ids.len());
        self.ids.extend_from_slice(ids);
        // What is cached of a sequence that has become too long for its rotation is of no use.
        let turns = self.model.original_context().is_some_and(|turn| (1..=turn).contains(&seen) && length > turn);
        for (_, cache) in &mut self.blocks {
            if turns {
                *cache = Cache::new();
            }
            cache.expect(length);
        }
        let ids = self.ids[if turns { 0 } else { seen }..].to_vec();
        let (before, last) = ids.split_at((ids.len() - 1) / PIECE * PIECE);
        for piece in before.chunks(PIECE) {
            self.advance(piece)?;
        }
        let states = self.advance(last)?;
        let state = states.narrow(1, last.len() - 1, 1)?.squeeze(0)?;
        Ok(self.head.logits(&state)?.squeeze(0)?)
    }

    /// What leaves the last block, (1, t, hidden).
    fn advance(&mut self, ids: &[u32]) -> Result<Tensor> {
        let seen = self.blocks.first().map_or(0, |(_, cache)| cache.seen());
        let mut x = self.model.embed_from(&[ids], seen)?;
        for (block, cache) in &mut self.blocks {
            x = block.forward_cached(&x, cache)?;
        }
        Ok(x)
    }
}

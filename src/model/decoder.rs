//! A model that reads tokens one after the other and says what may come next.

use super::block::{Block, Cache};
use super::head::Head;
use super::opened::Model;
use anyhow::{Result, ensure};
use candle_core::Tensor;
use std::ops::Range;

/// Tokens that go through the blocks at once.
const PIECE: usize = 512;

/// A model with all its blocks in memory, each with a cache of what it has seen: a token costs one position, however
/// many stand before it.
pub struct Decoder<'m> {
    model: &'m Model,
    blocks: Vec<(Block<'m>, Cache)>,
    head: Head,
    /// Everything read, sequence by sequence.
    ids: Vec<Vec<u32>>,
}

/// What a decoder multiplies with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecoderStorage {
    /// Numbers in the matrices of the blocks.
    pub blocks: usize,
    /// Numbers in the matrix of the head.
    pub head: usize,
    /// Bytes of both in memory.
    pub bytes: usize,
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
        Ok(self.read_rows(&[ids])?.squeeze(0)?)
    }

    /// [`Decoder::read`] of several sequences of one length, as many each time: the logits (sequences, vocab).
    pub fn read_rows(&mut self, rows: &[&[u32]]) -> Result<Tensor> {
        let more = rows.first().map_or(0, |row| row.len());
        ensure!(more > 0, "there is nothing to read");
        ensure!(rows.iter().all(|row| row.len() == more), "sequences of several lengths");
        ensure!(self.ids.is_empty() || self.ids.len() == rows.len(), "another number of sequences than before");
        self.ids.resize(rows.len(), Vec::new());
        let seen = self.ids[0].len();
        let length = seen + more;
        self.ids.iter_mut().zip(rows).for_each(|(ids, row)| ids.extend_from_slice(row));
        // What is cached of a sequence that has become too long for its rotation is of no use.
        let turns = self.model.original_context().is_some_and(|turn| (1..=turn).contains(&seen) && length > turn);
        for (_, cache) in &mut self.blocks {
            if turns {
                *cache = Cache::new();
            }
            cache.expect(length);
        }
        let start = if turns { 0 } else { seen };
        let last = start + (length - start - 1) / PIECE * PIECE;
        for piece in (start..last).step_by(PIECE) {
            self.advance(piece..piece + PIECE)?;
        }
        let states = self.advance(last..length)?;
        let state = states.narrow(1, length - last - 1, 1)?.squeeze(1)?;
        self.head.logits(&state.contiguous()?)
    }

    /// Number of logits.
    pub fn vocab(&self) -> usize {
        self.head.vocab()
    }

    /// Numbers in the matrices of the blocks and of the head, and the bytes that all of them take in memory. Only the last
    /// token of what is read goes through the head.
    pub fn storage(&self) -> DecoderStorage {
        let blocks = self.blocks.iter().map(|(block, _)| block.linear_storage());
        let (numbers, bytes) = blocks.fold((0, 0), |sum, (numbers, bytes)| (sum.0 + numbers, sum.1 + bytes));
        let (head, head_bytes) = self.head.storage();
        DecoderStorage { blocks: numbers, head, bytes: bytes + head_bytes }
    }

    /// Bytes that are kept of everything read.
    pub fn cache_bytes(&self) -> Result<usize> {
        self.blocks.iter().map(|(_, cache)| cache.bytes()).sum()
    }

    /// Forgets everything read.
    pub fn forget(&mut self) {
        self.ids.clear();
        self.blocks.iter_mut().for_each(|(_, cache)| *cache = Cache::new());
    }

    /// What leaves the last block of these positions, (sequences, t, hidden).
    fn advance(&mut self, positions: Range<usize>) -> Result<Tensor> {
        let seen = self.blocks.first().map_or(0, |(_, cache)| cache.seen());
        let rows: Vec<&[u32]> = self.ids.iter().map(|ids| &ids[positions.clone()]).collect();
        let mut x = self.model.embed_from(&rows, seen)?;
        for (block, cache) in &mut self.blocks {
            x = block.forward_cached(&x, cache)?;
        }
        Ok(x)
    }
}

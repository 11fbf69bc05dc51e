//! Hidden states on their way through the model, block after block.

use crate::model::{Block, Model};
use anyhow::{Context, Result};
use candle_core::Tensor;

/// Tokens that go through a block at once.
pub const BATCH_TOKENS: usize = 2048;

/// The hidden states of some windows in front of one block: batches of (windows, t, hidden), f32.
#[derive(Clone)]
pub struct States {
    batches: Vec<Tensor>,
}

impl States {
    /// Embeds windows, all of the same length. No windows give no states.
    pub fn embed<W: AsRef<[u32]>>(model: &Model, windows: &[W]) -> Result<Self> {
        let length = windows.first().map_or(1, |w| w.as_ref().len()).max(1);
        let batches = windows
            .chunks((BATCH_TOKENS / length).max(1))
            .map(|chunk| model.embed(&chunk.iter().map(|w| w.as_ref()).collect::<Vec<_>>()))
            .collect::<Result<_>>()?;
        Ok(Self { batches })
    }

    /// The batches, in window order.
    pub fn batches(&self) -> &[Tensor] {
        &self.batches
    }

    /// Takes the states through `block`.
    pub fn advance(&mut self, block: &Block) -> Result<()> {
        for batch in &mut self.batches {
            *batch = block.forward(batch, &mut ())?.context("a forward pass without a tap was stopped")?;
        }
        Ok(())
    }
}

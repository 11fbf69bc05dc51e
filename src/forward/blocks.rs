//! The blocks of a model, one after the other.

use crate::model::{Block, Model};
use anyhow::Result;
use std::panic::resume_unwind;
use std::thread;

/// Calls `visit` with every block in order. The next block is read while `visit` works on one, where there is room for two.
pub fn each_block<'m>(model: &'m Model, mut visit: impl FnMut(usize, Block<'m>) -> Result<()>) -> Result<()> {
    thread::scope(|scope| {
        let mut ahead = None;
        for index in 0..model.blocks() {
            let block = match ahead.take() {
                None => model.block(index),
                Some(handle) => thread::ScopedJoinHandle::join(handle).unwrap_or_else(|panic| resume_unwind(panic)),
            }?;
            if model.compute().limits.read_ahead && index + 1 < model.blocks() {
                ahead = Some(scope.spawn(move || model.block(index + 1)));
            }
            visit(index, block)?;
            crate::memory::trim();
        }
        Ok(())
    })
}

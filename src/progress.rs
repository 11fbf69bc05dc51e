//! How long work tells the outside how far it is, and how the outside stops it.

use anyhow::Result;

/// The user asked to stop (Ctrl-C, SIGTERM). What was finished is on disk; the same command goes on from there.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Receives progress. The command line draws bars, prints lines or writes JSON; tests use `()`.
pub trait Progress: Sync {
    /// A stage of `steps` steps begins; the one before it is over.
    fn stage(&self, name: &str, steps: u64);
    /// `steps` more steps of the current stage are done. Fails with [`Interrupted`] when the user wants to stop.
    fn step(&self, steps: u64) -> Result<()>;
    /// Something the user should know now.
    fn note(&self, text: &str);
    /// Something that makes the result doubtful.
    fn warn(&self, text: &str) {
        self.note(text);
    }
}

/// Silence.
impl Progress for () {
    fn stage(&self, _: &str, _: u64) {}
    fn step(&self, _: u64) -> Result<()> {
        Ok(())
    }
    fn note(&self, _: &str) {}
}

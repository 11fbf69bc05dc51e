//! Integration tests: one module per concern.

mod data; // where real models and texts are
mod laws; // what every method must obey, over the explicit list
mod checkpoint; // reading, writing and proving whole checkpoints
mod verify; // what makes a checkpoint whole
mod hostile_checkpoint; // damaged and malicious checkpoints are refused with a reason
mod text; // corpora, tokenizers and windows on real text
mod report; // the report's views
#[cfg(feature = "hub")]
mod hub; // fetching models and data sets, against a hub of our own that also misbehaves

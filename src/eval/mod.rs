//! How good a model is, and how far it is from another. The protocol is part of every result.

mod score;
mod perplexity;
mod sensitivity;

pub use perplexity::{Divergence, Evaluation, Perplexity, evaluate};
pub use sensitivity::{Variant, sensitivities};

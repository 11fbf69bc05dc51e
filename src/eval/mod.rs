//! How good a model is, and how far it is from another. The protocol is part of every result.

mod score;
mod perplexity;
mod modules;
mod encode;
mod pseudo;
mod fidelity;
mod metrics;
mod classes;
mod glue;
mod likelihood;
mod zero_shot;
mod sensitivity;

pub use classes::Classes;
pub use fidelity::{Fidelity, fidelity};
pub use glue::{GlueProtocol, GlueResult, glue};
pub use likelihood::{Likelihood, likelihoods};
pub use metrics::{accuracy, f1, pearson, spearman};
pub use modules::{Modules, Pooling};
pub use perplexity::{Divergence, Evaluation, Perplexity, evaluate};
pub use pseudo::evaluate_masked;
pub use score::Base;
pub use sensitivity::{Replacements, SENSITIVITY_STATES, Variant, sensitivities};
pub use zero_shot::{EncodedItems, ItemScore, MeasuredTask, TaskResult, TaskScores, item_scores, zero_shot};

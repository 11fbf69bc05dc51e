//! Gradients through a model in the memory of one block.
//!
//! The forward pass keeps only what enters each block. On the way back a block is run again from that, this time with a
//! graph, and its graph is dropped before the block in front of it is run: memory is one block's graph and one hidden
//! state per block, whatever the depth.
//!
//! [`loss_and_gradients`] runs any range of blocks under any [`EndLoss`], a function of the states that leave the last of
//! them. These are here:
//!
//! | loss | of the states behind the last block | function |
//! |---|---|---|
//! | KL(teacher ‖ student), likelihood of the next token | of a model that predicts tokens | [`token_loss_gradient`] |
//! | cross-entropy, squared error of a score, KL of classes | of a classifier | [`class_loss_gradient`] |
//! | 1 − cosine to other states | of an encoder | [`cosine_loss_gradient`] |
//! | squared distance to other states | of any block | [`squared_distance_gradient`] |
//! | −log p(a label drawn from the prediction itself) | of any model | [`sampled_gradient`] |
//!
//! What a [`BlockStack`] trains gets its gradients summed up in [`Gradients`]; a [`GradientTap`] sees, in the same pass, what
//! enters the linears and the gradients on what leaves them.

mod class_loss;
mod gradients;
mod output_grams;
mod pass;
mod sampled;
mod state_loss;
mod token_loss;

pub use class_loss::class_loss_gradient;
pub use gradients::Gradients;
pub use output_grams::{OutputGrams, batches as output_gram_batches, output_grams, windows_at_once};
pub use pass::{BlockStack, EndLoss, Forward, GradientTap, Segment, backward, forward, loss_and_gradients};
pub use sampled::{Prediction, sampled_gradient};
pub use state_loss::{cosine_loss_gradient, squared_distance_gradient};
pub use token_loss::{Objective, Teacher, token_loss, token_loss_gradient};

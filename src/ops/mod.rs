//! What blocks and losses are made of: each operation is one function with one meaning on every device.
//!
//! A file opens with the equations of its operation. On the CPU it is one pass over the numbers each way, forward and
//! backward; on other devices it is made of tensor operations, whose gradients candle knows. Both carry gradients
//! whenever an input is tracked and keep nothing when none is; a test compares values and gradients of the forms on every
//! device that there is. Nothing here knows a model.

mod activation;
mod attention;
mod conv;
mod cpu;
mod elementwise;
mod linear;
mod loss;
mod norm;
mod numbers;
#[cfg(test)]
mod parity;
mod rotary;
mod scan;
mod score;

pub use activation::{Activation, activation, gated_activation, softplus};
pub use attention::{AttentionMask, Scores, attention};
pub use conv::{causal_conv1d, conv1d_state};
pub use elementwise::add;
pub use linear::{MatmulPrecision, ProductType, linear, linear_back};
pub use loss::{add_difference, add_softmax, divergence, log_sum_exp};
pub use norm::{layer_norm, rms_norm};
pub use numbers::{is_finite, magnitude, with_numbers};
pub use rotary::rotary;
pub use scan::{Scan, selective_scan, selective_scan_from};
pub use score::{Reference, Score, divergence_of, log_softmax, score, target_scores};

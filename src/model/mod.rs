//! Models that run; they do not compress.
//!
//! A family (`family/`) maps a `config.json` and tensor names onto a shared block shape ([`Block`]); nothing outside
//! this module knows a family's name. Blocks are loaded one at a time: memory does not grow with depth.

mod ids;
mod check;
mod config;
pub(crate) mod simd;
mod attention;
mod ops;
mod grad;
mod rope;
mod linear;
mod decoder;
mod trainable;
mod family;

pub use decoder::{Block, Flow, Head, Model, Tap};
pub use family::KNOWN_FAMILIES;
pub use ids::{LinearId, LinearSpec, Role, Site, Stored};
pub use linear::Linear;
pub use ops::with_numbers;

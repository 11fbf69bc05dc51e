//! Models that run; they do not compress.
//!
//! A family (`family/`) maps a `config.json` and tensor names onto a description (`layout.rs`) over a few shared block
//! shapes (`block/`); nothing outside this module knows a family's name. Blocks are loaded one at a time: memory does not
//! grow with depth.

mod ids;
mod spec;
mod layout;
mod needed;
mod narrow;
mod check;
mod config;
mod norm;
mod rope;
mod linear;
mod block;
mod head;
mod opened;
mod description;
mod sound;
mod verify;
mod decoder;
mod tensors;
mod synthetic;
mod family;
mod quantised;

pub use block::{Block, Cache, Flow, OutputGradients, Tap};
pub use decoder::{Decoder, DecoderStorage};
pub use description::Description;
pub use family::{BIAS_KEYS, known_families};
pub use head::{Classifier, Head};
pub use ids::{FfnPart, LinearId, Role, Side, Site};
pub use layout::UNBOUNDED;
pub use linear::{Linear, load_bias};
pub use narrow::{FeedForwardLinears, Heads};
pub use opened::{Model, Output};
pub use sound::Touched;
pub use spec::{LinearSpec, RowRuns, Stored};
pub use synthetic::{Described, Purpose, describe_tensors, with_blocks};
pub use verify::{Verification, verify};

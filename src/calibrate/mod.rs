//! Calibration: what the inputs of each linear look like.

mod stats;
mod states;
mod collect;
mod store;

pub use collect::{BlockStats, collect};
pub use states::{BATCH_TOKENS, States};
pub use stats::SiteStats;
pub use store::{Origin, StatsStore, merge};

//! Calibration: what the inputs of each linear look like.

mod stats;
mod states;
mod collect;
mod origin;
mod block;
mod store;
mod merge;

pub use collect::{BlockStats, collect};
pub use merge::merge;
pub use origin::Origin;
pub use states::{BATCH_TOKENS, States};
pub use stats::SiteStats;
pub use store::StatsStore;

//! Calibration: what the inputs of each linear look like.

mod stats;
mod collect;
mod origin;
mod block;
mod store;
mod merge;

pub use collect::{BlockStats, collect, collect_and_advance};
pub use merge::merge;
pub use origin::Origin;
pub use stats::SiteStats;
pub use store::StatsStore;

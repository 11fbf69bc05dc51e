//! The allocation rules by name.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// How the budget is shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum AllocationRule {
    /// The same fraction of every linear, rounded down; what the rounding leaves over is handed out rank by rank.
    Even,
    /// The same as `even`, but what the rounding leaves over is not spent: floor(keep·m·n/(m+n)), as in the papers.
    Uniform,
    /// Over the forms of every part of every block, as the method `auto` has them.
    Forms,
    /// Across linears by weighted energy, keeping some dense.
    Global,
    /// Across linears as `global`, by what a learned method found every component to be worth.
    Learned,
    /// Only the last blocks (`--last-blocks`), as in LLM-ROM.
    LastBlocks,
    /// More rank for v and o than for q and k, narrower feed-forward layers, as in LoRAP.
    Lorap,
}

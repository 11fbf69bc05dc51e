//! How much of every linear is kept: budgets, break-even ranks and the rules that share a budget out.
//!
//! A linear W (out = m, in = n) held as two factors of rank r costs r (m + n) parameters, so it saves only below the
//! break-even rank r* = m n / (m + n). All rules answer with a [`Plan`]: one [`Choice`] per linear. They agree on
//! - `keep` is the fraction of the given linears' weights that is kept; biases, norms and embeddings never count;
//! - keep = 1 leaves everything dense; a rank at or above break-even is dense;
//! - every linear keeps at least one component; a budget too small for that is an error that names the smallest keep;
//! - `multiple_of` rounds ranks (and feed-forward widths) down to a multiple; 1 switches that off.
//!
//! | rule | shares the budget by | met |
//! |---|---|---|
//! | [`uniform`] | floor(keep · r*) per linear, as the papers do | from below, by the rounding |
//! | [`even`] | the same, and the rounding's remainder handed out | to less than one component |
//! | [`global`] | least Σ w · dropped energy, dense being an option | to less than one component |
//! | [`forms`] | least loss over the options of every part of a block | to less than one step |
//! | [`last_blocks`] | one fraction for the last N blocks, the others dense | from below, by the rounding |
//! | [`last_blocks_within`] | the same, the fraction found for an overall budget | to less than one component |
//! | [`lorap`] | more rank for v, o than for q, k; feed-forward layers get narrower | to less than one component |

mod budget;
mod uniform;
mod curve;
mod knapsack;
mod global;
mod forms;
mod last_blocks;
mod lorap;
mod rule;

pub use budget::{Target, break_even, largest_saving_rank, paper_rank};
pub use forms::{FormOption, Part, forms};
pub use global::{GlobalOptions, global, tails};
pub use last_blocks::{last_blocks, last_blocks_within};
pub use lorap::{LorapOptions, lorap};
pub use rule::AllocationRule;
pub use uniform::{even, uniform};

use crate::model::{FfnPart, LinearId, LinearSpec, Role};
use serde::{Deserialize, Serialize};

/// One linear as allocation sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Block and role.
    pub id: LinearId,
    /// Output features (m).
    pub out: usize,
    /// Input features (n).
    pub input: usize,
    /// Squared spectrum of the decomposition, non-increasing: dropping components r.. costs the sum of `energy[r..]`.
    /// Only [`global`] looks at it.
    pub energy: Option<Vec<f64>>,
    /// Loss per unit of energy: makes energies of different linears comparable. Only [`global`] looks at it.
    pub weight: f64,
}

impl Item {
    /// An item without spectrum, weight 1.
    pub fn new(id: LinearId, out: usize, input: usize) -> Self {
        Self { id, out, input, energy: None, weight: 1.0 }
    }

    /// Number of weights of the dense linear, m n.
    pub fn params(&self) -> usize {
        self.out * self.input
    }

    /// Number of weights that `choice` leaves of this linear.
    pub fn cost(&self, choice: Choice) -> usize {
        choice.params(self.id.role, self.out, self.input)
    }
}

impl From<&LinearSpec> for Item {
    fn from(spec: &LinearSpec) -> Self {
        Self::new(spec.id, spec.out, spec.input)
    }
}

/// What becomes of one linear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// Stays as it is.
    Dense,
    /// Two factors of this rank.
    Rank(usize),
    /// Stays dense with this many feed-forward channels: the new `out` of gate and up, the new `in` of down.
    Width(usize),
    /// Stays dense with `kept` of the `of` value dimensions of every head: the new `out` of v, the new `in` of o.
    HeadDim {
        /// Dimensions that are left.
        kept: usize,
        /// Dimensions there were.
        of: usize,
    },
}

impl Choice {
    /// Number of weights that are left of a linear of this role and shape.
    pub fn params(self, role: Role, out: usize, input: usize) -> usize {
        match self {
            Choice::Dense => out * input,
            Choice::Rank(rank) => rank * (out + input),
            Choice::Width(width) if role.ffn_part() == Some(FfnPart::Down) => out * width,
            Choice::Width(width) => width * input,
            Choice::HeadDim { kept, of } => out * input / of * kept,
        }
    }

    /// Rank `rank` where that saves parameters, dense where it does not.
    pub fn of_rank(rank: usize, out: usize, input: usize) -> Self {
        if rank > largest_saving_rank(out, input) { Choice::Dense } else { Choice::Rank(rank) }
    }
}

/// One choice per linear and what they add up to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The choices in the order of the items.
    pub choices: Vec<(LinearId, Choice)>,
    /// Weights left of each linear, in the same order.
    pub costs: Vec<usize>,
    /// Weights left of all linears together.
    pub kept: usize,
    /// Weights of all linears before.
    pub total: usize,
    /// Weights that were allowed.
    pub budget: usize,
    /// What was done, in one sentence.
    pub rule: String,
}

impl Plan {
    fn new(items: &[Item], choices: impl IntoIterator<Item = Choice>, budget: usize, rule: String) -> Self {
        let choices: Vec<_> = items.iter().map(|item| item.id).zip(choices).collect();
        debug_assert_eq!(choices.len(), items.len());
        let costs: Vec<usize> = items.iter().zip(&choices).map(|(item, &(_, choice))| item.cost(choice)).collect();
        Self { kept: costs.iter().sum(), total: budget::total(items), choices, costs, budget, rule }
    }

    fn dense(items: &[Item]) -> Self {
        let all = items.iter().map(|_| Choice::Dense);
        Self::new(items, all, budget::total(items), "everything stays dense".into())
    }

    /// What becomes of `id`; `None` when the plan does not cover it.
    pub fn choice(&self, id: LinearId) -> Option<Choice> {
        self.choices.iter().find(|(other, _)| *other == id).map(|&(_, choice)| choice)
    }

    /// Weights left of `id`; `None` when the plan does not cover it.
    pub fn cost(&self, id: LinearId) -> Option<usize> {
        self.choices.iter().position(|(other, _)| *other == id).map(|index| self.costs[index])
    }

    /// Fraction of the linears' weights that is kept.
    pub fn keep(&self) -> f64 {
        if self.total == 0 { 1.0 } else { self.kept as f64 / self.total as f64 }
    }

    /// Whether every linear of `block` stays as it is.
    pub fn block_is_dense(&self, block: usize) -> bool {
        self.choices.iter().filter(|(id, _)| id.block == block).all(|&(_, choice)| choice == Choice::Dense)
    }
}

#[cfg(test)]
mod tests;

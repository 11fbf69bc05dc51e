//! One budget for the whole model, spent where it buys most.
//!
//! Each linear l takes one of the options {rank r: cost r (m + n), error w_l Σ_{i>r} σ²_{l,i}} ∪ {dense: cost m n,
//! error 0}; the sum of the errors is to be least under the budget (a multiple-choice knapsack).

use super::budget::{self, Ladder, Target};
use super::curve::Curve;
use super::uniform::{ranks, short};
use super::{Item, Plan, break_even, knapsack};
use crate::user_bail;
use anyhow::{Context, Result};

/// Bounds on the ranks that [`global`] may choose.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GlobalOptions {
    /// No linear goes below this fraction of its break-even rank, in [0, 1]. Default 0: one component is enough.
    pub min_fraction: f64,
    /// Ranks are multiples of this. Default 1.
    pub multiple_of: usize,
}

impl Default for GlobalOptions {
    fn default() -> Self {
        Self { min_fraction: 0.0, multiple_of: 1 }
    }
}

/// Minimises Σ weight · (energy of the dropped components) over all items under the budget, with dense as an option.
/// What is left when no error can be saved any more is handed out evenly, so that the budget is met in any case.
///
/// Errors: an item without spectrum; energies or weights that are negative or not finite; a keep outside (0, 1];
/// a budget too small for the lowest rank of every linear.
pub fn global(items: &[Item], target: Target, options: GlobalOptions) -> Result<Plan> {
    budget::check_items(items, options.multiple_of)?;
    if !(0.0..=1.0).contains(&options.min_fraction) {
        let fraction = options.min_fraction;
        user_bail!("the least fraction of the break-even rank, {fraction}, is not between 0 and 1");
    }
    let total = budget::total(items);
    let budget = target.budget(total)?;
    if budget == total {
        return Ok(Plan::dense(items));
    }
    let ladders: Vec<Ladder> = items.iter().map(|item| ladder(item, options)).collect();
    let curves: Vec<Curve> =
        items.iter().zip(&ladders).map(|(item, ladder)| curve(item, ladder)).collect::<Result<_>>()?;
    budget::check_feasible(target, knapsack::least(&curves), budget, total)?;
    let (mut levels, left) = knapsack::search(&curves, budget);
    let fraction = target.fraction(total);
    budget::hand_out(&ladders, &mut levels, &vec![fraction; items.len()], left);
    let choices = ladders.iter().zip(levels).map(|(ladder, level)| ladder.choice(level));
    let rule = format!(
        "the budget of {} of all parameters goes where dropping components costs most ({}, dense where that is best)",
        short(fraction),
        ranks(options.multiple_of)
    );
    Ok(Plan::new(items, choices, budget, rule))
}

/// Ranks from the lowest allowed fraction of break-even upwards, then dense.
fn ladder(item: &Item, options: GlobalOptions) -> Ladder {
    let least = (options.min_fraction * break_even(item.out, item.input) - 1e-9).ceil() as usize;
    Ladder::new(item, options.multiple_of, least)
}

/// The weighted energy that each level of `ladder` drops.
fn curve(item: &Item, ladder: &Ladder) -> Result<Curve> {
    let id = item.id;
    let energy = item.energy.as_deref().with_context(|| format!("{id}: allocation needs the spectrum"))?;
    if let Some((i, value)) = energy.iter().enumerate().find(|(_, value)| !(value.is_finite() && **value >= 0.0)) {
        user_bail!(
            "{id}: energy {value} of component {i} is not a non-negative number";
            "check the weights and the calibration activations of this layer for NaN, infinity or overflow"
        );
    }
    let weight = item.weight;
    if !(weight.is_finite() && weight >= 0.0) {
        user_bail!("{id}: the loss weight {weight} is not a non-negative number");
    }
    let tail = tails(energy);
    let dropped = |level| tail.get(ladder.rank(level)).copied().unwrap_or(0.0);
    let error: Vec<f64> = (0..ladder.top).map(|level| weight * dropped(level)).chain([0.0]).collect();
    if !error[0].is_finite() {
        user_bail!("{id}: the energies times the loss weight {weight} are beyond the range of numbers");
    }
    Curve::new(id, (0..=ladder.top).map(|level| ladder.cost(level)).collect(), error)
}

/// What dropping the components from each on costs, ending in 0. Summed from the small end, so that small tails keep their
/// digits.
pub fn tails(energy: &[f64]) -> Vec<f64> {
    let mut tail = vec![0.0; energy.len() + 1];
    for i in (0..energy.len()).rev() {
        tail[i] = tail[i + 1] + energy[i];
    }
    tail
}

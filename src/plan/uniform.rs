//! The same fraction of every linear.

use super::budget::{self, Ladder, Target};
use super::{Choice, Item, Plan, break_even, largest_saving_rank, paper_rank};
use crate::user_bail;
use anyhow::Result;

/// The papers' rule: every linear keeps rank floor(keep · m n / (m + n)), rounded down to a multiple. What the rounding
/// leaves over is not spent. A linear that no rank makes smaller (a single row) stays dense.
///
/// Errors: a keep outside (0, 1]; a keep at which some rank would be 0.
pub fn uniform(items: &[Item], target: Target, multiple_of: usize) -> Result<Plan> {
    budget::check_items(items, multiple_of)?;
    let total = budget::total(items);
    let budget = target.budget(total)?;
    if budget == total {
        return Ok(Plan::dense(items));
    }
    let keep = target.fraction(total);
    let choices = floor_ranks(items, keep, multiple_of, &target.describe())?;
    let rule = format!("every linear keeps {} of its parameters, rounded down to {}", short(keep), ranks(multiple_of));
    let plan = Plan::new(items, choices, budget, rule);
    budget::check_feasible(target, plan.kept, budget, total)?;
    Ok(plan)
}

/// One common fraction for all linears, with the budget spent to the last component that fits: the ranks of
/// [`uniform`], then one step more for the linears that lost most by rounding, then round robin.
///
/// Errors: a keep outside (0, 1]; a budget too small for one component per linear.
pub fn even(items: &[Item], target: Target, multiple_of: usize) -> Result<Plan> {
    budget::check_items(items, multiple_of)?;
    let total = budget::total(items);
    let budget = target.budget(total)?;
    if budget == total {
        return Ok(Plan::dense(items));
    }
    let choices = even_ranks(items, target, budget, multiple_of)?;
    let rule = format!(
        "every linear keeps about {} of its parameters, {}, the budget spent to the last one that fits",
        short(target.fraction(total)),
        ranks(multiple_of)
    );
    Ok(Plan::new(items, choices, budget, rule))
}

/// floor(keep · r*) for each item. `asked` names the wish in errors.
pub(super) fn floor_ranks(items: &[Item], keep: f64, multiple_of: usize, asked: &str) -> Result<Vec<Choice>> {
    let shrinks = |item: &&Item| largest_saving_rank(item.out, item.input) > 0;
    let rank = |item: &Item| paper_rank(keep, item.out, item.input) / multiple_of * multiple_of;
    if let Some(item) = items.iter().filter(shrinks).find(|item| rank(item) == 0) {
        let need = items.iter().filter(shrinks).map(|item| multiple_of as f64 / break_even(item.out, item.input));
        let need = need.fold(0.0, f64::max);
        let (id, m, n) = (item.id, item.out, item.input);
        let of = if multiple_of > 1 { format!(" with ranks in multiples of {multiple_of}") } else { String::new() };
        if need >= 1.0 {
            user_bail!(
                "{asked} would leave {id} ({m} x {n}) rank 0{of}";
                "use a smaller multiple or another allocation"
            );
        }
        let smallest = budget::round_up(need);
        user_bail!(
            "{asked} would leave {id} ({m} x {n}) rank 0{of}";
            "the smallest possible keep of this rule is {smallest}"
        );
    }
    let choice = |item| if shrinks(&item) { Choice::of_rank(rank(item), item.out, item.input) } else { Choice::Dense };
    Ok(items.iter().map(choice).collect())
}

/// The ranks of [`even`] for exactly these items and this budget.
pub(super) fn even_ranks(items: &[Item], target: Target, budget: usize, multiple_of: usize) -> Result<Vec<Choice>> {
    let total = budget::total(items);
    let ladders: Vec<Ladder> = items.iter().map(|item| Ladder::new(item, multiple_of, 1)).collect();
    budget::check_feasible(target, budget::cost(&ladders, &vec![0; items.len()]), budget, total)?;
    let ones = vec![1.0; items.len()];
    let scale = budget::common_scale(&ladders, &ones, target.fraction(total), budget);
    let mut levels = budget::levels_at(&ladders, &ones, scale);
    let left = budget - budget::cost(&ladders, &levels);
    budget::hand_out(&ladders, &mut levels, &vec![scale; items.len()], left);
    Ok(ladders.iter().zip(levels).map(|(ladder, level)| ladder.choice(level)).collect())
}

/// A fraction for people: at most four decimals.
pub(super) fn short(fraction: f64) -> f64 {
    (fraction * 1e4).round() / 1e4
}

pub(super) fn ranks(multiple_of: usize) -> String {
    if multiple_of == 1 { "whole ranks".into() } else { format!("ranks in multiples of {multiple_of}") }
}

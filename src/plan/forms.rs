//! One budget shared out over the forms of the parts of all blocks.
//!
//! A part is what changes together: a feed-forward layer that loses channels, v and o that lose dimensions of every head, a
//! linear by itself. Each of its options says what becomes of its linears, how many parameters that leaves and what loss it
//! predicts, in one unit for all parts; the sum of the losses is least under the budget (a multiple-choice knapsack).

use super::budget::{self, Target};
use super::curve::Curve;
use super::uniform::short;
use super::{Choice, Item, Plan, knapsack};
use crate::model::LinearId;
use anyhow::{Result, ensure};
use std::collections::BTreeMap;

/// Linears that change together, and what may become of them.
#[derive(Debug, Clone)]
pub struct Part {
    /// Its linears.
    pub linears: Vec<LinearId>,
    /// In any order; leaving all of them dense is one.
    pub options: Vec<FormOption>,
}

/// One form of a part.
#[derive(Debug, Clone)]
pub struct FormOption {
    /// What becomes of each linear, in the order of [`Part::linears`].
    pub choices: Vec<Choice>,
    /// Predicted loss.
    pub loss: f64,
}

/// The options of least summed loss under the budget.
///
/// Errors: a linear that no part or more than one has; a loss that is negative or not finite; a budget below what the
/// smallest forms take.
pub fn forms(items: &[Item], parts: &[Part], target: Target) -> Result<Plan> {
    budget::check_items(items, 1)?;
    let total = budget::total(items);
    let budget = target.budget(total)?;
    if budget == total {
        return Ok(Plan::dense(items));
    }
    let by_id: BTreeMap<LinearId, &Item> = items.iter().map(|item| (item.id, item)).collect();
    let mut ladders = Vec::with_capacity(parts.len());
    let mut curves = Vec::with_capacity(parts.len());
    for part in parts {
        let (ladder, cost) = ladder(part, &by_id)?;
        curves.push(Curve::new(name(part), cost, ladder.iter().map(|option| option.loss).collect())?);
        ladders.push(ladder);
    }
    budget::check_feasible(target, knapsack::least(&curves), budget, total)?;
    let (levels, _) = knapsack::search(&curves, budget);
    let mut chosen: BTreeMap<LinearId, Choice> = BTreeMap::new();
    for ((part, ladder), level) in parts.iter().zip(&ladders).zip(levels) {
        for (&id, &choice) in part.linears.iter().zip(&ladder[level].choices) {
            ensure!(chosen.insert(id, choice).is_none(), "{id} belongs to more than one part");
        }
    }
    ensure!(chosen.len() == items.len(), "{} of {} linears belong to a part", chosen.len(), items.len());
    let rule = format!(
        "the budget of {} of all parameters goes over the forms of all parts to where they predict the least loss",
        short(target.fraction(total))
    );
    Ok(Plan::new(items, items.iter().map(|item| chosen[&item.id]), budget, rule))
}

/// The options that no cheaper one beats, by rising cost, and what they cost.
fn ladder<'a>(part: &'a Part, items: &BTreeMap<LinearId, &Item>) -> Result<(Vec<&'a FormOption>, Vec<usize>)> {
    let cost = |option: &FormOption| -> Result<usize> {
        ensure!(option.choices.len() == part.linears.len(), "{}: an option for other linears", name(part));
        let costs = part.linears.iter().zip(&option.choices);
        Ok(costs.map(|(id, &choice)| items.get(id).map_or(0, |item| item.cost(choice))).sum())
    };
    let mut options: Vec<(usize, &FormOption)> =
        part.options.iter().map(|option| Ok((cost(option)?, option))).collect::<Result<_>>()?;
    options.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.loss.total_cmp(&b.1.loss)));
    let mut ladder: Vec<&FormOption> = Vec::new();
    let mut costs: Vec<usize> = Vec::new();
    for (cost, option) in options {
        let dearer = costs.last().is_none_or(|&last| cost > last);
        if dearer && ladder.last().is_none_or(|last| option.loss < last.loss || option.loss.is_nan()) {
            ladder.push(option);
            costs.push(cost);
        }
    }
    ensure!(!ladder.is_empty(), "{}: a part without options", name(part));
    Ok((ladder, costs))
}

fn name(part: &Part) -> String {
    let ids: Vec<String> = part.linears.iter().map(LinearId::to_string).collect();
    ids.join(", ")
}

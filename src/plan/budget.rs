//! Budgets, break-even ranks and the ladder of ranks a linear may stand on.

use super::{Choice, Item};
use crate::user_bail;
use anyhow::Result;

/// How much is to be left of the given linears.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// Fraction of their weights, in (0, 1].
    Keep(f64),
    /// Number of weights. At or above what the linears have, everything stays dense.
    Params(usize),
}

impl Target {
    /// Number of weights that may be left of `total`.
    pub fn budget(self, total: usize) -> Result<usize> {
        match self {
            Target::Keep(keep) => {
                check_fraction("keep", keep)?;
                Ok(floor(keep * total as f64).min(total))
            }
            Target::Params(params) => Ok(params.min(total)),
        }
    }

    /// The same as a fraction of `total`.
    pub(super) fn fraction(self, total: usize) -> f64 {
        match self {
            Target::Keep(keep) => keep,
            Target::Params(params) => (params as f64 / total as f64).min(1.0),
        }
    }

    pub(super) fn describe(self) -> String {
        match self {
            Target::Keep(keep) => format!("keep {keep}"),
            Target::Params(params) => format!("a budget of {params} parameters in the linears"),
        }
    }
}

/// r* = m n / (m + n): at this rank two factors hold as many numbers as the dense matrix.
pub fn break_even(out: usize, input: usize) -> f64 {
    out as f64 * input as f64 / (out + input) as f64
}

/// The largest rank whose factors hold fewer numbers than the dense matrix; 0 when there is none.
pub fn largest_saving_rank(out: usize, input: usize) -> usize {
    (out * input).saturating_sub(1) / (out + input).max(1)
}

/// The papers' rank for a kept fraction: floor(keep · m n / (m + n)). Can be 0.
pub fn paper_rank(keep: f64, out: usize, input: usize) -> usize {
    floor(keep * out as f64 * input as f64 / (out + input) as f64)
}

/// Floor that forgives the last digits of a fraction such as 0.1 + 0.2 or 1 - 0.9.
pub(super) fn floor(x: f64) -> usize {
    (x + 1e-9).floor() as usize
}

pub(super) fn total(items: &[Item]) -> usize {
    items.iter().map(Item::params).sum()
}

/// Refuses anything outside (0, 1], NaN included.
pub(super) fn check_fraction(name: &str, value: f64) -> Result<()> {
    if !(value > 0.0 && value <= 1.0) {
        user_bail!(
            "{name} {value} is not a fraction between 0 and 1";
            "0.8 keeps 80 % of the linears' parameters, 1 keeps everything"
        );
    }
    Ok(())
}

pub(super) fn check_items(items: &[Item], multiple_of: usize) -> Result<()> {
    if items.is_empty() {
        user_bail!("there is no linear to share a budget among");
    }
    if let Some(item) = items.iter().find(|item| item.params() == 0) {
        let (id, m, n) = (item.id, item.out, item.input);
        user_bail!("{id} is empty: its shape is {m} x {n}");
    }
    if multiple_of == 0 {
        user_bail!("ranks cannot be a multiple of 0"; "1 allows every rank");
    }
    Ok(())
}

/// Fails unless `least` weights fit into `budget`.
pub(super) fn check_feasible(target: Target, least: usize, budget: usize, total: usize) -> Result<()> {
    if least > budget {
        let what = target.describe();
        let smallest = round_up(least as f64 / total as f64);
        user_bail!(
            "{what} is too small: the smallest forms of all linears need {least} of {total} parameters";
            "the smallest possible keep is {smallest}"
        );
    }
    Ok(())
}

/// A keep that is printed with four decimals and still suffices.
pub(super) fn round_up(keep: f64) -> f64 {
    ((keep * 1e4 - 1e-6).ceil() / 1e4).min(1.0)
}

/// The forms a linear may take, by ascending cost: ranks `first`, `first + step`, … below break-even are the levels
/// 0, 1, …; dense is the last level. Where no rank is allowed, dense is the only level.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ladder {
    first: usize,
    step: usize,
    /// Number of ranks, and the level of dense.
    pub top: usize,
    /// Cost of one rank, m + n.
    unit: usize,
    dense: usize,
    break_even: f64,
}

impl Ladder {
    /// All multiples of `step` from `least` (at least 1) to the largest rank that saves.
    pub fn new(item: &Item, step: usize, least: usize) -> Self {
        let last = largest_saving_rank(item.out, item.input) / step * step;
        let first = least.max(1).div_ceil(step) * step;
        let top = if first <= last { (last - first) / step + 1 } else { 0 };
        let break_even = break_even(item.out, item.input);
        Self { first, step, top, unit: item.out + item.input, dense: item.params(), break_even }
    }

    /// Rank at a level below `top`.
    pub fn rank(&self, level: usize) -> usize {
        self.first + level * self.step
    }

    pub fn cost(&self, level: usize) -> usize {
        if level >= self.top { self.dense } else { self.rank(level) * self.unit }
    }

    pub fn choice(&self, level: usize) -> Choice {
        if level >= self.top { Choice::Dense } else { Choice::Rank(self.rank(level)) }
    }

    /// The level of the highest rank ≤ `fraction` · r*, never below the lowest level; dense only for a fraction of 1.
    pub fn at_fraction(&self, fraction: f64) -> usize {
        if fraction >= 1.0 {
            return self.top;
        }
        let rank = floor(fraction * self.break_even);
        if rank < self.first { 0 } else { ((rank - self.first) / self.step).min(self.top.saturating_sub(1)) }
    }

    /// How many steps the level lacks to `fraction` · r*.
    pub fn shortfall(&self, level: usize, fraction: f64) -> f64 {
        if level >= self.top { 0.0 } else { (fraction * self.break_even - self.rank(level) as f64) / self.step as f64 }
    }

    /// Cost of going one level up; `None` at the top.
    pub fn raise(&self, level: usize) -> Option<usize> {
        (level < self.top).then(|| self.cost(level + 1) - self.cost(level))
    }
}

pub(super) fn cost(ladders: &[Ladder], levels: &[usize]) -> usize {
    ladders.iter().zip(levels).map(|(ladder, &level)| ladder.cost(level)).sum()
}

/// Spends `left` parameters on single steps, the linear furthest below its wish (`fractions[i]` · r*) first, then round
/// robin, until no step fits. Returns what is left over.
pub(super) fn hand_out(ladders: &[Ladder], levels: &mut [usize], fractions: &[f64], mut left: usize) -> usize {
    let mut order: Vec<usize> = (0..ladders.len()).collect();
    let wish = |i: usize| ladders[i].shortfall(levels[i], fractions[i]);
    order.sort_by(|&a, &b| wish(b).total_cmp(&wish(a)));
    loop {
        let mut stuck = true;
        for &i in &order {
            if let Some(extra) = ladders[i].raise(levels[i]).filter(|&extra| extra <= left) {
                levels[i] += 1;
                left -= extra;
                stuck = false;
            }
        }
        if stuck {
            return left;
        }
    }
}

/// The largest scale ≤ `most` at which the ranks scale · `fractions[i]` · r*, rounded down, fit into `budget` together.
/// Below `most` only where linears that cannot go low enough use up the others' share.
pub(super) fn common_scale(ladders: &[Ladder], fractions: &[f64], most: f64, budget: usize) -> f64 {
    let fits = |scale: f64| cost(ladders, &levels_at(ladders, fractions, scale)) <= budget;
    if fits(most) {
        return most;
    }
    let (mut low, mut high) = (0.0, most);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if fits(middle) { low = middle } else { high = middle }
    }
    low
}

pub(super) fn levels_at(ladders: &[Ladder], fractions: &[f64], scale: f64) -> Vec<usize> {
    ladders.iter().zip(fractions).map(|(ladder, fraction)| ladder.at_fraction(scale * fraction)).collect()
}

//! One budget for the whole model, spent where it buys most.
//!
//! Each linear l takes one of the options {rank r: cost r (m + n), error w_l Σ_{i>r} σ²_{l,i}} ∪ {dense: cost m n,
//! error 0}; the sum of the errors is to be least under the budget (a multiple-choice knapsack).
//!
//! The options that can be optimal at some exchange rate λ (error + λ · cost least) are the vertices of each linear's
//! lower convex hull. Walking all hull segments by falling error drop per parameter is the Lagrangian path for every λ
//! at once; where the next segment no longer fits, at most one linear stands between two options. Both ways out of that
//! are tried: keep the lower option and spend the rest elsewhere, or take the higher one and save elsewhere. Single
//! swaps between two linears then improve the better of the two.

use super::budget::{self, Ladder, Target};
use super::curve::{Curve, Merit};
use super::uniform::{ranks, short};
use super::{Item, Plan};
use crate::user_bail;
use anyhow::Result;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

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

/// Pair swaps considered at the end: each one is checked over all pairs of linears.
const MAX_SWAPS: usize = 64;

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
    let curves = items
        .iter()
        .map(|item| Curve::new(item, options.min_fraction, options.multiple_of))
        .collect::<Result<Vec<_>>>()?;
    let start = State::new(&curves, budget);
    budget::check_feasible(target, start.spent(), budget, total)?;
    let state = search(start);

    let ladders: Vec<Ladder> = curves.iter().map(|curve| curve.ladder).collect();
    let mut levels = state.levels;
    let fraction = target.fraction(total);
    budget::hand_out(&ladders, &mut levels, &vec![fraction; items.len()], state.left);
    let choices = ladders.iter().zip(levels).map(|(ladder, level)| ladder.choice(level));
    let rule = format!(
        "the budget of {} of all parameters goes where dropping components costs most ({}, dense where that is best)",
        short(fraction),
        ranks(options.multiple_of)
    );
    Ok(Plan::new(items, choices, budget, rule))
}

/// One level per linear, and the parameters that are not spent yet.
#[derive(Clone)]
struct State<'a> {
    curves: &'a [Curve],
    levels: Vec<usize>,
    left: usize,
}

/// A way up: its merit, the linear (the first one wins ties), the level it leads to.
type Move = (Merit, Reverse<usize>, usize);

impl<'a> State<'a> {
    /// Every linear in its smallest form. `left` is meaningless when these do not fit.
    fn new(curves: &'a [Curve], budget: usize) -> Self {
        let mut state = Self { curves, levels: vec![0; curves.len()], left: 0 };
        state.left = budget.saturating_sub(state.spent());
        state
    }

    fn spent(&self) -> usize {
        self.curves.iter().zip(&self.levels).map(|(curve, &level)| curve.ladder.cost(level)).sum()
    }

    fn error(&self) -> f64 {
        self.curves.iter().zip(&self.levels).map(|(curve, &level)| curve.error[level]).sum()
    }

    fn raise(&mut self, i: usize, to: usize) {
        self.left -= self.curves[i].extra(self.levels[i], to);
        self.levels[i] = to;
    }

    fn lower(&mut self, i: usize, to: usize) {
        self.left += self.curves[i].extra(to, self.levels[i]);
        self.levels[i] = to;
    }

    /// The best way up for linear `i` that fits: the next rank, or dense.
    fn way_up(&self, i: usize) -> Option<Move> {
        let (curve, level) = (&self.curves[i], self.levels[i]);
        let up = [level + 1, curve.ladder.top].into_iter().filter(|&to| {
            to > level && to <= curve.ladder.top && curve.extra(level, to) <= self.left && curve.gain(level, to) > 0.0
        });
        up.map(|to| (Merit(curve.gain(level, to)), Reverse(i), to)).max()
    }

    /// Spends what is left on the best error drop per parameter that still fits.
    fn fill(&mut self) {
        let mut heap: BinaryHeap<Move> = (0..self.levels.len()).filter_map(|i| self.way_up(i)).collect();
        while let Some((_, Reverse(i), to)) = heap.pop() {
            // `left` only falls: what does not fit now never will, but the linear's other way up may.
            if self.curves[i].extra(self.levels[i], to) <= self.left {
                self.raise(i, to);
            }
            heap.extend(self.way_up(i));
        }
    }

    /// The cheapest way down for linear `i` per parameter saved: one rank less, or from dense to the hull's next vertex.
    fn way_down(&self, i: usize) -> Option<Reverse<(Merit, usize, usize)>> {
        let (curve, level) = (&self.curves[i], self.levels[i]);
        let down = [level.checked_sub(1), curve.vertex_below(level)].into_iter().flatten();
        down.map(|to| Reverse((Merit(curve.gain(to, level)), i, to))).max()
    }

    /// Takes linear `raised` up to `to`, which does not fit, and saves the difference on the others. False when they
    /// cannot.
    fn afford(&mut self, raised: usize, to: usize) -> bool {
        let mut missing = self.curves[raised].extra(self.levels[raised], to) - self.left;
        let others = (0..self.levels.len()).filter(|&i| i != raised);
        let mut heap: BinaryHeap<_> = others.filter_map(|i| self.way_down(i)).collect();
        while let Some(Reverse((_, i, down))) = heap.pop() {
            let before = self.left;
            self.lower(i, down);
            missing = missing.saturating_sub(self.left - before);
            if missing == 0 {
                self.raise(raised, to);
                return true;
            }
            heap.extend(self.way_down(i));
        }
        false
    }

    /// The best pair of one linear going up and another going down that fits and lowers the error.
    fn best_swap(&self) -> Option<Swap> {
        let mut best: Option<Swap> = None;
        let mut offer = |swap: Swap| {
            if swap.drop > 0.0 && best.as_ref().is_none_or(|best| swap.drop > best.drop) {
                best = Some(swap);
            }
        };
        for (i, (up, &from)) in self.curves.iter().zip(&self.levels).enumerate() {
            for (j, (down, &high)) in self.curves.iter().zip(&self.levels).enumerate() {
                if i == j {
                    continue;
                }
                let drop = |to, low| up.error[from] - up.error[to] - (down.error[low] - down.error[high]);
                // As little as possible down for a given way up …
                for to in [from + 1, up.ladder.top] {
                    if to <= from || to > up.ladder.top {
                        continue;
                    }
                    let need = up.extra(from, to).saturating_sub(self.left);
                    let rest = down.ladder.cost(high).checked_sub(need);
                    if let Some(low) = rest.and_then(|rest| down.ladder.within(rest)).filter(|&low| low < high) {
                        offer(Swap { i, to, j, low, drop: drop(to, low) });
                    }
                }
                // … and as much as possible up for a given way down.
                for low in [high.checked_sub(1), down.vertex_below(high)].into_iter().flatten() {
                    let purse = up.ladder.cost(from) + self.left + down.extra(low, high);
                    if let Some(to) = up.ladder.within(purse).filter(|&to| to > from) {
                        offer(Swap { i, to, j, low, drop: drop(to, low) });
                    }
                }
            }
        }
        best
    }

    fn improve(&mut self) {
        for _ in 0..MAX_SWAPS {
            // Gains in the last digits are rounding, not progress.
            let enough = 1e-12 * self.error();
            let Some(swap) = self.best_swap().filter(|swap| swap.drop > enough) else { return };
            self.lower(swap.j, swap.low);
            self.raise(swap.i, swap.to);
            self.fill();
        }
    }
}

struct Swap {
    i: usize,
    to: usize,
    j: usize,
    low: usize,
    drop: f64,
}

fn search(mut state: State) -> State {
    let mut segments: Vec<(f64, usize, usize)> = Vec::new();
    for (i, curve) in state.curves.iter().enumerate() {
        segments.extend(curve.hull.windows(2).map(|pair| (curve.gain(pair[0], pair[1]), i, pair[1])));
    }
    segments.retain(|segment| segment.0 > 0.0);
    // Stable: the segments of one linear, strictly falling by themselves, keep their order.
    segments.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut dearer = None;
    for (_, i, to) in segments {
        if state.curves[i].extra(state.levels[i], to) > state.left {
            let mut other = state.clone();
            dearer = other.afford(i, to).then_some(other);
            break;
        }
        state.raise(i, to);
    }
    state.fill();
    if let Some(mut other) = dearer {
        other.fill();
        if other.error() < state.error() {
            state = other;
        }
    }
    state.improve();
    state
}

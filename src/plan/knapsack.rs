//! The multiple-choice knapsack: one option of each item, the sum of the errors least under a budget.
//!
//! The options that can be optimal at some exchange rate λ (error + λ · cost least) are the vertices of each item's
//! lower convex hull. Walking all hull segments by falling error drop per parameter is the Lagrangian path for every λ
//! at once; where the next segment no longer fits, at most one item stands between two options. Both ways out of that
//! are tried: keep the lower option and spend the rest elsewhere, or take the higher one and save elsewhere. Single
//! swaps between two items then improve the better of the two.

use super::curve::{Curve, Merit};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Pair swaps considered at the end: each one is checked over all pairs of items.
const MAX_SWAPS: usize = 64;

/// Parameters of all items in their cheapest form.
pub(super) fn least(curves: &[Curve]) -> usize {
    curves.iter().map(|curve| curve.cost[0]).sum()
}

/// One level per item, and the parameters that are not spent yet.
#[derive(Clone)]
struct State<'a> {
    curves: &'a [Curve],
    levels: Vec<usize>,
    left: usize,
}

/// A way up: its merit, the item (the first one wins ties), the level it leads to.
type Move = (Merit, Reverse<usize>, usize);

impl<'a> State<'a> {
    /// Every item in its smallest form. `left` is meaningless when these do not fit.
    fn new(curves: &'a [Curve], budget: usize) -> Self {
        let mut state = Self { curves, levels: vec![0; curves.len()], left: 0 };
        state.left = budget.saturating_sub(state.spent());
        state
    }

    fn spent(&self) -> usize {
        self.curves.iter().zip(&self.levels).map(|(curve, &level)| curve.cost[level]).sum()
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

    /// The best way up for item `i` that fits: the next rank, or dense.
    fn way_up(&self, i: usize) -> Option<Move> {
        let (curve, level) = (&self.curves[i], self.levels[i]);
        let up = [level + 1, curve.top()].into_iter().filter(|&to| {
            to > level && to <= curve.top() && curve.extra(level, to) <= self.left && curve.gain(level, to) > 0.0
        });
        up.map(|to| (Merit(curve.gain(level, to)), Reverse(i), to)).max()
    }

    /// Spends what is left on the best error drop per parameter that still fits.
    fn fill(&mut self) {
        let mut heap: BinaryHeap<Move> = (0..self.levels.len()).filter_map(|i| self.way_up(i)).collect();
        while let Some((_, Reverse(i), to)) = heap.pop() {
            // `left` only falls: what does not fit now never will, but the item's other way up may.
            if self.curves[i].extra(self.levels[i], to) <= self.left {
                self.raise(i, to);
            }
            heap.extend(self.way_up(i));
        }
    }

    /// The cheapest way down for item `i` per parameter saved: one rank less, or from dense to the hull's next vertex.
    fn way_down(&self, i: usize) -> Option<Reverse<(Merit, usize, usize)>> {
        let (curve, level) = (&self.curves[i], self.levels[i]);
        let down = [level.checked_sub(1), curve.vertex_below(level)].into_iter().flatten();
        down.map(|to| Reverse((Merit(curve.gain(to, level)), i, to))).max()
    }

    /// Takes item `raised` up to `to`, which does not fit, and saves the difference on the others. False when they
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

    /// The best pair of one item going up and another going down that fits and lowers the error.
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
                for to in [from + 1, up.top()] {
                    if to <= from || to > up.top() {
                        continue;
                    }
                    let need = up.extra(from, to).saturating_sub(self.left);
                    let rest = down.cost[high].checked_sub(need);
                    if let Some(low) = rest.and_then(|rest| down.within(rest)).filter(|&low| low < high) {
                        offer(Swap { i, to, j, low, drop: drop(to, low) });
                    }
                }
                // … and as much as possible up for a given way down.
                for low in [high.checked_sub(1), down.vertex_below(high)].into_iter().flatten() {
                    let purse = up.cost[from] + self.left + down.extra(low, high);
                    if let Some(to) = up.within(purse).filter(|&to| to > from) {
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

/// The levels of least error that search finds within `budget`, and what of it they leave. The lowest levels have to fit.
pub(super) fn search(curves: &[Curve], budget: usize) -> (Vec<usize>, usize) {
    let mut state = State::new(curves, budget);
    let mut segments: Vec<(f64, usize, usize)> = Vec::new();
    for (i, curve) in state.curves.iter().enumerate() {
        segments.extend(curve.hull.windows(2).map(|pair| (curve.gain(pair[0], pair[1]), i, pair[1])));
    }
    segments.retain(|segment| segment.0 > 0.0);
    // Stable: the segments of one item, strictly falling by themselves, keep their order.
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
    (state.levels, state.left)
}

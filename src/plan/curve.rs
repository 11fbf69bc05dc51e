//! What an item costs and what error it makes, option by option.

use crate::user_bail;
use anyhow::Result;

/// The options of one item with their errors, by rising cost.
#[derive(Debug)]
pub(super) struct Curve {
    /// Parameters per level, strictly rising.
    pub cost: Vec<usize>,
    /// Error per level.
    pub error: Vec<f64>,
    /// The levels on the lower convex hull of (cost, error), first and last level included.
    pub hull: Vec<usize>,
}

impl Curve {
    /// A curve of at least one level. `what` names the item in errors.
    pub fn new(what: impl std::fmt::Display, cost: Vec<usize>, error: Vec<f64>) -> Result<Self> {
        debug_assert!(!cost.is_empty() && cost.len() == error.len() && cost.is_sorted_by(|a, b| a < b));
        if let Some((level, value)) = error.iter().enumerate().find(|(_, value)| !(value.is_finite() && **value >= 0.0))
        {
            user_bail!(
                "{what}: the loss {value} of an option with {} parameters is not a non-negative number", cost[level];
                "check the weights and the calibration activations of this layer for overflow"
            );
        }
        let mut curve = Self { cost, error, hull: Vec::new() };
        for level in 0..=curve.top() {
            while let [.., before, last] = curve.hull[..] {
                if curve.gain(before, last) > curve.gain(last, level) {
                    break;
                }
                curve.hull.pop();
            }
            curve.hull.push(level);
        }
        Ok(curve)
    }

    /// The dearest level.
    pub fn top(&self) -> usize {
        self.cost.len() - 1
    }

    /// The highest level that costs at most `cost`.
    pub fn within(&self, cost: usize) -> Option<usize> {
        self.cost.partition_point(|&level| level <= cost).checked_sub(1)
    }

    /// Parameters between two levels.
    pub fn extra(&self, from: usize, to: usize) -> usize {
        self.cost[to] - self.cost[from]
    }

    /// Error drop per parameter of going up from one level to another.
    pub fn gain(&self, from: usize, to: usize) -> f64 {
        (self.error[from] - self.error[to]) / self.extra(from, to) as f64
    }

    /// The hull vertex below `level`.
    pub fn vertex_below(&self, level: usize) -> Option<usize> {
        self.hull[..self.hull.partition_point(|&vertex| vertex < level)].last().copied()
    }
}

/// A number that is never NaN, ordered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Merit(pub f64);

impl Eq for Merit {}

impl PartialOrd for Merit {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Merit {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

//! What a linear costs and what error it makes, option by option.

use super::budget::Ladder;
use super::{Item, break_even};
use crate::user_bail;
use anyhow::{Context, Result};

/// The options of one linear with their errors.
#[derive(Debug)]
pub(super) struct Curve {
    pub ladder: Ladder,
    /// Error per level of the ladder; 0 at the top.
    pub error: Vec<f64>,
    /// The levels on the lower convex hull of (cost, error), first and last level included.
    pub hull: Vec<usize>,
}

impl Curve {
    /// Reads the spectrum of `item`; ranks are multiples of `multiple_of` from `min_fraction` of break-even upwards.
    pub fn new(item: &Item, min_fraction: f64, multiple_of: usize) -> Result<Self> {
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
        let least = (min_fraction * break_even(item.out, item.input) - 1e-9).ceil() as usize;
        let ladder = Ladder::new(item, multiple_of, least);

        // Summed from the small end, so that small tails keep their digits.
        let mut tail = vec![0.0; energy.len() + 1];
        for i in (0..energy.len()).rev() {
            tail[i] = tail[i + 1] + energy[i];
        }
        let dropped = |level| tail.get(ladder.rank(level)).copied().unwrap_or(0.0);
        let error: Vec<f64> = (0..ladder.top).map(|level| weight * dropped(level)).chain([0.0]).collect();
        if !error[0].is_finite() {
            user_bail!("{id}: the energies times the loss weight {weight} are beyond the range of numbers");
        }
        let mut curve = Self { ladder, error, hull: Vec::new() };
        for level in 0..=ladder.top {
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

    /// Parameters between two levels.
    pub fn extra(&self, from: usize, to: usize) -> usize {
        self.ladder.cost(to) - self.ladder.cost(from)
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

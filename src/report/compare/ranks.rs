//! What became of the linears side by side.

use super::{Entry, letter};
use crate::report::LinearReport;
use crate::report::grid::{cell, roles, short_role};
use serde::Serialize;

/// Linears that are named.
const MOST: usize = 8;

/// Shares kept by role, and the linears that differ most.
#[derive(Debug, Clone, Serialize)]
pub struct RankComparison {
    /// Roles in their order.
    pub roles: Vec<String>,
    /// Share of the parameters kept, for each report one per role; null where it has no such linear.
    pub kept: Vec<Vec<Option<f64>>>,
    /// The linears whose shares differ most, largest difference first. Empty if all are alike, or not of the same shapes.
    pub most: Vec<Difference>,
    /// Why linears are not compared one by one, if they are not.
    pub not_compared: Option<String>,
}

/// A linear that was not treated alike.
#[derive(Debug, Clone, Serialize)]
pub struct Difference {
    /// `3.mlp.down`.
    pub linear: String,
    /// How it is stored, one per report: a rank, `dense`, or `w` and the channels that are left.
    pub stored: Vec<String>,
    /// Share of its parameters kept, one per report.
    pub kept: Vec<f64>,
}

impl Difference {
    /// Largest share less the smallest.
    pub fn spread(&self) -> f64 {
        let (least, most) = self.kept.iter().fold((f64::MAX, f64::MIN), |(a, b), &x| (a.min(x), b.max(x)));
        most - least
    }
}

impl RankComparison {
    pub(super) fn of(entries: &[Entry]) -> Self {
        let all: Vec<&[LinearReport]> = entries.iter().map(|entry| entry.report.linears.as_slice()).collect();
        let roles = roles(all.iter().copied().flatten());
        let kept = all.iter().map(|linears| roles.iter().map(|role| kept_of_role(linears, role)).collect()).collect();
        let key = |linear: &LinearReport| (linear.id, linear.shape);
        let unlike = all.iter().position(|linears| !linears.iter().map(key).eq(all[0].iter().map(key)));
        let mut most: Vec<Difference> = Vec::new();
        if unlike.is_none() {
            for i in 0..all.first().map_or(0, |linears| linears.len()) {
                let of: Vec<&LinearReport> = all.iter().map(|linears| &linears[i]).collect();
                let difference = Difference {
                    linear: of[0].id.to_string(),
                    stored: of.iter().map(|linear| cell(linear)).collect(),
                    kept: of.iter().map(|linear| share(linear.params_before, linear.params_after)).collect(),
                };
                if difference.spread() > 0.0 {
                    most.push(difference);
                }
            }
            most.sort_by(|a, b| b.spread().total_cmp(&a.spread()));
            most.truncate(MOST);
        }
        let not_compared =
            unlike.map(|i| format!("the linears of {} are not those of A: other blocks, roles or shapes", letter(i)));
        Self { roles, kept, most, not_compared }
    }
}

fn kept_of_role(linears: &[LinearReport], role: &str) -> Option<f64> {
    let mut of_role = linears.iter().filter(|linear| short_role(linear) == role).peekable();
    of_role.peek()?;
    let sum = |(before, after): (u64, u64), linear: &LinearReport| {
        (before.saturating_add(linear.params_before), after.saturating_add(linear.params_after))
    };
    let (before, after) = of_role.fold((0, 0), sum);
    Some(share(before, after))
}

/// Share of the parameters that is kept.
pub(in crate::report) fn share(before: u64, after: u64) -> f64 {
    after as f64 / before.max(1) as f64
}

//! Zero-shot tasks side by side, as far as they may be.

use super::{Comparable, Entry, other_original};
use crate::eval::TaskResult;
use serde::Serialize;

/// One task.
#[derive(Debug, Clone, Serialize)]
pub struct TaskQuality<'a> {
    /// Its name in the harness.
    pub task: &'a str,
    /// The reports that measured it.
    pub measured: Vec<TaskMeasured<'a>>,
}

/// What one report says of it.
#[derive(Debug, Clone, Serialize)]
pub struct TaskMeasured<'a> {
    /// Place of the report.
    pub report: usize,
    /// The compressed model and its original.
    pub result: &'a TaskResult,
    /// Whether its numbers go with those of the first.
    #[serde(flatten)]
    pub comparable: Comparable,
}

/// Every task that a report measured, in the order in which they occur.
pub(super) fn of(entries: &[Entry]) -> Vec<TaskQuality<'_>> {
    let mut all: Vec<TaskQuality> = Vec::new();
    for (report, entry) in entries.iter().enumerate() {
        for result in &entry.report.tasks {
            let at = all.iter().position(|known| known.task == result.task).unwrap_or_else(|| {
                all.push(TaskQuality { task: &result.task, measured: Vec::new() });
                all.len() - 1
            });
            let first = all[at].measured.first().map_or((report, result), |first| (first.report, first.result));
            let comparable = judge(entries, first, (report, result));
            all[at].measured.push(TaskMeasured { report, result, comparable });
        }
    }
    all
}

fn judge(entries: &[Entry], first: (usize, &TaskResult), other: (usize, &TaskResult)) -> Comparable {
    let (a, b) = (first.1, other.1);
    let mut why: Vec<String> = Vec::new();
    if a.sha256 != b.sha256 || a.n != b.n {
        why.push(format!("other items ({} of {})", b.n, b.data));
    }
    if (&a.prompts, a.shots) != (&b.prompts, b.shots) {
        why.push("other prompts".into());
    }
    if a.bos != b.bos {
        why.push(format!("{} BOS", if b.bos { "with" } else { "without" }));
    }
    if !other_original(&entries[first.0].report, &entries[other.0].report).is_empty() {
        why.push("another original".into());
    }
    let comparable = why.is_empty();
    // Of no account but worth knowing.
    if a.dtype != b.dtype {
        why.push(format!("{} instead of {}", b.dtype, a.dtype));
    }
    Comparable { comparable, why }
}

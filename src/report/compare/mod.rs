//! Several reports side by side: what was done differently, and what came of it.

mod quality;
mod ranks;
mod settings;
mod tasks;
mod text;

pub use quality::{Comparable, CorpusQuality, Measured};
pub(in crate::report) use ranks::share;
pub use ranks::{Difference, RankComparison};
pub use settings::{Setting, Settings};
pub use tasks::{TaskMeasured, TaskQuality};
pub use text::compare_table;
pub(in crate::report) use text::value;

use super::{Cost, Machine, Report, SCHEMA, Sizes};
use crate::checkpoint::differences;
use serde::Serialize;

/// A report and what its output is called.
#[derive(Debug, Clone)]
pub struct Entry {
    /// As the user named it: a folder or a file.
    pub name: String,
    /// What it says.
    pub report: Report,
}

/// Several reports side by side; as JSON what `softlm compare --json` prints. Lists with one value per report are in
/// the order of `reports`.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison<'a> {
    /// Version of this format.
    pub schema: u32,
    /// What is compared.
    pub reports: Vec<Summary<'a>>,
    /// In what the originals differ, a sentence each; empty when all outputs were made from the same files.
    pub originals: Vec<String>,
    /// What was asked for and what it was made of.
    pub settings: Settings,
    /// One per corpus and report that measured it.
    pub perplexity: Vec<CorpusQuality<'a>>,
    /// One per zero-shot task that a report measured.
    pub tasks: Vec<TaskQuality<'a>>,
    /// Shares kept by role, and the linears that differ most.
    pub ranks: RankComparison,
}

/// One of the reports.
#[derive(Debug, Clone, Serialize)]
pub struct Summary<'a> {
    /// What it is called here: `A`.
    pub letter: String,
    /// As the user named it.
    pub name: &'a str,
    /// Name of the method.
    pub method: &'a str,
    /// Name of the original.
    pub model: &'a str,
    /// Fraction of the linears' parameters that is kept.
    pub keep_reached: f64,
    /// Parameters and bytes before and after.
    pub sizes: Sizes,
    /// Time and memory.
    pub cost: &'a Cost,
    /// What ran it.
    pub machine: &'a Machine,
    /// Encoders that predict no tokens: how far their embeddings are from the original's.
    pub fidelity: &'a [crate::eval::Fidelity],
}

impl<'a> Comparison<'a> {
    /// Compares reports in this order; others are measured by the first.
    pub fn new(entries: &'a [Entry]) -> Self {
        let reports = entries.iter().enumerate().map(|(i, entry)| Summary {
            letter: letter(i),
            name: &entry.name,
            method: &entry.report.method,
            model: &entry.report.model.name,
            keep_reached: entry.report.allocation.keep_reached,
            sizes: entry.report.sizes,
            cost: &entry.report.cost,
            machine: &entry.report.machine,
            fidelity: &entry.report.fidelity,
        });
        Self {
            schema: SCHEMA,
            reports: reports.collect(),
            originals: originals(entries),
            settings: Settings::of(entries),
            perplexity: quality::of(entries),
            tasks: tasks::of(entries),
            ranks: RankComparison::of(entries),
        }
    }
}

/// What the report in that place is called: `A` to `Z`, then `A1`.
pub fn letter(index: usize) -> String {
    let letter = char::from(b'A' + (index % 26) as u8);
    if index < 26 { letter.to_string() } else { format!("{letter}{}", index / 26) }
}

/// In what the original of `b` is not that of `a`, if it is another: files with other hashes, or files that are missing.
fn other_original(a: &Report, b: &Report) -> Vec<String> {
    let (a, b) = (&a.model.identity, &b.model.identity);
    let mut found = differences(&a.weights, &b.weights);
    // Version 0.1 recorded no others.
    if !a.files.is_empty() && !b.files.is_empty() {
        found.extend(differences(&a.files, &b.files));
    }
    found
}

/// A sentence for each report whose original is not that of the first.
fn originals(entries: &[Entry]) -> Vec<String> {
    /// Files named of each.
    const NAMED: usize = 3;
    let Some((first, rest)) = entries.split_first() else { return Vec::new() };
    let sentence = |(i, entry): (usize, &Entry)| {
        let found = other_original(&first.report, &entry.report);
        let more = found.len().saturating_sub(NAMED);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        let shown = found.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
        (!found.is_empty()).then(|| {
            format!(
                "{} was made from another original than A ({} and {}): {shown}{more}",
                letter(i + 1),
                entry.report.model.name,
                first.report.model.name
            )
        })
    };
    rest.iter().enumerate().filter_map(sentence).collect()
}

//! Perplexities of one corpus side by side, as far as they may be.

use super::{Entry, letter, other_original};
use crate::eval::{Evaluation, Perplexity};
use crate::report::evaluation::comparable;
use crate::report::format::significant;
use serde::Serialize;

/// By how much of it two perplexities of one model on one text may differ: another processor, or another number type.
const SAME: f64 = 2e-3;
const SAME_BUT_FOR_TYPE: f64 = 2e-2;

/// One corpus.
#[derive(Debug, Clone, Serialize)]
pub struct CorpusQuality<'a> {
    /// Its name.
    pub corpus: &'a str,
    /// The reports that measured it, the first of which the others are compared with.
    pub measured: Vec<Measured<'a>>,
}

/// What one report says of it.
#[derive(Debug, Clone, Serialize)]
pub struct Measured<'a> {
    /// Place of the report.
    pub report: usize,
    /// The original model.
    pub before: &'a Evaluation,
    /// The compressed one.
    pub after: &'a Evaluation,
    /// Whether its numbers go with those of the first.
    #[serde(flatten)]
    pub comparable: Comparable,
}

/// Whether numbers may stand beside each other.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Comparable {
    /// Whether they may.
    pub comparable: bool,
    /// Why not, or what else differs.
    pub why: Vec<String>,
}

/// Every corpus that a report measured, in the order in which they occur.
pub(super) fn of(entries: &[Entry]) -> Vec<CorpusQuality<'_>> {
    let mut all: Vec<CorpusQuality> = Vec::new();
    for (report, entry) in entries.iter().enumerate() {
        for pair in &entry.report.evaluation {
            let corpus = pair.after.perplexity.corpus.as_str();
            let measured =
                Measured { report, before: &pair.before, after: &pair.after, comparable: Comparable::default() };
            match all.iter_mut().find(|known| known.corpus == corpus) {
                Some(known) => known.measured.push(measured),
                None => all.push(CorpusQuality { corpus, measured: vec![measured] }),
            }
        }
    }
    for corpus in &mut all {
        let first = corpus.measured[0].clone();
        for measured in &mut corpus.measured {
            measured.comparable = judge(entries, &first, measured);
        }
    }
    all
}

fn judge(entries: &[Entry], first: &Measured, other: &Measured) -> Comparable {
    let (a, b) = (&first.after.perplexity, &other.after.perplexity);
    let mut why = protocol_differences(a, b);
    let same_protocol = comparable(a, b);
    let same_original = other_original(&entries[first.report].report, &entries[other.report].report).is_empty();
    if !same_original {
        why.push("another original".to_string());
    }
    if !comparable(&other.before.perplexity, b) {
        why.push(format!("its dense model was measured by another protocol than {}", letter(other.report)));
    }
    let dense = (first.before.perplexity.ppl, other.before.perplexity.ppl);
    let limit = if a.dtype == b.dtype { SAME } else { SAME_BUT_FOR_TYPE };
    let same_text = !(same_protocol && same_original) || ((dense.1 / dense.0 - 1.0).abs() <= limit);
    if !same_text {
        why.push(format!(
            "another text under this name: the dense model has {} on it, not {}",
            significant(dense.1, 4),
            significant(dense.0, 4)
        ));
    }
    Comparable { comparable: same_protocol && same_original && same_text, why }
}

/// Each part of the protocol in which `b` is not as `a`.
fn protocol_differences(a: &Perplexity, b: &Perplexity) -> Vec<String> {
    let numbers = [
        ("window", a.window, b.window),
        ("stride", a.stride, b.stride),
        ("windows", a.windows, b.windows),
        ("targets", a.tokens, b.tokens),
    ];
    let mut out: Vec<String> = Vec::new();
    for (name, a, b) in numbers.into_iter().filter(|(_, a, b)| a != b) {
        out.push(format!("{name} {b} instead of {a}"));
    }
    let switches = [("BOS", a.bos, b.bos), ("masked tokens", a.masked, b.masked)];
    for (name, _, b) in switches.into_iter().filter(|(_, a, b)| a != b) {
        out.push(format!("{} {name}", if b { "with" } else { "without" }));
    }
    if a.dtype != b.dtype {
        out.push(format!("{} instead of {}", b.dtype, a.dtype));
    }
    out
}

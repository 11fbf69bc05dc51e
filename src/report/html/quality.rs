//! Quality against size, a plot and a table for every corpus.

use super::escape::{escape, table};
use super::plot::{Plot, Series};
use super::{figure, plots};
use crate::report::compare::{Comparison, CorpusQuality, Entry, letter};
use crate::report::encoders::{cosine, protocol as embedding_protocol};
use crate::report::evaluation::{Pair, comparable, measure, ppl, protocol};
use crate::report::format::{change, fixed, percent, with_error};
use crate::report::table::seen;
use crate::report::tasks::{protocol as task_protocol, task_cells};
use anyhow::Result;

/// Numbers on an axis of parameters.
const MILLION: f64 = 1e6;

pub(super) fn section(entries: &[Entry], comparison: &Comparison) -> Result<String> {
    let (mut figures, mut tables) = (String::new(), String::new());
    for corpus in &comparison.perplexity {
        figures += &plot(entries, corpus)?;
        tables += &numbers(entries, corpus);
    }
    if let [one] = entries {
        figures += &trials(one)?;
    }
    tables += &tasks(comparison);
    tables += &embeddings(entries);
    if tables.is_empty() {
        tables = "<p>Not measured. <code>softlm eval DIR --ppl sample</code> does it.</p>".into();
    }
    Ok(format!("<h2>Quality</h2>\n<div class=\"panel\">{tables}</div>\n{}", plots("Quality against size", &figures)))
}

fn tasks(comparison: &Comparison) -> String {
    let mut out = String::new();
    let single = comparison.reports.len() == 1;
    for task in &comparison.tasks {
        let name = |report| if single { "compressed".to_string() } else { letter(report) };
        let named: Vec<_> = task.measured.iter().map(|measured| (name(measured.report), measured.result)).collect();
        out += &table(&task_cells(task.task, &named), "", "");
        out += &format!("<p class=\"dim\">{}</p>\n", escape(&task_protocol(task.measured[0].result)));
        for measured in task.measured.iter().filter(|measured| !measured.comparable.why.is_empty()) {
            let why = measured.comparable.why.join(", ");
            let verdict = if measured.comparable.comparable { ":" } else { " is not comparable:" };
            out +=
                &format!("<p class=\"dim\">{}</p>\n", escape(&format!("{}{verdict} {why}", letter(measured.report))));
        }
    }
    out
}

fn plot(entries: &[Entry], corpus: &CorpusQuality) -> Result<String> {
    let comparable: Vec<_> = corpus.measured.iter().filter(|measured| measured.comparable.comparable).collect();
    let left_out: Vec<String> =
        corpus.measured.iter().filter(|m| !m.comparable.comparable).map(|m| letter(m.report)).collect();
    let Some(first) = comparable.first() else { return Ok(String::new()) };
    let size = |report: usize| entries[report].report.sizes.model;
    let dense = &first.before.perplexity;
    let original = Series {
        points: vec![(size(first.report).params_before as f64 / MILLION, dense.ppl)],
        labels: vec!["dense".into()],
        errors: vec![dense.stderr],
        markers: true,
        style: 5,
        ..Series::default()
    };
    let after = |m: &&crate::report::Measured| (size(m.report).params_after as f64 / MILLION, m.after.perplexity.ppl);
    let single = entries.len() == 1;
    let compressed = Series {
        points: comparable.iter().map(after).collect(),
        labels: comparable.iter().map(|m| if single { "this".into() } else { letter(m.report) }).collect(),
        errors: comparable.iter().map(|m| m.after.perplexity.stderr).collect(),
        markers: true,
        style: 0,
        ..Series::default()
    };
    let what = measure(&[Pair { model: first.after, base: None, calibrated: false }]);
    let plot = Plot {
        alt: format!(
            "{what} on {} against parameters of the whole model; the numbers are in the table above",
            corpus.corpus
        ),
        x: "parameters of the whole model, millions".into(),
        y: format!("{what} (lower is better)"),
        series: vec![original, compressed],
        log: (false, true),
        levels: vec![dense.ppl],
        ..Plot::default()
    };
    let mut caption = format!(
        "{}: {}. The line across is the dense model. Bars: standard errors.",
        corpus.corpus,
        protocol(&first.after.perplexity)
    );
    if !left_out.is_empty() {
        caption += &format!(" Not comparable and left out: {}.", left_out.join(", "));
    }
    figure(corpus.corpus, &plot, &[], &caption)
}

fn numbers(entries: &[Entry], corpus: &CorpusQuality) -> String {
    let several = entries.len() > 1;
    let first = &corpus.measured[0];
    let what = measure(&[Pair { model: first.after, base: None, calibrated: false }]);
    let title = ["", what, "dense", "to dense", "KL, nats", "same top"];
    let mut rows = vec![title.map(String::from).to_vec()];
    let mut notes = vec![format!("{}: {}.", corpus.corpus, protocol(&first.after.perplexity))];
    let mut saw: Vec<String> = Vec::new();
    for m in &corpus.measured {
        let (before, after) = (&m.before.perplexity, &m.after.perplexity);
        let mark = if m.comparable.comparable { "" } else { " †" };
        let name = if several { letter(m.report) } else { "this model".into() };
        let (kl, top) = match &m.after.divergence {
            Some(d) => (with_error(d.kl, d.kl_stderr, 3), percent(d.top1)),
            None => ("-".into(), "-".into()),
        };
        let sound = comparable(before, after);
        let change = if sound { change(before.ppl, after.ppl) } else { "-".into() };
        rows.push(vec![format!("{name}{mark}"), ppl(after), ppl(before), change, kl, top]);
        if !m.comparable.comparable {
            let (why, how) = (m.comparable.why.join(", "), protocol(after));
            notes.push(format!("† {name} is not comparable with {}: {why} ({how}).", letter(first.report)));
        }
        if !sound {
            notes.push(format!("The dense model was measured by another protocol: {}.", protocol(before)));
        }
        if let Some(why) = &after.ppl_note {
            notes.push(format!("{name}: {why}"));
        }
        if seen(&entries[m.report].report, corpus.corpus) {
            saw.push(name);
        }
    }
    if !saw.is_empty() {
        let saw = saw.join(", ");
        notes.push(format!("The calibration of {saw} saw this corpus (its training part, if it has one)."));
    }
    let notes: String = notes.iter().map(|note| format!("<p class=\"dim\">{}</p>\n", escape(note))).collect();
    format!("<h3>{}</h3>\n{}{notes}", escape(corpus.corpus), table(&rows, "", ""))
}

/// Of encoders that predict no tokens.
fn embeddings(entries: &[Entry]) -> String {
    let mut rows = vec![["", "corpus", "cosine to dense", "least", "protocol"].map(String::from).to_vec()];
    for (i, entry) in entries.iter().enumerate() {
        let name = if entries.len() > 1 { letter(i) } else { "this model".into() };
        for f in &entry.report.fidelity {
            rows.push(vec![name.clone(), f.corpus.clone(), cosine(f), fixed(f.least, 4), embedding_protocol(f)]);
        }
    }
    if rows.len() > 1 { table(&rows, "", "Embeddings beside the dense model's") } else { String::new() }
}

/// Sizes that were tried by a search, or for `--elastic`.
fn trials(entry: &Entry) -> Result<String> {
    let trials = &entry.report.allocation.trials;
    let mut points: Vec<(f64, f64)> = trials.iter().map(|t| (t.keep, 100.0 * t.increase)).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let tried = Series { points, line: true, markers: true, ..Series::default() };
    let plot = Plot {
        alt: "rise of the perplexity on the worst corpus against the share of the linears' parameters kept".into(),
        x: "share of the linears' parameters".into(),
        y: "rise of the perplexity, %".into(),
        series: vec![tried],
        levels: vec![0.0],
        ..Plot::default()
    };
    let protocols: Vec<String> = entry
        .report
        .evaluation
        .iter()
        .map(|e| format!("{}: {}", e.after.perplexity.corpus, protocol(&e.after.perplexity)))
        .collect();
    let caption = format!("On the worst corpus, before healing, against the dense model. {}.", protocols.join("; "));
    figure("Sizes that were tried", &plot, &[], &caption)
}

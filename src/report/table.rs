//! The report on a terminal.

use super::encoders::fidelity_lines;
use super::evaluation::{Pair, Sides, lines as evaluation_lines};
use super::format::{bytes, count, fraction, grouped, percent, seconds, significant};
use super::grid::{Grid, shapes};
use super::layout::{Style, columns, width, wrap};
use super::tasks::task_lines;
use super::{AllocationInfo, CalibrationInfo, CorpusInfo, LabelsInfo, Report, Size, TrainingTextInfo};
use crate::learn::{HealReport, SpectralReport};
use crate::number::in_words;
use crate::visible::visible;
use serde_json::Value;

/// The narrowest page that is laid out for.
const NARROWEST: usize = 40;

/// The report as a page of `limit` columns (80 fits everything), with ANSI emphasis if `color`.
pub fn table(report: &Report, limit: usize, color: bool) -> String {
    let limit = limit.max(NARROWEST);
    let style = Style { color };
    let sections = [
        head(report, limit, style),
        sizes(report, style),
        quality(report, limit, style),
        tasks(report, limit, style),
        ranks(report, limit, style),
        cost(report, limit, style),
        notes(report, limit, style),
    ];
    let shown: Vec<String> =
        sections.iter().filter(|lines| !lines.is_empty()).map(|lines| lines.join("\n") + "\n").collect();
    shown.join("\n")
}

fn head(report: &Report, limit: usize, style: Style) -> Vec<String> {
    let model = &report.model;
    let revision = model.revision.as_ref().map(|r| format!(", revision {}", visible(r))).unwrap_or_default();
    let allocation = &report.allocation;
    let mut entries = vec![
        ("model", format!("{} ({}{revision})", visible(&model.name), visible(&model.family))),
        ("method", format!("{}: {}", visible(&report.method), visible(&report.paper))),
        ("keep", keep(allocation, &report.recipe)),
        ("allocation", visible(&allocation.rule)),
        ("calibration", report.calibration.as_ref().map_or("none: the method needs no text".into(), calibration)),
    ];
    entries.extend(report.labels.as_ref().map(|info| ("task", labels(info))));
    entries.extend(report.training_text.as_ref().map(|info| ("trained on", training_text(info))));
    entries.extend(
        report.learning.as_ref().map(|learning| ("learning", self::learning(learning, report.labels.as_ref()))),
    );
    entries.extend(report.healing.as_ref().map(|healing| ("healing", self::healing(healing, report.labels.as_ref()))));
    let mut out = Vec::new();
    for (name, text) in entries {
        let mut lines = wrap(&format!("{name:<13}"), &text, limit).into_iter();
        out.extend(lines.next().map(|line| style.bold(&line[..13]) + &line[13..]));
        out.extend(lines);
    }
    out
}

/// `0.8 asked, 0.7998 reached`, or what was found, and of what else was measured by how much the perplexity rose.
pub(super) fn keep(allocation: &AllocationInfo, recipe: &Value) -> String {
    let (asked, reached) = (fraction(allocation.keep_asked), fraction(allocation.keep_reached));
    let rise = |increase: f64| in_words(increase).map_or_else(|| format!("{:+.1} %", 100.0 * increase), String::from);
    let tried = allocation.trials.iter().map(|trial| format!("{} {}", fraction(trial.keep), rise(trial.increase)));
    let tried = tried.collect::<Vec<_>>().join(", ");
    match recipe["max_ppl_increase"].as_str() {
        Some(limit) => {
            format!(
                "{reached} reached, the smallest found whose perplexity rises by at most {} ({tried})",
                visible(limit)
            )
        }
        None if !tried.is_empty() => format!("{asked} asked, {reached} reached; perplexity at keep {tried}"),
        None => format!("{asked} asked, {reached} reached"),
    }
}

/// `sample, wiki`
pub(super) fn names(corpora: &[CorpusInfo]) -> String {
    corpora.iter().map(|corpus| visible(&corpus.name)).collect::<Vec<_>>().join(", ")
}

/// `sample; 64 windows of 256 tokens (16,384), each begun by BOS, random, seed 0; …`
pub(super) fn calibration(info: &CalibrationInfo) -> String {
    let seed = if info.sampling == "random" { format!(", seed {}", info.seed) } else { String::new() };
    format!(
        "{}; {} windows of {} tokens ({}), {}{}{seed}; {} more held out; inputs: {}",
        names(&info.corpora),
        grouped(info.windows as u64),
        info.window,
        grouped(info.tokens as u64),
        if info.bos { "each begun by BOS, " } else { "" },
        visible(&info.sampling),
        info.heldout_windows,
        visible(&info.inputs)
    )
}

/// `mix, wiki; 2,000 windows of 512 tokens (1,024,000); 8 more to judge by`
pub(super) fn training_text(info: &TrainingTextInfo) -> String {
    format!(
        "{}; {} windows of {} tokens ({}); {} more to judge by",
        names(&info.corpora),
        grouped(info.windows as u64),
        info.window,
        grouped(info.tokens as u64),
        grouped(info.heldout_windows as u64)
    )
}

/// `300 of 300 steps of 8 windows (614,400 tokens), 3,612 trained numbers; held-out KL when cut 0.47, best after step 240`
pub(super) fn learning(report: &SpectralReport, labels: Option<&LabelsInfo>) -> String {
    let stopped = report.stopped.as_ref().map(|why| format!("; {}", visible(why))).unwrap_or_default();
    format!(
        "{} of {} steps of {} {} ({} tokens), {} trained numbers; held-out {} when cut {}, best after step {}{stopped}",
        grouped(report.done as u64),
        grouped(report.steps as u64),
        report.batch,
        shown(labels),
        grouped(report.tokens),
        grouped(report.trained as u64),
        report.aim.name(),
        significant(report.loss, 3),
        report.best_step
    )
}

/// `200 of 200 steps of 8 windows (409,600 tokens); held-out KL 0.61 → 0.12, best after step 190`
pub(super) fn healing(report: &HealReport, labels: Option<&LabelsInfo>) -> String {
    let stopped = report.stopped.as_ref().map(|why| format!("; {}", visible(why))).unwrap_or_default();
    let slowed: Vec<String> = report.slowed.iter().map(|&step| grouped(step as u64)).collect();
    let slowed =
        if slowed.is_empty() { String::new() } else { format!("; rate halved after step {}", slowed.join(", ")) };
    format!(
        "{} of {} steps of {} {} ({} tokens); held-out {} {} → {}, best after step {}{slowed}{stopped}",
        grouped(report.done as u64),
        grouped(report.steps as u64),
        report.batch,
        shown(labels),
        grouped(report.tokens),
        report.aim.name(),
        significant(report.loss_before, 3),
        significant(report.loss_after, 3),
        report.best_step
    )
}

/// What a step is shown.
fn shown(labels: Option<&LabelsInfo>) -> &'static str {
    if labels.is_some() { "examples" } else { "windows" }
}

/// `sst2: 60,100 labelled examples of at most 128 tokens; 512 more held out`
pub(super) fn labels(info: &LabelsInfo) -> String {
    format!(
        "{}: {} labelled examples of at most {} tokens; {} more held out",
        visible(&info.task),
        grouped(info.train as u64),
        info.max_length,
        info.heldout
    )
}

fn sizes(report: &Report, style: Style) -> Vec<String> {
    let title = ["size", "params", "after", "kept", "bytes", "after", "kept"];
    let mut rows = vec![title.map(String::from).to_vec()];
    for (name, size) in [("block linears", &report.sizes.linears), ("whole model", &report.sizes.model)] {
        rows.push([vec![name.to_string()], size_cells(size).to_vec()].concat());
    }
    titled(&rows, style)
}

/// Parameters before, after, share; bytes before, after, share.
pub(super) fn size_cells(size: &Size) -> [String; 6] {
    let share = |before: u64, after: u64| percent(after as f64 / before.max(1) as f64);
    [
        count(size.params_before),
        count(size.params_after),
        share(size.params_before, size.params_after),
        bytes(size.bytes_before),
        bytes(size.bytes_after),
        share(size.bytes_before, size.bytes_after),
    ]
}

/// Each corpus of the report, dense and compressed.
pub(super) fn pairs(report: &Report) -> Vec<Pair<'_>> {
    let evaluations = report.evaluation.iter();
    evaluations
        .map(|e| Pair { model: &e.after, base: Some(&e.before), calibrated: seen(report, &e.after.perplexity.corpus) })
        .collect()
}

/// Whether calibration or training saw a corpus of that name.
pub(super) fn seen(report: &Report, corpus: &str) -> bool {
    let calibrated = report.calibration.iter().flat_map(|info| &info.corpora);
    let mut shown = calibrated.chain(report.training_text.iter().flat_map(|info| &info.corpora));
    shown.any(|known| known.name == corpus)
}

fn quality(report: &Report, limit: usize, style: Style) -> Vec<String> {
    if !report.fidelity.is_empty() {
        return fidelity_lines(&report.fidelity, limit, style);
    }
    if report.evaluation.is_empty() {
        return vec![format!("{}  not measured", style.bold("perplexity"))];
    }
    evaluation_lines(&pairs(report), &Sides { base: "dense", model: "compressed" }, limit, style)
}

fn tasks(report: &Report, limit: usize, style: Style) -> Vec<String> {
    if report.tasks.is_empty() {
        return Vec::new();
    }
    task_lines(&report.tasks, &Sides { base: "dense", model: "compressed" }, limit, style)
}

fn ranks(report: &Report, limit: usize, style: Style) -> Vec<String> {
    let grid = Grid::new(&report.linears);
    if grid.rows.is_empty() {
        return Vec::new();
    }
    let mut rows = grid.cells();
    // The last columns are the least missed on a narrow page.
    while rows[0].len() > 1 + grid.roles.len() && columns(&rows).iter().any(|line| width(line) > limit) {
        rows.iter_mut().for_each(|row| drop(row.pop()));
    }
    let mut out = titled(&rows, style);
    let mut below = wrap("  ", &grid.legend(), limit);
    if let Some(shapes) = shapes(report) {
        below.extend(wrap("  ", &format!("shapes (out×in): {shapes}"), limit));
    }
    out.extend(below.iter().map(|line| style.dim(line)));
    out
}

fn cost(report: &Report, limit: usize, style: Style) -> Vec<String> {
    let cost = &report.cost;
    let peak = |peak: Option<u64>| peak.map_or("-".to_string(), bytes);
    let mut rows = vec![["stage", "time", "peak memory"].map(String::from).to_vec()];
    for stage in &cost.stages {
        rows.push(vec![visible(&stage.name), seconds(stage.seconds), peak(stage.peak_rss_bytes)]);
    }
    rows.push(vec!["total".into(), seconds(cost.seconds), peak(cost.peak_rss_bytes)]);
    let mut out = titled(&rows, style);
    let mut below = wrap("  ", &machine(report), limit);
    if let Some(estimate) = &cost.estimate {
        below.extend(wrap("  ", &format!("Memory was expected to be {}.", estimate.describe()), limit));
    }
    if cost.resumed {
        below.extend(wrap("  ", "An interrupted run was continued: times are those of its last part.", limit));
    }
    out.extend(below.iter().map(|line| style.dim(line)));
    out
}

/// `softlm 0.1.0 on …, 2 threads, cpu`.
pub(super) fn machine(report: &Report) -> String {
    let machine = &report.machine;
    let threads = machine.threads;
    format!(
        "softlm {} on {}, {}, {threads} thread{}, device {}",
        visible(&report.softlm),
        visible(&machine.cpu),
        visible(&machine.os),
        if threads == 1 { "" } else { "s" },
        visible(&machine.device)
    )
}

fn notes(report: &Report, limit: usize, style: Style) -> Vec<String> {
    let mut out = Vec::new();
    for note in &report.notes {
        let mut lines = wrap("note: ", &visible(note), limit).into_iter();
        out.extend(lines.next().map(|line| style.bold("note:") + &line["note:".len()..]));
        out.extend(lines);
    }
    out
}

pub(super) fn titled(rows: &[Vec<String>], style: Style) -> Vec<String> {
    let mut lines = columns(rows);
    if let Some(title) = lines.first_mut() {
        *title = style.bold(title);
    }
    lines
}

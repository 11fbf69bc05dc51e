//! The comparison on a terminal.

use super::{Comparison, CorpusQuality, Entry, Summary, TaskQuality, letter};
use crate::report::encoders::{cosine, protocol as embedding_protocol};
use crate::report::evaluation::{Pair, Sides, measure, ppl, protocol, why_not_finite};
use crate::report::format::{bytes, change, count, fraction, percent, seconds, with_error};
use crate::report::layout::{Style, columns, fit, width, wrap};
use crate::report::table::{seen, titled};
use crate::report::tasks::{protocol as task_protocol, task_cells};
use crate::visible::visible;
use serde_json::Value;

/// The narrowest page that is laid out for.
const NARROWEST: usize = 40;
/// Reports in columns at most; more of them are rows.
const MOST_COLUMNS: usize = 3;
/// Columns of a corpus's name in the title of a table.
const NAME: usize = 20;
/// Columns of a value in a table of settings.
const VALUE: usize = 24;

/// The comparison as a page of `limit` columns (80 fits everything), with ANSI emphasis if `color`.
pub fn compare_table(entries: &[Entry], limit: usize, color: bool) -> String {
    let limit = limit.max(NARROWEST);
    let style = Style { color };
    let comparison = Comparison::new(entries);
    let mut sections = vec![head(&comparison, entries, limit, style), settings(&comparison, limit, style)];
    sections.push(sizes(&comparison, style));
    sections.extend(comparison.perplexity.iter().map(|corpus| perplexity(corpus, entries, limit, style)));
    sections.extend(comparison.tasks.iter().map(|task| self::task(task, limit, style)));
    sections.push(fidelity(&comparison, limit, style));
    sections.push(not_measured(&comparison, entries));
    sections.push(roles(&comparison, limit, style));
    sections.push(linears(&comparison, limit, style));
    sections.push(cost(&comparison, limit, style));
    let shown = sections.iter().filter(|lines| !lines.is_empty()).map(|lines| lines.join("\n") + "\n");
    shown.collect::<Vec<_>>().join("\n")
}

fn head(comparison: &Comparison, entries: &[Entry], limit: usize, style: Style) -> Vec<String> {
    let mut out = Vec::new();
    for (summary, entry) in comparison.reports.iter().zip(entries) {
        let keep = fraction(summary.keep_reached);
        let model = &entry.report.model;
        let what = format!(": {} of {} ({}), keep {keep}", summary.method, model.name, model.family);
        let first = format!("{:<3}", summary.letter);
        let name = fit(&visible(summary.name), limit.saturating_sub(8));
        let mut lines = wrap(&first, &format!("{name}{}", visible(&what)), limit).into_iter();
        out.extend(lines.next().map(|line| style.bold(&line[..first.len()]) + &line[first.len()..]));
        out.extend(lines);
    }
    for sentence in &comparison.originals {
        out.extend(wrap("   ", &format!("{}.", visible(sentence)), limit));
    }
    out
}

/// A value as a recipe has it.
pub(in crate::report) fn value(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => visible(text),
        Value::Array(list) => list.iter().map(self::value).collect::<Vec<_>>().join(", "),
        Value::Object(map) => format!("{} options", map.len()),
        other => other.to_string(),
    }
}

fn settings(comparison: &Comparison, limit: usize, style: Style) -> Vec<String> {
    let settings = &comparison.settings;
    let mut out = Vec::new();
    let letters = comparison.reports.iter().map(|summary| summary.letter.clone());
    let mut rows = vec![std::iter::once("settings".to_string()).chain(letters).collect::<Vec<_>>()];
    for setting in &settings.different {
        let values = setting.values.iter().map(|x| fit(&value(x), VALUE));
        rows.push(std::iter::once(visible(&setting.key)).chain(values).collect());
    }
    let fits = columns(&rows).iter().all(|line| width(line) <= limit);
    if settings.different.is_empty() {
        out.push(format!("{}  all equal", style.bold("settings")));
    } else if fits && comparison.reports.len() <= MOST_COLUMNS {
        out.extend(titled(&rows, style));
    } else {
        out.push(style.bold("settings"));
        for setting in &settings.different {
            out.extend(wrap("  ", &format!("{}: {}", visible(&setting.key), by_value(&setting.values)), limit));
        }
    }
    let mut equal: Vec<String> = Vec::new();
    for (key, x) in settings.equal.iter().filter(|(_, value)| !value.is_null()) {
        equal.push(format!("{} {}", visible(key), value(x)));
    }
    if !equal.is_empty() {
        out.extend(wrap("  equal: ", &equal.join("; "), limit).iter().map(|line| style.dim(line)));
    }
    out
}

/// `A, C auto; B svd`
fn by_value(values: &[Value]) -> String {
    let mut groups: Vec<(&Value, Vec<String>)> = Vec::new();
    for (i, value) in values.iter().enumerate() {
        match groups.iter_mut().find(|(known, _)| *known == value) {
            Some((_, letters)) => letters.push(letter(i)),
            None => groups.push((value, vec![letter(i)])),
        }
    }
    let shown = groups.iter().map(|(x, letters)| format!("{} {}", letters.join(", "), value(x)));
    shown.collect::<Vec<_>>().join("; ")
}

/// Relative change from the first; nothing in the first's own row.
fn to_first(i: usize, first: f64, here: f64) -> String {
    if i == 0 { String::new() } else { change(first, here) }
}

fn sizes(comparison: &Comparison, style: Style) -> Vec<String> {
    let title = ["size", "linears", "kept", "model", "kept", "bytes", "kept", "to A"];
    let mut rows = vec![title.map(String::from).to_vec()];
    let mut dense: Vec<(u64, u64, u64)> = Vec::new();
    for Summary { sizes, .. } in &comparison.reports {
        let of = (sizes.linears.params_before, sizes.model.params_before, sizes.model.bytes_before);
        if !dense.contains(&of) {
            dense.push(of);
            let [linears, model, size] = [count(of.0), count(of.1), bytes(of.2)];
            rows.push(["dense".into(), linears, String::new(), model, String::new(), size].to_vec());
        }
    }
    let share = |before: u64, after: u64| percent(super::ranks::share(before, after));
    let first = comparison.reports[0].sizes.model.bytes_after as f64;
    for (i, Summary { letter, sizes: super::Sizes { linears, model }, .. }) in comparison.reports.iter().enumerate() {
        rows.push(vec![
            letter.clone(),
            count(linears.params_after),
            share(linears.params_before, linears.params_after),
            count(model.params_after),
            share(model.params_before, model.params_after),
            bytes(model.bytes_after),
            share(model.bytes_before, model.bytes_after),
            to_first(i, first, model.bytes_after as f64),
        ]);
    }
    titled(&rows, style)
}

fn perplexity(corpus: &CorpusQuality, entries: &[Entry], limit: usize, style: Style) -> Vec<String> {
    let first = &corpus.measured[0];
    let name = visible(corpus.corpus);
    let to = format!("to {}", letter(first.report));
    let pair = |model, base| Pair { model, base, calibrated: false };
    let what = measure(&[pair(first.after, None)]);
    let title = [&format!("{what}, {}", fit(&name, NAME)), "", "to dense", &to, "KL, nats", "same top"];
    let mut rows = vec![title.map(|text| text.to_string()).to_vec()];
    let mut dense: Vec<(String, String)> = Vec::new();
    let mut notes = vec![format!("{}: {}", visible(corpus.corpus), protocol(&first.after.perplexity))];
    for (i, measured) in corpus.measured.iter().enumerate() {
        let (before, after) = (&measured.before.perplexity, &measured.after.perplexity);
        let comparable = measured.comparable.comparable;
        let of_dense = (ppl(before), protocol(before));
        if !dense.contains(&of_dense) {
            let mark = if comparable { "" } else { " †" };
            rows.push(vec![format!("dense{mark}"), of_dense.0.clone()]);
            dense.push(of_dense);
        }
        let (kl, top) = match &measured.after.divergence {
            Some(d) => (with_error(d.kl, d.kl_stderr, 3), percent(d.top1)),
            None => ("-".into(), "-".into()),
        };
        let to_first = match comparable {
            true => to_first(i, first.after.perplexity.ppl, after.ppl),
            false => "-".into(),
        };
        let name = letter(measured.report);
        let sound = crate::report::evaluation::comparable(before, after);
        rows.push(vec![
            format!("{name}{}", if comparable { "" } else { " †" }),
            ppl(after),
            if sound { change(before.ppl, after.ppl) } else { "-".into() },
            to_first,
            kl,
            top,
        ]);
        if !comparable {
            let why = visible(&measured.comparable.why.join(", "));
            let how = protocol(after);
            let first = letter(first.report);
            notes.push(format!("† {name} is not comparable with {first}: {why} ({how})"));
        } else if !measured.comparable.why.is_empty() {
            notes.push(format!("{name}: {}", visible(&measured.comparable.why.join(", "))));
        }
        let dense_name = format!("the dense model of {name}");
        let sides = Sides { base: &dense_name, model: &name };
        notes.extend(why_not_finite(&pair(measured.after, Some(measured.before)), &sides));
    }
    let saw: Vec<String> = corpus
        .measured
        .iter()
        .map(|measured| measured.report)
        .filter(|&i| seen(&entries[i].report, corpus.corpus))
        .map(letter)
        .collect();
    if !saw.is_empty() {
        notes.push(format!("the calibration of {} saw this corpus (its training part, if it has one)", saw.join(", ")));
    }
    let too_wide = |rows: &[Vec<String>]| columns(rows).iter().any(|line| width(line) > limit);
    if too_wide(&rows) {
        rows[0][0] = what.to_string();
        if too_wide(&rows) {
            rows.iter_mut().for_each(|row| row.truncate(title.len() - 1));
        }
    }
    let mut out = titled(&rows, style);
    out.extend(notes.iter().flat_map(|note| wrap("  ", note, limit)).map(|line| style.dim(&line)));
    out
}

fn task(task: &TaskQuality, limit: usize, style: Style) -> Vec<String> {
    let first = &task.measured[0];
    let mut named = Vec::new();
    let mut notes = vec![format!("{}: {}", visible(task.task), task_protocol(first.result))];
    for measured in &task.measured {
        let (name, why) = (letter(measured.report), visible(&measured.comparable.why.join(", ")));
        let comparable = measured.comparable.comparable;
        if !comparable {
            let how = task_protocol(measured.result);
            notes.push(format!("† {name} is not comparable with {}: {why} ({how})", letter(first.report)));
        } else if !why.is_empty() {
            notes.push(format!("{name}: {why}"));
        }
        named.push((format!("{name}{}", if comparable { "" } else { " †" }), measured.result));
    }
    let mut out = titled(&task_cells(task.task, &named), style);
    out.extend(notes.iter().flat_map(|note| wrap("  ", note, limit)).map(|line| style.dim(&line)));
    out
}

fn fidelity(comparison: &Comparison, limit: usize, style: Style) -> Vec<String> {
    let mut rows = vec![["embeddings", "corpus", "cosine to dense"].map(String::from).to_vec()];
    let mut notes = Vec::new();
    for summary in &comparison.reports {
        for f in summary.fidelity {
            rows.push(vec![summary.letter.clone(), fit(&visible(&f.corpus), VALUE), cosine(f)]);
            notes.push(format!("{}, {}: {}", summary.letter, visible(&f.corpus), embedding_protocol(f)));
        }
    }
    if notes.is_empty() {
        return Vec::new();
    }
    let mut out = titled(&rows, style);
    out.extend(notes.iter().flat_map(|note| wrap("  ", note, limit)).map(|line| style.dim(&line)));
    out
}

/// Which reports lack a measurement that others have, or any.
fn not_measured(comparison: &Comparison, entries: &[Entry]) -> Vec<String> {
    let mut out = Vec::new();
    for (i, summary) in comparison.reports.iter().enumerate() {
        if entries[i].report.evaluation.is_empty() && summary.fidelity.is_empty() {
            out.push(format!("{}: perplexity not measured", summary.letter));
        }
        for corpus in &comparison.perplexity {
            let lacks = corpus.measured.iter().all(|measured| measured.report != i);
            if lacks && !entries[i].report.evaluation.is_empty() {
                out.push(format!("{}: not measured on {}", summary.letter, visible(corpus.corpus)));
            }
        }
    }
    out
}

/// Rows per report and columns per role, as many as fit beside each other.
fn roles(comparison: &Comparison, limit: usize, style: Style) -> Vec<String> {
    const COLUMN: usize = 9;
    let ranks = &comparison.ranks;
    let fitting = (limit.saturating_sub("kept of".len()) / COLUMN).max(1);
    let mut out = Vec::new();
    for (part, roles) in ranks.roles.chunks(fitting).enumerate() {
        let title = std::iter::once("kept of".to_string()).chain(roles.iter().map(|role| visible(role)));
        let mut rows = vec![title.collect::<Vec<_>>()];
        for (summary, kept) in comparison.reports.iter().zip(&ranks.kept) {
            let cells = kept.iter().skip(part * fitting).take(fitting);
            let cells = cells.map(|share| share.map_or("-".into(), percent));
            rows.push(std::iter::once(summary.letter.clone()).chain(cells).collect());
        }
        out.extend(titled(&rows, style));
    }
    out
}

fn linears(comparison: &Comparison, limit: usize, style: Style) -> Vec<String> {
    let ranks = &comparison.ranks;
    if let Some(why) = &ranks.not_compared {
        return wrap("", &format!("Linears are not compared: {why}."), limit);
    }
    if ranks.most.is_empty() {
        return vec!["Every linear is stored alike.".into()];
    }
    let few = comparison.reports.len() <= MOST_COLUMNS;
    let letters: Vec<String> = comparison.reports.iter().map(|summary| summary.letter.clone()).collect();
    let columns = if few { letters } else { vec!["least".into(), "most".into()] };
    let title = std::iter::once("differ most".to_string()).chain(columns);
    let mut rows = vec![title.chain(std::iter::once("points".into())).collect::<Vec<_>>()];
    for difference in &ranks.most {
        let cell = |i: usize| format!("{} ({})", difference.stored[i], percent(difference.kept[i]));
        let indices = 0..difference.kept.len();
        let by_kept = |a: &usize, b: &usize| difference.kept[*a].total_cmp(&difference.kept[*b]);
        let cells: Vec<String> = match (few, indices.clone().min_by(by_kept), indices.clone().max_by(by_kept)) {
            (false, Some(least), Some(most)) => [least, most].map(|i| format!("{} {}", letter(i), cell(i))).to_vec(),
            _ => indices.map(cell).collect(),
        };
        let points = format!("{:.1}", 100.0 * difference.spread());
        rows.push(std::iter::once(difference.linear.clone()).chain(cells).chain([points]).collect());
    }
    let mut out = titled(&rows, style);
    let legend = "number: rank of the two factors; w: dense, with that many channels; in brackets the share of its \
                  parameters; points: between the least and the most";
    out.extend(wrap("  ", legend, limit).iter().map(|line| style.dim(line)));
    out
}

fn cost(comparison: &Comparison, limit: usize, style: Style) -> Vec<String> {
    let mut rows = vec![["cost", "time", "to A", "peak memory"].map(String::from).to_vec()];
    let first = comparison.reports[0].cost.seconds;
    let mut machines: Vec<(String, Vec<String>)> = Vec::new();
    for (i, summary) in comparison.reports.iter().enumerate() {
        let cost = summary.cost;
        let mark = if cost.resumed { " *" } else { "" };
        rows.push(vec![
            format!("{}{mark}", summary.letter),
            seconds(cost.seconds),
            to_first(i, first, cost.seconds),
            cost.peak_rss_bytes.map_or("-".into(), bytes),
        ]);
        let m = summary.machine;
        let machine = format!("{}, {}, threads: {}, device {}", m.cpu, m.os, m.threads, m.device);
        match machines.iter_mut().find(|(known, _)| *known == machine) {
            Some((_, letters)) => letters.push(summary.letter.clone()),
            None => machines.push((machine, vec![summary.letter.clone()])),
        }
    }
    let mut out = titled(&rows, style);
    let mut notes: Vec<String> = Vec::new();
    for (machine, letters) in &machines {
        notes.push(format!("{} on {}", letters.join(", "), visible(machine)));
    }
    if comparison.reports.iter().any(|summary| summary.cost.resumed) {
        notes.push("* an interrupted run was continued: the time is that of its last part".into());
    }
    out.extend(notes.iter().flat_map(|note| wrap("  ", note, limit)).map(|line| style.dim(&line)));
    out
}

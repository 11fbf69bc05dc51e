//! What is measured of encoders as text: embeddings beside the original's, and labelled tasks. Never without protocol.

use super::format::{fixed, grouped, with_error};
use super::layout::{Style, wrap};
use super::table::titled;
use crate::eval::{Fidelity, GlueResult};
use crate::visible::visible;

/// How a fidelity was measured: `window 128, 16 windows, mean pooling, f32`.
pub(super) fn protocol(f: &Fidelity) -> String {
    format!(
        "window {}, {} window{}, {} pooling, {}",
        f.window,
        grouped(f.windows as u64),
        if f.windows == 1 { "" } else { "s" },
        visible(&f.pooling),
        visible(&f.dtype)
    )
}

/// `0.9832 ± 0.0004`
pub(super) fn cosine(f: &Fidelity) -> String {
    with_error(f.cosine, f.stderr, 4)
}

/// The table of embeddings compared with the original's: numbers first, protocols below.
pub(super) fn fidelity_lines(fidelities: &[Fidelity], limit: usize, style: Style) -> Vec<String> {
    if fidelities.is_empty() {
        return Vec::new();
    }
    let mut rows = vec![["embeddings", "cosine to dense", "least"].map(String::from).to_vec()];
    rows.extend(fidelities.iter().map(|f| vec![visible(&f.corpus), cosine(f), fixed(f.least, 4)]));
    let mut out = titled(&rows, style);
    for f in fidelities {
        let text = format!("{}: {}; against {}", visible(&f.corpus), protocol(f), visible(&f.base));
        out.extend(wrap("  ", &text, limit).iter().map(|line| style.dim(line)));
    }
    out
}

/// The table of `softlm eval` for encoders that predict no tokens.
pub fn fidelity_table(fidelities: &[Fidelity], limit: usize, color: bool) -> String {
    fidelity_lines(fidelities, limit, Style { color }).join("\n") + "\n"
}

/// The table of `softlm eval --glue`: each number beside that of the original, if there is one, protocols below.
pub fn glue_table(results: &[GlueResult], limit: usize, color: bool) -> String {
    let style = Style { color };
    let compared = results.iter().any(|result| result.baseline.is_some());
    let mut title = vec!["task", "metric"];
    title.extend(if compared { &["base", "model", "change"][..] } else { &["model"][..] });
    let mut rows = vec![title.into_iter().map(String::from).collect::<Vec<_>>()];
    for result in results {
        let value = |x: f64| match result.metric.as_str() {
            "accuracy" | "f1" if x.is_finite() => format!("{:.2} %", 100.0 * x),
            _ => fixed(x, 5),
        };
        let change = |base: f64| match result.metric.as_str() {
            "accuracy" | "f1" => format!("{:+.2} points", 100.0 * (result.value - base)),
            _ => format!("{:+.5}", result.value - base),
        };
        let mut row = vec![visible(&result.task), visible(&result.metric)];
        if compared {
            row.push(result.baseline.map_or("-".into(), value));
        }
        row.push(value(result.value));
        if compared {
            row.push(result.baseline.map_or("-".into(), change));
        }
        rows.push(row);
    }
    let mut out = titled(&rows, style);
    let mut told: Vec<&str> = Vec::new();
    for result in results.iter().filter(|result| {
        let new = !told.contains(&result.data.as_str());
        told.push(&result.data);
        new
    }) {
        let text = format!(
            "{}: {} examples of {} (sha256 {:.12}), max length {}, {}, {}",
            visible(&result.task),
            grouped(result.n as u64),
            visible(&result.data),
            result.sha256,
            result.max_length,
            visible(&result.predictions),
            visible(&result.dtype)
        );
        out.extend(wrap("  ", &text, limit).iter().map(|line| style.dim(line)));
    }
    out.join("\n") + "\n"
}

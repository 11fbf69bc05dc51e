//! What compression costs at each linear: measured, and predicted.

use super::escape::escape;
use super::plot::{Plot, Series};
use super::{figure, plots};
use crate::report::format::significant;
use crate::report::grid::{expected, roles, short_role};
use crate::report::{LinearReport, Report};
use anyhow::Result;

pub(super) fn section(report: &Report) -> Result<String> {
    let error = |linear: &LinearReport| linear.heldout_error;
    let mut figures = by_block(
        report,
        "Output error of each linear",
        "‖(W-W')X‖²/‖WX‖²",
        "On held-out windows of the calibration text, of what is stored less than whole, before any healing.",
        &error,
    )?;
    figures += &by_block(
        report,
        "Predicted loss of each linear",
        "predicted KL, nats per token",
        "What its form alone was predicted to cost the model.",
        &|linear| expected(linear).filter(|&loss| loss > 0.0),
    )?;
    figures += &energy(report)?;
    Ok(plots("Where the loss is", &figures) + &predicted(report))
}

/// A line per role over the blocks.
fn by_block(
    report: &Report,
    title: &str,
    y: &str,
    caption: &str,
    of: &dyn Fn(&LinearReport) -> Option<f64>,
) -> Result<String> {
    let points = |linear: &LinearReport| Some((linear.id.block as f64, of(linear)?));
    let (series, key) = by_role(report, &points);
    let series = series.into_iter().map(|series| Series { line: true, ..series }).collect();
    let alt = format!("{title}, {y}, by block, a line per role");
    let plot = Plot { alt, x: "block".into(), y: y.into(), series, whole: true, log: (false, true), ..Plot::default() };
    figure(title, &plot, &key, caption)
}

/// A series per role that has points.
fn by_role(
    report: &Report,
    point: &dyn Fn(&LinearReport) -> Option<(f64, f64)>,
) -> (Vec<Series>, Vec<(usize, String)>) {
    let (mut series, mut key) = (Vec::new(), Vec::new());
    for (style, role) in roles(&report.linears).into_iter().enumerate() {
        let of_role = report.linears.iter().filter(|linear| short_role(linear) == role);
        let points: Vec<(f64, f64)> = of_role.filter_map(point).collect();
        if !points.is_empty() {
            series.push(Series { points, markers: true, style, ..Series::default() });
            key.push((style, role));
        }
    }
    (series, key)
}

/// What the method's own objective lost, against the error that was measured.
fn energy(report: &Report) -> Result<String> {
    let lost = |linear: &LinearReport| {
        let lost = 1.0 - linear.energy_kept?;
        Some((lost, linear.heldout_error?)).filter(|(x, y)| *x > 0.0 && *y > 0.0)
    };
    let (series, key) = by_role(report, &lost);
    let plot = Plot {
        alt: "held-out output error of each linear against the share of the objective that was cut off".into(),
        x: "share of the objective cut off".into(),
        y: "held-out error".into(),
        series,
        log: (true, true),
        ..Plot::default()
    };
    figure(
        "Predicted against measured",
        &plot,
        &key,
        "Each point is a linear: what the method's own objective lost on the calibration text, and the output error on held-out windows.",
    )
}

/// The KL that was predicted, beside what was measured.
fn predicted(report: &Report) -> String {
    let losses: Vec<f64> = report.linears.iter().filter_map(expected).collect();
    if losses.is_empty() {
        return String::new();
    }
    let measured = report.evaluation.iter().filter_map(|e| {
        let divergence = e.after.divergence.as_ref()?;
        let how = crate::report::protocol(&e.after.perplexity);
        Some(format!("{} on {} ({how})", significant(divergence.kl, 3), divergence.corpus))
    });
    let measured: Vec<String> = measured.collect();
    let measured =
        if measured.is_empty() { String::new() } else { format!("; measured at the end: {}", measured.join(", ")) };
    let total = significant(losses.iter().sum(), 3);
    let healed = if report.healing.is_some() { ", after healing" } else { "" };
    let text =
        format!("The KL of all parts, each alone, was predicted to be {total} nats per token{measured}{healed}.");
    format!("<p>{}</p>\n", escape(&text))
}

//! The curves of learning and healing.

use super::plot::{Plot, Series};
use super::{figure, plots};
use crate::report::Report;
use crate::report::table::{healing, learning};
use anyhow::Result;

pub(super) fn section(report: &Report) -> Result<String> {
    let mut figures = String::new();
    let labels = report.labels.as_ref();
    if let Some(info) = &report.learning {
        let points = info.curve.iter().map(|p| (p.step, p.loss, p.heldout_loss)).collect::<Vec<_>>();
        figures += &curve("Learning", &points, info.best_step, info.aim.name(), &learning(info, labels))?;
    }
    if let Some(info) = &report.healing {
        let points = info.curve.iter().map(|p| (p.step, p.loss, p.heldout_loss)).collect::<Vec<_>>();
        figures += &curve("Healing", &points, info.best_step, info.aim.name(), &healing(info, labels))?;
    }
    Ok(plots("Training", &figures))
}

fn curve(
    title: &str,
    points: &[(usize, Option<f64>, Option<f64>)],
    best: usize,
    aim: &str,
    caption: &str,
) -> Result<String> {
    let train = points.iter().filter_map(|&(step, loss, _)| Some((step as f64, loss?))).collect();
    let heldout: Vec<(f64, f64)> = points.iter().filter_map(|&(step, _, loss)| Some((step as f64, loss?))).collect();
    let kept = heldout.iter().copied().filter(|point| point.0 == best as f64).collect();
    let series = vec![
        Series { points: train, line: true, style: 5, ..Series::default() },
        Series { points: heldout, line: true, style: 0, ..Series::default() },
        Series { points: kept, markers: true, style: 1, ..Series::default() },
    ];
    let unit = if aim.contains("cosine") || aim.contains("squared") { "" } else { ", nats" };
    let plot = Plot {
        alt: format!("{title}: training and held-out loss by step"),
        x: "step".into(),
        y: format!("{aim}{unit}"),
        series,
        whole: true,
        log: (false, true),
        ..Plot::default()
    };
    let key = [(5, "training".to_string()), (0, "held out".to_string()), (1, "state that was kept".to_string())];
    figure(title, &plot, &key, &format!("{caption}."))
}

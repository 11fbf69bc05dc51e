//! Spectra and where they were cut, as far as a report has them: those of learned methods.

use super::plot::{Plot, Series};
use super::{figure, plots};
use crate::report::grid::{roles, short_role};
use crate::report::{LearnedSpectrum, LinearReport, Report};
use anyhow::Result;

/// Points of a spectrum that are drawn at most.
const POINTS: usize = 48;

pub(super) fn section(report: &Report) -> Result<String> {
    if report.linears.iter().all(|linear| linear.learned.is_none()) {
        return Ok("<h2>Spectra</h2>\n<p class=\"dim\">This report holds no spectra: only methods that learn which components to \
                   keep record them.</p>\n"
            .into());
    }
    let mut figures = String::new();
    for (style, role) in roles(&report.linears).iter().enumerate() {
        let of_role = report.linears.iter().filter(|linear| short_role(linear) == *role);
        let spectra: Vec<&LearnedSpectrum> =
            of_role.filter(|linear| is_sized(linear)).filter_map(|linear| linear.learned.as_ref()).collect();
        let mut series: Vec<Series> = spectra.iter().map(|spectrum| line(spectrum, style)).collect();
        let cuts = spectra.iter().filter_map(|spectrum| cut(spectrum)).collect();
        series.push(Series { points: cuts, markers: true, style: style + 1, ..Series::default() });
        let plot = Plot {
            alt: format!("spectra of {role}, a line per block, and where each was cut"),
            x: "component".into(),
            y: "size".into(),
            series,
            log: (true, true),
            ..Plot::default()
        };
        let key = [(style, "spectrum of a block".to_string()), (style + 1, "last component kept".to_string())];
        figures += &figure(role, &plot, &key, "Sizes after learning, in the recipe's unit.")?;
    }
    Ok(plots("Spectra and where they were cut", &figures))
}

/// Whether it has a size for each gate; a file may say anything.
fn is_sized(linear: &LinearReport) -> bool {
    linear.learned.as_ref().is_some_and(|learned| learned.sigma.len() == learned.gates.len())
}

/// Sizes from large to small at places that are even on a logarithmic axis.
fn sorted(spectrum: &LearnedSpectrum) -> Vec<(f64, bool)> {
    let kept = spectrum.gates.iter().map(|gate| *gate != 0.0);
    let mut all: Vec<(f64, bool)> = spectrum.sigma.iter().copied().zip(kept).filter(|(size, _)| *size > 0.0).collect();
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    all
}

fn line(spectrum: &LearnedSpectrum, style: usize) -> Series {
    let all = sorted(spectrum);
    let mut points: Vec<(f64, f64)> = Vec::new();
    for i in 0..POINTS {
        let at = (all.len() as f64).powf(i as f64 / (POINTS - 1) as f64).round() as usize;
        if at >= 1 && at <= all.len() && points.last().is_none_or(|last| last.0 < at as f64) {
            points.push((at as f64, all[at - 1].0));
        }
    }
    Series { points, line: true, style, ..Series::default() }
}

/// The last component that is kept; none where all are or none is.
fn cut(spectrum: &LearnedSpectrum) -> Option<(f64, f64)> {
    let all = sorted(spectrum);
    let last = all.iter().rposition(|(_, kept)| *kept)?;
    (last + 1 < all.len()).then(|| ((last + 1) as f64, all[last].0))
}

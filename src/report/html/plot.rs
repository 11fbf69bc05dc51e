//! One plot as SVG: points and lines over two labelled axes.

use super::colour::{GRID, INK, SERIES};
use super::escape::escape;
use crate::report::format::significant;
use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::element::{Circle, EmptyElement, PathElement, Polygon, Rectangle, Text};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::ops::Range;

/// Pixels of the drawing; it is shown at half of that on a telephone.
const SIZE: (u32, u32) = (720, 500);
/// Size of text in it.
const TEXT: u32 = 33;
/// Half a marker.
const MARKER: i32 = 7;
/// From this ratio of largest to smallest on, an axis is logarithmic.
const WIDE: f64 = 12.0;
/// Labels of a logarithmic axis are no closer than this part of it; along x, than their characters and a gap take.
const APART: f64 = 0.11;
const CHARACTER: f64 = 0.032;
const GAP: f64 = 0.02;
/// Markers of series, in the order of their colours, as text for the key.
pub const GLYPHS: [&str; 4] = ["●", "▲", "■", "◆"];

/// Points of one kind.
#[derive(Debug, Clone, Default)]
pub struct Series {
    /// x and y; what is not finite is left out.
    pub points: Vec<(f64, f64)>,
    /// What stands beside each point; nothing where it is shorter.
    pub labels: Vec<String>,
    /// Standard errors of y.
    pub errors: Vec<Option<f64>>,
    /// Whether points are joined.
    pub line: bool,
    /// Whether points have markers.
    pub markers: bool,
    /// Colour and marker.
    pub style: usize,
}

impl Series {
    /// x, lower and upper end of each error bar; none goes below zero, which nothing that has one does.
    fn bars(&self) -> impl Iterator<Item = (f64, f64, f64)> {
        let bars = self.points.iter().zip(&self.errors).filter_map(|(&(x, y), error)| Some((x, y, (*error)?)));
        bars.filter(|(x, y, error)| (x + y + error).is_finite())
            .map(|(x, y, error)| (x, (y - error).max(0.1 * y), y + error))
    }
}

/// A plot.
#[derive(Debug, Clone, Default)]
pub struct Plot {
    /// What it shows, for those who cannot see it.
    pub alt: String,
    /// What is along the axes, with the unit.
    pub x: String,
    pub y: String,
    /// What is drawn, the last on top.
    pub series: Vec<Series>,
    /// Whether x counts something: then only whole numbers are labelled.
    pub whole: bool,
    /// Whether the axes may be logarithmic.
    pub log: (bool, bool),
    /// What y is read against, drawn as lines across.
    pub levels: Vec<f64>,
}

impl Plot {
    /// The drawing; nothing if there is no point to draw.
    ///
    /// # Errors
    /// None that depend on the points.
    pub fn svg(&self) -> Result<String> {
        let finite: Vec<(f64, f64)> = self
            .series
            .iter()
            .flat_map(|s| s.points.iter().copied().filter(|p| p.0.is_finite() && p.1.is_finite()))
            .collect();
        if finite.is_empty() {
            return Ok(String::new());
        }
        let x = Scale::of(finite.iter().map(|p| p.0), self.log.0, self.whole, true);
        let levels = self.levels.iter().copied().filter(|y| y.is_finite());
        let bars = self.series.iter().flat_map(Series::bars).flat_map(|(_, low, high)| [low, high]);
        let y = Scale::of(finite.iter().map(|p| p.1).chain(levels).chain(bars), self.log.1, false, false);
        let mut svg = String::new();
        self.draw(&mut svg, x, y).map_err(|error| anyhow!("drawing a plot: {error}"))?;
        // Within a page it scales with its place, and needs no name space.
        let (_, rest) = svg.split_once('>').unwrap_or_default();
        let (width, height) = SIZE;
        let alt = escape(&self.alt);
        Ok(format!(
            "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{alt}\">{}",
            rest.replace('\n', "")
        ))
    }

    fn draw(&self, svg: &mut String, x: Scale, y: Scale) -> Result<(), Box<dyn std::error::Error>> {
        let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        let font = |colour: RGBColor| ("sans-serif", TEXT).into_font().color(&colour);
        let mut chart = ChartBuilder::on(&area)
            .margin_top(14)
            .margin_right(26)
            .margin_bottom(4)
            .x_label_area_size(86)
            .y_label_area_size(124)
            .build_cartesian_2d(x.clone(), y.clone())?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID.stroke_width(2))
            .axis_style(INK.stroke_width(2))
            .label_style(font(INK))
            .axis_desc_style(font(INK))
            .x_desc(&self.x)
            .y_desc(&self.y)
            .x_labels(6)
            .y_labels(7)
            .draw()?;
        for &level in self.levels.iter().filter(|y| y.is_finite()) {
            let across = vec![(x.min, level), (x.max, level)];
            chart.draw_series([PathElement::new(across, INK.mix(0.6).stroke_width(2))])?;
        }
        for series in &self.series {
            let colour = SERIES[series.style % SERIES.len()];
            let drawn = |&&(x, y): &&(f64, f64)| x.is_finite() && y.is_finite();
            if series.line {
                let points: Vec<(f64, f64)> = series.points.iter().filter(drawn).copied().collect();
                chart.draw_series([PathElement::new(points, colour.stroke_width(3))])?;
            }
            for (x, low, high) in series.bars() {
                chart.draw_series([PathElement::new(vec![(x, low), (x, high)], colour.stroke_width(3))])?;
            }
            for (i, &(px, py)) in series.points.iter().enumerate().filter(|(_, point)| drawn(point)) {
                let (at, fill) = (EmptyElement::at((px, py)), colour.filled());
                match series.style % GLYPHS.len() {
                    _ if !series.markers => {}
                    0 => {
                        chart.draw_series([at + Circle::new((0, 0), MARKER, fill)])?;
                    }
                    2 => {
                        let corners = [(1 - MARKER, 1 - MARKER), (MARKER - 1, MARKER - 1)];
                        chart.draw_series([at + Rectangle::new(corners, fill)])?;
                    }
                    _ => {
                        chart.draw_series([at + Polygon::new(corners(series.style), fill)])?;
                    }
                }
                if let Some(label) = series.labels.get(i) {
                    // Towards the middle, where there is room.
                    let left = x.part(px) > 0.5;
                    let at = if left { (-MARKER - 5, -6) } else { (MARKER + 5, -6) };
                    let pos = Pos::new(if left { HPos::Right } else { HPos::Left }, VPos::Bottom);
                    let text = Text::new(label.clone(), at, font(INK).pos(pos));
                    chart.draw_series([EmptyElement::at((px, py)) + text])?;
                }
            }
        }
        area.present()?;
        drop(chart);
        Ok(())
    }
}

/// Corners of a marker around its point: a triangle or a diamond.
fn corners(style: usize) -> Vec<(i32, i32)> {
    let m = MARKER;
    match style % GLYPHS.len() {
        1 => vec![(0, -m - 2), (m + 1, m - 1), (-m - 1, m - 1)],
        _ => vec![(0, -m - 2), (m + 2, 0), (0, m + 2), (-m - 2, 0)],
    }
}

/// An axis with labels at round numbers.
#[derive(Debug, Clone)]
struct Scale {
    min: f64,
    max: f64,
    log: bool,
    whole: bool,
    /// Whether labels stand beside each other: that is x.
    across: bool,
}

impl Scale {
    fn of(values: impl Iterator<Item = f64>, may_be_log: bool, whole: bool, across: bool) -> Self {
        let (min, max) = values.fold((f64::MAX, f64::MIN), |(a, b), x| (a.min(x), b.max(x)));
        if may_be_log && min > 0.0 && max / min > WIDE {
            let room = (max / min).powf(0.06);
            return Self { min: min / room, max: max * room, log: true, whole, across };
        }
        let span = if max > min { max - min } else { max.abs().max(1e-9) };
        let room = 0.08 * span;
        // Nothing that is measured here goes below zero.
        let low = if min >= 0.0 { (min - room).max(0.0) } else { min - room };
        Self { min: low, max: max + room, log: false, whole, across }
    }

    /// Where a value is, 0 at the beginning and 1 at the end.
    fn part(&self, x: f64) -> f64 {
        match self.log {
            true => (x.max(self.min).ln() - self.min.ln()) / (self.max.ln() - self.min.ln()),
            false => (x - self.min) / (self.max - self.min),
        }
    }

    /// Round numbers, `most` or fewer.
    fn ticks(&self, most: usize) -> Vec<f64> {
        if self.log {
            for steps in [&[1.0, 2.0, 3.0, 5.0, 7.0][..], &[1.0, 2.0, 5.0], &[1.0, 3.0], &[1.0]] {
                let decades = self.min.log10().floor() as i32..=self.max.log10().ceil() as i32;
                let all = decades.flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)));
                let ticks: Vec<f64> = all.filter(|x| (self.min..=self.max).contains(x)).collect();
                let longest = ticks.iter().map(|&x| short(x).len()).max().unwrap_or(0);
                let room = if self.across { CHARACTER * longest as f64 + GAP } else { APART };
                let apart = ticks.windows(2).all(|pair| self.part(pair[1]) - self.part(pair[0]) >= room);
                if ticks.len() <= most && !ticks.is_empty() && apart {
                    return ticks;
                }
            }
            let decades = self.max.log10().floor() as i32 - self.min.log10().ceil() as i32;
            let every = (decades / most.max(1) as i32 + 1).max(1) as usize;
            let decades = (self.min.log10().ceil() as i32..=self.max.log10().floor() as i32).step_by(every);
            return decades.map(|decade| 10f64.powi(decade)).collect();
        }
        let span = self.max - self.min;
        let unit = 10f64.powf((span / most.max(1) as f64).log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0, 20.0].map(|step| step * unit);
        let step = steps.into_iter().find(|step| span / step <= most as f64).unwrap_or(10.0 * unit);
        let step = if self.whole { step.max(1.0) } else { step };
        let first = (self.min / step).ceil() as i64;
        (first..).map(|i| i as f64 * step).take_while(|x| *x <= self.max).take(64).collect()
    }
}

impl Ranged for Scale {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        limit.0 + (self.part(*value) * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // Asked for bold lines, and then for light ones between them, which are not drawn.
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks(hint.max_num_points()) }
    }

    fn range(&self) -> Range<f64> {
        self.min..self.max
    }
}

impl ValueFormatter<f64> for Scale {
    fn format(value: &f64) -> String {
        short(*value)
    }

    fn format_ext(&self, value: &f64) -> String {
        short(*value)
    }
}

/// `0.05`, `20`, `1.5e-6`: as short as it can be said.
fn short(x: f64) -> String {
    let text = significant(x, 3);
    match text.split_once('e') {
        Some((digits, exponent)) => format!("{}e{exponent}", trimmed(digits)),
        None => trimmed(&text).to_string(),
    }
}

fn trimmed(digits: &str) -> &str {
    if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_round_and_few() {
        let scale = |min: f64, max: f64, log| Scale { min, max, log, whole: false, across: true };
        assert_eq!(scale(0.0, 10.4, false).ticks(6), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(scale(0.9, 120.0, true).ticks(7), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        assert_eq!(scale(0.001, 0.9, true).ticks(7), [0.001, 0.01, 0.1], "close labels would touch");
        let upwards = Scale { across: false, ..scale(0.001, 0.9, true) };
        assert_eq!(upwards.ticks(7).len(), 6, "above each other they do not");
        assert!(scale(1e-9, 1e9, true).ticks(6).len() <= 6);
        assert_eq!([20.0, 0.05, 1.5e-6, 1e7].map(short), ["20", "0.05", "1.5e-6", "1e7"]);
    }

    #[test]
    fn a_plot_is_plain_svg_and_leaves_out_what_is_no_number() {
        let series = Series {
            points: vec![(1.0, 2.0), (2.0, f64::NAN), (f64::INFINITY, 3.0), (3.0, 4.0)],
            labels: vec!["<a&b>".into()],
            line: true,
            markers: true,
            ..Series::default()
        };
        let plot = Plot { alt: "\"x\" <y>".into(), series: vec![series], ..Plot::default() };
        let svg = plot.svg().unwrap();
        assert!(
            svg.starts_with("<svg viewBox=\"0 0 720 500\" role=\"img\" aria-label=\"&quot;x&quot; &lt;y&gt;\">"),
            "{svg}"
        );
        assert_eq!(svg.matches("<circle").count(), 2, "{svg}");
        assert!(svg.contains("&lt;a&amp;b&gt;") && !svg.contains("NaN") && !svg.contains("http"), "{svg}");
        assert_eq!(plot.svg().unwrap(), svg);
        assert_eq!(Plot::default().svg().unwrap(), "");
        let one = Series { points: vec![(0.0, 0.0)], markers: true, ..Series::default() };
        assert!(Plot { series: vec![one], ..Plot::default() }.svg().unwrap().contains("<circle"));
    }
}

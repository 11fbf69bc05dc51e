//! Reports as a page: one file that needs nothing else, neither a network nor scripts, on a telephone as on a wide screen.
//!
//! A page of one report shows all of it; of several it shows them side by side, and each by itself below. Equal reports give
//! equal bytes.

mod colour;
mod escape;
mod layers;
mod plot;
mod provenance;
mod quality;
mod ranks;
mod spectra;
mod training;

use super::compare::{Comparison, Entry, letter, value};
use super::format::{fraction, percent};
use super::table::{calibration, keep, size_cells};
use anyhow::Result;
use escape::{escape, table};
use plot::{GLYPHS, Plot};

const STYLE: &str = include_str!("style.css");

/// How every page of softlm's begins, and nothing else does.
pub const MARK: &str =
    "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n<meta name=\"generator\" content=\"softlm\">";

/// The page of one report or more.
///
/// # Errors
/// If a plot cannot be drawn, which no report makes happen.
pub fn page(entries: &[Entry]) -> Result<String> {
    let comparison = Comparison::new(entries);
    let title = match entries {
        [one] => {
            let report = &one.report;
            format!("{}, {}, keep {}", report.model.name, report.method, fraction(report.allocation.keep_reached))
        }
        all => format!("{} outputs side by side", all.len()),
    };
    let title = escape(&title);
    // The page says itself that it takes nothing from anywhere.
    let mut out = format!(
        "{MARK}\n<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src \
         data:\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <link rel=\"icon\" href=\"data:,\">\n<style>\n{STYLE}{}</style></head>\n<body><main>\n<h1>{title}</h1>\n",
        colour::rules()
    );
    out += &summary(entries, &comparison);
    if entries.len() > 1 {
        out += &settings(&comparison);
    }
    out += &quality::section(entries, &comparison)?;
    out += &ranks::section(entries, &comparison);
    match entries {
        [one] => out += &of_one(&one.report)?,
        all => {
            out += "<h2>Each by itself</h2>\n";
            for (i, entry) in all.iter().enumerate() {
                let name = escape(&format!("{}: {}", letter(i), entry.name));
                out += &format!("<details><summary>{name}</summary>\n{}</details>\n", of_one(&entry.report)?);
            }
        }
    }
    Ok(out + "</main></body></html>\n")
}

/// What is shown of every report by itself.
fn of_one(report: &super::Report) -> Result<String> {
    Ok(layers::section(report)?
        + &spectra::section(report)?
        + &training::section(report)?
        + &provenance::section(report))
}

fn summary(entries: &[Entry], comparison: &Comparison) -> String {
    let mut out = String::new();
    let title = ["", "parameters", "after", "kept", "bytes", "after", "kept"].map(String::from).to_vec();
    let mut rows = vec![title];
    for (i, entry) in entries.iter().enumerate() {
        let report = &entry.report;
        let name = if entries.len() > 1 { format!("{}, ", letter(i)) } else { String::new() };
        for (part, size) in [("block linears", &report.sizes.linears), ("whole model", &report.sizes.model)] {
            rows.push([vec![format!("{name}{part}")], size_cells(size).to_vec()].concat());
        }
        let calibrated = report.calibration.as_ref().map_or("none: the method needs no text".into(), calibration);
        let rule = format!("{}: {}", report.method, report.paper);
        let mut facts = vec![
            ("Method", rule),
            ("Keep", keep(&report.allocation, &report.recipe)),
            ("Allocation", report.allocation.rule.clone()),
            ("Calibration", calibrated),
        ];
        if entries.len() > 1 {
            facts.truncate(2);
            facts.insert(0, ("Model", report.model.name.clone()));
            out += &format!("<h3>{}</h3>\n", escape(&format!("{}: {}", letter(i), entry.name)));
        }
        for (name, text) in facts {
            out += &format!("<p><b>{name}</b> {}</p>\n", escape(&text));
        }
    }
    for sentence in &comparison.originals {
        out += &format!("<p><b>Not comparable:</b> {}.</p>\n", escape(sentence));
    }
    out + &format!("<h2>Size</h2>\n<div class=\"panel\">{}</div>\n", table(&rows, "", ""))
}

fn settings(comparison: &Comparison) -> String {
    let letters = comparison.reports.iter().map(|summary| summary.letter.clone());
    let mut rows = vec![std::iter::once(String::new()).chain(letters).collect::<Vec<_>>()];
    for setting in &comparison.settings.different {
        rows.push(std::iter::once(setting.key.clone()).chain(setting.values.iter().map(value)).collect());
    }
    let equal: Vec<String> = comparison
        .settings
        .equal
        .iter()
        .filter(|(_, x)| !x.is_null())
        .map(|(k, x)| format!("{k} {}", value(x)))
        .collect();
    let shown = if rows.len() > 1 { table(&rows, "text", "") } else { "<p>All equal.</p>".into() };
    let equal = escape(&equal.join("; "));
    format!(
        "<h2>What was done differently</h2>\n<div class=\"panel\">{shown}<p class=\"dim\">Equal: {equal}</p></div>\n"
    )
}

/// A plot, its key and what there is to say about it; nothing where there is nothing to draw.
fn figure(title: &str, plot: &Plot, key: &[(usize, String)], caption: &str) -> Result<String> {
    let svg = plot.svg()?;
    if svg.is_empty() {
        return Ok(String::new());
    }
    let entry = |(style, name): &(usize, String)| {
        let (colour, glyph) = (style % colour::SERIES.len(), GLYPHS[style % GLYPHS.len()]);
        format!("<span><b class=\"s{colour}\" aria-hidden=\"true\">{glyph}</b> {}</span> ", escape(name))
    };
    let key: String = key.iter().map(entry).collect();
    let key = if key.is_empty() { key } else { format!("<div class=\"key dim\">{}</div>", key.trim_end()) };
    let caption = escape(caption);
    Ok(format!("<figure><h3>{}</h3>{svg}{key}<figcaption>{caption}</figcaption></figure>\n", escape(title)))
}

/// Plots beside each other, if there are any.
fn plots(title: &str, figures: &str) -> String {
    if figures.is_empty() { String::new() } else { format!("<h2>{title}</h2>\n<div class=\"plots\">{figures}</div>\n") }
}

/// `34 of 128×128, 53.1 % kept`
fn kept(before: u64, after: u64) -> String {
    format!("{} kept", percent(super::compare::share(before, after)))
}

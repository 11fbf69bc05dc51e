//! What each linear keeps, as a map of blocks and roles.

use super::colour::{RAMP, class};
use super::escape::escape;
use super::kept;
use crate::report::compare::{Comparison, Entry, letter, share};
use crate::report::format::significant;
use crate::report::grid::{EXPERT, MOST_ROWS, cell, range, roles, short_role};
use crate::report::{LinearReport, Report};

pub(super) fn section(entries: &[Entry], comparison: &Comparison) -> String {
    let maps: String = entries
        .iter()
        .enumerate()
        .map(|(i, entry)| {
            let name = if entries.len() > 1 {
                format!("<h3>{}</h3>", escape(&format!("{}: {}", letter(i), entry.name)))
            } else {
                String::new()
            };
            format!("<div class=\"panel\">{name}{}</div>\n", map(&entry.report))
        })
        .collect();
    if comparison.ranks.roles.is_empty() {
        return String::new();
    }
    let experts = comparison.ranks.roles.iter().any(|role| role.starts_with(EXPERT));
    let experts = if experts { ", <b>e.</b> the least and the most among the experts" } else { "" };
    let scale: String = (0..RAMP.len()).map(|i| format!("<i class=\"k{i}\"></i>")).collect();
    format!(
        "<h2>What each linear keeps</h2>\n<p class=\"dim\">Share of the parameters: 0 % <span class=\"scale\" aria-hidden=\"true\">{scale}</span> \
         100 %. A number is the rank of the two factors, <b>w</b> a dense matrix with that many channels or dimensions, ■ dense \
         and unchanged{experts}. Each cell's title says more.</p>\n<div class=\"maps\">{maps}</div>\n"
    )
}

/// A row per block, a column per role.
fn map(report: &Report) -> String {
    let roles = roles(&report.linears);
    let head: String = roles.iter().map(|role| format!("<th scope=\"col\">{}</th>", escape(role))).collect();
    let mut out = format!("<div class=\"scroll\"><table class=\"map\"><tr><th scope=\"col\">block</th>{head}</tr>\n");
    let mut blocks = report.linears.chunk_by(|a, b| a.id.block == b.id.block);
    for block in blocks.by_ref().take(MOST_ROWS) {
        out += &format!("<tr><th scope=\"row\">{}</th>", block[0].id.block);
        for role in &roles {
            let of_role: Vec<&LinearReport> = block.iter().filter(|linear| short_role(linear) == *role).collect();
            out += &map_cell(&of_role);
        }
        out += "</tr>\n";
    }
    out += "</table></div>";
    match blocks.count() {
        0 => out,
        more => out + &format!("<p class=\"dim\">{more} more blocks are not shown.</p>"),
    }
}

fn map_cell(linears: &[&LinearReport]) -> String {
    let Some(first) = linears.first() else { return "<td></td>".into() };
    let sum = |of: fn(&LinearReport) -> u64| linears.iter().fold(0u64, |sum, linear| sum.saturating_add(of(linear)));
    let (before, after) = (sum(|l| l.params_before), sum(|l| l.params_after));
    let [out, input] = first.shape;
    let name = if linears.len() == 1 { first.id.to_string() } else { format!("{} experts", linears.len()) };
    let stored = range(linears.iter().map(|linear| cell(linear)).collect());
    let worst = linears.iter().filter_map(|linear| linear.heldout_error).reduce(f64::max);
    let error = worst.map(|error| format!(", held-out error {}", significant(error, 3))).unwrap_or_default();
    let title = format!("{name}, {out}×{input}: {stored}, {}{error}", kept(before, after));
    let (class, title) = (class(share(before, after)), escape(&title));
    // What is whole needs no number, and a narrow screen has no room for the word.
    let stored = if stored == "dense" { "■".to_string() } else { escape(&stored) };
    format!("<td class=\"{class}\" title=\"{title}\" aria-label=\"{title}\">{stored}</td>")
}

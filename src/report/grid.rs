//! What became of each linear: one line per block, or one per linear.

use super::format::{percent, seconds, significant};
use super::layout::columns;
use super::{Form, LinearReport, Report};
use crate::visible::visible;

/// Order of columns; roles not listed come after in the order in which they occur.
const ROLES: [&str; 7] = ["q", "k", "v", "o", "gate", "up", "down"];

/// In front of the role of an expert's linear.
pub(super) const EXPERT: &str = "e.";

/// Rows that are shown at most: models have some hundred blocks, but a report may list anything.
pub(super) const MOST_ROWS: usize = 1024;

/// Blocks that were treated alike, and how.
pub(super) struct Row {
    /// `3`, or `0-7` for a run of equal blocks.
    pub blocks: String,
    /// One cell per role of the grid.
    pub cells: Vec<String>,
    /// Share of the parameters kept.
    pub kept: f64,
    /// Largest held-out error among the linears.
    pub worst: Option<f64>,
}

/// Ranks by block and role.
pub(super) struct Grid {
    /// Short role names: `q`, `down`.
    pub roles: Vec<String>,
    /// In block order; neighbours with equal cells are one row.
    pub rows: Vec<Row>,
    /// Linears that are not among them.
    left_out: usize,
}

impl Grid {
    pub fn new(linears: &[LinearReport]) -> Self {
        let roles = roles(linears);
        let mut rows: Vec<(Run, Vec<String>)> = Vec::new();
        let mut shown = 0;
        for linears in linears.chunk_by(|a, b| a.id.block == b.id.block) {
            let mut of_role = vec![Vec::new(); roles.len()];
            for linear in linears {
                if let Some(at) = roles.iter().position(|role| *role == short_role(linear)) {
                    of_role[at].push(cell(linear));
                }
            }
            let here: usize = of_role.iter().map(Vec::len).sum();
            let cells: Vec<String> = of_role.into_iter().map(range).collect();
            let run = Run::new(linears);
            let full = rows.len() == MOST_ROWS;
            match rows.last_mut() {
                Some((last, same)) if *same == cells => last.extend(run),
                _ if full => break,
                _ => rows.push((run, cells)),
            }
            shown += here;
        }
        let left_out = linears.len() - shown;
        Self { roles, rows: rows.into_iter().map(|(run, cells)| run.row(cells)).collect(), left_out }
    }

    /// Title and rows for printing.
    pub fn cells(&self) -> Vec<Vec<String>> {
        let has_errors = self.rows.iter().any(|row| row.worst.is_some());
        let mut title = vec!["block".to_string()];
        title.extend(self.roles.iter().cloned());
        title.push("kept".into());
        if has_errors {
            title.push("error".into());
        }
        let mut rows = vec![title];
        for row in &self.rows {
            let mut line = vec![row.blocks.clone()];
            line.extend(row.cells.iter().map(|cell| if cell.is_empty() { "-".into() } else { cell.clone() }));
            line.push(percent(row.kept));
            if has_errors {
                line.push(row.worst.map_or("-".into(), |worst| significant(worst, 3)));
            }
            rows.push(line);
        }
        rows
    }

    /// What the cells mean, only as far as it is needed.
    pub fn legend(&self) -> String {
        let any = |test: &dyn Fn(&str) -> bool| self.rows.iter().flat_map(|row| &row.cells).any(|cell| test(cell));
        let mut parts: Vec<String> = Vec::new();
        if any(&|cell| cell.starts_with(|c: char| c.is_ascii_digit())) {
            parts.push("number: rank of the two factors".into());
        }
        if self.roles.iter().any(|role| role.starts_with(EXPERT)) {
            parts.push("e.: least and most among the experts".into());
        }
        if any(&|cell| cell == "dense") {
            parts.push("dense: unchanged".into());
        }
        if any(&|cell| cell.starts_with('w')) {
            parts.push("w: dense, with that many channels, or dimensions of all heads".into());
        }
        if self.rows.iter().any(|row| row.worst.is_some()) {
            parts.push("error: worst ‖(W-W')X‖²/‖WX‖² of the row, on held-out windows".into());
        }
        if self.left_out > 0 {
            parts.push(format!("{} more linears are not shown", self.left_out));
        }
        parts.join("; ")
    }
}

/// Consecutive blocks.
struct Run {
    first: usize,
    last: usize,
    before: u64,
    after: u64,
    worst: Option<f64>,
}

impl Run {
    fn new(linears: &[LinearReport]) -> Self {
        let block = linears.first().map_or(0, |linear| linear.id.block);
        Self {
            first: block,
            last: block,
            before: linears.iter().fold(0, |sum, linear| sum.saturating_add(linear.params_before)),
            after: linears.iter().fold(0, |sum, linear| sum.saturating_add(linear.params_after)),
            worst: linears.iter().filter_map(|linear| linear.heldout_error).reduce(f64::max),
        }
    }

    fn extend(&mut self, next: Run) {
        self.last = next.last;
        self.before = self.before.saturating_add(next.before);
        self.after = self.after.saturating_add(next.after);
        self.worst = [self.worst, next.worst].into_iter().flatten().reduce(f64::max);
    }

    fn row(self, cells: Vec<String>) -> Row {
        let blocks = match self.first == self.last {
            true => self.first.to_string(),
            false => format!("{}-{}", self.first, self.last),
        };
        Row { blocks, cells, kept: self.after as f64 / self.before.max(1) as f64, worst: self.worst }
    }
}

/// Every role that occurs, in the order of columns.
pub(super) fn roles<'a>(linears: impl IntoIterator<Item = &'a LinearReport>) -> Vec<String> {
    let mut roles: Vec<String> = Vec::new();
    for linear in linears {
        let role = short_role(linear);
        if !roles.contains(&role) {
            roles.push(role);
        }
    }
    roles.sort_by_key(|role| role_order(role));
    roles
}

/// `q`, `down`; the experts of a block share `e.gate`, `e.up` and `e.down`.
pub(super) fn short_role(linear: &LinearReport) -> String {
    let role = linear.id.role;
    let expert = if role.expert().is_some() { EXPERT } else { "" };
    format!("{expert}{}", role.short_name())
}

/// The least and the most of several cells, which is the same for one.
pub(super) fn range(mut cells: Vec<String>) -> String {
    // Numbers in their order, dense behind them.
    cells.sort_by_key(|cell| (cell.parse().unwrap_or(usize::MAX), cell.clone()));
    match (cells.first(), cells.last()) {
        (Some(least), Some(most)) if least != most => format!("{least}-{most}"),
        (Some(all), _) => all.clone(),
        (None, _) => String::new(),
    }
}

fn role_order(role: &str) -> usize {
    ROLES.iter().position(|&known| known == role).unwrap_or(ROLES.len())
}

/// `48`, `dense`, or `w280` for the channels a pruned linear is left with.
pub(super) fn cell(linear: &LinearReport) -> String {
    match (linear.rank, linear.pruned_shape) {
        (Some(rank), _) => rank.to_string(),
        (None, Some(shape)) => {
            // down loses input channels, gate and up lose output channels
            let kept = if shape[1] < linear.shape[1] { shape[1] } else { shape[0] };
            format!("w{kept}")
        }
        (None, None) => name(linear.form).to_string(),
    }
}

fn name(form: Form) -> &'static str {
    match form {
        Form::Dense => "dense",
        Form::LowRank => "low-rank",
        Form::Pruned => "pruned",
    }
}

/// `q, o 4096×4096; k, v 1024×4096`, or nothing when blocks differ.
pub(super) fn shapes(report: &Report) -> Option<String> {
    let grid = Grid::new(&report.linears);
    let mut groups: Vec<([usize; 2], Vec<&str>)> = Vec::new();
    for role in &grid.roles {
        let mut of_role = report.linears.iter().filter(|linear| short_role(linear) == *role).map(|linear| linear.shape);
        let shape = of_role.next()?;
        if of_role.any(|other| other != shape) {
            return None;
        }
        match groups.iter_mut().find(|(known, _)| *known == shape) {
            Some((_, roles)) => roles.push(role),
            None => groups.push((shape, vec![role])),
        }
    }
    let parts: Vec<String> =
        groups.iter().map(|([out, input], roles)| format!("{} {out}×{input}", roles.join(", "))).collect();
    Some(parts.join("; "))
}

/// One line per linear: shape (out×in), what is stored, share of the parameters kept, share of the method's
/// objective kept, held-out error, allocation weight, the KL in nats that it is expected to cost alone (what was predicted,
/// times the weight, which was measured), time. Notes stand below their linear.
pub fn details(report: &Report) -> String {
    let title = ["linear", "out×in", "stored", "kept", "energy", "error", "weight", "KL", "time"];
    let mut rows = vec![title.map(String::from).to_vec()];
    let optional = |x: Option<f64>, digits: usize| x.map_or("-".to_string(), |x| significant(x, digits));
    for linear in &report.linears {
        let stored = match (linear.rank, linear.pruned_shape) {
            (Some(rank), _) => format!("rank {rank}"),
            (None, Some([out, input])) => format!("{out}×{input}"),
            (None, None) => name(linear.form).to_string(),
        };
        rows.push(vec![
            linear.id.to_string(),
            format!("{}×{}", linear.shape[0], linear.shape[1]),
            stored,
            percent(linear.params_after as f64 / linear.params_before.max(1) as f64),
            optional(linear.energy_kept, 4),
            optional(linear.heldout_error, 3),
            optional(linear.weight, 3),
            optional(expected(linear), 3),
            seconds(linear.seconds),
        ]);
    }
    let mut lines = columns(&rows).into_iter();
    let mut out = lines.next().unwrap_or_default() + "\n";
    for (line, linear) in lines.zip(&report.linears) {
        out.push_str(&line);
        out.push('\n');
        if let Some(note) = &linear.note {
            out.push_str(&format!("  note: {}\n", visible(note)));
        }
    }
    let expected: Vec<f64> = report.linears.iter().filter_map(expected).collect();
    if !expected.is_empty() {
        let total = significant(expected.iter().sum(), 3);
        out.push_str(&format!("  The KL of all parts, each alone, is expected to be {total} nats.\n"));
    }
    out
}

/// The KL that a linear's form is expected to cost.
pub(super) fn expected(linear: &LinearReport) -> Option<f64> {
    Some(linear.predicted_loss? * linear.weight?)
}

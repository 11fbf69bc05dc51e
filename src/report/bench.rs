//! Speed: what was measured, and a table of it.

use super::Machine;
use super::format::{bytes, count, percent, seconds, significant};
use super::layout::{Style, wrap};
use super::table::titled;
use crate::visible::visible;
use serde::Serialize;

/// A speed-up below this is none.
const FASTER: f64 = 1.05;
/// A share of the bandwidth below this leaves time for something else than reading weights.
const BOUND_BY_MEMORY: f64 = 0.5;

/// What is measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BenchOptions {
    /// Sequences at once.
    pub batches: Vec<usize>,
    /// Tokens of a prompt.
    pub contexts: Vec<usize>,
    /// Tokens written behind it.
    pub tokens: usize,
    /// Times that each is measured.
    pub repeats: usize,
    /// Seconds after which no measurement is repeated; one that takes longer is done once.
    pub seconds: f64,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self { batches: vec![1, 8], contexts: vec![128, 512, 2048], tokens: 32, repeats: 5, seconds: 20.0 }
    }
}

/// Times of one thing, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Timing {
    /// The middle one.
    pub median: f64,
    /// The fastest.
    pub least: f64,
    /// The slowest.
    pub most: f64,
    /// How many there are.
    pub repeats: usize,
}

impl Timing {
    /// Of times in any order, at least one.
    pub fn of(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        let (n, middle) = (times.len(), times.len() / 2);
        let median = if n.is_multiple_of(2) { (times[middle - 1] + times[middle]) / 2.0 } else { times[middle] };
        Self { median, least: times[0], most: times[n - 1], repeats: n }
    }
}

/// One batch size and context.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cell {
    /// Sequences at once.
    pub batch: usize,
    /// Tokens of each prompt.
    pub context: usize,
    /// From the prompts to the logits of their first tokens.
    pub first_token: Timing,
    /// Tokens of prompts per second.
    pub prefill_tokens_per_second: f64,
    /// Operations with weights per second, as a share of the machine's rate of products; those of attention are not counted.
    pub prefill_of_product_rate: f64,
    /// A step: one token of each sequence.
    pub step: Timing,
    /// Tokens written per second, of all sequences together.
    pub decode_tokens_per_second: f64,
    /// Bytes of weights and cache that a step reads.
    pub step_bytes: u64,
    /// These per second, as a share of what the machine reads from memory; absent on a GPU.
    pub decode_of_bandwidth: Option<f64>,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BenchedModel {
    /// As the user named it.
    pub model: String,
    /// Numbers in the matrices that every token is multiplied with: block linears and head.
    pub weights: u64,
    /// Bytes that they take in memory.
    pub weight_bytes: u64,
    /// Largest resident memory of the process with this model alone, over all cells; absent where the system does not tell.
    pub peak_rss_bytes: Option<u64>,
    /// In the order of batch sizes and contexts.
    pub cells: Vec<Cell>,
}

/// All of it; as JSON what `softlm bench --json` prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BenchReport {
    /// Version of this format.
    pub schema: u32,
    /// What ran it.
    pub machine: Machine,
    /// Multiplications and additions per second in f32 products.
    pub product_rate: f64,
    /// Bytes per second read from memory.
    pub bandwidth: f64,
    /// What was asked for.
    pub options: BenchOptions,
    /// The model, and what it was compared with.
    pub models: Vec<BenchedModel>,
    /// Of each cell the model's speed divided by the other's; empty without another.
    pub speedup: Vec<Speedup>,
}

/// How much faster one model is than another.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Speedup {
    /// Reading.
    pub prefill: f64,
    /// Writing.
    pub decode: f64,
}

/// The table of `softlm bench`: what was measured, then prefill and decode, each beside what the machine can do.
pub fn bench_table(report: &BenchReport, limit: usize, color: bool) -> String {
    let style = Style { color };
    let mut out = Vec::new();
    for (name, model) in ["model    ", "base     "].into_iter().zip(&report.models) {
        out.extend(wrap(name, &of_model(model), limit));
    }
    let m = &report.machine;
    let machine = format!(
        "{}, {} threads, {}: {} operations/s in f32 products, {}/s from memory",
        visible(&m.cpu),
        m.threads,
        visible(&m.device),
        count(report.product_rate as u64),
        bytes(report.bandwidth as u64)
    );
    out.extend(wrap("machine  ", &machine, limit));
    out.push(String::new());
    out.extend(titled(&prefill(report), style));
    out.push(String::new());
    out.extend(titled(&decode(report), style));
    let o = &report.options;
    let notes = format!(
        "{} tokens per second; medians and, ±, half the distance from the fastest to the slowest of up to {} measurements after one to warm up, models \
         in turns; decode: mean of {} steps; shares: operations with weights of the product rate, bytes of weights and cache of \
         the bandwidth",
        if report.models.len() > 1 { "first token and step in time, /s in" } else { "rates in" },
        o.repeats,
        o.tokens
    );
    out.extend(wrap("  ", &notes, limit).iter().map(|line| style.dim(line)));
    out.extend(verdict(report).iter().flat_map(|text| wrap("  ", text, limit)));
    out.join("\n") + "\n"
}

fn of_model(model: &BenchedModel) -> String {
    let peak = model.peak_rss_bytes.map(|peak| format!(", peak memory {}", bytes(peak))).unwrap_or_default();
    let (weights, size) = (count(model.weights), bytes(model.weight_bytes));
    format!("{}: {weights} weights for every token, {size} in memory{peak}", visible(&model.model))
}

/// `batch x context`
fn size(cell: &Cell) -> String {
    format!("{} x {}", cell.batch, cell.context)
}

fn spread(timing: &Timing) -> String {
    let off = 0.5 * (timing.most - timing.least) / timing.median;
    if timing.repeats > 1 { format!(" ± {:.0} %", 100.0 * off) } else { String::new() }
}

/// A cell of every model side by side, from the other one to the model.
fn rows(report: &BenchReport) -> impl Iterator<Item = (usize, Vec<&Cell>)> {
    let cells = report.models.first().map_or(0, |model| model.cells.len());
    (0..cells).map(|i| (i, report.models.iter().rev().map(|model| &model.cells[i]).collect()))
}

fn table(
    report: &BenchReport,
    title: [&str; 4],
    time: &dyn Fn(&Cell) -> String,
    rate: &dyn Fn(&Cell) -> String,
    share: &dyn Fn(&Cell) -> String,
    faster: &dyn Fn(usize) -> f64,
) -> Vec<Vec<String>> {
    let compared = report.models.len() > 1;
    let mut first = vec![title[0].to_string()];
    if compared {
        first.extend(["base", "model", "base/s", "model/s"].map(String::from));
    } else {
        first.extend(title[1..3].iter().map(|column| column.to_string()));
    }
    if compared {
        first.push("faster".into());
    }
    first.push(title[3].to_string());
    let mut rows_out = vec![first];
    for (i, cells) in rows(report) {
        let mut row = vec![size(cells[0])];
        row.extend(cells.iter().map(|cell| time(cell)));
        row.extend(cells.iter().map(|cell| rate(cell)));
        if compared {
            row.push(format!("{}×", significant(faster(i), 3)));
        }
        row.extend(cells.last().map(|cell| share(cell)));
        rows_out.push(row);
    }
    rows_out
}

fn prefill(report: &BenchReport) -> Vec<Vec<String>> {
    table(
        report,
        ["prefill", "first token", "tokens/s", "of rate"],
        &|cell| seconds(cell.first_token.median) + &spread(&cell.first_token),
        &|cell| significant(cell.prefill_tokens_per_second, 3),
        &|cell| percent(cell.prefill_of_product_rate),
        &|i| report.speedup[i].prefill,
    )
}

fn decode(report: &BenchReport) -> Vec<Vec<String>> {
    table(
        report,
        ["decode", "step", "tokens/s", "of bandwidth"],
        &|cell| seconds(cell.step.median) + &spread(&cell.step),
        &|cell| significant(cell.decode_tokens_per_second, 3),
        &|cell| cell.decode_of_bandwidth.map_or("-".into(), percent),
        &|i| report.speedup[i].decode,
    )
}

/// What to make of it where compression did not pay.
fn verdict(report: &BenchReport) -> Vec<String> {
    let [model, base] = &report.models[..] else { return Vec::new() };
    let mut out = Vec::new();
    let share = model.weights as f64 / base.weights as f64;
    let slow = |faster: &dyn Fn(usize) -> f64| (0..report.speedup.len()).filter(|&i| faster(i) < FASTER).count();
    let prefill = slow(&|i| report.speedup[i].prefill);
    let decode = slow(&|i| report.speedup[i].decode);
    let all = report.speedup.len();
    for (what, slow) in [("prefill", prefill), ("decode", decode)] {
        if slow * 2 > all {
            let reached = model.cells.iter().filter_map(|cell| cell.decode_of_bandwidth).fold(0.0, f64::max);
            let why = if what == "decode" && reached < BOUND_BY_MEMORY {
                "the model is too small for its weights to be what takes the time"
            } else {
                "two thin products cost as much as the one that they replace at this rank"
            };
            out.push(format!(
                "{what} is not faster, with {} of the weights, in {slow} of {all} cells: {why}",
                percent(share)
            ));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        let timing = Timing::of(vec![3.0, 1.0, 2.0]);
        assert_eq!((timing.median, timing.least, timing.most, timing.repeats), (2.0, 1.0, 3.0, 3));
        assert_eq!(Timing::of(vec![4.0, 1.0]).median, 2.5);
        assert_eq!(Timing::of(vec![4.0]).most, 4.0);
    }
}

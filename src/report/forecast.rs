//! What a run would do, known before it: sizes, memory and time.

use super::format::{count, fraction, percent, seconds};
use super::layout::{Style, wrap};
use super::table::{size_cells, titled};
use super::{Machine, MemoryEstimate, Size};
use crate::visible::visible;
use serde::Serialize;

/// As JSON what `softlm plan --json` prints.
#[derive(Debug, Clone, Serialize)]
pub struct Forecast {
    /// Version of this format.
    pub schema: u32,
    /// The model, as the user named it.
    pub model: String,
    /// Its family.
    pub family: String,
    /// Name of the method.
    pub method: String,
    /// Number of blocks.
    pub blocks: usize,
    /// Fraction of the linears' parameters that the plan keeps.
    pub keep: f64,
    /// The block linears, their bytes in the type that factors are stored in.
    pub linears: Size,
    /// The whole model.
    pub whole: Size,
    /// Linears that stay as they are because of their shapes alone, by role.
    pub dense: Vec<StaysDense>,
    /// Windows of calibration text that are asked for.
    pub calibration_windows: usize,
    /// Tokens of each, if the text is long enough.
    pub window: usize,
    /// Memory.
    pub memory: MemoryEstimate,
    /// What would run it.
    pub machine: Machine,
    /// Multiplications and additions per second in f32 products, measured.
    pub product_rate: f64,
    /// Expected seconds of each stage.
    pub stages: Vec<StageForecast>,
    /// Their sum.
    pub seconds: f64,
    /// Tokens of evaluation among that; 0 where only the text, which is not read, says how many there are.
    pub evaluation_tokens: u64,
}

/// Linears of a role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StaysDense {
    /// As in `attn.q`.
    pub role: String,
    /// How many stay.
    pub count: usize,
    /// How many there are.
    pub of: usize,
}

/// A stage as the report of a run names it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageForecast {
    /// Its name.
    pub name: String,
    /// Expected time.
    pub seconds: f64,
}

/// The table of `softlm plan`.
pub fn forecast_table(forecast: &Forecast, limit: usize, color: bool) -> String {
    let style = Style { color };
    let mut out = Vec::new();
    let dense = match forecast.dense.is_empty() {
        true => "none of the block linears by its shape alone".to_string(),
        false => {
            let of = |dense: &StaysDense| format!("{} {} of {}", visible(&dense.role), dense.count, dense.of);
            forecast.dense.iter().map(of).collect::<Vec<_>>().join(", ")
        }
    };
    for (name, text) in [
        ("model", format!("{} ({}), {} blocks", visible(&forecast.model), visible(&forecast.family), forecast.blocks)),
        ("method", format!("{}, keep {}", forecast.method, fraction(forecast.keep))),
        ("stay dense", format!("{dense}; embeddings, head and norms always")),
        ("memory", forecast.memory.describe()),
    ] {
        out.extend(wrap(&format!("{name:<13}"), &text, limit));
    }
    out.push(String::new());
    let title = ["size", "parameters", "after", "kept", "bytes", "after", "kept"].map(String::from).to_vec();
    let mut rows = vec![title];
    for (name, size) in [("block linears", &forecast.linears), ("whole model", &forecast.whole)] {
        rows.push([vec![name.to_string()], size_cells(size).to_vec()].concat());
    }
    out.extend(titled(&rows, style));
    out.push(String::new());
    let mut rows = vec![["time", "about", ""].map(String::from).to_vec()];
    let shown = |s: f64| if s < 1.0 { "below 1 s".to_string() } else { seconds(s.round()) };
    for stage in &forecast.stages {
        let share = percent(stage.seconds / forecast.seconds.max(1e-9));
        rows.push(vec![stage.name.clone(), shown(stage.seconds), share]);
    }
    rows.push(vec!["all".into(), shown(forecast.seconds), String::new()]);
    out.extend(titled(&rows, style));
    let evaluation = match forecast.evaluation_tokens {
        0 => "without evaluation, which is as long as its text (--max-windows bounds it)".to_string(),
        tokens => format!("evaluation on {} tokens", count(tokens)),
    };
    let m = &forecast.machine;
    let note = format!(
        "from shapes and rates: {} windows of {} tokens, {evaluation}; {}, {} threads, {}: {} operations/s in f32 products now",
        forecast.calibration_windows,
        forecast.window,
        visible(&m.cpu),
        m.threads,
        visible(&m.device),
        count(forecast.product_rate as u64)
    );
    out.extend(wrap("  ", &note, limit).iter().map(|line| style.dim(line)));
    out.join("\n") + "\n"
}

//! What was done, how good the result still is, and how that was measured: `report.json` and its views.

mod format;
mod layout;
mod grid;
mod evaluation;
mod encoders;
mod tasks;
mod table;
mod card;
mod provenance;
mod read;
mod bench;
mod compare;
mod html;
mod forecast;

pub use crate::checkpoint::{FileHash, Identity};
pub use bench::{BenchOptions, BenchReport, BenchedModel, Cell, Speedup, Timing, bench_table};
pub use card::card;
pub use compare::{
    Comparable, Comparison, CorpusQuality, Difference, Entry, Measured, RankComparison, Setting, Settings, Summary,
    TaskMeasured, TaskQuality, compare_table,
};
pub use encoders::{fidelity_table, glue_table};
pub use evaluation::{eval_json, evaluation_table, protocol};
pub use forecast::{Forecast, StageForecast, StaysDense, forecast_table};
pub use format::{bytes, count, grouped, percent, seconds, significant, with_error};
pub use grid::details;
pub use html::{MARK as PAGE_MARK, page};
pub use provenance::UnusedTensors;
pub use table::table;
pub use tasks::task_table;

use crate::checkpoint::Kind;
use crate::eval::{Evaluation, Fidelity, TaskResult};
use crate::learn::{HealReport, SpectralReport};
use crate::model::{LinearId, Output};
use serde::{Deserialize, Serialize};

/// Version of `report.json`.
pub const SCHEMA: u32 = 1;

/// `report.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of this format.
    pub schema: u32,
    /// Version of softlm.
    pub softlm: String,
    /// Name of the method.
    pub method: String,
    /// Title and arXiv id of its paper.
    pub paper: String,
    /// Where the weights came from.
    pub model: ModelInfo,
    /// Hashes of the output's own files; version 0.1 did not record them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Identity>,
    /// SHA-256 over everything that decides the output and this report, but for time and memory; version 0.2.0 did not
    /// record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// What the method was shown; absent when it needs no text.
    pub calibration: Option<CalibrationInfo>,
    /// The labelled examples that were trained on, if any were.
    #[serde(default)]
    pub labels: Option<LabelsInfo>,
    /// The text that was trained on, if it was another than that of calibration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training_text: Option<TrainingTextInfo>,
    /// How the budget was spent.
    pub allocation: AllocationInfo,
    /// Sizes before and after, counted from what is stored.
    pub sizes: Sizes,
    /// One entry per linear, in block order.
    pub linears: Vec<LinearReport>,
    /// How a learned method was trained; absent for the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning: Option<SpectralReport>,
    /// What `--heal` did after that; absent without it. Everything in `linears` was measured before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healing: Option<HealReport>,
    /// One entry per corpus.
    pub evaluation: Vec<BeforeAfter>,
    /// The same for encoders that predict no tokens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fidelity: Vec<Fidelity>,
    /// One entry per zero-shot task.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskResult>,
    /// Time and memory.
    pub cost: Cost,
    /// What ran it.
    pub machine: Machine,
    /// The effective recipe, every default filled in.
    pub recipe: serde_json::Value,
    /// Things the user should know.
    pub notes: Vec<String>,
}

/// The model that was compressed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// As the user named it.
    pub name: String,
    /// `model_type`.
    pub family: String,
    /// What it says about a text, if it is an encoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder: Option<Output>,
    /// Commit on the hub, if it came from there.
    pub revision: Option<String>,
    /// What that name stands for; version 0.1 did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// Hashes of its files: `weights` and, from version 0.2 on, `files`.
    #[serde(flatten)]
    pub identity: Identity,
    /// Its licence, as far as its folder states one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<Licence>,
    /// Whether its folder describes a pipeline of sentence-transformers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sentence_transformers: bool,
    /// Tensors that nothing reads, if there are such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unused_tensors: Option<UnusedTensors>,
}

/// What a model's folder says about its licence.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Licence {
    /// As the hub knows it: `apache-2.0`, `gemma`, `other`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What it is called, if the hub does not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where it is: an address, or a file of the folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// Files with its text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
}

/// The calibration text and what was taken of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CalibrationInfo {
    /// Each corpus: name, where it came from, sha256 of its text.
    pub corpora: Vec<CorpusInfo>,
    /// Tokens per window.
    pub window: usize,
    /// Windows used for the statistics.
    pub windows: usize,
    /// Tokens used for the statistics.
    pub tokens: usize,
    /// Whether each window begins with the tokenizer's BOS, those kept apart too.
    #[serde(default)]
    pub bos: bool,
    /// Windows kept apart to measure output errors on.
    pub heldout_windows: usize,
    /// `first` or `random`.
    pub sampling: String,
    /// Seed of the random choice.
    pub seed: u64,
    /// Which activations were seen: `dense`, `blocks` or `sequential`.
    pub inputs: String,
}

/// Text that was trained on and is not that of calibration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingTextInfo {
    /// Each corpus: name, where it came from, sha256 of its text.
    pub corpora: Vec<CorpusInfo>,
    /// Tokens per window.
    pub window: usize,
    /// Windows to train on.
    pub windows: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Windows to judge by.
    pub heldout_windows: usize,
}

/// Labelled examples and how they were used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LabelsInfo {
    /// `sst2`, `mrpc` or `stsb`.
    pub task: String,
    /// Path, or data set, commit and file.
    pub origin: String,
    /// SHA-256 of that file.
    pub sha256: String,
    /// Examples to train on.
    pub train: usize,
    /// Examples kept apart to judge by.
    pub heldout: usize,
    /// Tokens per text or pair at most, special ones included.
    pub max_length: usize,
}

/// A text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CorpusInfo {
    /// Name used for it everywhere.
    pub name: String,
    /// Built-in, path or hub id.
    pub origin: String,
    /// sha256 of the text.
    pub sha256: String,
}

/// How the parameter budget was spent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AllocationInfo {
    /// The rule, in a sentence.
    pub rule: String,
    /// Fraction of the linears' parameters asked for.
    pub keep_asked: f64,
    /// Fraction reached, never more.
    pub keep_reached: f64,
    /// What was tried to find a size that is good enough.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trials: Vec<Trial>,
}

/// A size that was tried.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Fraction of the linears' parameters.
    pub keep: f64,
    /// By how much of the original's perplexity that on the worst corpus is above it.
    #[serde(with = "crate::number")]
    pub increase: f64,
}

/// Parameters and bytes of one thing before and after.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Size {
    /// Numbers stored before.
    pub params_before: u64,
    /// Numbers stored after.
    pub params_after: u64,
    /// Bytes before.
    pub bytes_before: u64,
    /// Bytes after.
    pub bytes_after: u64,
}

/// Sizes of the compressed part and of the whole.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sizes {
    /// Weights of the block linears; what `--keep` speaks of. Biases are not counted.
    pub linears: Size,
    /// All tensors of the checkpoint.
    pub model: Size,
}

/// One linear.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinearReport {
    /// `3.mlp.down`.
    pub id: LinearId,
    /// Name in the checkpoint, without `.weight`.
    pub name: String,
    /// (out, in) before.
    pub shape: [usize; 2],
    /// How it is stored.
    pub form: Form,
    /// Rank of the factors.
    pub rank: Option<usize>,
    /// (out, in) after pruning.
    pub pruned_shape: Option<[usize; 2]>,
    /// Weights stored before and after.
    pub params_before: u64,
    /// See `params_before`.
    pub params_after: u64,
    /// Share of the method's own objective that the kept components carry, 0..1.
    #[serde(default, with = "crate::number::optional")]
    pub energy_kept: Option<f64>,
    /// ‖(W − W')X‖² / ‖WX‖² on held-out inputs X.
    #[serde(default, with = "crate::number::optional")]
    pub heldout_error: Option<f64>,
    /// Loss that the form was predicted to cost the model, in nats per token where gradients weighed it; of linears that take
    /// a form together each has its share.
    #[serde(default, with = "crate::number::optional", skip_serializing_if = "Option::is_none")]
    pub predicted_loss: Option<f64>,
    /// Cross-linear weight used by the allocation.
    #[serde(default, with = "crate::number::optional")]
    pub weight: Option<f64>,
    /// A fallback, damping or other peculiarity.
    pub note: Option<String>,
    /// Seconds spent on it.
    pub seconds: f64,
    /// What a learned method made of its components.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learned: Option<LearnedSpectrum>,
}

/// How a linear is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// As one matrix of its own shape.
    Dense,
    /// As two factors.
    LowRank,
    /// As one matrix with fewer inputs or outputs.
    Pruned,
}

/// The components of one linear after learning, in the order of their size at the start. Four digits each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LearnedSpectrum {
    /// Size, in the recipe's unit.
    #[serde(with = "crate::number::list")]
    pub sigma: Vec<f64>,
    /// What it is multiplied with; 0 when it was dropped.
    #[serde(with = "crate::number::list")]
    pub gates: Vec<f64>,
    /// What it was worth when it was kept or dropped.
    #[serde(with = "crate::number::list")]
    pub worth: Vec<f64>,
}

impl LearnedSpectrum {
    /// Rounds everything to four digits.
    pub fn new(sigma: &[f64], gates: &[f64], worth: &[f64]) -> Self {
        let short = |values: &[f64]| values.iter().map(|&x| four_digits(x)).collect();
        Self { sigma: short(sigma), gates: short(gates), worth: short(worth) }
    }
}

fn four_digits(x: f64) -> f64 {
    format!("{x:.3e}").parse().unwrap_or(x)
}

/// One corpus, before and after, by the same protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BeforeAfter {
    /// The original model.
    pub before: Evaluation,
    /// The compressed one; its divergence is from the original.
    pub after: Evaluation,
}

/// Time and memory of the run that finished the job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Stages in order.
    pub stages: Vec<StageCost>,
    /// Seconds from start to report.
    pub seconds: f64,
    /// Peak resident memory in bytes, if the system tells.
    pub peak_rss_bytes: Option<u64>,
    /// Whether an interrupted run was continued: then seconds are those of the last part.
    pub resumed: bool,
    /// What the run was expected to take; earlier versions did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<MemoryEstimate>,
}

/// Memory that a run was expected to take at most, and was allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryEstimate {
    /// Peak resident memory in bytes.
    pub peak_rss_bytes: u64,
    /// Peak memory of the GPU in bytes, if one computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_bytes: Option<u64>,
    /// `--max-memory`, if there was a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_memory_bytes: Option<u64>,
    /// `--max-device-memory`, if there was a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_device_memory_bytes: Option<u64>,
}

impl MemoryEstimate {
    /// `about 310 MB (limit 8.59 GB)`, and the same of the GPU.
    pub fn describe(&self) -> String {
        let of = |peak: u64, limit: Option<u64>| {
            let limit = limit.map(|limit| format!(" (limit {})", bytes(limit))).unwrap_or_default();
            format!("about {}{limit}", bytes(peak))
        };
        let device = self.device_bytes.map(|peak| format!(", on the GPU {}", of(peak, self.max_device_memory_bytes)));
        of(self.peak_rss_bytes, self.max_memory_bytes) + &device.unwrap_or_default()
    }
}

/// One stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageCost {
    /// Name shown in the progress.
    pub name: String,
    /// Wall seconds.
    pub seconds: f64,
    /// Peak resident memory up to its end.
    pub peak_rss_bytes: Option<u64>,
}

/// The machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Processor, as the system names it.
    pub cpu: String,
    /// Threads used.
    pub threads: usize,
    /// Operating system and architecture.
    pub os: String,
    /// `cpu`, or `cuda:0` and the name of the card.
    pub device: String,
}

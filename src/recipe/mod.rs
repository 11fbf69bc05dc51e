//! What the user asked for: flags, then environment, then a TOML file, then defaults.
//!
//! [`Options`] holds what every run can be told; what one method alone knows is declared in its file
//! ([`crate::method::MethodOption`]) and travels by key. [`Options::resolve`] makes a [`Recipe`] of it.

use crate::checkpoint::read_settings;
use crate::method::{Inputs, OptionValues};
use crate::ops::MatmulPrecision;
use crate::plan::AllocationRule;
use crate::text::split_names;
use crate::user_bail;
use anyhow::Result;
use clap::Args;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use toml::Table;

mod choices;
mod file;
mod flags;
mod learn;
mod resolved;
mod size;

pub use choices::{BosRule, SamplingRule, StoredType, WeightRule};
pub use flags::SET;
pub use learn::{Learn, LearnOptions, TrainText};
pub use resolved::Recipe;
pub(crate) use size::default_output;
pub use size::{finite, parse_bytes, percentage};

/// The ways to ask for a size. One replaces the others, whichever source it comes from.
pub const SIZES: [&str; 6] = ["keep", "target_params", "target_bytes", "block_keep", "max_ppl_increase", "elastic"];

/// The options of every run: each field is a flag, a variable and a key of a recipe file.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Model to compress: `demo`, a folder, or a hub id
    pub model: Option<String>,

    /// Name of the method.
    #[arg(long, value_name = "NAME", help_heading = "What", help = crate::method::names())]
    pub method: Option<String>,

    /// New folder for the result [default: MODEL-METHOD-KEEP]
    #[arg(short, long, value_name = "DIR", help_heading = "What")]
    pub output: Option<PathBuf>,

    /// What one method knows.
    #[command(flatten)]
    #[serde(skip)]
    pub method_options: OptionValues,

    /// Fraction of the linears to keep [default: 0.8]
    #[arg(long, allow_negative_numbers = true, value_name = "F", help_heading = "Budget")]
    pub keep: Option<f64>,

    /// Instead: parameters of the whole model, at most
    #[arg(long, conflicts_with = "keep", value_name = "N", help_heading = "Budget")]
    pub target_params: Option<u64>,

    /// Instead: bytes of all weights, at most (`1.5GiB`)
    #[arg(long, conflicts_with_all = ["keep", "target_params"], value_name = "SIZE", help_heading = "Budget")]
    pub target_bytes: Option<String>,

    /// Instead: smallest that raises --ppl by this (`5%`)
    #[arg(long, conflicts_with_all = ["keep", "target_params", "target_bytes", "block_keep"], value_name = "P",
          help_heading = "Budget")]
    pub max_ppl_increase: Option<String>,

    /// Instead: sizes for `softlm cut` to choose from, the largest is written (`0.9,0.6`)
    #[arg(long, value_delimiter = ',', value_name = "F,…", help_heading = "Budget",
          conflicts_with_all = ["keep", "target_params", "target_bytes", "block_keep", "max_ppl_increase"])]
    pub elastic: Option<Vec<f64>>,

    /// How the budget is shared out: even, uniform, global, learned, last-blocks, lorap [default: the method's own]
    #[arg(long, value_name = "RULE", help_heading = "Budget")]
    pub allocation: Option<AllocationRule>,

    /// What makes linears comparable for --allocation global: unit, energy, kl [default: kl]
    #[arg(long, value_name = "RULE", help_heading = "Budget")]
    pub weight: Option<WeightRule>,

    /// Round ranks down to a multiple of N [default: 1]
    #[arg(long, value_name = "N", help_heading = "Budget")]
    pub multiple_of: Option<usize>,

    /// Compress only the last N blocks
    #[arg(long, value_name = "N", help_heading = "Budget")]
    pub last_blocks: Option<usize>,

    /// Fraction kept in them [default: what meets --keep]
    #[arg(long, value_name = "F", help_heading = "Budget")]
    pub block_keep: Option<f64>,

    /// Also linears with a very short side (Mamba's)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "B",
          value_parser = clap::builder::FalseyValueParser::new(), help_heading = "Budget")]
    pub small_linears: Option<bool>,

    /// Text: sample, wikitext2, ptb, c4, a file, `-` or NAME=FILE, comma-separated [default: sample]
    #[arg(long, value_name = "TEXT", help_heading = "Calibration")]
    pub calib: Option<Vec<String>>,

    /// Windows of calibration text [default: 128]
    #[arg(long, value_name = "N", help_heading = "Calibration")]
    pub calib_windows: Option<usize>,

    /// Tokens per window [default: 2048 or the model's context; encoders 128]
    #[arg(long, value_name = "N", help_heading = "Calibration")]
    pub window: Option<usize>,

    /// Which windows: random, first [default: random]
    #[arg(long, value_name = "RULE", help_heading = "Calibration")]
    pub sampling: Option<SamplingRule>,

    /// Factors of products: highest (f32), high (tf32 on GPUs), medium (or bf16) [default: highest]
    #[arg(long, value_name = "P", help_heading = "Calibration")]
    pub matmul_precision: Option<MatmulPrecision>,

    /// Seed of the random choice [default: 0]
    #[arg(long, value_name = "N", help_heading = "Calibration")]
    pub seed: Option<u64>,

    /// BOS before windows: true, false [default: auto]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "RULE",
          help_heading = "Calibration")]
    pub bos: Option<BosRule>,

    /// Activations of the original model (dense), behind compressed blocks (blocks) or linears (sequential) [default:
    /// the method's own]
    #[arg(long, value_name = "RULE", help_heading = "Calibration")]
    pub inputs: Option<Inputs>,

    /// Folder of statistics: used, or filled if empty
    #[arg(long, value_name = "DIR", help_heading = "Calibration")]
    pub stats: Option<PathBuf>,

    /// Afterwards train the factors for this many steps [default: 0; soft: as many as it learned]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub heal: Option<usize>,

    /// Learning rate, relative to the entries' size [default: found by trial, with --task 0.0002]
    #[arg(long, value_name = "F", help_heading = "Training")]
    pub heal_lr: Option<f64>,

    /// Windows, or examples of --task, per step of --heal [default: 8, or 32 examples]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub heal_batch: Option<usize>,

    /// Train a classifier on labelled examples: sst2, mrpc, stsb (the hub's) or TASK=FILE (TSV, JSON, parquet)
    #[arg(long, value_name = "TASK", help_heading = "Training")]
    pub task: Option<String>,

    /// What any training is told.
    #[command(flatten)]
    #[serde(skip_serializing_if = "LearnOptions::is_empty")]
    pub learn: LearnOptions,

    /// Type of the factors: auto (that of the weight), f32, f16, bf16 [default: auto]
    #[arg(long, value_name = "TYPE", help_heading = "Output")]
    pub dtype: Option<StoredType>,

    /// Largest weight file [default: 5GB]
    #[arg(long, value_name = "SIZE", help_heading = "Output")]
    pub max_shard_size: Option<String>,

    /// Text to evaluate on, or `none` [default: sample]
    #[arg(long, value_name = "TEXT", help_heading = "Evaluation")]
    pub ppl: Option<Vec<String>>,

    /// Tokens per window [default: 2048 or the model's context; encoders 128, pseudo-perplexity 64]
    #[arg(long, value_name = "N", help_heading = "Evaluation")]
    pub eval_window: Option<usize>,

    /// Evaluate on at most this many windows per corpus
    #[arg(long, value_name = "N", help_heading = "Evaluation")]
    pub max_windows: Option<usize>,

    /// Zero-shot tasks too, as in `softlm eval --tasks`
    #[arg(long, value_name = "TASK", help_heading = "Evaluation")]
    pub tasks: Option<Vec<String>>,

    /// Of each task at most this many items, the first ones
    #[arg(long, value_name = "N", help_heading = "Evaluation")]
    pub limit: Option<usize>,
}

impl Options {
    /// Takes the lists of corpora apart that flags and environment give as one text. Those of a recipe file are lists.
    pub fn split_names(self) -> Self {
        let split = |names: Option<Vec<String>>| names.map(|names| split_names(&names));
        let learn = LearnOptions { train_text: split(self.learn.train_text), ..self.learn };
        Self { calib: split(self.calib), ppl: split(self.ppl), tasks: split(self.tasks), learn, ..self }
    }

    /// Fills what is missing from a TOML recipe. Unknown keys are refused.
    pub fn or_file(self, path: &Path) -> Result<Self> {
        let text = match read_settings(path).map(String::from_utf8) {
            Ok(Ok(text)) => text,
            Ok(Err(_)) => user_bail!("recipe {} is not text", path.display(); "see configs/ for examples"),
            Err(e) => user_bail!("cannot read recipe {}: {e}", path.display(); "check the path; configs/ has examples"),
        };
        match Self::from_toml(&text) {
            Ok(file) => self.or(file),
            Err(error) => user_bail!(
                "recipe {}, line {}: {}", path.display(), error.line, error.what;
                "configs/ has examples; `softlm methods NAME` lists what one method knows"
            ),
        }
    }

    /// Fills what is missing from `below`.
    fn or(self, below: Self) -> Result<Self> {
        let (above, mut merged) = (table(&self)?, table(&below)?);
        if SIZES.iter().any(|key| above.contains_key(*key)) {
            SIZES.iter().for_each(|key| drop(merged.remove(*key)));
        }
        merge(&mut merged, above);
        Ok(Self { method_options: self.method_options.or(below.method_options), ..merged.try_into()? })
    }
}

/// The options as a recipe file has them, but for those of the method.
fn table(options: &Options) -> Result<Table> {
    match Table::try_from(options) {
        Ok(table) => Ok(table),
        Err(e) => user_bail!("no recipe can hold these options: {e}"; "numbers go up to 2^63 - 1, paths are UTF-8"),
    }
}

/// Puts what `above` has into `below`, inner tables key by key.
fn merge(below: &mut Table, above: Table) {
    for (key, value) in above {
        match (below.get_mut(&key).and_then(toml::Value::as_table_mut), value) {
            (Some(inner), toml::Value::Table(value)) => merge(inner, value),
            (_, value) => drop(below.insert(key, value)),
        }
    }
}

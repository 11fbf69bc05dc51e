//! What the user asked for: flags, then environment, then a TOML file, then defaults.

use crate::checkpoint::read_settings;
use crate::method::Inputs;
use crate::plan::AllocationRule;
use crate::text::split_names;
use crate::user_bail;
use anyhow::Result;
use clap::Args;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

mod choices;
mod learn;
mod resolved;
mod size;

pub use choices::{BosRule, SamplingRule, StoredType, WeightRule};
pub use learn::{Learn, LearnOptions};
pub use resolved::Recipe;
pub use size::{Budget, parse_bytes};

/// The options of `compress`, each as flag, as environment variable and as key of a recipe file.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Model to compress: `demo`, a folder, or a hub id
    #[arg(env = "SOFTLM_MODEL")]
    pub model: Option<String>,

    /// Method: svd, awsvd, lorap, rom, whiten, soft or soco
    #[arg(long, env = "SOFTLM_METHOD", help_heading = "What")]
    pub method: Option<String>,

    /// Output folder; must not exist (see --force) [default: MODEL-METHOD-KEEP]
    #[arg(short, long, env = "SOFTLM_OUTPUT", help_heading = "What")]
    pub output: Option<PathBuf>,

    /// Fraction of the block linears' parameters to keep, 0 < keep ≤ 1 [default: 0.8]
    #[arg(long, env = "SOFTLM_KEEP", allow_negative_numbers = true, help_heading = "Budget")]
    pub keep: Option<f64>,

    /// Instead of --keep: parameters of the whole model, at most
    #[arg(long, env = "SOFTLM_TARGET_PARAMS", conflicts_with = "keep", help_heading = "Budget")]
    pub target_params: Option<u64>,

    /// Instead of --keep: bytes of the whole model's weights, at most (`500MB`, `1.5GiB`)
    #[arg(long, env = "SOFTLM_TARGET_BYTES", conflicts_with_all = ["keep", "target_params"], help_heading = "Budget")]
    pub target_bytes: Option<String>,

    /// How the budget is shared out [default: the method's own]
    #[arg(long, env = "SOFTLM_ALLOCATION", help_heading = "Budget")]
    pub allocation: Option<AllocationRule>,

    /// Cross-linear weight of --allocation global [default: kl]
    #[arg(long, env = "SOFTLM_WEIGHT", help_heading = "Budget")]
    pub weight: Option<WeightRule>,

    /// Round ranks down to a multiple of this [default: 1]
    #[arg(long, env = "SOFTLM_MULTIPLE_OF", help_heading = "Budget")]
    pub multiple_of: Option<usize>,

    /// Compress only the last N blocks (implies --allocation last-blocks)
    #[arg(long, env = "SOFTLM_LAST_BLOCKS", help_heading = "Budget")]
    pub last_blocks: Option<usize>,

    /// Fraction kept inside those blocks [default: what meets --keep]
    #[arg(long, env = "SOFTLM_BLOCK_KEEP", help_heading = "Budget")]
    pub block_keep: Option<f64>,

    /// Also compress linears with one very short side, which cost little and carry much: x_proj and dt_proj of Mamba
    #[arg(long, env = "SOFTLM_SMALL_LINEARS", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_parser = clap::builder::FalseyValueParser::new(), help_heading = "Budget")]
    pub small_linears: Option<bool>,

    /// LoRAP's parameter ratio (v+o) : (q+k) [default: 3]
    #[arg(long, env = "SOFTLM_RHO", help_heading = "Budget")]
    pub rho: Option<f64>,

    /// Calibration text: sample, wikitext2, ptb, c4, a file, `-` or NAME=FILE; several separated by commas
    /// [default: sample]
    #[arg(long, env = "SOFTLM_CALIB", help_heading = "Calibration")]
    pub calib: Option<Vec<String>>,

    /// Windows of calibration text [default: 128]
    #[arg(long, env = "SOFTLM_CALIB_WINDOWS", help_heading = "Calibration")]
    pub calib_windows: Option<usize>,

    /// Tokens per calibration window [default: 2048 or the model's context; encoders 128]
    #[arg(long, env = "SOFTLM_WINDOW", help_heading = "Calibration")]
    pub window: Option<usize>,

    /// Which windows: a seeded random choice or the first ones [default: random]
    #[arg(long, env = "SOFTLM_SAMPLING", help_heading = "Calibration")]
    pub sampling: Option<SamplingRule>,

    /// Seed of the random choice [default: 0]
    #[arg(long, env = "SOFTLM_SEED", help_heading = "Calibration")]
    pub seed: Option<u64>,

    /// Begin each window, to calibrate, to train and to evaluate with, with the tokenizer's BOS. `auto`: where the model
    /// cannot do without (Gemma 2 and 3) and its tokenizer puts one in front of a text [default: auto]
    #[arg(long, env = "SOFTLM_BOS", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          hide_possible_values = true, value_name = "auto|true|false", help_heading = "Calibration")]
    pub bos: Option<BosRule>,

    /// Activations to calibrate with: of the original model, behind compressed blocks, or behind every compressed
    /// linear [default: the method's own]
    #[arg(long, env = "SOFTLM_INPUTS", help_heading = "Calibration")]
    pub inputs: Option<Inputs>,

    /// Folder of statistics: used if it holds any, filled if not
    #[arg(long, env = "SOFTLM_STATS", help_heading = "Calibration")]
    pub stats: Option<PathBuf>,

    /// Afterwards train the factors for this many steps to predict what the original does [default: soft as many as
    /// --steps, others 0]
    #[arg(long, env = "SOFTLM_HEAL", help_heading = "Healing")]
    pub heal: Option<usize>,

    /// Learning rate of --heal, relative to the size of each factor's entries [default: 0.02, with --task 0.0002]
    #[arg(long, env = "SOFTLM_HEAL_LR", help_heading = "Healing")]
    pub heal_lr: Option<f64>,

    /// Calibration windows, or examples of --task, per step of --heal [default: 8, or 32 examples]
    #[arg(long, env = "SOFTLM_HEAL_BATCH", help_heading = "Healing")]
    pub heal_batch: Option<usize>,

    /// Train soft, soco and --heal on labelled examples, for models with a classifier: sst2, mrpc, stsb (the hub's
    /// training part) or TASK=FILE (TSV, JSON, parquet). It is also the default of --calib
    #[arg(long, env = "SOFTLM_TASK", help_heading = "Learning")]
    pub task: Option<String>,

    /// What the learned methods are told.
    #[command(flatten)]
    pub learn: LearnOptions,

    /// Type the factors are stored in [default: auto, that of the weight]
    #[arg(long, env = "SOFTLM_DTYPE", help_heading = "Output")]
    pub dtype: Option<StoredType>,

    /// Largest weight file (`5GB`, `200MiB`) [default: 5GB]
    #[arg(long, env = "SOFTLM_MAX_SHARD_SIZE", help_heading = "Output")]
    pub max_shard_size: Option<String>,

    /// Evaluate before and after on these corpora, or `none` [default: sample]
    #[arg(long, env = "SOFTLM_PPL", help_heading = "Evaluation")]
    pub ppl: Option<Vec<String>>,

    /// Tokens per evaluation window [default: 2048 or the model's context; encoders 128, pseudo-perplexity 64]
    #[arg(long, env = "SOFTLM_EVAL_WINDOW", help_heading = "Evaluation")]
    pub eval_window: Option<usize>,

    /// Evaluate on at most this many windows per corpus
    #[arg(long, env = "SOFTLM_MAX_WINDOWS", help_heading = "Evaluation")]
    pub max_windows: Option<usize>,
}

impl Options {
    /// Takes the lists of corpora apart that flags and environment give as one text. Those of a recipe file are lists.
    pub fn split_names(self) -> Self {
        let split = |names: Option<Vec<String>>| names.map(|names| split_names(&names));
        Self { calib: split(self.calib), ppl: split(self.ppl), ..self }
    }

    /// Fills what is missing from a TOML recipe. Unknown keys are refused.
    pub fn or_file(self, path: &Path) -> Result<Self> {
        let text = match read_settings(path).map(String::from_utf8) {
            Ok(Ok(text)) => text,
            Ok(Err(_)) => user_bail!("recipe {} is not text", path.display(); "see configs/ for examples"),
            Err(e) => user_bail!("cannot read recipe {}: {e}", path.display(); "check the path; configs/ has examples"),
        };
        let file: Options = match toml::from_str(&text) {
            Ok(file) => file,
            Err(e) => {
                let line = e.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
                user_bail!("recipe {}, line {line}: {}", path.display(), e.message(); "see configs/ for examples")
            }
        };
        // One size replaces another, whichever way it was asked for.
        let budget = self.keep.is_some()
            || self.target_params.is_some()
            || self.target_bytes.is_some()
            || self.block_keep.is_some();
        let from_file = |set: bool| !budget && set;
        Ok(Options {
            model: self.model.or(file.model),
            method: self.method.or(file.method),
            output: self.output.or(file.output),
            keep: if from_file(file.keep.is_some()) { file.keep } else { self.keep },
            target_params: if from_file(file.target_params.is_some()) {
                file.target_params
            } else {
                self.target_params
            },
            target_bytes: if from_file(file.target_bytes.is_some()) { file.target_bytes } else { self.target_bytes },
            allocation: self.allocation.or(file.allocation),
            weight: self.weight.or(file.weight),
            multiple_of: self.multiple_of.or(file.multiple_of),
            last_blocks: self.last_blocks.or(file.last_blocks),
            block_keep: if from_file(file.block_keep.is_some()) { file.block_keep } else { self.block_keep },
            small_linears: self.small_linears.or(file.small_linears),
            rho: self.rho.or(file.rho),
            calib: self.calib.or(file.calib),
            calib_windows: self.calib_windows.or(file.calib_windows),
            window: self.window.or(file.window),
            sampling: self.sampling.or(file.sampling),
            seed: self.seed.or(file.seed),
            bos: self.bos.or(file.bos),
            inputs: self.inputs.or(file.inputs),
            stats: self.stats.or(file.stats),
            heal: self.heal.or(file.heal),
            heal_lr: self.heal_lr.or(file.heal_lr),
            heal_batch: self.heal_batch.or(file.heal_batch),
            task: self.task.or(file.task),
            learn: self.learn.or(file.learn),
            dtype: self.dtype.or(file.dtype),
            max_shard_size: self.max_shard_size.or(file.max_shard_size),
            ppl: self.ppl.or(file.ppl),
            eval_window: self.eval_window.or(file.eval_window),
            max_windows: self.max_windows.or(file.max_windows),
        })
    }
}

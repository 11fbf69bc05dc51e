//! What the user asked for: flags, then environment, then a TOML file, then defaults.

use crate::learn::Objective;
use crate::method::Inputs;
use crate::plan::AllocationRule;
use crate::text::Sampling;
use crate::user_bail;
use anyhow::Result;
use clap::Args;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

mod choices;
mod learn;
mod size;

pub use choices::{SamplingRule, StoredType, WeightRule};
use learn::usual_batch;
pub use learn::{Learn, LearnOptions};
pub use size::Budget;
use size::{default_output, parse_bytes};

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
    #[arg(long, env = "SOFTLM_CALIB", value_delimiter = ',', help_heading = "Calibration")]
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

    /// Learning rate of --heal, relative to the size of each factor's entries [default: 0.01, with --task 0.0002]
    #[arg(long, env = "SOFTLM_HEAL_LR", help_heading = "Healing")]
    pub heal_lr: Option<f64>,

    /// Calibration windows, or examples of --task, per step of --heal [default: 8, or 32 examples]
    #[arg(long, env = "SOFTLM_HEAL_BATCH", help_heading = "Healing")]
    pub heal_batch: Option<usize>,

    /// Train soft, soco and --heal on labelled examples, for models with a classifier: sst2, mrpc, stsb (the hub's
    /// training part) or TASK=FILE (TSV, JSONL, parquet). It is also the default of --calib
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
    #[arg(long, env = "SOFTLM_PPL", value_delimiter = ',', help_heading = "Evaluation")]
    pub ppl: Option<Vec<String>>,

    /// Tokens per evaluation window [default: 2048 or the model's context; encoders 128, pseudo-perplexity 64]
    #[arg(long, env = "SOFTLM_EVAL_WINDOW", help_heading = "Evaluation")]
    pub eval_window: Option<usize>,

    /// Evaluate on at most this many windows per corpus
    #[arg(long, env = "SOFTLM_MAX_WINDOWS", help_heading = "Evaluation")]
    pub max_windows: Option<usize>,
}

impl Options {
    /// Fills what is missing from a TOML recipe. Unknown keys are refused.
    pub fn or_file(self, path: &Path) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) => user_bail!("cannot read recipe {}: {e}", path.display(); "check the path; configs/ has examples"),
        };
        let file: Options = match toml::from_str(&text) {
            Ok(file) => file,
            Err(e) => {
                user_bail!("recipe {}: {}", path.display(), e.to_string().trim_end(); "see configs/ for examples")
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

    /// Fills in the defaults and checks what can be checked without the model.
    pub fn resolve(self) -> Result<Recipe> {
        let Some(model) = self.model else { user_bail!("no model given"; "softlm compress demo --method rom -o out") };
        let Some(method) = self.method else {
            user_bail!("no method given"; "add --method, one of: {}", crate::method::names())
        };
        let method = crate::method::by_name(&method)?;
        if self.block_keep.is_some() && self.last_blocks.is_none() {
            user_bail!("--block-keep needs --last-blocks N"; "it is the fraction kept inside the last N blocks");
        }
        if self.block_keep.is_some() && self.keep.is_some() {
            user_bail!("--keep and --block-keep both set the size"; "give --keep to have the blocks' share found, or --block-keep alone");
        }
        let keep = match self.keep {
            None => 0.8,
            Some(keep) if keep > 0.0 && keep <= 1.0 => keep,
            Some(keep) => user_bail!(
                "--keep {keep} is outside (0, 1]";
                "it is the fraction of parameters kept: 0.8 keeps 80 %"
            ),
        };
        if keep == 1.0 && self.keep.is_some() && self.last_blocks.is_none() {
            user_bail!("--keep 1 leaves nothing to compress"; "choose a fraction below 1, for example 0.8")
        }
        let budget = match (self.target_params, self.target_bytes) {
            (Some(params), _) => Budget::ModelParams(params),
            (None, Some(text)) => Budget::ModelBytes(parse_bytes("--target-bytes", &text)?),
            (None, None) => Budget::Keep(keep),
        };
        let allocation = match (self.allocation, self.last_blocks) {
            (None, Some(_)) => AllocationRule::LastBlocks,
            (Some(rule), Some(_)) if rule != AllocationRule::LastBlocks => {
                user_bail!("--last-blocks contradicts --allocation"; "use --allocation last-blocks or leave it out")
            }
            (Some(AllocationRule::LastBlocks), None) => {
                user_bail!("--allocation last-blocks needs --last-blocks N"; "LLM-ROM used 12 of 32 blocks for keep 0.8")
            }
            (Some(rule), _) => rule,
            (None, None) => method.allocation(),
        };
        if method.prunes_channels() && !matches!(allocation, AllocationRule::Lorap | AllocationRule::Uniform) {
            let name = method.card().name;
            user_bail!("{name} shares its budget out by its own rule"; "leave --allocation out, or use `uniform` for the paper's exact integers")
        }
        if allocation == AllocationRule::Lorap && !method.prunes_channels() {
            user_bail!("--allocation lorap belongs to --method lorap"; "other methods: even, uniform, global, last-blocks")
        }
        for (flag, value) in [
            ("--calib-windows", self.calib_windows),
            ("--multiple-of", self.multiple_of),
            ("--last-blocks", self.last_blocks),
            ("--max-windows", self.max_windows),
            ("--heal-batch", self.heal_batch),
        ] {
            if value == Some(0) {
                user_bail!("{flag} is 0"; "use at least 1");
            }
        }
        if allocation == AllocationRule::Learned && method.learned().is_none() {
            user_bail!("--allocation learned belongs to the learned methods"; "other methods: even, uniform, global, last-blocks")
        }
        if allocation == AllocationRule::Global && method.learned().is_some() {
            let name = method.card().name;
            user_bail!("{name} learns where the budget goes"; "leave --allocation out, or force ranks with even or uniform")
        }
        let max_seconds = self.learn.seconds()?;
        let learn = self.learn.resolve(method, self.window, self.task.is_some())?;
        if learn.is_some() && self.inputs.is_some_and(|inputs| inputs != Inputs::Dense) {
            user_bail!("learned methods start from the original model"; "leave --inputs out");
        }
        let healed = learn.as_ref().filter(|_| method.learned().is_some_and(|learned| learned.heals()));
        let heal = self.heal.unwrap_or(healed.map_or(0, |learn| learn.steps));
        if let Some(task) = self.task.as_ref().filter(|_| learn.is_none() && heal == 0) {
            user_bail!("--task {task} is trained on, but nothing is trained"; "use --method soft or soco, add --heal STEPS, or name it as --calib");
        }
        if max_seconds.is_some() && learn.is_none() && heal == 0 {
            user_bail!("--max-time limits training, but nothing is trained"; "add --heal STEPS, or leave it out");
        }
        let idle = match (&self.task, learn.is_none() && heal == 0) {
            (Some(_), _) => Some("--task trains on labels"),
            (None, true) => Some("nothing is trained"),
            (None, false) => None,
        };
        let objective = self.learn.objective(idle)?;
        if heal == 0 && (self.heal_lr.is_some() || self.heal_batch.is_some()) {
            user_bail!("--heal-lr and --heal-batch need --heal STEPS"; "for example --heal 200");
        }
        let heal_lr = self.heal_lr.unwrap_or(if self.task.is_some() { 0.0002 } else { 0.01 });
        if !(heal_lr > 0.0 && heal_lr.is_finite()) {
            user_bail!("--heal-lr {heal_lr} is not a positive number"; "0.01 moves an entry by about 1 % per step");
        }
        let output = self.output.unwrap_or_else(|| default_output(&model, method.card().name, &budget));
        let ppl = self.ppl.unwrap_or_else(|| vec!["sample".into()]);
        Ok(Recipe {
            model,
            method: method.card().name.to_string(),
            output,
            budget,
            allocation,
            weight: self.weight.unwrap_or(WeightRule::Kl),
            multiple_of: self.multiple_of.unwrap_or(1),
            last_blocks: self.last_blocks,
            block_keep: self.block_keep,
            small_linears: self.small_linears.unwrap_or(false),
            rho: self.rho.unwrap_or(3.0),
            calib: self.calib.unwrap_or_else(|| vec![self.task.clone().unwrap_or_else(|| "sample".into())]),
            calib_windows: self.calib_windows.unwrap_or(128),
            window: self.window,
            sampling: self.sampling.unwrap_or(SamplingRule::Random),
            seed: self.seed.unwrap_or(0),
            inputs: self.inputs.unwrap_or(method.inputs()),
            stats: self.stats,
            heal,
            heal_lr,
            heal_batch: self
                .heal_batch
                .unwrap_or(learn.as_ref().map_or(usual_batch(self.task.is_some()), |learn| learn.batch)),
            task: self.task,
            max_seconds,
            objective,
            learn,
            dtype: self.dtype.unwrap_or(StoredType::Auto),
            max_shard_bytes: parse_bytes("--max-shard-size", self.max_shard_size.as_deref().unwrap_or("5GB"))?,
            ppl: if ppl == ["none"] { Vec::new() } else { ppl },
            eval_window: self.eval_window,
            max_windows: self.max_windows,
        })
    }
}

/// The effective recipe: every default filled in.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recipe {
    pub model: String,
    pub method: String,
    pub output: PathBuf,
    pub budget: Budget,
    pub allocation: AllocationRule,
    pub weight: WeightRule,
    pub multiple_of: usize,
    pub last_blocks: Option<usize>,
    pub block_keep: Option<f64>,
    pub small_linears: bool,
    pub rho: f64,
    pub calib: Vec<String>,
    pub calib_windows: usize,
    pub window: Option<usize>,
    pub sampling: SamplingRule,
    pub seed: u64,
    pub inputs: Inputs,
    pub stats: Option<PathBuf>,
    pub heal: usize,
    pub heal_lr: f64,
    pub heal_batch: usize,
    pub task: Option<String>,
    pub max_seconds: Option<f64>,
    pub objective: Objective,
    pub learn: Option<Learn>,
    pub dtype: StoredType,
    pub max_shard_bytes: u64,
    pub ppl: Vec<String>,
    pub eval_window: Option<usize>,
    pub max_windows: Option<usize>,
}

impl Recipe {
    /// The recipe as options: writing these to a file and reading them back gives the same recipe.
    pub fn to_options(&self) -> Options {
        let (keep, target_params, target_bytes) = match self.budget {
            // A share of the last blocks is a size of its own.
            Budget::Keep(keep) => (self.block_keep.is_none().then_some(keep), None, None),
            Budget::ModelParams(params) => (None, Some(params), None),
            Budget::ModelBytes(bytes) => (None, None, Some(bytes.to_string())),
        };
        let ppl = if self.ppl.is_empty() { vec!["none".to_string()] } else { self.ppl.clone() };
        Options {
            model: Some(self.model.clone()),
            method: Some(self.method.clone()),
            output: Some(self.output.clone()),
            keep,
            target_params,
            target_bytes,
            allocation: Some(self.allocation),
            weight: Some(self.weight),
            multiple_of: Some(self.multiple_of),
            last_blocks: self.last_blocks,
            block_keep: self.block_keep,
            small_linears: self.small_linears.then_some(true),
            rho: Some(self.rho),
            calib: Some(self.calib.clone()),
            calib_windows: Some(self.calib_windows),
            window: self.window,
            sampling: Some(self.sampling),
            seed: Some(self.seed),
            inputs: Some(self.inputs),
            stats: self.stats.clone(),
            heal: Some(self.heal),
            heal_lr: (self.heal > 0).then_some(self.heal_lr),
            heal_batch: (self.heal > 0).then_some(self.heal_batch),
            task: self.task.clone(),
            learn: LearnOptions {
                max_time: self.max_seconds.map(|seconds| format!("{seconds}s")),
                likelihood: (self.objective.likelihood > 0.0).then_some(self.objective.likelihood),
                temperature: (self.objective.temperature != 1.0).then_some(self.objective.temperature),
                ..self.learn.as_ref().map(Learn::to_options).unwrap_or_default()
            },
            dtype: Some(self.dtype),
            max_shard_size: Some(self.max_shard_bytes.to_string()),
            ppl: Some(ppl),
            eval_window: self.eval_window,
            max_windows: self.max_windows,
        }
    }

    /// Which windows the calibration takes.
    pub fn sampling(&self) -> Sampling {
        match self.sampling {
            SamplingRule::First => Sampling::First,
            SamplingRule::Random => Sampling::Random { seed: self.seed },
        }
    }
}

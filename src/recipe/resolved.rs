//! Options with every default filled in and checked against each other.

use super::learn::usual_batch;
use super::size::{default_output, parse_bytes};
use super::{BosRule, Budget, Learn, LearnOptions, Options, SamplingRule, StoredType, WeightRule};
use crate::learn::Objective;
use crate::method::{Inputs, by_name};
use crate::plan::AllocationRule;
use crate::text::Sampling;
use crate::user_bail;
use anyhow::Result;
use serde::Serialize;
use std::path::PathBuf;

impl Options {
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
        let heal_lr = self.heal_lr.unwrap_or(if self.task.is_some() { 0.0002 } else { 0.02 });
        if !(heal_lr > 0.0 && heal_lr.is_finite()) {
            user_bail!("--heal-lr {heal_lr} is not a positive number"; "0.02 moves an entry by about 2 % per step");
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
            bos: self.bos.unwrap_or_default(),
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
    pub bos: BosRule,
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
        let learned = by_name(&self.method).ok().and_then(|method| method.learned());
        let soco = learned.is_some_and(|learned| learned.refines());
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
            bos: Some(self.bos),
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
                ..self.learn.as_ref().map(|learn| learn.to_options(soco)).unwrap_or_default()
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

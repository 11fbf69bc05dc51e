//! Options with every default filled in and checked against each other.

use super::size::{default_output, parse_bytes, percentage};
use super::{BosRule, Learn, Options, SamplingRule, StoredType, TrainText, WeightRule, table};
use crate::backward::Objective;
use crate::method::{Inputs, OptionValues, RunFacts, by_name};
use crate::ops::MatmulPrecision;
use crate::plan::AllocationRule;
use crate::text::Sampling;
use crate::user_bail;
use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;
use std::path::PathBuf;

/// The method where none is named.
pub const DEFAULT_METHOD: &str = "auto";

impl Options {
    /// Fills in the defaults and checks what can be checked without the model.
    pub fn resolve(mut self) -> Result<Recipe> {
        // Found out now rather than when the result is written.
        table(&self)?;
        let Some(model) = self.model.clone() else {
            user_bail!("no model given"; "softlm compress demo --method rom -o out")
        };
        let method = by_name(self.method.get_or_insert_with(|| DEFAULT_METHOD.into()))?;
        if self.block_keep.is_some() && self.last_blocks.is_none() {
            user_bail!("--block-keep needs --last-blocks N"; "it is the fraction kept inside the last N blocks");
        }
        if self.block_keep.is_some() && self.keep.is_some() {
            user_bail!("--keep and --block-keep both set the size"; "give --keep to have the blocks' share found, or --block-keep alone");
        }
        if let Some(sizes) = &self.elastic {
            if let Some(size) = sizes.iter().find(|size| !(**size > 0.0 && **size < 1.0)) {
                user_bail!("--elastic {size} is outside (0, 1)"; "each is the fraction of parameters kept, for example 0.9,0.8,0.6");
            }
            if sizes.is_empty() {
                user_bail!("--elastic names no size"; "for example --elastic 0.9,0.8,0.6");
            }
        }
        let largest = self.elastic.as_ref().and_then(|sizes| sizes.iter().copied().max_by(f64::total_cmp));
        let keep = match self.keep {
            None => largest.unwrap_or(0.8),
            Some(keep) if keep > 0.0 && keep <= 1.0 => keep,
            Some(keep) => user_bail!(
                "--keep {keep} is outside (0, 1]";
                "it is the fraction of parameters kept: 0.8 keeps 80 %"
            ),
        };
        if keep == 1.0 && self.keep.is_some() && self.last_blocks.is_none() {
            user_bail!("--keep 1 leaves nothing to compress"; "choose a fraction below 1, for example 0.8")
        }
        let target_bytes = self.target_bytes.as_ref().map(|text| parse_bytes("--target-bytes", text)).transpose()?;
        let max_ppl_increase = self.max_ppl_increase.as_ref().map(|text| match percentage(text) {
            Ok(value) if value > 0.0 => Ok(value),
            Ok(_) => user_bail!("--max-ppl-increase {text} allows nothing"; "write it as a percentage above 0%, for example 5%"),
            Err(why) => user_bail!("--max-ppl-increase {text}: {why}"; "for example 5%"),
        });
        let max_ppl_increase = max_ppl_increase.transpose()?;
        let size = match (self.target_params, target_bytes) {
            _ if let Some(increase) = max_ppl_increase => format!("plus{}percent", 100.0 * increase),
            (Some(params), _) => format!("{params}-params"),
            (None, Some(bytes)) => format!("{bytes}-bytes"),
            (None, None) if largest.is_some() => "elastic".to_string(),
            (None, None) => keep.to_string(),
        };
        let sized = self.target_params.is_some() || self.target_bytes.is_some() || self.block_keep.is_some();
        if !sized && max_ppl_increase.is_none() && self.elastic.is_none() {
            self.keep = Some(keep);
        }
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
        let by_forms = method.allocation() == AllocationRule::Forms;
        if (allocation == AllocationRule::Forms) != by_forms {
            let (name, rule) = (method.card().name, word(allocation));
            if by_forms {
                user_bail!("--allocation {rule} does not go with --method {name}, which shares its budget out over forms"; "leave it out, or choose another method, for example whiten");
            }
            user_bail!("--allocation forms belongs to --method auto, not to --method {name}"; "other methods: even, uniform, global, last-blocks");
        }
        let several = max_ppl_increase.map(|_| "--max-ppl-increase").or(self.elastic.as_ref().map(|_| "--elastic"));
        if let Some(flag) = several {
            if !matches!(allocation, AllocationRule::Forms | AllocationRule::Global) {
                let (name, rule) = (method.card().name, word(allocation));
                user_bail!(
                    "{flag} makes several sizes of one set of decompositions, which --method {name} with --allocation {rule} does not have";
                    "use --method auto, or --allocation global with a method that has it"
                );
            }
            if max_ppl_increase.is_some() && self.ppl.as_ref().is_some_and(|ppl| *ppl == ["none"]) {
                user_bail!("--max-ppl-increase needs a corpus, but --ppl is none"; "add --ppl sample");
            }
        }
        let weight = *self.weight.get_or_insert(WeightRule::Kl);
        if self.elastic.is_some() && !by_forms && weight == WeightRule::Kl {
            let name = method.card().name;
            user_bail!(
                "--elastic with --method {name} needs a weight that is the same for every size, and --weight kl is measured at one";
                "add --weight energy, or use --method auto"
            );
        }
        if by_forms && self.inputs.is_some_and(|inputs| inputs != Inputs::Dense) {
            user_bail!("auto looks at the original model alone"; "leave --inputs out");
        }
        if by_forms && self.weight.is_some_and(|weight| weight != WeightRule::Kl) {
            user_bail!("auto measures what its parts are worth"; "leave --weight out");
        }
        for (flag, value) in [
            ("--calib-windows", self.calib_windows),
            ("--multiple-of", self.multiple_of),
            ("--last-blocks", self.last_blocks),
            ("--max-windows", self.max_windows),
            ("--heal-batch", self.heal_batch),
            ("--limit", self.limit),
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
        if self.elastic.is_some() && self.heal.is_some_and(|steps| steps > 0) {
            user_bail!("--heal trains one size, and --elastic stores what all are cut from"; "leave one of them out");
        }
        if self.limit.is_some() && self.tasks.is_none() {
            user_bail!("--limit says how many items of --tasks are measured, and there is no task"; "add --tasks, for example piqa");
        }
        let max_seconds = self.learn.seconds()?;
        let run = RunFacts { labelled: self.task.is_some(), window: self.window };
        let options = self.method_options.resolve(method, &run)?;
        let learn = Learn::new(method, &options)?;
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
        let labelled = self.task.is_some();
        let heal_lr = self.heal_lr.or(labelled.then_some(0.0002));
        if let Some(heal_lr) = heal_lr.filter(|lr| !(*lr > 0.0 && lr.is_finite())) {
            user_bail!("--heal-lr {heal_lr} is not a positive number"; "0.02 moves an entry by about 2 % per step");
        }
        let usual_batch = if labelled { 32 } else { 8 };
        let heal_batch = self.heal_batch.unwrap_or(learn.as_ref().map_or(usual_batch, |learn| learn.batch));
        if heal > 0 {
            (self.heal_lr, self.heal_batch) = (heal_lr, Some(heal_batch));
        }
        let precision = *self.matmul_precision.get_or_insert_default();
        let name = method.card().name.to_string();
        let calib = self.calib.get_or_insert_with(|| vec![self.task.clone().unwrap_or_else(|| "sample".into())]);
        let calib_windows = *self.calib_windows.get_or_insert(128);
        let train_text = self.learn.text(calib, calib_windows, idle)?;
        let ppl = self.ppl.get_or_insert_with(|| vec!["sample".into()]);
        let max_shard_bytes = parse_bytes("--max-shard-size", self.max_shard_size.get_or_insert("5GB".into()))?;
        Ok(Recipe {
            output: self.output.get_or_insert_with(|| default_output(&model, &name, &size)).clone(),
            model,
            method: name,
            keep,
            target_params: self.target_params,
            target_bytes,
            max_ppl_increase,
            elastic: self.elastic.clone(),
            survey: None,
            allocation: *self.allocation.insert(allocation),
            weight,
            multiple_of: *self.multiple_of.get_or_insert(1),
            last_blocks: self.last_blocks,
            block_keep: self.block_keep,
            small_linears: *self.small_linears.get_or_insert(false),
            calib: calib.clone(),
            calib_windows,
            window: self.window,
            sampling: *self.sampling.get_or_insert(SamplingRule::Random),
            matmul_precision: precision,
            seed: *self.seed.get_or_insert(0),
            bos: *self.bos.get_or_insert_default(),
            inputs: *self.inputs.get_or_insert(method.inputs()),
            stats: self.stats.clone(),
            heal: *self.heal.insert(heal),
            heal_lr,
            heal_batch,
            task: self.task.clone(),
            max_seconds,
            objective,
            train_text,
            learn,
            dtype: *self.dtype.get_or_insert(StoredType::Auto),
            max_shard_bytes,
            ppl: if *ppl == ["none"] { Vec::new() } else { ppl.clone() },
            eval_window: self.eval_window,
            max_windows: self.max_windows,
            tasks: self.tasks.clone().unwrap_or_default(),
            limit: self.limit,
            options: options.clone(),
            written: Options { method_options: options, ..self },
        })
    }
}

/// The effective recipe: every default filled in.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recipe {
    /// `demo`, a folder, or a hub id.
    pub model: String,
    /// Name of the method.
    pub method: String,
    /// Folder of the result.
    pub output: PathBuf,
    /// Fraction of the linears' parameters, unless one of the next two is set.
    pub keep: f64,
    /// Parameters of the whole model, at most.
    pub target_params: Option<u64>,
    /// Bytes of all weights, at most.
    pub target_bytes: Option<u64>,
    /// Instead, by how much the perplexity may rise; `keep` is then a usual one, for estimates.
    pub max_ppl_increase: Option<f64>,
    /// Sizes of an elastic output; `keep` is then the largest.
    pub elastic: Option<Vec<f64>>,
    /// The folder of an elastic output that decompositions and measurements are taken from. They are what they would be
    /// without it: it is no part of the recipe.
    #[serde(skip)]
    pub survey: Option<PathBuf>,
    /// How the budget is shared out.
    pub allocation: AllocationRule,
    /// What makes the energies of different linears comparable.
    pub weight: WeightRule,
    /// What ranks and widths are multiples of.
    pub multiple_of: usize,
    /// How many blocks change, the last ones; all without.
    pub last_blocks: Option<usize>,
    /// Fraction kept inside these.
    pub block_keep: Option<f64>,
    /// Whether linears that the papers leave alone are compressed too.
    pub small_linears: bool,
    /// Corpora of the calibration text.
    pub calib: Vec<String>,
    /// Windows of it, over all corpora.
    pub calib_windows: usize,
    /// Tokens per window; otherwise the model's context, 2048 at most.
    pub window: Option<usize>,
    /// Which windows of the text.
    pub sampling: SamplingRule,
    /// What products of activations and weights may lose.
    pub matmul_precision: MatmulPrecision,
    /// Of all that is drawn.
    pub seed: u64,
    /// Whether windows begin with BOS.
    pub bos: BosRule,
    /// What the inputs of a linear come from: the dense model, or compressed blocks before it.
    pub inputs: Inputs,
    /// Folder of statistics collected before.
    pub stats: Option<PathBuf>,
    /// Steps of training afterwards; 0 for none.
    pub heal: usize,
    /// Absent where it is found by trial.
    pub heal_lr: Option<f64>,
    /// Windows, or labelled examples, per step of it.
    pub heal_batch: usize,
    /// Labelled task that an encoder learns.
    pub task: Option<String>,
    /// Seconds that all training together may take.
    pub max_seconds: Option<f64>,
    /// What training on text minimises.
    pub objective: Objective,
    /// Text to train on, where it is not that of calibration.
    pub train_text: Option<TrainText>,
    /// Options of a method that learns.
    pub learn: Option<Learn>,
    /// Type that what is new is stored in.
    pub dtype: StoredType,
    /// Bytes per file of weights, at most.
    pub max_shard_bytes: u64,
    /// Corpora of evaluation.
    pub ppl: Vec<String>,
    /// Tokens per window of evaluation.
    pub eval_window: Option<usize>,
    /// Windows per corpus of evaluation, at most.
    pub max_windows: Option<usize>,
    /// Zero-shot tasks of evaluation.
    pub tasks: Vec<String>,
    /// Items of each, at most.
    pub limit: Option<usize>,
    /// All options of the method.
    pub options: OptionValues,
    /// The same as options, every default filled in: writing these to a file and reading them back gives the same recipe.
    #[serde(skip)]
    pub written: Options,
}

impl Recipe {
    /// The keys and values of a recipe file that gives this recipe again; `null` for what is not set.
    pub fn to_json(&self) -> Result<serde_json::Value> {
        self.written.to_json(by_name(&self.method)?)
    }

    /// That file.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string_pretty(&without_nulls(self.to_json()?))?)
    }

    /// Which windows the calibration takes.
    pub fn sampling(&self) -> Sampling {
        match self.sampling {
            SamplingRule::First => Sampling::First,
            SamplingRule::Random => Sampling::Random { seed: self.seed },
        }
    }
}

/// TOML has no `null`.
fn without_nulls(value: serde_json::Value) -> serde_json::Value {
    let serde_json::Value::Object(map) = value else { return value };
    let set = map.into_iter().filter(|(_, value)| !value.is_null());
    set.map(|(key, value)| (key, without_nulls(value))).collect()
}

/// What a rule is called on the command line.
fn word(rule: AllocationRule) -> String {
    rule.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default()
}

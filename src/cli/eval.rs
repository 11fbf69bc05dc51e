//! `softlm eval`

use super::gates::Gates;
use super::page::{page_width, print_json, print_result, stdout_color};
use super::values::{MemoryLimits, fraction, limit, switch, task_fraction};
use super::{Context, Outcome};
use crate::compute::Compute;
use crate::error::is_not_finite;
use crate::eval::{EncodedItems, Evaluation, GlueResult, MeasuredTask, TaskResult};
use crate::model::{Model, Output};
use crate::number;
use crate::ops::MatmulPrecision;
use crate::pipeline::{self, EvalProtocol, Found, Original, Quality, Sequences};
use crate::progress::Progress;
use crate::recipe::BosRule;
use crate::recipe::percentage;
use crate::report;
use crate::text::split_names;
use crate::user_bail;
use anyhow::Result;
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

/// Tokens of an example of a task, where nobody says more.
const GLUE_LENGTH: usize = 128;

#[derive(Args)]
pub struct Eval {
    /// Model or output to measure: `demo`, a folder, or a hub id
    #[arg(env = "SOFTLM_MODEL")]
    model: String,
    /// Corpora: sample, wikitext2, ptb, c4, a file, `-` or NAME=FILE; several separated by commas. Of encoders that guess
    /// masked tokens the pseudo-perplexity, of others the cosine to the original's embeddings [default: sample; none with
    /// --glue or --tasks]
    #[arg(long, env = "SOFTLM_PPL")]
    ppl: Option<Vec<String>>,
    /// Factors of products: highest (f32), high (tf32 on GPUs), medium (or bf16)
    #[arg(long, env = "SOFTLM_MATMUL_PRECISION", default_value = "highest", value_name = "P")]
    matmul_precision: MatmulPrecision,
    /// Labelled tasks for encoders: sst2, mrpc, stsb (GLUE's validation part) or TASK=FILE (TSV with a header, the STS
    /// benchmark's CSV, JSON, parquet); several separated by commas
    #[arg(long, env = "SOFTLM_GLUE")]
    glue: Vec<String>,
    /// Tokens per text or pair of --glue at most [default: what the model's folder says, or 128]
    #[arg(long, env = "SOFTLM_MAX_LENGTH", requires = "glue")]
    max_length: Option<usize>,
    /// Zero-shot tasks for decoders, with the prompts and scores of lm-evaluation-harness: piqa, arc_easy, arc_challenge,
    /// hellaswag, winogrande, openbookqa, boolq, mathqa, lambada, or TASK=FILE (JSON Lines, JSON, parquet); several
    /// separated by commas. Files have the hub's fields, or query, choices and gold (winogrande context_options,
    /// continuation and gold, lambada context and continuation)
    #[arg(long, env = "SOFTLM_TASKS")]
    tasks: Vec<String>,
    /// Of each of --tasks at most this many items, the first ones [default: all]
    #[arg(long, env = "SOFTLM_LIMIT", requires = "tasks", value_name = "N")]
    limit: Option<usize>,
    /// Examples in front of each item of --tasks: 0, others are not supported
    #[arg(long, env = "SOFTLM_SHOTS", default_value = "0", value_name = "N")]
    shots: usize,
    /// Write what the model makes of each item of --tasks to this file, a JSON object per line
    #[arg(long, env = "SOFTLM_LOG_SAMPLES", requires = "tasks", value_name = "FILE")]
    log_samples: Option<PathBuf>,
    /// Tokens per window [default: 2048 or the model's context; encoders 128, pseudo-perplexity 64]
    #[arg(long, env = "SOFTLM_WINDOW")]
    window: Option<usize>,
    /// Tokens between window starts [default: the window]
    #[arg(long, env = "SOFTLM_STRIDE")]
    stride: Option<usize>,
    /// Use at most this many windows per corpus, the first ones [default: all; of a pseudo-perplexity 16]
    #[arg(long, env = "SOFTLM_MAX_WINDOWS")]
    max_windows: Option<usize>,
    /// Begin each window with the tokenizer's BOS. `auto`: where the model cannot do without (Gemma 2 and 3) and its
    /// tokenizer puts one in front of a text
    #[arg(long, env = "SOFTLM_BOS", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "auto", hide_possible_values = true, value_name = "auto|true|false")]
    bos: BosRule,
    /// Where the model is now that an output was made from; its hashes must be the recorded ones [default: where it was]
    #[arg(long, env = "SOFTLM_BASE", conflicts_with = "against")]
    base: Option<String>,
    /// Compare with this model, whichever it is, instead of the one that an output was made from
    #[arg(long, env = "SOFTLM_AGAINST")]
    against: Option<String>,
    /// Fail (exit 1) when a perplexity is above this
    #[arg(long, env = "SOFTLM_MAX_PPL", value_parser = limit, help_heading = "Checks")]
    max_ppl: Option<f64>,
    /// Fail (exit 1) when a perplexity is this much above the original's, for example 5%
    #[arg(long, env = "SOFTLM_MAX_PPL_INCREASE", help_heading = "Checks", value_parser = percentage)]
    max_ppl_increase: Option<f64>,
    /// Fail (exit 1) when the most likely token agrees with the original's less often than this, 0..1 or a percentage
    #[arg(long, env = "SOFTLM_MIN_TOP1", help_heading = "Checks", value_parser = fraction)]
    min_top1: Option<f64>,
    /// Fail (exit 1) when the accuracy on a task of --tasks is below this, for example piqa=0.6
    #[arg(long, env = "SOFTLM_MIN_ACC", help_heading = "Checks", value_parser = task_fraction, value_delimiter = ',',
          value_name = "TASK=X")]
    min_acc: Vec<(String, f64)>,
    /// Fail (exit 1) when the accuracy on a task is this much of 1 below the original's, for example 0.02 or 2%
    #[arg(long, env = "SOFTLM_MAX_ACC_DROP", help_heading = "Checks", value_parser = fraction)]
    max_acc_drop: Option<f64>,
    #[command(flatten)]
    memory: MemoryLimits,
    /// Print one JSON object
    #[arg(long, env = "SOFTLM_JSON", value_parser = switch())]
    json: bool,
}

/// One corpus: the model, and the original if there is one.
struct Measured {
    model: Evaluation,
    base: Option<Evaluation>,
}

impl Eval {
    pub fn run(mut self, context: &Context) -> Result<Outcome> {
        (self.ppl, self.glue) = (self.ppl.map(|ppl| split_names(&ppl)), split_names(&self.glue));
        self.tasks = split_names(&self.tasks);
        if self.shots != 0 {
            user_bail!("--shots is {}, and tasks are measured without examples", self.shots; "leave it out, or use 0");
        }
        let source = pipeline::open_source(&self.model, &context.hub)?;
        let original = Original::of(&source)?;
        if let Some(original) = &original {
            original.check_output(&source, context.ui)?;
        }
        let model = pipeline::load_model(source, self.compute(context)?, context.ui)?;
        let base = self.base(original.as_ref(), context)?;
        let compares = self.max_ppl_increase.is_some() || self.min_top1.is_some() || self.max_acc_drop.is_some();
        if base.is_none() && compares {
            user_bail!("--max-ppl-increase, --min-top1 and --max-acc-drop compare with an original"; "name it with --against");
        }
        if let Some(base) = base.as_ref().filter(|base| base.vocab() != model.vocab()) {
            let (name, base_name) = (model.source().label(), base.source().label());
            user_bail!(
                "{name} has a vocabulary of {}, {base_name} one of {}: their predictions cannot be compared",
                model.vocab(), base.vocab();
                "--against must name the model that {name} was made from"
            );
        }
        let tokenizer = pipeline::tokenizer(model.source())?;
        let protocol =
            EvalProtocol { window: self.window, stride: self.stride, max_windows: self.max_windows, bos: self.bos };
        let sample =
            if self.glue.is_empty() && self.tasks.is_empty() { vec!["sample".to_string()] } else { Vec::new() };
        let ppl = self.ppl.as_ref().unwrap_or(&sample);
        self.refuse_idle_checks(&model, ppl.is_empty())?;
        let tasks = pipeline::task_items(&model, &tokenizer, &self.tasks, self.limit, &context.hub)?;
        self.refuse_idle_task_checks(&tasks)?;
        let texts = pipeline::evaluation(&model, &tokenizer, ppl, protocol, &context.hub)?;
        let mut evaluated = pipeline::sequences(&texts);
        evaluated.extend(pipeline::task_sequences(&tasks));
        if !self.glue.is_empty() {
            let length = self.max_length.unwrap_or(GLUE_LENGTH).min(model.context());
            evaluated.push(Sequences { count: usize::MAX / length, length });
        }
        let (limits, estimate) = pipeline::fit_evaluation(&model, base.as_ref(), &evaluated)?;
        let (model, base) = (model.with_limits(limits), base.map(|base| base.with_limits(limits)));
        pipeline::announce(&estimate, context.ui);
        if let Some(doubt) = texts.iter().find_map(|text| pipeline::without_bos(&model, &text.windows)) {
            context.ui.warn(&doubt);
        }
        let glue = if self.glue.is_empty() { Vec::new() } else { self.measure_glue(&model, base.as_ref(), context)? };
        let (mut measured, mut fidelities) = (Vec::new(), Vec::new());
        for text in &texts {
            let steps = pipeline::steps(&model, base.as_ref(), text);
            context.ui.stage(&format!("evaluating {}", text.corpus.name), steps);
            match pipeline::measure(&model, base.as_ref(), text, context.ui) {
                Ok(Quality::Likelihood(model, base)) => measured.push(Measured { model, base }),
                Ok(Quality::Embeddings(fidelity)) => fidelities.push(fidelity),
                // Who asks for a check wants to hear that it failed; everybody else, what is wrong.
                Err(error) if self.gates().any() && is_not_finite(&error) => {
                    let why = format!("{error:#}");
                    let failed = Evaluation::not_a_number(&model, &text.corpus.name, &text.windows, &why);
                    measured.push(Measured { model: failed, base: None });
                }
                Err(error) => return Err(error),
            }
        }
        let mut failures = Vec::new();
        let tasks = match self.measure_tasks(&model, base.as_ref(), &tasks, context) {
            Err(error) if self.gates().any_of_tasks() && is_not_finite(&error) => {
                failures.push(format!("no accuracy that --min-acc and --max-acc-drop could hold for: {error:#}"));
                Vec::new()
            }
            results => results?,
        };
        context.ui.finish();
        let evaluations: Vec<Evaluation> = measured.iter().map(|m| m.model.clone()).collect();
        let baselines: Vec<Evaluation> = measured.iter().filter_map(|m| m.base.clone()).collect();
        if self.json {
            let mut json = report::eval_json(&self.model, &evaluations, &baselines);
            if !fidelities.is_empty() {
                json["fidelity"] = json!(fidelities);
            }
            if !glue.is_empty() {
                json["glue"] = json!(glue);
            }
            if !tasks.is_empty() {
                json["tasks"] = json!(tasks);
            }
            print_json(&json.to_string())?;
        } else {
            let (width, color) = (page_width(), stdout_color());
            let original = base.as_ref().map(|base| (base.source().label(), baselines.as_slice()));
            let mut text = report::evaluation_table(&self.model, &evaluations, original, width, color);
            if !fidelities.is_empty() {
                text += &report::fidelity_table(&fidelities, width, color);
            }
            if !glue.is_empty() {
                text += &report::glue_table(&glue, width, color);
            }
            if !tasks.is_empty() {
                text += &report::task_table(&tasks, width, color);
            }
            print_result(&text)?;
        }
        Ok(self.check(&measured, &tasks, failures, context))
    }

    /// A check that nothing is measured for would always hold.
    fn refuse_idle_checks(&self, model: &Model, no_corpus: bool) -> Result<()> {
        let no_tokens = matches!(model.output(), Output::Classes(_) | Output::States);
        if self.gates().any() && (no_corpus || no_tokens) {
            user_bail!(
                "--max-ppl, --max-ppl-increase and --min-top1 check perplexities, and none is measured";
                "{}", if no_tokens { "this model predicts no tokens: leave them out" } else { "add --ppl sample" }
            );
        }
        Ok(())
    }

    /// The same of tasks.
    fn refuse_idle_task_checks(&self, tasks: &[EncodedItems]) -> Result<()> {
        let measured = |name: &str| tasks.iter().any(|task| task.items.task.name() == name);
        if let Some((name, _)) = self.min_acc.iter().find(|(name, _)| !measured(name)) {
            user_bail!("--min-acc checks {name}, which is not measured"; "add --tasks {name}");
        }
        if self.max_acc_drop.is_some() && tasks.is_empty() {
            user_bail!("--max-acc-drop checks accuracies, and none is measured"; "add --tasks, for example --tasks piqa");
        }
        Ok(())
    }

    /// Measures the tasks, and writes what was found of each item where that is wanted.
    fn measure_tasks(
        &self,
        model: &Model,
        base: Option<&Model>,
        tasks: &[EncodedItems],
        context: &Context,
    ) -> Result<Vec<TaskResult>> {
        let measured = pipeline::measure_tasks(model, base, tasks, context.ui)?;
        if let Some(path) = &self.log_samples {
            let lines = tasks.iter().zip(&measured).flat_map(|(task, measured)| samples(task, measured));
            if let Err(error) = std::fs::write(path, lines.collect::<String>()) {
                user_bail!("cannot write {}: {error}", path.display(); "choose another --log-samples");
            }
        }
        Ok(measured.into_iter().map(|measured| measured.result).collect())
    }

    fn measure_glue(&self, model: &Model, base: Option<&Model>, context: &Context) -> Result<Vec<GlueResult>> {
        pipeline::glue_tasks(model, base, &self.glue, self.max_length, &context.hub, context.ui)
    }

    /// The original to compare with. An output is never shown without the model it was made from.
    fn base(&self, original: Option<&Original>, context: &Context) -> Result<Option<Model>> {
        let source = match (&self.against, original) {
            (Some(name), _) => pipeline::open_source(name, &context.hub)?,
            (None, Some(original)) => match original.find(self.base.as_deref(), &context.hub, context.ui)? {
                Found::Here(source) => *source,
                Found::Absent(e) => user_bail!(
                    "{} was made from {}, which cannot be opened: {e:#}", self.model, original.name();
                    "say where it is now with --base PATH, or compare with any other model with --against"
                ),
            },
            (None, None) => {
                pipeline::refuse_base(&self.model, self.base.as_deref())?;
                return Ok(None);
            }
        };
        Model::load(source, self.compute(context)?).map(Some)
    }

    fn compute(&self, context: &Context) -> Result<Compute> {
        Ok(Compute { precision: self.matmul_precision, ..self.memory.of(context)? })
    }

    fn gates(&self) -> Gates {
        Gates {
            max_ppl: self.max_ppl,
            max_ppl_increase: self.max_ppl_increase,
            min_top1: self.min_top1,
            min_acc: self.min_acc.clone(),
            max_acc_drop: self.max_acc_drop,
        }
    }

    /// Says on stderr which checks failed.
    fn check(
        &self,
        measured: &[Measured],
        tasks: &[TaskResult],
        mut failures: Vec<String>,
        context: &Context,
    ) -> Outcome {
        let gates = self.gates();
        failures.extend(measured.iter().flat_map(|m| gates.failures(&m.model, m.base.as_ref())));
        failures.extend(tasks.iter().flat_map(|result| gates.task_failures(result)));
        if gates.any() && measured.is_empty() {
            failures.push("no perplexity was measured that the checks asked for could hold for".to_string());
        }
        failures.iter().for_each(|text| context.ui.check_failed(text));
        if failures.is_empty() { Outcome::Fine } else { Outcome::CheckFailed }
    }
}

/// A JSON object and a line's end for each item.
fn samples<'a>(task: &'a EncodedItems, measured: &'a MeasuredTask) -> impl Iterator<Item = String> + 'a {
    task.items.rows.iter().zip(&measured.items).map(|(item, found)| {
        let log_p: Vec<_> = found.log_p.iter().map(|&log_p| number::value(log_p)).collect();
        let line = json!({
            "task": measured.result.task, "item": item.place, "gold": item.gold, "log_p": log_p,
            "pick": found.pick, "pick_norm": found.pick_norm, "acc": found.acc,
        });
        format!("{line}\n")
    })
}

//! Zero-shot tasks, from names to what models score on them.

use super::ResultNotMeasured;
use super::estimate::Sequences;
use super::texts::EvalText;
use crate::eval::{EncodedItems, MeasuredTask, TaskResult, zero_shot};
use crate::forward::KeptStates;
use crate::hub::HubOptions;
use crate::machine::StageClock;
use crate::model::{Model, Output};
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::text::{self, Tokenizer};
use crate::user_bail;
use anyhow::{Context, Result};

/// What a compressed model is measured on, beside its original.
#[derive(Clone, Copy, Default)]
pub struct EvalData<'a> {
    /// Corpora.
    pub texts: &'a [EvalText],
    /// Zero-shot tasks.
    pub tasks: &'a [EncodedItems],
    /// The original's states of windows that it ran before.
    pub kept: Option<&'a KeptStates>,
}

impl<'a> From<&'a [EvalText]> for EvalData<'a> {
    fn from(texts: &'a [EvalText]) -> Self {
        Self { texts, ..Self::default() }
    }
}

impl<'a> From<&'a Vec<EvalText>> for EvalData<'a> {
    fn from(texts: &'a Vec<EvalText>) -> Self {
        texts.as_slice().into()
    }
}

impl<'a, const N: usize> From<&'a [EvalText; N]> for EvalData<'a> {
    fn from(texts: &'a [EvalText; N]) -> Self {
        texts.as_slice().into()
    }
}

/// Reads and tokenises the items of the tasks that `specs` name, of each at most `limit`.
///
/// # Errors
/// A [`UserError`](crate::error::UserError) for a model that does not predict the next token, for a limit of 0, and as
/// [`text::items`] and [`EncodedItems::new`].
pub fn task_items(
    model: &Model,
    tokenizer: &Tokenizer,
    specs: &[String],
    limit: Option<usize>,
    hub: &HubOptions,
) -> Result<Vec<EncodedItems>> {
    if limit == Some(0) {
        user_bail!("--limit is 0"; "use at least 1, or leave it out for all items");
    }
    if !specs.is_empty() && model.output() != Output::NextToken {
        user_bail!(
            "{} is an encoder, which zero-shot tasks do not measure: it does not predict what comes next", model.source().label();
            "measure labelled tasks with `softlm eval --glue`"
        );
    }
    let read = |spec: &String| EncodedItems::new(text::items(spec, limit, hub)?, tokenizer, model.context());
    specs.iter().map(read).collect()
}

/// The tasks that `recipe` evaluates on.
pub(super) fn of_recipe(
    recipe: &Recipe,
    model: &Model,
    tokenizer: &Tokenizer,
    hub: &HubOptions,
) -> Result<Vec<EncodedItems>> {
    task_items(model, tokenizer, &recipe.tasks, recipe.limit, hub)
}

/// What goes through a model when it is measured on them.
pub fn task_sequences(tasks: &[EncodedItems]) -> impl Iterator<Item = Sequences> {
    tasks.iter().map(|task| {
        let length = task.longest().max(1);
        Sequences { count: task.tokens().div_ceil(length), length }
    })
}

/// Measures `model`, and the base if there is one, on every task.
pub fn measure_tasks(
    model: &Model,
    base: Option<&Model>,
    tasks: &[EncodedItems],
    progress: &dyn Progress,
) -> Result<Vec<MeasuredTask>> {
    let measure = |task: &EncodedItems| {
        progress.stage(&format!("evaluating {}", task.items.task.name()), steps(model, base, task));
        if task.truncated > 0 {
            progress.warn(&format!(
                "{} texts of {} are longer than the context and lose their beginning",
                task.truncated,
                task.items.task.name()
            ));
        }
        zero_shot(model, base, task, progress)
    };
    tasks.iter().map(measure).collect()
}

/// The same of a compressed model and its original, as a stage of its own.
pub(super) fn measure_stage(
    original: &Model,
    compressed: &Model,
    tasks: &[EncodedItems],
    clock: &mut StageClock,
    progress: &dyn Progress,
) -> Result<Vec<TaskResult>> {
    if tasks.is_empty() {
        return Ok(Vec::new());
    }
    clock.stage("evaluating tasks", tasks.iter().map(|task| steps(compressed, Some(original), task)).sum());
    let measure = |task| {
        let measured = zero_shot(compressed, Some(original), task, progress).context(ResultNotMeasured);
        measured.map(|measured| measured.result)
    };
    tasks.iter().map(measure).collect()
}

fn steps(model: &Model, base: Option<&Model>, task: &EncodedItems) -> u64 {
    ((1 + usize::from(base.is_some())) * task.items.rows.len() * model.blocks()) as u64
}

//! Zero-shot tasks for decoders, scored as lm-evaluation-harness 0.4.13 scores them (`lm_eval/models/huggingface.py`,
//! `lm_eval/api/task.py`): a model picks the choice to which it gives the largest log-likelihood (`acc`), or the largest
//! per character (`acc_norm`); of LAMBADA the last word must be the one that the model would write.

use super::likelihood::{Likelihood, likelihoods};
use super::metrics::{first_largest, mean_and_error};
use crate::model::{Model, UNBOUNDED};
use crate::progress::Progress;
use crate::text::{Item, Items, Request, Tokenizer, Window, is_space};
use crate::user_bail;
use anyhow::Result;
use serde::{Deserialize, Serialize};

/// The harness's context where a model has no bound.
const USUAL_CONTEXT: usize = 2048;

/// What a model scores on a task, or by how much two models differ item by item. Each number is a mean over items, with its
/// standard error: the sample's standard deviation over √n, absent for a single item.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskScores {
    /// Share of items whose right choice is the likeliest; of `lambada` of those whose last word is written.
    #[serde(with = "crate::number")]
    pub acc: f64,
    /// Standard error of `acc`.
    #[serde(default, with = "crate::number::optional")]
    pub acc_stderr: Option<f64>,
    /// The same by likelihood per character, where the harness has it.
    #[serde(default, with = "crate::number::optional")]
    pub acc_norm: Option<f64>,
    /// Standard error of `acc_norm`.
    #[serde(default, with = "crate::number::optional")]
    pub acc_norm_stderr: Option<f64>,
    /// exp(mean −log p(last word)) of `lambada`.
    #[serde(default, with = "crate::number::optional", skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
    /// Standard error of `perplexity`, to first order that of the mean times the perplexity.
    #[serde(default, with = "crate::number::optional", skip_serializing_if = "Option::is_none")]
    pub perplexity_stderr: Option<f64>,
}

/// One task, with its protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    /// Name in the harness.
    pub task: String,
    /// Items.
    pub n: usize,
    /// The model's.
    #[serde(flatten)]
    pub scores: TaskScores,
    /// The same of the model it is compared with; absent without one.
    #[serde(default)]
    pub baseline: Option<TaskScores>,
    /// The model's minus the other's, item by item: its error is smaller than those of the two suggest.
    #[serde(default)]
    pub difference: Option<TaskScores>,
    /// Path, or data set, commit and file.
    pub data: String,
    /// SHA-256 of that file.
    pub sha256: String,
    /// `harness`, or `file` where the rows bring their own.
    pub prompts: String,
    /// Examples in front of each item.
    pub shots: usize,
    /// Whether each text begins with the tokenizer's BOS.
    pub bos: bool,
    /// Texts that lost tokens at their beginning, since they were longer than the context.
    pub truncated: usize,
    /// Type the model computed in.
    pub dtype: String,
}

/// Items as a model takes them.
pub struct EncodedItems {
    /// What they were made from.
    pub items: Items,
    /// A window for each request of each item; its targets are the continuation.
    pub windows: Vec<Vec<Window>>,
    /// Whether each text begins with the tokenizer's BOS.
    pub bos: bool,
    /// Texts that were cut at their beginning.
    pub truncated: usize,
}

impl EncodedItems {
    /// Makes tokens of items for a model with this context ([`Model::context`]).
    ///
    /// # Errors
    /// A [`UserError`](crate::error::UserError) for a continuation that has no token, or alone is longer than the context.
    pub fn new(items: Items, tokenizer: &Tokenizer, context: usize) -> Result<Self> {
        let context = if context == UNBOUNDED { USUAL_CONTEXT } else { context };
        let mut truncated = 0;
        let encode = |item: &Item| -> Result<Vec<Window>> {
            item.requests.iter().map(|request| encode(request, item, tokenizer, context, &mut truncated)).collect()
        };
        let windows = items.rows.iter().map(encode).collect::<Result<_>>()?;
        let bos = tokenizer.bos().is_some_and(|bos| tokenizer.encode_prompt("a").is_ok_and(|ids| ids[0] == bos));
        Ok(Self { items, windows, bos, truncated })
    }

    /// Tokens of the longest text.
    pub fn longest(&self) -> usize {
        self.windows.iter().flatten().map(|window| window.ids.len()).max().unwrap_or(0)
    }

    /// Tokens of all texts.
    pub fn tokens(&self) -> usize {
        self.windows.iter().flatten().map(|window| window.ids.len()).sum()
    }
}

/// Context and continuation are tokenised together, and what the tokens of the context alone do not cover is the
/// continuation: as the harness has it, the tokens of the context stay those that it has alone. The text begins as the
/// tokenizer begins one; an empty context is BOS, or what ends a text.
fn encode(request: &Request, item: &Item, tokenizer: &Tokenizer, most: usize, truncated: &mut usize) -> Result<Window> {
    let context = request.context.trim_end_matches(is_space);
    let whole = format!("{}{}", request.context, request.continuation);
    let (mut ids, continuation) = if context.is_empty() {
        let Some(begin) = tokenizer.bos().or_else(|| tokenizer.eos()) else {
            user_bail!("{} has an empty context, and the tokenizer no token that begins a text", item.place; "give it a context")
        };
        let continuation = tokenizer.encode(&whole)?;
        if continuation.first() == Some(&begin) {
            (vec![begin], continuation[1..].to_vec())
        } else {
            (vec![begin], continuation)
        }
    } else {
        let ids = tokenizer.encode_prompt(context)?;
        let whole = tokenizer.encode_prompt(&whole)?;
        let continuation = whole.get(ids.len()..).unwrap_or_default().to_vec();
        (ids, continuation)
    };
    let text = &request.continuation;
    if continuation.is_empty() {
        user_bail!("{}: {text:?} adds no token to its context", item.place; "leave the item out, or correct it");
    }
    if continuation.len() > most {
        user_bail!(
            "{}: a continuation of {} tokens is longer than the model's context of {most}: {}", item.place,
            continuation.len(), text.chars().take(40).collect::<String>();
            "leave the item out"
        );
    }
    let targets = continuation.len();
    ids.extend(continuation);
    // The last token is only predicted.
    let beyond = ids.len().saturating_sub(most + 1);
    *truncated += usize::from(beyond > 0);
    ids.drain(..beyond);
    Ok(Window { first_target: ids.len() - targets, ids })
}

/// A task measured.
pub struct MeasuredTask {
    /// What it comes to.
    pub result: TaskResult,
    /// What the model made of each item.
    pub items: Vec<ItemScore>,
}

/// Measures `model`, and the base if there is one, on a task. Steps `progress` about once per item, model and block.
///
/// # Errors
/// As for [`likelihoods`].
pub fn zero_shot(
    model: &Model,
    base: Option<&Model>,
    encoded: &EncodedItems,
    progress: &dyn Progress,
) -> Result<MeasuredTask> {
    let items = &encoded.items;
    let measured = |model: &Model| -> Result<Vec<ItemScore>> {
        Ok(item_scores(items, &likelihoods(model, &encoded.windows, progress)?))
    };
    let own = measured(model)?;
    let other = base.map(measured).transpose()?;
    let own_prompts = items.rows.iter().any(|item| item.own_prompt);
    let result = TaskResult {
        task: items.task.name().into(),
        n: items.rows.len(),
        scores: scores(items, &own),
        baseline: other.as_ref().map(|other| scores(items, other)),
        difference: other.as_ref().map(|other| difference(items, &own, other)),
        data: items.origin.clone(),
        sha256: items.sha256.clone(),
        prompts: if own_prompts { "file" } else { "harness" }.into(),
        shots: 0,
        bos: encoded.bos,
        truncated: encoded.truncated,
        dtype: model.compute().describe_type(),
    };
    Ok(MeasuredTask { result, items: own })
}

/// What a model made of one item.
#[derive(Debug, Clone, PartialEq)]
pub struct ItemScore {
    /// The choice by likelihood. (Where there is no choice, 0 if the continuation is what the model would write, otherwise 1.)
    pub pick: usize,
    /// The choice by likelihood per character.
    pub pick_norm: usize,
    /// Whether `pick` is right: 1 or 0.
    pub acc: f64,
    /// Whether `pick_norm` is.
    pub acc_norm: f64,
    /// log p of each continuation, nats.
    pub log_p: Vec<f64>,
    /// Number of the right one.
    pub gold: usize,
}

/// Picks of a model with these likelihoods; of equal ones the first.
pub fn item_scores(items: &Items, likelihoods: &[Vec<Likelihood>]) -> Vec<ItemScore> {
    let of = |(item, found): (&Item, &Vec<Likelihood>)| {
        let log_p: Vec<f64> = found.iter().map(|likelihood| likelihood.log_p).collect();
        let per_character: Vec<f64> =
            log_p.iter().zip(&item.lengths).map(|(log_p, &length)| log_p / length as f64).collect();
        let (pick, pick_norm) = match items.task.has_choices() {
            true => (first_largest(&log_p), first_largest(&per_character)),
            false => (usize::from(!found[0].greedy), 0),
        };
        let right = |pick: usize| f64::from(u8::from(pick == item.gold));
        ItemScore { pick, pick_norm, acc: right(pick), acc_norm: right(pick_norm), log_p, gold: item.gold }
    };
    items.rows.iter().zip(likelihoods).map(of).collect()
}

fn scores(items: &Items, found: &[ItemScore]) -> TaskScores {
    let mean = |of: fn(&ItemScore) -> f64| mean_and_error(&found.iter().map(of).collect::<Vec<_>>());
    let ((acc, acc_stderr), (norm, norm_stderr)) = (mean(|item| item.acc), mean(|item| item.acc_norm));
    let (nll, nll_stderr) = mean(|item| -item.log_p[item.gold]);
    let (normalised, written) = (items.task.is_normalised(), !items.task.has_choices());
    TaskScores {
        acc,
        acc_stderr,
        acc_norm: normalised.then_some(norm),
        acc_norm_stderr: norm_stderr.filter(|_| normalised),
        perplexity: written.then_some(nll.exp()),
        perplexity_stderr: nll_stderr.filter(|_| written).map(|error| error * nll.exp()),
    }
}

/// The means of what the items of two models differ by.
fn difference(items: &Items, own: &[ItemScore], other: &[ItemScore]) -> TaskScores {
    let paired = |of: fn(&ItemScore) -> f64| {
        mean_and_error(&own.iter().zip(other).map(|(own, other)| of(own) - of(other)).collect::<Vec<_>>())
    };
    let ((acc, acc_stderr), (norm, norm_stderr)) = (paired(|item| item.acc), paired(|item| item.acc_norm));
    let normalised = items.task.is_normalised();
    TaskScores {
        acc,
        acc_stderr,
        acc_norm: normalised.then_some(norm),
        acc_norm_stderr: norm_stderr.filter(|_| normalised),
        ..TaskScores::default()
    }
}

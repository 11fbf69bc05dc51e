//! Items of zero-shot tasks: texts, each with a continuation that a model gives a likelihood.
//!
//! Prompts are those of lm-evaluation-harness 0.4.13 without examples (`lm_eval/tasks/`), where a row has the fields of the
//! hub; see `hub_fields.rs`. A row that brings its own prompt is taken as it is:
//!
//! | task | fields | context | continuation |
//! |---|---|---|---|
//! | all but the next two | `query`, `choices`, `gold` | `query` | a space and the choice |
//! | `winogrande` | `context_options`, `continuation`, `gold` | the option | a space and `continuation` |
//! | `lambada` | `context`, `continuation` | `context` | a space and `continuation` |
//!
//! The space is the harness's `target_delimiter`. It is added whatever the context ends with, as there; white space at the end
//! of a context counts to the continuation, but not to its length.

mod hub_fields;

use super::names::named;
use super::records::{Records, records};
use crate::hub::{self, HubOptions};
use crate::user_bail;
use anyhow::{Context, Result};
use hub_fields::from_hub_fields;
use serde_json::{Map, Value};

/// A task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names that they have everywhere")]
pub enum ZeroShot {
    Piqa,
    ArcEasy,
    ArcChallenge,
    HellaSwag,
    WinoGrande,
    OpenBookQa,
    BoolQ,
    MathQa,
    Lambada,
}

/// Name, data set, revision and file of each: the part that the harness measures on. Data sets that hold a script, not rows,
/// have their rows on the branch that the hub makes.
const TASKS: [(ZeroShot, &str, [&str; 3]); 9] = [
    (ZeroShot::Piqa, "piqa", ["ybisk/piqa", CONVERTED, "plain_text/validation/0000.parquet"]),
    (ZeroShot::ArcEasy, "arc_easy", ["allenai/ai2_arc", "main", "ARC-Easy/test-00000-of-00001.parquet"]),
    (ZeroShot::ArcChallenge, "arc_challenge", ["allenai/ai2_arc", "main", "ARC-Challenge/test-00000-of-00001.parquet"]),
    (ZeroShot::HellaSwag, "hellaswag", ["Rowan/hellaswag", "main", "data/validation-00000-of-00001.parquet"]),
    (ZeroShot::WinoGrande, "winogrande", ["allenai/winogrande", CONVERTED, "winogrande_xl/validation/0000.parquet"]),
    (ZeroShot::OpenBookQa, "openbookqa", ["allenai/openbookqa", "main", "main/test-00000-of-00001.parquet"]),
    (ZeroShot::BoolQ, "boolq", ["aps/super_glue", CONVERTED, "boolq/validation/0000.parquet"]),
    (ZeroShot::MathQa, "mathqa", ["regisss/math_qa", CONVERTED, "default/test/0000.parquet"]),
    (ZeroShot::Lambada, "lambada", ["EleutherAI/lambada_openai", CONVERTED, "default/test/0000.parquet"]),
];

/// The branch on which the hub keeps the rows of a data set as parquet files.
const CONVERTED: &str = "refs/convert/parquet";

impl ZeroShot {
    /// Name in the harness.
    pub fn name(self) -> &'static str {
        TASKS.iter().find(|(task, ..)| *task == self).map_or("", |(_, name, _)| name)
    }

    /// The names of all tasks, separated by commas.
    pub fn names() -> String {
        TASKS.map(|(_, name, _)| name).join(", ")
    }

    /// Whether a name is that of a task.
    pub fn is_known(name: &str) -> bool {
        TASKS.iter().any(|(_, known, _)| *known == name)
    }

    /// Whether an item is a choice. Otherwise its continuation is what the model would write, or is not.
    pub fn has_choices(self) -> bool {
        self != Self::Lambada
    }

    /// Whether the harness also picks by log-likelihood per character of a choice (`acc_norm`).
    pub fn is_normalised(self) -> bool {
        !matches!(self, Self::WinoGrande | Self::BoolQ | Self::Lambada)
    }
}

/// A continuation to be given a likelihood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What stands before it; may be empty.
    pub context: String,
    /// The continuation, with what separates it from the context.
    pub continuation: String,
}

/// One item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// One for each choice.
    pub requests: Vec<Request>,
    /// Characters of each choice, without what separates it from the context.
    pub lengths: Vec<usize>,
    /// Number of the right choice, from 0.
    pub gold: usize,
    /// File and line, or row.
    pub place: String,
    /// Whether the prompt is the file's own, not the harness's.
    pub own_prompt: bool,
}

/// The items of a task and where they came from.
#[derive(Debug, Clone)]
pub struct Items {
    /// The task.
    pub task: ZeroShot,
    /// In file order.
    pub rows: Vec<Item>,
    /// A path, or `hub REPOSITORY@COMMIT FILE`.
    pub origin: String,
    /// SHA-256 of the file in hexadecimal.
    pub sha256: String,
}

/// Loads the items that `spec` names, a task or `TASK=PATH`: JSON Lines, one JSON array, or parquet. Of more than `limit` the
/// first.
///
/// # Errors
/// A [`UserError`](crate::error::UserError) for an unknown task, a file that cannot be read or has no items, a field that is
/// missing or of another type, and a right choice that is none; what the hub may answer is in [`crate::hub`].
pub fn items(spec: &str, limit: Option<usize>, hub: &HubOptions) -> Result<Items> {
    let (name, path) = named(spec).map_or((spec, None), |(name, path)| (name, Some(path)));
    let Some(&(task, name, [repository, revision, file])) = TASKS.iter().find(|(_, known, _)| *known == name) else {
        user_bail!("there is no task {spec:?}"; "known are {}; a local file is named as TASK=PATH, for example piqa=valid.jsonl", ZeroShot::names())
    };
    let (path, origin) = match path {
        Some(path) => (path.into(), path.to_string()),
        None => {
            let context = || {
                format!("{name} is {file} of {repository} on the hub, branch {revision} (a local file: {name}=PATH)")
            };
            let found = hub::dataset_file(repository, file, revision, hub).with_context(context)?;
            (found.path, format!("hub {repository}@{} {file}", found.commit))
        }
    };
    let (Records::Rows(rows), sha256) = records(&path, &origin)? else {
        user_bail!("{origin} holds neither JSON nor parquet"; "each line must be a JSON object, as in JSON Lines files")
    };
    let rows = rows.iter().take(limit.unwrap_or(usize::MAX));
    let rows: Vec<Item> = rows.map(|(place, fields)| item(task, &Row { fields, place })).collect::<Result<_>>()?;
    if rows.is_empty() {
        user_bail!("{origin} has no items"; "name a file with at least one, or leave --limit out");
    }
    Ok(Items { task, rows, origin, sha256 })
}

fn item(task: ZeroShot, row: &Row) -> Result<Item> {
    let item = match task {
        ZeroShot::WinoGrande if row.fields.contains_key("context_options") => {
            continued(row.texts("context_options")?, row.text("continuation")?, row.whole("gold")?)
        }
        ZeroShot::Lambada if row.fields.contains_key("context") => {
            continued(vec![row.text("context")?.to_string()], row.text("continuation")?, 0)
        }
        ZeroShot::WinoGrande | ZeroShot::Lambada => return checked(row, from_hub_fields(task, row)?),
        _ if row.fields.contains_key("query") => {
            chosen(row.text("query")?.to_string(), row.texts("choices")?, row.whole("gold")?)
        }
        _ => return checked(row, from_hub_fields(task, row)?),
    };
    checked(row, Draft { own_prompt: true, ..item })
}

/// An item whose right choice is not checked yet.
struct Draft {
    requests: Vec<Request>,
    lengths: Vec<usize>,
    gold: i64,
    own_prompt: bool,
}

/// One context and several continuations.
fn chosen(context: String, choices: Vec<String>, gold: i64) -> Draft {
    let lengths = choices.iter().map(|choice| choice.chars().count()).collect();
    let request = |choice: String| Request { context: context.clone(), continuation: format!(" {choice}") };
    Draft { requests: choices.into_iter().map(request).collect(), lengths, gold, own_prompt: false }
}

/// Several contexts and one continuation.
fn continued(contexts: Vec<String>, continuation: &str, gold: i64) -> Draft {
    let lengths = vec![continuation.chars().count(); contexts.len()];
    let request = |context| Request { context, continuation: format!(" {continuation}") };
    Draft { requests: contexts.into_iter().map(request).collect(), lengths, gold, own_prompt: false }
}

fn checked(row: &Row, draft: Draft) -> Result<Item> {
    let Draft { requests, lengths, gold, own_prompt } = draft;
    let place = row.place.to_string();
    match usize::try_from(gold).ok().filter(|gold| *gold < requests.len()) {
        Some(gold) => Ok(Item { requests, lengths, gold, place, own_prompt }),
        None => user_bail!(
            "{place}: the right choice is {gold}, and there are {} choices, counted from 0", requests.len();
            "correct it; parts whose answers are secret cannot be measured on"
        ),
    }
}

/// The fields of a record and where it is.
struct Row<'a> {
    fields: &'a Map<String, Value>,
    place: &'a str,
}

impl Row<'_> {
    fn field(&self, name: &str) -> Result<&Value> {
        match self.fields.get(name) {
            Some(value) => Ok(value),
            None => user_bail!(
                "{} has no field {name:?}, but {}", self.place,
                self.fields.keys().map(|key| format!("{key:?}")).collect::<Vec<_>>().join(", ");
                "see `softlm eval --help` for the fields of a task's files"
            ),
        }
    }

    /// Fails for a field that is not what it should be.
    fn mistaken<T>(&self, name: &str, value: &Value, wanted: &str) -> Result<T> {
        user_bail!("{}: {name:?} is {value}, expected {wanted}", self.place; "correct the file, or name one of this task")
    }

    fn text(&self, name: &str) -> Result<&str> {
        let value = self.field(name)?;
        value.as_str().map_or_else(|| self.mistaken(name, value, "a text"), Ok)
    }

    /// A list of texts, at least one.
    fn texts(&self, name: &str) -> Result<Vec<String>> {
        self.list(name, self.field(name)?)
    }

    fn list(&self, name: &str, value: &Value) -> Result<Vec<String>> {
        let items = value.as_array().filter(|items| !items.is_empty());
        let texts = items.and_then(|items| items.iter().map(|item| item.as_str().map(str::to_string)).collect());
        texts.map_or_else(|| self.mistaken(name, value, "a list of texts"), Ok)
    }

    /// A whole number, which may be written as text.
    fn whole(&self, name: &str) -> Result<i64> {
        let value = self.field(name)?;
        let number = value.as_i64().or_else(|| value.as_str()?.trim().parse().ok());
        number.map_or_else(|| self.mistaken(name, value, "a whole number"), Ok)
    }
}

/// What Python's `str.strip` takes away: Unicode's white space, and four separators of old.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

#[cfg(test)]
mod tests;

//! Labelled examples: GLUE tasks by name from the hub, or from local files.
//!
//! | file | what is read |
//! |---|---|
//! | JSON Lines, or one JSON array | objects with the fields of the hub, or `text`, `score` |
//! | parquet | the columns of the hub |
//! | any other | tab-separated text without quoting. With a header line its columns are found by name: GLUE's, those of the Microsoft paraphrase corpus, or `text` and `label`. Without one it is the STS benchmark's `.csv`: the score in column 5, the sentences in columns 6 and 7 |

use super::corpus::{Corpus, Split};
use super::names::named;
use super::records::{Records, records};
use crate::error::UserError;
use crate::hub::{self, HubOptions};
use crate::user_bail;
use anyhow::Result;
use serde_json::{Map, Value};
use std::path::Path;

/// The data set that holds all tasks.
const REPOSITORY: &str = "nyu-mll/glue";
/// What a column with the first text, the second text and the label may be called. Case does not matter.
const FIRST: &[&str] = &["sentence", "sentence1", "text", "#1 string"];
const SECOND: &[&str] = &["sentence2", "#2 string"];
const LABEL: &[&str] = &["label", "score", "quality"];
/// Columns of the STS benchmark's files: score, first and second sentence.
const STS: [usize; 3] = [4, 5, 6];

/// A task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Sentiment of a sentence: 0 negative, 1 positive.
    Sst2,
    /// Whether two sentences say the same: 0 no, 1 yes.
    Mrpc,
    /// How alike two sentences are in meaning, 0 to 5.
    Stsb,
}

const TASKS: [(Task, &str); 3] = [(Task::Sst2, "sst2"), (Task::Mrpc, "mrpc"), (Task::Stsb, "stsb")];

impl Task {
    /// Name in GLUE.
    pub fn name(self) -> &'static str {
        TASKS.iter().find(|(task, _)| *task == self).map_or("", |(_, name)| name)
    }

    /// Whether an example is two texts.
    pub fn is_pair(self) -> bool {
        self != Task::Sst2
    }

    /// Whether labels are numbers of classes, not scores.
    pub fn has_classes(self) -> bool {
        self != Task::Stsb
    }
}

/// One example.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// The text, or the first of two.
    pub first: String,
    /// The second text of a pair.
    pub second: Option<String>,
    /// The class as a whole number, or the score.
    pub label: f64,
}

/// The examples of a task and where they came from.
#[derive(Debug, Clone)]
pub struct Examples {
    /// The task.
    pub task: Task,
    /// In file order.
    pub rows: Vec<Example>,
    /// A path, or `hub REPOSITORY@COMMIT FILE`.
    pub origin: String,
    /// SHA-256 of the file in hexadecimal.
    pub sha256: String,
}

impl Examples {
    /// Their texts.
    pub fn corpus(self) -> Result<Corpus> {
        let texts = self.rows.into_iter().flat_map(|row| [Some(row.first), row.second]).flatten();
        Corpus::new(self.task.name(), self.origin, texts.collect())
    }
}

/// Whether `spec` is a task, or a task with a file.
pub(super) fn names_task(spec: &str) -> bool {
    let name = named(spec).map_or(spec, |(name, _)| name);
    TASKS.iter().any(|(_, known)| *known == name)
}

/// Loads the examples that `spec` names: `sst2`, `mrpc` or `stsb` (GLUE on the hub: the training or the validation part), or
/// `TASK=PATH`, a local file, which is the same for both splits.
///
/// # Errors
/// A [`UserError`] for an unknown task, a file that cannot be read or has other columns, and labels that the task does not
/// have; what the hub may answer is in [`crate::hub`].
pub fn examples(spec: &str, split: Split, hub: &HubOptions) -> Result<Examples> {
    let (name, path) = match named(spec) {
        Some((name, path)) => (name, Some(path)),
        None => (spec, None),
    };
    let Some(&(task, name)) = TASKS.iter().find(|(_, known)| *known == name) else {
        let known = TASKS.map(|(_, name)| name).join(", ");
        user_bail!("there is no task {spec:?}"; "known are {known}; a local file is named as TASK=PATH, for example stsb=test.csv")
    };
    let (path, origin) = match path {
        Some(path) => (path.into(), path.to_string()),
        None => {
            let part = if split == Split::Calibration { "train" } else { "validation" };
            let file = format!("{name}/{part}-00000-of-00001.parquet");
            let found = hub::dataset_file(REPOSITORY, &file, "main", hub)?;
            (found.path, format!("hub {REPOSITORY}@{} {file}", found.commit))
        }
    };
    let (rows, sha256) = read(task, &path, &origin)?;
    if rows.is_empty() {
        user_bail!("{origin} has no examples"; "name a file with labelled rows");
    }
    Ok(Examples { task, rows, origin, sha256 })
}

/// The examples of a file and its SHA-256.
fn read(task: Task, path: &Path, origin: &str) -> Result<(Vec<Example>, String)> {
    let (records, sha256) = records(path, origin)?;
    let rows = match records {
        Records::Text(text) => lines(task, &text, origin)?,
        Records::Rows(rows) => {
            rows.iter().map(|(place, fields)| from_fields(task, fields, place)).collect::<Result<_>>()?
        }
    };
    Ok((rows, sha256))
}

/// The examples of tab-separated text.
fn lines(task: Task, text: &str, origin: &str) -> Result<Vec<Example>> {
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).peekable();
    let Some(&(first, header)) = lines.peek() else { return Ok(Vec::new()) };
    let columns = columns(task, header, &place(origin, first))?;
    if columns.header {
        lines.next();
    }
    lines.map(|(i, line)| columns.example(task, line, &place(origin, i))).collect()
}

fn place(origin: &str, line: usize) -> String {
    format!("{origin}, line {}", line + 1)
}

/// Where the parts of an example are in a tab-separated line.
struct Columns {
    header: bool,
    label: usize,
    first: usize,
    second: Option<usize>,
}

fn columns(task: Task, line: &str, place: &str) -> Result<Columns> {
    let cells: Vec<&str> = line.split('\t').map(str::trim).collect();
    let [score, first, second] = STS;
    if task == Task::Stsb && cells.len() > second && cells[score].parse::<f64>().is_ok() {
        return Ok(Columns { header: false, label: score, first, second: Some(second) });
    }
    let find = |names: &[&str]| cells.iter().position(|cell| names.contains(&cell.to_lowercase().as_str()));
    let second = find(SECOND).filter(|_| task.is_pair());
    match (find(LABEL), find(FIRST), second) {
        (Some(label), Some(first), second) if second.is_some() == task.is_pair() => {
            Ok(Columns { header: true, label, first, second })
        }
        _ => user_bail!(
            "{place} names no columns for {}: {:?}", task.name(), cells.join(", ");
            "a tab-separated file begins with a header such as {}",
            if task.is_pair() { "sentence1, sentence2, label" } else { "sentence, label" }
        ),
    }
}

impl Columns {
    fn example(&self, task: Task, line: &str, place: &str) -> Result<Example> {
        let cells: Vec<&str> = line.split('\t').collect();
        let cell = |column: usize| match cells.get(column) {
            Some(cell) => Ok(cell.trim()),
            None => user_bail!(
                "{place} has {} columns, at least {} are needed", cells.len(), column + 1;
                "columns are separated by tabs, and texts hold none"
            ),
        };
        let text = cell(self.label)?;
        let number = text.parse().map_err(|_| not_a_label(place, text))?;
        Ok(Example {
            first: cell(self.first)?.to_string(),
            second: self.second.map(cell).transpose()?.map(str::to_string),
            label: label(task, number, place)?,
        })
    }
}

fn from_fields(task: Task, fields: &Map<String, Value>, place: &str) -> Result<Example> {
    let find = |names: &[&str]| {
        fields.iter().find(|(key, _)| names.contains(&key.to_lowercase().as_str())).map(|(_, value)| value)
    };
    let text = |names: &[&str]| match find(names).and_then(Value::as_str) {
        Some(text) => Ok(text.to_string()),
        None => user_bail!("{place} has no text {:?}", names[0]; "name it {}", names.join(" or ")),
    };
    let number = match find(LABEL) {
        Some(Value::Number(number)) => number.as_f64().ok_or_else(|| not_a_label(place, &number.to_string()))?,
        Some(Value::String(text)) => text.trim().parse().map_err(|_| not_a_label(place, text))?,
        Some(other) => return Err(not_a_label(place, &other.to_string()).into()),
        None => user_bail!("{place} has no label"; "name it {}", LABEL.join(" or ")),
    };
    Ok(Example {
        first: text(FIRST)?,
        second: if task.is_pair() { Some(text(SECOND)?) } else { None },
        label: label(task, number, place)?,
    })
}

fn not_a_label(place: &str, found: &str) -> UserError {
    UserError::new(format!("{place}: {found:?} is not a label"))
        .hint("labels are numbers: of classes from 0 on, or scores")
}

fn label(task: Task, number: f64, place: &str) -> Result<f64> {
    if number == -1.0 {
        user_bail!("{place} has the label -1: GLUE keeps the labels of its test parts secret"; "use the validation part");
    }
    let fits = if task.has_classes() { number >= 0.0 && number.fract() == 0.0 } else { number.is_finite() };
    if !fits {
        user_bail!("{place}: {number} is not a label of {}", task.name(); "classes are counted from 0, scores are finite");
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(task: &str, file: &str, content: &str) -> Result<Examples> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(file);
        std::fs::write(&path, content).unwrap();
        examples(&format!("{task}={}", path.display()), Split::Evaluation, &HubOptions::default())
    }

    fn pair(first: &str, second: &str, label: f64) -> Example {
        Example { first: first.into(), second: Some(second.into()), label }
    }

    #[test]
    fn every_kind_of_file_gives_the_same_examples() {
        let wanted = [pair("A \"b\".", "C, d", 3.2), pair("E", "f", 0.0)];
        let csv = "main\tMSR\t2012\t1\t3.200\tA \"b\".\tC, d\tlicence\nmain\tMSR\t2012\t2\t0\tE\tf\n";
        let tsv = "index\tgenre\tsentence1\tsentence2\tscore\r\n0\tx\tA \"b\".\tC, d\t3.2\r\n1\tx\tE\tf\t0\r\n";
        let lines = "{\"sentence1\": \"A \\\"b\\\".\", \"sentence2\": \"C, d\", \"label\": 3.2}\n\n{\"sentence1\": \"E\", \"sentence2\": \"f\", \"score\": \"0\"}";
        for (file, content) in [("sts.csv", csv), ("dev.tsv", tsv), ("dev.jsonl", lines)] {
            let found = load("stsb", file, content).unwrap();
            assert_eq!(found.rows, wanted, "{file}");
            assert_eq!((found.task, found.sha256.len()), (Task::Stsb, 64));
        }
        let msr = "\u{feff}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tE\tf\n";
        assert_eq!(load("mrpc", "msr.txt", msr).unwrap().rows, [pair("E", "f", 1.0)]);
        let single = load("sst2", "dev.tsv", "text\tlabel\nso good \t1\n").unwrap();
        assert_eq!(single.rows, [Example { first: "so good".into(), second: None, label: 1.0 }]);
    }

    #[test]
    fn mistakes_name_the_line_and_the_value() {
        let message = |task: &str, file: &str, content: &str| {
            let error = load(task, file, content).unwrap_err();
            let user = error.downcast_ref::<UserError>().unwrap_or_else(|| panic!("{error:?}"));
            format!("{user} / {}", user.hint_text().expect("a hint"))
        };
        for (task, file, content, named) in [
            ("sst2", "a.tsv", "words\tlabel\n", "words, label"),
            ("mrpc", "a.tsv", "sentence1\tlabel\n", "sentence1, sentence2, label"),
            ("sst2", "a.tsv", "sentence\tlabel\nx\n", "line 2 has 1 columns"),
            ("sst2", "a.tsv", "sentence\tlabel\nx\tgood\n", "\"good\""),
            ("sst2", "a.tsv", "sentence\tlabel\n\nx\t0.5\n", "line 3: 0.5"),
            ("sst2", "a.tsv", "sentence\tlabel\nx\t-1\n", "secret"),
            ("sst2", "a.tsv", "sentence\tlabel\n", "no examples"),
            ("stsb", "a.jsonl", "{\"sentence1\": \"x\", \"label\": 1}", "sentence2"),
            ("stsb", "a.jsonl", "[1]", "JSON"),
            ("stsb", "a.jsonl", "{\"sentence1\": \"x\", \"sentence2\": \"y\"}", "no label"),
            ("cola", "a.tsv", "", "cola"),
        ] {
            let found = message(task, file, content);
            assert!(found.contains(named), "{content:?}: {found}");
        }
    }
}

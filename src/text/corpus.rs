//! Corpora: texts that have a name.

use crate::hash::Sha256;
use std::borrow::Cow;
use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use super::examples::{self, examples};
use super::file::{self, Content};
use super::hubset;
use super::names::named;
use super::parquet;
use crate::hub::HubOptions;
use crate::user_bail;

/// What stands between two documents of a corpus.
const SEPARATOR: &str = "\n\n";

/// [`Corpus::origin`] of the built-in text.
pub const BUILT_IN: &str = "built-in";
/// The built-in text; its documents are separated by lines that hold only `%%`.
const SAMPLE: &str = include_str!("sample.txt");
const SAMPLE_SEPARATOR: &str = "\n%%\n";

/// What the text is for. Corpora that are split answer with different text, so that nobody measures on the text that a
/// model was fitted to.
///
/// * Hub data sets have splits of their own.
/// * Of `sample` every third document is for evaluation, the others are for calibration.
/// * A local file and standard input are the same text for both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Text to gather statistics on or to train on.
    Calibration,
    /// Text to measure on.
    Evaluation,
}

/// A text with a name and an identity.
#[derive(Debug, Clone)]
pub struct Corpus {
    /// `wikitext2`, the file name of a path, or the name that the user gave.
    pub name: String,
    /// The documents, in order. Some may be empty: WikiText's empty rows are part of its protocol.
    pub documents: Vec<String>,
    /// SHA-256 of [`Corpus::text`] in hexadecimal: what identifies a corpus, whatever it is called.
    pub sha256: String,
    /// Where it came from: `built-in`, a path, `stdin`, or `hub REPOSITORY@COMMIT FILE`.
    pub origin: String,
}

impl Corpus {
    /// Gives documents a name.
    ///
    /// # Errors
    /// A [`UserError`](crate::error::UserError) if there is nothing in them but white space.
    pub fn new(name: &str, origin: String, documents: Vec<String>) -> Result<Self> {
        if documents.iter().all(|document| document.trim().is_empty()) {
            user_bail!("the corpus {name} ({origin}) is empty"; "give a text that has words in it");
        }
        let mut hash = Sha256::new();
        for (index, document) in documents.iter().enumerate() {
            if index > 0 {
                hash.update(SEPARATOR);
            }
            hash.update(document);
        }
        Ok(Self { name: name.to_owned(), documents, sha256: hash.hex(), origin })
    }

    /// The documents joined by blank lines.
    pub fn text(&self) -> Cow<'_, str> {
        match self.documents.as_slice() {
            [only] => Cow::Borrowed(only),
            many => Cow::Owned(many.join(SEPARATOR)),
        }
    }

    /// [`Corpus::text`] in place of the documents, so that there are not both.
    pub fn into_text(mut self) -> String {
        if let [only] = self.documents.as_mut_slice() {
            return std::mem::take(only);
        }
        let between = SEPARATOR.len() * self.documents.len().saturating_sub(1);
        let mut text = String::with_capacity(self.documents.iter().map(String::len).sum::<usize>() + between);
        for (index, document) in self.documents.into_iter().enumerate() {
            if index > 0 {
                text.push_str(SEPARATOR);
            }
            text.push_str(&document);
        }
        text
    }
}

/// Loads the corpus that `spec` names.
///
/// | spec | text |
/// |---|---|
/// | `sample` | built into softlm: original English prose of many kinds; see [`Split`] |
/// | `wikitext2`, `ptb`, `c4` | data sets on the hub, see below |
/// | `PATH` | a text file, verbatim but for a byte order mark: one document, no newline translation |
/// | `PATH` of JSON | JSON Lines, one array or one object, each value a string or an object with a `text` field: one document each. A file that ends in `.txt`, `.text` or `.md` is text whatever it holds, one that ends in `.json`, `.jsonl` or `.ndjson` must be JSON, and any other is JSON if all of it is |
/// | `PATH` of parquet | its column `text`: one document per row |
/// | `-` | standard input, read like a file without a name |
/// | `NAME=PATH` | a local file under a name of your choice |
/// | `sst2`, `mrpc`, `stsb`, also with `=PATH` | the texts of a labelled task, see [`examples()`]: one document each |
///
/// The text of a corpus is its documents joined by blank lines (`"\n\n"`), nothing stripped.
///
#[doc = include_str!("hubsets.md")]
///
/// # Errors
/// A [`UserError`](crate::error::UserError) for a name that is not known, a file that cannot be read as text, and an empty text; what the hub
/// may answer is in [`crate::hub`].
pub fn load(spec: &str, split: Split, hub: &HubOptions) -> Result<Corpus> {
    // A path that exists is a path, though its name looks like NAME=PATH.
    let names = !(spec.contains('=') && Path::new(spec).exists());
    if names && examples::names_task(spec) {
        return examples(spec, split, hub)?.corpus();
    }
    if names && let Some((name, path)) = named(spec) {
        return local(name, path);
    }
    if spec == "sample" {
        return sample(split);
    }
    if let Some(set) = hubset::find(spec) {
        return set.load(split, hub);
    }
    if spec == "-" || Path::new(spec).exists() {
        let name =
            if spec == "-" { Some("stdin".into()) } else { Path::new(spec).file_name().map(|n| n.to_string_lossy()) };
        return local(&name.unwrap_or(Cow::Borrowed(spec)), spec);
    }
    let known = format!("sample, {}", hubset::names().collect::<Vec<_>>().join(", "));
    if spec.contains(['/', '\\', '.']) {
        user_bail!("there is no text file {spec}"; "check the path, or name a corpus: {known}");
    }
    user_bail!("there is no corpus {spec:?}"; "known are {known}; anything else must be the path of a text file, or -")
}

fn sample(split: Split) -> Result<Corpus> {
    let documents = SAMPLE
        .trim_end()
        .split(SAMPLE_SEPARATOR)
        .enumerate()
        .filter(|(index, _)| (index % 3 == 2) == (split == Split::Evaluation))
        .map(|(_, document)| document.trim().to_owned())
        .collect();
    Corpus::new("sample", BUILT_IN.into(), documents)
}

/// A local file, or standard input for `-`.
fn local(name: &str, path: &str) -> Result<Corpus> {
    if path == "-" {
        let bytes = file::standard_input()?;
        let documents = match file::content("standard input", Path::new(""), bytes)? {
            Content::Json(rows) => documents(rows)?,
            Content::Text(text) => vec![text],
            Content::Parquet => {
                user_bail!("standard input is a parquet file"; "name the file itself: its end has to be read first")
            }
        };
        return Corpus::new(name, "stdin".into(), documents);
    }
    let documents = match file::read(Path::new(path))? {
        Content::Text(text) => vec![text],
        Content::Json(rows) => documents(rows)?,
        Content::Parquet => parquet::parquet_column(Path::new(path), "text")?,
    };
    Corpus::new(name, path.to_owned(), documents)
}

fn documents(rows: Vec<(String, Value)>) -> Result<Vec<String>> {
    rows.into_iter().map(|(place, value)| file::document(&place, value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_plain_varied_and_split_without_overlap() {
        assert!(SAMPLE.is_ascii());
        assert!((15_000..40_000).contains(&SAMPLE.len()), "{} bytes", SAMPLE.len());
        let calibration = sample(Split::Calibration).unwrap();
        let evaluation = sample(Split::Evaluation).unwrap();
        assert!(calibration.documents.len() >= 12 && evaluation.documents.len() >= 6);
        assert!(evaluation.documents.iter().all(|document| !calibration.documents.contains(document)));
        let share = evaluation.text().len() as f64 / SAMPLE.len() as f64;
        assert!((0.25..0.42).contains(&share), "{share}");
        assert_ne!(calibration.sha256, evaluation.sha256);

        let mut lines: Vec<&str> = SAMPLE.lines().filter(|line| line.len() > 20).collect();
        let all = lines.len();
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines.len(), all, "a line occurs twice");
    }

    #[test]
    fn the_hash_is_that_of_the_joined_text() {
        let split = Corpus::new("x", "test".into(), vec!["a".into(), String::new(), "b\n".into()]).unwrap();
        let joined = Corpus::new("y", "test".into(), vec!["a\n\n\n\nb\n".into()]).unwrap();
        assert_eq!(split.text(), joined.text());
        assert_eq!(split.text(), split.clone().into_text());
        assert_eq!(split.sha256, joined.sha256);
        let abc = Corpus::new("z", "test".into(), vec!["abc".into()]).unwrap();
        assert_eq!(abc.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}

//! Data sets on the hub: where their files are and how their rows become documents.
//!
#![doc = include_str!("hubsets.md")]

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result};
use flate2::read::MultiGzDecoder;

use super::corpus::{Corpus, Split};
use super::file::{document, lines};
use super::parquet::parquet_column;
use crate::hub::{self, HubOptions};

/// One data set.
pub(super) struct HubSet {
    name: &'static str,
    repository: &'static str,
    revision: &'static str,
    calibration: &'static str,
    evaluation: &'static str,
    format: Format,
}

enum Format {
    /// A parquet file; the documents are the strings in one column.
    Parquet { column: &'static str },
    /// Gzipped JSON lines with a `text` field; the documents are the first lines. Such a shard can be large: the rest
    /// of it is not even unpacked.
    JsonLines { first: usize },
}

const SETS: &[HubSet] = &[
    HubSet {
        name: "wikitext2",
        repository: "Salesforce/wikitext",
        revision: "main",
        calibration: "wikitext-2-raw-v1/train-00000-of-00001.parquet",
        evaluation: "wikitext-2-raw-v1/test-00000-of-00001.parquet",
        format: Format::Parquet { column: "text" },
    },
    HubSet {
        name: "ptb",
        repository: "ptb-text-only/ptb_text_only",
        // The repository itself holds a loading script; the hub keeps the rows on this branch.
        revision: "refs/convert/parquet",
        calibration: "penn_treebank/train/0000.parquet",
        evaluation: "penn_treebank/test/0000.parquet",
        format: Format::Parquet { column: "sentence" },
    },
    HubSet {
        name: "c4",
        repository: "allenai/c4",
        revision: "main",
        calibration: "en/c4-train.00000-of-01024.json.gz",
        evaluation: "en/c4-validation.00000-of-00008.json.gz",
        format: Format::JsonLines { first: 2000 },
    },
];

/// The data set of that name.
pub(super) fn find(name: &str) -> Option<&'static HubSet> {
    SETS.iter().find(|set| set.name == name)
}

/// The names of all data sets.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    SETS.iter().map(|set| set.name)
}

impl HubSet {
    /// Fetches the file of a split, or takes it from the cache, and reads its documents.
    pub(super) fn load(&self, split: Split, options: &HubOptions) -> Result<Corpus> {
        let path = match split {
            Split::Calibration => self.calibration,
            Split::Evaluation => self.evaluation,
        };
        let file = hub::dataset_file(self.repository, path, self.revision, options)?;
        let documents = match self.format {
            Format::Parquet { column } => parquet_column(&file.path, column),
            Format::JsonLines { first } => gzipped_lines(&file.path, first),
        }
        .with_context(|| format!("cannot read {}; delete it to fetch it again", file.path.display()))?;
        Corpus::new(self.name, format!("hub {}@{} {path}", self.repository, file.commit), documents)
    }
}

/// Bytes of a line at most: what is gzipped may unpack to anything.
const LONGEST_LINE: u64 = 64 << 20;

/// The `text` of the first lines of a gzipped file.
fn gzipped_lines(path: &Path, first: usize) -> Result<Vec<String>> {
    let lines = lines(BufReader::new(MultiGzDecoder::new(File::open(path)?)), LONGEST_LINE);
    let read = |(index, line): (usize, std::io::Result<String>)| {
        let place = format!("line {}", index + 1);
        let value = serde_json::from_str(&line?).with_context(|| format!("{place} is not JSON"))?;
        document(&place, value)
    };
    lines.take(first).enumerate().map(read).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn only_the_first_lines_of_a_shard_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shard.json.gz");
        let mut shard = flate2::write::GzEncoder::new(File::create(&path).unwrap(), flate2::Compression::fast());
        for index in 0..5 {
            writeln!(shard, r#"{{"text": "document {index}\nline two", "url": "none"}}"#).unwrap();
        }
        writeln!(shard, "not JSON").unwrap();
        shard.finish().unwrap();
        assert_eq!(gzipped_lines(&path, 2).unwrap(), ["document 0\nline two", "document 1\nline two"]);
        let error = gzipped_lines(&path, 6).unwrap_err().to_string();
        assert!(error.contains("line 6"), "{error}");

        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(gzipped_lines(&path, 6).is_err());
    }
}

//! Which model a folder holds: hashes of everything that decides what comes out of it.

use super::folder::CONFIG;
use super::source::Source;
use crate::hash::Sha256;
use anyhow::Result;
use serde::{Deserialize, Serialize};

/// Files beside config.json that decide which tokens a text becomes, where one ends, and what is made of the states; and the
/// code that other programs run to load an output.
const READ: &[&str] = &[
    "added_tokens.json",
    "config_sentence_transformers.json",
    "generation_config.json",
    "merges.txt",
    "modeling_softlm.py",
    "modules.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];
/// Settings of the encoder in a folder of sentence-transformers, under one of these names: the first that is there counts.
pub const SENTENCE_SETTINGS: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];
/// The same of the modules behind an encoder, each in a folder of its own.
const READ_OF_MODULES: &[&str] = &["config.json", "model.safetensors"];
/// Characters of a hash that tell two files apart in a message.
const SHOWN: usize = 12;

/// A file and its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileHash {
    /// Name relative to the model's folder.
    pub file: String,
    /// Lower-case hexadecimal sha256.
    pub sha256: String,
}

/// Where a model came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A folder of this machine.
    Folder,
    /// The hub.
    Hub,
    /// The program itself.
    BuiltIn,
}

/// The hashes of a model's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Every weight file, in name order.
    pub weights: Vec<FileHash>,
    /// `config.json`, then the tokenizer's files and what else may be read, in name order.
    #[serde(default)]
    pub files: Vec<FileHash>,
}

impl Identity {
    /// One hash for all, hexadecimal.
    pub fn fingerprint(&self) -> String {
        let mut all = Sha256::new();
        for FileHash { file, sha256 } in self.weights.iter().chain(&self.files) {
            all.update(format!("{file}\0{sha256}\0"));
        }
        all.hex()
    }

    /// One hash for the weights.
    pub fn weights_fingerprint(&self) -> String {
        Identity { weights: self.weights.clone(), files: Vec::new() }.fingerprint()
    }

    /// config.json alone, if its hash is known.
    pub fn config(&self) -> Option<&FileHash> {
        self.files.iter().find(|hash| hash.file == CONFIG)
    }
}

/// One sentence for each file of `found` that is not as it was recorded: changed, missing or new.
pub fn differences(recorded: &[FileHash], found: &[FileHash]) -> Vec<String> {
    let of = |list: &[FileHash], file: &str| list.iter().find(|hash| hash.file == file).map(|hash| hash.sha256.clone());
    let short = |sha256: &str| sha256.chars().take(SHOWN).collect::<String>();
    let mut out = Vec::new();
    for FileHash { file, sha256 } in recorded {
        match of(found, file) {
            None => out.push(format!("{file} is missing")),
            Some(other) if other != *sha256 => {
                out.push(format!("{file} has sha256 {}…, recorded is {}…", short(&other), short(sha256)));
            }
            Some(_) => {}
        }
    }
    let new = found.iter().filter(|hash| of(recorded, &hash.file).is_none());
    out.extend(new.map(|hash| format!("{} is there, but was not", hash.file)));
    out
}

impl Source {
    /// Hashes of the weights, the configuration and every other file that may be read. The weights are read completely
    /// the first time, in constant memory.
    pub fn identity(&self) -> Result<Identity> {
        let weights = self.sha256()?.iter();
        let weights = weights.map(|(file, sha256)| FileHash { file: file.clone(), sha256: sha256.clone() }).collect();
        let mut names = vec![CONFIG.to_string()];
        names.extend(self.side_files()?.into_iter().filter(|name| is_read(name)));
        let mut files = Vec::new();
        for file in names {
            let sha256 = self.hash_of(&file)?;
            files.push(FileHash { file, sha256 });
        }
        Ok(Identity { weights, files })
    }

    /// Where it came from.
    pub fn kind(&self) -> Kind {
        match (self.dir(), self.revision()) {
            (None, _) => Kind::BuiltIn,
            (Some(_), Some(_)) => Kind::Hub,
            (Some(_), None) => Kind::Folder,
        }
    }
}

fn is_read(name: &str) -> bool {
    match name.rsplit_once('/') {
        None => READ.contains(&name) || SENTENCE_SETTINGS.contains(&name),
        Some((_, name)) => READ_OF_MODULES.contains(&name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(list: &[(&str, &str)]) -> Vec<FileHash> {
        list.iter().map(|&(file, sha256)| FileHash { file: file.into(), sha256: sha256.into() }).collect()
    }

    #[test]
    fn every_difference_is_named() {
        let recorded = hashes(&[("config.json", "aa"), ("tokenizer.json", "bb"), ("vocab.txt", "cc")]);
        assert_eq!(differences(&recorded, &recorded), Vec::<String>::new());
        let found = hashes(&[("config.json", "aa"), ("merges.txt", "dd"), ("tokenizer.json", "ee")]);
        let said = differences(&recorded, &found);
        assert_eq!(said.len(), 3, "{said:?}");
        for (said, part) in said.iter().zip(["tokenizer.json has sha256 ee", "vocab.txt is missing", "merges.txt"]) {
            assert!(said.starts_with(part), "{said}");
        }
    }

    #[test]
    fn what_is_read_is_known() {
        let read = [
            "tokenizer.json",
            "generation_config.json",
            "sentence_distilbert_config.json",
            "2_Dense/model.safetensors",
        ];
        assert!(read.into_iter().all(is_read));
        assert!(!["README.md", "report.json", "2_Dense/README.md"].into_iter().any(is_read));
    }

    #[test]
    fn the_hash_is_that_of_the_file() {
        let place = tempfile::tempdir().unwrap();
        let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/llama-tiny-bias");
        for name in ["config.json", "model.safetensors"] {
            std::fs::copy(golden.join(name), place.path().join(name)).unwrap();
        }
        std::fs::write(place.path().join("tokenizer_config.json"), "\u{feff}{}").unwrap();
        let identity = Source::open(place.path()).unwrap().identity().unwrap();
        let found = identity.files.iter().find(|found| found.file == "tokenizer_config.json").unwrap();
        // printf '\357\273\277{}' | sha256sum
        assert_eq!(found.sha256, "aa25e978046d680ef8740d837e6de5bc1e2a2dc6089dbda1012544b538d53f65");
    }

    #[test]
    fn a_fingerprint_tells_files_from_each_other() {
        let of = |weights: &[(&str, &str)], files: &[(&str, &str)]| {
            Identity { weights: hashes(weights), files: hashes(files) }.fingerprint()
        };
        let all = [
            of(&[("a", "1")], &[]),
            of(&[], &[("a", "2")]),
            of(&[("a", "1"), ("b", "2")], &[]),
            of(&[("a", "1")], &[("b", "3")]),
            of(&[("b", "1")], &[]),
        ];
        assert!(all.iter().enumerate().all(|(i, a)| all[..i].iter().all(|b| a != b)), "{all:?}");
    }

    #[test]
    fn the_built_in_model_knows_itself() {
        let demo = Source::demo();
        let identity = demo.identity().unwrap();
        assert_eq!(demo.kind(), Kind::BuiltIn);
        let names: Vec<&str> = identity.files.iter().map(|hash| hash.file.as_str()).collect();
        assert_eq!(names, ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]);
        assert!(identity.weights.iter().chain(&identity.files).all(|hash| hash.sha256.len() == 64));
    }
}

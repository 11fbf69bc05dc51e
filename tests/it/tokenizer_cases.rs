//! The files of the tokenizers in `tests/golden/tokenizers.json`; shared with `tests/fuzz`.

use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Names and contents.
pub type Files = BTreeMap<String, Vec<u8>>;

/// The vocabulary that a case begins with; `read` gives a file under `tests/golden`.
pub fn base(golden: &Value, kind: &str, read: &dyn Fn(&str) -> Vec<u8>) -> Files {
    let words = || read("models/bert-tiny/tokenizer.json");
    let files: Vec<(&str, Vec<u8>)> = match kind {
        "gpt2" => ["vocab.json", "merges.txt"].map(|name| (name, read(&format!("models/gpt2-tiny/{name}")))).into(),
        "json" => vec![("tokenizer.json", golden["json"].to_string().into_bytes())],
        "words-json" => vec![("tokenizer.json", words())],
        "words" => {
            let definition: Value = serde_json::from_slice(&words()).expect("JSON");
            let vocabulary = definition["model"]["vocab"].as_object().expect("words");
            let mut words: Vec<_> = vocabulary.iter().collect();
            words.sort_by_key(|(_, id)| id.as_u64());
            vec![("vocab.txt", words.iter().flat_map(|(word, _)| format!("{word}\n").into_bytes()).collect())]
        }
        kind => {
            let digits = golden["models"][kind].as_str().expect("a model").as_bytes();
            let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
            vec![("tokenizer.model", digits.chunks(2).map(byte).collect())]
        }
    };
    files.into_iter().map(|(name, bytes)| (name.to_string(), bytes)).collect()
}

/// Puts `changes` over the files; those of `tokenizer.json` over its parts.
pub fn change(files: &mut Files, changes: &Map<String, Value>) {
    for (name, content) in changes {
        let content = match (name.as_str(), content) {
            ("tokenizer.json", Value::Object(parts)) => {
                let mut whole: Map<String, Value> = serde_json::from_slice(&files[name]).expect("JSON");
                whole.extend(parts.clone());
                Value::Object(whole)
            }
            _ => content.clone(),
        };
        files.insert(name.clone(), content.to_string().into_bytes());
    }
}

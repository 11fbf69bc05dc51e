//! Tokenizer files of every kind against transformers (`tests/golden/tokenizers.json`), and what cannot act.

use crate::program::Place;
use serde_json::{Map, Value, json};
use softlm::error::UserError;
use softlm::text::Tokenizer;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

type Files = BTreeMap<String, Vec<u8>>;

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn golden() -> Value {
    serde_json::from_slice(&std::fs::read(here().join("tokenizers.json")).expect("the reference")).expect("JSON")
}

fn read(path: &str) -> Vec<u8> {
    std::fs::read(here().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The vocabulary that a case begins with.
fn base(golden: &Value, kind: &str) -> Files {
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
fn change(files: &mut Files, changes: &Map<String, Value>) {
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

fn load(files: &Files, config: &Value) -> anyhow::Result<Tokenizer> {
    Tokenizer::load("m", &|name| Ok(files.get(name).cloned()), config.as_object().expect("an object"))
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

#[test]
fn files_of_every_kind_act_as_in_transformers() {
    let golden = golden();
    let cases = golden["cases"].as_object().expect("cases");
    let mut wrong = Vec::new();
    for (name, case) in cases {
        let mut files = base(&golden, case["base"].as_str().expect("a base"));
        change(&mut files, case["files"].as_object().expect("files"));
        let tokenizer = match load(&files, &json!({ "model_type": case["model_type"] })) {
            Ok(tokenizer) => tokenizer,
            Err(error) => {
                wrong.push(format!("{name}: {error:#}"));
                continue;
            }
        };
        for row in case["texts"].as_array().expect("texts") {
            let text = row["text"].as_str().expect("a text");
            let mut check = |what: &str, found: Vec<u32>, expected: &Value| {
                if found != ids(expected) {
                    wrong.push(format!("{name}, {what} of {text:?}: {found:?} for {expected}"));
                }
            };
            check("ids", tokenizer.encode(text).expect("ids"), &row["ids"]);
            let framed = tokenizer.encoder(1000).and_then(|encoder| encoder.encode(text, None)).expect("ids").ids;
            check("framed", framed, &row["framed"]);
            let decoded = tokenizer.decode(&ids(&row["framed"])).expect("text");
            if Some(decoded.as_str()) != row["decoded"].as_str() {
                wrong.push(format!("{name}, decoded of {text:?}: {decoded:?} for {}", row["decoded"]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(cases.len() >= 35, "{} cases", cases.len());
}

/// What is said of files that cannot be used.
fn refused(files: &Files, config: Value) -> String {
    let error = load(files, &config).err().expect("no tokenizer");
    let user = error.downcast_ref::<UserError>().unwrap_or_else(|| panic!("not a user error: {error:#}"));
    format!("{user} / {}", user.hint_text().expect("a hint"))
}

#[test]
fn what_cannot_act_is_refused_by_name() {
    let golden = golden();
    let with = |kind: &str, changes: Value| {
        let mut files = base(&golden, kind);
        change(&mut files, changes.as_object().expect("files"));
        files
    };
    let class = |name: &str| json!({"tokenizer_config.json": {"tokenizer_class": name}});
    let of_llama = refused(&with("gpt2", json!({})), json!({"model_type": "llama"}));
    assert!(of_llama.contains("Llama") && of_llama.contains("vocab.json"), "{of_llama}");
    for (files, naming) in [
        (with("gpt2", class("RobertaTokenizer")), vec!["RobertaTokenizer", "vocab.json"]),
        (with("gpt2", class("LlamaTokenizer")), vec!["LlamaTokenizer", "vocab.json"]),
        (with("gpt2", class("PreTrainedTokenizerFast")), vec!["PreTrainedTokenizerFast"]),
        (with("pieces", class("T5Tokenizer")), vec!["T5Tokenizer", "tokenizer.model"]),
        (with("words", class("GPT2Tokenizer")), vec!["GPT2Tokenizer", "vocab.txt"]),
        (
            with("gpt2", json!({"added_tokens.json": {"<x>": 302, "<y>": 310}})),
            vec!["\"<y>\"", "310", "added_tokens.json"],
        ),
        (
            with("json", json!({"tokenizer_config.json": {"added_tokens_decoder": {"400": {"content": "<x>"}}}})),
            vec!["\"<x>\"", "400", "tokenizer_config.json"],
        ),
        (
            with("json", json!({"tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer", "bos_token": null}})),
            vec!["bos_token", "add_bos_token"],
        ),
        (
            with(
                "json",
                json!({"tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": true}}),
            ),
            vec!["add_prefix_space", "no Llama tokenizer"],
        ),
        (
            with("gpt2", json!({"tokenizer_config.json": {"add_prefix_space": "yes"}})),
            vec!["add_prefix_space", "\"yes\""],
        ),
        (Files::from([("tokenizer.model".into(), b"not a model".to_vec())]), vec!["tokenizer.model"]),
    ] {
        let said = refused(&files, json!({"eos_token_id": 1}));
        for value in naming {
            assert!(said.contains(value), "{value:?} is not named: {said}");
        }
    }
}

#[test]
fn a_text_has_one_encoding() {
    let golden = golden();
    let plain = load(&base(&golden, "json"), &json!({})).unwrap();
    let mut model = golden["json"]["model"].clone();
    model["dropout"] = json!(0.9);
    let mut files = base(&golden, "json");
    let padding = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                         "pad_type_id": 0, "pad_token": "x"});
    let truncation = json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 1});
    let parts = json!({"tokenizer.json": {"model": model, "padding": padding, "truncation": truncation}});
    change(&mut files, parts.as_object().unwrap());
    let random = load(&files, &json!({})).unwrap();
    let text = "the cat is not there and the others would have seen it ".repeat(4);
    for _ in 0..3 {
        assert_eq!(random.encode(&text).unwrap(), plain.encode(&text).unwrap());
    }
}

#[test]
fn sentence_transformers_lowers_case_in_front() {
    let golden = golden();
    let mut files = base(&golden, "words-json");
    let cased = json!({"tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "do_lower_case": false}});
    change(&mut files, cased.as_object().unwrap());
    let lower = load(&files, &json!({})).unwrap().encode("the film").unwrap();
    assert_ne!(load(&files, &json!({})).unwrap().encode("The FILM").unwrap(), lower);
    files.insert("sentence_bert_config.json".into(), br#"{"max_seq_length": 32, "do_lower_case": true}"#.to_vec());
    assert_eq!(load(&files, &json!({})).unwrap().encode("The FILM").unwrap(), lower);
}

#[test]
fn files_that_git_lfs_has_not_fetched_are_said_to_be_so() {
    let place = Place::new();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        let folder = place.demo_folder(&name.replace('.', "-"));
        std::fs::write(folder.join(name), pointer).unwrap();
        place.run(&format!("generate {} --max-tokens 1", folder.display())).refused(&[name, "Git LFS", "git lfs pull"]);
    }
    place.write("text.txt", pointer);
    place.run("eval demo --ppl text.txt").refused(&["text.txt", "Git LFS"]);
    // What is only copied may be one.
    let folder = place.demo_folder("whole");
    std::fs::write(folder.join("picture.png"), pointer).unwrap();
    let fast = "--calib-windows 3 --window 64 --ppl none";
    place.run(&format!("compress whole --method svd --keep 0.9 {fast} -o out")).fine();
    assert_eq!(place.read("out/picture.png"), pointer.as_bytes());
}

//! Corpora and tokenizers against real texts, counts that others publish, and what users get wrong.

use std::fs;
use std::path::Path;
use std::time::Instant;

use serde_json::{Map, Value, json};
use softlm::error::UserError;
use softlm::hub::HubOptions;
use softlm::text::{Split, Tokenizer, cut, load};

use crate::data::data;

/// Options under which nothing can reach a network or a cache.
fn nowhere() -> HubOptions {
    HubOptions { offline: true, cache: Some(Path::new("/nonexistent").into()), ..HubOptions::default() }
}

fn read(spec: &str) -> softlm::text::Corpus {
    load(spec, Split::Evaluation, &nowhere()).unwrap()
}

fn mistake(spec: &str) -> String {
    let error = load(spec, Split::Evaluation, &nowhere()).unwrap_err();
    let user = error.downcast_ref::<UserError>().unwrap_or_else(|| panic!("not a user error: {error:#}"));
    format!("{user} / {}", user.hint_text().expect("a hint"))
}

fn folder_tokenizer(folder: &Path) -> Tokenizer {
    let config =
        fs::read(folder.join("config.json")).map_or_else(|_| Map::new(), |b| serde_json::from_slice(&b).unwrap());
    Tokenizer::load("test", &|name| Ok(fs::read(folder.join(name)).ok()), &config).unwrap()
}

/// A tokenizer whose files have other names than in a model's folder.
fn renamed(files: &[(&str, &str)]) -> Option<Tokenizer> {
    let mut read = Vec::new();
    for (name, path) in files {
        read.push((*name, fs::read(data(path)?).unwrap()));
    }
    let file = |name: &str| Ok(read.iter().find(|(known, _)| *known == name).map(|(_, bytes)| bytes.clone()));
    Some(Tokenizer::load("test", &file, &Map::new()).unwrap())
}

#[test]
fn wikitext_is_the_text_that_everybody_measures_on() {
    let (Some(text), Some(rows)) = (data("text/wikitext2-raw/test.txt"), data("text/wikitext2-raw/rows.jsonl")) else {
        return;
    };
    let text = read(text.to_str().unwrap());
    let rows = read(&format!("wikitext2={}", rows.display()));
    assert_eq!(rows.name, "wikitext2");
    assert_eq!((rows.documents.len(), text.documents.len()), (4358, 1));
    assert_eq!(text.text().len(), 1_296_370);
    assert_eq!(rows.text(), text.text());
    assert_eq!(rows.sha256, text.sha256);
    assert_eq!(text.sha256, "696cca6b65a171b0a358a4be6732cdfdf2dd6164a32e20fd70e3c13fc4dfae83");
}

#[test]
fn token_counts_are_the_published_ones() {
    let Some(path) = data("text/wikitext2-raw/test.txt") else { return };
    let text = fs::read_to_string(path).unwrap();
    let gpt2 = [("vocab.json", "tokenizers/gpt2_vocab.json"), ("merges.txt", "tokenizers/gpt2_merges.txt")];
    for (name, files, count) in [
        ("GPT-2 from vocab.json and merges.txt", &gpt2[..], 287_644),
        ("GPT-2 from tokenizer.json", &[("tokenizer.json", "tokenizers/gpt2_tokenizer.json")], 287_644),
        ("Pythia", &[("tokenizer.json", "tokenizers/pythia_tokenizer.json")], 288_730),
        ("NeoX", &[("tokenizer.json", "tokenizers/gptneox_20B_tokenizer.json")], 288_730),
        ("Minueza", &[("tokenizer.json", "tokenizers/minueza32m_tokenizer.json")], 334_660),
        ("demo", &[("tokenizer.json", "demo/tokenizer.json")], 555_647),
        ("stories260k", &[("tokenizer.json", "models/stories260k/tokenizer.json")], 815_069),
        ("tinystories-656k", &[("tokenizer.json", "models/tinystories-656k/tokenizer.json")], 560_211),
        ("llama-wiki-7m", &[("tokenizer.json", "models/llama-wiki-7m/tokenizer.json")], 413_622),
    ] {
        let Some(tokenizer) = renamed(files) else { continue };
        let start = Instant::now();
        let ids = tokenizer.encode(&text).unwrap();
        println!("{name}: {} ids in {:.2} s", ids.len(), start.elapsed().as_secs_f64());
        assert_eq!(ids.len(), count, "{name}");
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()), "{name}");
    }
}

#[test]
fn both_forms_of_gpt2_agree_on_hard_text() {
    let whole = renamed(&[("tokenizer.json", "tokenizers/gpt2_tokenizer.json")]);
    let parts = renamed(&[("vocab.json", "tokenizers/gpt2_vocab.json"), ("merges.txt", "tokenizers/gpt2_merges.txt")]);
    let (Some(whole), Some(parts)) = (whole, parts) else { return };
    let text = "  two  spaces\t\r\n\n\nDon't we'LL 3,141 \u{e9}\u{4f60}\u{597d}\u{1f600}\u{0} end ";
    let ids = parts.encode(text).unwrap();
    assert_eq!(ids, whole.encode(text).unwrap());
    assert_eq!(parts.decode(&ids).unwrap(), text);
    // GPT-2 has one special token, which stays whole even though no file but the vocabulary names it.
    assert_eq!(parts.encode("a<|endoftext|>b").unwrap(), [64, 50_256, 65]);
    assert_eq!(parts.encode("Hello world").unwrap(), [15496, 995]);
    if let Some(multilingual) = data("text/calibration/multilingual.utf8") {
        let text = fs::read_to_string(multilingual).unwrap();
        assert_eq!(parts.encode(&text).unwrap(), whole.encode(&text).unwrap());
    }
}

#[test]
fn window_counts_of_the_small_models() {
    let texts = ["text/tinystories/tiny.utf8", "text/poem/val.txt"];
    for (model, text, tokens, window, windows) in [
        ("models/stories260k", texts[0], 134_730, 256, 526),
        ("models/stories260k", texts[0], 134_730, 512, 263),
        ("models/tinystories-656k", texts[0], 67_308, 256, 262),
        ("models/poem-zh-750k", texts[1], 29_323, 128, 229),
    ] {
        let (Some(model), Some(text)) = (data(model), data(text)) else { return };
        let tokenizer = folder_tokenizer(&model);
        assert!(tokenizer.bos().is_some() && tokenizer.eos().is_some(), "{}", model.display());
        let ids = tokenizer.encode(&read(text.to_str().unwrap()).text()).unwrap();
        assert_eq!(ids.len(), tokens);
        assert_eq!(cut(&ids, window, window, None).unwrap().len(), windows);
    }
    let Some(model) = data("models/tinystories-656k") else { return };
    let tokenizer = folder_tokenizer(&model);
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
}

#[test]
fn the_sample_is_enough_for_a_first_run() {
    let files = |name: &str| {
        Ok(match name {
            "tokenizer.json" => Some(include_bytes!("../../src/demo/tokenizer.json").to_vec()),
            _ => None,
        })
    };
    let tokenizer = Tokenizer::load("demo", &files, &Map::new()).unwrap();
    let windows = |split| {
        let corpus = load("sample", split, &nowhere()).unwrap();
        cut(&tokenizer.encode(&corpus.text()).unwrap(), 256, 256, None).unwrap().len()
    };
    let (calibration, evaluation) = (windows(Split::Calibration), windows(Split::Evaluation));
    println!("sample: {calibration} windows of 256 to calibrate on, {evaluation} to measure on");
    assert!(calibration >= 20 && evaluation >= 8, "{calibration} {evaluation}");
}

#[test]
fn local_files_are_taken_verbatim() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("a.txt"), "\u{feff}one\r\ntwo\n\n").unwrap();
    let corpus = read(&path("a.txt"));
    assert_eq!((corpus.name.as_str(), &*corpus.text()), ("a.txt", "\u{feff}one\r\ntwo\n\n"));
    assert_eq!(corpus.origin, path("a.txt"));

    let lines = [json!({"text": " first\n", "id": 1}), json!({"text": ""}), json!({"text": "third"})];
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    fs::write(path("b.JSONL"), lines.join("\n") + "\n\n").unwrap();
    let corpus = read(&format!("mine={}", path("b.JSONL")));
    assert_eq!((corpus.name.as_str(), corpus.documents.len()), ("mine", 3));
    assert_eq!(corpus.text(), " first\n\n\n\n\nthird");

    fs::write(path("noext"), "plain").unwrap();
    assert_eq!(read(&path("noext")).text(), "plain");
}

#[test]
fn mistakes_say_what_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    assert!(mistake("wikitext3").contains("\"wikitext3\"") && mistake("wikitext3").contains("wikitext2"));
    assert!(mistake(&path("missing.txt")).contains("missing.txt"));
    assert!(mistake(&format!("name={}", path("missing.txt"))).contains("missing.txt"));
    assert!(mistake(&path("")).contains("folder"));
    fs::write(path("empty.txt"), " \n\n").unwrap();
    assert!(mistake(&path("empty.txt")).contains("is empty"));
    fs::write(path("latin.txt"), b"caf\xe9").unwrap();
    assert!(mistake(&path("latin.txt")).contains("byte 3") && mistake(&path("latin.txt")).contains("UTF-8"));
    fs::write(path("broken.jsonl"), "{\"text\": \"a\"}\n\n{\"txt\": \"b\"}\n").unwrap();
    assert!(mistake(&path("broken.jsonl")).contains("line 3 has no text field"));
    fs::write(path("number.jsonl"), "{\"text\": 5}").unwrap();
    assert!(mistake(&path("number.jsonl")).contains("line 1"));
    fs::write(path("notjson.jsonl"), "{\"text\": \"a\"}\nhello\n").unwrap();
    assert!(mistake(&path("notjson.jsonl")).contains("line 2 is not JSON"));
    fs::write(path("empty.jsonl"), "").unwrap();
    assert!(mistake(&path("empty.jsonl")).contains("is empty"));
    assert!(mistake("c4").contains("HF_HUB_OFFLINE") && mistake("c4").contains("NAME=PATH"));
}

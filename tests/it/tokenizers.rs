//! Tokenizer files of every kind against transformers (`tests/golden/tokenizers.json`), and what cannot act.

use crate::program::Place;
use crate::tokenizer_cases::{self, Files, change};
use serde_json::{Value, json};
use softlm::error::UserError;
use softlm::text::Tokenizer;
use std::path::{Path, PathBuf};

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
    tokenizer_cases::base(golden, kind, &read)
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

/// Pseudo-random numbers below a bound, the same at each run.
fn random(mut state: u64) -> impl FnMut(usize) -> usize {
    move |bound| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % bound
    }
}

/// `count` of `parts` by chance, one after the other.
fn mixed(parts: &[&str], count: usize) -> String {
    let mut random = random(0x1234_5678 + count as u64);
    (0..count).map(|_| parts[random(parts.len())]).collect()
}

/// Texts that are hard to take apart.
fn hard_texts() -> Vec<(&'static str, String)> {
    let words = ["the ", "cat ", "is ", "not, ", "there. ", "They've ", "FILM ", "1234 ", "a", "seen\n", "others' "];
    let special =
        ["<s>", "</s>", "<|endoftext|>", "[MASK]", " [MASK] ", "<unk>", "  ", "x", "<x>", "<pad>", "word ", "<s", ">"];
    let marks =
        ["e", "\u{301}", "\u{327}", "가", "\u{1100}", "\u{1161}", "\u{11a8}", "ﬁ", "Å", " ", "\u{200b}", "\u{fb01}"];
    let emoji = ["👩", "\u{200d}", "👧", "🏽", "🇩", "🇪", "❤", "\u{fe0f}", " ", "🙂"];
    let mut random = random(99);
    let runs: String =
        (0..60).map(|i| format!("{}w{i}", " ".repeat(random(if i % 9 == 0 { 900 } else { 40 })))).collect();
    let lines: String = (0..200).map(|_| ["a line\r\n", "\r\n\r\n", "\n\n\n", "\ttab\r\n", "\r"][random(5)]).collect();
    let letters: String = (0..9000).map(|_| char::from(b'a' + random(26) as u8)).collect();
    vec![
        ("words", mixed(&words, 3000)),
        ("special tokens", mixed(&special, 3000)),
        ("marks", mixed(&marks, 5000)),
        ("emoji", mixed(&emoji, 3000)),
        ("Chinese", mixed(&["吗", "漢", "字", "。", "、", "the", "了"], 4000)),
        ("runs of spaces", runs),
        ("lines", lines.repeat(6)),
        ("no spaces", letters.clone()),
        ("one letter", "a".repeat(9000)),
        ("spaces alone", " ".repeat(9000)),
        ("a long word", format!("{}{letters}{}", mixed(&words, 700), mixed(&words, 500))),
        (
            "a space and long words",
            letters.as_bytes().chunks(1500).map(|w| format!("{} ", String::from_utf8_lossy(w))).collect(),
        ),
        ("bytes", mixed(&["\u{0}", "\u{1}", "\u{7f}", "\u{ad}", "\u{fffd}", "ÿ", "\u{10ffff}", "a "], 4000)),
    ]
}

#[test]
fn pieces_of_any_size_give_the_ids_of_the_whole_text() {
    let golden = golden();
    let mut tokenizers = vec![("demo".to_string(), {
        let file = |name: &str| std::fs::read(here().join("../../src/demo").join(name)).expect("the demo's file");
        let names = ["tokenizer.json", "tokenizer_config.json"];
        (names.map(|name| (name.to_string(), file(name))).into(), json!({}))
    })];
    for (name, case) in golden["cases"].as_object().expect("cases") {
        let mut files = base(&golden, case["base"].as_str().expect("a base"));
        change(&mut files, case["files"].as_object().expect("files"));
        tokenizers.push((name.clone(), (files, json!({ "model_type": case["model_type"] }))));
    }
    // Others than transformers wrote: no pre-tokeniser, a unit of its own length, growth, and all that is at the ends.
    let step = |part: &str, step: Value| {
        let mut files = base(&golden, "json");
        change(&mut files, json!({"tokenizer.json": {part: step}}).as_object().expect("files"));
        (format!("{part} {step}"), (files, json!({})))
    };
    tokenizers.extend([
        step("pre_tokenizer", json!(null)),
        step("pre_tokenizer", json!({"type": "FixedLength", "length": 7})),
        step("normalizer", json!({"type": "Replace", "pattern": {"String": "a"}, "content": "xyz"})),
        step("normalizer", json!({"type": "Strip", "strip_left": true, "strip_right": true})),
        step("normalizer", json!({"type": "Replace", "pattern": {"Regex": "\\s+$"}, "content": "!"})),
        step(
            "added_tokens",
            json!([{"id": 500, "content": "a", "single_word": true, "lstrip": true, "rstrip": true,
            "normalized": false, "special": false}]),
        ),
    ]);
    let (texts, mut divided) = (hard_texts(), 0);
    for (name, (files, config)) in &tokenizers {
        let tokenizer = load(files, config).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        for (kind, text) in &texts {
            let whole = tokenizer.encode(text).expect("ids");
            for (size, reach) in [(1024, 256), (1777, 311), (3000, 512)] {
                let ids = tokenizer.encode_in_pieces(text, size, reach).expect("ids");
                let differs = ids.iter().zip(&whole).position(|(a, b)| a != b);
                assert!(
                    ids == whole,
                    "{name}, {kind}, pieces of {size}: {} ids for {}, from {differs:?}",
                    ids.len(),
                    whole.len()
                );
                divided += usize::from(text.len() > 2 * size);
            }
        }
    }
    assert!(divided > 1000, "{divided}");
}

#[test]
fn the_beginning_of_a_text_is_enough_for_some_of_its_ids() {
    let golden = golden();
    let tokenizer = load(&base(&golden, "gpt2"), &json!({})).unwrap();
    let text = mixed(&["the ", "cat ", "is ", "not ", "there "], 400_000);
    let all = tokenizer.encode(&text).unwrap();
    let some = tokenizer.encode_some(&text, 1000).unwrap();
    assert!(some.len() >= 1000 && some.len() < all.len() / 2, "{} of {}", some.len(), all.len());
    assert!(all.starts_with(&some));
    assert_eq!(tokenizer.encode_some(&text, usize::MAX).unwrap(), all);
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

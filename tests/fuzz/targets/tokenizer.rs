//! The files of a tokenizer of every kind. What is accepted encodes and decodes, or says why not, and gives no id beyond its
//! vocabulary.

use super::place::Place;
use super::tokenizer_cases::{self, Files};
use super::{Target, golden, mutate, parts, refused};
use serde_json::{Value, json};
use softlm::text::{TextStream, Tokenizer};

pub const TARGET: Target = Target { name: "tokenizer", seeds, mutate: mutate::files, run };

/// What is tried with every tokenizer that loads.
const TEXTS: [&str; 4] =
    ["", " The thé ab\n\nba  12", "é\u{301}\u{fb01}吗👩‍👩‍👧 \u{200b}x", "<s>a</s> [MASK]a\u{0} aaaaaaaa"];

fn seeds() -> Vec<Vec<u8>> {
    let golden: Value = serde_json::from_slice(&golden::read("tokenizers.json")).expect("JSON");
    let cases = golden["cases"].as_object().expect("cases").values();
    let mut seeds: Vec<Files> = cases.map(|case| of_case(&golden, case)).collect();
    seeds.extend(
        definitions().into_iter().map(|whole| Files::from([("tokenizer.json".into(), whole.to_string().into())])),
    );
    seeds.iter().map(|files| parts::join(&files.iter().collect::<Vec<_>>())).collect()
}

/// The files of a case of the references.
fn of_case(golden: &Value, case: &Value) -> Files {
    let mut files = tokenizer_cases::base(golden, case["base"].as_str().expect("a base"), &golden::read);
    tokenizer_cases::change(&mut files, case["files"].as_object().expect("files"));
    files.insert("config.json".into(), json!({ "model_type": case["model_type"] }).to_string().into_bytes());
    files
}

/// Small definitions that have every part of the format between them.
fn definitions() -> Vec<Value> {
    let models = [
        json!({"type": "BPE", "vocab": {"a": 0, "b": 1, " ": 2, "ab": 3, "?": 4}, "merges": [["a", "b"]], "unk_token": "?"}),
        json!({"type": "Unigram", "unk_id": 0, "byte_fallback": false, "vocab": [["?", 0.0], ["a", -1.0], ["ab", -2.0], ["▁", -3.0]]}),
        json!({"type": "WordPiece", "unk_token": "?", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
            "vocab": {"?": 0, "a": 1, "##b": 2}}),
        json!({"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0, "a": 1, "ab": 2}}),
    ];
    let normalizers = json!([
        {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        {"type": "Strip", "strip_left": true, "strip_right": true}, {"type": "StripAccents"}, {"type": "NFC"},
        {"type": "NFD"}, {"type": "NFKC"}, {"type": "NFKD"}, {"type": "Lowercase"}, {"type": "Nmt"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}, {"type": "Prepend", "prepend": "▁"},
        {"type": "ByteLevel"},
    ]);
    let pre_tokenizers = json!([
        {"type": "BertPreTokenizer"},
        {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        {"type": "CharDelimiterSplit", "delimiter": "-"},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        {"type": "Whitespace"}, {"type": "WhitespaceSplit"}, {"type": "UnicodeScripts"},
        {"type": "Punctuation", "behavior": "Isolated"}, {"type": "Digits", "individual_digits": true},
        {"type": "Split", "pattern": {"Regex": "\\s+|\\p{L}+"}, "behavior": "MergedWithPrevious", "invert": false},
        {"type": "FixedLength", "length": 5},
    ]);
    let decoders = json!([
        {"type": "BPEDecoder", "suffix": "</w>"},
        {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}, {"type": "WordPiece", "prefix": "##", "cleanup": true},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        {"type": "CTC", "pad_token": "?", "word_delimiter_token": "|", "cleanup": true},
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}, {"type": "ByteFallback"},
    ]);
    let template = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [5], "tokens": ["<s>"]}}});
    let processors = json!([
        template,
        {"type": "BertProcessing", "sep": ["?", 0], "cls": ["a", 1]},
        {"type": "RobertaProcessing", "sep": ["?", 0], "cls": ["a", 1], "trim_offsets": true, "add_prefix_space": true},
        {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
    ]);
    let token = json!({"id": 5, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": true,
        "normalized": false, "special": true});
    let whole = |model: &Value, normalizer: Value, pre_tokenizer: Value, decoder: Value, processor: Value| {
        json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [token], "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer, "post_processor": processor, "decoder": decoder, "model": model})
    };
    // A few at once: what may grow without end is refused.
    let sequence = |key: &str, parts: &Value, i: usize| {
        let some: Vec<&Value> = parts.as_array().into_iter().flatten().skip(3 * i).take(3).collect();
        json!({"type": "Sequence", key: some})
    };
    let one = |parts: &Value, i: usize| parts[i % parts.as_array().map_or(1, Vec::len)].clone();
    let mut definitions: Vec<Value> = models
        .iter()
        .enumerate()
        .map(|(i, model)| {
            let (a, b) = (sequence("normalizers", &normalizers, i), sequence("pretokenizers", &pre_tokenizers, i));
            whole(model, a, b, sequence("decoders", &decoders, i), sequence("processors", &json!([template]), 0))
        })
        .collect();
    definitions.extend((0..13).map(|i| {
        let model = &models[i % models.len()];
        whole(model, one(&normalizers, i), one(&pre_tokenizers, i), one(&decoders, i), one(&processors, i))
    }));
    definitions
}

fn run(input: &[u8], _: &Place) -> bool {
    let parts = parts::split(input);
    let config = parts::find(&parts, "config.json").and_then(|config| serde_json::from_slice(config).ok());
    let file = |name: &str| Ok(parts::find(&parts, name).map(<[u8]>::to_vec));
    let tokenizer = match Tokenizer::load("m", &file, &config.unwrap_or_default()) {
        Ok(tokenizer) => tokenizer,
        Err(error) => return refused(&error),
    };
    for text in TEXTS {
        let Ok(ids) = tokenizer.encode(text) else { continue };
        let beyond = ids.iter().find(|&&id| id as usize >= tokenizer.vocab_size());
        assert_eq!(beyond, None, "an id beyond a vocabulary of {}", tokenizer.vocab_size());
        assert_eq!(tokenizer.encode(text).expect("once more"), ids);
        // A tokenizer may be unable to decode what it encoded.
        let _ = tokenizer.decode(&ids);
        let _ = tokenizer.encode_prompt(text);
        let _ = tokenizer.encoder(16).and_then(|encoder| {
            let sequence = encoder.encode(text, Some("b a"))?;
            assert_eq!(sequence.ids.len(), sequence.types.len());
            assert!(sequence.ids.len() <= 16, "{} tokens", sequence.ids.len());
            Ok(())
        });
        let _ = stream(&tokenizer, &ids);
    }
    let _ = tokenizer.decode(&[u32::MAX, 0, 3, 1 << 20]);
    true
}

/// Decodes ids one by one, as `generate` does.
fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> anyhow::Result<()> {
    let (prompt, rest) = ids.split_at(ids.len().min(2));
    let mut stream = TextStream::new(tokenizer, prompt)?;
    for &id in rest {
        stream.push(id)?;
    }
    stream.finish()?;
    Ok(())
}

//! Tokenizer files that are cut, damaged, or made to break programs: an answer or an error that says what is wrong, never
//! a panic, an abort, or memory and time that a few bytes ask for.

use crate::program::Place;
use serde_json::{Map, Value, json};
use softlm::error::UserError;
use softlm::text::Tokenizer;

/// What is tried with every tokenizer that loads.
const TEXTS: [&str; 8] =
    ["", "a", " a b  c", "ab ab\n\nba", "é\u{301}\u{fb01}吗👩‍👩‍👧 \u{200b}x", "<s>a</s> [X]a", "\u{0}\u{1}", "aaaaaaaa a"];

fn demo() -> Value {
    serde_json::from_slice(include_bytes!("../../src/demo/tokenizer.json")).expect("JSON")
}

/// A small tokenizer with these parts.
fn with(parts: Value) -> Value {
    let mut whole = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, " ": 2, "ab": 3, "?": 4}, "merges": ["a b"], "unk_token": "?"}});
    for (key, value) in parts.as_object().expect("parts") {
        whole[key] = value.clone();
    }
    whole
}

/// A Unigram model's tokenizer with these parts.
fn unigram(model: Value, parts: Value) -> Value {
    let mut whole = with(parts);
    whole["model"] = json!({"type": "Unigram", "unk_id": 0, "vocab": [["?", 0.0], ["a", -1.0], ["b", -2.0]]});
    for (key, value) in model.as_object().expect("parts") {
        whole["model"][key] = value.clone();
    }
    whole
}

fn load(files: &[(&str, Vec<u8>)]) -> anyhow::Result<Tokenizer> {
    let file = |name: &str| Ok(files.iter().find(|(known, _)| *known == name).map(|(_, bytes)| bytes.clone()));
    Tokenizer::load("m", &file, &Map::new())
}

/// Uses a tokenizer in every way that the program does. Errors are fine, and the first is returned.
fn exercise(tokenizer: &Tokenizer) -> Result<(), anyhow::Error> {
    let mut first = Ok(());
    let mut note = |result: anyhow::Result<()>| {
        if first.is_ok() {
            first = result;
        }
    };
    for text in TEXTS {
        note(tokenizer.encode(text).and_then(|ids| {
            let decoded = tokenizer.decode(&ids)?;
            assert!(decoded.len() <= 100 + 5000 * ids.len().max(1), "{} bytes", decoded.len());
            ids.iter().try_for_each(|&id| tokenizer.decode(&[id]).map(drop))
        }));
        note(tokenizer.encode_prompt(text).map(drop));
        note(tokenizer.encoder(16).and_then(|encoder| encoder.encode(text, Some("b a")).map(drop)));
    }
    note(tokenizer.decode(&[]).map(drop));
    note(tokenizer.decode(&[u32::MAX, 0, 3, 1 << 20]).map(drop));
    first
}

/// Loads and uses it; what is said if that fails.
fn fate(definition: &[u8]) -> Option<String> {
    let error = match load(&[("tokenizer.json", definition.to_vec())]) {
        Ok(tokenizer) => exercise(&tokenizer).err()?,
        Err(error) => {
            let user = error.downcast_ref::<UserError>().unwrap_or_else(|| panic!("not a user error: {error:#}"));
            assert!(user.hint_text().is_some(), "{user}");
            error
        }
    };
    Some(format!("{error:#}"))
}

/// `inner` within `depth` sequences.
fn nested(key: &str, depth: usize, inner: Value) -> Value {
    (0..depth).fold(inner, |inner, _| json!({"type": "Sequence", key: [inner]}))
}

fn replace(pattern: &str, content: &str) -> Value {
    json!({"type": "Replace", "pattern": {"String": pattern}, "content": content})
}

#[test]
fn what_would_take_the_library_down_is_named() {
    let charsmap = |map: &str| with(json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": map}}));
    let template = |single: Value, special: Value| {
        let processor = json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": special});
        with(json!({ "post_processor": processor }))
    };
    let a = json!({"Sequence": {"id": "A", "type_id": 0}});
    let x = json!({"SpecialToken": {"id": "[X]", "type_id": 0}});
    let merges = |merges: Value, more: Value| {
        let mut whole = with(json!({}));
        whole["model"]["merges"] = merges;
        for (key, value) in more.as_object().expect("parts") {
            whole["model"][key] = value.clone();
        }
        whole
    };
    let long = |count: usize| "a".repeat(count);
    for (definition, named) in [
        (json!({"model": {"vocab": {"a": 0, "b": 1}, "merges": ["a b"]}}), "model.merges[0]"),
        (merges(json!([["a", "b"], ["ab", "c"]]), json!({})), "model.merges[1]"),
        (merges(json!(["a  b"]), json!({})), "model.merges[0]"),
        (merges(json!([["a", "b"]]), json!({"continuing_subword_prefix": "##"})), "prefix"),
        (charsmap("AAAA"), "normalizer.precompiled_charsmap"),
        (charsmap("/////w=="), "normalizer.precompiled_charsmap"),
        (with(json!({"normalizer": {"type": "no such", "precompiled_charsmap": "/////w=="}})), "precompiled_charsmap"),
        (with(json!({"pre_tokenizer": {"type": "FixedLength", "length": 0}})), "pre_tokenizer.length"),
        (template(json!([x, a]), json!({})), "post_processor.single[0]"),
        (template(json!([x, a]), json!({"[X]": {"id": "[X]", "ids": [1, 2], "tokens": ["[X]"]}})), "[X]"),
        (template(json!([{"Sequence": {"id": "B", "type_id": 0}}]), json!({})), "post_processor.single"),
        (template(json!(vec![a.clone(); 1000]), json!({})), "post_processor.single"),
        (with(json!({"normalizer": {"type": "Sequence", "normalizers": vec![replace("", "a"); 64]}})), "normalizer"),
        (with(json!({"normalizer": nested("normalizers", 40, json!({"type": "NFC"}))})), "sequences deep"),
        (with(json!({"pre_tokenizer": nested("pretokenizers", 40, json!({"type": "Whitespace"}))})), "sequences deep"),
        (with(json!({"decoder": nested("decoders", 40, json!({"type": "Fuse"}))})), "sequences deep"),
        (
            with(
                json!({"post_processor": nested("processors", 40, template(json!([a]), json!({}))["post_processor"].clone())}),
            ),
            "sequences deep",
        ),
        (with(json!({"decoder": {"type": "Sequence", "decoders": vec![replace("", "ab"); 30]}})), "decoder"),
        (
            with(json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers":
            vec![json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true}); 40]}})),
            "pre_tokenizer",
        ),
        (
            with(json!({"normalizer": {"type": "Sequence", "normalizers": vec![json!({"type": "NFC"}); 10_000]}})),
            "steps",
        ),
        (with(json!({"normalizer": {"type": "Prepend", "prepend": long(5000)}})), "normalizer.prepend"),
        (
            with(
                json!({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": long(1 << 20)}, "behavior": "Isolated",
            "invert": false}}),
            ),
            "pre_tokenizer.pattern",
        ),
        (
            with(json!({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": r"(?=\w{99})".repeat(700)},
                "behavior": "Isolated", "invert": false}})),
            "repetitions",
        ),
        (
            with(json!({"added_tokens": [{"id": 9, "content": long(1 << 20), "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": true, "special": false}]})),
            "added token",
        ),
        (unigram(json!({"vocab": [["?", 0.0], [long(1 << 20), 0.0]]}), json!({})), "model.vocab"),
        (unigram(json!({"unk_id": 7}), json!({})), "model.unk_id"),
        (unigram(json!({"vocab": []}), json!({})), "model.unk_id"),
        (json!({"model": null}), "model"),
        (json!([]), "object"),
    ] {
        let said = fate(definition.to_string().as_bytes());
        let shown: String = definition.to_string().chars().take(200).collect();
        let said = said.unwrap_or_else(|| panic!("nothing is said of {shown}"));
        assert!(said.contains(named), "{shown}: {said}");
    }
    let twice = br#"{"model": {"vocab": {"a": 0}, "merges": []}, "model": {"vocab": {"a": 0}, "merges": []}}"#;
    assert!(fate(twice).expect("an error").contains("twice"));
    let deep = [&b"{\"model\": "[..], &b"[".repeat(100_000)].concat();
    assert!(fate(&deep).is_some());
}

#[test]
fn what_looks_odd_but_works_still_does() {
    let charsmap = {
        // One block: `a` becomes `b`.
        let mut array = [0u32; 512];
        array[0] = 256 << 10;
        array[256 ^ 97] = 1 << 10 | 1 << 8 | 97;
        array[256 ^ 97 ^ 1] = 1 << 31;
        let bytes: Vec<u8> =
            [&[2048u32][..], &array].concat().iter().flat_map(|unit| unit.to_le_bytes()).chain(*b"b\0").collect();
        base64(&bytes)
    };
    let template = json!({"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": {}});
    let many: Vec<Value> = (b'c'..=b'z').map(|c| replace(&char::from(c).to_string(), "吗")).collect();
    for definition in [
        with(json!({})),
        with(json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap}})),
        with(json!({"pre_tokenizer": {"type": "FixedLength", "length": 2}})),
        with(json!({ "post_processor": template })),
        with(json!({"normalizer": {"type": "Sequence", "normalizers": []}})),
        with(json!({"normalizer": {"type": "Sequence", "normalizers": many}})),
        with(json!({"normalizer": nested("normalizers", 5, json!({"type": "NFC"}))})),
        with(json!({"normalizer": replace("", "a")})),
        with(json!({"decoder": {"type": "Fuse"}})),
        unigram(json!({}), json!({})),
        demo(),
    ] {
        assert_eq!(fate(definition.to_string().as_bytes()), None, "{definition}");
    }
}

fn base64(bytes: &[u8]) -> String {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |three: &[u8]| {
        let number = three.iter().fold(0, |n, &byte| n << 8 | u32::from(byte)) << (8 * (3 - three.len()));
        (0..4)
            .map(move |i| if i <= three.len() { digits[(number >> (18 - 6 * i) & 63) as usize] as char } else { '=' })
            .collect::<Vec<_>>()
    };
    bytes.chunks(3).flat_map(group).collect()
}

#[test]
fn a_file_that_is_cut_anywhere_is_refused() {
    let whole = include_bytes!("../../src/demo/tokenizer.json");
    let body = whole.trim_ascii_end().len();
    for end in (0..body).step_by(311).chain([1440, body - 1]) {
        assert!(fate(&whole[..end]).is_some(), "{end} bytes");
    }
}

/// Pseudo-random numbers: the same at each run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound
    }
}

/// Every value in it, by a way that leads there.
fn places(value: &Value, way: String, all: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                places(value, format!("{way}/{}", key.replace('~', "~0").replace('/', "~1")), all);
            }
        }
        Value::Array(items) => items.iter().take(4).enumerate().for_each(|(i, v)| places(v, format!("{way}/{i}"), all)),
        _ => {}
    }
    all.push(way);
}

#[test]
fn no_value_anywhere_takes_the_program_down() {
    let space = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let split = json!({"type": "Split", "pattern": {"Regex": "a+(?!b)| "}, "behavior": "Isolated", "invert": false});
    let x = json!({"id": "[X]", "ids": [1], "tokens": ["[X]"]});
    let processor = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": {"[X]": x}});
    let added = json!([{"id": 5, "content": "<s>", "single_word": false, "lstrip": true, "rstrip": true,
        "normalized": true, "special": true}]);
    let decoders = json!([space, bytes, {"type": "Strip", "content": " ", "start": 1, "stop": 0}, {"type": "ByteFallback"},
        {"type": "CTC", "pad_token": "a", "word_delimiter_token": "|", "cleanup": true}, {"type": "Fuse"},
        {"type": "WordPiece", "prefix": "##", "cleanup": true}, {"type": "BPEDecoder", "suffix": "</w>"}]);
    let seeds = [
        with(json!({"normalizer": {"type": "Sequence", "normalizers": [replace("a", "b"), {"type": "NFKC"},
            {"type": "Strip", "strip_left": true, "strip_right": true}, {"type": "Prepend", "prepend": "▁"}]},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes]}, "post_processor": processor,
            "added_tokens": added, "decoder": {"type": "Sequence", "decoders": decoders},
            "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                "pad_type_id": 0, "pad_token": "a"}})),
        unigram(json!({"byte_fallback": true}), json!({"pre_tokenizer": space, "decoder": space})),
        with(json!({"normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true}, "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "BertProcessing", "sep": ["[X]", 1], "cls": ["[Y]", 2]},
            "model": {"type": "WordPiece", "vocab": {"[UNK]": 0, "a": 1, "##a": 2}, "unk_token": "[UNK]",
                "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}})),
    ];
    let values = [
        json!(null),
        json!(0),
        json!(-1),
        json!(1),
        json!(4_294_967_295u64),
        json!(u64::MAX),
        json!(1e308),
        json!(""),
        json!("a"),
        json!("\u{301}"),
        json!("🙂"),
        json!([]),
        json!({}),
        json!(true),
        json!(false),
        json!([[]]),
        json!({"String": ""}),
        json!({"Regex": ""}),
        json!({"Regex": "(a*)*b|(?=.*)"}),
        json!({"Regex": "("}),
        json!("Sequence"),
        json!("NFC"),
        json!("Removed"),
        json!("MergedWithNext"),
        json!("first"),
        json!("a".repeat(300)),
    ];
    let mut random = Random(0x5eed);
    let (mut tried, mut loaded) = (0, 0);
    for seed in &seeds {
        let mut all = Vec::new();
        places(seed, String::new(), &mut all);
        let mut try_it = |definition: &Value| {
            tried += 1;
            loaded += usize::from(fate(definition.to_string().as_bytes()).is_none());
        };
        for way in &all {
            for value in &values {
                let mut definition = seed.clone();
                *definition.pointer_mut(way).expect("a place") = value.clone();
                try_it(&definition);
            }
        }
        // Parts of the file in the place of others.
        for _ in 0..1500 {
            let mut definition = seed.clone();
            for _ in 0..1 + random.below(3) {
                let from = definition.pointer(&all[random.below(all.len())]).cloned().unwrap_or_default();
                if let Some(to) = definition.pointer_mut(&all[random.below(all.len())]) {
                    *to = from;
                }
            }
            try_it(&definition);
        }
    }
    println!("{tried} tokenizers, {loaded} of them usable");
    assert!(tried > 5000 && loaded > 200, "{loaded} of {tried}");
}

#[test]
fn vocabularies_and_side_files_are_checked_too() {
    let said = |files: &[(&str, Vec<u8>)]| match load(files) {
        Ok(tokenizer) => exercise(&tokenizer).err().map(|error| format!("{error:#}")),
        Err(error) => Some(format!("{error:#}")),
    };
    let long = "a".repeat(1 << 20);
    // Field 1 of a message: so many bytes.
    let field = |content: &[u8]| {
        let (mut bytes, mut length) = (vec![0x0a], content.len());
        while length > 127 {
            bytes.push(length as u8 | 0x80);
            length >>= 7;
        }
        bytes.push(length as u8);
        bytes.extend(content);
        bytes
    };
    let piece = |text: &[u8], kind: u8| [&field(text)[..], &[0x15, 0, 0, 0x80, 0xbf, 0x18, kind]].concat();
    let model = |pieces: &[Vec<u8>], more: &[u8]| {
        let fields = pieces.iter().flat_map(|piece| field(piece));
        fields.chain(more.iter().copied()).collect::<Vec<u8>>()
    };
    let llama = ("tokenizer_config.json", br#"{"tokenizer_class": "LlamaTokenizer"}"#.to_vec());
    let usual = [piece(b"<unk>", 2), piece(b"<s>", 3), piece(b"</s>", 3), piece("▁".as_bytes(), 1), piece(b"a", 1)];
    // BPE is model type 2 in field 3 of field 2.
    let whole = model(&usual, &[0x12, 2, 0x18, 2]);
    assert_eq!(said(&[llama.clone(), ("tokenizer.model", whole.clone())]), None);
    for end in 0..whole.len() {
        let _ = said(&[llama.clone(), ("tokenizer.model", whole[..end].to_vec())]);
    }
    for (at, value) in (0..whole.len()).flat_map(|at| [0, 1, 0x7f, 0x80, 0xff].map(|value| (at, value))) {
        let mut bytes = whole.clone();
        bytes[at] = value;
        let _ = said(&[llama.clone(), ("tokenizer.model", bytes)]);
    }
    let claimed = [&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f][..], b"abc"].concat();
    assert!(said(&[llama.clone(), ("tokenizer.model", claimed)]).expect("an error").contains("tokenizer.model"));
    let mut pieces = usual.to_vec();
    pieces.push(piece(long.as_bytes(), 1));
    let found = said(&[llama.clone(), ("tokenizer.model", model(&pieces, &[]))]).expect("an error");
    assert!(found.contains("1048576"), "{found}");

    let bytes = demo_bytes();
    let with_bytes = |more: Value| {
        let mut vocab: Map<String, Value> =
            bytes.iter().enumerate().map(|(id, piece)| (piece.clone(), json!(id))).collect();
        vocab.extend(more.as_object().expect("pieces").clone());
        serde_json::to_vec(&vocab).expect("JSON")
    };
    for (vocab, merges, named) in [
        (json!({}), "a b\n", "merges.txt"),
        (json!({"ab": 300}), "a b\nab c d\n", "merges.txt"),
        (json!({"ab": 1e9}), "a b\n", "vocab.json"),
        (json!({"ab": -1}), "a b\n", "vocab.json"),
        (json!({long.as_str(): 300}), "", "vocab.json"),
    ] {
        let files = [("vocab.json", with_bytes(vocab)), ("merges.txt", merges.as_bytes().to_vec())];
        let found = said(&files).expect("an error");
        assert!(found.contains(named), "{found}");
    }
    let words = ("vocab.txt", format!("[UNK]\n[CLS]\n[SEP]\n{long}\n").into_bytes());
    assert!(said(&[words]).expect("an error").contains("vocab.txt"));

    // Tokens beside a tokenizer.json.
    let whole = ("tokenizer.json", with(json!({"normalizer": replace("", "aaaa")})).to_string().into_bytes());
    for settings in [
        json!({"added_tokens_decoder": {"5": {"content": long, "normalized": true}}}),
        json!({"bos_token": long}),
        json!({"additional_special_tokens": [long]}),
    ] {
        let found = said(&[whole.clone(), ("tokenizer_config.json", settings.to_string().into_bytes())]);
        assert!(found.expect("an error").contains("1048576"));
    }
}

/// The characters that stand for bytes.
fn demo_bytes() -> Vec<String> {
    let mut next = 256;
    (0..256u32)
        .map(|byte| match byte {
            33..=126 | 161..=172 | 174..=255 => char::from_u32(byte),
            _ => {
                next += 1;
                char::from_u32(next - 1)
            }
        })
        .map(|c| c.expect("a character").to_string())
        .collect()
}

#[test]
fn the_program_says_it_in_one_sentence() {
    let place = Place::new();
    let whole = include_bytes!("../../src/demo/tokenizer.json");
    let panics = with(json!({"decoder": {"type": "Strip", "content": "a", "start": 0, "stop": 9}}));
    for (name, definition) in [("cut", whole[..1440].to_vec()), ("strip", panics.to_string().into_bytes())] {
        let folder = place.demo_folder(name);
        std::fs::write(folder.join("tokenizer.json"), definition).unwrap();
        let said =
            place.run(&format!("generate {} --prompt ab --max-tokens 3", folder.display())).refused(&["tokenizer"]);
        assert!(!said.stderr.contains("panicked") && said.stderr.contains("error: "), "{}", said.stderr);
    }
}

//! Text that models write: what is remembered against what is computed again, greedy ids of transformers
//! (`tests/golden/greedy.json`), and the command.

use crate::data::data;
use crate::program::{FAST, Place, change_config, change_weights, finish};
use candle_core::{Device, Tensor};
use serde_json::Value;
use softlm::checkpoint::Source;
use softlm::generate::{Choosing, Stopped, generate};
use softlm::model::{Decoder, Model};
use softlm::pipeline::tokenizer;
use std::path::{Path, PathBuf};

/// What is remembered may differ from what is computed again by this much of the largest logit.
const LOGITS: f64 = 1e-5;

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn golden() -> Value {
    serde_json::from_slice(&std::fs::read(here().join("greedy.json")).expect("the reference")).expect("JSON")
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

/// Built in, generated beside the reference, or part of the test data.
fn model(name: &str) -> Option<Model> {
    let generated = here().join("models").join(name);
    let source = match name {
        "demo" => Source::demo(),
        _ if generated.exists() => Source::open(&generated).expect(name),
        _ => Source::open(&data(&format!("models/{name}"))?).expect(name),
    };
    Some(Model::load(source, &Device::Cpu).expect(name))
}

/// Every model that the reference knows, with its prompt and what follows.
fn each(mut check: impl FnMut(&str, &Model, Vec<u32>, Vec<u32>)) {
    let golden = golden();
    let mut compared = 0;
    for (name, expected) in golden["models"].as_object().expect("models") {
        let Some(model) = model(name) else { continue };
        check(name, &model, ids(&expected["prompt"]), ids(&expected["ids"]));
        compared += 1;
    }
    assert!(compared >= 15, "the built-in model and the generated ones are always there");
}

fn numbers(logits: &Tensor) -> Vec<f32> {
    logits.flatten_all().and_then(|x| x.to_vec1()).expect("numbers")
}

fn largest(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|&i, &j| logits[i].total_cmp(&logits[j])).expect("logits") as u32
}

/// The logits behind `ids` from a pass over all of them that remembers nothing.
fn recomputed(model: &Model, ids: &[u32]) -> Vec<f32> {
    let mut h = model.embed(&[ids]).expect("embedded");
    for index in 0..model.blocks() {
        h = model.block(index).unwrap().forward(&h, &mut ()).expect("a pass").expect("nothing stops it");
    }
    let last = h.narrow(1, ids.len() - 1, 1).and_then(|h| h.squeeze(0)).expect("the last position");
    numbers(&model.head().and_then(|head| head.logits(&last)).expect("logits"))
}

#[track_caller]
fn assert_close(what: &str, a: &[f32], b: &[f32]) {
    let size = b.iter().fold(0f32, |m, x| m.max(x.abs()));
    let off = a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(a.len() == b.len() && f64::from(off / size) < LOGITS, "{what}: logits are off by {:e}", off / size);
}

#[test]
fn greedy_ids_are_those_of_transformers() {
    each(|name, model, prompt, expected| {
        let mut decoder = Decoder::new(model).expect("a decoder");
        let mut logits = decoder.read(&prompt).expect("logits");
        let mut found = Vec::new();
        for _ in 0..expected.len() {
            let id = largest(&numbers(&logits));
            found.push(id);
            if found.len() < expected.len() {
                logits = decoder.read(&[id]).expect("logits");
            }
        }
        assert_eq!(found, expected, "{name}");
    });
}

#[test]
fn what_is_remembered_equals_what_is_computed_again() {
    each(|name, model, prompt, rest| {
        let all = [prompt, rest].concat();
        let all = &all[..all.len().min(45)];
        let mut one_by_one = Decoder::new(model).expect("a decoder");
        for end in 1..=all.len() {
            let logits = numbers(&one_by_one.read(&all[end - 1..end]).expect("logits"));
            let expected = recomputed(model, &all[..end]);
            assert_close(&format!("{name} at {end}"), &logits, &expected);
            assert_eq!(largest(&logits), largest(&expected), "{name} at {end}");
        }
        // In pieces of any size.
        let mut in_pieces = Decoder::new(model).expect("a decoder");
        let mut end = 0;
        for size in [3, 1, 17, 2, 20] {
            let logits = in_pieces.read(&all[end..(end + size).min(all.len())]).expect("logits");
            end = (end + size).min(all.len());
            assert_close(&format!("{name} up to {end}"), &numbers(&logits), &recomputed(model, &all[..end]));
            if end == all.len() {
                break;
            }
        }
    });
}

#[test]
fn long_prompts_are_read_in_pieces() {
    let Some(model) = model("mamba-tiny") else { return };
    let ids: Vec<u32> = (0..1300).map(|i| (7 + 31 * i + i / 9) % 96).collect();
    let logits = Decoder::new(&model).and_then(|mut decoder| decoder.read(&ids)).expect("logits");
    assert_close("1300 tokens", &numbers(&logits), &recomputed(&model, &ids));
}

/// The whole of what `choosing` makes of a prompt, and the pieces it came in.
fn written(model: &Model, prompt: &[u32], choosing: &Choosing) -> (softlm::generate::Generated, Vec<String>) {
    let tokenizer = tokenizer(model.source()).expect("a tokenizer");
    let mut pieces = Vec::new();
    let mut show = |text: &str| {
        pieces.push(text.to_string());
        Ok(true)
    };
    let generated = generate(model, &tokenizer, prompt, choosing, &mut show).expect("text");
    (generated, pieces)
}

#[test]
fn the_story_is_the_known_one() {
    let Some(model) = model("stories260k") else { return };
    let golden = &golden()["models"]["stories260k"];
    let choosing = Choosing { max_tokens: 200, ..Choosing::default() };
    let (generated, pieces) = written(&model, &ids(&golden["prompt"]), &choosing);
    assert_eq!((generated.ids, generated.stopped), (ids(&golden["ids"]), Stopped::MaxTokens));
    assert_eq!(pieces.concat(), generated.text);
    assert!(generated.text.trim_start().starts_with("Once upon a time, there was a little girl named Lily."));
}

#[test]
fn a_text_ends_where_the_model_ends_it() {
    let model = model("demo").expect("built in");
    let golden = &golden()["models"]["demo"];
    let expected = ids(&golden["ids"]);
    let end = expected.iter().position(|&id| id == 1).expect("the reference goes on behind the end");
    let choosing = Choosing { max_tokens: 100, ..Choosing::default() };
    let (generated, pieces) = written(&model, &[0], &choosing);
    assert_eq!((&generated.ids[..], generated.stopped), (&expected[..end], Stopped::EndOfText));
    assert_eq!(pieces.concat(), generated.text);
    assert!(pieces.len() > end / 2, "text is shown as it is written: {pieces:?}");
    let short = written(&model, &[0], &Choosing { max_tokens: 7, ..choosing }).0;
    assert_eq!((&short.ids[..], short.stopped), (&expected[..7], Stopped::MaxTokens));
}

#[test]
fn the_context_is_filled_and_not_exceeded() {
    let model = model("demo").expect("built in");
    let prompt: Vec<u32> = (0..509).map(|i| (300 + 7 * i) % 700 + 20).collect();
    let choosing = Choosing { max_tokens: 50, temperature: 1.0, ..Choosing::default() };
    let generated = written(&model, &prompt, &choosing).0;
    if generated.stopped != Stopped::EndOfText {
        assert_eq!((generated.ids.len(), generated.stopped), (3, Stopped::Context));
    }
    let full: Vec<u32> = (0..512).map(|i| (300 + 7 * i) % 700 + 20).collect();
    let tokenizer = tokenizer(model.source()).expect("a tokenizer");
    let error = generate(&model, &tokenizer, &full, &choosing, &mut |_| Ok(true)).expect_err("no room");
    assert!(error.to_string().contains("512 tokens"), "{error}");
    assert!(Decoder::new(&model).and_then(|mut decoder| decoder.read(&[5; 513])).is_err());
}

#[test]
fn chance_follows_the_seed_and_the_options() {
    let model = model("demo").expect("built in");
    let with = |choosing: Choosing| written(&model, &[0], &Choosing { max_tokens: 24, ..choosing }).0.ids;
    let greedy = with(Choosing::default());
    let hot = Choosing { temperature: 1.5, ..Choosing::default() };
    assert_eq!(with(hot), with(hot), "the same seed gives the same text");
    assert_ne!(with(hot), with(Choosing { seed: 1, ..hot }));
    assert_ne!(with(hot), greedy);
    // Nothing to choose from.
    assert_eq!(with(Choosing { top_k: Some(1), ..hot }), greedy);
    for share in [1e-6, 1e-40, 1e-300] {
        assert_eq!(with(Choosing { top_p: Some(share), ..hot }), greedy, "{share:e}");
    }
    assert_eq!(with(Choosing { top_k: Some(1), top_p: Some(0.5), ..hot }), greedy);
    // So cold that dividing by it leaves no numbers.
    for temperature in [1e-9, 1e-20, 1e-40, 1e-300, f64::MIN_POSITIVE] {
        for (top_k, top_p) in [(None, None), (Some(5), None), (None, Some(0.9)), (Some(5), Some(0.9))] {
            let cold = Choosing { temperature, top_k, top_p, ..Choosing::default() };
            assert_eq!(with(cold), greedy, "{cold:?}");
        }
    }
    // No bound at all.
    assert_eq!(with(Choosing { top_p: Some(1.0), ..hot }), with(hot));
    assert_eq!(with(Choosing { top_k: Some(100_000), ..hot }), with(hot));
    let penalised = with(Choosing { repeat_penalty: 1e9, ..Choosing::default() });
    let mut distinct = penalised.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), penalised.len(), "nothing occurs twice: {penalised:?}");
}

#[test]
fn the_command_streams_text_and_tells_the_time() {
    let place = Place::new();
    let said = place.run("generate demo --max-tokens 40 -v").fine();
    assert!(said.stdout.starts_with("There are 16 meters of water.") && said.stdout.ends_with('\n'), "{}", said.stdout);
    assert!(said.stderr.contains("prompt 1 tokens in") && said.stderr.contains("tokens/s"), "{}", said.stderr);
    let quiet = place.run("generate demo --max-tokens 40").fine();
    assert_eq!((quiet.stdout, quiet.stderr.as_str()), (said.stdout.clone(), ""));

    let json = place.run("generate demo --max-tokens 40 --json").fine();
    let json: Value = serde_json::from_str(&json.stdout).expect("one JSON object");
    assert_eq!(format!("{}\n", json["text"].as_str().unwrap()), said.stdout);
    assert_eq!((&json["schema"], &json["stopped"], &json["prompt"]), (&1.into(), &"max_tokens".into(), &"".into()));
    assert_eq!((ids(&json["prompt_ids"]), ids(&json["ids"]).len()), (vec![0], 40));

    let typed = place.command("generate demo --max-tokens 12 --prompt").arg("The sea is").spawn().unwrap();
    let typed = finish(typed).fine().stdout;
    let piped = place.run_with_input("generate demo --max-tokens 12 --prompt -", "The sea is\n").fine().stdout;
    assert_eq!(typed, piped);
    assert!(typed.len() > 5 && !typed.contains("The sea is"), "only what was written: {typed}");
    // A reader that has seen enough is no error.
    let mut child = place.command("generate demo --max-tokens 300").spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(finish(child).code, 0);
}

/// Ids whose text depends on their neighbours: bytes, and a first word without its space.
#[test]
fn the_stream_says_what_the_whole_says() {
    let place = Place::new();
    let folder = place.demo_folder("bytes");
    let pieces = ["<s>".to_string(), "</s>".to_string()].into_iter();
    let pieces = pieces.chain((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    let pieces = pieces.chain((0..).map(|n| if n % 2 == 0 { format!("▁{n}") } else { format!("字{n}") })).take(1024);
    let vocab: serde_json::Map<String, Value> = pieces.enumerate().map(|(id, piece)| (piece, id.into())).collect();
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "pre_tokenizer": null,
        "post_processor": null, "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true, "vocab": vocab, "merges": []},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let mut broken = 0;
    for seed in 0..12 {
        let run = |more: &str| {
            let line = format!("generate bytes --temperature 30 --max-tokens 60 --seed {seed} {more} --prompt");
            finish(place.command(&line).arg("吗é").spawn().unwrap()).fine().stdout
        };
        let json: Value = serde_json::from_str(&run("--json")).expect("one JSON object");
        let text = json["text"].as_str().expect("text");
        assert_eq!(run("--raw"), format!("{text}\n"), "seed {seed}");
        assert_eq!(ids(&json["prompt_ids"])[..5], [0xe5, 0x90, 0x97, 0xc3, 0xa9].map(|byte| byte + 2), "seed {seed}");
        assert!(!text.contains('吗'), "the prompt is no part of the text: {text}");
        broken += text.matches('\u{fffd}').count();
    }
    assert!(broken > 20, "bytes that are no characters are shown as such: {broken}");
}

#[test]
fn outputs_write_too() {
    let place = Place::new();
    place.run(&format!("compress demo --method whiten --keep 0.6 --ppl none {FAST} -o out")).fine();
    let said = place.run("generate out --max-tokens 20 --json").fine();
    let json: Value = serde_json::from_str(&said.stdout).expect("one JSON object");
    let found = ids(&json["ids"]);
    let output = Model::load(Source::open(&place.path("out")).unwrap(), &Device::Cpu).unwrap();
    let mut all = vec![0];
    for &id in &found {
        assert_eq!(largest(&recomputed(&output, &all)), id);
        all.push(id);
    }
    assert!(!found.is_empty());
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let place = Place::new();
    for (options, naming) in [
        ("--max-tokens 0", "--max-tokens 0"),
        ("--temperature -1", "--temperature -1"),
        ("--temperature nan", "--temperature NaN"),
        ("--temperature inf", "--temperature inf"),
        ("--temperature 1e39", "--temperature 1000"),
        ("--repeat-penalty 1e-300", "--repeat-penalty 0.000"),
        ("--repeat-penalty 1e39", "--repeat-penalty 1000"),
        ("--temperature 1 --top-p 0", "--top-p 0"),
        ("--temperature 1 --top-p 1.5", "--top-p 1.5"),
        ("--temperature 1 --top-k 0", "--top-k is 0"),
        ("--repeat-penalty 0", "--repeat-penalty 0"),
        ("--top-k 5", "temperature 0"),
    ] {
        let naming = naming.replace("--max-tokens 0", "--max-tokens is 0");
        place.run(&format!("generate demo {options}")).refused(&[&naming]);
    }
    place.run("generate ./nothing").refused(&["./nothing"]);
    // Sound weights whose logits are too large for f32.
    let folder = place.demo_folder("loud");
    change_weights(&folder, |all| {
        let (_, _, data) = all.get_mut("model.norm.weight").expect("the last norm");
        data.as_chunks_mut::<2>().0.iter_mut().for_each(|bytes| *bytes = half::bf16::from_f32(3e38).to_le_bytes());
    });
    for options in ["", "--temperature 0.7"] {
        place.run(&format!("generate loud --prompt the {options}")).refused(&["logits of loud", "NaN or infinite"]);
    }
    let encoder = here().join("models/bert-tiny");
    place.run(&format!("generate {} --prompt the", encoder.display())).refused(&["bert-tiny", "encoder"]);
    // A model without a tokenizer, and one that has no token to begin with.
    let folder = here().join("models/mamba-tiny");
    place.run(&format!("generate {}", folder.display())).refused(&["tokenizer"]);
    let folder = place.demo_folder("nameless");
    std::fs::remove_file(folder.join("tokenizer_config.json")).unwrap();
    change_config(&folder, "bos_token_id", Value::Null);
    place.run("generate nameless").refused(&["the prompt is empty"]);
    let long = place.write("long.txt", "word ".repeat(2000));
    let text = std::fs::read_to_string(long).unwrap();
    place.run_with_input("generate demo --prompt -", &text).refused(&["context", "512"]);
}

/// Matrices that stay in bf16 give the same logits, in half the memory, and sequences side by side those of each alone.
#[test]
fn held_halves_and_sequences_side_by_side_change_nothing() {
    let rows: Vec<Vec<u32>> = (0..3).map(|row| (0..21).map(|i| (row * 31 + i * 7) % 90 + 5).collect()).collect();
    let model = |held: bool| {
        let model = Model::load(Source::demo(), &Device::Cpu).unwrap();
        if held { model.holding_half() } else { model }
    };
    let (plain, held) = (model(false), model(true));
    let alone: Vec<Vec<Vec<f32>>> = rows
        .iter()
        .map(|row| {
            let mut decoder = Decoder::new(&plain).unwrap();
            let logits = [&row[..17], &row[17..18], &row[18..]].map(|part| decoder.read(part).unwrap());
            logits.iter().map(|logits| logits.to_vec1().unwrap()).collect()
        })
        .collect();
    let mut bytes = Vec::new();
    for model in [&plain, &held] {
        let mut decoder = Decoder::new(model).unwrap();
        bytes.push(decoder.storage().bytes);
        for (part, range) in [0..17, 17..18, 18..21].into_iter().enumerate() {
            let parts: Vec<&[u32]> = rows.iter().map(|row| &row[range.clone()]).collect();
            let together: Vec<Vec<f32>> = decoder.read_rows(&parts).unwrap().to_vec2().unwrap();
            for (logits, expected) in together.iter().zip(alone.iter().map(|parts| &parts[part])) {
                let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
                let off = logits.iter().zip(expected).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
                assert!(f64::from(off) < LOGITS * f64::from(largest), "{off} of {largest}");
            }
        }
        assert!(decoder.read_rows(&[&[1], &[2]]).is_err(), "another number of sequences");
    }
    assert_eq!(bytes[0], 2 * bytes[1]);
}

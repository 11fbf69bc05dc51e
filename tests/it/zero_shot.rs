//! Zero-shot tasks: each likelihood and score as lm-evaluation-harness has it (`tests/golden/zero_shot.py`), work that is
//! shared as work that is not, and the command.

use crate::families::open;
use crate::program::{FAST, Place, copy_folder};
use serde_json::{Value, json};
use softlm::eval::likelihoods;
use softlm::text::Window;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn read(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(name)).expect("golden data")).expect("JSON")
}

fn lines(rows: &Value) -> String {
    rows.as_array().expect("rows").iter().map(|row| format!("{row}\n")).collect()
}

#[track_caller]
fn near(what: &str, found: &Value, wanted: &Value, tolerance: f64) {
    let (found, wanted) = (found.as_f64().expect("a number"), wanted.as_f64().expect("a number"));
    assert!((found - wanted).abs() <= tolerance * wanted.abs().max(1.0), "{what}: {found} for {wanted}");
}

#[test]
fn likelihoods_and_scores_are_those_of_the_harness() {
    let (place, items, expected) = (Place::new(), read("zero_shot_items.json"), read("zero_shot.json"));
    for (task, rows) in items.as_object().expect("tasks") {
        place.write(&format!("{task}.jsonl"), lines(rows));
    }
    let begins = place.demo_folder("demo-bos");
    let mut tokenizer: Value = serde_json::from_slice(&place.read("demo-bos/tokenizer.json")).expect("JSON");
    tokenizer["post_processor"] = expected["post_processor"].clone();
    std::fs::write(begins.join("tokenizer.json"), tokenizer.to_string()).expect("written");
    copy_folder(&golden("models/gpt2-tiny"), &place.path("gpt2-tiny"));

    for (model, tasks) in expected["models"].as_object().expect("models") {
        for (task, wanted) in tasks.as_object().expect("tasks") {
            let what = format!("{task} by {model}");
            let line = format!("eval {model} --tasks {task}={task}.jsonl --log-samples samples.jsonl --json");
            let said: Value = serde_json::from_str(&place.run(&line).fine().stdout).expect("JSON");
            let result = &said["tasks"][0];
            assert_eq!((&result["task"], &result["n"]), (&json!(task), &wanted["n"]), "{what}");
            assert_eq!((&result["prompts"], &result["shots"]), (&json!("harness"), &json!(0)), "{what}");
            assert_eq!(result["bos"], json!(model == "demo-bos"), "{what}");
            for metric in ["acc", "acc_norm", "acc_stderr", "acc_norm_stderr", "perplexity"] {
                match wanted.get(metric) {
                    Some(value) => near(&format!("{what}, {metric}"), &result[metric], value, 1e-4),
                    None => assert!(result[metric].is_null(), "{what}: {metric} {}", result[metric]),
                }
            }
            let samples = String::from_utf8(place.read("samples.jsonl")).expect("UTF-8");
            let wanted = wanted["items"].as_array().expect("items");
            assert_eq!(samples.lines().count(), wanted.len(), "{what}");
            for (line, wanted) in samples.lines().zip(wanted) {
                let item: Value = serde_json::from_str(line).expect("JSON");
                let what = format!("{what}, {}", item["item"]);
                let likelihoods = item["log_p"].as_array().expect("likelihoods");
                let theirs = wanted["log_p"].as_array().expect("likelihoods");
                assert_eq!(likelihoods.len(), theirs.len(), "{what}");
                likelihoods.iter().zip(theirs).for_each(|(a, b)| near(&what, a, b, 2e-5));
                let pick = if task == "lambada" {
                    json!(u8::from(wanted["greedy"][0] == json!(false)))
                } else {
                    wanted["pick"].clone()
                };
                assert_eq!((&item["pick"], &item["acc"]), (&pick, &wanted["acc"]), "{what}");
            }
        }
    }
}

/// Choices that begin alike, end alike, are the whole of another, or have nothing in common; a context of one token.
#[test]
fn work_that_is_shared_changes_nothing() {
    let ids = |numbers: &[u32]| numbers.iter().map(|n| 3 + (n * 37) % 50).collect::<Vec<u32>>();
    let window = |numbers: &[u32], first_target| Window { ids: ids(numbers), first_target };
    let groups = vec![
        vec![window(&[1, 2, 3, 4, 5, 6], 4), window(&[1, 2, 3, 4, 9], 4), window(&[1, 2, 3, 4, 7, 8, 6, 5], 4)],
        vec![window(&[5, 6, 7], 2), window(&[5, 6, 7, 8], 2), window(&[5, 6, 7], 2)],
        vec![window(&[1, 2, 3], 1), window(&[4, 5, 3, 1], 2)],
        vec![window(&[9, 8], 1), window(&[9, 7], 1)],
        vec![window(&[2, 4, 6, 8, 1, 3, 5, 7, 9, 11, 13], 6)],
    ];
    let alone: Vec<Vec<Window>> = groups.iter().flatten().map(|window| vec![window.clone()]).collect();
    let mut models = 0;
    for folder in std::fs::read_dir(golden("models")).expect("models") {
        let folder = folder.expect("a folder").path();
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        if name.contains("bert") {
            continue;
        }
        let model = open(&folder);
        let shared = likelihoods(&model, &groups, &()).expect("likelihoods");
        let single = likelihoods(&model, &alone, &()).expect("likelihoods");
        let (mut spread, single) = (0.0f64, single.into_iter().flatten());
        for (a, b) in shared.into_iter().flatten().zip(single) {
            assert!((a.log_p - b.log_p).abs() < 1e-4 * b.log_p.abs().max(1.0), "{name}: {} for {}", a.log_p, b.log_p);
            spread = spread.max(b.log_p.abs());
        }
        assert!(spread > 1.0, "{name}: likelihoods that say nothing");
        models += 1;
    }
    assert!(models > 15, "{models}");
}

#[test]
fn a_compressed_model_stands_beside_its_original() {
    let (place, items) = (Place::new(), read("zero_shot_items.json"));
    place.write("piqa.jsonl", lines(&items["piqa"]));
    place.write("arc.jsonl", lines(&items["arc_easy"]));
    let tasks = "--tasks piqa=piqa.jsonl,arc_easy=arc.jsonl --limit 8";
    let said = place.run(&format!("compress demo --method svd --keep 0.5 {FAST} {tasks} -o out")).fine().stdout;
    assert!(said.contains("arc_easy") && said.contains("8 items of arc.jsonl"), "{said}");
    let card = String::from_utf8(place.read("out/README.md")).expect("UTF-8");
    assert!(card.contains("Zero-shot tasks") && card.contains("8 items of piqa.jsonl"), "{card}");

    let eval = |model: &str| -> Value {
        serde_json::from_str(&place.run(&format!("eval {model} {tasks} --json")).fine().stdout).expect("JSON")
    };
    let (dense, out) = (eval("demo"), eval("out"));
    assert!(dense["tasks"][0]["baseline"].is_null());
    let report: Value = serde_json::from_slice(&place.read("out/report.json")).expect("JSON");
    assert_eq!(report["tasks"], out["tasks"]);
    for (task, dense) in out["tasks"].as_array().expect("tasks").iter().zip(dense["tasks"].as_array().expect("tasks")) {
        assert_eq!(task["baseline"]["acc"], dense["acc"]);
        let number = |value: &Value| value.as_f64().expect("a number");
        let difference = number(&task["acc"]) - number(&dense["acc"]);
        assert!((number(&task["difference"]["acc"]) - difference).abs() < 1e-12, "{task}");
    }

    place.run(&format!("eval out {tasks} --min-acc piqa=0,arc_easy=0% --max-acc-drop 1")).fine();
    place.run(&format!("eval out {tasks} --min-acc piqa=100%")).check_failed(&["piqa", "--min-acc"]);
    place.run(&format!("eval out {tasks} --min-acc boolq=0.5")).refused(&["boolq"]);
    place.run(&format!("eval demo {tasks} --max-acc-drop 0.1")).refused(&["--against"]);
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let place = Place::new();
    place.write("a.jsonl", "{\"query\": \"Q\", \"choices\": [\"a\", \"b\"], \"gold\": 1}\n");
    place.write("gold.jsonl", "{\"query\": \"Q\", \"choices\": [\"a\", \"b\"], \"gold\": 2}\n");
    place.write("field.jsonl", "{\"query\": \"Q\", \"choices\": [\"a\", \"b\"]}\n");
    place.write("type.jsonl", "{\"query\": 3, \"choices\": [\"a\", \"b\"], \"gold\": 0}\n");
    place.write("broken.jsonl", "{\"query\": \n");
    place.write("empty.jsonl", "");
    let long = "word ".repeat(900);
    place.write("long.jsonl", json!({"query": "Q", "choices": [long, "b"], "gold": 0}).to_string());
    for (options, naming) in [
        ("--tasks hella", &["hella", "piqa"][..]),
        ("--tasks piqa=none.jsonl", &["none.jsonl"]),
        ("--tasks piqa=gold.jsonl", &["gold.jsonl", "1", "2 choices"]),
        ("--tasks piqa=field.jsonl", &["field.jsonl", "gold"]),
        ("--tasks piqa=type.jsonl", &["type.jsonl", "query", "3"]),
        ("--tasks piqa=broken.jsonl", &["broken.jsonl"]),
        ("--tasks piqa=empty.jsonl", &["empty.jsonl"]),
        ("--tasks piqa=long.jsonl", &["long.jsonl", "512"]),
        ("--tasks piqa=a.jsonl --shots 5", &["--shots"]),
        ("--tasks piqa=a.jsonl --limit 0", &["--limit"]),
        // Not in the cache, and there is no network.
        ("--tasks piqa", &["piqa"]),
    ] {
        place.run(&format!("eval demo {options}")).refused(naming);
    }
    copy_folder(&golden("models/bert-tiny"), &place.path("bert"));
    place.run("eval bert --tasks piqa=a.jsonl").refused(&["bert", "encoder"]);
    let said = place
        .run(&format!("compress demo --method svd {FAST} --tasks piqa=gold.jsonl -o out"))
        .refused(&["gold.jsonl"]);
    assert!(!place.path("out").exists() && !said.stderr.contains("decomposing"), "{}", said.stderr);
}

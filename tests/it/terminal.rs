//! Names and texts from files cannot drive a terminal or look like the program's own words.

use crate::program::{FAST, Place, Said};
use serde_json::{Value, json};
use std::fs;

/// Clears the screen, goes back to the line's beginning, begins a line of its own, turns the writing round.
const HOSTILE: &str = "x\x1b[2J\rz\nerror: forged\u{9b}31m\u{202e}";

/// Everything shown is harmless, and no line was begun by the input.
#[track_caller]
fn harmless(said: &Said) {
    for (stream, text) in [("stdout", &said.stdout), ("stderr", &said.stderr)] {
        let acts = |c: char| c.is_control() && c != '\n' || ('\u{2028}'..='\u{202e}').contains(&c);
        assert!(!text.contains(acts), "{stream}: {text:?}");
        assert!(text.lines().all(|line| !line.starts_with("error: forged")), "{stream}: {text}");
    }
}

fn change(path: &std::path::Path, edit: &dyn Fn(&mut Value)) {
    let mut json: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    edit(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

#[test]
fn errors_that_quote_a_file_are_one_line_each() {
    let place = Place::new();
    let config = |name: &str, edit: &dyn Fn(&mut Value)| change(&place.demo_folder(name).join("config.json"), edit);
    config("family", &|json| json["model_type"] = json!(HOSTILE));
    config("key", &|json| json[HOSTILE] = json!(1));
    config("activation", &|json| json["hidden_act"] = json!(HOSTILE));
    let shards = place.demo_folder("shards");
    fs::remove_file(shards.join("model.safetensors")).unwrap();
    let index = json!({"metadata": {}, "weight_map": {"a": format!("{}.safetensors", HOSTILE.replace('\0', ""))}});
    fs::write(shards.join("model.safetensors.index.json"), index.to_string()).unwrap();
    let tensors = place.demo_folder("tensors");
    let header = json!({HOSTILE: {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat();
    fs::write(tensors.join("model.safetensors"), file).unwrap();
    place.write("recipe.toml", format!("method = {}\n", json!(HOSTILE)));
    for line in [
        "inspect family",
        "eval family",
        "inspect activation",
        "eval activation",
        "eval shards",
        "inspect tensors",
        "compress demo --config recipe.toml --keep 0.6 -o out",
    ] {
        let said = place.run(line);
        harmless(&said);
        assert!(said.code == 2 || line.starts_with("inspect"), "{line}: {}", said.stderr);
    }
    // A key that nobody knows is a note.
    let said = place.run("eval key --ppl sample --window 64 --max-windows 1").fine();
    assert!(said.stderr.contains("x\\u{1b}[2J\\rz\\nerror: forged\\u{9b}31m\\u{202e}"), "{}", said.stderr);
    harmless(&said);
}

#[test]
fn reports_and_listings_show_what_they_were_given_and_no_more() {
    let place = Place::new();
    place.run(&format!("compress demo --method rom --keep 0.6 {FAST} --ppl sample -o out")).fine();
    change(&place.path("out/report.json"), &|json| {
        for key in ["softlm", "method", "paper"] {
            json[key] = json!(HOSTILE);
        }
        for key in ["name", "family", "revision"] {
            json["model"][key] = json!(HOSTILE);
        }
        json["notes"] = json!([HOSTILE]);
        json["allocation"]["rule"] = json!(HOSTILE);
        for side in ["before", "after"] {
            json["evaluation"][0][side]["perplexity"]["corpus"] = json!(HOSTILE);
        }
        json["calibration"]["corpora"][0]["name"] = json!(HOSTILE);
        json["machine"]["cpu"] = json!(HOSTILE);
        json["linears"][0]["note"] = json!(HOSTILE);
    });
    harmless(&place.run("inspect out").fine());
    change(&place.path("out/config.json"), &|json| json["softlm"]["base_model"] = json!(HOSTILE));
    for line in ["inspect out --tensors", "verify out", "eval out --ppl sample --window 64 --max-windows 1"] {
        harmless(&place.run(line));
    }
    // JSON stays JSON.
    let said = place.run("inspect out --json").fine();
    harmless(&said);
    let json: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(json["softlm"]["base_model"], HOSTILE);
}

#[test]
fn what_a_model_writes_is_text_unless_asked_for_raw() {
    let place = Place::new();
    let folder = place.demo_folder("model");
    change(&folder.join("tokenizer.json"), &|json| {
        json["decoder"] = json!({"type": "Replace", "pattern": {"String": "e"}, "content": HOSTILE});
    });
    let line = "generate model --prompt The --max-tokens 20";
    let said = place.run(line).fine();
    assert!(said.stdout.contains("\\u{1b}[2J\\r"), "{}", said.stdout);
    assert!(!said.stdout.contains('\x1b') && !said.stdout.contains('\r'), "{:?}", said.stdout);
    let raw = place.run(&format!("{line} --raw"));
    assert!(raw.code == 0 && raw.stdout.contains(HOSTILE), "{:?}", raw.stdout);
}

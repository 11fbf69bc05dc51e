//! `softlm export` as a command: what it writes evaluates alike, what it refuses, and what a run that was stopped leaves.

use crate::export::config;
use crate::program::{FAST, Place, change_config, change_weights, copy_folder, finish, tensors};
use half::bf16;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use softlm::checkpoint::Dtype;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

const LORAP: &str = "compress demo --method lorap --keep 0.6 --ppl none";

#[test]
fn the_command_writes_checkpoints_that_evaluate_alike() {
    let place = Place::new();
    place.run(&format!("{LORAP} {FAST} -o out")).fine();
    let said = place.run("export out --to dense -o dense --dtype f32").fine();
    assert!(
        said.stdout.starts_with("dense: 38 tensors, ") && said.stdout.contains("note: the channels"),
        "{}",
        said.stdout
    );
    place.run("export out --to plain -o plain --dtype f32").fine();
    let said = place.run("export out --to factors -o factors --json").fine();
    let facts: Value = serde_json::from_str(&said.stdout).expect("JSON");
    assert_eq!((&facts["form"], &facts["computed"]), (&json!("factors"), &json!(0)));
    assert_eq!(facts["bytes"], facts["bytes_before"]);
    let schema: Value = serde_json::from_str(&place.run("export --schema").fine().stdout).expect("JSON");
    assert_eq!(schema["properties"]["version"]["const"], 1);

    let perplexity = |folder: &str| {
        let said = place.run(&format!("eval {folder} --ppl sample --window 64 --max-windows 8 --json")).fine();
        let found: Value = serde_json::from_str(&said.stdout).expect("JSON");
        found["perplexity"][0]["nll"].as_f64().expect("a number")
    };
    let factors = perplexity("out");
    for folder in ["dense", "plain"] {
        place.run(&format!("verify {folder}")).fine();
        let found = perplexity(folder);
        assert!((found - factors).abs() < 1e-5 * factors, "{folder}: {found} {factors}");
        for side in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
            assert!(place.read(&format!("{folder}/{side}")) == place.read(&format!("out/{side}")), "{side}");
        }
        let card = String::from_utf8(place.read(&format!("{folder}/README.md"))).expect("text");
        assert!(card.contains("`demo`") && card.contains("`lorap`") && card.contains("AutoModelForCausalLM"), "{card}");
        assert!(!place.path(&format!("{folder}/softlm.toml")).exists());
    }
    place.run("verify dense --against demo").fine();
    // One thread or many, one file or several.
    for (threads, more, folder) in [(1, "", "one"), (3, "", "three"), (2, "--max-shard-size 100KB", "shards")] {
        place.run(&format!("export out --to dense --dtype f32 -o {folder} --threads {threads} {more}")).fine();
    }
    assert!(place.read("one/model.safetensors") == place.read("dense/model.safetensors"));
    assert!(place.read("three/model.safetensors") == place.read("dense/model.safetensors"));
    let whole = tensors(&place.path("dense/model.safetensors"));
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(place.path("shards")).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            found.extend(tensors(&path));
        }
    }
    assert!(found == whole && !place.path("shards/model.safetensors").exists());
    place.run("verify shards --against demo").fine();
}

#[test]
fn mistakes_are_refused() {
    let place = Place::new();
    place.run(&format!("{LORAP} {FAST} -o out")).fine();
    place.run(&format!("compress demo --method rom --keep 0.6 --ppl none {FAST} -o factors")).fine();
    place.run("export demo --to dense -o x").refused(&["demo is not an output of softlm"]);
    place.run("export factors --to plain -o x").refused(&["no feed-forward layer of factors is narrower"]);
    place.run("export out --to dense -o out").refused(&["out is the folder that is exported"]);
    place.run("export out --to dense -o out/sub").refused(&["out/sub lies in the folder"]);
    place.run("export out --to dense -o . --force").refused(&[". holds the folder"]);
    place.run("export out --to dense -o x --max-shard-size 0").refused(&["--max-shard-size 0"]);
    place.run("export out --to dense -o no/such/folder/x --max-shard-size 1YB").refused(&["unknown unit"]);
    assert_eq!(place.run("export out --to gguf -o x").code, 2);
    assert_eq!(place.run("export out").code, 2);

    // An export is replaced only when that is asked for, and nothing else ever is.
    place.run("export out --to dense -o x").fine();
    let before = place.read("x/model.safetensors");
    place.run("export out --to plain -o x").refused(&["x already exists"]);
    assert!(place.read("x/model.safetensors") == before);
    place.run("export out --to plain -o x --force").fine();
    assert!(place.read("x/model.safetensors") != before);
    place.run("export x --to dense -o y").refused(&["x is not an output of softlm"]);
    place.demo_folder("mine");
    place.run("export out --to dense -o mine --force").refused(&["mine already exists and was not written by softlm"]);

    // A value that the type cannot hold, and a damaged output.
    let factor = "model.layers.1.self_attn.q_proj.factor_a.weight";
    let spoil = |name: &str, value: f32| {
        unrecorded(&place.path("factors"), &place.path(name));
        change_weights(&place.path(name), |all| {
            let (dtype, _, data) = all.get_mut(factor).expect("a factor");
            assert_eq!(*dtype, Dtype::BF16);
            data[..2].copy_from_slice(&bf16::from_f32(value).to_le_bytes());
        });
    };
    spoil("large", 1e30);
    spoil("broken", f32::NAN);
    place.run("export large --to dense -o z --dtype f16").refused(&["q_proj.weight does not fit into F16"]);
    place.run("export large --to dense -o z").fine();
    place.run("export broken --to dense -o b").refused(&[factor, "NaN"]);
    unrecorded(&place.path("factors"), &place.path("half"));
    change_weights(&place.path("half"), |all| drop(all.remove(factor)));
    place.run("export half --to dense -o b").refused(&["self_attn.q_proj"]);
    unrecorded(&place.path("factors"), &place.path("wrong"));
    change_config(&place.path("wrong"), "num_attention_heads", json!(2));
    place.run("export wrong --to dense -o b").refused(&["self_attn"]);
    for left in ["b", "b.softlm-work", "x.softlm-work", "z.softlm-work"] {
        assert!(!place.path(left).exists(), "{left}");
    }
}

/// A copy of an output that does not know its own hashes, so that changes to it are found where they matter.
fn unrecorded(from: &Path, to: &Path) {
    copy_folder(from, to);
    forget_hashes(to);
}

/// Takes out of a report what version 0.1 did not record.
fn forget_hashes(output: &Path) {
    let path = output.join("report.json");
    let mut report: Value = serde_json::from_slice(&fs::read(&path).expect("a report")).expect("JSON");
    report.as_object_mut().expect("an object").remove("output").expect("hashes");
    fs::write(path, report.to_string()).expect("written");
}

#[test]
fn nothing_unfinished_looks_finished() {
    let place = Place::new();
    place.run(&format!("{LORAP} {FAST} -o out")).fine();
    let line = "export out --to dense --dtype f32 -o dense";
    let (mut early, mut seed) = (0, 5u64);
    for _ in 0..40 {
        let mut child = place.command(line).spawn().expect("the program starts");
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_micros((seed >> 40) % 60_000));
        child.kill().expect("killed");
        child.wait().expect("a child");
        if place.path("dense").exists() {
            place.run("verify dense --against demo").fine();
            fs::remove_dir_all(place.path("dense")).expect("removed");
        } else {
            early += 1;
        }
    }
    assert!(early > 0, "every kill came too late");
    // What they left is in nobody's way.
    place.run(line).fine();
    place.run("verify dense --against demo").fine();
    assert!(!place.path("dense.softlm-work").exists());
    fs::remove_dir_all(place.path("dense")).expect("removed");

    let mut stopped = false;
    for wait in 0..60 {
        let child = place.command(line).spawn().expect("the program starts");
        std::thread::sleep(Duration::from_millis(wait));
        // It may be over, or not yet listen.
        let _ = kill_process(Pid::from_child(&child), Signal::INT);
        let said = finish(child);
        if said.code == 130 {
            stopped = true;
            assert!(said.stderr.contains("interrupted: "), "{}", said.stderr);
            assert!(!place.path("dense").exists() && !place.path("dense.softlm-work").exists());
        }
        let _ = fs::remove_dir_all(place.path("dense"));
    }
    assert!(stopped, "no signal came in time");
}

#[test]
fn an_output_of_the_first_format_can_be_exported() {
    let place = Place::new();
    place.run(&format!("{LORAP} {FAST} -o out")).fine();
    // Format 1 left the base's keys as they were, narrower widths aside.
    let demo = place.demo_folder("demo-folder");
    let path = place.path("out/config.json");
    let now: Value = serde_json::from_slice(&fs::read(&path).expect("a config")).expect("JSON");
    let mut first: Value =
        serde_json::from_slice(&fs::read(demo.join("config.json")).expect("a config")).expect("JSON");
    first["intermediate_size"] = now["intermediate_size"].clone();
    let width = first["intermediate_size"].clone();
    first["softlm"] = json!({
        "format": 1, "version": "0.1.0", "method": "lorap", "keep": 0.6, "base_model": "demo", "base_revision": null,
        "linears": {
            "model.layers.0.mlp.gate_proj": { "width": width }, "model.layers.0.self_attn.q_proj": { "rank": 3 },
        },
    });
    fs::write(&path, first.to_string()).expect("written");
    forget_hashes(&place.path("out"));
    place.run("export out --to dense -o dense").fine();
    assert_eq!(config(&place.path("dense")), config(&demo));
    place.run("verify dense --against demo").fine();
    place.run("export out --to plain -o plain").fine();
    assert_eq!(config(&place.path("plain"))["intermediate_size"], width);
    fs::remove_file(place.path("out/report.json")).expect("removed");
    place.run("export out --to dense -o again").refused(&["`intermediate_size`", "report.json"]);
    place.run("export out --to plain -o again").fine();
}

//! NaN where it matters is said before anything is done; where it does not matter it is copied and reported. Tensors that
//! nothing reads are counted and named.

use crate::program::{FAST, Place, change_config, change_weights, copy_folder, tensors};
use half::{bf16, f16};
use serde_json::{Value, json};
use softlm::checkpoint::Dtype;
use std::path::{Path, PathBuf};

const ROWS: usize = 1024;
const WIDTH: usize = 128;
const EMBED: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

fn bytes(value: bf16, count: usize) -> Vec<u8> {
    value.to_le_bytes().repeat(count)
}

/// The built-in model with a head of its own and eight rows that no token has.
fn padded(place: &Place, name: &str, embedding: bf16, head: bf16) -> PathBuf {
    let folder = place.demo_folder(name);
    change_config(&folder, "vocab_size", json!(ROWS + 8));
    change_config(&folder, "tie_word_embeddings", json!(false));
    change_weights(&folder, |all| {
        let old = all[EMBED].2.clone();
        let mut put = |name: &str, rest: bf16| {
            let data = [old.clone(), bytes(rest, 8 * WIDTH)].concat();
            all.insert(name.to_string(), (Dtype::BF16, vec![ROWS + 8, WIDTH], data));
        };
        put(EMBED, embedding);
        put(HEAD, head);
    });
    folder
}

/// Writes NaN into element `index` of a bf16 tensor.
fn spoil(folder: &Path, tensor: &str, index: usize) {
    change_weights(folder, |all| {
        let data = &mut all.get_mut(tensor).expect("a tensor").2;
        data[2 * index..2 * index + 2].copy_from_slice(&bf16::NAN.to_le_bytes());
    });
}

fn golden(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(kind)
}

#[test]
fn rows_that_no_token_has_are_copied() {
    let place = Place::new();
    padded(&place, "m", bf16::NAN, bf16::ZERO);
    let eval = "--window 64 --max-windows 2 --json";
    let ppl = |name: &str| -> f64 {
        let said = place.run(&format!("eval {name} {eval}")).fine();
        let json: Value = serde_json::from_str(&said.stdout).expect("JSON");
        json["perplexity"][0]["ppl"].as_f64().expect("a number")
    };
    padded(&place, "sound", bf16::ZERO, bf16::ZERO);
    assert_eq!(ppl("m"), ppl("sound"));
    let said = place.run(&format!("compress m --method whiten --weight unit --keep 0.8 {FAST} -o out")).fine();
    assert!(said.stderr.contains("8 rows from row 1024 on"), "{}", said.stderr);
    let report = place.report("out");
    assert!(report.notes.iter().any(|note| note.contains(EMBED) && note.contains("1024")), "{:?}", report.notes);
    assert_eq!(
        tensors(&place.path("out/model.safetensors"))[EMBED],
        tensors(&place.path("m/model.safetensors"))[EMBED]
    );
    place.run("eval out --window 64 --max-windows 2").fine();
    let said = place.run("verify out").fine();
    assert!(said.stdout.contains("note: model.embed_tokens.weight"), "{}", said.stdout);
    place.run("verify m").fine();
}

#[test]
fn numbers_that_are_computed_with_are_checked_before_anything_is_done() {
    let place = Place::new();
    let refused = |name: &str, naming: &[&str]| {
        for method in ["svd", "whiten --weight unit", "rom"] {
            let line = format!("compress {name} --method {method} --keep 0.8 --ppl sample {FAST} -o out");
            let said = place.run(&line).refused(naming);
            assert!(!said.stderr.contains("compressing"), "{}", said.stderr);
            assert!(!place.path("out.softlm-work").exists(), "{name}: work was begun");
        }
        let line = format!("compress {name} --method whiten --weight unit --ppl none {FAST} --stats stats -o out");
        place.run(&line).refused(naming);
        place.run(&format!("calibrate {name} --calib-windows 3 --window 64 -o stats")).refused(naming);
        assert!(!place.path("stats").exists(), "{name}: statistics were begun");
        assert_eq!(place.run(&format!("verify {name}")).code, 1, "{name}");
    };
    for (tensor, index, shown) in [
        ("model.layers.3.mlp.down_proj.weight", 352 * 5 + 7, "[5, 7]"),
        ("model.layers.2.input_layernorm.weight", 9, "[9]"),
        ("model.norm.weight", 127, "[127]"),
    ] {
        let name = tensor.replace('.', "-");
        spoil(&place.demo_folder(&name), tensor, index);
        refused(&name, &[tensor, "NaN", shown]);
    }
    // A row of the head makes a logit of every position NaN, whether a token has it or not.
    padded(&place, "head", bf16::ZERO, bf16::NAN);
    refused("head", &[HEAD, "NaN", "[1024, 0]"]);
    let tied = place.demo_folder("tied");
    change_config(&tied, "vocab_size", json!(ROWS + 1));
    change_weights(&tied, |all| {
        let (_, shape, data) = all.get_mut(EMBED).expect("an embedding");
        shape[0] += 1;
        data.extend(bytes(bf16::INFINITY, WIDTH));
    });
    refused("tied", &[EMBED, "inf", "[1024, 0]"]);
    // A row of the embedding matters to a text that has its token.
    let folder = padded(&place, "row", bf16::ZERO, bf16::ZERO);
    change_weights(&folder, |all| {
        let data = &mut all.get_mut(EMBED).expect("an embedding").2;
        (0..ROWS).for_each(|row| data[2 * row * WIDTH..][..2].copy_from_slice(&bf16::NAN.to_le_bytes()));
    });
    refused("row", &[EMBED, "NaN", "occurs in the text"]);
}

#[test]
fn what_nothing_reads_is_named_and_copied() {
    let place = Place::new();
    let folder = place.demo_folder("m");
    change_weights(&folder, |all| {
        let mask = [bf16::ZERO, bf16::NEG_INFINITY, bf16::ZERO, bf16::ZERO];
        let mask = mask.iter().flat_map(|x| x.to_le_bytes()).collect();
        all.insert("model.causal_mask".into(), (Dtype::BF16, vec![2, 2], mask));
        all.insert("vision.patch.weight".into(), (Dtype::BF16, vec![3, 2], bytes(bf16::ONE, 6)));
        all.insert("vision.position_ids".into(), (Dtype::I64, vec![1], vec![0; 8]));
    });
    let names = ["model.causal_mask", "vision.patch.weight", "vision.position_ids"];
    let said = place.run("inspect m").fine();
    assert!(
        names.iter().all(|name| said.stdout.contains(name)) && said.stdout.contains("3 tensors"),
        "{}",
        said.stdout
    );
    let json: Value = serde_json::from_str(&place.run("inspect m --json").fine().stdout).expect("JSON");
    assert_eq!(json["unused_tensors"], json!(names));
    let json: Value = serde_json::from_str(&place.run("inspect demo --json").fine().stdout).expect("JSON");
    assert_eq!(json["unused_tensors"], json!([]));
    let said = place.run("eval m --window 64 --max-windows 1").fine();
    assert_eq!(said.stderr.matches("vision.patch.weight").count(), 1, "{}", said.stderr);

    let said = place.run(&format!("compress m --method svd --keep 0.8 {FAST} -o out")).fine();
    assert_eq!(said.stderr.matches("vision.patch.weight").count(), 1, "{}", said.stderr);
    assert!(said.stderr.contains("model.causal_mask holds -inf at [0, 1]"), "{}", said.stderr);
    let report = place.report("out");
    let unused = report.model.unused_tensors.expect("recorded");
    assert_eq!((unused.count, unused.names.as_slice()), (3, &names.map(String::from)[..]));
    assert!(report.notes.iter().any(|note| note.contains("-inf")), "{:?}", report.notes);
    let (before, after) = (tensors(&place.path("m/model.safetensors")), tensors(&place.path("out/model.safetensors")));
    assert!(names.iter().all(|name| before[*name] == after[*name]));
    let said = place.run("verify out").fine();
    assert!(said.stdout.contains("3 of the tensors are read by nothing"), "{}", said.stdout);
    assert!(place.run("inspect out").fine().stdout.contains("unused: 3 tensors: model.causal_mask"));
    // Changed on the way, it is a problem all the same.
    change_weights(&place.path("out"), |all| all.get_mut("vision.patch.weight").expect("there").1 = vec![2, 3]);
    let said = place.run("verify out");
    assert!(said.code == 1 && said.stdout.contains("vision.patch.weight has shape"), "{}", said.stdout);
}

#[test]
fn many_unused_tensors_are_counted() {
    let place = Place::new();
    change_weights(&place.demo_folder("m"), |all| {
        for i in 0..100 {
            all.insert(format!("vision.{i:02}.weight"), (Dtype::BF16, vec![2], bytes(bf16::NAN, 2)));
        }
    });
    let said = place.run(&format!("compress m --method svd --keep 0.8 --ppl none {FAST} -o out")).fine();
    assert!(said.stderr.contains("100 tensors") && said.stderr.contains("and 96 more"), "{}", said.stderr);
    assert!(said.stderr.contains("100 tensors hold NaN or infinity (vision.00.weight"), "{}", said.stderr);
    let report = place.report("out");
    let unused = report.model.unused_tensors.expect("recorded");
    assert_eq!((unused.count, unused.names.len()), (100, 64));
}

#[test]
fn types_and_positions_that_no_text_has() {
    let place = Place::new();
    let folder = place.path("bert");
    copy_folder(&golden("models/bert-tiny"), &folder);
    let all = tensors(&folder.join("model.safetensors"));
    let nan = |tensor: &str, row: usize, of: &str| {
        let folder = place.path(of);
        copy_folder(&place.path("bert"), &folder);
        change_weights(&folder, |all| {
            let (dtype, shape, data) = all.get_mut(tensor).expect("a tensor");
            assert_eq!(*dtype, Dtype::F16);
            let start = 2 * row * shape[1];
            data[start..start + 2].copy_from_slice(&f16::NAN.to_le_bytes());
        });
    };
    let load = |name: &str| crate::families::open(&place.path(name));
    let touched = |types: &[u32]| {
        let mut touched = softlm::model::Touched::default();
        touched.add(&[5, 6, 7], types);
        touched
    };
    let types = "bert.embeddings.token_type_embeddings.weight";
    let positions = "bert.embeddings.position_embeddings.weight";
    assert!(all.contains_key(types) && all.contains_key(positions));
    nan(types, 1, "types");
    let model = load("types");
    assert_eq!(model.check_numbers(&touched(&[])).expect("not met").len(), 1);
    assert!(model.check_numbers(&touched(&[0, 1, 1])).is_err());
    assert!(model.embed(&[&[5, 6, 7]]).is_ok());
    assert!(model.embed_typed(&[&[5, 6, 7]], Some(&[&[0, 1, 1]])).is_err());
    for (row, met) in [(2, true), (3, false)] {
        let name = format!("position-{row}");
        nan(positions, row, &name);
        let model = load(&name);
        assert_eq!(model.check_numbers(&touched(&[])).is_err(), met, "{row}");
        assert_eq!(model.embed(&[&[5, 6, 7]]).is_err(), met, "{row}");
    }
}

#[test]
fn every_tensor_of_every_generated_model_is_used_or_known_to_be_unused() {
    // Poolers of encoders that have no classifier to read them; the other generators store nothing but what they read.
    for kind in ["models", "encoders"] {
        for folder in std::fs::read_dir(golden(kind)).expect("generated models") {
            let folder = folder.expect("a folder").path();
            let model = crate::families::open(&folder);
            let unused = model.unused_tensors();
            assert!(unused.iter().all(|name| name.contains("pooler")), "{}: {unused:?}", folder.display());
        }
    }
}

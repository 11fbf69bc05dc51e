//! Encoders through the program: compressed, proven whole, and measured as encoders.

use crate::program::{METHODS, Place, change_config, change_weights, copy_folder, quickly, tensors};
use serde_json::Value;
use softlm::checkpoint::Source;
use softlm::model::Model;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const SENTENCES: &str = "sentence\tlabel\nthe film was good\t1\nit is bad and not good\t0\nshe was in it\t1\n";
const PAIRS: &str =
    "sentence1\tsentence2\tlabel\nthe film was good\tit is good\t1\nhe is bad\tthe end\t0\na b c\ta b c d\t1\n";
const FAST: &str = "--calib-windows 16 --window 32 --eval-window 32 --max-windows 4";

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn json(place: &Place, line: &str) -> Value {
    serde_json::from_str(&place.run(line).fine().stdout).expect("one JSON value")
}

/// Names that belong to the linears of the model's blocks, dense or as factors, biases included.
fn linears(folder: &Path) -> BTreeSet<String> {
    let model = Model::load(Source::open(folder).expect("a checkpoint"), &candle_core::Device::Cpu).expect("a model");
    let parts = ["weight", "bias", "factor_a.weight", "factor_b.weight"];
    model.linears().iter().flat_map(|spec| parts.map(|part| format!("{}.{part}", spec.name))).collect()
}

#[test]
fn every_method_leaves_all_but_the_block_linears_as_it_is() {
    let place = Place::new();
    for name in ["encoders/bert-tiny-classes", "encoders/distilbert-tiny-bare", "models/bert-tiny"] {
        let model = folder(name);
        let (before, linears) = (tensors(&model.join("model.safetensors")), linears(&model));
        for method in METHODS {
            let (output, shown) = (format!("{}-{method}", name.replace('/', "-")), model.display());
            place.run(&format!("compress {shown} {} --keep 0.6 {FAST} -o {output}", quickly(method))).fine();
            place.run(&format!("verify {output} --against {shown}")).fine();
            let after = tensors(&place.path(&format!("{output}/model.safetensors")));
            let others = |all: &BTreeSet<String>| all.difference(&linears).cloned().collect::<Vec<_>>();
            let names = others(&before.keys().cloned().collect());
            assert_eq!(names, others(&after.keys().cloned().collect()), "{output}");
            assert!(names.iter().all(|name| before[name] == after[name]), "{output}");
            assert!(names.iter().any(|name| name.contains("word_embeddings")), "{output}: {names:?}");

            let report: Value = serde_json::from_slice(&place.read(&format!("{output}/report.json"))).expect("JSON");
            let card = String::from_utf8(place.read(&format!("{output}/README.md"))).expect("text");
            let measured = json(&place, &format!("eval {output} --ppl sample --window 32 --max-windows 4 --json"));
            if name.starts_with("models") {
                assert_eq!(measured["perplexity"][0]["masked"], true, "{output}");
                assert_eq!(measured["perplexity"][0], report["evaluation"][0]["after"]["perplexity"], "{output}");
                assert!(measured["baseline"][0]["ppl"].is_number() && measured["divergence"]["kl"].is_number());
                assert!(card.contains("Pseudo-perplexity") && card.contains("fill-mask"), "{card}");
            } else {
                assert_eq!(measured["fidelity"], report["fidelity"], "{output}");
                let found = &measured["fidelity"][0];
                assert!(found["cosine"].as_f64().is_some_and(|x| x < 1.0 && x > 0.2), "{output}: {found}");
                assert_eq!((&found["pooling"], &found["window"]), (&"mean".into(), &32.into()));
                assert!(card.contains("Mean cosine") && !card.contains("text-generation"), "{card}");
            }
            assert!(place.run(&format!("inspect {output}")).fine().stdout.contains(method));
        }
    }
    let facts = json(&place, &format!("inspect {} --json", folder("encoders/bert-tiny-classes").display()));
    assert_eq!(facts["encoder"], serde_json::json!({ "classes": 3 }));
}

#[test]
fn tasks_are_measured_beside_the_original() {
    let place = Place::new();
    place.write("s.tsv", SENTENCES);
    place.write("p.tsv", PAIRS);
    let model = folder("encoders/distilbert-tiny-classes");
    place.run(&format!("compress {} --method svd --keep 0.5 --ppl none {FAST} -o out", model.display())).fine();
    let found = json(&place, "eval out --glue sst2=s.tsv,mrpc=p.tsv,stsb=p.tsv --max-length 16 --json");
    let results = found["glue"].as_array().expect("results");
    let metrics: Vec<_> =
        results.iter().map(|r| (r["task"].as_str().unwrap(), r["metric"].as_str().unwrap())).collect();
    let wanted =
        [("sst2", "accuracy"), ("mrpc", "accuracy"), ("mrpc", "f1"), ("stsb", "spearman"), ("stsb", "pearson")];
    assert_eq!(metrics, wanted);
    for result in results {
        assert_eq!((&result["n"], &result["max_length"]), (&3.into(), &16.into()), "{result}");
        assert!(result["value"].is_number() && result["baseline"].is_number(), "{result}");
        assert!(result["data"].as_str().is_some_and(|data| data.ends_with(".tsv")), "{result}");
    }
    assert_eq!(found["perplexity"], serde_json::json!([]), "no corpus was asked for");
    let alone = json(&place, &format!("eval {} --glue sst2=s.tsv --json", model.display()));
    assert!(alone["glue"][0]["baseline"].is_null() && alone["glue"][0]["value"] == results[0]["baseline"]);
    let table = place.run("eval out --glue sst2=s.tsv,stsb=p.tsv").fine().stdout;
    let table = table.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in
        ["accuracy", "spearman", "base", "classifier head", "cosine of mean-pooled states", "max length 64", "f32"]
    {
        assert!(table.contains(part), "{part:?} is not in {table}");
    }
}

#[test]
fn a_classifier_learns_from_labels() {
    let place = Place::new();
    place.write("s.tsv", format!("{SENTENCES}{}", "it was the end\t0\n".repeat(9)));
    let model = folder("encoders/distilbert-tiny-classes");
    let learn = format!("compress {} --method soft --steps 8 --batch 4 --keep 0.6 --ppl none", model.display());
    let learn = format!("{learn} --task sst2=s.tsv --heal 4 --window 16 --calib-windows 3");
    let report = json(&place, &format!("{learn} --json -o out"));
    let labels = &report["labels"];
    assert_eq!((&labels["task"], &labels["train"], &labels["heldout"]), (&"sst2".into(), &11.into(), &1.into()));
    assert_eq!(report["calibration"]["corpora"][0]["name"], "sst2", "the texts are calibrated on");
    for stage in ["learning", "healing"] {
        assert_eq!((&report[stage]["aim"], &report[stage]["batch"]), (&"cross-entropy".into(), &4.into()));
    }
    let start = &report["learning"]["curve"][0];
    assert!(start["heldout_loss"].as_f64() > report["learning"]["loss"].as_f64(), "{start} {}", report["learning"]);
    let card = String::from_utf8(place.read("out/README.md")).expect("text");
    assert!(card.contains("- Task: sst2: 11 labelled examples") && card.contains("on labelled examples"), "{card}");
    let again = place.run("compress --config out/softlm.toml -o again").fine().stdout;
    assert_eq!(place.read("out/model.safetensors"), place.read("again/model.safetensors"));
    let again = again.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in ["task sst2: 11 labelled", "of 4 examples", "held-out cross-entropy when cut"] {
        assert!(again.contains(part), "{part:?} is not in {again}");
    }
    // Other examples under the same name are another run.
    place.write("s.tsv", format!("{SENTENCES}{}", "it was bad\t0\n".repeat(9)));
    place.run(&format!("{learn} --force -o out")).fine();
    assert_ne!(place.read("out/model.safetensors"), place.read("again/model.safetensors"));
}

/// A copy of a classifier of two classes, the other way round and with these names.
fn turned(place: &Place, name: &str, labels: Value) -> PathBuf {
    let copy = place.path(name);
    copy_folder(&folder("encoders/distilbert-tiny-classes"), &copy);
    change_weights(&copy, |all| {
        for part in ["classifier.weight", "classifier.bias"] {
            let (_, shape, data) = all.get_mut(part).expect("a classifier of two classes");
            assert_eq!(shape[0], 2, "{part}");
            let half = data.len() / 2;
            data.rotate_left(half);
        }
    });
    change_config(&copy, "id2label", labels);
    change_config(&copy, "label2id", Value::Null);
    copy
}

#[test]
fn classes_are_known_by_their_names() {
    let place = Place::new();
    place.write("s.tsv", format!("{SENTENCES}{}", "it was the end\t0\n".repeat(9)));
    place.write("p.tsv", PAIRS);
    let own = folder("encoders/distilbert-tiny-classes");
    let named = |first: &str, second: &str| serde_json::json!({"0": first, "1": second});
    turned(&place, "film", named("POSITIVE", "NEGATIVE"));
    turned(&place, "pair", named("equivalent", "not_equivalent"));
    turned(&place, "numbers", named("LABEL_1", "LABEL_0"));
    turned(&place, "plain", named("LABEL_0", "LABEL_1"));
    let glue = |model: &str, task: &str| {
        json(&place, &format!("eval {model} --glue {task} --json"))["glue"][0]["value"].clone()
    };
    let own = own.display().to_string();
    for (model, task) in [("film", "sst2=s.tsv"), ("numbers", "sst2=s.tsv"), ("pair", "mrpc=p.tsv")] {
        assert_eq!(glue(model, task), glue(&own, task), "{model}");
    }
    let (own_value, other) = (glue(&own, "sst2=s.tsv"), glue("plain", "sst2=s.tsv"));
    assert_eq!(own_value.as_f64().unwrap() + other.as_f64().unwrap(), 1.0, "every answer is turned");

    let learn = |model: &str, output: &str| {
        let line =
            format!("compress {model} --method soft --steps 6 --batch 4 --keep 0.7 --ppl none --task sst2=s.tsv");
        json(&place, &format!("{line} --window 16 --calib-windows 3 --json -o {output}"))["learning"]["loss"].clone()
    };
    let (by_name, as_is) = (learn("film", "a").as_f64().unwrap(), learn(&own, "b").as_f64().unwrap());
    assert!((by_name / as_is - 1.0).abs() < 1e-6, "{by_name} {as_is}");

    turned(&place, "odd", named("joyful", "sad"));
    place.run("eval odd --glue sst2=s.tsv").refused(&["joyful, sad", "id2label"]);
    place.run("eval film --glue mrpc=p.tsv").refused(&["POSITIVE, NEGATIVE", "mrpc"]);
    place.run("compress odd --method soft --steps 2 --task sst2=s.tsv -o x").refused(&["joyful, sad", "id2label"]);
    change_config(&place.path("film"), "label2id", serde_json::json!({"NEGATIVE": 0, "POSITIVE": 1}));
    place.run("eval film --glue sst2=s.tsv").refused(&["label2id", "POSITIVE"]);
}

#[test]
fn labels_that_cannot_be_learnt_from_are_refused() {
    let place = Place::new();
    place.write("s.tsv", SENTENCES);
    place.write("p.tsv", PAIRS);
    place.write("one.tsv", "sentence\tlabel\nthe film\t1\n");
    place.write("many.tsv", SENTENCES.replace("\t1", "\t7"));
    let (classes, bare) = (folder("encoders/bert-tiny-classes"), folder("encoders/bert-tiny-bare"));
    let (classes, bare) = (classes.display(), bare.display());
    let soft = format!("--method soft --steps 2 {FAST} --calib sample -o x");
    place.run(&format!("compress {bare} {soft} --task sst2=s.tsv")).refused(&["no classifier", "sst2", "--task"]);
    place.run(&format!("compress demo {soft} --task sst2=s.tsv")).refused(&["demo", "no classifier"]);
    place.run(&format!("compress {classes} {soft} --task stsb=p.tsv")).refused(&["3 outputs", "stsb"]);
    place.run(&format!("compress {classes} {soft} --task sst2=many.tsv")).refused(&["many.tsv", "7", "3 classes"]);
    place.run(&format!("compress {classes} {soft} --task sst2=one.tsv")).refused(&["one.tsv", "single"]);
    place.run(&format!("compress {classes} {soft} --task sst2=gone.tsv")).refused(&["gone.tsv"]);
    place.run(&format!("compress {classes} {soft} --task cola")).refused(&["cola", "sst2, mrpc, stsb"]);
    let tokens = "--method soft --tokens 900 --window 32 -o x";
    place.run(&format!("compress {classes} {tokens} --task sst2=s.tsv")).refused(&["tokens = 900", "give steps"]);
    let svd = "--method svd -o x --task sst2=s.tsv";
    place.run(&format!("compress {classes} {svd}")).refused(&["--task", "--heal"]);
    let text = "--calib sample --likelihood 0.5 -o x";
    place
        .run(&format!("compress {classes} --method svd --heal 2 {FAST} {text}"))
        .refused(&["--likelihood 0.5", "next token"]);
    assert!(!place.path("x").exists());
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let place = Place::new();
    place.write("s.tsv", SENTENCES);
    place.write("p.tsv", PAIRS);
    place.write("many.tsv", SENTENCES.replace("\t1", "\t7"));
    let (classes, bare) = (folder("encoders/bert-tiny-classes"), folder("encoders/bert-tiny-bare"));
    let (classes, bare) = (classes.display(), bare.display());
    place.run("eval demo --glue sst2=s.tsv").refused(&["demo", "decoder"]);
    place.run(&format!("eval {bare} --glue sst2=s.tsv")).refused(&["no classifier", "sst2"]);
    place.run(&format!("eval {classes} --glue sst2=many.tsv")).refused(&["many.tsv", "7", "3 classes"]);
    place.run(&format!("eval {classes} --glue cola")).refused(&["cola", "sst2, mrpc, stsb"]);
    place.run(&format!("eval {classes} --glue mrpc=gone.tsv")).refused(&["gone.tsv"]);
    place.run(&format!("eval {classes} --glue sst2")).refused(&["nyu-mll/glue", "cache"]);
    place.run(&format!("eval {bare} --glue stsb=p.tsv --max-length 65")).refused(&["65", "64"]);
    place.run(&format!("eval {bare} --glue stsb=p.tsv --max-length 2")).refused(&["2 tokens"]);
    place.run(&format!("eval {bare} --ppl sample")).refused(&["predicts no tokens", "--against"]);
    place.run(&format!("eval {bare} --ppl sample --against {bare} --max-ppl 9")).refused(&["--max-ppl"]);
    place.run(&format!("eval {classes} --glue sst2=s.tsv --min-top1 0.5 --against {classes}")).refused(&["--min-top1"]);
    place.run(&format!("compress {bare} --method svd --max-ppl 2 {FAST} -o x")).refused(&["--max-ppl"]);
}

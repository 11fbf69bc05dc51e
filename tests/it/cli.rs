//! What users meet: streams, exit codes, JSON, gates, settings and corpora of the program itself.

use crate::program::{FAST, Place, finish};
use serde_json::Value;
use softlm::report::Report;
use std::fs;
use std::io::{BufRead, BufReader};

/// Original prose of some 1,500 tokens.
fn prose() -> String {
    (1..60).map(|i| format!("On day {i} the ferry carried {} crates of apples to the far shore. ", 7 * i)).collect()
}

#[test]
fn the_first_lines_of_the_readme() {
    let place = Place::new();
    let said = place.run("compress demo --method rom --keep 0.8 -o out").fine();
    assert!(said.stdout.contains("perplexity") && said.stdout.contains("block linears"), "{}", said.stdout);
    assert!(said.stderr.contains("compressing") && said.stderr.ends_with("the output is out\n"), "{}", said.stderr);
    let said = place.run("eval out --ppl sample").fine();
    assert!(said.stdout.contains("against  demo") && said.stdout.contains("window 512"), "{}", said.stdout);
    let said = place.run("verify out").fine();
    assert!(said.stdout.contains("compared with demo") && said.stdout.ends_with("whole\n"), "{}", said.stdout);
    let mut left: Vec<_> = fs::read_dir(place.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["home", "out"], "no work folder is left");
    assert_eq!(fs::read_dir(place.path("home")).unwrap().count(), 0, "nothing is left in the home folder");
}

#[test]
fn stdout_has_the_result_and_stderr_the_rest() {
    let place = Place::new();
    let said = place.run(&format!("compress demo --method svd --json {FAST} -o a")).fine();
    let report: Report = serde_json::from_str(&said.stdout).expect("one JSON value");
    assert_eq!((report.schema, report.method.as_str()), (1, "svd"));
    assert_eq!(said.stdout.as_bytes(), place.read("a/report.json"));
    assert!(said.stderr.contains("compressing"), "{}", said.stderr);

    let said = place.run(&format!("-q compress demo --method svd {FAST} -o b")).fine();
    assert!(said.stderr.is_empty() && said.stdout.contains("perplexity"), "{}", said.stderr);

    let said = place.run(&format!("compress demo --method svd --progress json {FAST} -o c")).fine();
    let events: Vec<Value> = said.stderr.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect();
    let stages: Vec<&str> =
        events.iter().filter(|e| e["event"] == "stage").filter_map(|e| e["name"].as_str()).collect();
    assert_eq!(stages, ["reading text", "decomposing", "compressing", "writing", "evaluating", "verifying"]);

    let said = place.run("eval nothing/here/at-all --progress json");
    let error: Value = serde_json::from_str(&said.stderr).expect("one JSON line");
    assert_eq!((said.code, &error["event"]), (2, &Value::from("error")));
    assert!(error["hint"].is_string(), "{error}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let place = Place::new();
    for line in ["methods whiten", "inspect demo --tensors", "eval demo --window 64 --max-windows 1", "--help"] {
        let mut child = place.command(line).spawn().expect("the program starts");
        // Nobody will read what comes.
        drop(child.stdout.take());
        let said = finish(child);
        assert_eq!(said.code, 0, "{line}: {}", said.stderr);
        assert!(!said.stderr.contains("panicked"), "{line}: {}", said.stderr);
    }
    let mut child = place.command(&format!("compress demo --method svd --json {FAST} -o out")).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut first).unwrap();
    assert_eq!((first.as_str(), finish(child).code), ("{\n", 0));
    // Nor is a log that nobody reads, also when there is something to complain about.
    for (line, code) in [("eval demo --window 64 --max-windows 1 --max-ppl 1", 1), ("eval ./nothing", 2)] {
        let mut child = place.command(line).spawn().expect("the program starts");
        drop(child.stderr.take());
        assert_eq!(finish(child).code, code, "{line}");
    }
}

#[test]
fn checks_that_fail_are_named_and_exit_with_1() {
    let place = Place::new();
    let eval = "eval demo --window 64 --max-windows 2";
    let said = place.run(&format!("{eval} --max-ppl 1 -q")).check_failed(&["sample", "window 64", "--max-ppl 1"]);
    assert!(said.stdout.contains("perplexity"), "the result is shown all the same: {}", said.stdout);
    place.run(&format!("{eval} --max-ppl 1000000")).fine();
    let said = place.run(&format!("{eval} --max-ppl 1 --progress json"));
    let last: Value = serde_json::from_str(said.stderr.lines().last().unwrap()).expect("a JSON line");
    assert_eq!((said.code, &last["event"]), (1, &Value::from("check_failed")));

    let compress = format!("compress demo --method svd --keep 0.4 {FAST} -o out");
    place.run(&format!("{compress} --max-ppl 1")).check_failed(&["--max-ppl 1"]);
    let eval = "eval out --window 64 --max-windows 2";
    place
        .run(&format!("{eval} --max-ppl-increase 5% --min-top1 99%"))
        .check_failed(&["--max-ppl-increase 5%", "--min-top1 0.99"]);
    place.run(&format!("{eval} --max-ppl-increase 1000000% --min-top1 0")).fine();
    place.run("eval demo --max-ppl-increase 5%").refused(&["--against"]);
    for nonsense in [
        "--max-ppl nan",
        "--max-ppl=-1",
        "--max-ppl inf",
        "--max-ppl-increase nan%",
        "--max-ppl-increase 5",
        "--max-ppl-increase=-5%",
        "--min-top1 2",
        "--min-top1 nan",
    ] {
        let said = place.run(&format!("{eval} {nonsense}"));
        assert_eq!((said.code, said.stdout.as_str()), (2, ""), "{nonsense}");
    }
}

#[test]
fn products_of_rounded_factors_are_named_and_do_not_depend_on_threads() {
    let place = Place::new();
    let eval = |precision: &str| {
        let line = format!("eval demo --window 64 --max-windows 3 --json --matmul-precision {precision}");
        let object: Value = serde_json::from_str(&place.run(&line).fine().stdout).expect("one JSON value");
        let entry = &object["perplexity"][0];
        (entry["dtype"].as_str().unwrap().to_string(), entry["ppl"].as_f64().unwrap())
    };
    let (highest, medium) = (eval("highest"), eval("medium"));
    assert_eq!(highest.0, "f32");
    if medium.0 == "f32" {
        assert_eq!(medium, highest);
        println!("the rest is skipped: this processor has no AVX512-BF16");
        return;
    }
    assert_eq!(medium.0, "f32 with bf16 products");
    assert!(medium.1 != highest.1 && (medium.1 / highest.1 - 1.0).abs() < 5e-3, "{medium:?}, {highest:?}");
    let weights = |out: &str, flags: &str| {
        place.run(&format!("compress demo --method whiten --weight unit {FAST} {flags} -o {out}")).fine();
        std::fs::read(place.path(&format!("{out}/model.safetensors"))).expect("weights")
    };
    let one = weights("one", "--matmul-precision medium --threads 1");
    assert!(one == weights("two", "--matmul-precision medium --threads 2"));
    assert!(one != weights("highest", ""));
}

#[test]
fn eval_prints_one_object_with_its_protocol() {
    let place = Place::new();
    let object =
        |line: &str| -> Value { serde_json::from_str(&place.run(line).fine().stdout).expect("one JSON value") };
    let dense = object("eval demo --window 64 --max-windows 3 --stride 32 --json");
    assert_eq!((&dense["schema"], &dense["model"]), (&Value::from(1), &Value::from("demo")));
    assert!(dense["divergence"].is_null() && dense["baseline"].is_null(), "{dense}");
    let entry = &dense["perplexity"][0];
    let keys = ["corpus", "window", "stride", "windows", "tokens", "bos", "dtype", "ppl", "stderr", "nll"];
    assert_eq!(entry.as_object().unwrap().keys().collect::<Vec<_>>(), keys);
    assert_eq!(entry["tokens"], 63 + 2 * 32);
    let (ppl, nll) = (entry["ppl"].as_f64().unwrap(), entry["nll"].as_f64().unwrap());
    assert!((nll.exp() / ppl - 1.0).abs() < 1e-12, "{entry}");

    place.run(&format!("compress demo --method whiten --weight unit {FAST} -o out")).fine();
    place.write("other.txt", prose());
    let out = object("eval out --window 64 --max-windows 2 --ppl sample,mine=other.txt --bos --json");
    let (after, before) = (&out["perplexity"], &out["baseline"]);
    for (i, corpus) in ["sample", "mine"].iter().enumerate() {
        assert_eq!((&after[i]["corpus"], &after[i]["bos"]), (&Value::from(*corpus), &Value::from(true)));
        assert_eq!(after[i]["tokens"], before[i]["tokens"]);
        assert!(after[i]["ppl"].as_f64() != before[i]["ppl"].as_f64(), "{out}");
    }
    let divergence = &out["divergence"];
    assert_eq!(divergence["base"], "demo");
    assert!(divergence["kl"].as_f64().unwrap() > 0.0 && divergence["top1"].as_f64().unwrap() < 1.0, "{out}");
    let same = object("eval demo --against demo --window 64 --max-windows 2 --json");
    assert_eq!((&same["divergence"]["kl"], &same["divergence"]["top1"]), (&Value::from(0.0), &Value::from(1.0)));
}

#[test]
fn methods_and_models_explain_themselves() {
    let place = Place::new();
    let list = place.run("methods").fine().stdout;
    for name in crate::program::METHODS {
        assert!(list.lines().any(|line| line.starts_with(name)), "{list}");
        let doc = place.run(&format!("methods {name}")).fine().stdout;
        assert!(doc.len() > 300 && doc.ends_with('\n'), "{doc}");
        let (_, citation) = doc.split_once("\n## Citation\n\n@").expect("a BibTeX entry");
        let paper = softlm::method::by_name(name).unwrap().card().paper;
        let arxiv = paper.split_once("arXiv ").map_or("1936", |(_, rest)| &rest[..10]);
        assert!(citation.contains(arxiv) && citation.ends_with("}\n"), "{citation}");
        assert_eq!(citation.matches('{').count(), citation.matches('}').count(), "{citation}");
    }
    place.run("methods sparsegpt").refused(&["sparsegpt", "svd, awsvd, lorap, rom, whiten"]);

    let demo = place.run("inspect demo").fine().stdout;
    assert!(demo.contains("llama") && demo.contains("869"), "{demo}");
    let tensors = place.run("inspect demo --tensors").fine().stdout;
    assert!(tensors.contains("model.layers.3.mlp.down_proj.weight"), "{tensors}");
    let json: Value = serde_json::from_str(&place.run("inspect demo --json").fine().stdout).unwrap();
    assert_eq!((&json["blocks"], &json["linears"]), (&Value::from(4), &Value::from(28)));
    place.run(&format!("compress demo --method rom --keep 0.5 {FAST} -o out")).fine();
    let out = place.run("inspect out").fine().stdout;
    assert!(out.contains("0.5 asked") && out.contains("3.mlp.down"), "{out}");
    place.run("inspect ./nothing").refused(&["./nothing"]);
}

#[test]
fn statistics_are_collected_once_and_added_up() {
    let place = Place::new();
    let text = "--calib-windows 3 --window 64";
    place.run(&format!("calibrate demo {text} -o stats")).fine();
    let whiten = format!("compress demo --method whiten --weight energy --keep 0.6 --ppl none {text}");
    place.run(&format!("{whiten} -o plain")).fine();
    place.run(&format!("{whiten} --stats stats -o reused")).fine();
    place.run(&format!("{whiten} --stats new -o filled")).fine();
    place.run(&format!("{whiten} --stats new -o refilled")).fine();
    let plain = place.read("plain/model.safetensors");
    for other in ["reused", "filled", "refilled"] {
        assert!(place.read(&format!("{other}/model.safetensors")) == plain, "{other}");
    }

    let object =
        |line: &str| -> Value { serde_json::from_str(&place.run(line).fine().stdout).expect("one JSON value") };
    // The same number of windows, but others: not the same statistics.
    place.run(&format!("calibrate demo {text} --seed 1 -o stats")).refused(&["stats"]);
    place.run(&format!("calibrate demo {text} --seed 1 -o more")).fine();
    place.run("calibrate --merge stats,more -o sum").fine();
    let (one, sum) = (object("inspect stats --json"), object("inspect sum --json"));
    assert_eq!(one["sites"].as_array().unwrap().len(), 16);
    for (one, sum) in one["sites"].as_array().unwrap().iter().zip(sum["sites"].as_array().unwrap()) {
        assert_eq!((one["tokens"].as_u64(), sum["tokens"].as_u64()), (Some(192), Some(384)));
    }
    assert_eq!(sum["origin"]["texts"].as_array().unwrap().len(), 2);
    assert!(place.run("inspect sum").fine().stdout.contains("seed 1"));
    place.run("calibrate --merge stats,more -o stats").refused(&["stats", "new folder"]);
    place.run(&format!("{whiten} --stats sum -o from-sum")).fine();
    assert!(place.read("from-sum/model.safetensors") != plain);
    place.run(&format!("compress demo --method rom {text} --stats stats -o x")).refused(&["rom", "--inputs dense"]);
}

fn keep_asked(place: &Place, output: &str) -> f64 {
    let report = place.report(output);
    report.allocation.keep_asked
}

#[test]
fn flags_go_before_the_environment_and_that_before_a_recipe() {
    let place = Place::new();
    let recipe = "model = 'demo'\nmethod = 'svd'\nkeep = 0.7\nppl = ['none']\ncalib_windows = 3\nwindow = 64\n";
    place.write("r.toml", recipe);
    place.run("compress --config r.toml -o file").fine();
    place.run_in("compress --config r.toml -o env", &[("SOFTLM_KEEP", "0.6")]).fine();
    place.run_in("compress --config r.toml -o flag --keep 0.5", &[("SOFTLM_KEEP", "0.6")]).fine();
    // An empty variable is none.
    place.run_in("compress --config r.toml -o empty", &[("SOFTLM_KEEP", ""), ("SOFTLM_SEED", "")]).fine();
    let asked = ["file", "env", "flag", "empty"].map(|output| keep_asked(&place, output));
    assert_eq!(asked, [0.7, 0.6, 0.5, 0.7]);
    // A size asked for in another way replaces the recipe's and the environment's.
    place.run_in("compress --config r.toml -o bytes --target-bytes 1.4MB", &[("SOFTLM_KEEP", "0.6")]).fine();
    let size = fs::metadata(place.path("bytes/model.safetensors")).unwrap().len();
    assert!((1_390_000..1_412_000).contains(&size), "{size} bytes");

    let all = [("SOFTLM_MODEL", "demo"), ("SOFTLM_METHOD", "svd"), ("SOFTLM_OUTPUT", "by-env"), ("SOFTLM_PPL", "none")];
    place.run_in("compress", &all).fine();
    place.run_in("methods", &[("SOFTLM_OFFLINE", "1"), ("SOFTLM_QUIET", "0")]).fine();
    let said = place.run_in("eval demo --window 64 --max-windows 1", &[("SOFTLM_QUIET", "1"), ("SOFTLM_JSON", "1")]);
    assert!(said.stderr.is_empty() && said.stdout.starts_with('{'), "{}", said.stderr);

    place.write("wrong.toml", "model = 'demo'\nkep = 0.7\n");
    place.run("compress --config wrong.toml").refused(&["wrong.toml", "kep"]);
    place.run("compress --config none.toml").refused(&["none.toml"]);
}

#[test]
fn a_corpus_is_named_the_same_way_everywhere() {
    let place = Place::new();
    let text = prose();
    place.write("text.txt", &text);
    let documents: Vec<String> = text.split_inclusive(". ").map(|s| format!("{{\"text\": {s:?}}}\n")).collect();
    place.write("docs.jsonl", documents.concat());
    let ppl = |line: &str, input: &str| -> (String, f64) {
        let said = place.run_with_input(line, input).fine();
        let object: Value = serde_json::from_str(&said.stdout).expect("one JSON value");
        let entry = &object["perplexity"][0];
        (entry["corpus"].as_str().unwrap().to_string(), entry["ppl"].as_f64().unwrap())
    };
    let eval = "eval demo --window 64 --max-windows 3 --json --ppl";
    let (name, by_path) = ppl(&format!("{eval} text.txt"), "");
    assert_eq!(name, "text.txt");
    assert_eq!(ppl(&format!("{eval} mine=text.txt"), ""), ("mine".to_string(), by_path));
    assert_eq!(ppl(&format!("{eval} -"), &text), ("stdin".to_string(), by_path));
    let (name, joined) = ppl(&format!("{eval} docs.jsonl"), "");
    assert!(name == "docs.jsonl" && joined != by_path, "documents are joined by blank lines");
    // Standard input can be both what is calibrated on and what is measured on.
    let both = format!("compress demo --method rom --calib - --ppl - {FAST} -o out");
    place.run_with_input(&both, &text).fine();
    let report = place.report("out");
    assert_eq!(report.evaluation[0].after.perplexity.corpus, "stdin");
    place.write("bad.jsonl", "{\"text\": \"a\"}\n{\"txt\": \"b\"}\n");
    place.run("eval demo --ppl bad.jsonl").refused(&["bad.jsonl, line 2", "text"]);
    place.write("latin1.txt", b"caf\xe9 au lait");
    place.run("eval demo --ppl latin1.txt").refused(&["latin1.txt", "byte 3"]);
}

#[test]
fn the_licence_comes_from_the_folder_of_the_original() {
    let place = Place::new();
    let svd = |model: &str, out: &str| {
        place.run(&format!("compress {model} --method svd --ppl none -o {out}")).fine();
        let report = place.report(out);
        (report.model.licence, String::from_utf8(place.read(&format!("{out}/README.md"))).expect("a card"))
    };
    let (licence, card) = svd("demo", "built-in");
    assert_eq!(licence.and_then(|licence| licence.id).as_deref(), Some("apache-2.0"));
    assert!(card.contains("\nlicense: apache-2.0\n"), "{card}");
    let folder = place.demo_folder("m");
    fs::remove_file(folder.join("README.md")).unwrap();
    let (licence, card) = svd("m", "unknown");
    assert!(licence.is_none() && card.contains("see the base model"), "{card}");
    place.write("m/README.md", "---\nlicense: other\nlicense_name: ours\n---\n# m\n");
    place.write("m/LICENSE", "all of it");
    let (licence, card) = svd("m", "stated");
    assert_eq!(licence.map(|licence| licence.files), Some(vec!["LICENSE".to_string()]));
    assert!(card.contains("\nlicense: other\nlicense_name: ours\nlicense_link: LICENSE\n"), "{card}");
    assert_eq!(place.read("stated/LICENSE"), b"all of it");
}

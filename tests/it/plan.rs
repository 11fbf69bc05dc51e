//! `softlm plan`: what it says is what compressing then does.

use crate::program::{FAST, Place};
use serde_json::Value;

#[test]
fn sizes_are_those_of_the_output_and_memory_is_that_of_its_report() {
    let place = Place::new();
    for (name, options) in [
        ("auto", "--keep 0.7"),
        ("rom", "--method rom --keep 0.6 --dtype f32"),
        ("lorap", "--method lorap --keep 0.5"),
        ("whiten", "--method whiten --target-bytes 1500000"),
        ("last", "--method svd --keep 0.8 --last-blocks 2"),
        ("healed", "--method svd --keep 0.5 --heal 2 --heal-lr 0.001"),
        ("soco", "--method soco --steps 2 --batch 2 --keep 0.6"),
    ] {
        let said = place.run(&format!("plan demo {options} {FAST} --json")).fine();
        let plan: Value = serde_json::from_str(&said.stdout).expect("one JSON value");
        place.run(&format!("compress demo {options} {FAST} -o {name}")).fine();
        let report = place.report(name);
        let close = |key: &str, field: &str, is: u64, within: f64| {
            let said = plan[key][field].as_f64().unwrap_or_else(|| panic!("{key}.{field} in {plan}"));
            assert!((said / is as f64 - 1.0).abs() <= within, "{name}, {key}.{field}: {said} was said, {is} it is");
        };
        for (key, size) in [("linears", report.sizes.linears), ("whole", report.sizes.model)] {
            close(key, "params_before", size.params_before, 0.0);
            close(key, "params_after", size.params_after, 0.015);
            close(key, "bytes_after", size.bytes_after, 0.015);
        }
        let estimate = report.cost.estimate.expect("an estimate");
        close("memory", "peak_rss_bytes", estimate.peak_rss_bytes, 0.15);
        // What takes time has a stage of the same name.
        let stages: Vec<&str> = report.cost.stages.iter().map(|stage| stage.name.as_str()).collect();
        let expected = plan["stages"].as_array().expect("stages");
        assert!(!expected.is_empty(), "{plan}");
        for stage in expected {
            assert!(stages.contains(&stage["name"].as_str().unwrap()), "{stage} is not one of {stages:?}");
        }
    }
}

/// Twice the tokens take twice as long, and nothing is written.
#[test]
fn time_grows_with_what_is_done() {
    let place = Place::new();
    let line = "plan demo --method whiten --weight unit --keep 0.6 --window 128";
    let seconds = |more: &str| {
        let said = place.run(&format!("{line} {more} --json")).fine();
        let plan: Value = serde_json::from_str(&said.stdout).expect("one JSON value");
        // The rate is measured anew each time.
        let operations = |s: f64| s * plan["product_rate"].as_f64().unwrap();
        operations(plan["seconds"].as_f64().unwrap())
    };
    let (few, many) = (seconds("--calib-windows 2000"), seconds("--calib-windows 4000"));
    assert!((1.6..2.4).contains(&(many / few)), "{few} {many}");
    assert!(seconds("--calib-windows 2000 --max-windows 4000 --eval-window 128") > 1.3 * few);
    let said = place.run("plan demo").fine();
    for part in ["stay dense", "memory", "block linears", "whole model", "decomposing", "without evaluation"] {
        assert!(said.stdout.contains(part), "{part}: {}", said.stdout);
    }
    assert!(said.stdout.lines().all(|line| line.chars().count() <= 80), "{}", said.stdout);
    let left: Vec<_> = std::fs::read_dir(place.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["home"], "something was written");
    for (line, part) in [
        ("plan demo --keep 0.0001", "0.0001"),
        ("plan demo --method nothing", "nothing"),
        ("plan demo --max-memory 1MB", "--max-memory allows 1.00 MB"),
    ] {
        let said = place.run(line);
        assert!(said.code == 2 && said.stderr.contains(part), "{line}: {} {}", said.code, said.stderr);
    }
}

//! Several sizes at once: each is what compressing to it alone gives, to the last byte.

use crate::program::{FAST, Place};
use serde_json::Value;
use std::fs;

#[test]
fn every_size_is_what_compressing_to_it_gives() {
    let place = Place::new();
    for (name, options, once) in [
        ("auto", "", true),
        ("whiten", "--method whiten", true),
        ("awsvd", "--method awsvd --inputs dense", true),
        ("svd", "--method svd --last-blocks 2", true),
        ("healed", "--method svd --heal 2 --heal-batch 2 --heal-lr 0.001", true),
        ("lorap", "--method lorap", false),
    ] {
        let line = format!("{options} {FAST}");
        let said = place.run(&format!("sweep demo {line} --keep 0.6,0.8 -o {name}")).fine();
        for (letter, keep) in [("A", "0.6"), ("B", "0.8")] {
            let part = format!("{name}/keep-{keep}");
            assert!(said.stdout.contains(&format!("{letter}  {part}")), "{}", said.stdout);
            place.run(&format!("compress demo {line} --keep {keep} -o {name}-{keep}")).fine();
            assert!(place.weights(&part) == place.weights(&format!("{name}-{keep}")), "{name} at {keep}");
            let (swept, alone) = (place.report(&part), place.report(&format!("{name}-{keep}")));
            assert_eq!(
                (swept.evaluation, swept.calibration),
                (alone.evaluation, alone.calibration),
                "{name} at {keep}"
            );
            assert_eq!((swept.sizes, swept.linears.len()), (alone.sizes, alone.linears.len()), "{name} at {keep}");
        }
        assert_eq!(place.path(&format!("{name}/elastic")).is_dir(), once, "{name}");
        assert_eq!(said.stderr.contains("begins anew with every size"), !once, "{}", said.stderr);
    }
}

#[test]
fn a_second_sweep_does_what_is_missing_and_the_result_is_json() {
    let place = Place::new();
    let line = format!("sweep demo {FAST} -o out");
    let first = place.run(&format!("{line} --keep 0.8,0.5 --html page.html --json")).fine();
    let shown: Value = serde_json::from_str(&first.stdout).expect("one JSON value");
    let kept: Vec<f64> =
        shown["reports"].as_array().unwrap().iter().map(|report| report["keep_reached"].as_f64().unwrap()).collect();
    assert!(kept.len() == 2 && (kept[0] - 0.8).abs() < 0.01 && (kept[1] - 0.5).abs() < 0.01, "{kept:?}");
    assert_eq!(shown, serde_json::from_slice::<Value>(&place.read("out/sweep.json")).unwrap());
    assert!(String::from_utf8(place.read("page.html")).unwrap().contains("2 outputs side by side"));

    let written = |name: &str| fs::metadata(place.path(name)).unwrap().modified().unwrap();
    let before = written("out/keep-0.5/model.safetensors");
    let second = place.run(&format!("{line} --keep 0.8,0.5,0.3")).fine();
    assert_eq!(written("out/keep-0.5/model.safetensors"), before);
    // The survey and two sizes.
    assert_eq!(second.stderr.matches("nothing was done").count(), 3, "{}", second.stderr);
    place.run("verify out/keep-0.3 --against demo").fine();
    // Other sizes come from the same decompositions.
    place.run("cut out/elastic --keep 0.7 --ppl none -o cut").fine();
    place.run("verify cut --against demo").fine();
}

#[test]
fn what_is_no_sweep_is_refused_before_any_work() {
    let place = Place::new();
    for (line, part) in [
        ("--keep 0.8,1.2", "--keep 1.2 is outside (0, 1)"),
        ("--keep 0.8,0.8", "--keep names 0.8 twice"),
        ("--keep 0.8 --method nothing", "nothing"),
        ("--keep 0.8 --set no=1", "no"),
        ("--keep 0.8,0.001", "0.001"),
        ("--keep 0.8 --target-bytes 1MB", "--target-bytes"),
    ] {
        let said = place.run(&format!("sweep demo {line} {FAST} -o out"));
        assert!(said.code == 2 && said.stderr.contains(part), "{line}: {} {}", said.code, said.stderr);
        assert!(!place.path("out/keep-0.8").exists(), "{line}");
    }
    place.run(&format!("compress demo --method svd {FAST} -o model")).fine();
    let said = place.run("sweep demo --config model/softlm.toml -o out");
    assert!(said.code == 2 && said.stderr.contains("the recipe's `keep` is one size"), "{}", said.stderr);
    let said = place.run(&format!("sweep demo {FAST} -o model"));
    assert!(said.code == 2 && said.stderr.contains("model is a model's folder"), "{}", said.stderr);
}

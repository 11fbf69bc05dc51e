//! `--max-ppl-increase`: the size that is found is good enough and nearly the smallest, whatever interrupts it, and what has
//! no sizes to try, or no perplexity, is refused.

use crate::program::{FAST, Place};
use candle_core::Device;
use softlm::hub::HubOptions;
use softlm::pipeline;
use softlm::progress::{Interrupted, Progress};
use softlm::recipe::Options;
use softlm::report::Report;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// By how much the perplexity on the worst corpus is above the original's.
fn increase(report: &Report) -> f64 {
    let of = |pair: &softlm::report::BeforeAfter| pair.after.perplexity.ppl / pair.before.perplexity.ppl - 1.0;
    report.evaluation.iter().map(of).fold(f64::NEG_INFINITY, f64::max)
}

#[test]
fn the_size_found_is_good_enough_and_a_slightly_smaller_one_is_not() {
    let place = Place::new();
    place.write("other.txt", include_str!("../../src/text/sample.txt").split_at(9_000).1);
    for (method, percent) in [("auto", 12.0), ("whiten", 25.0)] {
        let protocol = "--calib-windows 8 --window 64 --eval-window 64 --max-windows 8 --ppl sample,other.txt";
        let line = format!("compress demo --method {method} {protocol}");
        let said = place.run(&format!("{line} --max-ppl-increase {percent}% -o {method}")).fine();
        let found = place.report(method);
        let keep = found.allocation.keep_reached;
        assert!(increase(&found) <= percent / 100.0, "{method}: {}", increase(&found));
        assert!(increase(&found) > 0.5 * percent / 100.0, "{method}: {} at {keep}", increase(&found));
        let trials = &found.allocation.trials;
        assert!((2..=7).contains(&trials.len()), "{trials:?}");
        let chosen = trials.iter().filter(|trial| trial.increase <= percent / 100.0).map(|trial| trial.keep);
        let chosen = chosen.min_by(f64::total_cmp).expect("one is good enough");
        assert!(keep <= chosen && keep > chosen - 0.02, "{keep} for {chosen}");
        assert!(said.stdout.contains("the smallest found"), "{}", said.stdout);
        // The size alone gives the same model.
        place.run(&format!("{line} --keep {chosen} -o {method}-keep")).fine();
        let weights = |output: &str| place.read(&format!("{output}/model.safetensors"));
        assert!(method != "auto" || weights(method) == weights("auto-keep"), "of size {chosen}");
        place.run(&format!("{line} --keep {} -o {method}-smaller", chosen - 0.08)).fine();
        assert!(increase(&place.report(&format!("{method}-smaller"))) > percent / 100.0, "{method}: {chosen}");
        // The recipe says what was asked for.
        let recipe = fs::read_to_string(place.path(&format!("{method}/softlm.toml"))).expect("a recipe");
        assert!(
            recipe.contains(&format!("max_ppl_increase = \"{percent}%\"")) && !recipe.contains("\nkeep ="),
            "{recipe}"
        );
    }
}

/// Stops the run in the stage of this number that looks for a size.
struct StopIn {
    number: usize,
    searching: AtomicUsize,
}

impl Progress for StopIn {
    fn stage(&self, name: &str, _: u64) {
        if name == "searching" {
            self.searching.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn step(&self, _: u64) -> anyhow::Result<()> {
        if self.searching.load(Ordering::Relaxed) == self.number { Err(Interrupted.into()) } else { Ok(()) }
    }

    fn note(&self, _: &str) {}
}

/// The demo model, as small as a perplexity on `ppl` that rises by 12 % allows.
fn searched(output: &Path, ppl: &str, progress: &dyn Progress) -> anyhow::Result<Report> {
    let options = Options {
        model: Some("demo".into()),
        output: Some(output.to_path_buf()),
        max_ppl_increase: Some("12%".into()),
        ppl: Some(vec![ppl.into()]),
        calib_windows: Some(8),
        window: Some(64),
        eval_window: Some(64),
        max_windows: Some(8),
        ..Options::default()
    };
    pipeline::compress(&options.resolve()?, false, &HubOptions::default(), &Device::Cpu, progress)
}

fn stop_in(number: usize) -> StopIn {
    StopIn { number, searching: AtomicUsize::new(0) }
}

/// The first is the original's, the others have blocks of another size each.
#[test]
fn a_search_that_was_stopped_goes_on_from_the_sizes_it_has_tried() {
    let place = tempfile::tempdir().expect("a scratch folder");
    let run = |output: &Path, progress: &dyn Progress| searched(output, "sample", progress);
    let whole = place.path().join("whole");
    let expected = run(&whole, &()).expect("a model").allocation;
    let weights = |output: &Path| fs::read(output.join("model.safetensors")).expect("weights");
    for number in 1..=expected.trials.len() + 1 {
        let output = place.path().join(number.to_string());
        run(&output, &stop_in(number)).expect_err("it was stopped");
        assert!(!output.exists());
        assert_eq!(run(&output, &()).expect("a model").allocation, expected, "stopped at {number}");
        assert!(weights(&output) == weights(&whole), "stopped at {number}");
    }
}

/// What was measured on one text says nothing of another under its name.
#[test]
fn sizes_that_were_tried_on_another_text_are_not_gone_on_from() {
    let place = tempfile::tempdir().expect("a scratch folder");
    let (text, output) = (place.path().join("text.txt"), place.path().join("out"));
    let sample = include_str!("../../src/text/sample.txt");
    let run = |text_is: &str, progress: &dyn Progress| {
        fs::write(&text, text_is).expect("written");
        searched(&output, &text.display().to_string(), progress)
    };
    run(sample, &stop_in(3)).expect_err("it was stopped");
    let error = run(sample.split_at(9_000).1, &()).expect_err("another text").to_string();
    assert!(error.contains("unfinished run") && error.contains("another text"), "{error}");
    assert!(run(sample, &()).is_ok());
}

#[test]
fn what_cannot_be_searched_is_refused() {
    let place = Place::new();
    for (options, what) in [
        ("--max-ppl-increase 5", "5%"),
        ("--max-ppl-increase 0%", "0%"),
        ("--max-ppl-increase=-5%", "0%"),
        ("--max-ppl-increase 5% --ppl none", "--ppl"),
        ("--max-ppl-increase 5% --method rom", "rom"),
        ("--max-ppl-increase 5% --method lorap", "lorap"),
        ("--max-ppl-increase 5% --method soft", "soft"),
        ("--max-ppl-increase 5% --method svd --allocation even", "even"),
        ("--max-ppl-increase 0.0001%", "0.0001%"),
    ] {
        place.run(&format!("compress demo {FAST} {options} -o out")).refused(&["--max-ppl-increase", what]);
    }
    for other in ["--keep 0.8", "--target-bytes 1MB", "--target-params 5", "--last-blocks 2 --block-keep 0.5"] {
        place.run(&format!("compress demo {FAST} {other} --max-ppl-increase 5% -o out")).refused_by_usage("--max-ppl");
    }
    assert!(!place.path("out").exists());
}

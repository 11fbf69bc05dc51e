//! `softlm bench`: what is measured is what was asked for, and its numbers fit each other.

use crate::program::{FAST, Place};
use serde_json::Value;

/// Small sizes, measured twice.
const QUICK: &str = "--batch 1,2 --context 16,40 --tokens 4 --repeats 2";

#[test]
fn numbers_fit_each_other_and_the_model() {
    let place = Place::new();
    place.run(&format!("compress demo --method svd --keep 0.5 --ppl none {FAST} -o half")).fine();
    let said = place.run(&format!("bench half --against demo {QUICK} --json")).fine();
    let report: Value = serde_json::from_str(&said.stdout).expect("one JSON value");
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{value} in {report}"));
    assert!(number(&report["product_rate"]) > 1e8 && number(&report["bandwidth"]) > 1e8);

    let sizes = place.report("half").sizes;
    let (model, base) = (&report["models"][0], &report["models"][1]);
    // All but the block linears is the head, whose matrix is tied to the embedding.
    let head = number(&base["weights"]) - sizes.linears.params_before as f64;
    assert!(head > 0.0);
    assert_eq!(number(&model["weights"]), sizes.linears.params_after as f64 + head);
    for (place, (batch, context)) in [(1, 16), (1, 40), (2, 16), (2, 40)].into_iter().enumerate() {
        for of in [model, base] {
            let cell = &of["cells"][place];
            assert_eq!((cell["batch"].as_u64(), cell["context"].as_u64()), (Some(batch), Some(context)));
            for (timing, rate, tokens) in [
                ("first_token", "prefill_tokens_per_second", (batch * context) as f64),
                ("step", "decode_tokens_per_second", batch as f64),
            ] {
                let time = &cell[timing];
                let median = number(&time["median"]);
                assert!(number(&time["least"]) <= median && median <= number(&time["most"]), "{time}");
                assert_eq!(time["repeats"], 2);
                assert!((number(&cell[rate]) * median / tokens - 1.0).abs() < 1e-9);
            }
            let rate = number(&cell["prefill_of_product_rate"]) * number(&report["product_rate"]);
            // Only the last token of a prompt goes through the head.
            let per_token = number(&of["weights"]) - head * (1.0 - 1.0 / context as f64);
            let expected = 2.0 * per_token * number(&cell["prefill_tokens_per_second"]);
            assert!((rate / expected - 1.0).abs() < 1e-9);
            // Weights once, and two numbers of f32 for every head, position and sequence in front of them.
            let cache = number(&cell["step_bytes"]) - number(&of["weight_bytes"]);
            let position = cache / (batch as f64 * (context + 4) as f64);
            assert!(position > 0.0 && position.fract() == 0.0, "{position} bytes per position");
        }
        let speedup = number(&report["speedup"][place]["decode"]);
        let step = |of: &Value| number(&of["cells"][place]["step"]["median"]);
        assert!((speedup - step(base) / step(model)).abs() < 1e-9);
    }
}

#[test]
fn the_table_fits_a_narrow_terminal_and_bad_sizes_are_refused() {
    let place = Place::new();
    let said = place.run(&format!("bench demo {QUICK}")).fine();
    for part in ["prefill", "decode", "tokens/s", "2 x 40", "of bandwidth", "peak memory"] {
        assert!(said.stdout.contains(part), "{part}: {}", said.stdout);
    }
    assert!(said.stdout.lines().all(|line| line.chars().count() <= 80), "{}", said.stdout);
    for (line, part) in [
        ("demo --batch 0", "--batch names a size of 0"),
        ("demo --tokens 0", "--tokens is 0"),
        ("demo --seconds -1", "--seconds"),
        ("demo --tokens 100000", "100000 tokens do not fit"),
        ("nowhere/at-all", "nowhere"),
    ] {
        let said = place.run(&format!("bench {line}"));
        assert!(said.code == 2 && said.stderr.contains(part), "{line}: {} {}", said.code, said.stderr);
    }
}

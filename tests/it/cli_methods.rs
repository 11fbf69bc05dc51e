//! Every method through the program, on a model with grouped keys and values, on a tied one, and on a fused one.

use crate::data::data;
use crate::program::{FAST, METHODS, Place, copy_folder, quickly, tensors};
use serde_json::Value;
use std::path::Path;

#[test]
fn every_method_meets_its_budget_and_its_output_is_whole() {
    let place = Place::new();
    for method in METHODS {
        place.run(&format!("compress demo {} --keep 0.6 {FAST} -o {method}", quickly(method))).fine();
        let said = place.run(&format!("verify {method} --against demo --json")).fine();
        let verified: Value = serde_json::from_str(&said.stdout).expect("one JSON value");
        assert_eq!(verified["problems"].as_array().map(Vec::len), Some(0), "{method}: {verified}");

        let report = place.report(method);
        let reached = report.allocation.keep_reached;
        assert!((0.598..=0.6).contains(&reached), "{method}: {reached}");
        let linears = report.sizes.linears;
        assert_eq!(linears.params_after as f64 / linears.params_before as f64, reached, "{method}");
        assert_eq!(report.linears.iter().map(|l| l.params_after).sum::<u64>(), linears.params_after, "{method}");
        assert_eq!((report.method.as_str(), report.linears.len(), report.evaluation.len()), (method, 28, 1));
        assert_eq!(report.model.identity.weights.len(), 1);
        let (before, after) = (&report.evaluation[0].before.perplexity, &report.evaluation[0].after.perplexity);
        assert!(after.ppl.is_finite() && after.ppl > before.ppl, "{method}: {} {}", before.ppl, after.ppl);

        // The output runs wherever a model does and measures as the report says.
        let said = place.run(&format!("eval {method} --window 64 --max-windows 2 --json")).fine();
        let eval: Value = serde_json::from_str(&said.stdout).expect("one JSON value");
        let reloaded = eval["perplexity"][0]["ppl"].as_f64().unwrap();
        assert!((reloaded / after.ppl - 1.0).abs() < 1e-9, "{method}: {reloaded} {}", after.ppl);
        assert_eq!(eval["baseline"][0]["ppl"].as_f64(), Some(before.ppl), "{method}");
        place.run(&format!("compress {method} --method svd -o again")).refused(&[method, "already compressed"]);
    }
}

#[test]
fn keys_and_values_of_grouped_attention_are_compressed() {
    let place = Place::new();
    // `auto` cuts values inside their heads: see `auto`.
    for method in METHODS.into_iter().filter(|method| *method != "auto") {
        // Shared out evenly where a method would leave some dense.
        let rule = if ["whiten", "soft", "soco"].contains(&method) { "--allocation even" } else { "" };
        let method_flags = quickly(method);
        place.run(&format!("compress demo {method_flags} --keep 0.6 {rule} --ppl none {FAST} -o {method}")).fine();
        let stored = tensors(&place.path(&format!("{method}/model.safetensors")));
        for block in 0..4 {
            for part in ["k", "v"] {
                let name = format!("model.layers.{block}.self_attn.{part}_proj");
                assert!(!stored.contains_key(&format!("{name}.weight")), "{method}: {name}");
                let (_, a, _) = &stored[&format!("{name}.factor_a.weight")];
                let (_, b, _) = &stored[&format!("{name}.factor_b.weight")];
                // (64, 128): worth while only below rank 42.67.
                assert_eq!((a[1], b[0], a[0]), (128, 64, b[1]), "{method}: {name}");
                assert!((1..=42).contains(&a[0]), "{method}: {name} has rank {}", a[0]);
            }
        }
    }
}

#[test]
fn the_same_bytes_for_any_number_of_threads() {
    let place = Place::new();
    for method in METHODS {
        let compress = format!("compress demo {} --keep 0.6 --ppl none {FAST}", quickly(method));
        let bytes = |threads: &str| {
            place.run(&format!("{compress} {threads} -o out --force")).fine();
            place.read("out/model.safetensors")
        };
        let one = bytes("--threads 1");
        for threads in ["--threads 2", "--threads 3"] {
            assert!(bytes(threads) == one, "{method} {threads}");
        }
    }
}

#[test]
fn the_recipe_in_an_output_makes_it_again() {
    let place = Place::new();
    let shares = [
        "--method auto --keep 0.6",
        "--method auto --keep 0.6 --gradients false --multiple-of 4",
        "--method svd --keep 0.6",
        "--method awsvd --keep 0.6 --multiple-of 8",
        "--method lorap --keep 0.6 --rho 2",
        "--method rom --last-blocks 2 --block-keep 0.4",
        "--method whiten --target-params 600000 --weight energy --seed 3",
        "--method soft --keep 0.6 --steps 4 --batch 2 --heal 2 --basis weight --unit median",
        "--method soco --keep 0.6 --steps 4 --batch 2 --score-map tanh --worth score --last-phase sparsity --deviation false",
    ];
    for share in shares {
        place.run(&format!("compress demo {share} {FAST} -o out --force")).fine();
        place.run("compress --config out/softlm.toml -o out2 --force").fine();
        assert!(place.read("out/model.safetensors") == place.read("out2/model.safetensors"), "{share}");
        assert!(place.read("out/config.json") == place.read("out2/config.json"), "{share}");
        let recipe = |output: &str| String::from_utf8(place.read(&format!("{output}/softlm.toml"))).unwrap();
        assert_eq!(recipe("out").replace("\"out\"", ""), recipe("out2").replace("\"out2\"", ""), "{share}");
    }
}

#[test]
fn a_tied_model_that_stores_only_its_head_is_written_as_others_read_it() {
    let Some(folder) = data("models/tinystories-656k-orig") else { return };
    let place = Place::new();
    copy_folder(&folder, &place.path("orig"));
    let before = tensors(&place.path("orig/model.safetensors"));
    assert!(!before.contains_key("model.embed_tokens.weight"));
    for method in METHODS {
        place.run(&format!("compress orig {} --keep 0.6 {FAST} -o {method}", quickly(method))).fine();
        place.run(&format!("verify {method}")).fine();
        let after = tensors(&place.path(&format!("{method}/model.safetensors")));
        assert!(!after.contains_key("lm_head.weight"), "{method}: stored once");
        assert!(after["model.embed_tokens.weight"] == before["lm_head.weight"], "{method}");
        let config: Value = serde_json::from_slice(&place.read(&format!("{method}/config.json"))).unwrap();
        assert_eq!(config["tie_word_embeddings"], true);
    }
}

/// Part `index` (q, k, v) of GPT-2's fused matrix (24, 72) as a matrix (out, in) of its own.
fn part_of(fused: &[u8], index: usize) -> Vec<u8> {
    let (hidden, total, size) = (24, 72, 2);
    let rows = index * hidden..(index + 1) * hidden;
    let at = |row: usize, column: usize| &fused[(column * total + row) * size..][..size];
    rows.flat_map(|row| (0..hidden).flat_map(move |column| at(row, column))).copied().collect()
}

#[test]
fn fused_attention_is_split_only_where_it_is_compressed() {
    let place = Place::new();
    copy_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/gpt2-tiny"), &place.path("gpt2"));
    let before = tensors(&place.path("gpt2/model.safetensors"));
    let (mut dense_parts, mut whole) = (0, 0);
    let text = "--window 32 --eval-window 32 --calib-windows 8 --max-windows 2";
    let runs: Vec<(String, f64)> = METHODS
        .iter()
        .map(|method| (quickly(method), 0.6))
        .chain([0.9, 0.8, 0.7].map(|keep| ("--method whiten --weight unit".to_string(), keep)))
        .chain([("--method rom --last-blocks 1".to_string(), 0.8)])
        .collect();
    for (method, keep) in runs {
        place.run(&format!("compress gpt2 {method} --keep {keep} {text} -o out --force")).fine();
        place.run("verify out").fine();
        place.run("eval out --window 32 --max-windows 2").fine();
        let reached = place.report("out").allocation.keep_reached;
        assert!(reached <= keep && reached > keep - 0.05, "{method} {keep}: {reached}");
        let after = tensors(&place.path("out/model.safetensors"));
        // Learned methods change what stays dense, too.
        let learns = method.contains("--steps");
        for (name, tensor) in
            before.iter().filter(|(name, _)| !name.contains(".mlp.c_fc.") && !name.ends_with("c_attn.weight"))
        {
            let factorised = after.contains_key(&name.replace(".weight", ".factor_a.weight"));
            // Fewer channels, dimensions per head, and the bias that takes what left the mean.
            let narrowed = match method.as_str() {
                "--method lorap" => name.ends_with("mlp.c_proj.weight"),
                "--method auto" => name.ends_with("c_proj.weight") || name.ends_with("mlp.c_proj.bias"),
                _ => false,
            };
            let learned = learns && name.contains(".h.") && !name.contains("ln_");
            assert!(factorised || narrowed || learned || after[name] == *tensor, "{method} {keep}: {name} changed");
        }
        for block in 0..2 {
            let fused = format!("transformer.h.{block}.attn.c_attn");
            let source = &before[&format!("{fused}.weight")];
            if let Some(kept) = after.get(&format!("{fused}.weight")) {
                assert!(
                    kept == source && !after.contains_key(&format!("{fused}.q.factor_a.weight")),
                    "{method} {keep}"
                );
                whole += 1;
                continue;
            }
            for (index, part) in ["q", "k", "v"].iter().enumerate() {
                let name = format!("{fused}.{part}");
                match after.get(&format!("{name}.weight")) {
                    Some((_, shape, _)) if shape[0] < 24 => {
                        assert!(method == "--method auto" && *part == "v" && shape[1] == 24, "{method}: {name}");
                    }
                    Some((_, shape, data)) => {
                        assert_eq!(shape, &[24, 24], "{name}");
                        let same = *data == part_of(&source.2, index);
                        assert!(same || learns, "{method} {keep}: {name} is not the source's");
                        dense_parts += usize::from(!learns);
                    }
                    None => assert!(after.contains_key(&format!("{name}.factor_b.weight")), "{method} {keep}: {name}"),
                }
            }
            assert!(after[&format!("{fused}.bias")] == before[&format!("{fused}.bias")], "{method} {keep}");
        }
    }
    assert!(dense_parts > 0 && whole > 0, "both cases were seen: {dense_parts} dense parts, {whole} whole matrices");
}

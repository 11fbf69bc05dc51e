//! What only state-space blocks have: the program end to end on one, small linears, limits that are infinite, and pruning
//! that does not apply.

use crate::families::{corpus, open, windows};
use crate::program::{FAST, METHODS, Place, change_config, change_weights, copy_folder, tensors};
use serde_json::Value;
use softlm::machine::StageClock;
use softlm::model::{Model, Role};
use softlm::pipeline::{Calibration, compress_windows};
use softlm::recipe::Options;
use softlm::report::{Form, Report};
use softlm::text::Sampling;
use std::fs;
use std::path::{Path, PathBuf};

fn generated(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(name)
}

/// A copy of a generated model with the tokenizer of another one, whose vocabulary it gets.
pub fn with_tokenizer(place: &Place, name: &str) {
    let folder = place.path(name);
    copy_folder(&generated(name), &folder);
    for file in ["vocab.json", "merges.txt"] {
        fs::copy(generated("gpt2-tiny").join(file), folder.join(file)).expect("copied");
    }
    let vocabulary = 302;
    change_weights(&folder, |all| {
        for (key, (_, shape, bytes)) in all.iter_mut() {
            if key.contains("embeddings") || key.contains("lm_head") {
                let row = bytes.len() / shape[0];
                *bytes = bytes.iter().copied().cycle().take(vocabulary * row).collect();
                // No two rows alike: an argmax has one answer.
                for (i, number) in bytes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                    *number = (f32::from_le_bytes(*number) + 0.05 * (i as f32).sin()).to_le_bytes();
                }
                shape[0] = vocabulary;
            }
        }
    });
    change_config(&folder, "vocab_size", vocabulary.into());
}

#[test]
fn every_method_runs_through_the_program() {
    let place = Place::new();
    for name in ["mamba-tiny", "mamba2-tiny"] {
        with_tokenizer(&place, name);
        for method in METHODS {
            let out = format!("{name}-{method}");
            place.run(&format!("compress {name} --method {method} --keep 0.6 {FAST} -o {out}")).fine();
            let said = place.run(&format!("verify {out} --against {name} --json")).fine();
            let verified: Value = serde_json::from_str(&said.stdout).expect("one JSON value");
            assert_eq!(verified["problems"].as_array().map(Vec::len), Some(0), "{out}: {verified}");
            let report: Report = serde_json::from_slice(&place.read(&format!("{out}/report.json"))).expect("a report");
            assert!(
                (0.55..=0.6).contains(&report.allocation.keep_reached),
                "{out}: {}",
                report.allocation.keep_reached
            );
            let linears: Vec<String> = report.linears.iter().map(|linear| linear.id.to_string()).collect();
            assert_eq!(linears, ["0.ssm.in", "0.ssm.out", "1.ssm.in", "1.ssm.out"], "{out}");

            let after = report.evaluation[0].after.perplexity.ppl;
            let said = place.run(&format!("eval {out} --window 64 --max-windows 2 --json")).fine();
            let eval: Value = serde_json::from_str(&said.stdout).expect("one JSON value");
            let reloaded = eval["perplexity"][0]["ppl"].as_f64().expect("a perplexity");
            assert!((reloaded / after - 1.0).abs() < 1e-9, "{out}: {reloaded} {after}");

            let said = place.run(&format!("generate {out} --max-tokens 8 --prompt the --json")).fine();
            let json: Value = serde_json::from_str(&said.stdout).expect("one JSON object");
            assert!(json["ids"].as_array().is_some_and(|ids| ids.len() <= 8), "{out}: {json}");

            let pruned: Vec<&String> =
                report.notes.iter().filter(|note| note.contains("state-space blocks do not have")).collect();
            assert_eq!(pruned.len(), usize::from(method == "lorap"), "{out}: {:?}", report.notes);
            if method == "lorap" {
                assert!(report.linears.iter().all(|linear| linear.form == Form::LowRank), "{out}");
            }
        }
    }
}

#[test]
fn healing_helps() {
    let place = Place::new();
    with_tokenizer(&place, "mamba-tiny");
    let fixed = "--calib-windows 8 --window 48 --eval-window 48 --max-windows 8";
    for (steps, out) in [(0, "plain"), (40, "healed")] {
        let line = format!("compress mamba-tiny --method svd --keep 0.6 --heal {steps} {fixed} -o {out}");
        place.run(&line).fine();
    }
    let kl = |out: &str| {
        let report: Report = serde_json::from_slice(&place.read(&format!("{out}/report.json"))).expect("a report");
        report.evaluation[0].after.divergence.as_ref().expect("compared with the original").kl
    };
    assert!(kl("healed") < 0.9 * kl("plain"), "{} {}", kl("healed"), kl("plain"));
}

fn compress(model: Model, output: &Path) -> Report {
    let options = Options {
        model: Some(model.source().label().to_string()),
        method: Some("whiten".into()),
        keep: Some(0.6),
        allocation: Some(softlm::plan::AllocationRule::Even),
        output: Some(output.to_path_buf()),
        small_linears: Some(true),
        ..Options::default()
    };
    let (windows, heldout, _) = windows(&model);
    let calibration = Calibration::new(windows, heldout, vec![corpus()], Sampling::First);
    let recipe = options.resolve().expect("a recipe");
    compress_windows(&recipe, false, model, calibration, &[], StageClock::start(&()), &()).expect("a report")
}

#[test]
fn small_linears_are_compressed_on_request() {
    let place = Place::new();
    let usual = open(&generated("mamba-tiny"));
    let roles = |model: &Model| model.block_linears(0).map(|spec| spec.id.role).collect::<Vec<_>>();
    assert_eq!(roles(&usual), [Role::SsmIn, Role::SsmOut]);
    let all = usual.with_small_linears();
    assert_eq!(roles(&all), [Role::SsmIn, Role::SsmX, Role::SsmDt, Role::SsmOut]);
    assert_eq!(all.block_sites(1).len(), 4);

    let report = compress(all, &place.path("out"));
    assert_eq!(report.linears.len(), 8);
    assert!(report.linears.iter().all(|linear| linear.form == Form::LowRank), "{:?}", report.linears);
    let stored = tensors(&place.path("out/model.safetensors"));
    // (15, 48) saves below rank 11.4, (48, 3) below 2.8.
    let rank = |name: &str| stored[&format!("backbone.layers.0.mixer.{name}.factor_a.weight")].1[0];
    assert!((1..=11).contains(&rank("x_proj")) && (1..=2).contains(&rank("dt_proj")));
    assert!(!stored.contains_key("backbone.layers.0.mixer.x_proj.weight"));
    // What was written runs wherever a model does.
    let output = open(&place.path("out"));
    let block = output.block(1).expect("a block");
    assert_eq!(block.linear(Role::SsmDt).expect("there").rank(), Some(rank("dt_proj")));
    let h = output.embed(&[&[1, 2, 3, 4]]).expect("embedded");
    assert!(block.forward(&h, &mut ()).expect("finite").is_some());
}

#[test]
fn an_infinite_limit_is_read_and_written_as_a_number() {
    let place = Place::new();
    let copy = |name: &str, high: &str| {
        let folder = place.path(name);
        copy_folder(&generated("mamba2-tiny"), &folder);
        let text = fs::read_to_string(folder.join("config.json")).expect("a config");
        assert!(text.contains("1.5\n"), "the limit is where it was");
        let text = text.replace("1.5\n", &format!("{high}\n")).replace("\"Mamba2", "\"\\\\\\\"Infinity Mamba2");
        fs::write(folder.join("config.json"), text).expect("written");
        open(&folder)
    };
    let states = |model: &Model| {
        let h = model.embed(&[&[5, 9, 40, 77, 3, 12]]).expect("embedded");
        let h = model.block(0).and_then(|block| block.forward(&h, &mut ())).expect("finite").expect("not stopped");
        h.flatten_all().and_then(|h| h.to_vec1::<f32>()).expect("numbers")
    };
    let (infinite, large, usual) =
        (copy("infinite", "Infinity"), copy("large", "1e30"), open(&generated("mamba2-tiny")));
    assert_eq!(states(&infinite), states(&large));
    assert_ne!(states(&infinite), states(&usual), "the limit is reached");
    // Inside a text the word stays what it is.
    assert_eq!(infinite.source().config()["architectures"][0], "\\\"Infinity Mamba2ForCausalLM");

    compress(infinite, &place.path("out"));
    let config = fs::read(place.path("out/config.json")).expect("written");
    let config: Value = serde_json::from_slice(&config).expect("JSON as everybody reads it");
    assert!(config["time_step_limit"][1].as_f64().is_some_and(|high| high > 1e38), "{config}");
}

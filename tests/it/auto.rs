//! `auto`, the default method: every form on every family, what it is asked and what it reports, and that it leaves a better
//! model than the methods of one form.

use crate::families::{compress, folders, open};
use crate::program::{FAST, Place, tensors};
use serde_json::Value;
use softlm::checkpoint::Source;
use softlm::model::{FfnPart, Role, verify};
use softlm::report::Form;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// What became of a linear, in one word.
fn form_of(linear: &softlm::report::LinearReport) -> &'static str {
    match (linear.form, linear.id.role) {
        (Form::Pruned, Role::V | Role::O) => "values",
        (Form::Pruned, role) if role.ffn_part().is_some() => "channels",
        (Form::Pruned, _) => "unknown",
        (Form::Dense, _) => "dense",
        (Form::LowRank, _) => "factors",
    }
}

#[test]
fn every_family_gets_forms_that_fit_its_parts_and_keeps_its_budget() {
    let place = tempfile::tempdir().expect("a scratch folder");
    let mut seen = BTreeSet::new();
    for folder in folders() {
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        let output = place.path().join(&name);
        let report = compress(&folder, "auto", &output);
        let linears = &report.sizes.linears;
        let reached = linears.params_after as f64 / linears.params_before as f64;
        assert!(reached <= 0.6 && reached > 0.58, "{name}: {reached}");
        let base = Source::open(&folder).expect("a checkpoint");
        let whole = verify(&Source::open(&output).expect("an output"), Some(&base), None).expect("readable");
        assert!(whole.problems.is_empty(), "{name}: {:?}", whole.problems);
        let logits_are_finite = report.evaluation.iter().all(|row| row.after.perplexity.nll.is_finite());
        assert!(logits_are_finite && report.fidelity.iter().all(|row| row.cosine.is_finite()), "{name}");
        assert!(!report.evaluation.is_empty() || !report.fidelity.is_empty(), "{name}: nothing was measured");
        let model = open(&output);
        for linear in &report.linears {
            let form = form_of(linear);
            seen.insert(form);
            let predicted = linear.predicted_loss;
            assert!(form == "dense" || predicted.is_some_and(|loss| loss.is_finite() && loss >= 0.0), "{name}: {form}");
            let spec = model.linears().iter().find(|spec| spec.id == linear.id).expect("the same linears");
            assert_eq!(linear.pruned_shape.unwrap_or(linear.shape), [spec.out, spec.input], "{name}: {}", spec.id);
            // Linears that take a form together take it together.
            let together = |other: Role| {
                let other = report.linears.iter().find(|l| l.id.block == spec.id.block && l.id.role == other);
                other.is_none_or(|other| form_of(other) == form)
            };
            let role = spec.id.role;
            match form {
                "values" => assert!(together(Role::V) && together(Role::O), "{name}: {}", spec.id),
                "channels" => {
                    let parts = [FfnPart::Gate, FfnPart::Up, FfnPart::Down];
                    assert!(parts.into_iter().all(|part| together(role.sibling(part))), "{name}: {}", spec.id);
                }
                "unknown" => panic!("{name}: {} got smaller", spec.id),
                _ => {}
            }
        }
    }
    assert_eq!(seen, BTreeSet::from(["channels", "dense", "factors", "values"]));
}

#[test]
fn it_leaves_a_better_model_than_methods_of_one_form() {
    let place = Place::new();
    for keep in ["0.8", "0.5"] {
        let text = "--calib-windows 20 --window 256 --eval-window 256";
        let ppl = |method: &str| {
            let out = format!("{method}-{keep}");
            place.run(&format!("compress demo --method {method} --keep {keep} {text} -o {out}")).fine();
            place.report(&out).evaluation[0].after.perplexity.ppl
        };
        let [auto, whiten, lorap] = ["auto", "whiten", "lorap"].map(ppl);
        println!("keep {keep}: auto {auto:.2}, whiten {whiten:.2}, lorap {lorap:.2}");
        assert!(auto < whiten && auto < lorap, "keep {keep}: auto {auto}, whiten {whiten}, lorap {lorap}");
    }
}

#[test]
fn without_gradients_it_says_so_and_is_something_else() {
    let place = Place::new();
    for (out, more) in [("with", ""), ("without", "--gradients false")] {
        place.run(&format!("compress demo --keep 0.6 {more} {FAST} -o {out}")).fine();
        place.run(&format!("verify {out} --against demo")).fine();
        let report = place.report(out);
        assert_eq!(report.recipe["gradients"], Value::from(out == "with"), "{}", report.recipe);
        assert!(report.evaluation[0].after.perplexity.ppl.is_finite());
        let differentiated = report.cost.stages.iter().any(|stage| stage.name == "differentiating");
        assert_eq!(differentiated, out == "with");
    }
    assert!(place.weights("with") != place.weights("without"));
}

#[test]
fn it_is_what_runs_without_a_method() {
    let place = Place::new();
    place.run(&format!("compress demo --keep 0.6 {FAST} --ppl none -o unnamed")).fine();
    place.run(&format!("compress demo --method auto --keep 0.6 {FAST} --ppl none -o named")).fine();
    let report = place.report("unnamed");
    assert_eq!((report.method.as_str(), &report.recipe["method"]), ("auto", &Value::from("auto")));
    assert!(place.weights("unnamed") == place.weights("named"));
    let card = String::from_utf8(place.read("unnamed/README.md")).expect("text");
    assert!(card.contains("auto"), "{card}");
}

/// A run that dies in each of its stages ends with the same bytes when it is given again.
#[test]
fn a_run_that_is_killed_in_any_stage_ends_in_the_same_bytes() {
    let place = Place::new();
    let line = "compress demo --method auto --keep 0.6 --calib-windows 8 --window 256 --ppl none";
    place.run(&format!("{line} -o undisturbed")).fine();
    let files = ["gradients-00000", "decompositions-00002", "weights", "block-00000"];
    let mut resumed = 0;
    for file in files {
        let mut child = place.command(&format!("{line} -o out")).spawn().expect("the program starts");
        let path = place.path(&format!("out.softlm-work/{file}.safetensors"));
        while !path.exists() && child.try_wait().expect("a child").is_none() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        child.kill().expect("killed");
        child.wait().expect("a child");
        let said = place.run(&format!("{line} -o out")).fine();
        resumed += usize::from(said.stderr.contains("continuing an interrupted run"));
        assert!(place.weights("out") == place.weights("undisturbed"), "{file}");
        fs::remove_dir_all(place.path("out")).expect("removed");
    }
    assert!(resumed >= 3, "{resumed} runs were met in the middle");
}

/// With fewer tokens than channels most directions seem to cost nothing.
#[test]
fn few_tokens_are_no_licence_to_cut() {
    let place = Place::new();
    let line = "compress demo --calib-windows 3 --window 64 --eval-window 64 --max-windows 8";
    for (options, keep, most) in [("", 0.9, 0.1), ("--gradients false", 0.9, 0.1), ("", 0.6, 0.5)] {
        place.run(&format!("{line} {options} --keep {keep} -o out --force")).fine();
        let report = place.report("out");
        assert!(report.allocation.keep_reached > keep - 0.01, "{options} {keep}: {}", report.allocation.keep_reached);
        let pair = &report.evaluation[0];
        let rise = pair.after.perplexity.ppl / pair.before.perplexity.ppl - 1.0;
        assert!(rise < most, "{options} {keep}: {rise}");
    }
}

/// With -v, what every part is expected to cost: what was predicted, times what was measured of it.
#[test]
fn details_say_what_every_part_is_expected_to_cost() {
    let place = Place::new();
    let said = place.run(&format!("compress demo {FAST} --keep 0.6 -v -o out")).fine();
    let linears = place.report("out").linears;
    let cost = |linear: &softlm::report::LinearReport| Some(linear.predicted_loss? * linear.weight?);
    let expected: f64 = linears.iter().filter_map(cost).sum();
    let (_, rest) = said.stdout.split_once("each alone, is expected to be ").expect("a total");
    let total: f64 = rest.split(' ').next().and_then(|number| number.parse().ok()).expect("a number");
    assert!(expected > 0.01 && (total / expected - 1.0).abs() < 0.01, "{total} for {expected}");
    let down = linears.iter().find(|linear| linear.id.to_string() == "0.mlp.down").and_then(cost).expect("a cost");
    let line = said.stdout.lines().find(|line| line.starts_with("0.mlp.down")).expect("a line");
    let near = |word: &str| word.parse().is_ok_and(|number: f64| (number / down - 1.0).abs() < 0.01);
    assert!(line.split_whitespace().any(near), "{down}: {line}");
}

#[test]
fn healing_trains_what_became_narrower() {
    let place = Place::new();
    let line = format!("compress demo --method auto --keep 0.5 {FAST} --ppl none");
    place.run(&format!("{line} -o plain")).fine();
    place.run(&format!("{line} --heal 3 --heal-batch 2 -o healed")).fine();
    place.run("verify healed --against demo").fine();
    let healing = place.report("healed").healing.expect("it was healed");
    assert!(healing.best_step > 0 && healing.loss_after < healing.loss_before, "{healing:?}");
    let at = |out: &str| tensors(&place.path(&format!("{out}/model.safetensors")));
    let (plain, healed, demo) = (at("plain"), at("healed"), open(&place.demo_folder("demo-folder")));
    assert_eq!(plain.keys().collect::<Vec<_>>(), healed.keys().collect::<Vec<_>>());
    let mut narrowed = 0;
    for spec in demo.linears() {
        let name = spec.weight_name();
        let Some((_, shape, bytes)) = plain.get(&name) else { continue };
        let (_, after, trained) = &healed[&name];
        assert_eq!(shape, after, "{name}");
        let is_narrower = *shape != [spec.out, spec.input];
        assert_eq!(bytes != trained, is_narrower, "{name}");
        narrowed += usize::from(is_narrower && spec.id.role.ffn_part().is_some());
    }
    assert!(narrowed >= 3, "{narrowed} feed-forward linears are narrower");
    assert!(open(&place.path("healed")).embed(&[&[1, 5, 9]]).is_ok());
}

#[test]
fn it_runs_on_models_of_every_kind_through_the_program() {
    let place = Place::new();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for model in ["encoders/bert-tiny-classes", "models/bert-tiny", "models/gpt2-tiny"] {
        let (out, shown) = (model.replace('/', "-"), golden.join(model).display().to_string());
        let text = "--window 32 --eval-window 32 --calib-windows 8 --max-windows 2";
        place.run(&format!("compress {shown} --keep 0.6 {text} -o {out}")).fine();
        place.run(&format!("verify {out} --against {shown}")).fine();
        assert_eq!(place.report(&out).method, "auto");
    }
}

#[test]
fn what_does_not_go_together_is_refused() {
    let place = Place::new();
    let refused = |options: &str, naming: &[&str]| {
        place.run(&format!("compress demo {options} {FAST} -o out")).refused(naming);
        assert!(!place.path("out").exists() && !place.path("out.softlm-work").exists(), "{options}");
    };
    refused("--method whiten --allocation forms", &["--allocation forms", "--method whiten", "--method auto"]);
    for rule in ["even", "uniform", "global"] {
        refused(&format!("--method auto --allocation {rule}"), &[&format!("--allocation {rule}"), "--method auto"]);
    }
    refused("--inputs sequential", &["--inputs"]);
    refused("--weight unit", &["--weight"]);
    refused("--method whiten --gradients false", &["gradients", "auto"]);
    refused("--keep 0.001", &["smallest possible keep"]);
}

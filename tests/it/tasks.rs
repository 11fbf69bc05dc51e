//! Encoders that learn: from labels, from the original's classes and from its states, against PyTorch.

use crate::learned::train_on;
use candle_core::Device;
use serde_json::Value;
use softlm::backward::Objective;
use softlm::checkpoint::Source;
use softlm::learn::{Aim, Dataset, Distillation, HealJob, HealOptions, Labelled, heal};
use softlm::model::Model;
use softlm::text::{Sequence, Window, Windows};
use std::path::{Path, PathBuf};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn json(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(golden().join(name)).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The padded batch of `encoders.json`, labelled.
fn labelled(labels: &[f64]) -> Vec<Labelled> {
    let rows = &json("encoders.json")["models"]["encoders/bert-tiny-classes"];
    let sequence = |r: usize| Sequence { ids: ids(&rows["ids"][r]), types: ids(&rows["types"][r]) };
    labels.iter().enumerate().map(|(r, &label)| Labelled { sequence: sequence(r), label }).collect()
}

fn windows() -> Windows {
    let ids = |r: u32| (0..20).map(|i| (7 + 31 * i + 17 * r * i) % 96).collect();
    let rows = (0..2).map(|r| Window { ids: ids(r), first_target: 1 }).collect();
    Windows { rows, window: 20, stride: 20, bos: false, text_tokens: 40 }
}

#[test]
fn training_encoders_is_that_of_pytorch() {
    let expected = json("tasks.json");
    let windows = windows();
    let text = Dataset::Text { train: &windows, heldout: &windows };
    let (labels, scores) = (labelled(&[2.0, 0.0, 1.0, 1.0]), labelled(&[0.3, 2.0, -1.0, 4.0]));
    let (labels, scores) =
        [&labels, &scores].map(|examples| Dataset::Labelled { train: examples, heldout: examples }).into();
    for (case, folder, dataset, aim) in [
        ("labels", "bert-tiny-classes", labels, Aim::CrossEntropy),
        ("scores", "bert-tiny-score", scores, Aim::SquaredError),
        ("classes", "bert-tiny-classes", text, Aim::Kl),
        ("states", "bert-tiny-bare", text, Aim::Cosine),
    ] {
        let model = Model::load(Source::open(&golden().join("encoders").join(folder)).unwrap(), &Device::Cpu).unwrap();
        let batch = if matches!(dataset, Dataset::Text { .. }) { 2 } else { 4 };
        for memory in [usize::MAX, 0] {
            let distillation = Distillation {
                model: &model,
                dataset,
                objective: Objective::DISTIL,
                batch,
                seed: 0,
                block_memory: memory,
                teacher_memory: memory,
            };
            let learned = train_on(distillation, "soft", 0.15, 0.1);
            assert_eq!(learned.report.aim, aim, "{case}");
            let losses = expected[case]["loss"].as_array().unwrap();
            assert_eq!(learned.report.curve.len(), losses.len() + 1, "{case}");
            for (point, loss) in learned.report.curve[1..].iter().zip(losses) {
                let (found, expected) = (point.loss.unwrap(), loss.as_f64().unwrap());
                let off = (found - expected).abs();
                assert!(off < 2e-3 * expected + 2e-6, "{case}, step {}: {found} for {expected}", point.step);
            }
            let best = learned.report.best_step;
            for linear in &learned.linears {
                let after = |step: usize| expected[case]["alpha"][step - 1][linear.spec.id.to_string()].as_f64();
                let expected = if best == 0 { 0.0 } else { after(best).unwrap() };
                assert!((linear.control[0] - expected).abs() < 3e-3, "{case} {}: {expected}", linear.spec.id);
            }
        }
    }
}

#[test]
fn labels_need_a_classifier() {
    let model = Model::load(Source::demo(), &Device::Cpu).unwrap();
    let examples = labelled(&[1.0]);
    let distillation = Distillation {
        model: &model,
        dataset: Dataset::Labelled { train: &examples, heldout: &examples },
        objective: Objective::DISTIL,
        batch: 1,
        seed: 0,
        block_memory: 0,
        teacher_memory: 0,
    };
    let state = tempfile::tempdir().unwrap();
    let job = HealJob {
        distillation,
        install: &|_, _| Ok(()),
        stored: &|_, _| Ok(candle_core::DType::F32),
        state: &state.path().join("state"),
        options: HealOptions { steps: 1, lr: 0.01, find_rate: false, seconds: None },
    };
    let error = heal(&job, &()).err().expect("a decoder has no classifier");
    assert!(error.to_string().contains("classifier"), "{error:#}");
}

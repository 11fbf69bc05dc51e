//! Gradients on everything a gated linear trains, against finite differences.

use super::gated::GatedModel;
use super::*;
use crate::backward::Objective;
use crate::checkpoint::Source;
use crate::learn::Dataset;
use crate::linalg::Mat;
use crate::method::{Basis, LastPhase, Pace, ScoreMap, Unit, Worth, by_name, of_basis};
use crate::model::{Linear, Model};
use crate::text::{Window, Windows};
use anyhow::Context;
use candle_core::Device;
use std::path::Path;

fn settings() -> SpectralSettings {
    SpectralSettings {
        basis: Basis::Weight,
        unit: Unit::Raw,
        pace: Pace::Constant,
        pressure: None,
        // Soft enough for a difference quotient in f32.
        sharpness: 2.0,
        train_basis: true,
        worth: Worth::Score,
        score_map: ScoreMap::Sigmoid,
        cut: 0.5,
        last_phase: LastPhase::Sparsity,
        sparsity: 0.1,
        deviation: true,
    }
}

fn components(model: &Model, spec: &LinearSpec) -> Result<Decomposition> {
    let block = model.block(spec.id.block)?;
    let weight = block.linear(spec.id.role).and_then(Linear::dense_weight).context("dense")?;
    let w = Mat::from_f32_rows(spec.out, spec.input, &weight.flatten_all()?.to_vec1::<f32>()?);
    of_basis(Basis::Weight).decompose(&w, None)
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/llama-tiny-bias");
    let model = Model::load(Source::open(&folder).unwrap(), &Device::Cpu).unwrap();
    let ids = |row: u32| (0..30).map(|i| (7 + 31 * i + 17 * row * i) % 96).collect();
    let rows = (0..2).map(|row| Window { ids: ids(row), first_target: 1 }).collect();
    let windows = Windows { rows, window: 30, stride: 30, bos: false, text_tokens: 60 };
    let distillation = Distillation {
        model: &model,
        dataset: Dataset::Text { train: &windows, heldout: &windows },
        objective: Objective::DISTIL,
        batch: 2,
        seed: 0,
        block_memory: usize::MAX,
        teacher_memory: usize::MAX,
    };
    let (settings, rates) = (settings(), SpectralRates { control: 0.1, basis: 0.1, deviation: 0.1 });
    for (method, kinds) in [("soft", vec!["control", "rho", "b", "a"]), ("soco", vec!["control", "deviation"])] {
        let learned = by_name(method).unwrap().learned().unwrap();
        let units = vec![1.0; model.linears().len()];
        let job = SpectralJob {
            distillation,
            method: learned,
            settings: &settings,
            basis: &|spec| components(&model, spec),
            units: &units,
            plan: &|_| unreachable!("nothing is cut"),
            even: &|| unreachable!("nothing is cut"),
            keep: 0.5,
            state: Path::new("unused"),
            options: SpectralOptions { steps: 1, rates, explore: 1.0, refine: 0.0, seconds: None },
        };
        let student = GatedModel::new(&job).unwrap();
        // Away from the original, where the divergence has a slope.
        for (number, (name, var, _)) in student.trained().enumerate() {
            let shift: Vec<f32> = (0..var.elem_count()).map(|i| 0.3 * ((number + 3 * i) as f32).sin()).collect();
            let shift = Tensor::from_vec(shift, var.dims(), &Device::Cpu).unwrap();
            let scale = if name.ends_with(".b") || name.ends_with(".a") { 0.1 } else { 1.0 };
            var.set(&(var.as_tensor() + (shift * scale).unwrap()).unwrap()).unwrap();
        }
        let targets = 58.0;
        let gradients = student.loss.step(&student, 0).unwrap().gradients.all();
        for kind in kinds {
            // Along the gradient of all parameters of one kind, the loss has the slope ‖g‖.
            let of_kind =
                || student.trained().zip(&gradients).filter(|((name, _, _), _)| name.ends_with(&format!(".{kind}")));
            let squares: f64 = of_kind()
                .map(|(_, g)| {
                    f64::from(g.as_ref().unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap())
                })
                .sum();
            let norm = squares.sqrt();
            let step = 2e-3;
            let move_by = |times: f64| {
                for ((_, var, _), g) in of_kind() {
                    let shift = (g.as_ref().unwrap() * (times / norm)).unwrap();
                    var.set(&(var.as_tensor() + shift).unwrap()).unwrap();
                }
                student.loss.step(&student, 0).unwrap().loss / targets
            };
            let above = move_by(step);
            let below = move_by(-2.0 * step);
            move_by(step);
            let slope = (above - below) / (2.0 * step);
            assert!(norm > 1e-3 && (slope / norm - 1.0).abs() < 0.02, "{method} {kind}: {slope} for {norm}");
        }
    }
}

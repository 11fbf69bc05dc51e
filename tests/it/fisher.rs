//! Second moments of gradients say in nats what a change of a weight does to predictions: KL ≈ ½ tr(C D G Dᵀ) per token.

use candle_core::{Device, Tensor};
use softlm::backward::{OutputGrams, output_grams};
use softlm::calibrate::collect;
use softlm::checkpoint::Source;
use softlm::eval::{Variant, sensitivities};
use softlm::forward::States;
use softlm::hub::HubOptions;
use softlm::linalg::Mat;
use softlm::model::{Linear, LinearId, Model, Role};
use softlm::pipeline::{CalibrationWish, calibration, tokenizer};
use softlm::random::SplitMix64;
use softlm::recipe::BosRule;
use softlm::text::{Sampling, Windows};

/// What C was shrunk by.
const SHRUNK: f64 = 0.3;
/// D as a share of W, by their Frobenius norms.
const CHANGE: f64 = 0.02;

fn text(model: &Model) -> Windows {
    let wish = CalibrationWish {
        specs: &["sample".to_string()],
        windows: 16,
        window: Some(64),
        sampling: Sampling::First,
        bos: BosRule::Never,
        heldout: 0,
    };
    let tokenizer = tokenizer(model.source()).expect("a tokenizer");
    calibration(model, &tokenizer, &wish, &HubOptions::default()).expect("text").windows
}

/// C as it was measured: shrinking keeps the trace.
fn unshrunk(c: &Mat) -> Mat {
    let m = c.rows();
    let mean = (0..m).map(|i| c.get(i, i)).sum::<f64>() / m as f64;
    let identity = |i, j| if i == j { SHRUNK * mean } else { 0.0 };
    Mat::from_fn(m, m, |i, j| (c.get(i, j) - identity(i, j)) / (1.0 - SHRUNK))
}

/// A random matrix (m, n) of `norm`.
fn change(m: usize, n: usize, norm: f64, seed: u64) -> Mat {
    let mut numbers = vec![0.0; m * n];
    SplitMix64::fill_normal(seed, 0, &mut numbers);
    let mut d = Mat::from_f32_rows(m, n, &numbers);
    let scale = norm / d.frobenius();
    d.scale_rows(&vec![scale; m]);
    d
}

#[test]
fn a_small_change_costs_what_second_moments_predict() {
    let model = Model::load(Source::demo(), &Device::Cpu).expect("the demo");
    let windows = text(&model);
    let folder = tempfile::tempdir().expect("a scratch folder");
    let path = |index: usize| folder.path().join(format!("{index}"));
    // Several labels for each prediction: what is compared is the expectation over them.
    let rows: Vec<&[u32]> = (0..6).flat_map(|_| windows.ids()).collect();
    output_grams(&model, &rows, 1, &|_| true, &path, &()).expect("gradients");

    let mut states = States::embed(&model, &windows.ids()).expect("states");
    let mut changes = Vec::new();
    for index in 0..model.blocks() {
        let block = model.block(index).expect("a block");
        let nothing = States::embed::<&[u32]>(&model, &[]).expect("nothing");
        let stats = collect(&block, &states, &nothing, &model.block_sites(index)).expect("statistics");
        states.advance(&block).expect("a pass");
        let moments = OutputGrams::open(&path(index)).expect("written");
        let mut variants = Vec::new();
        let mut predicted = Vec::new();
        for spec in model.block_linears(index) {
            let weight = block.linear(spec.id.role).expect("a linear").dense_weight().expect("dense").clone();
            let site = &stats[&spec.site];
            let c = unshrunk(&moments.get(spec).expect("read").expect("wanted"));
            for seed in 0..2 {
                let norm = CHANGE * weight.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt() as f64;
                let d = change(spec.out, spec.input, norm, 100 * index as u64 + seed);
                let e = d.matmul(&site.gram).nt_matmul(&d);
                let sum: f64 = (0..e.rows())
                    .flat_map(|i| (0..e.rows()).map(move |j| (i, j)))
                    .map(|(i, j)| c.get(i, j) * e.get(j, i))
                    .sum();
                predicted.push((spec.id, 0.5 * sum / site.tokens as f64));
                let d = Tensor::from_vec(d.to_f32_rows(), (spec.out, spec.input), &Device::Cpu).expect("a tensor");
                let linear = Linear::Dense { weight: (&weight + d).expect("a sum"), bias: None };
                let role: Role = spec.id.role;
                variants.push(Variant { block: index, load: Box::new(move || Ok(vec![(role, linear.clone())])) });
            }
        }
        let measured = sensitivities(&model, &variants, &windows, &()).expect("measured");
        for ((id, predicted), measured) in predicted.into_iter().zip(measured) {
            changes.push((id, predicted, measured));
        }
    }
    for (id, predicted, measured) in &changes {
        let ratio = measured / predicted;
        let (least, most) = match id.role {
            Role::Gate | Role::Up | Role::Down => (0.77, 1.3),
            // Attention adds up what changes at several tokens, which a mean over tokens does not see.
            Role::Q | Role::K | Role::O => (0.7, 1.6),
            _ => (0.9, 3.5),
        };
        assert!((least..most).contains(&ratio), "{id}: {measured} for {predicted}");
    }
    // Which of two linears can bear the change better, where that is clear and attention does not add up.
    let (mut pairs, own) = (0, |id: &LinearId| id.role != Role::V);
    for (a, low, less) in changes.iter().filter(|(id, ..)| own(id)) {
        for (b, high, more) in changes.iter().filter(|(id, high, _)| own(id) && *high > 2.0 * low) {
            assert!(less < more, "{a}: {less} for {low}, {b}: {more} for {high}");
            pairs += 1;
        }
    }
    assert!(pairs > 200, "{pairs} pairs");
}

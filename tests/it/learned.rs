//! The learned methods: their training against PyTorch's (`tests/golden/learned.json`), what they promise about budgets,
//! interruptions, mistakes, and that learning is worth it.

use candle_core::Device;
use serde_json::Value;
use softlm::backward::Objective;
use softlm::checkpoint::Source;
use softlm::hub::HubOptions;
use softlm::learn::{
    Dataset, Distillation, Learned, SpectralJob, SpectralOptions, SpectralPoint, SpectralRates, learn_spectra,
};
use softlm::linalg::Mat;
use softlm::method::{
    Basis, LastPhase, OptionValues, Pace, Phase, ScoreMap, SpectralSettings, Unit, Worth, by_name, of_basis,
};
use softlm::model::{LinearSpec, Model};
use softlm::pipeline;
use softlm::plan::{AllocationRule, GlobalOptions, Item, Target, global};
use softlm::progress::{Interrupted, Progress};
use softlm::recipe::{Options, StoredType};
use softlm::report::Report;
use softlm::text::{Window, Windows};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

const STEPS: usize = 12;

fn tiny() -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/llama-tiny-bias");
    Model::load(Source::open(&folder).unwrap(), &Device::Cpu).unwrap()
}

/// The ids of `logits.py`.
fn windows(model: &Model, length: usize) -> Windows {
    let id = |row: usize, i: usize| ((7 + 31 * i + 17 * row * i) % model.vocab()) as u32;
    let window = |row| Window { ids: (0..length).map(|i| id(row, i)).collect(), first_target: 1 };
    Windows { rows: (0..2).map(window).collect(), window: length, stride: length, bos: false, text_tokens: 2 * length }
}

/// Trains as `learned.py` does.
fn train(method: &str, lr: f64, pressure: f64, memory: usize) -> Learned {
    let model = tiny();
    let windows = windows(&model, 48);
    let distillation = Distillation {
        model: &model,
        dataset: Dataset::Text { train: &windows, heldout: &windows },
        objective: Objective::DISTIL,
        batch: 2,
        seed: 0,
        block_memory: memory,
        teacher_memory: memory,
    };
    train_on(distillation, method, lr, pressure)
}

/// Trains the controls of every linear alone, on the components of its weight.
pub fn train_on(distillation: Distillation, method: &str, lr: f64, pressure: f64) -> Learned {
    let model = distillation.model;
    let settings = SpectralSettings {
        basis: Basis::Weight,
        unit: Unit::Raw,
        pace: Pace::Constant,
        pressure: Some(pressure),
        sharpness: 50.0,
        train_basis: false,
        worth: Worth::Score,
        score_map: ScoreMap::Sigmoid,
        cut: 0.5,
        last_phase: LastPhase::Sparsity,
        sparsity: 0.2,
        deviation: false,
    };
    let basis = |spec: &LinearSpec| {
        let block = model.block(spec.id.block)?;
        let weight = block.linear(spec.id.role).and_then(|linear| linear.dense_weight()).expect("dense");
        let w = Mat::from_f32_rows(spec.out, spec.input, &weight.flatten_all()?.to_vec1::<f32>()?);
        of_basis(Basis::Weight).decompose(&w, None)
    };
    let units = vec![1.0; model.linears().len()];
    let plan = |worth: &[Vec<f64>]| {
        let item = |(spec, worth): (_, &Vec<f64>)| {
            let mut energy = worth.clone();
            energy.sort_by(|a, b| b.total_cmp(a));
            Item { energy: Some(energy), ..Item::from(spec) }
        };
        let items: Vec<Item> = model.linears().iter().zip(worth).map(item).collect();
        global(&items, Target::Keep(0.6), GlobalOptions::default())
    };
    let work = tempfile::tempdir().unwrap();
    let job = SpectralJob {
        distillation,
        method: by_name(method).unwrap().learned().unwrap(),
        settings: &settings,
        basis: &basis,
        units: &units,
        plan: &plan,
        even: &|| unreachable!("the pressure is given"),
        keep: 0.3,
        state: &work.path().join("state.safetensors"),
        options: SpectralOptions {
            steps: STEPS,
            rates: SpectralRates { control: lr, basis: 0.0, deviation: 0.0 },
            explore: 0.5,
            refine: 0.25,
            seconds: None,
        },
    };
    learn_spectra(&job, &()).unwrap()
}

#[test]
fn training_is_that_of_pytorch() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/learned.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for (method, lr, pressure) in [("soft", 0.15, 0.1), ("soco", 0.4, 0.5)] {
        let learned = train(method, lr, pressure, usize::MAX);
        let losses = golden[method]["kl"].as_array().unwrap();
        assert_eq!((learned.report.done, learned.report.curve.len()), (STEPS, STEPS + 1), "{method}");
        for (point, loss) in learned.report.curve[1..].iter().zip(losses) {
            let (found, expected) = (point.loss.unwrap(), loss.as_f64().unwrap());
            assert!(
                (found - expected).abs() < 2e-3 * expected + 1e-6,
                "{method} step {}: {found} {expected}",
                point.step
            );
        }
        let phases: Vec<Phase> = learned.report.curve[1..].iter().map(|point| point.phase).collect();
        let last = if method == "soco" { Phase::Sparsify } else { Phase::Explore };
        assert_eq!((phases[0], phases[STEPS - 1]), (Phase::Explore, last));
        // The result is the state of the best cut.
        let best = learned.report.best_step;
        assert!(best > 0, "{method}: nothing better than the start");
        let controls = &golden[method]["controls"][best - 1];
        for linear in &learned.linears {
            let expected = controls[linear.spec.id.to_string()].as_array().unwrap();
            for (found, expected) in linear.control.iter().zip(expected) {
                let expected = expected.as_f64().unwrap();
                assert!((found - expected).abs() < 0.02 * lr, "{method} {}: {found} {expected}", linear.spec.id);
            }
        }
    }
}

#[test]
fn a_model_that_does_not_fit_learns_the_same_bits() {
    for (method, lr, pressure) in [("soft", 0.15, 0.1), ("soco", 0.4, 0.5)] {
        let (kept, loaded) = (train(method, lr, pressure, usize::MAX), train(method, lr, pressure, 0));
        assert_eq!(kept.report, loaded.report);
        for (kept, loaded) in kept.linears.iter().zip(&loaded.linears) {
            assert_eq!((&kept.gates, &kept.control), (&loaded.gates, &loaded.control), "{method}");
        }
    }
}

#[test]
fn nothing_changes_before_the_first_step_and_what_is_dropped_has_no_gate() {
    let learned = train("soco", 0.4, 0.5, usize::MAX);
    let start = learned.report.curve[0];
    assert!(start.step == 0 && start.loss.is_none() && (start.ratio - 1.0).abs() < 1e-12);
    // Scores of 1 and no deviation: the loss of the first step is that of the original against itself.
    assert!(learned.report.curve[1].loss.unwrap().abs() < 1e-6);
    assert!(learned.plan.keep() <= 0.6 && learned.plan.keep() > 0.59);
    for linear in &learned.linears {
        let kept = linear.gates.iter().filter(|gate| **gate != 0.0).count();
        assert_eq!((linear.b.dim(1).unwrap(), linear.a.dim(0).unwrap()), (kept, kept), "{}", linear.spec.id);
        let (dropped, stayed): (Vec<_>, Vec<_>) =
            linear.worth.iter().zip(&linear.gates).partition(|(_, gate)| **gate == 0.0);
        let least = stayed.iter().map(|(worth, _)| **worth).fold(f64::INFINITY, f64::min);
        assert!(dropped.iter().all(|(worth, _)| **worth <= least), "{}", linear.spec.id);
    }
    let order: Vec<bool> = learned.linears[0].gates.iter().map(|gate| *gate != 0.0).collect();
    let by_score = learned.linears.iter().any(|linear| {
        let kept: Vec<usize> = (0..linear.gates.len()).filter(|&i| linear.gates[i] != 0.0).collect();
        kept.iter().enumerate().any(|(place, &i)| place != i)
    });
    assert!(by_score, "no linear kept anything but its first components: {order:?}");
}

fn options(method: &str, output: PathBuf) -> Options {
    Options {
        model: Some("demo".into()),
        method: Some(method.into()),
        keep: Some(0.5),
        output: Some(output),
        calib_windows: Some(24),
        window: Some(64),
        eval_window: Some(64),
        max_windows: Some(16),
        heal: Some(0),
        method_options: OptionValues::default().with("steps", 20).with("batch", 2),
        ..Options::default()
    }
}

fn run(options: Options, progress: &dyn Progress) -> anyhow::Result<Report> {
    pipeline::compress(&options.resolve()?, false, &HubOptions::default(), &Device::Cpu, progress)
}

fn weights(output: &Path) -> Vec<u8> {
    std::fs::read(output.join("model.safetensors")).expect("the output has weights")
}

/// Stops the run once, after this many steps of the stage called so.
struct StopAfter {
    stage: &'static str,
    now: AtomicBool,
    left: AtomicI64,
}

impl Progress for StopAfter {
    fn stage(&self, name: &str, _: u64) {
        self.now.store(name == self.stage, Ordering::Relaxed);
    }

    fn step(&self, steps: u64) -> anyhow::Result<()> {
        if self.now.load(Ordering::Relaxed) && self.left.fetch_sub(steps as i64, Ordering::Relaxed) <= steps as i64 {
            return Err(Interrupted.into());
        }
        Ok(())
    }

    fn note(&self, _: &str) {}
}

#[test]
fn a_run_interrupted_in_any_phase_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    for method in ["soft", "soco"] {
        let with = |output: PathBuf| Options { heal: Some(6), ..options(method, output) };
        let whole = folder.path().join(format!("{method}-whole"));
        let expected = run(with(whole.clone()), &()).unwrap();
        let stops = [
            ("decomposing", 2),
            ("learning", 1),
            ("learning", 7),
            ("learning", 14),
            ("learning", 16),
            ("folding", 2),
            ("healing", 4),
        ];
        for (stage, steps) in stops {
            let output = folder.path().join(format!("{method}-{stage}-{steps}"));
            let stop = StopAfter { stage, now: AtomicBool::new(false), left: AtomicI64::new(steps) };
            let error = run(with(output.clone()), &stop).expect_err("it was stopped");
            assert!(error.downcast_ref::<Interrupted>().is_some() && !output.exists(), "{error:#}");
            let report = run(with(output.clone()), &()).unwrap();
            assert_eq!((&report.learning, &report.healing), (&expected.learning, &expected.healing), "{stage} {steps}");
            assert!(weights(&output) == weights(&whole), "{method} stopped in {stage} after {steps} steps");
        }
    }
}

#[test]
fn learning_beats_not_learning_and_what_it_promises_is_what_is_stored() {
    let folder = tempfile::tempdir().unwrap();
    for method in ["soft", "soco"] {
        let name = |what: &str| folder.path().join(format!("{method}-{what}"));
        let with = |what: &str, steps: i64| {
            let mut options = options(method, name(what));
            options.dtype = Some(StoredType::F32);
            options.heal = Some(1);
            options.heal_batch = Some(1);
            options.method_options.set("steps", steps);
            options
        };
        let (short, long) = (run(with("short", 1), &()).unwrap(), run(with("long", 60), &()).unwrap());
        let kl = |report: &Report| report.learning.as_ref().unwrap().loss;
        let better = if method == "soft" { 0.9 } else { 0.98 };
        assert!(kl(&long) < better * kl(&short), "{method}: {} {}", kl(&long), kl(&short));
        // The factors that healing starts from are the ones that were judged.
        for report in [&short, &long] {
            let before = report.healing.as_ref().unwrap().loss_before;
            assert!((before / kl(report) - 1.0).abs() < 1e-4, "{method}: {before} {}", kl(report));
        }
        let sizes = long.sizes.linears;
        let reached = sizes.params_after as f64 / sizes.params_before as f64;
        assert_eq!(reached, long.allocation.keep_reached, "{method}: new biases are counted");
        assert!(reached <= 0.5 && reached > 0.498, "{method}: {reached}");
        let ranks: std::collections::BTreeSet<_> = long.linears.iter().map(|linear| linear.rank).collect();
        assert!(ranks.len() > 8, "{method}: ranks differ over layers and roles: {ranks:?}");
        for linear in &long.linears {
            let learned = linear.learned.as_ref().expect("the spectrum is reported");
            let kept = learned.gates.iter().filter(|gate| **gate != 0.0).count();
            assert_eq!(kept, linear.rank.unwrap_or(learned.gates.len()), "{method} {}", linear.id);
        }
        let table = softlm::report::table(&long, 80, false);
        assert!(table.contains("learning") && table.lines().all(|line| line.chars().count() <= 80), "{table}");
        assert!(softlm::report::card(&long).contains("- Learning ("));
        let json = serde_json::to_string(&long).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), long);
    }
}

#[test]
fn forced_ranks_are_possible_and_worse() {
    let folder = tempfile::tempdir().unwrap();
    let kl = |rule: Option<AllocationRule>| {
        let mut options = options("soft", folder.path().join(format!("{rule:?}")));
        options.allocation = rule;
        options.method_options.set("steps", 40);
        let report = run(options, &()).unwrap();
        report.evaluation[0].after.divergence.as_ref().unwrap().kl
    };
    let (learned, even) = (kl(None), kl(Some(AllocationRule::Even)));
    assert!(learned < even, "{learned} {even}");
}

#[test]
fn soco_cuts_with_scores_of_one_and_ends_better_than_it_cut() {
    let folder = tempfile::tempdir().unwrap();
    let with = |name: &str, refine: f64| {
        let mut options = options("soco", folder.path().join(name));
        let values = options.method_options.with("steps", 40).with("lr", 0.2);
        options.method_options = values.with("explore", 0.25).with("refine", refine);
        // Healing measures what is stored before it does anything.
        (options.heal, options.dtype) = (Some(1), Some(StoredType::F32));
        run(options, &()).unwrap()
    };
    // Without a last phase nothing is made of the survivors.
    let cut = with("cut", 0.75);
    for linear in &cut.linears {
        let learned = linear.learned.as_ref().expect("learned");
        assert!(learned.gates.iter().all(|gate| [0.0, 1.0].contains(gate)), "{}", linear.name);
    }
    let (learning, stored) = (cut.learning.unwrap(), cut.healing.unwrap().loss_before);
    assert!(learning.best_step > 0, "nothing better than the closed form was found");
    assert!((learning.loss / stored - 1.0).abs() < 1e-3, "{} {stored}", learning.loss);
    let learning = with("whole", 0.25).learning.unwrap();
    let (before, last): (Vec<_>, Vec<_>) = learning.curve.iter().partition(|point| point.phase != Phase::Sparsify);
    let least = |points: &[SpectralPoint]| points.iter().filter_map(|point| point.heldout_loss).fold(9.0, f64::min);
    assert!(least(&last) < 0.995 * least(&before), "{} {}", least(&last), least(&before));
    // Scores on their way down would make the cuts of the first phases worse and worse.
    let dearest = before.iter().filter_map(|point| point.heldout_loss).fold(0.0, f64::max);
    assert!(dearest < 1.5 * before[0].heldout_loss.unwrap(), "{dearest}");
}

#[test]
fn the_pressure_of_soco_is_what_the_budget_costs() {
    let folder = tempfile::tempdir().unwrap();
    let mut soco = options("soco", folder.path().join("soco"));
    soco.method_options = soco.method_options.with("steps", 1).with("deviation", false);
    let mut even = options("whiten", folder.path().join("even"));
    (even.allocation, even.heal, even.dtype) = (Some(AllocationRule::Even), Some(1), Some(StoredType::F32));
    even.method_options = OptionValues::default();
    let pressure = |options: &Options| run(options.clone(), &()).unwrap().learning.unwrap().curve[0].pressure;
    let (found, cost) = (pressure(&soco), run(even, &()).unwrap().healing.unwrap().loss_before);
    assert!((found / (3.0 * cost / 0.5) - 1.0).abs() < 1e-3, "{found} {cost}");
    soco.method_options.set("pressure", 7.5);
    soco.output = Some(folder.path().join("given"));
    assert_eq!(pressure(&soco), 7.5);
}

#[test]
fn a_training_that_explodes_gives_the_best_state_before() {
    let folder = tempfile::tempdir().unwrap();
    let mut wild = options("soft", folder.path().join("wild"));
    wild.method_options.set("basis_lr", 1e30);
    let report = run(wild, &()).unwrap();
    let learning = report.learning.unwrap();
    assert!(learning.stopped.is_some_and(|why| why.contains("loss was")));
    assert_eq!(learning.best_step, 0);
    assert!(report.evaluation[0].after.perplexity.ppl.is_finite());
}

#[test]
fn time_is_limited() {
    let folder = tempfile::tempdir().unwrap();
    let mut long = options("soco", folder.path().join("out"));
    long.method_options.set("steps", 1_000_000);
    long.learn.max_time = Some("3s".into());
    let report = run(long, &()).unwrap();
    let learning = report.learning.unwrap();
    assert!(learning.steps < 1_000_000 && learning.done >= 1, "{} of {}", learning.done, learning.steps);
    assert!(report.allocation.keep_reached <= 0.5);
}

#[test]
fn mistakes_are_refused_with_a_reason() {
    let refused = |change: &dyn Fn(&mut Options)| {
        let mut options = options("soco", PathBuf::from("out"));
        change(&mut options);
        format!("{:#}", options.resolve().expect_err("a mistake"))
    };
    let set = |key: &str, value: toml::Value| refused(&|o| drop(o.method_options.set(key, value.clone())));
    assert!(
        refused(&|o| o.method = Some("svd".into())).contains("is an option of soft and soco, but the method is svd")
    );
    assert!(set("steps", 0.into()).contains("steps = 0"));
    assert!(set("pace", "even".into()).contains("pace is an option of soft, but the method is soco"));
    let of_the_other = |o: &mut Options| {
        o.method = Some("soft".into());
        o.method_options.set("score_map", "exp");
    };
    assert!(refused(&of_the_other).contains("score_map is an option of soco, but the method is soft"));
    assert!(set("lr", (-1).into()).contains("lr = -1"));
    assert!(set("cut", 1.5.into()).contains("cut = 1.5"));
    assert!(set("explore", 0.9.into()).contains("explore = 0.9 and refine = 0.25"));
    assert!(refused(&|o| o.learn.max_time = Some("soon".into())).contains("--max-time soon"));
    assert!(
        refused(&|o| (o.method_options, o.window) = (OptionValues::default().with("tokens", 5000), None))
            .contains("tokens = 5000 needs --window")
    );
    assert!(refused(&|o| o.allocation = Some(AllocationRule::Global)).contains("learns where the budget goes"));
    let learned = &|o: &mut Options| {
        (o.method, o.allocation) = (Some("rom".into()), Some(AllocationRule::Learned));
        o.method_options = OptionValues::default();
    };
    assert!(refused(learned).contains("--allocation learned"));
    let idle = &|o: &mut Options| {
        o.method = Some("rom".into());
        o.method_options = OptionValues::default();
        o.learn.max_time = Some("5m".into());
    };
    assert!(refused(idle).contains("nothing is trained"));
}

/// The way of a threshold to the budget is as long for few steps as for many.
#[test]
fn a_short_run_of_soft_gets_to_its_budget() {
    let folder = tempfile::tempdir().unwrap();
    let with = |steps: i64, lr: Option<f64>| {
        let mut options = options("soft", folder.path().join("out"));
        options.method_options.set("steps", steps);
        lr.map(|lr| options.method_options.set("lr", lr));
        options
    };
    let rate = |steps, lr| with(steps, lr).resolve().unwrap().learn.unwrap().lr;
    assert!(rate(40, None) > rate(300, None) && rate(300, None) == rate(1000, None) && rate(40, Some(0.2)) == 0.2);
    let report = run(with(24, None), &()).unwrap().learning.unwrap();
    let least = report.curve.iter().map(|point| point.ratio).fold(1.0, f64::min);
    assert!(least < 0.6, "it was asked for 0.5: {:?}", report.curve);
}

#[test]
fn tokens_become_steps() {
    let mut options = options("soft", PathBuf::from("out"));
    options.heal = None;
    options.method_options = OptionValues::default().with("tokens", 64_000).with("batch", 5);
    let recipe = options.resolve().unwrap();
    assert_eq!((recipe.learn.as_ref().unwrap().steps, recipe.heal, recipe.heal_batch), (200, 200, 5));
    let again = recipe.written.clone().resolve().unwrap();
    assert_eq!(recipe, again);
}

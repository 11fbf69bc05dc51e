//! Healing through the whole pipeline: it helps, its result depends on nothing but the recipe, it can be stopped anywhere,
//! and a training that goes wrong costs nothing.

use candle_core::{DType, Device, Tensor};
use softlm::backward::Objective;
use softlm::checkpoint::Source;
use softlm::hub::HubOptions;
use softlm::learn::{Aim, Dataset, Distillation, HealJob, HealOptions, Healed, heal};
use softlm::model::{Block, Linear, LinearSpec, Model, Role};
use softlm::pipeline;
use softlm::progress::{Interrupted, Progress};
use softlm::recipe::Options;
use softlm::report::Report;
use softlm::text::{Sampling, cut, split_heldout};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

fn options(output: &Path) -> Options {
    Options {
        model: Some("demo".into()),
        method: Some("rom".into()),
        keep: Some(0.5),
        allocation: Some(softlm::plan::AllocationRule::Even),
        output: Some(output.to_path_buf()),
        calib_windows: Some(24),
        window: Some(64),
        eval_window: Some(64),
        max_windows: Some(16),
        ..Options::default()
    }
}

fn healed(output: &Path, steps: usize, lr: f64) -> Options {
    Options { heal: Some(steps), heal_lr: Some(lr), heal_batch: Some(4), ..options(output) }
}

fn run(options: Options, progress: &dyn Progress) -> anyhow::Result<Report> {
    let recipe = options.resolve()?;
    pipeline::compress(&recipe, false, &HubOptions::default(), &Device::Cpu, progress)
}

fn weights(output: &Path) -> Vec<u8> {
    std::fs::read(output.join("model.safetensors")).expect("the output has weights")
}

/// Stops the run once, after this many steps of healing.
struct StopAfter {
    healing: AtomicBool,
    left: AtomicI64,
}

impl StopAfter {
    fn steps(steps: i64) -> Self {
        Self { healing: AtomicBool::new(false), left: AtomicI64::new(steps) }
    }
}

impl Progress for StopAfter {
    fn stage(&self, name: &str, _: u64) {
        self.healing.store(name == "healing", Ordering::Relaxed);
    }

    fn step(&self, steps: u64) -> anyhow::Result<()> {
        let counts = self.healing.load(Ordering::Relaxed);
        if counts && self.left.fetch_sub(steps as i64, Ordering::Relaxed) <= steps as i64 {
            return Err(Interrupted.into());
        }
        Ok(())
    }

    fn note(&self, _: &str) {}
}

#[test]
fn healing_lowers_divergence_and_perplexity() {
    let folder = tempfile::tempdir().unwrap();
    let before = run(options(&folder.path().join("before")), &()).unwrap();
    let after = run(healed(&folder.path().join("after"), 40, 0.01), &()).unwrap();
    assert!(before.healing.is_none());
    let report = after.healing.as_ref().expect("healing is reported");
    assert!(report.loss_after < 0.9 * report.loss_before, "{report:?}");
    assert!(report.best_step > 0 && report.done <= 40 && report.tokens == report.done as u64 * 4 * 64);
    let best = report.curve.iter().find(|point| point.step == report.best_step).unwrap();
    assert_eq!(best.heldout_loss, Some(report.loss_after));
    let last = report.curve.last().unwrap().loss.unwrap();
    assert!(report.curve[1].loss.unwrap() > last, "{:?}", report.curve);
    let ppl = |report: &Report| report.evaluation[0].after.perplexity.ppl;
    let kl = |report: &Report| report.evaluation[0].after.divergence.as_ref().unwrap().kl;
    assert!(ppl(&after) < ppl(&before) && kl(&after) < kl(&before), "{} {}", ppl(&after), ppl(&before));
    assert_eq!(after.sizes, before.sizes);
    let table = softlm::report::table(&after, 100, false);
    assert!(table.contains("healing") && table.contains("held-out KL"), "{table}");
    assert!(softlm::report::card(&after).contains("- Healing ("));
    let json = serde_json::to_string(&after).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), after);
    let recipe = folder.path().join("after/softlm.toml");
    assert_eq!(Options::default().or_file(&recipe).unwrap().resolve().unwrap().heal, 40);
}

/// Where no rate is given several are tried, and a run that is stopped among them or behind them ends with the same bits.
#[test]
fn the_rate_is_found_by_trial() {
    let folder = tempfile::tempdir().unwrap();
    let of = |name: &str| Options { heal_lr: None, ..healed(&folder.path().join(name), 20, 0.0) };
    let report = run(of("found"), &()).unwrap().healing.unwrap();
    let tried: Vec<f64> = report.rates_tried.iter().map(|trial| trial.lr).collect();
    assert!((2..=9).contains(&tried.len()) && tried[0] == 0.005 && tried[1] == 0.01, "{tried:?}");
    let best = report.rates_tried.iter().min_by(|a, b| a.heldout_loss.total_cmp(&b.heldout_loss)).unwrap();
    assert_eq!(report.lr, best.lr);
    assert!(best.heldout_loss < report.loss_before && report.loss_after < best.heldout_loss, "{report:?}");
    // A rate far from it is worse.
    let far = if best.lr > 0.01 { best.lr / 30.0 } else { best.lr * 30.0 };
    let given = run(healed(&folder.path().join("given"), 20, far), &()).unwrap().healing.unwrap();
    assert!(given.rates_tried.is_empty() && given.loss_after > report.loss_after, "{given:?}");

    for stop in [0, 3] {
        let output = format!("stopped-{stop}");
        run(of(&output), &StopAfter::steps(stop)).expect_err("it was stopped");
        assert_eq!(run(of(&output), &()).unwrap().healing.as_ref(), Some(&report), "stopped after {stop} steps");
        assert!(weights(&folder.path().join(&output)) == weights(&folder.path().join("found")));
    }
}

/// Training has more text, or another one; what the linears are cut by stays that of calibration.
#[test]
fn training_has_text_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other.txt");
    std::fs::write(&other, include_str!("../../src/text/sample.txt").split_at(6_000).1).unwrap();
    let other = other.display().to_string();
    let of = |name: &str, text: Option<&String>, windows: Option<usize>| {
        let mut options = healed(&folder.path().join(name), 6, 0.01);
        options.learn.train_text = text.map(|text| vec![text.clone()]);
        options.learn.train_windows = windows;
        run(options, &()).unwrap()
    };
    let (plain, more) = (of("plain", None, None), of("more", None, Some(60)));
    let another = of("another", Some(&other), None);
    assert!(plain.training_text.is_none());
    let errors = |report: &Report| report.linears.iter().map(|linear| linear.energy_kept).collect::<Vec<_>>();
    assert_eq!(errors(&plain), errors(&more));
    let (info, own) = (more.training_text.unwrap(), plain.calibration.unwrap());
    assert_eq!((info.windows, info.window, &info.corpora), (60, 64, &own.corpora));
    assert!(info.heldout_windows > 8);
    assert_eq!(info.heldout_windows * info.window, more.healing.as_ref().unwrap().heldout_tokens);
    let of_another = another.training_text.unwrap();
    assert_eq!((of_another.windows, &of_another.corpora[0].origin), (24, &other));

    let card = std::fs::read_to_string(folder.path().join("another/README.md")).unwrap();
    assert!(card.contains("- Trained on: other") && card.contains("then trained on other"), "{card}");
    let bytes = ["plain", "more", "another"].map(|name| weights(&folder.path().join(name)));
    assert!(bytes[0] != bytes[1] && bytes[1] != bytes[2] && bytes[0] != bytes[2]);
}

#[test]
fn text_to_train_on_is_refused_where_nothing_reads_it() {
    let refused = |options: Options, what: &str| {
        let error = options.resolve().unwrap_err().to_string();
        assert!(error.contains("--train-windows") && error.contains(what), "{error}");
    };
    let with = |windows, options: Options| {
        let learn = softlm::recipe::LearnOptions { train_windows: Some(windows), ..options.learn };
        Options { learn, ..options }
    };
    let out = Path::new("out");
    refused(with(8, options(out)), "nothing is trained");
    refused(with(0, healed(out, 4, 0.01)), "0");
    refused(with(8, Options { task: Some("sst2".into()), ..healed(out, 4, 0.01) }), "--task");
}

#[test]
fn an_interrupted_healing_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let steps = 24;
    let expected = run(healed(&whole, steps, 0.01), &()).unwrap().healing.unwrap();
    // Looks and saves are two steps apart: before the first, between two, and after the last step.
    for stop in [1, 7, expected.done as i64] {
        let output = folder.path().join(format!("stopped-{stop}"));
        let error = run(healed(&output, steps, 0.01), &StopAfter::steps(stop)).expect_err("it was stopped");
        assert!(error.downcast_ref::<Interrupted>().is_some(), "{error:#}");
        assert!(!output.exists());
        let report = run(healed(&output, steps, 0.01), &()).unwrap();
        assert!(report.cost.resumed);
        assert_eq!(report.healing.as_ref(), Some(&expected), "stopped after {stop} steps");
        assert!(weights(&output) == weights(&whole), "stopped after {stop} steps");
    }
}

/// At a rate that no model bears training goes back to the best state, at half the rate, and in the end gives up; what a
/// kill interrupts in between ends with the same bytes.
#[test]
fn training_that_gets_worse_goes_back_and_slows_down() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, steps) = (folder.path().join("whole"), 60);
    let report = run(healed(&whole, steps, 2.0), &()).unwrap();
    let expected = report.healing.clone().unwrap();
    assert!(expected.loss_after < expected.loss_before, "{expected:?}");
    let worst = expected.curve.iter().filter_map(|point| point.heldout_loss).fold(0.0, f64::max);
    assert!(worst > 2.0 * expected.loss_before, "the rate is not too high: {expected:?}");
    // A look every three steps; the first better state or return comes after five of them.
    assert!(!expected.slowed.is_empty() && expected.slowed.iter().all(|step| step % 3 == 0), "{expected:?}");
    let first = expected.slowed[0];
    let after = |step| expected.curve.iter().find(|point| point.step == step).unwrap().heldout_loss.unwrap();
    let last = *expected.slowed.last().unwrap();
    assert!(after(last + 3) < after(last), "what it went back to was better: {expected:?}");
    let table = softlm::report::table(&report, 400, false);
    assert!(table.contains(&format!("rate halved after step {first}")), "{table}");
    let output = folder.path().join("stopped");
    run(healed(&output, steps, 2.0), &StopAfter::steps(first as i64 + 4)).expect_err("it was stopped");
    assert_eq!(run(healed(&output, steps, 2.0), &()).unwrap().healing, Some(expected));
    assert!(weights(&output) == weights(&whole));
}

/// With the whole weight on the likelihood of the text the original has no say; in between both have.
#[test]
fn the_text_itself_can_have_a_share() {
    let folder = tempfile::tempdir().unwrap();
    let with = |share: f64, temperature: f64| {
        let mut options = healed(&folder.path().join(format!("{share} {temperature}")), 24, 0.01);
        options.learn.likelihood = Some(share);
        options.learn.temperature = Some(temperature);
        let report = run(options, &()).unwrap();
        let recipe = folder.path().join(format!("{share} {temperature}/softlm.toml"));
        let objective = Options::default().or_file(&recipe).unwrap().resolve().unwrap().objective;
        assert_eq!(
            (objective.likelihood, objective.divergence, objective.temperature),
            (share, 1.0 - share, temperature)
        );
        report.healing.unwrap()
    };
    let [kl, half, nll] = [0.0, 0.5, 1.0].map(|share| with(share, 1.0));
    assert_eq!([&kl, &half, &nll].map(|report| report.aim), [Aim::Kl, Aim::KlAndLikelihood, Aim::Likelihood]);
    // The same text and the same model before the first step.
    let mean = (kl.loss_before + nll.loss_before) / 2.0;
    assert!((half.loss_before - mean).abs() < 1e-6 * mean, "{} {mean}", half.loss_before);
    assert!([&kl, &half, &nll].iter().all(|report| report.loss_after < report.loss_before));
    // Judged as they are, learned softened.
    let soft = with(0.0, 3.0);
    assert_eq!(soft.loss_before, kl.loss_before);
    assert!(soft.loss_after < soft.loss_before && soft.curve[1].loss != kl.curve[1].loss, "{soft:?}");
}

#[test]
fn a_training_that_explodes_leaves_the_result_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (plain, wild) = (folder.path().join("plain"), folder.path().join("wild"));
    run(options(&plain), &()).unwrap();
    let report = run(healed(&wild, 8, 1e30), &()).unwrap().healing.unwrap();
    assert_eq!((report.best_step, report.loss_after), (0, report.loss_before));
    assert!(report.stopped.as_ref().is_some_and(|why| why.contains("loss was")), "{report:?}");
    assert!(weights(&plain) == weights(&wild));
}

/// Heals a generated model on made-up text after `install`, keeping blocks and the original's states in `memory`.
fn heal_tiny(name: &str, install: &dyn Fn(&LinearSpec) -> anyhow::Result<Option<Linear>>, memory: usize) -> Healed {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(name);
    let model = Model::load(Source::open(&folder).unwrap(), &Device::Cpu).unwrap();
    let install = |index: usize, block: &mut Block| {
        for spec in model.block_linears(index) {
            if let Some(linear) = install(spec)? {
                block.swap_linear(spec.id.role, linear)?;
            }
        }
        Ok(())
    };
    let tokens: Vec<u32> = (0..240u32).map(|i| (7 + 31 * i + 5 * (i / 7)) % 96).collect();
    let windows = cut(&tokens, 12, 12, None).unwrap();
    let (train, heldout) = split_heldout(&windows, 16, 4, Sampling::First);
    let work = tempfile::tempdir().unwrap();
    let job = HealJob {
        distillation: Distillation {
            model: &model,
            dataset: Dataset::Text { train: &train, heldout: &heldout },
            objective: Objective::DISTIL,
            batch: 5,
            seed: 1,
            block_memory: memory,
            teacher_memory: memory,
        },
        install: &install,
        stored: &|_, _| Ok(DType::F32),
        state: &work.path().join("state.safetensors"),
        options: HealOptions { steps: 30, lr: 0.02, find_rate: false, seconds: None },
    };
    heal(&job, &()).unwrap()
}

#[test]
fn a_model_that_does_not_fit_heals_to_the_same_bits() {
    let install = |spec: &LinearSpec| {
        if spec.id.block != 1 || spec.id.role != Role::O {
            return Ok(None);
        }
        let factor = |rows: usize, cols: usize| {
            let values = (0..rows * cols).map(|i| (0.3 * (1.0 + i as f64).sin()) as f32).collect::<Vec<_>>();
            Tensor::from_vec(values, (rows, cols), &Device::Cpu)
        };
        let bias = spec.bias.then(|| Tensor::zeros(spec.out, DType::F32, &Device::Cpu)).transpose()?;
        Ok(Some(Linear::LowRank { a: factor(4, spec.input)?, b: factor(spec.out, 4)?, bias }))
    };
    // What is kept must change nothing either where a token's experts see how many others there are.
    for name in ["llama-tiny-bias", "mixtral-tiny"] {
        let (kept, loaded) = (heal_tiny(name, &install, usize::MAX), heal_tiny(name, &install, 0));
        assert!(kept.report.loss_after < kept.report.loss_before && kept.report == loaded.report, "{:?}", kept.report);
        let bits = |healed: &Healed| -> Vec<Vec<f32>> {
            let tensors = healed.matrices.values().flatten().map(|(_, tensor)| tensor);
            tensors.map(|t| t.flatten_all().unwrap().to_vec1().unwrap()).collect()
        };
        assert_eq!(kept.matrices.keys().collect::<Vec<_>>(), [&(1, Role::O)]);
        assert_eq!(bits(&kept), bits(&loaded), "{name}");
    }
}

#[test]
fn nothing_to_train_is_said() {
    let healed = heal_tiny("llama-tiny-bias", &|_| Ok(None), usize::MAX);
    assert!(healed.matrices.is_empty() && healed.report.done == 0);
    assert!(healed.report.stopped.is_some_and(|why| why.contains("nothing to train")));
    assert!(healed.report.loss_before.abs() < 1e-6, "the dense model against itself");
}

#[test]
fn bytes_depend_on_neither_threads_nor_kills() {
    let folder = tempfile::tempdir().unwrap();
    let command = |threads: &str, output: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_softlm"));
        command.args(["compress", "demo", "--method", "whiten", "--keep", "0.6", "--allocation", "even"]);
        command.args(["--window", "64", "--calib-windows", "16", "--heal", "4", "--heal-batch", "5", "--ppl", "none"]);
        command.args(["-q", "--threads", threads, "-o"]).arg(output);
        command
    };
    let run = |threads: &str, name: &str| -> Vec<u8> {
        let output = folder.path().join(name);
        let done = command(threads, &output).output().expect("softlm runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        weights(&output)
    };
    let one = run("1", "one");
    assert!(one == run("2", "two"), "two threads");
    assert!(one == run("3", "three"), "three threads");
    let mut child = command("2", &folder.path().join("killed")).spawn().expect("softlm runs");
    let state = folder.path().join("killed.softlm-work/healing.safetensors");
    while !state.exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(one == run("2", "killed"), "killed after the first step");
}

#[test]
fn mistakes_are_refused_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let with = |change: &dyn Fn(&mut Options)| {
        let mut options = healed(&folder.path().join("out"), 5, 0.01);
        change(&mut options);
        run(options, &()).expect_err("a mistake").to_string()
    };
    assert!(with(&|o| o.heal = None).contains("--heal STEPS"));
    assert!(with(&|o| o.heal_lr = Some(f64::NAN)).contains("--heal-lr"));
    assert!(with(&|o| o.heal_lr = Some(-1.0)).contains("--heal-lr -1"));
    assert!(with(&|o| o.heal_batch = Some(0)).contains("--heal-batch is 0"));
    for (share, temperature, expected) in [
        (Some(1.5), None, "--likelihood 1.5 is out of range"),
        (Some(f64::NAN), None, "--likelihood NaN is out of range"),
        (None, Some(0.0), "--temperature 0 is not a positive number"),
        (None, Some(f64::INFINITY), "--temperature inf is not a positive number"),
    ] {
        let error = with(&|o| (o.learn.likelihood, o.learn.temperature) = (share, temperature));
        assert!(error.contains(expected), "{error}");
    }
    let idle = with(&|o| (o.heal, o.heal_lr, o.heal_batch, o.learn.temperature) = (None, None, None, Some(2.0)));
    assert!(idle.contains("--temperature 2") && idle.contains("nothing is trained"), "{idle}");
    let labelled = with(&|o| (o.task, o.learn.likelihood) = (Some("sst2".into()), Some(0.5)));
    assert!(labelled.contains("--likelihood 0.5") && labelled.contains("labels"), "{labelled}");
    let short = folder.path().join("short.txt");
    std::fs::write(&short, "One line of text, which is not long enough for two windows of thirty tokens.").unwrap();
    let error = with(&|o| {
        o.calib = Some(vec![short.display().to_string()]);
        o.window = Some(16);
    });
    assert!(error.contains("held-out text"), "{error}");
}

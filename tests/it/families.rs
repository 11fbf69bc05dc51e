//! Every method on every family: each generated model under `tests/golden/models` and `encoders`, compressed through the pipeline.
//! A family is here as soon as its model is.

use candle_core::{Device, Tensor};
use serde_json::{Map, Value, json};
use softlm::calibrate::{Origin, StatsStore, collect};
use softlm::checkpoint::{FORMAT, GUARD, MODEL_TYPE, Section, Source, base_config, family_config};
use softlm::export::StoredLinear;
use softlm::forward::States;
use softlm::machine::StageClock;
use softlm::method::{METHODS, OptionValues, by_name};
use softlm::model::{Block, FfnPart, Flow, Linear, Model, Output, Role, Site, Tap, verify};
use softlm::ops::MatmulPrecision;
use softlm::pipeline::{Calibration, EvalText, compress_windows};
use softlm::plan::largest_saving_rank;
use softlm::recipe::Options;
use softlm::report::{CorpusInfo, Report};
use softlm::text::{Sampling, Windows, cut, split_heldout};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const KEEP: f64 = 0.6;
const WINDOW: usize = 24;

pub fn folders() -> Vec<PathBuf> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let read = |kind: &str| std::fs::read_dir(golden.join(kind)).expect("generated models");
    let mut folders: Vec<_> =
        read("models").chain(read("encoders")).map(|folder| folder.expect("a folder").path()).collect();
    folders.sort();
    folders
}

pub fn open(folder: &Path) -> Model {
    let source = Source::open(folder).unwrap_or_else(|e| panic!("{}: {e:#}", folder.display()));
    Model::load(source, &Device::Cpu).unwrap_or_else(|e| panic!("{}: {e:#}", folder.display()))
}

pub fn corpus() -> CorpusInfo {
    CorpusInfo { name: "made up".into(), origin: "a formula".into(), sha256: "0".into() }
}

/// Windows of made-up text: calibration, held out, evaluation.
pub fn windows(model: &Model) -> (Windows, Windows, Windows) {
    let ids: Vec<u32> =
        (0..40 * WINDOW).map(|i| ((7 + 31 * i + 5 * (i / 7) + i * i / 11) % model.vocab()) as u32).collect();
    let all = cut(&ids, WINDOW, WINDOW, None).expect("windows");
    let (calibration, heldout) = split_heldout(&all, 32, 3, Sampling::First);
    let evaluation = cut(&ids[36 * WINDOW..], WINDOW, WINDOW, None).expect("windows");
    (calibration, heldout, evaluation)
}

pub fn compress(folder: &Path, method: &str, output: &Path) -> Report {
    compress_so(folder, method, output, None)
}

/// `deviation` is that of a method that trains biases.
pub fn compress_so(folder: &Path, method: &str, output: &Path, deviation: Option<bool>) -> Report {
    let options = Options {
        model: Some(folder.display().to_string()),
        method: Some(method.into()),
        keep: Some(KEEP),
        output: Some(output.to_path_buf()),
        calib_windows: Some(32),
        window: Some(WINDOW),
        heal: Some(0),
        method_options: if by_name(method).is_ok_and(|method| method.learned().is_some()) {
            let values = OptionValues::default().with("steps", 4).with("batch", 1);
            deviation.map_or(values.clone(), |deviation| values.with("deviation", deviation))
        } else {
            OptionValues::default()
        },
        ..Options::default()
    };
    let recipe = options.resolve().expect("a recipe");
    let model = open(folder);
    let (windows, heldout, evaluation) = windows(&model);
    let calibration = Calibration::new(windows, heldout, vec![corpus()], Sampling::First);
    let mask = (model.output() == Output::MaskedToken).then_some(4);
    let evaluation = [EvalText { mask, ..EvalText::new(corpus(), evaluation) }];
    compress_windows(&recipe, false, model, calibration, &evaluation, StageClock::start(&()), &())
        .unwrap_or_else(|e| panic!("{method} on {}: {e:#}", folder.display()))
}

/// Whether a method is for such a model; a method that learns is refused where there are no predictions to learn from.
pub fn applies(method: &str, folder: &Path) -> bool {
    let learns = by_name(method).expect("a method").learned().is_some();
    !learns || !matches!(open(folder).output(), Output::Classes(_) | Output::States)
}

#[test]
fn every_method_works_on_every_family() {
    let place = tempfile::tempdir().expect("a scratch folder");
    for folder in folders() {
        for method in METHODS.iter().map(|method| method.card().name) {
            let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
            let case = format!("{method} on {name}");
            let output = place.path().join(&name).join(method);
            if !applies(method, &folder) {
                continue;
            }
            let report = compress(&folder, method, &output);
            let linears = report.sizes.linears;
            let reached = linears.params_after as f64 / linears.params_before as f64;
            assert!(reached <= KEEP && reached > KEEP - 0.06, "{case}: {reached}");

            let base = Source::open(&folder).expect("a checkpoint");
            let whole = verify(&Source::open(&output).expect("an output"), Some(&base), None).expect("readable");
            assert!(whole.problems.is_empty(), "{case}: {:?}", whole.problems);
            let narrowed = method == "auto" && report.linears.iter().any(|linear| linear.pruned_shape.is_some());
            assert!(whole.factorised > 0 || narrowed, "{case}: nothing is factorised");

            let table = softlm::report::table(&report, 120, false);
            assert_eq!(
                table.contains("e.down"),
                report.linears.iter().any(|l| l.id.role.expert().is_some()),
                "{case}: {table}"
            );
            let compressed = open(&output);
            check_linears(&compressed, &report, &case);
            check_config(&base, &compressed, &case);
            check_quality(&compressed, &report, &case);
        }
    }
}

/// The result was measured beside the original, and is neither the same nor broken.
fn check_quality(compressed: &Model, report: &Report, case: &str) {
    if matches!(compressed.output(), Output::Classes(_) | Output::States) {
        let found = &report.fidelity[0];
        assert!(found.cosine > 0.1 && found.cosine < 1.0 && found.least <= found.cosine, "{case}: {found:?}");
        assert!(report.evaluation.is_empty(), "{case}");
        return;
    }
    let (before, after) = (&report.evaluation[0].before.perplexity, &report.evaluation[0].after.perplexity);
    assert!(after.nll.is_finite() && after.nll != before.nll, "{case}: {} {}", before.nll, after.nll);
    assert_eq!(after.masked, compressed.is_encoder(), "{case}");
    let kl = report.evaluation[0].after.divergence.as_ref().expect("a divergence").kl;
    assert!(kl > 0.0 && kl.is_finite(), "{case}: {kl}");
}

#[test]
fn experts_with_few_tokens_are_calibrated_with_all() {
    let model = open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/qwen2-moe-tiny"));
    let sites = model.block_sites(0);
    let block = model.block(0).expect("a block");
    let nothing = States::embed::<&[u32]>(&model, &[]).expect("nothing");
    // 40 tokens: enough for every token's channels (24), and for no expert's share of a third.
    let few: Vec<u32> = (0..40u32).map(|i| (7 + 31 * i) % 96).collect();
    let states = States::embed(&model, &[few]).expect("embedded");
    let stats = collect(&block, &states, &nothing, &sites).expect("statistics");
    let every = &stats[&Site::MlpIn];
    assert_eq!(every.tokens, 40);
    let mut starved = 0;
    for expert in 0..6 {
        let (entering, inner) = (&stats[&Site::ExpertIn(expert)], &stats[&Site::ExpertOut(expert)]);
        assert!(entering.tokens >= 24 && inner.tokens >= 16, "{expert}: {} {}", entering.tokens, inner.tokens);
        if entering.tokens == 40 {
            // What enters an expert that sees every token is what enters the shared one.
            assert_eq!(entering.gram, every.gram, "{expert}");
            starved += 1;
        }
        if inner.tokens == 40 {
            // act(Gate x) ∘ Up x of every token, by hand.
            let x = rows_at(&block, &states, Site::MlpIn);
            let role = |part| {
                block
                    .linear(Role::Expert(expert, part))
                    .expect("an expert")
                    .forward(&x, MatmulPrecision::Highest)
                    .expect("rows")
            };
            let (gate, up) = (role(FfnPart::Gate), role(FfnPart::Up));
            let wanted: Vec<f32> = (gate.silu().unwrap() * up).unwrap().sum(0).unwrap().to_vec1().expect("numbers");
            let close = |(sum, wanted): (&f64, &f32)| {
                (sum - f64::from(*wanted)).abs() < f64::from(1e-4 * wanted.abs().max(1.0))
            };
            assert!(inner.sum.iter().zip(&wanted).all(close), "{expert}: {:?} {wanted:?}", inner.sum);
        }
    }
    assert!(starved >= 3, "{starved} experts saw every token");
    // Two tokens leave some experts without any.
    let states = States::embed(&model, &[[7u32, 38]]).expect("embedded");
    let stats = collect(&block, &states, &nothing, &sites).expect("statistics");
    assert!((0..6).all(|expert| stats[&Site::ExpertIn(expert)].tokens == 2), "every expert sees both");
    // With enough text each sees what is routed to it: two experts per token.
    let many: Vec<Vec<u32>> =
        (0..8u32).map(|w| (0..96u32).map(|i| (7 + 31 * i + w * i * i + 5 * w) % 96).collect()).collect();
    let states = States::embed(&model, &many).expect("embedded");
    let stats = collect(&block, &states, &nothing, &sites).expect("statistics");
    let routed: u64 = (0..6).map(|expert| stats[&Site::ExpertIn(expert)].tokens).sum();
    assert_eq!(routed, 2 * 8 * 96);
    // They come back from disk.
    let place = tempfile::tempdir().expect("a scratch folder");
    let origin = Origin::new(model.source(), model.blocks(), "a formula".into(), 8 * 96, 0).expect("hashed");
    let store = StatsStore::fill(place.path(), origin.clone(), &()).expect("a folder");
    store.put(0, &stats).expect("written");
    store.check(&model, &origin).expect("of this model");
    let read = store.get(0).expect("read");
    assert_eq!(read.len(), sites.len());
    assert!(sites.iter().all(|site| read[site].gram == stats[site].gram && read[site].tokens == stats[site].tokens));
}

/// What enters `site`, one token per row.
fn rows_at(block: &Block, states: &States, site: Site) -> Tensor {
    struct At(Site, Vec<Tensor>);
    impl Tap for At {
        fn see(&mut self, site: Site, x: &Tensor) -> anyhow::Result<Flow> {
            if site == self.0 {
                let width = x.dims()[x.rank() - 1];
                self.1.push(x.reshape(((), width))?);
            }
            Ok(Flow::Continue)
        }
    }
    let mut at = At(site, Vec::new());
    states.show(block, &mut at).expect("a forward pass");
    Tensor::cat(&at.1, 0).expect("rows")
}

/// What was loaded again is what was reported, and every rank saves parameters.
fn check_linears(compressed: &Model, report: &Report, case: &str) {
    assert_eq!(compressed.linears().len(), report.linears.len(), "{case}");
    for index in 0..compressed.blocks() {
        let block = compressed.block(index).unwrap_or_else(|e| panic!("{case}: {e:#}"));
        for spec in compressed.block_linears(index) {
            let said = report.linears.iter().find(|linear| linear.id == spec.id).expect("reported");
            let [out, input] = said.pruned_shape.unwrap_or(said.shape);
            assert_eq!((spec.out, spec.input), (out, input), "{case}: {}", spec.id);
            let linear = block.linear(spec.id.role).expect("every linear is there");
            assert_eq!(linear.rank(), said.rank, "{case}: {}", spec.id);
            if let Linear::LowRank { a, b, .. } = linear {
                let rank = said.rank.expect("factorised");
                assert!((1..=largest_saving_rank(out, input)).contains(&rank), "{case}: {} has rank {rank}", spec.id);
                assert_eq!((a.dims(), b.dims()), (&[rank, input][..], &[out, rank][..]), "{case}: {}", spec.id);
            }
        }
    }
}

/// config.json does not claim to be the base's, gives the base's back, and describes every tensor that the base lacks.
fn check_config(base: &Source, compressed: &Model, case: &str) {
    let config = compressed.source().config();
    assert_eq!(config["model_type"], MODEL_TYPE, "{case}");
    assert_eq!((&config["problem_type"], &config["transformers_weights"]), (&json!(GUARD), &json!(GUARD)), "{case}");
    // A null says what a missing key says.
    let given = |config: &Map<String, Value>| -> Vec<(String, Value)> {
        config.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    assert_eq!(given(&base_config(config)), given(base.config()), "{case}");
    let described: BTreeMap<String, StoredLinear> =
        serde_json::from_value(config["softlm"]["linears"].clone()).unwrap_or_else(|e| panic!("{case}: {e}"));
    for spec in compressed.linears() {
        let shape = |part: &str| compressed.source().info(&format!("{}.{part}", spec.name)).map(|info| &info.shape[..]);
        let Some(entry) = described.get(&spec.name) else {
            assert!(shape("factor_a.weight").is_none(), "{case}: {} is not described", spec.name);
            assert!(spec.fused().is_none() || shape("weight").is_none(), "{case}: {} is not described", spec.name);
            continue;
        };
        assert_eq!(entry.bias, shape("bias").is_some(), "{case}: {}", spec.name);
        match entry.rank {
            Some(rank) => {
                assert_eq!(shape("factor_a.weight"), Some(&[rank, entry.input][..]), "{case}: {}", spec.name);
                assert_eq!(shape("factor_b.weight"), Some(&[entry.out, rank][..]), "{case}: {}", spec.name);
            }
            None if entry.transposed => assert_eq!(shape("weight"), Some(&[entry.input, entry.out][..]), "{case}"),
            None => assert_eq!(shape("weight"), Some(&[entry.out, entry.input][..]), "{case}: {}", spec.name),
        }
    }
    for matrix in described.values().filter_map(|entry| entry.part_of.as_deref()) {
        let parts = compressed.linears().iter().filter(|spec| spec.fused() == Some(matrix));
        let known = parts.filter(|spec| described.contains_key(&spec.name)).count();
        assert_eq!(
            known,
            described.values().filter(|entry| entry.part_of.as_deref() == Some(matrix)).count(),
            "{case}"
        );
        assert!(known > 1 && !compressed.source().is_stored(&format!("{matrix}.weight")), "{case}: {matrix}");
    }
}

#[test]
fn outputs_of_the_first_version_are_read_as_before() {
    let place = tempfile::tempdir().expect("a scratch folder");
    for name in ["gpt2-tiny", "llama-tiny-bias", "phi3-tiny"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(name);
        let output = place.path().join(name);
        compress(&folder, "lorap", &output);
        let logits = |model: &Model| {
            let mut x = model.embed(&[&[1, 5, 9, 7]]).expect("embedded");
            for index in 0..model.blocks() {
                let next = model.block(index).expect("a block").forward(&x, &mut ()).expect("a forward pass");
                x = next.expect("no tap stops it");
            }
            x.flatten_all().expect("numbers").to_vec1::<f32>().expect("numbers")
        };
        let now = logits(&open(&output));
        // What 0.1 wrote: the base's keys, and a section beside them.
        let config = Source::open(&output).expect("an output").config().clone();
        assert_eq!(Section::of(&config).expect("a section").format, FORMAT);
        let mut first = family_config(&config);
        first.insert("softlm".into(), json!({"format": 1, "version": "0.1.0", "base_model": name}));
        std::fs::write(output.join("config.json"), serde_json::to_vec(&first).expect("JSON")).expect("written");
        assert_eq!(logits(&open(&output)), now, "{name}");
    }
}

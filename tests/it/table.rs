//! The methods against each other on three trained models: perplexities equal those of the fp64 reference in
//! `tests/golden/table.json`, allocation across linears pays, and the inputs a method calibrates with matter.

use crate::data::data;
use serde_json::Value;
use softlm::hub::HubOptions;
use softlm::pipeline;
use softlm::recipe::{Options, StoredType};
use std::path::Path;

/// Name in the reference, model (`None` is built in), calibration text, evaluation text.
const MODELS: [(&str, Option<&str>, &str, &str); 3] = [
    ("demo", None, "text/mix/train.jsonl", "text/wikitext2-raw/test.txt"),
    (
        "tinystories-656k",
        Some("models/tinystories-656k"),
        "text/tinystories/niklas_tinystories.txt",
        "text/tinystories/tiny.utf8",
    ),
    (
        "stories260k",
        Some("models/stories260k"),
        "text/tinystories/niklas_tinystories.txt",
        "text/tinystories/tiny.utf8",
    ),
];

struct Bench {
    reference: Value,
    model: String,
    calib: String,
    eval: String,
    scratch: tempfile::TempDir,
}

impl Bench {
    fn new(index: usize) -> Option<Self> {
        let (name, folder, calib, eval) = MODELS[index];
        let path = |relative: &str| data(relative).map(|path| path.display().to_string());
        let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/table.json");
        let table: Value = serde_json::from_slice(&std::fs::read(table).expect("the reference")).expect("JSON");
        Some(Self {
            reference: table["models"][name].clone(),
            model: folder.map_or(Some("demo".to_string()), path)?,
            calib: path(calib)?,
            eval: path(eval)?,
            scratch: tempfile::tempdir().expect("a scratch folder"),
        })
    }

    /// Perplexity after and before compression. `set` fills in method, keep and what else is not the default.
    fn run(&self, set: impl Fn(&mut Options)) -> (f64, f64) {
        let mut options = Options {
            model: Some(self.model.clone()),
            output: Some(self.scratch.path().join("out")),
            calib: Some(vec![self.calib.clone()]),
            calib_windows: Some(64),
            window: Some(256),
            sampling: Some(softlm::recipe::SamplingRule::First),
            ppl: Some(vec![self.eval.clone()]),
            eval_window: Some(256),
            max_windows: Some(100),
            // The reference does not round its factors.
            dtype: Some(StoredType::F32),
            ..Options::default()
        };
        set(&mut options);
        let recipe = options.resolve().expect("a recipe");
        let hub = HubOptions::default();
        let report = pipeline::compress(&recipe, true, &hub, &candle_core::Device::Cpu, &()).expect("compressed");
        let pair = &report.evaluation[0];
        (pair.after.perplexity.ppl, pair.before.perplexity.ppl)
    }

    /// Every cell of the reference table and the sequential `rom`; and the default of `whiten`, which shares its budget
    /// out across linears, is better than uniform ranks in every one.
    fn check(&self) {
        for keep in [0.8, 0.6, 0.4] {
            let cell = |name: &str| self.reference["keep"][keep.to_string()][name].as_f64().expect("a cell");
            let runs = [("svd", "dense", "svd"), ("awsvd", "dense", "awsvd"), ("whiten", "dense", "whiten")];
            let sequential = [("rom", "sequential", "rom"), ("rom", "blocks", "rom-blocks")];
            for (method, inputs, name) in runs.into_iter().chain(sequential) {
                let (ppl, dense) = self.run(|options| {
                    options.method = Some(method.into());
                    options.keep = Some(keep);
                    options.allocation = Some(softlm::plan::AllocationRule::Uniform);
                    options.inputs = Some(clap::ValueEnum::from_str(inputs, true).expect("known inputs"));
                });
                let expected = self.reference["dense"].as_f64().expect("a number");
                assert!((dense / expected - 1.0).abs() < 1e-5, "dense {dense}, reference {expected}");
                let expected = cell(name);
                assert!((ppl / expected - 1.0).abs() < 1e-3, "{name} at {keep}: {ppl}, reference {expected}");
            }
            let (global, _) = self.run(|options| {
                options.method = Some("whiten".into());
                options.keep = Some(keep);
            });
            let uniform = cell("whiten");
            assert!(global < uniform, "whiten at {keep}: {global} by default, {uniform} with uniform ranks");
        }
    }
}

#[test]
fn demo_equals_the_reference() {
    Bench::new(0).inspect(Bench::check);
}

#[test]
fn tinystories_656k_equals_the_reference() {
    Bench::new(1).inspect(Bench::check);
}

#[test]
fn stories260k_equals_the_reference() {
    Bench::new(2).inspect(Bench::check);
}

//! Compression against an independent fp64 PyTorch implementation: `tests/golden/methods.json` and
//! `methods.safetensors`, whose README says what they hold.

use crate::data::data;
use candle_core::{DType, Device};
use safetensors::Dtype;
use serde_json::Value;
use softlm::calibrate::{SiteStats, collect};
use softlm::checkpoint::{Source, TensorFile};
use softlm::forward::States;
use softlm::linalg::Mat;
use softlm::machine::StageClock;
use softlm::method;
use softlm::model::{Linear, LinearId, LinearSpec, Model, Role};
use softlm::pipeline::{Calibration, EvalText, compress_windows};
use softlm::plan::AllocationRule;
use softlm::recipe::{Options, StoredType};
use softlm::report::{CorpusInfo, Form, LinearReport, Report};
use softlm::text::{self, Sampling, Windows};
use std::path::Path;
use tempfile::TempDir;

/// Of W' z after f32 forward passes and with f32 factors, relative to the norm of W' z.
const PROBE: f64 = 5e-5;
/// Of the negative log-likelihood per target.
const NLL: f64 = 3e-6;
/// Of relative output errors and of energies, relative to themselves or to what they are shares of.
const ENERGY: f64 = 1e-5;
const WINDOW: usize = 256;

struct Golden {
    json: Value,
    tensors: TensorFile,
}

impl Golden {
    fn open() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let json = std::fs::read(folder.join("methods.json")).expect("the reference");
        Self {
            json: serde_json::from_slice(&json).expect("JSON"),
            tensors: TensorFile::open(&folder.join("methods.safetensors")).expect("the reference"),
        }
    }

    /// The f64 vector `key`, if the reference has it.
    fn find(&self, key: &str) -> Option<Vec<f64>> {
        assert_eq!(self.tensors.info(key)?.dtype, Dtype::F64, "{key}");
        let bytes = self.tensors.bytes(key).expect("listed");
        Some(bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect())
    }

    fn vector(&self, key: &str) -> Vec<f64> {
        self.find(key).unwrap_or_else(|| panic!("the reference has no {key}"))
    }

    fn windows(&self, key: &str) -> Windows {
        let bytes = self.tensors.bytes(key).expect("windows");
        let ids: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        let windows = text::cut(&ids, WINDOW, WINDOW, None).expect("windows");
        assert_eq!(windows.len(), 16, "{key}");
        windows
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// ‖a − b‖ / ‖b‖
fn off(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    norm(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>()) / norm(b)
}

fn relative(a: f64, b: f64) -> f64 {
    (a - b).abs() / b.abs()
}

/// z_j = cos(first + j)
fn wave(first: f64, n: usize) -> Vec<f64> {
    (0..n).map(|j| (first + j as f64).cos()).collect()
}

fn column(values: &[f64]) -> Mat {
    Mat::from_rows(values.len(), 1, values)
}

fn dense_weight(model: &Model, spec: &LinearSpec) -> Mat {
    let block = model.block(spec.id.block).expect("a block");
    let weight = block.linear(spec.id.role).and_then(Linear::dense_weight).expect("dense").clone();
    Mat::from_f32_rows(spec.out, spec.input, &weight.flatten_all().and_then(|w| w.to_vec1()).expect("numbers"))
}

/// Σ (D G)_ij D_ij
fn output_error(d: &Mat, gram: &Mat) -> f64 {
    let dg = d.matmul(gram);
    (0..d.cols()).flat_map(|j| dg.col(j).iter().zip(d.col(j))).map(|(a, b)| a * b).sum()
}

#[test]
fn decompositions_of_a_stated_gram_matrix() {
    let golden = Golden::open();
    let model = Model::load(Source::demo(), &Device::Cpu).expect("built in");
    for (name, unit) in golden.json["unit"].as_object().expect("linears") {
        let id: LinearId = name.parse().expect("a linear");
        let spec = model.linears().iter().find(|spec| spec.id == id).expect("a linear of the model");
        assert_eq!(unit["shape"], serde_json::json!([spec.out, spec.input]));
        let x = Mat::from_fn(500, spec.input, |t, j| {
            let (t, offset) = (t as f64, if j % 7 == 0 { 0.5 } else { 0.0 });
            let j = j as f64;
            (1.0 + 0.7 * t * t + 1.3 * j + 0.37 * t * j).sin() / (1.0 + j / 8.0) + offset
        });
        let gram = x.tn_matmul(&x);
        let n = spec.input;
        let trace: f64 = (0..n).map(|j| gram.get(j, j)).sum();
        assert!(relative(trace, number(&unit["gram_trace"])) < 1e-10, "{name}: another Gram matrix");
        assert!(relative(gram.get(n - 1, n - 1), number(&unit["gram_last"])) < 1e-10, "{name}: another Gram matrix");
        let w = dense_weight(&model, spec);
        let total = output_error(&w, &gram);
        let stats = SiteStats { tokens: 500, sum: vec![0.0; n], gram, heldout: Vec::new() };
        let rank = unit["rank"].as_u64().expect("a rank") as usize;
        assert_eq!(softlm::plan::paper_rank(0.5, spec.out, spec.input), rank);
        // Two methods are another one's algebra with other inputs or allocation.
        for (method, like) in
            [("svd", "svd"), ("awsvd", "awsvd"), ("lorap", "awsvd"), ("whiten", "whiten"), ("rom", "whiten")]
        {
            let case = format!("{method} of {name}");
            let parts = method::by_name(method).and_then(|m| m.decompose(&w, Some(&stats))).expect("a decomposition");
            let cut = parts.b.col_range(0..rank).matmul(&parts.a.row_range(0..rank));
            let probe = off(cut.matmul(&column(&wave(1.0, n))).col(0), &golden.vector(&format!("unit/{like}/{name}")));
            assert!(probe < 1e-7, "{case}: W' z is off by {probe:.1e}");
            let expected = golden.vector(&format!("unit/{like}/{name}.energy"));
            assert_eq!(parts.energy.len(), expected.len(), "{case}");
            let energy = off(&parts.energy, &expected);
            assert!(energy < 1e-9, "{case}: energies are off by {energy:.1e}");
            let error = number(&unit["methods"][like]["error"]);
            let measured = relative(output_error(&w.sub(&cut), &stats.gram) / total, error);
            assert!(measured < 1e-7, "{case}: the output error is off by {measured:.1e}");
            println!("{case}: W' z {probe:.1e}, energies {energy:.1e}, output error {measured:.1e}");
        }
    }
}

/// One compression with the reference's ids, through everything `compress` does after reading text.
struct Run<'a> {
    golden: &'a Golden,
    name: &'a str,
    method: &'a str,
    keep: &'a str,
    dense: Model,
    output: Model,
    report: Report,
    _scratch: TempDir,
}

impl<'a> Run<'a> {
    fn new(golden: &'a Golden, name: &'a str, folder: Option<&Path>, method: &'a str, keep: &'a str) -> Self {
        let open = || Model::load(folder.map_or_else(|| Ok(Source::demo()), Source::open)?, &Device::Cpu);
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let out = scratch.path().join("out");
        let options = Options {
            model: Some(name.to_string()),
            method: Some(method.to_string()),
            output: Some(out.clone()),
            keep: Some(keep.parse().expect("a number")),
            allocation: Some(AllocationRule::Uniform),
            dtype: Some(StoredType::F32),
            ..Options::default()
        };
        let corpus = |name: &str| CorpusInfo { name: name.into(), origin: "reference".into(), sha256: String::new() };
        let calibration = golden.windows(&format!("{name}/calibration"));
        // Held out is what was calibrated on: the reported error then is the reference's.
        let calibration =
            Calibration::new(calibration.clone(), calibration, vec![corpus("calibration")], Sampling::First);
        let texts = [EvalText::new(corpus("evaluation"), golden.windows(&format!("{name}/evaluation")))];
        let recipe = options.resolve().expect("a recipe");
        let model = open().expect(name);
        let report = compress_windows(&recipe, false, model, calibration, &texts, StageClock::start(&()), &())
            .unwrap_or_else(|error| panic!("{name} {method}@{keep}: {error:?}"));
        let output = Model::load(Source::open(&out).expect("an output"), &Device::Cpu).expect("a model");
        Self { golden, name, method, keep, dense: open().expect(name), output, report, _scratch: scratch }
    }

    fn label(&self) -> String {
        format!("{} {}@{}", self.name, self.method, self.keep)
    }

    /// What the reference says of this run.
    fn expected(&self) -> &Value {
        &self.golden.json["models"][self.name]["runs"][format!("{}@{}", self.method, self.keep)]
    }

    fn key(&self, rest: &str) -> String {
        format!("{}/{}@{}/{rest}", self.name, self.method, self.keep)
    }

    fn check(&self) {
        let label = self.label();
        let model = &self.golden.json["models"][self.name];
        let pair = &self.report.evaluation[0];
        assert_eq!(pair.after.perplexity.tokens, 16 * (WINDOW - 1));
        let before = (pair.before.perplexity.nll - number(&model["dense_nll"])).abs();
        assert!(before < NLL, "{label}: the original's NLL is off by {before:.1e}");
        let after = (pair.after.perplexity.nll - number(&self.expected()["nll"])).abs();
        let shapes = model["linears"].as_object().expect("shapes");
        assert_eq!(self.report.linears.len(), shapes.len());
        let (mut probe, mut error) = (0f64, 0f64);
        for (linear, (id, shape)) in self.report.linears.iter().zip(shapes) {
            assert_eq!((&linear.id.to_string(), serde_json::json!(linear.shape)), (id, shape.clone()), "{label}");
            match self.expected()["ranks"].get(id) {
                Some(Value::Null) => self.check_dense(linear),
                Some(rank) => {
                    let rank = rank.as_u64().expect("a rank") as usize;
                    probe = probe.max(self.check_factors(linear, rank));
                    error = error.max(self.check_error(linear));
                }
                None => self.check_pruned(linear),
            }
        }
        println!("{label}: NLL off by {after:.1e} (before {before:.1e}), W' z {probe:.1e}, output error {error:.1e}");
        assert!(after < NLL, "{label}: NLL is off by {after:.1e}");
    }

    /// A stored matrix, row by row.
    fn rows(&self, model: &Model, name: &str, rows: usize, columns: usize) -> Vec<f32> {
        let tensor = model.source().tensor(name, &[rows, columns], DType::F32, &Device::Cpu);
        tensor.unwrap_or_else(|e| panic!("{}: {e}", self.label())).flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Factors B (out, rank) and A (rank, in) as stored.
    fn factors(&self, linear: &LinearReport, rank: usize) -> (Mat, Mat) {
        let [out, input] = linear.shape;
        let part = |part: &str, rows, columns| {
            let name = format!("{}.{part}.weight", linear.name);
            Mat::from_f32_rows(rows, columns, &self.rows(&self.output, &name, rows, columns))
        };
        (part("factor_b", out, rank), part("factor_a", rank, input))
    }

    fn check_factors(&self, linear: &LinearReport, rank: usize) -> f64 {
        let case = format!("{}: {}", self.label(), linear.id);
        assert_eq!((linear.form, linear.rank), (Form::LowRank, Some(rank)), "{case}");
        let (b, a) = self.factors(linear, rank);
        let image = b.matmul(&a.matmul(&column(&wave(1.0, linear.shape[1]))));
        let probe = off(image.col(0), &self.golden.vector(&self.key(&linear.id.to_string())));
        assert!(probe < PROBE, "{case}: W' z is off by {probe:.1e}");
        probe
    }

    /// The output error on the calibration tokens and what it says about the kept energy.
    fn check_error(&self, linear: &LinearReport) -> f64 {
        let case = format!("{}: {}", self.label(), linear.id);
        let expected = number(&self.expected()["error"][linear.id.to_string()]);
        let measured = relative(linear.heldout_error.expect("measured"), expected);
        assert!(measured < ENERGY, "{case}: the output error is off by {measured:.1e}");
        if ["whiten", "rom"].contains(&self.method) {
            let dropped = 1.0 - linear.energy_kept.expect("known");
            assert!(
                (dropped - expected).abs() < ENERGY * expected.max(1e-2),
                "{case}: {dropped} of the energy dropped"
            );
        }
        measured
    }

    fn check_dense(&self, linear: &LinearReport) {
        let case = format!("{}: {}", self.label(), linear.id);
        assert_eq!((linear.form, linear.rank), (Form::Dense, None), "{case}");
        let name = format!("{}.weight", linear.name);
        let bytes = |model: &Model| model.source().bytes(&name).expect("stored").to_vec();
        assert_eq!(bytes(&self.dense), bytes(&self.output), "{case}");
    }

    /// The kept channels are the reference's, and their weights the original's.
    fn check_pruned(&self, linear: &LinearReport) {
        let case = format!("{}: {}", self.label(), linear.id);
        let kept = self.expected()["kept_channels"][linear.id.block.to_string()].as_array().expect("channels");
        let kept: Vec<usize> = kept.iter().map(|i| i.as_u64().expect("a channel") as usize).collect();
        let [out, input] = linear.shape;
        let down = linear.id.role == Role::Down;
        let shape = if down { [out, kept.len()] } else { [kept.len(), input] };
        assert_eq!((linear.form, linear.pruned_shape), (Form::Pruned, Some(shape)), "{case}");
        let name = format!("{}.weight", linear.name);
        let whole = self.rows(&self.dense, &name, out, input);
        let expected: Vec<f32> = if down {
            whole.chunks(input).flat_map(|row| kept.iter().map(|&i| row[i])).collect()
        } else {
            kept.iter().flat_map(|&i| whole[i * input..(i + 1) * input].iter().copied()).collect()
        };
        assert!(self.rows(&self.output, &name, shape[0], shape[1]) == expected, "{case}: other channels were kept");
    }

    /// Spectra and components of `rom` in block 1, each linear behind the stored compressed ones before it.
    fn check_components(&self) {
        let windows = self.golden.windows(&format!("{}/calibration", self.name));
        let mut states = States::embed(&self.dense, &windows.ids()).expect("embedded");
        states.advance(&self.output.block(0).expect("a block")).expect("advanced");
        let nothing = States::embed::<&[u32]>(&self.dense, &[]).expect("nothing");
        let mut block = self.dense.block(1).expect("a block");
        let compressed = self.output.block(1).expect("a block");
        let rom = method::by_name("rom").expect("a method");
        let (mut seen, mut apart, mut worst) = (0, 0, (0f64, 0f64));
        for site in self.dense.block_sites(1) {
            let stats = collect(&block, &states, &nothing, &[site]).expect("statistics");
            for spec in self.dense.block_linears(1).filter(|spec| spec.site == site) {
                let case = format!("{}: {}", self.label(), spec.id);
                let linear = self.report.linears.iter().find(|l| l.id == spec.id).expect("reported");
                let expected = self.golden.vector(&self.key(&format!("{}.energy", spec.id)));
                let w = dense_weight(&self.dense, spec);
                let energy = rom.decompose(&w, Some(&stats[&site])).expect("a decomposition").energy;
                let energies = off(&energy, &expected[..energy.len()]);
                assert!(energies < ENERGY, "{case}: energies are off by {energies:.1e}");
                // What is left is rounding: more outputs than inputs.
                assert!(expected[energy.len()..].iter().all(|e| e.abs() < 1e-9 * expected[0]), "{case}");

                let rank = linear.rank.expect("factorised");
                let (b, _) = self.factors(linear, rank);
                let components = b.tn_matmul(&column(&wave(2.0, spec.out)));
                let reference = self.golden.vector(&self.key(&format!("{}.components", spec.id)));
                assert_eq!(reference.len(), rank, "{case}");
                let scale = norm(&reference);
                for (i, expected_component) in reference.iter().enumerate() {
                    let above = if i == 0 { f64::INFINITY } else { expected[i - 1] - expected[i] };
                    let gap = above.min(expected[i] - expected.get(i + 1).unwrap_or(&0.0));
                    seen += 1;
                    if gap < 0.01 * expected[i] {
                        continue;
                    }
                    apart += 1;
                    let component = (components.get(i, 0).abs() - expected_component).abs() / scale;
                    assert!(component < 1e-4, "{case}: component {i} is off by {component:.1e}");
                    worst = (worst.0.max(component), worst.1);
                }
                worst.1 = worst.1.max(energies);
                let linear = compressed.linear(spec.id.role).expect("compressed").clone();
                block.swap_linear(spec.id.role, linear).expect("the same role");
            }
        }
        println!("{}: {apart} of {seen} components {:.1e}, energies {:.1e}", self.label(), worst.0, worst.1);
        assert!(2 * apart > seen, "{}: only {apart} of {seen} components can be told apart", self.label());
    }
}

fn check_model(name: &str, folder: Option<&Path>) {
    let golden = Golden::open();
    for method in ["svd", "awsvd", "whiten", "rom", "lorap"] {
        for keep in ["0.8", "0.5"] {
            let run = Run::new(&golden, name, folder, method, keep);
            run.check();
            if method == "rom" {
                run.check_components();
            }
        }
    }
}

#[test]
fn the_built_in_model_is_compressed_as_the_reference_does() {
    check_model("demo", None);
}

#[test]
fn a_published_model_is_compressed_as_the_reference_does() {
    let Some(folder) = data("models/tinystories-656k") else { return };
    check_model("tinystories-656k", Some(&folder));
}

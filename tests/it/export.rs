//! Outputs as plain checkpoints: every family and method, the numbers to the last bit, what no config has a place for.

use crate::families::{applies, compress_so, folders, open, windows};
use crate::program::{change_weights, tensors};
use crate::reading::{wrapped, wrappers};
use candle_core::Tensor;
use half::{bf16, f16};
use serde_json::{Map, Value, json};
use softlm::checkpoint::{Dtype, Source};
use softlm::export::{ExportOptions, Exported, Form, export};
use softlm::method::METHODS;
use softlm::model::{Linear, LinearSpec, Model, Output, Side, verify};
use softlm::recipe::StoredType;
use std::fs;
use std::path::{Path, PathBuf};

/// How far results may be apart, of the largest.
const CLOSE: f32 = 1e-5;

/// Families whose config.json has no place for a bias in every linear.
const WITHOUT_BIASES: [&str; 9] =
    ["mistral", "mixtral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "gemma2", "gemma3_text", "phi3"];

fn tiny(name: &str) -> PathBuf {
    folders().into_iter().find(|folder| folder.ends_with(name)).expect("a generated model")
}

pub fn options(form: Form, output: &Path, dtype: StoredType) -> ExportOptions {
    ExportOptions { form, output: output.to_path_buf(), dtype, max_shard_bytes: 1 << 40, force: false }
}

pub fn write(from: &Path, form: Form, to: &Path, dtype: StoredType) -> anyhow::Result<Exported> {
    export(Source::open(from).expect("an output"), &options(form, to, dtype), &())
}

/// config.json without keys that say nothing.
pub fn config(folder: &Path) -> Map<String, Value> {
    let config: Map<String, Value> =
        serde_json::from_slice(&fs::read(folder.join("config.json")).expect("a config")).expect("JSON");
    config.into_iter().filter(|(_, value)| !value.is_null()).collect()
}

/// All that a model makes of the same made-up text: final states, and logits where it has a head.
fn results(model: &Model) -> Vec<Vec<f32>> {
    let (rows, _, _) = windows(model);
    let ids: Vec<&[u32]> = rows.ids().into_iter().take(3).collect();
    let mut x = model.embed(&ids).expect("embedded");
    for index in 0..model.blocks() {
        x = model.block(index).expect("a block").forward(&x, &mut ()).expect("a pass").expect("nothing stops it");
    }
    let (rows, t, width) = x.dims3().expect("three dimensions");
    let flat = x.reshape((rows * t, width)).expect("rows");
    let numbers = |x: &Tensor| x.flatten_all().and_then(|x| x.to_vec1()).expect("numbers");
    let mut all = vec![numbers(&x)];
    if matches!(model.output(), Output::NextToken | Output::MaskedToken) {
        all.push(numbers(&model.head().and_then(|head| head.logits(&flat)).expect("logits")));
    }
    all
}

pub fn assert_close(a: &Model, b: &Model, case: &str) {
    for (a, b) in results(a).iter().zip(&results(b)) {
        assert_eq!(a.len(), b.len(), "{case}");
        let largest = a.iter().fold(0f32, |m, x| m.max(x.abs()));
        let off = a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest;
        assert!(off < CLOSE, "{case}: off by {off:e}");
    }
}

/// Σ_k b_ik a_kj in twice the digits of f64, and Σ |b_ik a_kj|.
fn exactly(b: &[f64], a: &[f64], rank: usize, input: usize, i: usize, j: usize) -> (f64, f64) {
    let (mut sum, mut rest, mut size) = (0f64, 0f64, 0f64);
    for k in 0..rank {
        let (x, y) = (b[i * rank + k], a[k * input + j]);
        let product = x * y;
        let lost = x.mul_add(y, -product);
        let next = sum + product;
        let virtual_part = next - sum;
        rest += (sum - (next - virtual_part)) + (product - virtual_part) + lost;
        (sum, size) = (next, size + product.abs());
    }
    (sum + rest, size)
}

/// The nearest number of a type, of two equally near ones the even one. Found among neighbours: a conversion may round
/// twice.
fn rounded(dtype: StoredType, x: f64) -> f64 {
    let near = |guess: u16, value: fn(u16) -> f64| {
        let bits = [guess.wrapping_sub(1), guess, guess.wrapping_add(1)];
        let finite = bits.into_iter().filter(|&bits| value(bits).is_finite());
        let order = |&bits: &u16| ((value(bits) - x).abs(), bits % 2);
        let nearest = finite.min_by(|a, b| order(a).partial_cmp(&order(b)).expect("numbers"));
        nearest.map(value).expect("a number")
    };
    match dtype {
        StoredType::F16 => near(f16::from_f64(x).to_bits(), |bits| f16::from_bits(bits).to_f64()),
        StoredType::Bf16 => near(bf16::from_f64(x).to_bits(), |bits| bf16::from_bits(bits).to_f64()),
        _ => f64::from(x as f32),
    }
}

pub fn rows(x: &Tensor) -> Vec<f64> {
    x.flatten_all().and_then(|x| x.to_vec1::<f32>()).expect("numbers").into_iter().map(f64::from).collect()
}

/// The element of a matrix at a row and column, and the sum of the sizes of what it was added up from.
type Element = Box<dyn Fn(usize, usize) -> (f64, f64)>;

/// Where every output and every input of a linear of `plain` lies in that of `output`; nowhere if it came back as zeros.
fn places(output: &Model, plain: &Model, spec: &LinearSpec) -> [Vec<Option<usize>>; 2] {
    let have = output.linears().iter().find(|have| have.id == spec.id).expect("the same linears");
    // Dimensions that are left are the first of each head, channels the first of all.
    let heads = plain.heads(spec.id.block).filter(|_| spec.id.role.is_attention() && have.inner() != spec.inner());
    let inner = heads.map(|heads| heads.places(have).expect("whole heads"));
    let of = |side: Side, (have, want): (usize, usize)| {
        let inner = inner.clone().filter(|_| spec.id.role.inner_side() == Some(side));
        let mut all = vec![None; want];
        inner.unwrap_or((0..have).collect()).into_iter().enumerate().for_each(|(i, place)| all[place] = Some(i));
        all
    };
    [of(Side::Outputs, (have.out, spec.out)), of(Side::Inputs, (have.input, spec.input))]
}

/// Every linear of `plain` is that of `output`, its products rounded once, its missing channels zero.
fn assert_multiplied_out(output: &Model, plain: &Model, dtype: StoredType, case: &str) {
    let (mut products, mut narrower) = (0, 0);
    for index in 0..plain.blocks() {
        let (from, to) = (output.block(index).expect("a block"), plain.block(index).expect("a block"));
        for spec in plain.block_linears(index) {
            let (from, to) = (from.linear(spec.id.role).expect("there"), to.linear(spec.id.role).expect("there"));
            let found = rows(to.dense_weight().unwrap_or_else(|| panic!("{case}: {} is not dense", spec.id)));
            let bias = |linear: &Linear| linear.bias().map(rows).unwrap_or_default();
            let [outputs, inputs] = places(output, plain, spec);
            narrower += usize::from(outputs.contains(&None) || inputs.contains(&None));
            let (stored, mut has) = (bias(from), bias(to));
            // Channels that came back, and linears that got a bias because others have one.
            let mut had = vec![0.0; stored.len().max(has.len())];
            outputs.iter().enumerate().for_each(|(i, from)| {
                if let Some(bias) = from.and_then(|from| stored.get(from)) {
                    had[i] = *bias;
                }
            });
            has.resize(had.len(), 0.0);
            assert_eq!(had, has, "{case}: bias of {}", spec.id);
            let value: Element = match from {
                Linear::LowRank { a, b, .. } => {
                    products += 1;
                    let (out, rank) = b.dims2().expect("a matrix");
                    let (input, a, b) = (a.dim(1).expect("a matrix"), rows(a), rows(b));
                    assert_eq!((out, input), (spec.out, spec.input), "{case}: {}", spec.id);
                    Box::new(move |i, j| exactly(&b, &a, rank, input, i, j))
                }
                Linear::Dense { weight, .. } => {
                    let ((_, input), w) = (weight.dims2().expect("a matrix"), rows(weight));
                    Box::new(move |i, j| (w[i * input + j], 0.0))
                }
            };
            for i in 0..spec.out {
                for j in 0..spec.input {
                    let got = found[i * spec.input + j];
                    let (Some(row), Some(column)) = (outputs[i], inputs[j]) else {
                        assert_eq!(got, 0.0, "{case}: {} [{i}, {j}]", spec.id);
                        continue;
                    };
                    let (exact, size) = value(row, column);
                    // Where the sum's own rounding decides between two neighbours either will do: once in a hundred million.
                    let off = size * 1e-14;
                    let (low, high) = (rounded(dtype, exact - off), rounded(dtype, exact + off));
                    assert!((low..=high).contains(&got), "{case}: {} [{i}, {j}]: {got} for {exact}", spec.id);
                }
            }
        }
    }
    assert!(products + narrower > 0, "{case}: nothing was multiplied, nothing came back");
}

#[test]
fn every_family_and_method_as_a_plain_checkpoint_of_the_base() {
    let place = tempfile::tempdir().expect("a scratch folder");
    let mut refused = 0;
    for folder in folders() {
        for method in METHODS.iter().map(|method| method.card().name).filter(|method| applies(method, &folder)) {
            let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
            let case = format!("{method} on {name}");
            let at = |what: &str| place.path().join(format!("{name}-{method}-{what}"));
            let (mut output, plain) = (at("out"), at("dense"));
            compress_so(&folder, method, &output, None);
            let base = config(&folder);
            let family = base["model_type"].as_str().expect("a family").to_string();
            if method == "soco" && WITHOUT_BIASES.contains(&family.as_str()) {
                let error = write(&output, Form::Dense, &plain, StoredType::F32).expect_err("no place for the biases");
                let error = format!("{error:#}");
                assert!(error.contains("has a bias") && error.contains(&family), "{case}: {error}");
                assert!(!plain.exists(), "{case}");
                refused += 1;
                output = at("unbiased");
                compress_so(&folder, method, &output, Some(false));
            }
            let exported =
                write(&output, Form::Dense, &plain, StoredType::F32).unwrap_or_else(|e| panic!("{case}: {e:#}"));
            assert!(exported.computed > 0 && exported.bytes > exported.bytes_before / 2, "{case}: {exported:?}");

            // The base's config, but for the type that was asked for, and biases where the base has none.
            let mut found = config(&plain);
            assert_eq!(found.insert("dtype".into(), base["dtype"].clone()), Some(json!("float32")), "{case}");
            let mut biased = false;
            for (key, value) in &found {
                if base.get(key) != Some(value) {
                    let expected = key.ends_with("bias") && method == "soco" && *value == json!(true);
                    assert!(expected, "{case}: {key} is {value}, was {:?}", base.get(key));
                    biased |= expected;
                }
            }
            assert!(base.keys().all(|key| found.contains_key(key)), "{case}");
            assert!(!plain.join("report.json").exists() && plain.join("README.md").exists(), "{case}");

            let whole = |base| verify(&Source::open(&plain).expect("a checkpoint"), base, None).expect("readable");
            let original = Source::open(&folder).expect("a checkpoint");
            let found = whole((!biased).then_some(&original));
            assert!(found.problems.is_empty() && found.factorised == 0, "{case}: {:?}", found.problems);
            let (output, plain) = (open(&output), open(&plain));
            assert_close(&output, &plain, &case);
            assert_multiplied_out(&output, &plain, StoredType::F32, &case);
        }
    }
    assert!(refused >= WITHOUT_BIASES.len(), "{refused}");
}

#[test]
fn pruned_models_as_plain_smaller_ones() {
    let place = tempfile::tempdir().expect("a scratch folder");
    for folder in folders() {
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        let at = |what: &str| place.path().join(format!("{name}-{what}"));
        let (output, plain) = (at("out"), at("plain"));
        compress_so(&folder, "lorap", &output, None);
        let written = write(&output, Form::Plain, &plain, StoredType::F32);
        if name.starts_with("mamba") {
            let error = format!("{:#}", written.expect_err("nothing is narrower"));
            assert!(error.contains("narrower"), "{name}: {error}");
            continue;
        }
        written.unwrap_or_else(|e| panic!("{name}: {e:#}"));
        let (base, found) = (config(&folder), config(&plain));
        let keys = [
            "intermediate_size",
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "n_inner",
            "ffn_dim",
            "hidden_dim",
        ];
        let changed: Vec<&String> = found.keys().filter(|key| base.get(*key) != found.get(*key)).collect();
        assert!(changed.iter().all(|key| keys.contains(&key.as_str()) || *key == "dtype"), "{name}: {changed:?}");
        let (dense, plain, output) = (open(&folder), open(&plain), open(&output));
        let params = |model: &Model| model.linears().iter().map(|spec| spec.params()).sum::<usize>();
        assert!(params(&plain) < params(&dense), "{name}");
        for (spec, of_base) in plain.linears().iter().zip(dense.linears()) {
            let narrower = spec.out < of_base.out || spec.input < of_base.input;
            assert_eq!(narrower, spec.id.role.ffn_part().is_some(), "{name}: {}", spec.id);
        }
        assert_close(&output, &plain, &name);
        assert_multiplied_out(&output, &plain, StoredType::F32, &name);
    }
}

#[test]
fn other_types_are_rounded_to_once() {
    let place = tempfile::tempdir().expect("a scratch folder");
    for name in ["llama-tiny-bias", "gpt-neox-tiny", "gpt2-tiny"] {
        let output = place.path().join(name);
        compress_so(&tiny(name), "whiten", &output, None);
        for (dtype, stored, named) in
            [(StoredType::F16, Dtype::F16, "float16"), (StoredType::Bf16, Dtype::BF16, "bfloat16")]
        {
            let plain = place.path().join(format!("{name}-{named}"));
            write(&output, Form::Dense, &plain, dtype).expect("exported");
            let all = tensors(&plain.join("model.safetensors"));
            assert!(all.values().all(|tensor| tensor.0 == stored), "{name}");
            assert_eq!(config(&plain)["dtype"], named);
            if name == "llama-tiny-bias" {
                assert_multiplied_out_of_f32(&open(&output), &open(&plain), dtype);
            } else if stored == Dtype::F16 {
                assert_multiplied_out(&open(&output), &open(&plain), dtype, name);
            }
        }
        // As it is: what was not compressed keeps its bytes.
        let plain = place.path().join(format!("{name}-auto"));
        write(&output, Form::Dense, &plain, StoredType::Auto).expect("exported");
        let (base, found) = (tensors(&tiny(name).join("model.safetensors")), tensors(&plain.join("model.safetensors")));
        assert_eq!(base.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>(), "{name}");
        assert_eq!(config(&tiny(name)), config(&plain));
        let same = base.iter().filter(|(name, tensor)| found[*name] == **tensor).count();
        let shapes = base.iter().all(|(name, tensor)| (tensor.0, &tensor.1) == (found[name].0, &found[name].1));
        assert!(shapes && same > 0 && same < base.len(), "{name}: {same} of {}", base.len());
    }
}

/// A model whose biases and weights are f32 loses digits everywhere, so only its products are compared.
fn assert_multiplied_out_of_f32(output: &Model, plain: &Model, dtype: StoredType) {
    let (from, to) = (output.block(0).expect("a block"), plain.block(0).expect("a block"));
    let factorised = |spec: &&LinearSpec| from.linear(spec.id.role).is_some_and(|linear| linear.rank().is_some());
    let spec = plain.block_linears(0).find(factorised).expect("a factorised linear");
    let Some(Linear::LowRank { a, b, .. }) = from.linear(spec.id.role) else { unreachable!("it has a rank") };
    let found = rows(to.linear(spec.id.role).and_then(Linear::dense_weight).expect("dense"));
    let (rank, a, b) = (a.dim(0).expect("a matrix"), rows(a), rows(b));
    for i in 0..spec.out {
        for j in 0..spec.input {
            let (exact, _) = exactly(&b, &a, rank, spec.input, i, j);
            assert_eq!(found[i * spec.input + j], rounded(dtype, exact), "[{i}, {j}]");
        }
    }
}

#[test]
fn text_models_inside_multimodal_ones_stay_there() {
    let case = &wrappers()[0];
    let bare = |name: &str| {
        name.replace("language_model.model.", "language_model.").replace("language_model.lm_head.", "lm_head.")
    };
    for (method, rename) in [("lorap", &str::to_string as &dyn Fn(&str) -> String), ("soco", &bare)] {
        let (place, folder) = wrapped(case, rename);
        let at = |what: &str| place.path().join(what);
        compress_so(&folder, method, &at("out"), None);
        let exported = write(&at("out"), Form::Dense, &at("dense"), StoredType::F32).expect("exported");
        let (mut base, mut found) = (config(&folder), config(&at("dense")));
        found.remove("dtype").or(found.remove("torch_dtype")).expect("a type");
        base.remove("dtype");
        if method == "soco" {
            for key in ["attention_bias", "mlp_bias"] {
                assert_eq!(found["text_config"][key], true, "{key}");
                base["text_config"][key] = json!(true);
            }
            assert!(exported.notes[0].contains("`attention_bias` and `mlp_bias`"), "{:?}", exported.notes);
        }
        assert_eq!(found, base, "{method}");
        let names = |folder: &Path| tensors(&folder.join("model.safetensors")).into_keys().collect::<Vec<_>>();
        let before = names(&folder);
        let new = |name: &String| method == "soco" && name.ends_with("_proj.bias") && !before.contains(name);
        let plain: Vec<String> = names(&at("dense")).into_iter().filter(|name| !new(name)).collect();
        assert_eq!(plain, before, "{method}");
        assert_close(&open(&at("out")), &open(&at("dense")), method);
        let smaller = write(&at("out"), Form::Plain, &at("plain"), StoredType::F32);
        if method == "lorap" {
            smaller.expect("exported");
            assert!(
                config(&at("plain"))["text_config"]["intermediate_size"].as_u64()
                    < base["text_config"]["intermediate_size"].as_u64()
            );
            assert_close(&open(&at("out")), &open(&at("plain")), method);
        }
    }
}

#[test]
fn layers_of_different_widths_fit_the_base_and_no_smaller_config() {
    let place = tempfile::tempdir().expect("a scratch folder");
    for (name, parts) in [
        ("llama-tiny-rope3", ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]),
        ("gpt2-tiny", ["mlp.c_fc", "mlp.c_fc", "mlp.c_proj"]),
    ] {
        let output = place.path().join(name);
        compress_so(&tiny(name), "lorap", &output, None);
        // The last channel of the second block goes too.
        let gpt2 = name == "gpt2-tiny";
        let prefix = if gpt2 { "transformer.h.1" } else { "model.layers.1" };
        let mut width = 0;
        let cut = |(_, shape, data): &mut (Dtype, Vec<usize>, Vec<u8>), dim: usize, width: usize| {
            let size = data.len() / shape.iter().product::<usize>();
            if dim == 0 {
                data.truncate(data.len() / shape[0] * (shape[0] - 1));
            } else {
                *data = data.chunks(width * size).flat_map(|row| row[..(width - 1) * size].to_vec()).collect();
            }
            shape[dim] -= 1;
        };
        change_weights(&output, |all| {
            for part in [parts[0], parts[1]].into_iter().take(if gpt2 { 1 } else { 2 }) {
                let dim = usize::from(gpt2);
                let tensor = all.get_mut(&format!("{prefix}.{part}.weight")).expect("a pruned layer");
                let wide = tensor.1[dim];
                cut(tensor, dim, wide);
                if let Some(bias) = all.get_mut(&format!("{prefix}.{part}.bias")) {
                    cut(bias, 0, wide);
                }
            }
            let down = all.get_mut(&format!("{prefix}.{}.weight", parts[2])).expect("a pruned layer");
            let wide = down.1[usize::from(!gpt2)];
            cut(down, usize::from(!gpt2), wide);
        });
        let mut whole = Value::Object(config(&output));
        for (part, side) in parts.into_iter().zip(["out", "out", "in"]).skip(usize::from(gpt2)) {
            let size = &mut whole["softlm"]["linears"][format!("{prefix}.{part}")][side];
            *size = json!(size.as_u64().expect("a size") - 1);
        }
        fs::write(output.join("config.json"), whole.to_string()).expect("written");
        let all = tensors(&output.join("model.safetensors"));
        width = width.max(all[&format!("{prefix}.{}.weight", parts[2])].1[usize::from(!gpt2)]);
        let error = write(&output, Form::Plain, &place.path().join("no"), StoredType::Auto).expect_err("two widths");
        let error = format!("{error:#}");
        let first = format!("{}.{} has {} channels", prefix.replace('1', "0"), parts[0], width + 1);
        let second = format!("{prefix}.{} has {width}", parts[0]);
        assert!(error.contains(&first) && error.contains(&second), "{error}");
        let dense = place.path().join(format!("{name}-dense"));
        write(&output, Form::Dense, &dense, StoredType::Auto).expect("exported");
        let (found, base) = (open(&dense), open(&tiny(name)));
        assert_eq!(found.linears(), base.linears());
        // What is left of the cut layer stands in front, zeros behind.
        let down = found.linears().iter().find(|spec| spec.id.to_string() == "1.mlp.down").expect("a layer");
        let block = found.block(1).expect("a block");
        let weight = rows(block.linear(down.id.role).and_then(Linear::dense_weight).expect("dense"));
        for row in weight.chunks(down.input) {
            assert!(row[..width].iter().any(|&x| x != 0.0) && row[width..].iter().all(|&x| x == 0.0));
        }
    }
}

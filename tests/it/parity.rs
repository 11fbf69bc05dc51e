//! Forward passes against other implementations: logits of transformers (`tests/golden/logits.json`), logits of
//! candle-transformers, and perplexities measured with transformers.

use crate::data::data;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};
use serde_json::Value;
use softlm::checkpoint::{Dtype, NamedTensor, Source, TensorFile, write_tensors};
use softlm::eval::evaluate;
use softlm::hub::HubOptions;
use softlm::model::Model;
use softlm::pipeline::{EvalProtocol, evaluation, tokenizer};
use softlm::recipe::BosRule;
use softlm::text::{self, Split};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// Logits may differ by this much of the row's largest.
const LOGITS: f64 = 1e-5;
/// Perplexities may differ by this much of themselves: the reference is printed with five decimals.
const PERPLEXITY: f64 = 5e-6;

fn here(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}

fn golden() -> Value {
    serde_json::from_slice(&fs::read(here("tests/golden/logits.json")).expect("the reference")).expect("JSON")
}

/// Built in, generated beside the reference, or part of the test data.
fn source(name: &str) -> Option<Source> {
    let generated = here("tests/golden/models").join(name);
    match name {
        "demo" => Some(Source::demo()),
        _ if generated.exists() => Some(Source::open(&generated).expect(name)),
        _ => data(&format!("models/{name}")).map(|folder| Source::open(&folder).expect(name)),
    }
}

fn model(name: &str) -> Option<Model> {
    source(name).map(|source| Model::load(source, &Device::Cpu).expect(name))
}

fn array<T>(value: &Value, convert: impl Fn(&Value) -> T) -> Vec<T> {
    value.as_array().expect("an array").iter().map(convert).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    array(value, |id| id.as_u64().expect("an id") as u32)
}

fn numbers(value: &Value) -> Vec<f64> {
    array(value, |x| x.as_f64().expect("a number"))
}

/// Logits (rows, t, vocab) of equally long rows.
pub fn logits(model: &Model, rows: &[Vec<u32>]) -> Vec<Vec<Vec<f32>>> {
    let ids: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
    let mut h = model.embed(&ids).expect("embedded");
    for index in 0..model.blocks() {
        let block = model.block(index).expect("a block");
        h = block.forward(&h, &mut ()).expect("a forward pass").expect("nothing stops it");
    }
    let (rows, t, width) = h.dims3().expect("three dimensions");
    let flat = h.reshape((rows * t, width)).expect("rows");
    let logits = model.head().and_then(|head| head.logits(&flat)).expect("logits");
    logits.reshape((rows, t, model.vocab())).and_then(|x| x.to_vec3()).expect("numbers")
}

/// Compares with the reference and returns the largest deviation, relative to the row's largest logit.
fn check_logits(name: &str, model: &Model, golden: &Value) -> f64 {
    assert_eq!(model.vocab() as u64, golden["vocabulary"], "{name}");
    let ours = logits(model, &array(&golden["ids"], ids));
    let positions = ids(&golden["positions"]);
    let mut worst = 0f64;
    for (r, row) in ours.iter().enumerate() {
        for (p, &position) in positions.iter().enumerate() {
            let got: Vec<f64> = row[position as usize].iter().map(|&x| f64::from(x)).collect();
            let part = |key: &str| &golden[key][r][p];
            let whole = |key: &str| part(key).as_f64().expect("a number");
            let (first, last) = (numbers(part("first")), numbers(part("last")));
            let ends = got.iter().zip(&first).chain(got[got.len() - last.len()..].iter().zip(&last));
            let largest = whole("abs_max");
            let mut off = ends.map(|(a, b)| (a - b).abs() / largest).fold(0.0, f64::max);
            off = off.max((got.iter().fold(0f64, |m, x| m.max(x.abs())) - largest).abs() / largest);
            let abs_sum = whole("abs_sum");
            off = off.max((got.iter().sum::<f64>() - whole("sum")).abs() / abs_sum);
            off = off.max((got.iter().map(|x| x.abs()).sum::<f64>() - abs_sum).abs() / abs_sum);
            assert!(off < LOGITS, "{name}: row {r}, position {position}: logits are off by {off:.1e}");
            worst = worst.max(off);
        }
    }
    worst
}

#[test]
fn logits_equal_those_of_transformers() {
    let golden = golden();
    let mut compared = 0;
    for (name, expected) in golden["models"].as_object().expect("models") {
        let Some(model) = model(name) else { continue };
        println!("{name}: logits off by at most {:.1e}", check_logits(name, &model, expected));
        compared += 1;
    }
    assert!(compared >= 4, "the built-in model and the generated ones are always there");
}

#[test]
fn a_tied_model_may_store_its_head_alone() {
    let (Some(usual), Some(original)) = (model("tinystories-656k"), model("tinystories-656k-orig")) else { return };
    let expected = &golden()["models"]["tinystories-656k"];
    assert!(!original.source().is_stored("model.embed_tokens.weight"), "the file is not what it was");
    check_logits("tinystories-656k-orig", &original, expected);
    let rows = array(&expected["ids"], ids);
    assert_eq!(logits(&usual, &rows), logits(&original, &rows));
}

#[test]
fn gpt2_may_lack_its_prefix() {
    let folder = here("tests/golden/models/gpt2-tiny");
    let file = TensorFile::open(&folder.join("model.safetensors")).expect("a checkpoint");
    let mut tensors: Vec<NamedTensor> = Vec::new();
    for name in file.names() {
        let bare = name.strip_prefix("transformer.").expect("every tensor has the prefix");
        tensors.push(NamedTensor { name: bare.to_string(), ..file.read(name).expect("listed") });
    }
    // Such files also store the causal mask.
    let mask: Vec<u8> = (0..64 * 64).map(|i| u8::from(i % 64 <= i / 64)).collect();
    tensors
        .extend((0..2).map(|i| NamedTensor::new(format!("h.{i}.attn.bias"), Dtype::U8, [1, 1, 64, 64], mask.clone())));
    let scratch = tempfile::tempdir().expect("a scratch folder");
    write_tensors(&scratch.path().join("model.safetensors"), &tensors, &BTreeMap::new()).expect("written");
    fs::copy(folder.join("config.json"), scratch.path().join("config.json")).expect("copied");
    let bare = Model::load(Source::open(scratch.path()).expect("a checkpoint"), &Device::Cpu).expect("a model");
    check_logits("gpt2 without prefix", &bare, &golden()["models"]["gpt2-tiny"]);
}

#[test]
fn gpt2_text_becomes_the_same_ids() {
    let tokenizer = tokenizer(&source("gpt2-tiny").expect("generated")).expect("a tokenizer");
    for case in golden()["gpt2_tokens"].as_array().expect("cases") {
        let text = case["text"].as_str().expect("a text");
        assert_eq!(tokenizer.encode(text).expect("ids"), ids(&case["ids"]), "{text:?}");
    }
}

/// Model, text, window, whether it begins with BOS, windows at most, windows scored, perplexity with five decimals.
type Truth = (&'static str, &'static str, usize, bool, Option<usize>, usize, f64);

const WIKITEXT: &str = "text/wikitext2-raw/test.txt";
const STORIES: &str = "text/tinystories/tiny.utf8";

/// As transformers has them: windows do not overlap, the tail is dropped.
const TRUTHS: [Truth; 9] = [
    ("demo", WIKITEXT, 256, false, Some(200), 200, 50.52619),
    ("stories260k", STORIES, 256, false, None, 526, 7.64597),
    ("stories260k", STORIES, 512, false, None, 263, 8.84281),
    ("stories260k", WIKITEXT, 256, false, Some(200), 200, 146.73148),
    ("stories260k", STORIES, 256, true, None, 528, 8.35368),
    ("tinystories-656k", STORIES, 256, false, None, 262, 54.74692),
    ("tinystories-656k-orig", STORIES, 256, false, None, 262, 54.74692),
    ("tinystories-656k", WIKITEXT, 256, false, Some(200), 200, 891.30211),
    ("poem-zh-750k", "text/poem/val.txt", 128, false, None, 229, 166.02936),
];

#[test]
fn perplexities_equal_those_of_transformers() {
    for (name, text, window, bos, max_windows, windows, expected) in TRUTHS {
        let (Some(model), Some(text)) = (model(name), data(text)) else { continue };
        let tokenizer = tokenizer(model.source()).expect("a tokenizer");
        let rule = if bos { BosRule::Always } else { BosRule::Never };
        let protocol = EvalProtocol { window: Some(window), max_windows, bos: rule, ..EvalProtocol::default() };
        let specs = [text.display().to_string()];
        let texts = evaluation(&model, &tokenizer, &specs, protocol, &HubOptions::default()).expect("windows");
        let (measured, _) = evaluate(&model, None, name, &texts[0].windows, &()).expect("a perplexity");
        let p = measured.perplexity;
        println!("{name} on {}: {:.5}, transformers {expected}", text.display(), p.ppl);
        assert_eq!((p.windows, p.tokens, p.bos), (windows, windows * (window - 1), bos), "{name}");
        assert!((p.ppl / expected - 1.0).abs() < PERPLEXITY, "{name}: {} instead of {expected}", p.ppl);
    }
}

#[test]
fn logits_equal_those_of_candle_transformers() {
    let folder = here("src/demo");
    let config: LlamaConfig =
        serde_json::from_slice(&fs::read(folder.join("config.json")).expect("a config")).expect("a Llama config");
    let config = config.into_config(false);
    let stored = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).expect("weights");
    let wide: HashMap<String, Tensor> =
        stored.into_iter().map(|(name, w)| (name, w.to_dtype(DType::F32).expect("f32"))).collect();
    let llama = Llama::load(VarBuilder::from_tensors(wide, DType::F32, &Device::Cpu), &config).expect("a Llama");

    let model = model("demo").expect("built in");
    let sample = text::load("sample", Split::Evaluation, &HubOptions::default()).expect("built in");
    let mut tokens = tokenizer(model.source()).and_then(|t| t.encode(&sample.text())).expect("ids");
    tokens.truncate(model.context());
    assert_eq!(tokens.len(), model.context(), "the sample fills the context");
    let ours = logits(&model, std::slice::from_ref(&tokens));
    // The other implementation shows only the last position, so each position is the end of a prefix.
    for position in [0, 1, 2, 63, 200, 511] {
        let prefix = Tensor::new(&tokens[..=position], &Device::Cpu).and_then(|x| x.unsqueeze(0)).expect("ids");
        let mut cache = Cache::new(false, DType::F32, &config, &Device::Cpu).expect("a cache");
        let theirs = llama.forward(&prefix, 0, &mut cache).and_then(|x| x.squeeze(0)).expect("logits");
        let theirs: Vec<f32> = theirs.to_vec1().expect("numbers");
        let largest = theirs.iter().fold(0f32, |m, x| m.max(x.abs()));
        let pairs = ours[0][position].iter().zip(&theirs);
        let off = pairs.map(|(a, b)| (a - b).abs() / largest).fold(0f32, f32::max);
        println!("position {position}: logits off by at most {off:.1e}");
        assert_eq!(theirs.len(), model.vocab());
        assert!(f64::from(off) < LOGITS, "position {position}: logits are off by {off:.1e}");
    }
}

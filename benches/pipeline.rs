//! The stages of a run and a whole run. `cargo bench --bench pipeline`; `-- forward` runs one group.
//!
//! `torch_reference.py` does the work of the whole run in PyTorch; README.md says how to compare the two.

use candle_core::{DType, Device, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use serde_json::json;
use softlm::checkpoint::{Dtype, Entry, NamedTensor, Origin, Source, write_checkpoint, write_tensors};
use softlm::eval::evaluate;
use softlm::hub::HubOptions;
use softlm::model::Model;
use softlm::pipeline::{self, EvalProtocol};
use softlm::recipe::{Options, SamplingRule};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const WINDOWS: usize = 8;
const WINDOW: usize = 256;

/// Deterministic little-endian f32 values in [-0.04, 0.04).
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1u32 << 23) as f32 - 1.0) * 0.04
    };
    (0..len).flat_map(|_| next().to_le_bytes()).collect()
}

fn tensor(name: String, shape: &[usize]) -> NamedTensor {
    NamedTensor::new(name, Dtype::F32, shape, noise(shape.iter().product()))
}

/// A Llama with one block of random weights: 512 wide, 8 query heads on 2 key/value heads.
fn wide_model(dir: &Path) -> Model {
    let (hidden, ffn, heads, kv_heads, vocab) = (512, 1408, 8, 2, 1024);
    let kv = hidden / heads * kv_heads;
    let config = json!({
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": ffn, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "num_hidden_layers": 1, "vocab_size": vocab, "tie_word_embeddings": true,
    });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let block = |name: &str, shape: &[usize]| tensor(format!("model.layers.0.{name}.weight"), shape);
    let tensors = [
        tensor("model.embed_tokens.weight".into(), &[vocab, hidden]),
        tensor("model.norm.weight".into(), &[hidden]),
        block("input_layernorm", &[hidden]),
        block("post_attention_layernorm", &[hidden]),
        block("self_attn.q_proj", &[hidden, hidden]),
        block("self_attn.k_proj", &[kv, hidden]),
        block("self_attn.v_proj", &[kv, hidden]),
        block("self_attn.o_proj", &[hidden, hidden]),
        block("mlp.gate_proj", &[ffn, hidden]),
        block("mlp.up_proj", &[ffn, hidden]),
        block("mlp.down_proj", &[hidden, ffn]),
    ];
    write_tensors(&dir.join("model.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    Model::load(Source::open(dir).unwrap(), &Device::Cpu).unwrap()
}

fn forward(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let demo = Model::load(Source::demo(), &Device::Cpu).unwrap();
    let mut group = c.benchmark_group("forward");
    group.throughput(Throughput::Elements((WINDOWS * WINDOW) as u64));
    for (name, model) in [("demo", &demo), ("512", &wide_model(dir.path()))] {
        let block = model.block(0).unwrap();
        let x = Tensor::randn(0f32, 1.0, (WINDOWS, WINDOW, model.hidden()), &Device::Cpu).unwrap();
        group.bench_function(name, |b| b.iter(|| block.forward(&x, &mut ()).unwrap()));
    }
    group.finish();
}

/// 64 MiB through the writer, flushed to the disk, into shards of 20 MB.
fn shards(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data.safetensors");
    let names: Vec<String> = (0..16).map(|i| format!("tensor.{i}")).collect();
    let shape = [1024, 1024];
    let tensors: Vec<NamedTensor> = names.iter().map(|name| tensor(name.clone(), &shape)).collect();
    write_tensors(&data, &tensors, &BTreeMap::new()).unwrap();
    let entry = |name: &String| {
        let from = Origin::File { path: data.clone(), name: name.clone() };
        Entry { name: name.clone(), dtype: Dtype::F32, shape: shape.to_vec(), from }
    };
    let entries: Vec<Entry> = names.iter().map(entry).collect();
    let (source, out) = (Source::demo(), dir.path().join("out"));
    fs::create_dir(&out).unwrap();
    let mut group = c.benchmark_group("shards");
    group.sample_size(10).throughput(Throughput::Bytes(64 << 20));
    group.bench_function("64 MiB", |b| {
        b.iter(|| write_checkpoint(&out, &entries, &source, 20_000_000, &BTreeMap::new(), &mut |_| {}).unwrap())
    });
    group.finish();
}

fn perplexity(c: &mut Criterion) {
    let hub = HubOptions::from_env();
    let model = Model::load(Source::demo(), &Device::Cpu).unwrap();
    let tokenizer = pipeline::tokenizer(model.source()).unwrap();
    let texts = pipeline::evaluation(&model, &tokenizer, &["sample".into()], EvalProtocol::default(), &hub).unwrap();
    let windows = &texts[0].windows;
    let mut group = c.benchmark_group("perplexity");
    group.sample_size(10).throughput(Throughput::Elements((windows.len() * windows.window) as u64));
    group.bench_function("demo on sample", |b| {
        b.iter(|| evaluate(&model, None, "sample", windows, &()).unwrap().0.perplexity.ppl)
    });
    group.finish();
}

/// A file or folder beside the project in `../shared/data`, if it is there.
fn data(relative: &str) -> Option<PathBuf> {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data")).join(relative);
    path.exists().then_some(path)
}

/// `whiten` at uniform ranks, without evaluation: what torch_reference.py does.
fn compress(c: &mut Criterion) {
    let (hub, dir) = (HubOptions::from_env(), tempfile::tempdir().unwrap());
    let (name, model, text) = match (data("models/llama-wiki-7m"), data("text/shakespeare/input.txt")) {
        (Some(model), Some(text)) => ("llama-wiki-7m", model.display().to_string(), text.display().to_string()),
        _ => ("demo", "demo".to_string(), "sample".to_string()),
    };
    let options = Options {
        model: Some(model),
        method: Some("whiten".into()),
        output: Some(dir.path().join("out")),
        keep: Some(0.6),
        allocation: Some(softlm::plan::AllocationRule::Uniform),
        inputs: Some(softlm::method::Inputs::Dense),
        calib: Some(vec![text]),
        calib_windows: Some(64),
        window: Some(WINDOW),
        sampling: Some(SamplingRule::First),
        ppl: Some(vec!["none".into()]),
        ..Options::default()
    };
    let recipe = options.resolve().unwrap();
    let mut group = c.benchmark_group("compress");
    group.sample_size(10);
    group.bench_function(BenchmarkId::from_parameter(name), |b| {
        b.iter(|| pipeline::compress(&recipe, true, &hub, &Device::Cpu, &()).unwrap())
    });
    group.finish();
}

/// Loading a block's weights: bf16 from the map to f32.
fn load(c: &mut Criterion) {
    let source = Source::demo();
    let shape = source.info("model.embed_tokens.weight").unwrap().shape.clone();
    let mut group = c.benchmark_group("load");
    group.throughput(Throughput::Elements(shape.iter().product::<usize>() as u64));
    group.bench_function("bf16 to f32", |b| {
        b.iter(|| source.tensor("model.embed_tokens.weight", &shape, DType::F32, &Device::Cpu).unwrap())
    });
    group.finish();
}

criterion_group!(benches, forward, load, shards, perplexity, compress);
criterion_main!(benches);

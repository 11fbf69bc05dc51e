//! The generated models against a second implementation, candle-transformers, for the families it has. Where it departs
//! from transformers, both are asked for what they agree on: but for Gemma 3, its windows show one key more than
//! they say and are the same in every layer; Gemma's scores are scaled by the head dimension; it knows few rope scalings.

use crate::parity::logits;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{
    gemma2, gemma3, mamba, mamba2, mistral, mixtral, phi3, qwen2, qwen2_moe, qwen3, qwen3_moe,
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use softlm::checkpoint::Source;
use softlm::model::Model;
use std::fs;
use std::path::Path;

/// Logits may differ by this much of the row's largest.
const LOGITS: f32 = 2e-5;

/// Logits of the last of some ids (1, t).
type Forward = Box<dyn FnMut(&Tensor) -> candle_core::Result<Tensor>>;
/// Makes one from a config and weights.
type Build = fn(Value, VarBuilder) -> candle_core::Result<Forward>;

fn config<T: DeserializeOwned>(config: Value) -> T {
    serde_json::from_value(config).expect("a config")
}

/// Of a model that is made from config and weights and run with an offset.
macro_rules! build {
    ($module:ident :: $model:ident $(, $flag:expr)?) => {
        |c, weights| {
            let mut model = $module::$model::new($($flag,)? &config::<$module::Config>(c), weights)?;
            Ok(Box::new(move |ids| model.forward(ids, 0)))
        }
    };
}

/// Gemma 3, whose cache takes one token at a time only.
fn token_by_token(c: Value, weights: VarBuilder) -> candle_core::Result<Forward> {
    let mut model = gemma3::Model::new(false, &config::<gemma3::Config>(c), weights)?;
    Ok(Box::new(move |ids| {
        let last = ids.dim(1)? - 1;
        for i in 0..last {
            model.forward(&ids.narrow(1, i, 1)?, i)?;
        }
        model.forward(&ids.narrow(1, last, 1)?, last)
    }))
}

/// Mamba and Mamba-2, which take one token at a time and hand a state on.
macro_rules! recurrent {
    ($module:ident, $embedding:literal) => {
        |c, weights| {
            let config: $module::Config = config(c);
            let renamed = weights.rename_f(|name| name.replace($embedding, "embeddings."));
            let model = $module::Model::new(&config, renamed.pp("backbone"))?;
            Ok(Box::new(move |ids| {
                let mut state = $module::State::new(1, &config, DType::F32, &Device::Cpu)?;
                let mut logits = None;
                for i in 0..ids.dim(1)? {
                    logits = Some(model.forward(&ids.narrow(1, i, 1)?.squeeze(1)?, &mut state)?);
                }
                Ok(logits.expect("at least one token"))
            }))
        }
    };
}

/// `from` with some keys changed, removed where the value is null.
fn with(from: &Map<String, Value>, changes: &Value) -> Map<String, Value> {
    let mut map = from.clone();
    for (key, value) in changes.as_object().expect("an object") {
        map.insert(key.clone(), value.clone());
    }
    map
}

/// The model in `folder` with config.json changed, and the changed config.
fn open(folder: &Path, changes: &Value) -> (Model, Map<String, Value>) {
    let text = fs::read(folder.join("config.json")).expect("a config");
    let config = with(&serde_json::from_slice(&text).expect("JSON"), changes);
    let scratch = tempfile::tempdir().expect("a scratch folder");
    fs::copy(folder.join("model.safetensors"), scratch.path().join("model.safetensors")).expect("copied");
    fs::write(scratch.path().join("config.json"), Value::Object(config.clone()).to_string()).expect("written");
    let source = Source::open(scratch.path()).expect("a checkpoint");
    (Model::load(source, &Device::Cpu).expect("a model"), config)
}

#[test]
fn logits_equal_those_of_a_second_implementation() {
    let no_window = json!({ "sliding_window": null });
    let full = ["full_attention", "full_attention"];
    let plain_scale = json!({ "sliding_window": null, "layer_types": full, "query_pre_attn_scalar": 8 });
    let all = json!({ "sliding_window": 1000 });
    // Model, what is changed for both, what is added for the other one, how that is made.
    let cases: [(&str, Value, Value, Build); 11] = [
        ("mistral-tiny", json!({ "rope_scaling": null }), json!({ "sliding_window": 7 }), build!(mistral::Model)),
        (
            "qwen2-tiny",
            json!({ "use_sliding_window": false, "layer_types": null }),
            all.clone(),
            build!(qwen2::ModelForCausalLM),
        ),
        ("qwen3-tiny", json!({}), json!({}), build!(qwen3::ModelForCausalLM)),
        ("gemma2-tiny", plain_scale, json!({}), build!(gemma2::Model, false)),
        (
            "gemma3-tiny",
            json!({ "rope_scaling": null, "query_pre_attn_scalar": 8 }),
            json!({ "sliding_window_pattern": 2 }),
            token_by_token,
        ),
        ("phi3-tiny", no_window, json!({}), build!(phi3::Model)),
        ("mixtral-tiny", json!({}), json!({ "sliding_window": 1000, "use_flash_attn": false }), build!(mixtral::Model)),
        ("qwen2-moe-tiny", json!({}), all, build!(qwen2_moe::Model)),
        (
            "qwen3-moe-tiny",
            json!({ "decoder_sparse_step": 2, "mlp_only_layers": null }),
            json!({ "max_window_layers": 2 }),
            build!(qwen3_moe::ModelForCausalLM),
        ),
        (
            "mamba-tiny-16",
            json!({}),
            json!({ "d_model": 24, "n_layer": 2, "pad_vocab_size_multiple": 1 }),
            recurrent!(mamba, "embedding."),
        ),
        (
            "mamba2-tiny",
            json!({ "tie_word_embeddings": true, "time_step_limit": null }),
            json!({ "pad_vocab_size_multiple": 1 }),
            recurrent!(mamba2, "embedding."),
        ),
    ];
    for (name, both, other, build) in cases {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(name);
        let (model, config) = open(&folder, &both);
        let config = Value::Object(with(&config, &other));
        let ids: Vec<u32> = (0..48).map(|i| (7 + 31 * i + i * i / 3) % model.vocab() as u32).collect();
        let ours = logits(&model, std::slice::from_ref(&ids));
        let weights = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).expect("weights");
        let weights = weights.into_iter().map(|(name, w)| (name, w.to_dtype(DType::F32).expect("f32"))).collect();
        let weights = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
        let mut worst = 0f32;
        for position in [0, 1, 9, 30, 47] {
            let mut forward = build(config.clone(), weights.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
            let prefix = Tensor::new(&ids[..=position], &Device::Cpu).and_then(|x| x.unsqueeze(0)).expect("ids");
            let theirs = forward(&prefix).unwrap_or_else(|e| panic!("{name}: {e}"));
            let theirs: Vec<f32> = theirs.flatten_all().and_then(|x| x.to_vec1()).expect("numbers");
            assert_eq!(theirs.len(), model.vocab(), "{name}");
            let largest = theirs.iter().fold(0f32, |m, x| m.max(x.abs()));
            let off = ours[0][position].iter().zip(&theirs).map(|(a, b)| (a - b).abs() / largest).fold(0f32, f32::max);
            assert!(off < LOGITS, "{name}: position {position}: logits are off by {off:.1e}");
            worst = worst.max(off);
        }
        println!("{name}: logits off by at most {worst:.1e}");
    }
}

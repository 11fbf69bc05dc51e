//! A config.json that is wrong, incomplete or of another family: the error names the key or value and says what to do.

use candle_core::Device;
use serde_json::{Map, Value, json};
use softlm::checkpoint::Source;
use softlm::error::UserError;
use softlm::model::{Model, known_families};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

const LLAMA: &str = "llama-tiny-bias";
const GPT2: &str = "gpt2-tiny";

/// A copy of a generated model with `key` changed to `value`, or removed when that is null.
fn copy(model: &str, key: &str, value: Value) -> (TempDir, Result<Model, anyhow::Error>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(model);
    let mut config: Map<String, Value> =
        serde_json::from_slice(&fs::read(folder.join("config.json")).expect("a config")).expect("JSON");
    config.remove(key);
    if !value.is_null() {
        config.insert(key.to_string(), value);
    }
    let scratch = tempfile::tempdir().expect("a scratch folder");
    fs::copy(folder.join("model.safetensors"), scratch.path().join("model.safetensors")).expect("copied");
    let text = serde_json::to_string(&config).expect("JSON");
    fs::write(scratch.path().join("config.json"), text).expect("written");
    let model = Source::open(scratch.path()).and_then(|source| Model::load(source, &Device::Cpu));
    (scratch, model)
}

/// The message and hint of a mistake that is the user's.
#[track_caller]
fn refusal<T>(result: Result<T, anyhow::Error>, case: &str) -> (String, String) {
    let Err(error) = result else { panic!("{case}: accepted") };
    let user = error.downcast_ref::<UserError>().unwrap_or_else(|| panic!("{case}: no user error: {error:?}"));
    (format!("{error:#}"), user.hint_text().unwrap_or_default().to_string())
}

#[test]
fn what_cannot_be_run_is_refused_by_name() {
    let longrope = json!({ "rope_type": "longrope", "short_factor": [1.0], "long_factor": [4.0] });
    let old_style = json!({ "type": "su", "factor": 4.0 });
    let cases: [(&str, &str, Value, &[&str]); 66] = [
        (LLAMA, "model_type", json!("rwkv"), &["rwkv"]),
        (LLAMA, "model_type", json!(7), &["model_type", "7"]),
        (LLAMA, "num_attention_heads", json!(5), &["num_attention_heads", "5"]),
        (LLAMA, "num_key_value_heads", json!(3), &["num_key_value_heads", "3", "4"]),
        (GPT2, "n_head", json!(5), &["n_embd", "24", "n_head", "5"]),
        (LLAMA, "rope_scaling", json!({ "rope_type": "ntk" }), &["rope", "ntk"]),
        (LLAMA, "rope_scaling", longrope.clone(), &["rope", "factor"]),
        (LLAMA, "rope_scaling", old_style, &["rope", "su"]),
        (LLAMA, "rope_scaling", json!({ "rope_type": "yarn" }), &["rope", "factor"]),
        (LLAMA, "rope_scaling", json!({ "type": "yarn", "factor": 2.0, "beta_fast": -1.0 }), &["rope", "beta_fast"]),
        (LLAMA, "rope_scaling", json!({ "rope_type": "llama3", "factor": 8.0 }), &["low_freq_factor"]),
        (LLAMA, "rope_scaling", json!({ "rope_type": "linear", "factor": 0.0 }), &["factor"]),
        ("mamba-tiny", "hidden_act", json!("mish"), &["hidden_act", "mish"]),
        ("mamba-tiny", "time_step_rank", json!("most"), &["time_step_rank", "most"]),
        ("mamba-tiny", "expand", json!(0), &["expand", "0"]),
        ("mamba2-tiny", "num_heads", json!(5), &["num_heads", "5", "8", "48"]),
        ("mamba2-tiny", "n_groups", json!(4), &["num_heads", "6", "n_groups", "4"]),
        ("mamba2-tiny", "rms_norm", json!(false), &["rms_norm", "false"]),
        ("mamba2-tiny", "time_step_limit", json!([2.0, 1.0]), &["time_step_limit", "[2.0,1.0]"]),
        ("mamba2-tiny", "time_step_limit", json!(0.5), &["time_step_limit", "0.5"]),
        (LLAMA, "hidden_act", json!("mish"), &["hidden_act", "mish"]),
        (GPT2, "activation_function", json!("quick_gelu"), &["activation_function", "quick_gelu"]),
        (LLAMA, "head_dim", json!(5), &["5", "odd"]),
        (LLAMA, "hidden_size", json!(-24), &["hidden_size", "-24"]),
        (LLAMA, "rms_norm_eps", json!("tiny"), &["rms_norm_eps", "tiny"]),
        (GPT2, "scale_attn_by_inverse_layer_idx", json!(true), &["scale_attn_by_inverse_layer_idx", "true"]),
        ("mistral-tiny", "sliding_window", json!(0), &["sliding_window", "0"]),
        ("mistral-tiny", "sliding_window", json!("wide"), &["sliding_window", "wide"]),
        ("qwen2-tiny", "layer_types", json!(["full_attention"]), &["layer_types", "1 of 3"]),
        ("qwen2-tiny", "layer_types", json!(["chunked_attention", 1, 2]), &["layer_types", "chunked_attention"]),
        ("qwen2-tiny", "max_window_layers", json!(-1), &["max_window_layers", "-1"]),
        (
            LLAMA,
            "num_hidden_layers",
            json!(1_000_000_000),
            &["num_hidden_layers", "1000000000", "model.layers.2.", "missing"],
        ),
        (LLAMA, "num_hidden_layers", json!(100_000_000_000u64), &["num_hidden_layers", "model.layers.2."]),
        (LLAMA, "head_dim", json!(1u64 << 62), &["head_dim", "4611686018427387904", "longer than 96"]),
        (LLAMA, "hidden_size", json!(1u64 << 40), &["model.embed_tokens.weight", "1099511627776"]),
        (LLAMA, "vocab_size", json!(1_000_000_000_000u64), &["model.embed_tokens.weight", "1000000000000"]),
        (LLAMA, "intermediate_size", json!(1u64 << 62), &["gate_proj.weight", "4611686018427387904"]),
        ("qwen3-moe-tiny", "num_experts", json!(1_000_000_000), &["num_experts", "1000000000"]),
        ("qwen3-moe-tiny", "num_experts", json!(60_000), &["model.layers.1.mlp.gate.weight", "60000"]),
        ("mamba-tiny", "state_size", json!(1u64 << 62), &["A_log", "4611686018427387904"]),
        ("mamba2-tiny", "n_groups", json!(1u64 << 62), &["num_heads", "n_groups"]),
        (GPT2, "n_positions", json!(u64::MAX), &["transformer.wpe.weight"]),
        ("qwen3-tiny", "num_key_value_heads", json!(3), &["num_key_value_heads", "3", "4"]),
        ("gemma2-tiny", "query_pre_attn_scalar", json!(-1), &["query_pre_attn_scalar", "-1"]),
        ("gemma2-tiny", "attn_logit_softcapping", json!(0.0), &["attn_logit_softcapping", "0"]),
        ("gemma2-tiny", "hidden_activation", json!("mish"), &["hidden_activation", "mish"]),
        ("gemma3-tiny", "attn_logit_softcapping", json!(50.0), &["attn_logit_softcapping", "50"]),
        ("gemma3-tiny", "use_bidirectional_attention", json!(true), &["use_bidirectional_attention", "true"]),
        ("mixtral-tiny", "num_experts_per_tok", json!(5), &["num_experts_per_tok", "5", "num_local_experts", "4"]),
        ("qwen3-moe-tiny", "use_sliding_window", json!(true), &["use_sliding_window", "true"]),
        ("phi3-tiny", "rope_scaling", longrope, &["rope", "short_factor", "1 positive", "2 are"]),
        ("phi3-tiny", "rope_scaling", json!({ "type": "su", "factor": 4.0 }), &["rope", "short_factor"]),
        ("phi3-tiny", "partial_rotary_factor", json!(1.5), &["partial_rotary_factor", "1.5"]),
        ("gpt-neox-tiny", "num_attention_heads", json!(5), &["hidden_size", "32", "num_attention_heads", "5"]),
        ("gpt-neox-tiny", "rotary_pct", json!(0.4), &["3", "odd"]),
        ("gpt-neox-tiny", "hidden_act", json!("gelu_fancy"), &["hidden_act", "gelu_fancy"]),
        ("opt-tiny", "do_layer_norm_before", json!(false), &["do_layer_norm_before", "false"]),
        ("opt-tiny", "word_embed_proj_dim", json!(12), &["word_embed_proj_dim", "12", "hidden_size", "24"]),
        ("opt-tiny", "layer_norm_elementwise_affine", json!(false), &["layer_norm_elementwise_affine", "false"]),
        ("bert-tiny", "position_embedding_type", json!("relative_key"), &["position_embedding_type", "relative_key"]),
        ("bert-tiny", "position_embedding_type", json!("relative_key_query"), &["relative_key_query"]),
        ("bert-tiny", "is_decoder", json!(true), &["is_decoder", "true", "bert"]),
        ("bert-tiny", "num_attention_heads", json!(5), &["hidden_size", "24", "num_attention_heads", "5"]),
        ("bert-tiny", "hidden_act", json!("mish"), &["hidden_act", "mish"]),
        ("distilbert-tiny", "n_heads", json!(5), &["dim", "24", "n_heads", "5"]),
        ("distilbert-tiny", "activation", json!(1), &["activation", "1"]),
    ];
    for (model, key, value, named) in cases {
        let case = format!("{model} with {key} = {value}");
        let (message, hint) = refusal(copy(model, key, value).1, &case);
        for part in named {
            assert!(message.contains(part), "{case}: {part:?} is not in {message:?}");
        }
        assert!(!hint.is_empty(), "{case}: no hint for {message:?}");
    }
}

#[test]
fn an_unknown_family_is_told_which_are_known() {
    let (_, hint) = refusal(copy(LLAMA, "model_type", json!("rwkv")).1, "rwkv");
    for family in known_families() {
        assert!(hint.contains(family), "{family} is not in {hint:?}");
    }
}

#[test]
fn a_missing_key_is_named() {
    let llama = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"];
    let gpt2 = ["n_embd", "n_layer", "n_head", "vocab_size"];
    let opt = ["hidden_size", "ffn_dim", "num_hidden_layers", "num_attention_heads", "vocab_size"];
    let like_llama =
        ["mistral-tiny", "qwen2-tiny", "qwen3-tiny", "gemma2-tiny", "gemma3-tiny", "phi3-tiny", "gpt-neox-tiny"];
    let both = llama.map(|key| (LLAMA, key)).into_iter().chain(gpt2.map(|key| (GPT2, key)));
    let both = both.chain(like_llama.into_iter().flat_map(|model| llama.map(|key| (model, key))));
    let experts = [("mixtral-tiny", "num_local_experts"), ("qwen2-moe-tiny", "shared_expert_intermediate_size")];
    let both =
        both.chain(experts).chain([("qwen3-moe-tiny", "moe_intermediate_size"), ("qwen3-moe-tiny", "num_experts")]);
    let both = both.chain(opt.map(|key| ("opt-tiny", key)));
    let distil = ["dim", "hidden_dim", "n_layers", "n_heads", "vocab_size"];
    let both = both.chain(llama.map(|key| ("bert-tiny", key))).chain(distil.map(|key| ("distilbert-tiny", key)));
    let mamba = ["hidden_size", "num_hidden_layers", "vocab_size"];
    let both = both.chain(mamba.into_iter().flat_map(|key| ["mamba-tiny", "mamba2-tiny"].map(|model| (model, key))));
    for (model, key) in both.chain([(LLAMA, "model_type"), (GPT2, "model_type")]) {
        let case = format!("{model} without {key}");
        let (message, hint) = refusal(copy(model, key, Value::Null).1, &case);
        assert!(message.contains(&format!("`{key}`")), "{case}: {message}");
        assert!(!hint.is_empty(), "{case}: no hint");
    }
}

#[test]
fn ids_beyond_the_vocabulary_are_named() {
    let (_folder, model) = copy(LLAMA, "vocab_size", json!(96));
    let model = model.expect("unchanged");
    assert!(model.embed(&[&[0, 95], &[1, 2]]).is_ok());
    let (message, hint) = refusal(model.embed(&[&[0, 95], &[1, 96]]), "id 96 of 96");
    assert!(message.contains("token id 96") && message.contains("96 rows"), "{message}");
    assert!(hint.contains("tokenizer"), "{hint}");
}

#[test]
fn sizes_that_the_weights_do_not_have_are_refused_before_a_weight_is_read() {
    let cases: [(&str, &str, usize, &[&str]); 20] = [
        (LLAMA, "vocab_size", 100, &["model.embed_tokens.weight", "96", "100"]),
        (LLAMA, "hidden_size", 48, &["model.embed_tokens.weight", "24", "48"]),
        (LLAMA, "intermediate_size", 41, &["model.layers.0.mlp.gate_proj.weight", "40", "41"]),
        (LLAMA, "num_key_value_heads", 2, &["model.layers.0.self_attn.k_proj.weight", "24", "12"]),
        (LLAMA, "num_hidden_layers", 3, &["model.layers.2.", "missing"]),
        (GPT2, "n_positions", 65, &["transformer.wpe.weight", "64", "65"]),
        (GPT2, "n_inner", 97, &["transformer.h.0.mlp.c_fc.weight", "96", "97"]),
        ("mixtral-tiny", "num_local_experts", 5, &["model.layers.0.block_sparse_moe.gate.weight", "4", "5"]),
        (
            "qwen2-moe-tiny",
            "shared_expert_intermediate_size",
            21,
            &["model.layers.0.mlp.shared_expert.gate_proj.weight", "20"],
        ),
        ("phi3-tiny", "num_key_value_heads", 4, &["model.layers.0.self_attn.qkv_proj.weight", "64", "96"]),
        ("phi3-tiny", "intermediate_size", 41, &["model.layers.0.mlp.gate_up_proj.weight", "80", "82"]),
        ("gpt-neox-tiny", "intermediate_size", 41, &["gpt_neox.layers.0.mlp.dense_h_to_4h.weight", "40", "41"]),
        ("opt-tiny", "max_position_embeddings", 65, &["model.decoder.embed_positions.weight", "66", "67"]),
        ("bert-tiny", "type_vocab_size", 3, &["bert.embeddings.token_type_embeddings.weight", "2", "3"]),
        ("bert-tiny", "intermediate_size", 41, &["bert.encoder.layer.0.intermediate.dense.weight", "40", "41"]),
        ("distilbert-tiny", "n_layers", 3, &["distilbert.transformer.layer.2.", "missing"]),
        ("mamba-tiny", "state_size", 7, &["backbone.layers.0.mixer.A_log", "6", "7"]),
        ("mamba-tiny", "conv_kernel", 3, &["backbone.layers.0.mixer.conv1d.weight", "4", "3"]),
        ("mamba2-tiny", "state_size", 8, &["backbone.layers.0.mixer.conv1d.weight", "76", "80"]),
        ("gemma2-tiny", "head_dim", 10, &["model.layers.0.self_attn.q_proj.weight", "32", "40"]),
    ];
    for (model, key, size, named) in cases {
        let case = format!("{model} with {key} = {size}");
        let (message, hint) = refusal(copy(model, key, json!(size)).1, &case);
        for part in named {
            assert!(message.contains(part), "{case}: {part:?} is not in {message:?}");
        }
        assert!(!hint.is_empty(), "{case}: no hint");
    }
}

#[test]
fn a_window_longer_than_the_context_is_refused() {
    let (_folder, model) = copy(GPT2, "n_positions", json!(64));
    let model = model.expect("unchanged");
    assert!(model.embed(&[&[1; 64]]).is_ok());
    let (message, hint) = refusal(model.embed(&[&[1; 65]]), "65 of 64");
    assert!(message.contains("65") && message.contains("64") && hint.contains("--window"), "{message}; {hint}");
}

/// Where in a config integers stand, as JSON pointers.
fn integers(value: &Value, at: String, found: &mut Vec<String>) {
    match value {
        Value::Number(number) if number.is_u64() || number.is_i64() => found.push(at),
        Value::Object(map) => map.iter().for_each(|(key, value)| integers(value, format!("{at}/{key}"), found)),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, value)| integers(value, format!("{at}/{i}"), found));
        }
        _ => {}
    }
}

/// Whatever stands in the place of an integer, the model loads or is refused, at once; and one that loads can be asked.
#[test]
fn any_integer_may_be_anything() {
    let values = [
        json!(0),
        json!(1),
        json!(1u64 << 31),
        json!(1u64 << 62),
        json!(u64::MAX),
        json!(1_000_000_000_000u64),
        json!(-1),
        json!(1.5),
        json!("x"),
        json!(null),
        json!([]),
        json!({}),
    ];
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let (mut loaded, mut refused) = (0, 0);
    for folder in ["models", "encoders"].iter().flat_map(|kind| fs::read_dir(golden.join(kind)).expect("generated")) {
        let folder = folder.expect("an entry").path();
        fs::copy(folder.join("model.safetensors"), scratch.path().join("model.safetensors")).expect("copied");
        let config: Value =
            serde_json::from_slice(&fs::read(folder.join("config.json")).expect("a config")).expect("JSON");
        let mut places = Vec::new();
        integers(&config, String::new(), &mut places);
        for (place, value) in places.iter().flat_map(|place| values.iter().map(move |value| (place, value))) {
            let case = format!("{} with {place} = {value}", folder.display());
            let mut config = config.clone();
            *config.pointer_mut(place).expect("a place") = value.clone();
            fs::write(scratch.path().join("config.json"), config.to_string()).expect("written");
            let since = std::time::Instant::now();
            let model = Source::open(scratch.path()).and_then(|source| Model::load(source, &Device::Cpu));
            match model {
                Ok(model) => {
                    loaded += 1;
                    let states = model.embed(&[&[1, 2, 3]]);
                    drop(states.and_then(|x| model.block(0)?.forward(&x, &mut ())));
                }
                Err(error) => {
                    refused += 1;
                    assert!(error.downcast_ref::<UserError>().is_some(), "{case}: no user error: {error:?}");
                }
            }
            assert!(since.elapsed().as_secs() < 5, "{case}: {:?}", since.elapsed());
        }
    }
    assert!(loaded > 100 && refused > 100, "{loaded} loaded, {refused} refused");
}

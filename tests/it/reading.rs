//! Valid checkpoints in every shape in which they come: names without prefix or inside a multimodal model, every spelling
//! of a config. And those that hold no weights of their own: quantised ones, adapters, pointers.

use crate::families;
use crate::program::{Place, change_config, change_weights, copy_folder, tensors};
use candle_core::Device;
use serde_json::{Map, Value, json};
use softlm::checkpoint::{Dtype, NamedTensor, Source, write_tensors};
use softlm::error::UserError;
use softlm::job::Copied;
use softlm::model::{Model, Output, verify};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON")
}

/// All generated models and encoders.
fn folders() -> Vec<PathBuf> {
    let read = |kind| fs::read_dir(golden(kind)).expect("generated models").map(|entry| entry.expect("one").path());
    read("models").chain(read("encoders")).collect()
}

/// A copy to be changed.
fn copy(folder: &Path) -> (TempDir, PathBuf) {
    let place = tempfile::tempdir().expect("a scratch folder");
    let to = place.path().join("model");
    copy_folder(folder, &to);
    (place, to)
}

fn load(folder: &Path) -> Result<Model, anyhow::Error> {
    Source::open(folder).and_then(|source| Model::load(source, &Device::Cpu))
}

/// Logits of the last position of 60 ids, or its state where the model has no such thing.
pub fn says(model: &Model) -> Vec<f32> {
    says_at(model, &[59]).remove(0)
}

fn says_at(model: &Model, positions: &[usize]) -> Vec<Vec<f32>> {
    let ids: Vec<u32> = (0..60).map(|i| (7 + 31 * i) % model.vocab() as u32).collect();
    let mut h = model.embed(&[&ids]).expect("embedded");
    for index in 0..model.blocks() {
        h = model.block(index).expect("a block").forward(&h, &mut ()).expect("a pass").expect("nothing stops it");
    }
    let mut rows = h.squeeze(0).expect("one row");
    if matches!(model.output(), Output::NextToken | Output::MaskedToken) {
        rows = model.head().and_then(|head| head.logits(&rows)).expect("logits");
    }
    let rows = rows.to_vec2::<f32>().expect("numbers");
    positions.iter().map(|&position| rows[position].clone()).collect()
}

/// The message and hint of a mistake that is the user's.
#[track_caller]
fn refused<T>(result: Result<T, anyhow::Error>, named: &[&str], hinted: &str) {
    let Err(error) = result else { panic!("accepted, though it should say {named:?}") };
    let message = format!("{error:#}");
    let user = error.downcast_ref::<UserError>().unwrap_or_else(|| panic!("no user error: {error:?}"));
    for part in named {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
    let hint = user.hint_text().unwrap_or_default();
    assert!(hint.contains(hinted), "{hinted:?} is not in the hint {hint:?}");
}

/// What stands in front of a family's tensors, but not of those of its model without a head.
fn prefix(model_type: &str) -> &'static str {
    match model_type {
        "gpt2" => "transformer.",
        "gpt_neox" => "gpt_neox.",
        "mamba" | "mamba2" => "backbone.",
        "bert" => "bert.",
        "distilbert" => "distilbert.",
        _ => "model.",
    }
}

#[test]
fn every_family_may_lack_its_prefix() {
    for folder in folders() {
        let (_place, bare) = copy(&folder);
        let config = json_of(&folder.join("config.json"));
        let prefix = prefix(config["model_type"].as_str().expect("a family"));
        change_weights(&bare, |all| {
            *all = std::mem::take(all)
                .into_iter()
                .map(|(name, tensor)| (name.strip_prefix(prefix).unwrap_or(&name).to_string(), tensor))
                .collect();
        });
        let [usual, bare] = [load(&folder), load(&bare)].map(|model| model.expect("a model"));
        assert_eq!(usual.output(), bare.output(), "{}", folder.display());
        assert_eq!(says(&usual), says(&bare), "{}", folder.display());
        assert!(bare.linears().iter().all(|spec| bare.source().info(&spec.weight_name()).is_some()));
    }
}

#[test]
fn a_model_without_its_head_cannot_be_run() {
    let (_place, folder) = copy(&golden("models/llama-tiny-rope3"));
    change_weights(&folder, |all| {
        all.remove("lm_head.weight");
        *all = std::mem::take(all).into_iter().map(|(name, tensor)| (name.replacen("model.", "", 1), tensor)).collect();
    });
    refused(load(&folder), &["lm_head.weight", "missing"], "tie_word_embeddings");
}

#[test]
fn what_is_compressed_keeps_the_names_of_the_checkpoint() {
    let (place, folder) = copy(&golden("models/llama-tiny-bias"));
    change_weights(&folder, |all| {
        *all = std::mem::take(all).into_iter().map(|(name, tensor)| (name.replacen("model.", "", 1), tensor)).collect();
    });
    let output = place.path().join("out");
    families::compress(&folder, "lorap", &output);
    let (base, compressed) = (Source::open(&folder).expect("the base"), Source::open(&output).expect("an output"));
    assert!(compressed.is_stored("embed_tokens.weight") && !compressed.names().any(|name| name.starts_with("model.")));
    assert_eq!(verify(&compressed, Some(&base), None).expect("readable").problems, Vec::<String>::new());
    assert!(says(&load(&output).expect("a model")).iter().all(|x| x.is_finite()));
}

/// One of the models in wrapped.json as a folder, its tensors under names that `rename` makes of those.
pub fn wrapped(case: &Value, rename: impl Fn(&str) -> String) -> (TempDir, PathBuf) {
    let place = tempfile::tempdir().expect("a scratch folder");
    let text = golden("models").join(case["text"].as_str().expect("a name")).join("model.safetensors");
    let stored = |name: &str| rename(case["names"][name].as_str().expect("a name"));
    let mut all: Vec<NamedTensor> = tensors(&text)
        .into_iter()
        .map(|(name, (dtype, shape, data))| NamedTensor::new(stored(&name), dtype, shape, data))
        .collect();
    for (name, shape) in case["others"].as_object().expect("names") {
        let shape: Vec<usize> = serde_json::from_value(shape.clone()).expect("a shape");
        let bytes = vec![7; 4 * shape.iter().product::<usize>()];
        all.push(NamedTensor::new(rename(name), Dtype::F32, shape, bytes));
    }
    write_tensors(&place.path().join("model.safetensors"), &all, &BTreeMap::new()).expect("written");
    fs::write(place.path().join("config.json"), case["config"].to_string()).expect("written");
    let folder = place.path().to_path_buf();
    (place, folder)
}

pub fn wrappers() -> Vec<Value> {
    json_of(&golden("wrapped.json"))["models"].as_array().expect("models").clone()
}

#[test]
fn text_models_inside_multimodal_ones_are_run() {
    for case in wrappers() {
        let text = load(&golden("models").join(case["text"].as_str().expect("a name"))).expect("a model");
        let expected = says(&text);
        // As transformers stores them, as its class has them since 4.52, and without the head's class.
        let same: &dyn Fn(&str) -> String = &|name| name.to_string();
        let inner: &dyn Fn(&str) -> String = &|name| {
            let name = name.replace("language_model.model.", "model.language_model.");
            name.replace("language_model.lm_head.", "lm_head.")
        };
        let bare: &dyn Fn(&str) -> String = &|name| {
            let name =
                name.replace("language_model.model.", "language_model.").replace("model.text_model.", "text_model.");
            name.replace("language_model.lm_head.", "lm_head.")
        };
        for rename in [same, inner, bare] {
            let (_place, folder) = wrapped(&case, rename);
            let model =
                load(&folder).unwrap_or_else(|e| panic!("{} in {}: {e:#}", case["text"], case["config"]["model_type"]));
            assert_eq!(says(&model), expected, "{} in {}", case["text"], case["config"]["model_type"]);
            assert_eq!(model.family(), text.family());
            assert_eq!(model.inside(), case["config"]["model_type"].as_str());
            assert_eq!(model.unknown_keys(), Vec::<String>::new());
        }
    }
}

#[test]
fn what_is_around_a_text_model_is_copied_and_its_width_lies_in_its_own_config() {
    let case = &wrappers()[0];
    let (place, folder) = wrapped(case, str::to_string);
    let output = place.path().join("out");
    families::compress(&folder, "lorap", &output);
    let (before, after) = (Source::open(&folder).expect("a base"), Source::open(&output).expect("an output"));
    for name in case["others"].as_object().expect("names").keys() {
        assert_eq!(before.bytes(name).expect("there"), after.bytes(name).expect("copied"), "{name}");
    }
    let config = after.config();
    assert!(!config.contains_key("intermediate_size"));
    let width = config["text_config"]["intermediate_size"].as_u64().expect("a width");
    assert!(width < 48, "{width}");
    let model = load(&output).expect("a model");
    assert!(says(&model).iter().all(|x| x.is_finite()));
    assert_eq!(model.described_family(), "llama in llava");
    let report = json_of(&output.join("report.json"));
    assert_eq!(report["model"]["family"], "llama in llava");
}

#[test]
fn a_text_config_leaves_out_what_is_as_usual() {
    let case = &wrappers()[0];
    for (key, named) in [("hidden_size", "4096"), ("num_attention_heads", "32"), ("num_hidden_layers", "32")] {
        let mut case = case.clone();
        case["config"]["text_config"].as_object_mut().expect("an object").remove(key);
        refused(load(&wrapped(&case, str::to_string).1), &[named], "");
    }
    let mut mistral = wrappers().into_iter().find(|case| case["config"]["model_type"] == "mistral3").expect("one");
    for key in ["model_type", "hidden_act", "head_dim", "attention_dropout"] {
        mistral["config"]["text_config"].as_object_mut().expect("an object").remove(key);
    }
    let (_place, folder) = wrapped(&mistral, str::to_string);
    refused(load(&folder), &["q_proj"], "");
    mistral["config"]["text_config"]["head_dim"] = json!(8);
    let (_place, folder) = wrapped(&mistral, str::to_string);
    assert_eq!(load(&folder).expect("a model").family(), "mistral");
}

#[test]
fn a_multimodal_model_may_tie_the_head_that_it_does_not_store() {
    let mut case = wrappers()[0].clone();
    let without_head = |case: &Value| {
        let (place, folder) = wrapped(case, str::to_string);
        change_weights(&folder, |all| {
            all.remove("language_model.lm_head.weight").expect("a head");
        });
        (place, load(&folder))
    };
    case["config"]["tie_word_embeddings"] = json!(false);
    refused(without_head(&case).1, &["lm_head.weight", "missing"], "tie_word_embeddings");
    // As transformers 5 stores some.
    case["config"]["tie_word_embeddings"] = json!(true);
    let (_place, model) = without_head(&case);
    assert!(says(&model.expect("a model")).iter().all(|x| x.is_finite()));
    // What is stored is not replaced.
    let (_whole, folder) = wrapped(&case, str::to_string);
    let model = load(&folder).expect("a model");
    let text = load(&golden("models/llama-tiny-rope3")).expect("a model");
    assert_eq!(says(&model), says(&text));
}

#[test]
fn other_multimodal_models_are_refused_by_name() {
    let mut case = wrappers()[0].clone();
    case["config"]["model_type"] = json!("paligemma");
    refused(load(&wrapped(&case, str::to_string).1), &["paligemma"], "llava");
    case["config"]["model_type"] = json!("llava");
    case["config"]["text_config"]["model_type"] = json!("cohere2");
    refused(load(&wrapped(&case, str::to_string).1), &["llava", "cohere2"], "llama");
}

#[test]
fn quantised_checkpoints_are_refused_by_what_they_are() {
    let (place, folder) = copy(&golden("models/llama-tiny-bias"));
    let methods = [
        (json!({ "quant_method": "gptq", "bits": 4 }), "gptq", "made from"),
        (json!({ "quant_method": "awq" }), "awq", "made from"),
        (json!({ "load_in_4bit": true }), "bitsandbytes", "dequantize"),
        (json!({ "quant_method": "fp8", "weight_block_size": [128, 128] }), "fp8", "dequantize=True"),
        (json!({ "quant_method": "compressed-tensors" }), "compressed-tensors", "made from"),
        (json!({}), "does not name", "made from"),
    ];
    for (config, method, hint) in methods {
        change_config(&folder, "quantization_config", config);
        refused(load(&folder), &[method, "quantization_config"], hint);
    }

    let extra = [
        ("qweight", Dtype::I32, "GPTQ", "made from"),
        ("weight_scale_inv", Dtype::F32, "fp8", "dequantize=True"),
        ("SCB", Dtype::F32, "bitsandbytes", "dequantize"),
        ("weight_packed", Dtype::I32, "compressed-tensors", "made from"),
        ("lora_A.weight", Dtype::F32, "LoRA", "merge_and_unload"),
    ];
    for (part, dtype, method, hint) in extra {
        let (_place, folder) = copy(&golden("models/llama-tiny-bias"));
        change_weights(&folder, |all| {
            all.insert(format!("model.layers.0.self_attn.q_proj.{part}"), (dtype, vec![2], vec![0; 8]));
        });
        refused(load(&folder), &[method, part], hint);
    }
    for dtype in [Dtype::I8, Dtype::F8_E4M3] {
        let (_place, folder) = copy(&golden("models/llama-tiny-bias"));
        change_weights(&folder, |all| {
            let (stored, shape, bytes) = all.get_mut("model.layers.1.mlp.up_proj.weight").expect("there");
            (*stored, *bytes) = (dtype, vec![0; shape.iter().product()]);
        });
        refused(load(&folder), &["model.layers.1.mlp.up_proj.weight", &dtype.to_string()], "BF16");
    }
    drop(place);
}

#[test]
fn adapters_are_to_be_merged_first() {
    let place = tempfile::tempdir().expect("a scratch folder");
    fs::write(place.path().join("adapter_config.json"), "{}").expect("written");
    fs::write(place.path().join("adapter_model.safetensors"), "").expect("written");
    refused(load(place.path()), &["LoRA adapter", "adapter_config.json"], "merge_and_unload");
    fs::copy(golden("models/llama-tiny-bias/config.json"), place.path().join("config.json")).expect("copied");
    refused(load(place.path()), &["LoRA adapter", "adapter_config.json"], "merge_and_unload");
    let (_place, folder) = copy(&golden("models/llama-tiny-bias"));
    fs::write(folder.join("adapter_config.json"), "{}").expect("written");
    refused(load(&folder), &["LoRA adapter", "beside its weights"], "merge_and_unload");
}

#[test]
fn pointers_of_git_lfs_are_recognised_and_a_byte_order_mark_is_no_part_of_json() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
    let (_place, folder) = copy(&golden("models/llama-tiny-bias"));
    let config = fs::read_to_string(folder.join("config.json")).expect("a config");
    fs::write(folder.join("config.json"), format!("\u{feff}{config}")).expect("written");
    load(&folder).expect("a model");
    fs::write(folder.join("config.json"), pointer).expect("written");
    refused(load(&folder), &["config.json", "Git LFS"], "git lfs pull");

    fs::write(folder.join("config.json"), config).expect("written");
    fs::rename(folder.join("model.safetensors"), folder.join("a.safetensors")).expect("renamed");
    let all = tensors(&folder.join("a.safetensors"));
    let map: Map<String, Value> = all.keys().map(|name| (name.clone(), json!("a.safetensors"))).collect();
    let index = json!({ "metadata": {}, "weight_map": map }).to_string();
    fs::write(folder.join("model.safetensors.index.json"), format!("\u{feff}{index}")).expect("written");
    load(&folder).expect("a model");
    fs::write(folder.join("model.safetensors.index.json"), pointer).expect("written");
    refused(load(&folder), &["model.safetensors.index.json", "Git LFS"], "git lfs pull");

    // Files beside them too, whether softlm reads them or only copies them.
    let (_place, folder) = copy(&golden("models/llama-tiny-bias"));
    let source = || Source::open(&folder).expect("a checkpoint");
    fs::write(folder.join("generation_config.json"), "\u{feff}{}").expect("written");
    Copied::of(&source()).expect("all files");
    let settings = source().side_file("generation_config.json").expect("readable").map(|bytes| bytes.into_owned());
    assert_eq!(settings.as_deref(), Some(&b"{}"[..]));
    for name in ["generation_config.json", "chat_template.jinja", "vocab.txt"] {
        fs::write(folder.join(name), pointer).expect("written");
        refused(Copied::of(&source()).map(drop), &[name, "Git LFS"], "git lfs pull");
        fs::remove_file(folder.join(name)).expect("removed");
    }
}

/// A copy with keys of config.json changed, or removed where the value is null.
fn with_config(model: &str, changes: &Value) -> (TempDir, PathBuf) {
    let (place, folder) = copy(&golden("models").join(model));
    let mut config = json_of(&folder.join("config.json")).as_object().expect("an object").clone();
    for (key, value) in changes.as_object().expect("an object") {
        config.remove(key);
        if !value.is_null() {
            config.insert(key.clone(), value.clone());
        }
    }
    fs::write(folder.join("config.json"), Value::Object(config).to_string()).expect("written");
    (place, folder)
}

#[track_caller]
fn assert_near(found: &[f32], expected: &[f64], case: &str) {
    let largest = expected.iter().fold(0f64, |m, x| m.max(x.abs()));
    for (a, b) in found.iter().zip(expected) {
        assert!((f64::from(*a) - b).abs() < 2e-5 * largest, "{case}: {found:?} instead of {expected:?}");
    }
}

#[test]
fn every_spelling_of_rope_parameters_is_that_of_transformers() {
    let golden = json_of(&golden("rope.json"));
    let positions: Vec<usize> = serde_json::from_value(golden["positions"].clone()).expect("positions");
    for (name, case) in golden["cases"].as_object().expect("cases") {
        let expected: Vec<Vec<f64>> = serde_json::from_value(case["logits"].clone()).expect("logits");
        for spelling in case["spellings"].as_array().expect("spellings") {
            let changes = &spelling["changes"];
            let (_place, folder) = with_config(case["model"].as_str().expect("a name"), changes);
            let model = load(&folder).unwrap_or_else(|e| panic!("{name}: {changes}: {e:#}"));
            for (found, expected) in says_at(&model, &positions).iter().zip(&expected) {
                assert_near(&found[..8], expected, &format!("{name}: {changes}"));
            }
        }
    }
}

#[test]
fn rope_parameters_that_contradict_each_other_are_refused() {
    let both = json!({ "rope_type": "yarn", "type": "linear", "factor": 2.0 });
    let unknown = json!({ "rope_type": "linear", "factor": 2.0, "short_mscale": 1.2 });
    let inner = json!({ "rope_type": "linear", "factor": 2.0, "rope_theta": 77.0 });
    let original = json!({ "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32 });
    let kinds = json!({ "full_attention": { "rope_type": "default" }, "factor": 2.0 });
    let cases: [(&str, Value, &[&str]); 14] = [
        ("llama-tiny-bias", json!({ "rope_scaling": both }), &["rope_type", "yarn", "linear"]),
        ("llama-tiny-bias", json!({ "rope_scaling": unknown }), &["short_mscale", "1.2"]),
        ("llama-tiny-bias", json!({ "rope_scaling": inner, "rope_theta": 10000.0 }), &["rope_theta", "77", "10000"]),
        ("llama-tiny-bias", json!({ "rope_scaling": "linear" }), &["rope_scaling", "linear"]),
        ("llama-tiny-bias", json!({ "rope_scaling": { "factor": 2.0 } }), &["factor", "rope_type"]),
        ("llama-tiny-bias", json!({ "rope_scaling": { "type": "linear", "factor": "2.0" } }), &["factor", "2.0"]),
        ("llama-tiny-bias", json!({ "rope_scaling": { "type": "dynamic" } }), &["factor"]),
        (
            "llama-tiny-bias",
            json!({ "rope_scaling": original, "original_max_position_embeddings": 64 }),
            &["original_max_position_embeddings", "32", "64"],
        ),
        (
            "llama-tiny-bias",
            json!({ "rope_scaling": { "type": "linear", "factor": 2.0 }, "rope_parameters": { "rope_type": "default" } }),
            &["rope_scaling", "rope_parameters"],
        ),
        ("llama-tiny-bias", json!({ "partial_rotary_factor": 0.5 }), &["partial_rotary_factor", "0.5", "llama"]),
        ("phi3-tiny", json!({ "rope_scaling": { "type": "linear", "factor": 2.0 } }), &["linear", "phi3"]),
        (
            "gpt-neox-tiny",
            json!({ "rotary_emb_base": null, "rope_theta": 77.0 }),
            &["rope_theta", "77", "rotary_emb_base"],
        ),
        ("gemma3-tiny", json!({ "rope_scaling": null, "rope_parameters": kinds }), &["factor", "full_attention"]),
        (
            "gemma3-tiny",
            json!({ "rope_scaling": null, "rope_parameters": { "rope_type": "linear", "factor": 2.0 } }),
            &["full_attention", "sliding_attention"],
        ),
    ];
    for (model, changes, named) in cases {
        refused(load(&with_config(model, &changes).1), named, "");
    }
}

#[test]
fn a_window_may_begin_at_the_first_layer() {
    let changes = json!({ "max_window_layers": 0, "sliding_window": 8, "layer_types": null });
    let model = load(&with_config("qwen2-tiny", &changes).1).expect("a model");
    // transformers 4.57.6, f32, eager attention.
    assert_near(
        &says(&model)[..3],
        &[-1.233296513557434, 0.3679782748222351, 0.13071823120117188],
        "max_window_layers 0",
    );
    let changes = json!({ "use_sliding_window": false });
    refused(load(&with_config("qwen2-tiny", &changes).1), &["sliding window"], "layer_types");
    let changes = json!({ "layer_types": ["full_attention", "sliding_attention"] });
    refused(load(&with_config("mistral-tiny", &changes).1), &["layer_types", "sliding_window"], "ministral");
}

#[test]
fn tables_of_a_long_context_are_not_made() {
    let expected = says(&load(&golden("models/llama-tiny-bias")).expect("a model"));
    for context in [4_194_304u64, 1_000_000_000_000] {
        let (_place, folder) = with_config("llama-tiny-bias", &json!({ "max_position_embeddings": context }));
        let model = load(&folder).expect("a model");
        assert_eq!(model.context() as u64, context);
        assert_eq!(says(&model), expected);
    }
}

#[test]
fn keys_may_have_the_second_name_that_their_class_knows() {
    let pairs = [("n_embd", "hidden_size"), ("n_layer", "num_hidden_layers"), ("n_head", "num_attention_heads")];
    let distil = [("dim", "hidden_size"), ("n_layers", "num_hidden_layers"), ("n_heads", "num_attention_heads")];
    let experts = |own, second| {
        [(own, second), ("moe_intermediate_size", "moe_intermediate_size"), ("hidden_size", "hidden_size")]
    };
    let mixtral = experts("num_local_experts", "num_experts");
    let qwen = experts("num_experts", "num_local_experts");
    let all = [("gpt2-tiny", pairs), ("distilbert-tiny", distil), ("mixtral-tiny", mixtral), ("qwen3-moe-tiny", qwen)];
    for (model, pairs) in all {
        let config = json_of(&golden("models").join(model).join("config.json"));
        let mut changes = json!({});
        for (own, second) in pairs {
            changes[own] = Value::Null;
            changes[second] = config[own].clone();
        }
        let (_place, folder) = with_config(model, &changes);
        let (usual, renamed) = (load(&golden("models").join(model)), load(&folder));
        assert_eq!(says(&usual.expect("a model")), says(&renamed.expect("a model")));
        let (_place, folder) = with_config(model, &json!({ pairs[0].1: 7 }));
        refused(load(&folder), &[pairs[0].0, pairs[0].1, "7"], "remove");
    }
}

#[test]
fn keys_that_nobody_knows_are_named_once() {
    for folder in folders() {
        assert_eq!(load(&folder).expect("a model").unknown_keys(), Vec::<String>::new(), "{}", folder.display());
    }
    let place = Place::new();
    place.demo_folder("m");
    for (key, value) in [("clip_qkv", json!(8.0)), ("residual_multiplier", json!(0.22)), ("use_qk_norm", json!(false))]
    {
        change_config(&place.path("m"), key, value);
    }
    let said = place.run("eval m --window 64 --max-windows 1").fine();
    let notes: Vec<&str> = said.stderr.lines().filter(|line| line.contains("clip_qkv")).collect();
    assert_eq!(notes.len(), 1, "{}", said.stderr);
    assert!(notes[0].contains("residual_multiplier") && !notes[0].contains("use_qk_norm"), "{}", notes[0]);
    let options =
        [("pruned_heads", json!({ "0": [1] })), ("is_causal", json!(false)), ("is_encoder_decoder", json!(true))];
    for (key, value) in options {
        refused(load(&with_config("llama-tiny-bias", &json!({ key: value })).1), &[key], "softlm runs");
    }
}

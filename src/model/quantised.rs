//! Checkpoints whose weights are not numbers of their own: quantised ones, and adapters that lie on top of another model.
//! Both are refused by what they are, with the way to a checkpoint that can be compressed.

use crate::checkpoint::Source;
use crate::user_bail;
use anyhow::Result;
use serde_json::{Map, Value};

/// Ends of tensor names that tell a quantised checkpoint, and by what it was made.
const QUANTISED: [(&str, &str); 13] = [
    (".qweight", "GPTQ or AWQ"),
    (".qzeros", "GPTQ or AWQ"),
    (".SCB", "bitsandbytes (8 bits)"),
    (".absmax", "bitsandbytes (4 bits)"),
    (".quant_map", "bitsandbytes (4 bits)"),
    (".weight_packed", "compressed-tensors"),
    (".weight_scale_inv", "fp8"),
    (".weight_scale", "fp8 or compressed-tensors"),
    (".W_q", "hqq"),
    (".codebooks", "AQLM"),
    (".Qidxs", "QuIP#"),
    ("_blocks", "mxfp4"),
    (".weight_scale_2", "nvfp4"),
];
/// Where peft describes an adapter.
const ADAPTER_CONFIG: &str = "adapter_config.json";
/// Parts of tensor names that tell an adapter.
const ADAPTERS: [&str; 5] = [".lora_A.", ".lora_B.", ".lora_embedding_A", ".lora_magnitude_vector", ".base_layer."];

/// Fails with the name of the method if the checkpoint is quantised or holds an adapter.
pub(super) fn refuse(source: &Source, text_config: &Map<String, Value>) -> Result<()> {
    for config in [source.config(), text_config] {
        for key in ["quantization_config", "compression_config"] {
            if let Some(found) = config.get(key).filter(|value| !value.is_null()) {
                refuse_method(key, found)?;
            }
        }
    }
    if source.side_file(ADAPTER_CONFIG)?.is_some() {
        user_bail!(
            "{} holds a LoRA adapter ({ADAPTER_CONFIG}) beside its weights", source.label();
            "merge it first with peft: `model.merge_and_unload()`, then `save_pretrained(folder)`; if it is merged already, remove {ADAPTER_CONFIG}"
        );
    }
    if let Some(name) = source.names().find(|name| ADAPTERS.iter().any(|part| name.contains(part))) {
        user_bail!(
            "{} holds a LoRA adapter beside or on top of its weights: tensor `{name}`", source.label();
            "merge it first with peft: `model.merge_and_unload()`, then `save_pretrained(folder)`"
        );
    }
    for name in source.names() {
        if let Some((_, method)) = QUANTISED.iter().find(|(end, _)| name.ends_with(end)) {
            user_bail!("{} is quantised with {method}: tensor `{name}`", source.label(); "{}", way_out(method));
        }
    }
    Ok(())
}

fn refuse_method(key: &str, found: &Value) -> Result<()> {
    let says = |key: &str| found.get(key).and_then(Value::as_bool).unwrap_or(false);
    let method = match found.get("quant_method").and_then(Value::as_str) {
        Some(method) => method,
        None if says("load_in_4bit") || says("load_in_8bit") => "bitsandbytes",
        None if key == "compression_config" => "compressed-tensors",
        None => "a method that it does not name",
    };
    user_bail!("the checkpoint is quantised with {method}: config.json has a `{key}`"; "{}", way_out(method))
}

/// How to come to weights that are numbers.
fn way_out(method: &str) -> &'static str {
    if method.contains("bitsandbytes") {
        return "use the checkpoint it was made from, or with transformers: `model.dequantize()`, then `save_pretrained(folder)`";
    }
    if method.contains("fp8") {
        return "use the checkpoint it was made from, or with transformers: \
                `from_pretrained(…, quantization_config=FineGrainedFP8Config(dequantize=True))`, then `save_pretrained(folder)`";
    }
    "use the checkpoint it was made from: its model card names it"
}

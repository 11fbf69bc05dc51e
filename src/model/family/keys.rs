//! Keys of `config.json` that no family has to know: those that every configuration class has, those that would change
//! what a model computes whatever its family, and those that nobody knows.

use super::super::config::Config;
use super::Family;
use crate::user_bail;
use anyhow::Result;
use serde_json::{Map, Value};

/// Keys that any config may have and that change no number here.
const GENERAL: &[&str] = &[
    // What it is, where it comes from, and how it is to be loaded.
    "model_type",
    "architectures",
    "auto_map",
    "name_or_path",
    "transformers_version",
    "transformers.js_config",
    "torch_dtype",
    "dtype",
    "attn_implementation",
    "quantization_config",
    "softlm",
    "custom_pipelines",
    "unsloth_version",
    "unsloth_fixed",
    "base_model_name_or_path",
    // Heads and labels.
    "tie_word_embeddings",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "finetuning_task",
    "task_specific_params",
    "is_decoder",
    "is_encoder_decoder",
    "is_llama_config",
    "add_cross_attention",
    "cross_attention_hidden_size",
    "tie_encoder_decoder",
    "pruned_heads",
    "use_bidirectional_attention",
    "is_causal",
    // How outputs are returned, and in which pieces they are computed.
    "output_past",
    "xla_device",
    "return_dict",
    "use_return_dict",
    "output_hidden_states",
    "output_attentions",
    "torchscript",
    "use_cache",
    "chunk_size_feed_forward",
    "use_bfloat16",
    "tf_legacy_loss",
    // Training.
    "initializer_range",
    "initializer_factor",
    "gradient_checkpointing",
    "embd_dropout",
    // Tokens.
    "tokenizer_class",
    "prefix",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "cls_token_id",
    "mask_token_id",
    "unk_token_id",
    "decoder_start_token_id",
    // Generation.
    "max_length",
    "min_length",
    "do_sample",
    "early_stopping",
    "num_beams",
    "num_beam_groups",
    "diversity_penalty",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "repetition_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "num_return_sequences",
    "output_scores",
    "return_dict_in_generate",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "remove_invalid_values",
    "exponential_decay_length_penalty",
    "suppress_tokens",
    "begin_suppress_tokens",
];

/// Fails for options that any family may have, that change what a model computes, and that softlm does not run.
pub(super) fn refuse_options(config: &Config) -> Result<()> {
    config.only("is_encoder_decoder", false)?;
    config.only("use_bidirectional_attention", false)?;
    config.only("is_causal", true)?;
    if let Some(heads) = config.get("pruned_heads").filter(|heads| says_something(heads)) {
        user_bail!(
            "config.json: `pruned_heads` = {heads} is not supported";
            "softlm runs models with the same number of heads in every layer"
        );
    }
    Ok(())
}

/// Keys of a config that neither softlm nor the family's configuration class in transformers knows, with values that say
/// something. transformers would ignore them too.
pub(in crate::model) fn unknown_keys(config: &Map<String, Value>, family: &Family) -> Vec<String> {
    let known = |key: &str| {
        key.starts_with('_')
            || GENERAL.contains(&key)
            || family.keys.iter().any(|keys| keys.contains(&key))
            || family.synonyms.iter().any(|(synonym, _)| *synonym == key)
    };
    // Newer versions write such a list for families that have no other layers.
    let usual = |key: &str, value: &Value| {
        let all = |list: &Vec<Value>| list.iter().all(|kind| kind == "full_attention");
        key == "layer_types" && value.as_array().is_some_and(all)
    };
    let unknown = config.iter().filter(|(key, value)| says_something(value) && !known(key) && !usual(key, value));
    unknown.map(|(key, _)| key.clone()).collect()
}

fn says_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::Bool(true) | Value::Number(_) => true,
    }
}

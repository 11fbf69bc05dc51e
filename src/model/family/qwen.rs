//! Qwen 2 and 2.5: Llama with biases on q, k and v. Qwen 3: norms on each head's queries and keys instead. The later
//! blocks of both may see a window only. Both exist with experts, those of Qwen 2 beside one that every token passes
//! through.

use super::super::config::Config;
use super::super::layout::Layout;
use super::super::rope::{Rope, Rotation, Spelling};
use super::super::tensors::Tensors;
use super::Family;
use super::gated::{DECODER, DECODER_KEYS, Defaults, Gated, LayerAttention, Mixture, Sizes, windowed};
use crate::user_bail;
use anyhow::Result;
use serde_json::Value;
use std::sync::Arc;

pub(super) const QWEN2: Family = Family {
    model_type: "qwen2",
    keys: &[DECODER_KEYS, &["use_sliding_window", "sliding_window", "max_window_layers", "layer_types"]],
    sizes: &[
        ("vocab_size", 151_936),
        ("hidden_size", 4096),
        ("intermediate_size", 22_016),
        ("num_hidden_layers", 32),
        ("num_attention_heads", 32),
    ],
    describe: layout2,
    ..DECODER
};

pub(super) const QWEN3: Family = Family {
    model_type: "qwen3",
    keys: &[
        DECODER_KEYS,
        &["head_dim", "attention_bias", "use_sliding_window", "sliding_window", "max_window_layers", "layer_types"],
    ],
    describe: layout3,
    ..QWEN2
};

pub(super) const QWEN2_MOE: Family = Family {
    model_type: "qwen2_moe",
    keys: &[
        DECODER_KEYS,
        &[
            "use_sliding_window",
            "sliding_window",
            "max_window_layers",
            "qkv_bias",
            "decoder_sparse_step",
            "mlp_only_layers",
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "num_experts_per_tok",
            "num_experts",
            "norm_topk_prob",
            "output_router_logits",
            "router_aux_loss_coef",
        ],
    ],
    sizes: &[
        ("vocab_size", 151_936),
        ("hidden_size", 2048),
        ("intermediate_size", 5632),
        ("num_hidden_layers", 24),
        ("num_attention_heads", 16),
        ("moe_intermediate_size", 1408),
        ("shared_expert_intermediate_size", 5632),
        ("num_experts", 60),
    ],
    describe: layout2_moe,
    ..DECODER
};

pub(super) const QWEN3_MOE: Family = Family {
    model_type: "qwen3_moe",
    keys: &[
        DECODER_KEYS,
        &[
            "head_dim",
            "attention_bias",
            "use_sliding_window",
            "sliding_window",
            "max_window_layers",
            "decoder_sparse_step",
            "mlp_only_layers",
            "moe_intermediate_size",
            "num_experts_per_tok",
            "num_experts",
            "norm_topk_prob",
            "output_router_logits",
            "router_aux_loss_coef",
        ],
    ],
    sizes: &[
        ("vocab_size", 151_936),
        ("hidden_size", 2048),
        ("intermediate_size", 6144),
        ("num_hidden_layers", 24),
        ("num_attention_heads", 32),
        ("moe_intermediate_size", 768),
        ("num_experts", 128),
    ],
    synonyms: &[("num_local_experts", "num_experts")],
    describe: layout3_moe,
    ..DECODER
};

fn defaults(kv_heads: usize, head_dim: Option<usize>) -> Defaults {
    Defaults { context: 32_768, kv_heads: Some(kv_heads), head_dim }
}

fn layout2(tensors: &mut Tensors, config: &Config) -> Result<Layout> {
    let sizes = Sizes::read(tensors, config, defaults(32, None))?;
    let attention = attention(config, &sizes)?;
    Gated { biases: [true, false, false], ..Gated::plain("qwen2", sizes, attention) }.layout(tensors, config)
}

fn layout3(tensors: &mut Tensors, config: &Config) -> Result<Layout> {
    let sizes = Sizes::read(tensors, config, defaults(32, Some(128)))?;
    let attention = attention(config, &sizes)?;
    let bias = config.bool_or("attention_bias", false)?;
    Gated { biases: [bias, bias, false], head_norms: true, ..Gated::plain("qwen3", sizes, attention) }
        .layout(tensors, config)
}

fn layout2_moe(tensors: &mut Tensors, config: &Config) -> Result<Layout> {
    config.only("use_sliding_window", false)?;
    let sizes = Sizes::read(tensors, config, defaults(16, None))?;
    let attention = attention(config, &sizes)?;
    let mixture = match mixture(config, &sizes, 4)? {
        Some(mixture) => Some(Mixture { shared: Some(config.usize("shared_expert_intermediate_size")?), ..mixture }),
        None => None,
    };
    let biases = [config.bool_or("qkv_bias", true)?, false, false];
    Gated { biases, mixture, ..Gated::plain("qwen2_moe", sizes, attention) }.layout(tensors, config)
}

fn layout3_moe(tensors: &mut Tensors, config: &Config) -> Result<Layout> {
    config.only("use_sliding_window", false)?;
    let sizes = Sizes::read(tensors, config, defaults(4, None))?;
    let attention = attention(config, &sizes)?;
    let bias = config.bool_or("attention_bias", false)?;
    let mixture = mixture(config, &sizes, 8)?;
    Gated { biases: [bias, bias, false], head_norms: true, mixture, ..Gated::plain("qwen3_moe", sizes, attention) }
        .layout(tensors, config)
}

/// Every block has experts but those listed, and where only every n-th has. Without experts, no block has any.
fn mixture(config: &Config, sizes: &Sizes, per_token: usize) -> Result<Option<Mixture>> {
    let key = "num_experts";
    if config.get(key).and_then(Value::as_u64) == Some(0) {
        return Ok(None);
    }
    let (count, chosen) = Mixture::counts(config, key, per_token)?;
    let step = config.usize_or("decoder_sparse_step", 1)?;
    let listed = dense_layers(config)?;
    Ok(Some(Mixture {
        count,
        count_key: key,
        chosen,
        normalised: config.bool_or("norm_topk_prob", false)?,
        width: config.usize("moe_intermediate_size")?,
        width_key: "moe_intermediate_size",
        shared: None,
        names: ("mlp.gate", "mlp.experts", ["gate_proj", "up_proj", "down_proj"]),
        sparse: (0..sizes.blocks).map(|index| (index + 1).is_multiple_of(step) && !listed.contains(&index)).collect(),
    }))
}

/// Layers listed as having no experts.
fn dense_layers(config: &Config) -> Result<Vec<usize>> {
    let key = "mlp_only_layers";
    let Some(value) = config.get(key) else { return Ok(Vec::new()) };
    let index = |value: &Value| value.as_u64().map(|index| index as usize);
    match value.as_array().and_then(|list| list.iter().map(index).collect()) {
        Some(list) => Ok(list),
        None => {
            user_bail!("config.json: `{key}` is {value}, expected a list of layers"; "get the model's original config.json")
        }
    }
}

fn attention(config: &Config, sizes: &Sizes) -> Result<Vec<LayerAttention>> {
    let rope = Arc::new(Rope::new(&Rotation::read(config, sizes.head_dim, Spelling::USUAL)?, sizes.context)?);
    let window = match config.bool_or("use_sliding_window", false)? {
        true => config.usize_or_null("sliding_window", Some(4096))?,
        false => None,
    };
    let first = match window {
        Some(_) => config.count_or("max_window_layers", 28)?,
        None => sizes.blocks,
    };
    let windowed = windowed(config, sizes.blocks, |index| index >= first)?;
    LayerAttention::alternating(windowed, window, |_| rope.clone())
}

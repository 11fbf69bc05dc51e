//! Gemma 2 and the text models of Gemma 3: tied and scaled embedding, norms of 1 + weight in front and behind, GELU, a
//! query scale of their own, most blocks with a window. Gemma 2 caps scores and logits; Gemma 3 normalises each head's
//! queries and keys, and blocks with a window have a rope base of their own.

use super::super::config::Config;
use super::super::layout::{Layout, NormKind};
use super::super::rope::{Rope, Rotation, Spelling, parameters};
use super::super::tensors::Tensors;
use super::Family;
use super::gated::{DECODER, DECODER_KEYS, Defaults, Gated, LayerAttention, Sizes, windowed};
use crate::user_bail;
use anyhow::Result;
use serde_json::{Map, Value};
use std::sync::Arc;

pub(super) const GEMMA2: Family = Family {
    model_type: "gemma2",
    keys: &[
        DECODER_KEYS,
        &[
            "head_dim",
            "attention_bias",
            "hidden_activation",
            "query_pre_attn_scalar",
            "sliding_window",
            "layer_types",
            "final_logit_softcapping",
            "attn_logit_softcapping",
            "cache_implementation",
        ],
    ],
    // None: inside a multimodal model nobody caps its logits.
    sizes: &[],
    describe: layout2,
    ..DECODER
};

pub(super) const GEMMA3: Family = Family {
    model_type: "gemma3_text",
    keys: &[
        DECODER_KEYS,
        &[
            "head_dim",
            "attention_bias",
            "hidden_activation",
            "query_pre_attn_scalar",
            "sliding_window",
            "sliding_window_pattern",
            "layer_types",
            "final_logit_softcapping",
            "attn_logit_softcapping",
            "rope_local_base_freq",
            "use_bidirectional_attention",
            "cache_implementation",
        ],
    ],
    sizes: &[
        ("vocab_size", 262_208),
        ("hidden_size", 2304),
        ("intermediate_size", 9216),
        ("num_hidden_layers", 26),
        ("num_attention_heads", 8),
    ],
    describe: layout3,
    ..DECODER
};

const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

fn defaults(context: usize) -> Defaults {
    Defaults { context, kv_heads: Some(4), head_dim: Some(256) }
}

fn layout2(tensors: &mut Tensors, config: &Config) -> Result<Layout> {
    let sizes = Sizes::read(tensors, config, defaults(8192))?;
    let rope = Arc::new(Rope::new(&Rotation::read(config, sizes.head_dim, Spelling::USUAL)?, sizes.context)?);
    let window = config.usize_or_null("sliding_window", Some(4096))?;
    let windowed = windowed(config, sizes.blocks, |index| index % 2 == 0)?;
    let attention = LayerAttention::alternating(windowed, window, |_| rope.clone())?;
    let score_cap = cap(config, "attn_logit_softcapping", 50.0)?;
    let logit_cap = cap(config, "final_logit_softcapping", 30.0)?;
    Gated { score_cap, logit_cap, ..gemma("gemma2", config, sizes, attention)? }.layout(tensors, config)
}

fn layout3(tensors: &mut Tensors, config: &Config) -> Result<Layout> {
    let sizes = Sizes::read(tensors, config, defaults(131_072))?;
    if let Some(cap) = config.get("attn_logit_softcapping") {
        user_bail!("config.json: `attn_logit_softcapping` = {cap} is not supported for gemma3_text"; "such models have it null");
    }
    let (global, local) = rotations(config, sizes.head_dim)?;
    let (global, local) = (Rope::new(&global, sizes.context)?, Rope::new(&local, sizes.context)?);
    let (global, local) = (Arc::new(global), Arc::new(local));
    let window = config.usize_or_null("sliding_window", Some(4096))?;
    let pattern = config.usize_or("sliding_window_pattern", config.usize_or("_sliding_window_pattern", 6)?)?;
    let windowed = windowed(config, sizes.blocks, |index| !(index + 1).is_multiple_of(pattern))?;
    let attention =
        LayerAttention::alternating(
            windowed,
            window,
            |windowed| if windowed { local.clone() } else { global.clone() },
        )?;
    let logit_cap = config.positive_if_any("final_logit_softcapping")?;
    Gated { head_norms: true, logit_cap, ..gemma("gemma3_text", config, sizes, attention)? }.layout(tensors, config)
}

/// The rotations of blocks without and with a window. Newer configs have parameters for each of the two kinds under its
/// name, older ones scale the first kind alone.
fn rotations(config: &Config, head_dim: usize) -> Result<(Rotation, Rotation)> {
    let all = parameters(config)?;
    let of = |kind: &str| match all.and_then(|all| all.get(kind)) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(other) => user_bail!(
            "config.json: rope parameters of `{kind}` are {other}, expected an object";
            "get the model's original config.json"
        ),
    };
    let (full, sliding) = (of(FULL)?, of(SLIDING)?);
    let nested = full.is_some() || sliding.is_some();
    match all.filter(|_| nested).and_then(|all| all.keys().find(|key| ![FULL, SLIDING].contains(&key.as_str()))) {
        Some(key) => user_bail!(
            "config.json: rope parameter `{key}` stands beside those of `{FULL}` and `{SLIDING}`";
            "put it into the one that it belongs to"
        ),
        None if !nested
            && config.get("rope_scaling").and_then(Value::as_object).is_none_or(Map::is_empty)
            && all.is_some() =>
        {
            user_bail!(
                "config.json: `rope_parameters` of gemma3_text does not say which of `{FULL}` and `{SLIDING}` it is for";
                "put it under `{FULL}`"
            )
        }
        None => {}
    }
    let global = Spelling { theta: 1e6, ..Spelling::USUAL };
    let local = Spelling { theta_key: "rope_local_base_freq", ..Spelling::USUAL };
    let scaling = if nested { full } else { all };
    Ok((Rotation::of(config, scaling, head_dim, global)?, Rotation::of(config, sliding, head_dim, local)?))
}

/// A cap that null switches off.
fn cap(config: &Config, key: &str, default: f64) -> Result<Option<f64>> {
    if config.0.contains_key(key) { config.positive_if_any(key) } else { Ok(Some(default)) }
}

fn gemma(family: &'static str, config: &Config, sizes: Sizes, attention: Vec<LayerAttention>) -> Result<Gated> {
    let bias = config.bool_or("attention_bias", false)?;
    let query = config.positive_if_any("query_pre_attn_scalar")?.unwrap_or(256.0);
    Ok(Gated {
        biases: [bias, bias, false],
        norm: NormKind::RmsPlusOne,
        post_norms: true,
        activation: ("hidden_activation", "gelu_pytorch_tanh"),
        tied: true,
        embedding_scale: Some((sizes.hidden as f64).sqrt()),
        needs_bos: true,
        score_scale: Some(1.0 / query.sqrt()),
        ..Gated::plain(family, sizes, attention)
    })
}

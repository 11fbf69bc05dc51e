//! Gemma 2 and the text models of Gemma 3: tied and scaled embedding, norms of 1 + weight in front and behind, GELU, a
//! query scale of their own, most blocks with a window. Gemma 2 caps scores and logits; Gemma 3 normalises each head's
//! queries and keys, and blocks with a window have a rope base of their own.

use super::super::config::Config;
use super::super::layout::{Layout, NormKind};
use super::super::rope::{Rope, Rotation};
use super::gated::{Gated, Sight, Sizes, windowed};
use crate::checkpoint::Source;
use crate::user_bail;
use anyhow::Result;
use candle_core::Device;
use std::sync::Arc;

pub(super) fn layout2(source: &mut Source, config: &Config, device: &Device) -> Result<Layout> {
    let sizes = sizes(config, 8192)?;
    let rope = Arc::new(Rope::new(Rotation::read(config, sizes.head_dim)?, sizes.context, device)?);
    let window = config.usize_or_null("sliding_window", Some(4096))?;
    let of = |windowed: bool| Sight { window: window.filter(|_| windowed), rope: rope.clone() };
    let sight = windowed(config, sizes.blocks, |index| index % 2 == 0)?.into_iter().map(of).collect();
    let score_cap = cap(config, "attn_logit_softcapping", 50.0)?;
    let logit_cap = cap(config, "final_logit_softcapping", 30.0)?;
    Gated { score_cap, logit_cap, ..gemma("gemma2", config, sizes, sight)? }.layout(source, config)
}

pub(super) fn layout3(source: &mut Source, config: &Config, device: &Device) -> Result<Layout> {
    let sizes = sizes(config, 131_072)?;
    config.only("use_bidirectional_attention", false)?;
    if let Some(cap) = config.get("attn_logit_softcapping") {
        user_bail!("config.json: `attn_logit_softcapping` = {cap} is not supported for gemma3_text"; "such models have it null");
    }
    let given = Rotation::read(config, sizes.head_dim)?;
    // Newer configs have one set of parameters per kind of block.
    let kind = |name: &str| given.scaling.and_then(|all| all.get(name));
    let theta = |name: &str| kind(name)?.get("rope_theta")?.as_f64();
    let local = theta("sliding_attention").map_or_else(|| config.f64_or("rope_local_base_freq", 10_000.0), Ok)?;
    let global = match (theta("full_attention"), config.get("rope_theta")) {
        (Some(theta), _) => theta,
        (None, Some(_)) => given.theta,
        (None, None) => 1e6,
    };
    let scaling = kind("full_attention").or(given.scaling);
    let rope = |theta, scaling| -> Result<_> {
        Ok(Arc::new(Rope::new(Rotation { theta, ..given.scaled(scaling) }, sizes.context, device)?))
    };
    let (global, local) = (rope(global, scaling)?, rope(local, None)?);
    let window = config.usize_or_null("sliding_window", Some(4096))?;
    let pattern = config.usize_or("sliding_window_pattern", config.usize_or("_sliding_window_pattern", 6)?)?;
    let of = |windowed: bool| match windowed {
        true => Sight { window, rope: local.clone() },
        false => Sight { window: None, rope: global.clone() },
    };
    let sight =
        windowed(config, sizes.blocks, |index| !(index + 1).is_multiple_of(pattern))?.into_iter().map(of).collect();
    let logit_cap = config.positive_if_any("final_logit_softcapping")?;
    Gated { head_norms: true, logit_cap, ..gemma("gemma3_text", config, sizes, sight)? }.layout(source, config)
}

fn sizes(config: &Config, context: usize) -> Result<Sizes> {
    Ok(Sizes { head_dim: config.usize_or("head_dim", 256)?, ..Sizes::read(config, context)? })
}

/// A cap that null switches off.
fn cap(config: &Config, key: &str, default: f64) -> Result<Option<f64>> {
    if config.0.contains_key(key) { config.positive_if_any(key) } else { Ok(Some(default)) }
}

fn gemma(family: &'static str, config: &Config, sizes: Sizes, sight: Vec<Sight>) -> Result<Gated> {
    let bias = config.bool_or("attention_bias", false)?;
    let query = config.positive_if_any("query_pre_attn_scalar")?.unwrap_or(256.0);
    Ok(Gated {
        biases: [bias, bias, false],
        norm: NormKind::RmsPlusOne,
        post_norms: true,
        activation: ("hidden_activation", "gelu_pytorch_tanh"),
        tied: true,
        embedding_scale: Some((sizes.hidden as f64).sqrt()),
        score_scale: Some(1.0 / query.sqrt()),
        ..Gated::plain(family, sizes, sight)
    })
}

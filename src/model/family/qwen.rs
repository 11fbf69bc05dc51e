//! Qwen 2 and 2.5: Llama with biases on q, k and v. Qwen 3: norms on each head's queries and keys instead. The later
//! blocks of both may see a window only. Both exist with experts, those of Qwen 2 beside one that every token passes
//! through.

use super::super::config::Config;
use super::super::layout::Layout;
use super::super::rope::{Rope, Rotation};
use super::gated::{Gated, Mixture, Sight, Sizes, windowed};
use crate::checkpoint::Source;
use anyhow::Result;
use candle_core::Device;
use serde_json::Value;
use std::sync::Arc;

pub(super) fn layout2(source: &mut Source, config: &Config, device: &Device) -> Result<Layout> {
    let sizes = Sizes::read(config, 32_768)?;
    let sight = sight(config, &sizes, device)?;
    Gated { biases: [true, false, false], ..Gated::plain("qwen2", sizes, sight) }.layout(source, config)
}

pub(super) fn layout3(source: &mut Source, config: &Config, device: &Device) -> Result<Layout> {
    let sizes = Sizes { head_dim: config.usize_or("head_dim", 128)?, ..Sizes::read(config, 32_768)? };
    let sight = sight(config, &sizes, device)?;
    let bias = config.bool_or("attention_bias", false)?;
    Gated { biases: [bias, bias, false], head_norms: true, ..Gated::plain("qwen3", sizes, sight) }
        .layout(source, config)
}

pub(super) fn layout2_moe(source: &mut Source, config: &Config, device: &Device) -> Result<Layout> {
    config.only("use_sliding_window", false)?;
    let sizes = Sizes::read(config, 32_768)?;
    let sight = sight(config, &sizes, device)?;
    let shared = Some(config.usize("shared_expert_intermediate_size")?);
    let mixture = Some(Mixture { shared, ..mixture(config, &sizes)? });
    let biases = [config.bool_or("qkv_bias", true)?, false, false];
    Gated { biases, mixture, ..Gated::plain("qwen2_moe", sizes, sight) }.layout(source, config)
}

pub(super) fn layout3_moe(source: &mut Source, config: &Config, device: &Device) -> Result<Layout> {
    config.only("use_sliding_window", false)?;
    let sizes = Sizes::read(config, 32_768)?;
    let sight = sight(config, &sizes, device)?;
    let bias = config.bool_or("attention_bias", false)?;
    let mixture = Some(mixture(config, &sizes)?);
    Gated { biases: [bias, bias, false], head_norms: true, mixture, ..Gated::plain("qwen3_moe", sizes, sight) }
        .layout(source, config)
}

/// Every block has experts but those listed, and where only every n-th has.
fn mixture(config: &Config, sizes: &Sizes) -> Result<Mixture> {
    let (count, chosen) = Mixture::counts(config, "num_experts")?;
    let step = config.usize_or("decoder_sparse_step", 1)?;
    let listed = config.get("mlp_only_layers").and_then(Value::as_array);
    let dense = |index: usize| listed.is_some_and(|list| list.iter().any(|i| i.as_u64() == Some(index as u64)));
    Ok(Mixture {
        count,
        chosen,
        normalised: config.bool_or("norm_topk_prob", false)?,
        width: config.usize("moe_intermediate_size")?,
        width_key: "moe_intermediate_size",
        shared: None,
        names: ("mlp.gate", "mlp.experts", ["gate_proj", "up_proj", "down_proj"]),
        sparse: (0..sizes.blocks).map(|index| (index + 1).is_multiple_of(step) && !dense(index)).collect(),
    })
}

fn sight(config: &Config, sizes: &Sizes, device: &Device) -> Result<Vec<Sight>> {
    let rope = Arc::new(Rope::new(Rotation::read(config, sizes.head_dim)?, sizes.context, device)?);
    let window = match config.bool_or("use_sliding_window", false)? {
        true => config.usize_or_null("sliding_window", Some(4096))?,
        false => None,
    };
    let first = match window {
        Some(_) => config.usize_or("max_window_layers", 28)?,
        None => sizes.blocks,
    };
    let windowed = windowed(config, sizes.blocks, |index| index >= first)?;
    let of = |windowed: bool| Sight { window: window.filter(|_| windowed), rope: rope.clone() };
    Ok(windowed.into_iter().map(of).collect())
}

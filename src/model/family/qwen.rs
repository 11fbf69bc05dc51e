//! Qwen 2 and 2.5: Llama with biases on q, k and v. Qwen 3: norms on each head's queries and keys instead. The later
//! blocks of both may see a window only.

use super::super::config::Config;
use super::super::layout::Layout;
use super::super::rope::{Rope, Rotation};
use super::gated::{Gated, Sight, Sizes, windowed};
use crate::checkpoint::Source;
use anyhow::Result;
use candle_core::Device;
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

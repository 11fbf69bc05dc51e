//! Llama 1, 2 and 3, and what was trained from them or after their pattern.

use super::super::config::Config;
use super::super::layout::Layout;
use super::super::rope::{Rope, Rotation};
use super::gated::{Gated, Sight, Sizes};
use crate::checkpoint::Source;
use anyhow::Result;
use candle_core::Device;

pub(super) fn layout(source: &mut Source, config: &Config, device: &Device) -> Result<Layout> {
    let sizes = Sizes::read(config, 2048)?;
    let attention = config.bool_or("attention_bias", false)?;
    let biases = [attention, attention, config.bool_or("mlp_bias", false)?];
    let rope = Rope::new(Rotation::read(config, sizes.head_dim)?, sizes.context, device)?;
    let sight = Sight::everywhere(&sizes, None, rope);
    Gated { biases, ..Gated::plain("llama", sizes, sight) }.layout(source, config)
}

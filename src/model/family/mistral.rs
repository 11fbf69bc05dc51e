//! Mistral: Llama with a sliding window.

use super::super::config::Config;
use super::super::layout::Layout;
use super::super::rope::{Rope, Rotation};
use super::gated::{Gated, Sight, Sizes};
use crate::checkpoint::Source;
use anyhow::Result;
use candle_core::Device;

/// The window of a config that does not mention one; later models say null.
const WINDOW: usize = 4096;

pub(super) fn layout(source: &mut Source, config: &Config, device: &Device) -> Result<Layout> {
    let sizes = Sizes::read(config, 4096 * 32)?;
    let window = config.usize_or_null("sliding_window", Some(WINDOW))?;
    let rope = Rope::new(Rotation::read(config, sizes.head_dim)?, sizes.context, device)?;
    Gated::plain("mistral", sizes, Sight::everywhere(&sizes, window, rope)).layout(source, config)
}

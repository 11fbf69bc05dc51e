//! Phi-3: Llama with q, k, v in one matrix and gate, up in another, a sliding window, and heads that may be rotated in
//! part.

use super::super::config::Config;
use super::super::layout::Layout;
use super::super::rope::{Rope, Rotation};
use super::gated::{Gated, Sight, Sizes};
use crate::checkpoint::Source;
use anyhow::Result;
use candle_core::Device;
use serde_json::Value;

pub(super) fn layout(source: &mut Source, config: &Config, device: &Device) -> Result<Layout> {
    let sizes = Sizes::read(config, 4096)?;
    let mut whole = Rotation::read(config, sizes.head_dim)?;
    // This family's older configs call the same scaling su or yarn.
    if let Some("su" | "yarn") = whole.kind {
        whole.kind = Some("longrope");
    }
    whole.original = Some(config.usize_or("original_max_position_embeddings", 4096)?);
    let nested = whole.scaling.and_then(|s| s.get("partial_rotary_factor")).and_then(Value::as_f64);
    let key = "partial_rotary_factor";
    let fraction = nested.map_or_else(|| config.f64_or(key, 1.0), Ok)?;
    let rope = Rope::new(whole.partial(key, fraction)?, sizes.context, device)?;
    let sight = Sight::everywhere(&sizes, config.usize_or_null("sliding_window", None)?, rope);
    Gated { fused: true, epsilon: 1e-5, ..Gated::plain("phi3", sizes, sight) }.layout(source, config)
}

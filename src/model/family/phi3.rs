//! Phi-3: Llama with q, k, v in one matrix and gate, up in another, a sliding window, and heads that may be rotated in
//! part.

use super::super::config::Config;
use super::super::layout::Layout;
use super::super::rope::{Rope, Rotation};
use super::gated::{Gated, Sight, Sizes};
use crate::checkpoint::Source;
use crate::user_bail;
use anyhow::Result;
use candle_core::Device;
use serde_json::Value;

pub(super) fn layout(source: &mut Source, config: &Config, device: &Device) -> Result<Layout> {
    let sizes = Sizes::read(config, 4096)?;
    let whole = Rotation::read(config, sizes.head_dim)?;
    // This family's older configs call the same scaling su or yarn.
    let kind = whole.scaling.and_then(|s| s.get("rope_type").or_else(|| s.get("type"))).and_then(Value::as_str);
    if let Some(kind @ ("longrope" | "su" | "yarn")) = kind {
        user_bail!(
            "config.json: rope scaling \"{kind}\" is not supported for phi3";
            "use the variant of the model with the short context (4k)"
        );
    }
    let nested = whole.scaling.and_then(|s| s.get("partial_rotary_factor")).and_then(Value::as_f64);
    let key = "partial_rotary_factor";
    let fraction = nested.map_or_else(|| config.f64_or(key, 1.0), Ok)?;
    let rope = Rope::new(whole.partial(key, fraction)?, sizes.context, device)?;
    let sight = Sight::everywhere(&sizes, config.usize_or_null("sliding_window", None)?, rope);
    Gated { fused: true, epsilon: 1e-5, ..Gated::plain("phi3", sizes, sight) }.layout(source, config)
}

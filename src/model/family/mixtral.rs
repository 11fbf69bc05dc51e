//! Mixtral: Mistral with experts.

use super::super::config::Config;
use super::super::layout::Layout;
use super::super::rope::{Rope, Rotation};
use super::gated::{Gated, Mixture, Sight, Sizes};
use crate::checkpoint::Source;
use anyhow::Result;
use candle_core::Device;

pub(super) fn layout(source: &mut Source, config: &Config, device: &Device) -> Result<Layout> {
    let sizes = Sizes::read(config, 4096 * 32)?;
    let window = config.usize_or_null("sliding_window", None)?;
    let mut rotation = Rotation::read(config, sizes.head_dim)?;
    if config.get("rope_theta").is_none() && config.get("rope_parameters").is_none() {
        rotation.theta = 1e6;
    }
    let rope = Rope::new(rotation, sizes.context, device)?;
    let (count, chosen) = Mixture::counts(config, "num_local_experts")?;
    let mixture = Mixture {
        count,
        chosen,
        normalised: true,
        width: sizes.ffn,
        width_key: "intermediate_size",
        shared: None,
        names: ("block_sparse_moe.gate", "block_sparse_moe.experts", ["w1", "w3", "w2"]),
        sparse: vec![true; sizes.blocks],
    };
    let sight = Sight::everywhere(&sizes, window, rope);
    Gated { mixture: Some(mixture), epsilon: 1e-5, ..Gated::plain("mixtral", sizes, sight) }.layout(source, config)
}

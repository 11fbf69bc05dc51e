//! Llama 1, 2 and 3, and what was trained from them or after their pattern.

use super::super::config::Config;
use super::super::layout::Layout;
use super::super::rope::{Rope, Rotation, Spelling};
use super::super::tensors::Tensors;
use super::Family;
use super::gated::{DECODER, DECODER_KEYS, Defaults, Gated, LayerAttention, Sizes};
use anyhow::Result;

pub(super) const LLAMA: Family = Family {
    model_type: "llama",
    keys: &[DECODER_KEYS, &["attention_bias", "mlp_bias", "head_dim", "pretraining_tp"]],
    sizes: &[
        ("vocab_size", 32_000),
        ("hidden_size", 4096),
        ("intermediate_size", 11_008),
        ("num_hidden_layers", 32),
        ("num_attention_heads", 32),
    ],
    describe: layout,
    ..DECODER
};

fn layout(tensors: &mut Tensors, config: &Config) -> Result<Layout> {
    let sizes = Sizes::read(tensors, config, Defaults { context: 2048, kv_heads: None, head_dim: None })?;
    let attention = config.bool_or("attention_bias", false)?;
    let biases = [attention, attention, config.bool_or("mlp_bias", false)?];
    let rope = Rope::new(&Rotation::read(config, sizes.head_dim, Spelling::USUAL)?, sizes.context)?;
    let attention = LayerAttention::everywhere(&sizes, None, rope);
    Gated { biases, ..Gated::plain("llama", sizes, attention) }.layout(tensors, config)
}

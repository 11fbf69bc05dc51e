//! Mixtral: Mistral with experts.

use super::super::config::Config;
use super::super::layout::Layout;
use super::super::rope::{Rope, Rotation, Spelling};
use super::super::tensors::Tensors;
use super::Family;
use super::gated::{DECODER, DECODER_KEYS, Defaults, Gated, LayerAttention, Mixture, Sizes};
use anyhow::Result;

pub(super) const MIXTRAL: Family = Family {
    model_type: "mixtral",
    keys: &[
        DECODER_KEYS,
        &[
            "head_dim",
            "sliding_window",
            "num_experts_per_tok",
            "num_local_experts",
            "output_router_logits",
            "router_aux_loss_coef",
            // Noise while training.
            "router_jitter_noise",
        ],
    ],
    sizes: &[
        ("vocab_size", 32_000),
        ("hidden_size", 4096),
        ("intermediate_size", 14_336),
        ("num_hidden_layers", 32),
        ("num_attention_heads", 32),
        ("num_local_experts", 8),
    ],
    synonyms: &[("num_experts", "num_local_experts")],
    describe: layout,
    ..DECODER
};

fn layout(tensors: &mut Tensors, config: &Config) -> Result<Layout> {
    let sizes = Sizes::read(tensors, config, Defaults { context: 4096 * 32, kv_heads: Some(8), head_dim: None })?;
    let window = config.usize_or_null("sliding_window", None)?;
    let rotation = Rotation::read(config, sizes.head_dim, Spelling { theta: 1e6, ..Spelling::USUAL })?;
    let rope = Rope::new(&rotation, sizes.context)?;
    let key = "num_local_experts";
    let (count, chosen) = Mixture::counts(config, key, 2)?;
    let mixture = Mixture {
        count,
        count_key: key,
        chosen,
        normalised: true,
        width: sizes.ffn,
        width_key: "intermediate_size",
        shared: None,
        names: ("block_sparse_moe.gate", "block_sparse_moe.experts", ["w1", "w3", "w2"]),
        sparse: vec![true; sizes.blocks],
    };
    let attention = LayerAttention::everywhere(&sizes, window, rope);
    Gated { mixture: Some(mixture), epsilon: 1e-5, ..Gated::plain("mixtral", sizes, attention) }.layout(tensors, config)
}

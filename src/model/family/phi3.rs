//! Phi-3: Llama with q, k, v in one matrix and gate, up in another, a sliding window, and heads that may be rotated in
//! part.

use super::super::config::Config;
use super::super::layout::Layout;
use super::super::rope::{Rope, Rotation, Spelling};
use super::super::tensors::Tensors;
use super::Family;
use super::gated::{DECODER, DECODER_KEYS, Defaults, Gated, LayerAttention, Sizes};
use anyhow::Result;

pub(super) const PHI3: Family = Family {
    model_type: "phi3",
    keys: &[
        DECODER_KEYS,
        &[
            "head_dim",
            "sliding_window",
            "partial_rotary_factor",
            "original_max_position_embeddings",
            // Nothing is dropped in inference.
            "resid_pdrop",
            "embd_pdrop",
        ],
    ],
    sizes: &[
        ("vocab_size", 32_064),
        ("hidden_size", 3072),
        ("intermediate_size", 8192),
        ("num_hidden_layers", 32),
        ("num_attention_heads", 32),
    ],
    describe: layout,
    ..DECODER
};

/// This family's older configs call its one scaling su or yarn.
const SPELLING: Spelling = Spelling {
    fraction: Some(("partial_rotary_factor", 1.0)),
    original: Some(4096),
    only_long: true,
    ..Spelling::USUAL
};

fn layout(tensors: &mut Tensors, config: &Config) -> Result<Layout> {
    let sizes = Sizes::read(tensors, config, Defaults { context: 4096, kv_heads: None, head_dim: None })?;
    let rope = Rope::new(&Rotation::read(config, sizes.head_dim, SPELLING)?, sizes.context)?;
    let attention = LayerAttention::everywhere(&sizes, config.usize_or_null("sliding_window", None)?, rope);
    Gated { fused: true, epsilon: 1e-5, ..Gated::plain("phi3", sizes, attention) }.layout(tensors, config)
}

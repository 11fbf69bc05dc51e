//! Mistral: Llama with a sliding window.

use super::super::config::Config;
use super::super::layout::Layout;
use super::super::rope::{Rope, Rotation, Spelling};
use super::super::tensors::Tensors;
use super::Family;
use super::gated::{DECODER, DECODER_KEYS, Defaults, Gated, LayerAttention, Sizes, windowed};
use crate::user_bail;
use anyhow::Result;

pub(super) const MISTRAL: Family = Family {
    model_type: "mistral",
    keys: &[DECODER_KEYS, &["head_dim", "sliding_window", "layer_types"]],
    sizes: &[
        ("vocab_size", 32_000),
        ("hidden_size", 4096),
        ("intermediate_size", 14_336),
        ("num_hidden_layers", 32),
        ("num_attention_heads", 32),
    ],
    describe: layout,
    ..DECODER
};

/// The window of a config that does not mention one; later models say null.
const WINDOW: usize = 4096;

fn layout(tensors: &mut Tensors, config: &Config) -> Result<Layout> {
    let sizes = Sizes::read(tensors, config, Defaults { context: 4096 * 32, kv_heads: Some(8), head_dim: None })?;
    let window = config.usize_or_null("sliding_window", Some(WINDOW))?;
    // Later families alternate; this one does not, whatever such a list says.
    if windowed(config, sizes.blocks, |_| window.is_some())?.iter().any(|windowed| *windowed != window.is_some()) {
        user_bail!(
            "config.json: `layer_types` contradicts `sliding_window`, which all layers of mistral share";
            "if the layers alternate, the model is of another family, such as ministral, which softlm does not know"
        );
    }
    let rope = Rope::new(&Rotation::read(config, sizes.head_dim, Spelling::USUAL)?, sizes.context)?;
    Gated::plain("mistral", sizes, LayerAttention::everywhere(&sizes, window, rope)).layout(tensors, config)
}

//! OPT: LayerNorm, learned positions, plain MLP. The first two rows of the table of positions belong to padding.

use super::super::block::{Attention, FeedForward, Inner, PreNorm, Shape};
use super::super::config::Config;
use super::super::ids::{LinearId, Role, Site};
use super::super::layout::{
    BlockLayout, Embedding, HeadLayout, Layout, NormKind, NormSpec, Positions, Readout, WidthKeys,
};
use super::super::spec::{LinearSpec, Stored};
use super::super::tensors::Tensors;
use super::{Family, TIED, must_divide, resolve_head};
use crate::ops::{Activation, Scores};
use crate::user_bail;
use anyhow::Result;

pub(super) const OPT: Family = Family {
    model_type: "opt",
    prefix: "model.",
    embedding: "decoder.embed_tokens.weight",
    layers: "decoder.layers",
    head: "lm_head.weight",
    synonyms: &[],
    keys: &[&[
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "ffn_dim",
        "max_position_embeddings",
        "do_layer_norm_before",
        "_remove_final_layer_norm",
        "word_embed_proj_dim",
        "num_attention_heads",
        "activation_function",
        "enable_bias",
        "layer_norm_elementwise_affine",
        // Training alone.
        "dropout",
        "attention_dropout",
        "activation_dropout",
        "layerdrop",
        "init_std",
    ]],
    sizes: &[],
    describe: layout,
};

/// LayerNorm's ε, which no config mentions.
const EPSILON: f64 = 1e-5;

fn layout(tensors: &mut Tensors, config: &Config) -> Result<Layout> {
    let (hidden, vocab) = tensors.embedding_sizes(config, "hidden_size", "vocab_size")?;
    let ffn = config.usize("ffn_dim")?;
    let blocks = tensors.layers(config, "num_hidden_layers")?;
    let heads = config.usize("num_attention_heads")?;
    must_divide("hidden_size", hidden, "num_attention_heads", heads)?;
    config.only("do_layer_norm_before", true)?;
    config.only("layer_norm_elementwise_affine", true)?;
    let projected = config.usize_or("word_embed_proj_dim", hidden)?;
    if projected != hidden {
        user_bail!(
            "config.json: `word_embed_proj_dim` = {projected} differs from `hidden_size` = {hidden}, which is not supported";
            "every OPT but the one with 350M parameters has them equal"
        );
    }
    let bias = config.bool_or("enable_bias", true)?;
    let tied = config.bool_or(TIED, true)?;
    let activation = Activation::from_config(config, "activation_function", "relu")?;

    let prefix = "model.decoder";
    let embedding = format!("{prefix}.embed_tokens.weight");
    let head = resolve_head(tensors, &embedding, "lm_head.weight", tied)?;
    let table = [
        (Role::Q, Site::AttnIn, "self_attn.q_proj", hidden, hidden),
        (Role::K, Site::AttnIn, "self_attn.k_proj", hidden, hidden),
        (Role::V, Site::AttnIn, "self_attn.v_proj", hidden, hidden),
        (Role::O, Site::AttnOut, "self_attn.out_proj", hidden, hidden),
        (Role::Up, Site::MlpIn, "fc1", ffn, hidden),
        (Role::Down, Site::MlpOut, "fc2", hidden, ffn),
    ];
    let linears = (0..blocks).flat_map(|block| {
        table.map(|(role, site, name, out, input)| {
            let name = format!("{prefix}.layers.{block}.{name}");
            LinearSpec { id: LinearId { block, role }, site, name, out, input, bias, stored: Stored::Plain }
        })
    });
    let norm = |key, name: String| NormSpec { key, name, width: hidden, kind: NormKind::Layer(EPSILON) };
    let (head_dim, scores) = (hidden / heads, Scores::default());
    let block = |index| BlockLayout {
        shape: Shape::PreNorm(PreNorm {
            attention: Attention { heads, kv_heads: heads, head_dim, rope: None, scores, sliding_window: None },
            inner: Inner::One(FeedForward { activation }),
        }),
        norms: vec![
            norm("attn_norm", format!("{prefix}.layers.{index}.self_attn_layer_norm")),
            norm("mlp_norm", format!("{prefix}.layers.{index}.final_layer_norm")),
        ],
        tensors: Vec::new(),
    };
    let final_norm = match config.bool_or("_remove_final_layer_norm", false)? {
        true => None,
        false => Some(norm("norm", format!("{prefix}.final_layer_norm"))),
    };
    let positions = Positions { name: format!("{prefix}.embed_positions.weight"), offset: 2 };
    Ok(Layout {
        family: "opt",
        hidden,
        vocab,
        context: config.usize_or("max_position_embeddings", 2048)?,
        linears: linears.collect(),
        blocks: (0..blocks).map(block).collect(),
        embedding: Embedding { tokens: embedding, positions: Some(positions), ..Embedding::default() },
        head: Readout::Next(HeadLayout { norm: final_norm, weight: head, ..HeadLayout::default() }),
        width_keys: WidthKeys { dense: "ffn_dim", expert: "ffn_dim" },
    })
}

//! GPT-NeoX and Pythia: LayerNorm, a plain MLP beside the attention, partly rotated heads. q, k and v are one matrix in
//! which each head's rows for q, k and v follow one another.

use super::super::block::{Attention, FeedForward, Inner, Parallel, PreNorm, Shape};
use super::super::config::Config;
use super::super::ids::{LinearId, Role, Site};
use super::super::layout::{BlockLayout, Embedding, HeadLayout, Layout, NormKind, NormSpec, Readout, WidthKeys};
use super::super::rope::{Rope, Rotation, Spelling};
use super::super::spec::{LinearSpec, RowRuns, Stored};
use super::super::tensors::Tensors;
use super::{Family, TIED, must_divide, resolve_head};
use crate::ops::{Activation, Scores};
use anyhow::Result;
use std::sync::Arc;

pub(super) const GPT_NEOX: Family = Family {
    model_type: "gpt_neox",
    prefix: "gpt_neox.",
    embedding: "embed_in.weight",
    layers: "layers",
    head: "embed_out.weight",
    synonyms: &[],
    keys: &[&[
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "hidden_act",
        "rotary_pct",
        "rotary_emb_base",
        "partial_rotary_factor",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "max_position_embeddings",
        "layer_norm_eps",
        "use_parallel_residual",
        "attention_bias",
        // Training alone.
        "attention_dropout",
        "hidden_dropout",
        "classifier_dropout",
    ]],
    sizes: &[],
    describe: layout,
};

/// Newer configs use everyone's keys, older ones their own.
const SPELLING: Spelling =
    Spelling { theta_key: "rotary_emb_base", fraction: Some(("rotary_pct", 0.25)), foreign: true, ..Spelling::USUAL };

fn layout(tensors: &mut Tensors, config: &Config) -> Result<Layout> {
    let (hidden, vocab) = tensors.embedding_sizes(config, "hidden_size", "vocab_size")?;
    let ffn = config.usize("intermediate_size")?;
    let blocks = tensors.layers(config, "num_hidden_layers")?;
    let heads = config.usize("num_attention_heads")?;
    must_divide("hidden_size", hidden, "num_attention_heads", heads)?;
    let d = hidden / heads;
    let context = config.usize_or("max_position_embeddings", 2048)?;
    let bias = config.bool_or("attention_bias", true)?;
    let parallel = config.bool_or("use_parallel_residual", true)?;
    let activation = Activation::from_config(config, "hidden_act", "gelu")?;
    let rope = Some(Arc::new(Rope::new(&Rotation::read(config, d, SPELLING)?, context)?));

    let prefix = |block: usize| format!("gpt_neox.layers.{block}");
    let table = [
        (Role::Q, Site::AttnIn, "attention.query_key_value", hidden, hidden, bias, Some(("q", 0))),
        (Role::K, Site::AttnIn, "attention.query_key_value", hidden, hidden, bias, Some(("k", d))),
        (Role::V, Site::AttnIn, "attention.query_key_value", hidden, hidden, bias, Some(("v", 2 * d))),
        (Role::O, Site::AttnOut, "attention.dense", hidden, hidden, bias, None),
        (Role::Up, Site::MlpIn, "mlp.dense_h_to_4h", ffn, hidden, true, None),
        (Role::Down, Site::MlpOut, "mlp.dense_4h_to_h", hidden, ffn, true, None),
    ];
    let spec = |block, (role, site, name, out, input, bias, part): (_, _, &str, _, _, _, Option<(&str, _)>)| {
        let matrix = format!("{}.{name}", prefix(block));
        let (name, stored) = match part {
            None => (matrix, Stored::Plain),
            Some((part, start)) => {
                let rows = RowRuns { start, run: d, stride: 3 * d };
                (format!("{matrix}.{part}"), Stored::Part { matrix, rows, transposed: false })
            }
        };
        LinearSpec { id: LinearId { block, role }, site, name, out, input, bias, stored }
    };
    let kind = NormKind::Layer(config.f64_or("layer_norm_eps", 1e-5)?);
    let norm = |key, name: String| NormSpec { key, name, width: hidden, kind };
    let block = |index| {
        let attention = Attention {
            heads,
            kv_heads: heads,
            head_dim: d,
            rope: rope.clone(),
            scores: Scores::default(),
            sliding_window: None,
        };
        let feed_forward = FeedForward { activation };
        let shape = match parallel {
            true => Shape::Parallel(Parallel { attention, feed_forward }),
            false => Shape::PreNorm(PreNorm { attention, inner: Inner::One(feed_forward) }),
        };
        let norms = vec![
            norm("attn_norm", format!("{}.input_layernorm", prefix(index))),
            norm("mlp_norm", format!("{}.post_attention_layernorm", prefix(index))),
        ];
        BlockLayout { shape, norms, tensors: Vec::new() }
    };
    let embedding = "gpt_neox.embed_in.weight";
    let tied = config.bool_or(TIED, false)?;
    let head = resolve_head(tensors, embedding, "embed_out.weight", tied)?;
    Ok(Layout {
        family: "gpt_neox",
        hidden,
        vocab,
        context,
        linears: (0..blocks).flat_map(|index| table.map(|row| spec(index, row))).collect(),
        blocks: (0..blocks).map(block).collect(),
        embedding: Embedding { tokens: embedding.to_string(), ..Embedding::default() },
        head: Readout::Next(HeadLayout {
            norm: Some(norm("norm", "gpt_neox.final_layer_norm".into())),
            weight: head,
            ..HeadLayout::default()
        }),
        width_keys: WidthKeys { dense: "intermediate_size", expert: "intermediate_size" },
    })
}

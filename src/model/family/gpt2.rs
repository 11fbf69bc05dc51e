//! GPT-2: LayerNorm, learned positions, plain MLP. Its linears are Conv1D: stored (in, out), with q, k and v fused.

use super::super::block::{Attention, FeedForward, Inner, PreNorm, Shape};
use super::super::config::Config;
use super::super::ids::{LinearId, Role, Site};
use super::super::layout::{
    BlockLayout, Embedding, HeadLayout, Layout, NormKind, NormSpec, Positions, Readout, WidthKeys,
};
use super::super::spec::{LinearSpec, RowRuns, Stored};
use super::super::tensors::Tensors;
use super::{Family, TIED, must_divide, resolve_head};
use crate::ops::{Activation, Scores};
use anyhow::Result;

pub(super) const GPT2: Family = Family {
    model_type: "gpt2",
    prefix: "transformer.",
    embedding: "wte.weight",
    layers: "h",
    head: "lm_head.weight",
    synonyms: &[
        ("hidden_size", "n_embd"),
        ("max_position_embeddings", "n_positions"),
        ("num_attention_heads", "n_head"),
        ("num_hidden_layers", "n_layer"),
    ],
    keys: &[&[
        "vocab_size",
        "n_positions",
        "n_embd",
        "n_layer",
        "n_head",
        "n_inner",
        "activation_function",
        "layer_norm_epsilon",
        "scale_attn_weights",
        "scale_attn_by_inverse_layer_idx",
        "add_cross_attention",
        // The same numbers in another order, and in f32 as here.
        "reorder_and_upcast_attn",
        // The context under its first name.
        "n_ctx",
        // Training alone, and a head that softlm does not run.
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
        "summary_type",
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
    ]],
    sizes: &[],
    describe: layout,
};

fn layout(tensors: &mut Tensors, config: &Config) -> Result<Layout> {
    let (hidden, vocab) = tensors.embedding_sizes(config, "n_embd", "vocab_size")?;
    let ffn = config.usize_or("n_inner", hidden.saturating_mul(4))?;
    let blocks = tensors.layers(config, "n_layer")?;
    let heads = config.usize("n_head")?;
    must_divide("n_embd", hidden, "n_head", heads)?;
    let context = config.usize_or("n_positions", 1024)?;
    let tied = config.bool_or(TIED, true)?;
    config.only("scale_attn_weights", true)?;
    config.only("scale_attn_by_inverse_layer_idx", false)?;
    config.only("add_cross_attention", false)?;

    let prefix = GPT2.prefix;
    let embedding = format!("{prefix}{}", GPT2.embedding);
    let head = resolve_head(tensors, &embedding, "lm_head.weight", tied)?;
    let table = [
        (Role::Q, Site::AttnIn, "attn.c_attn", Some(("q", 0)), hidden, hidden),
        (Role::K, Site::AttnIn, "attn.c_attn", Some(("k", hidden)), hidden, hidden),
        (Role::V, Site::AttnIn, "attn.c_attn", Some(("v", hidden.saturating_mul(2))), hidden, hidden),
        (Role::O, Site::AttnOut, "attn.c_proj", None, hidden, hidden),
        (Role::Up, Site::MlpIn, "mlp.c_fc", None, ffn, hidden),
        (Role::Down, Site::MlpOut, "mlp.c_proj", None, hidden, ffn),
    ];
    let linears = (0..blocks)
        .flat_map(|block| {
            table.map(|(role, site, name, part, out, input)| {
                let matrix = format!("{prefix}h.{block}.{name}");
                let (name, rows) = match part {
                    Some((part, start)) => (format!("{matrix}.{part}"), RowRuns::from(start)),
                    None => (matrix.clone(), RowRuns::from(0)),
                };
                let stored = Stored::Part { matrix, rows, transposed: true };
                LinearSpec { id: LinearId { block, role }, site, name, out, input, bias: true, stored }
            })
        })
        .collect();
    let kind = NormKind::Layer(config.f64_or("layer_norm_epsilon", 1e-5)?);
    let norm = |key, name: String| NormSpec { key, name, width: hidden, kind };
    let activation = Activation::from_config(config, "activation_function", "gelu_new")?;
    let (head_dim, scores) = (hidden / heads, Scores::default());
    let block = |index| BlockLayout {
        shape: Shape::PreNorm(PreNorm {
            attention: Attention { heads, kv_heads: heads, head_dim, rope: None, scores, sliding_window: None },
            inner: Inner::One(FeedForward { activation }),
        }),
        norms: vec![
            norm("attn_norm", format!("{prefix}h.{index}.ln_1")),
            norm("mlp_norm", format!("{prefix}h.{index}.ln_2")),
        ],
        tensors: Vec::new(),
    };
    let positions = Positions { name: format!("{prefix}wpe.weight"), offset: 0 };
    Ok(Layout {
        family: "gpt2",
        hidden,
        vocab,
        context,
        linears,
        blocks: (0..blocks).map(block).collect(),
        embedding: Embedding { tokens: embedding, positions: Some(positions), ..Embedding::default() },
        head: Readout::Next(HeadLayout {
            norm: Some(norm("norm", format!("{prefix}ln_f"))),
            weight: head,
            ..HeadLayout::default()
        }),
        width_keys: WidthKeys { dense: "n_inner", expert: "n_inner" },
    })
}

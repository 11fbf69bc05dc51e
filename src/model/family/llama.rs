//! Llama: RMSNorm, rotary positions, gated MLP, grouped key/value heads.

use super::super::attention::Scores;
use super::super::block::{Attend, FeedForward, PreNorm, Shape};
use super::super::config::Config;
use super::super::ids::{LinearId, Role, Site};
use super::super::layout::{BlockLayout, Embedding, HeadLayout, Layout, NormKind, NormSpec, WidthKeys};
use super::super::ops::Activation;
use super::super::rope::Rope;
use super::super::spec::{LinearSpec, Stored};
use super::{must_divide, resolve_head};
use crate::checkpoint::Source;
use anyhow::Result;
use candle_core::Device;
use std::sync::Arc;

pub(super) fn layout(source: &mut Source, config: &Config, device: &Device) -> Result<Layout> {
    let hidden = config.usize("hidden_size")?;
    let ffn = config.usize("intermediate_size")?;
    let blocks = config.usize("num_hidden_layers")?;
    let heads = config.usize("num_attention_heads")?;
    let kv_heads = config.usize_or("num_key_value_heads", heads)?;
    let vocab = config.usize("vocab_size")?;
    let context = config.usize_or("max_position_embeddings", 2048)?;
    if config.get("head_dim").is_none() {
        must_divide("hidden_size", hidden, "num_attention_heads", heads)?;
    }
    let head_dim = config.usize_or("head_dim", hidden / heads)?;
    must_divide("num_attention_heads", heads, "num_key_value_heads", kv_heads)?;
    let attention_bias = config.bool_or("attention_bias", false)?;
    let mlp_bias = config.bool_or("mlp_bias", false)?;
    let tied = config.bool_or("tie_word_embeddings", false)?;

    let embedding = "model.embed_tokens.weight";
    let head = resolve_head(source, embedding, "lm_head.weight", tied)?;
    let (q, kv) = (heads * head_dim, kv_heads * head_dim);
    let table = [
        (Role::Q, Site::AttnIn, "self_attn.q_proj", q, hidden, attention_bias),
        (Role::K, Site::AttnIn, "self_attn.k_proj", kv, hidden, attention_bias),
        (Role::V, Site::AttnIn, "self_attn.v_proj", kv, hidden, attention_bias),
        (Role::O, Site::AttnOut, "self_attn.o_proj", hidden, q, attention_bias),
        (Role::Gate, Site::MlpIn, "mlp.gate_proj", ffn, hidden, mlp_bias),
        (Role::Up, Site::MlpIn, "mlp.up_proj", ffn, hidden, mlp_bias),
        (Role::Down, Site::MlpOut, "mlp.down_proj", hidden, ffn, mlp_bias),
    ];
    let linears = (0..blocks)
        .flat_map(|block| {
            table.map(|(role, site, name, out, input, bias)| LinearSpec {
                id: LinearId { block, role },
                site,
                name: format!("model.layers.{block}.{name}"),
                out,
                input,
                bias,
                stored: Stored::Plain,
            })
        })
        .collect();
    let kind = NormKind::Rms(config.f64_or("rms_norm_eps", 1e-6)?);
    let norm = |key, name: String| NormSpec { key, name, width: hidden, kind };
    let activation = Activation::from_config(config, "hidden_act", "silu")?;
    let rope = Some(Arc::new(Rope::new(config, head_dim, context, device)?));
    let block = |index| BlockLayout {
        shape: Shape::PreNorm(PreNorm {
            attend: Attend { heads, kv_heads, head_dim, rope: rope.clone(), scores: Scores::default() },
            feed_forward: FeedForward { activation },
        }),
        norms: vec![
            norm("attn_norm", format!("model.layers.{index}.input_layernorm")),
            norm("mlp_norm", format!("model.layers.{index}.post_attention_layernorm")),
        ],
        tensors: Vec::new(),
    };
    Ok(Layout {
        family: "llama",
        hidden,
        vocab,
        context,
        linears,
        blocks: (0..blocks).map(block).collect(),
        embedding: Embedding { tokens: embedding.to_string(), scale: None, positions: None },
        head: HeadLayout { norm: Some(norm("norm", "model.norm".into())), weight: head, bias: None, soft_cap: None },
        width_keys: WidthKeys { dense: "intermediate_size", expert: "intermediate_size" },
    })
}

//! GPT-2: LayerNorm, learned positions, plain MLP. Its linears are Conv1D: stored (in, out), with q, k and v fused.

use super::super::config::Config;
use super::super::decoder::{Layout, NormKind};
use super::super::ids::{LinearId, LinearSpec, Role, Site, Stored};
use super::super::ops::Activation;
use super::{must_divide, resolve_head};
use crate::checkpoint::Source;
use crate::user_bail;
use anyhow::Result;

pub(super) fn layout(source: &mut Source, config: &Config) -> Result<Layout> {
    let hidden = config.usize("n_embd")?;
    let ffn = config.usize_or("n_inner", 4 * hidden)?;
    let blocks = config.usize("n_layer")?;
    let heads = config.usize("n_head")?;
    must_divide("n_embd", hidden, "n_head", heads)?;
    let context = config.usize_or("n_positions", 1024)?;
    let tied = config.bool_or("tie_word_embeddings", true)?;
    for (key, wanted) in
        [("scale_attn_weights", true), ("scale_attn_by_inverse_layer_idx", false), ("add_cross_attention", false)]
    {
        if config.bool_or(key, wanted)? != wanted {
            user_bail!("config.json: `{key}` = {} is not supported for GPT-2", !wanted; "softlm runs plain GPT-2 attention");
        }
    }

    // The first published files lack the prefix.
    let prefix = if source.info("wte.weight").is_some() { "" } else { "transformer." };
    let embedding = format!("{prefix}wte.weight");
    let head = resolve_head(source, &embedding, "lm_head.weight", tied)?;
    let table = [
        (Role::Q, Site::AttnIn, "attn.c_attn", Some(("q", 0)), hidden, hidden),
        (Role::K, Site::AttnIn, "attn.c_attn", Some(("k", hidden)), hidden, hidden),
        (Role::V, Site::AttnIn, "attn.c_attn", Some(("v", 2 * hidden)), hidden, hidden),
        (Role::O, Site::AttnOut, "attn.c_proj", None, hidden, hidden),
        (Role::Up, Site::MlpIn, "mlp.c_fc", None, ffn, hidden),
        (Role::Down, Site::MlpOut, "mlp.c_proj", None, hidden, ffn),
    ];
    let linears = (0..blocks)
        .flat_map(|block| {
            table.map(|(role, site, name, part, out, input)| {
                let fused = format!("{prefix}h.{block}.{name}");
                let (name, start) = match part {
                    Some((part, start)) => (format!("{fused}.{part}"), start),
                    None => (fused.clone(), 0),
                };
                let stored = Stored::Conv1d { fused, start };
                LinearSpec { id: LinearId { block, role }, site, name, out, input, bias: true, stored }
            })
        })
        .collect();
    Ok(Layout {
        family: "gpt2",
        hidden,
        vocab: config.usize("vocab_size")?,
        blocks,
        heads,
        kv_heads: heads,
        head_dim: hidden / heads,
        context,
        norm: NormKind::Layer(config.f64_or("layer_norm_epsilon", 1e-5)?),
        activation: Activation::from_config(config, "activation_function", "gelu_new")?,
        width_key: "n_inner",
        rope: None,
        linears,
        embedding,
        positions: Some(format!("{prefix}wpe.weight")),
        block: format!("{prefix}h."),
        attn_norm: "ln_1",
        mlp_norm: "ln_2",
        final_norm: format!("{prefix}ln_f"),
        head,
    })
}

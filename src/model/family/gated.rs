//! What most decoders of today have in common: RMSNorm, rotary positions, grouped key/value heads, a gated feed-forward
//! layer. Families say in which of these [`Gated`] features they differ.

use super::super::block::{Attention, Experts, FeedForward, Inner, PreNorm, Shape};
use super::super::config::Config;
use super::super::ids::{FfnPart, LinearId, Role, Site};
use super::super::layout::{
    BlockLayout, Embedding, HeadLayout, Layout, NormKind, NormSpec, Readout, TensorSpec, WidthKeys,
};
use super::super::rope::Rope;
use super::super::spec::{LinearSpec, RowRuns, Stored};
use super::super::tensors::Tensors;
use super::{Family, TIED, must_divide, resolve_head};
use crate::ops::{Activation, Scores};
use crate::user_bail;
use anyhow::Result;
use serde_json::Value;
use std::sync::Arc;

/// What decoders of this kind have in common under their names.
pub(super) const DECODER: Family = Family {
    model_type: "",
    prefix: "model.",
    embedding: "embed_tokens.weight",
    layers: "layers",
    head: "lm_head.weight",
    synonyms: &[],
    keys: &[],
    sizes: &[],
    describe: |_, config| user_bail!("config.json: `model_type` {} is no family", config.str_or("model_type", "")?; "get the model's original config.json"),
};

/// Keys that all their configuration classes have.
pub(super) const DECODER_KEYS: &[&str] = &[
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    // Beside the rope parameters, where it must agree with them.
    "partial_rotary_factor",
    "original_max_position_embeddings",
    // Nothing is dropped in inference.
    "attention_dropout",
];

/// The sizes that every config of this kind gives under the same keys.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub hidden: usize,
    pub ffn: usize,
    pub blocks: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    pub context: usize,
}

impl Sizes {
    /// Reads them.
    pub fn read(tensors: &Tensors, config: &Config, defaults: Defaults) -> Result<Self> {
        let (hidden, vocab) = tensors.embedding_sizes(config, "hidden_size", "vocab_size")?;
        let heads = config.usize("num_attention_heads")?;
        let kv_heads = match config.usize_or_null("num_key_value_heads", defaults.kv_heads)? {
            Some(kv_heads) => kv_heads,
            None => heads,
        };
        let head_dim = match config.usize_or("head_dim", defaults.head_dim.unwrap_or(0))? {
            0 => {
                must_divide("hidden_size", hidden, "num_attention_heads", heads)?;
                hidden / heads
            }
            given => given,
        };
        tensors.expect_possible("head_dim", head_dim)?;
        must_divide("num_attention_heads", heads, "num_key_value_heads", kv_heads)?;
        Ok(Self {
            hidden,
            ffn: config.usize("intermediate_size")?,
            blocks: tensors.layers(config, "num_hidden_layers")?,
            heads,
            kv_heads,
            head_dim,
            vocab,
            context: config.usize_or("max_position_embeddings", defaults.context)?,
        })
    }
}

/// What a family's configuration class assumes where the config says nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Defaults {
    pub context: usize,
    /// As many as heads, if the class says nothing.
    pub kv_heads: Option<usize>,
    /// hidden / heads, if the class says nothing.
    pub head_dim: Option<usize>,
}

/// What the attention of one block has of its own.
#[derive(Debug, Clone)]
pub(super) struct LayerAttention {
    /// Keys that a query sees, by default all before.
    pub sliding_window: Option<usize>,
    pub rope: Arc<Rope>,
}

impl LayerAttention {
    /// The same for every block.
    pub fn everywhere(sizes: &Sizes, sliding_window: Option<usize>, rope: Rope) -> Vec<Self> {
        vec![Self { sliding_window, rope: Arc::new(rope) }; sizes.blocks]
    }

    /// Some blocks with a window, others without.
    pub fn alternating(
        windowed: Vec<bool>,
        window: Option<usize>,
        rope: impl Fn(bool) -> Arc<Rope>,
    ) -> Result<Vec<Self>> {
        if window.is_none() && windowed.contains(&true) {
            user_bail!(
                "config.json has layers with a sliding window, but gives none";
                "set `sliding_window` (and `use_sliding_window`, where the family has that), or make all `layer_types` \"full_attention\""
            );
        }
        Ok(windowed.into_iter().map(|one| Self { sliding_window: window.filter(|_| one), rope: rope(one) }).collect())
    }
}

/// Experts that all blocks together may have; those of today have some ten thousand. They take memory before their tensors are
/// looked for.
const MOST_EXPERTS: usize = 1 << 15;

/// Experts in place of the feed-forward layer.
#[derive(Debug, Clone)]
pub(super) struct Mixture {
    pub count: u16,
    /// Key of that number in config.json.
    pub count_key: &'static str,
    /// Experts per token.
    pub chosen: usize,
    /// Whether their weights sum to 1.
    pub normalised: bool,
    /// Width of one.
    pub width: usize,
    /// Key of that width in config.json.
    pub width_key: &'static str,
    /// Width of the expert that every token passes through, if there is one.
    pub shared: Option<usize>,
    /// What router and experts are called in a block, and an expert's gate, up and down in it.
    pub names: (&'static str, &'static str, [&'static str; 3]),
    /// Which blocks have experts; the others have one feed-forward layer.
    pub sparse: Vec<bool>,
}

impl Mixture {
    /// Reads number and choice of experts; `chosen` per token where the config does not say.
    pub fn counts(config: &Config, key: &str, chosen: usize) -> Result<(u16, usize)> {
        let (count, chosen) = (config.usize(key)?, config.usize_or("num_experts_per_tok", chosen)?);
        match u16::try_from(count) {
            Ok(count) if chosen <= usize::from(count) => Ok((count, chosen)),
            _ => user_bail!(
                "config.json: `num_experts_per_tok` = {chosen} of `{key}` = {count} experts cannot be";
                "get the model's original config.json"
            ),
        }
    }
}

/// A decoder of this kind.
pub(super) struct Gated {
    pub family: &'static str,
    pub sizes: Sizes,
    /// One per block.
    pub attention: Vec<LayerAttention>,
    /// Biases of q, k and v; of o; of the feed-forward layer.
    pub biases: [bool; 3],
    /// Makes the kind of norm from ε.
    pub norm: fn(f64) -> NormKind,
    /// ε where the config gives none.
    pub epsilon: f64,
    /// Norms of each head's queries and keys.
    pub head_norms: bool,
    /// Norms behind attention and feed-forward layer too, named the way such models do.
    pub post_norms: bool,
    /// q, k, v in one matrix; gate, up in another.
    pub fused: bool,
    /// Experts, if it has any.
    pub mixture: Option<Mixture>,
    /// Key of the activation and its default.
    pub activation: (&'static str, &'static str),
    /// Whether the head is tied to the embedding unless the config says otherwise.
    pub tied: bool,
    pub embedding_scale: Option<f64>,
    /// See [`Embedding::needs_bos`].
    pub needs_bos: bool,
    pub score_scale: Option<f64>,
    pub score_cap: Option<f64>,
    pub logit_cap: Option<f64>,
}

impl Gated {
    /// As Llama has it.
    pub fn plain(family: &'static str, sizes: Sizes, attention: Vec<LayerAttention>) -> Self {
        Self {
            family,
            sizes,
            attention,
            biases: [false; 3],
            norm: NormKind::Rms,
            epsilon: 1e-6,
            head_norms: false,
            post_norms: false,
            fused: false,
            mixture: None,
            activation: ("hidden_act", "silu"),
            tied: false,
            embedding_scale: None,
            needs_bos: false,
            score_scale: None,
            score_cap: None,
            logit_cap: None,
        }
    }

    /// The whole description.
    pub fn layout(self, tensors: &mut Tensors, config: &Config) -> Result<Layout> {
        self.expect_experts(tensors)?;
        let Sizes { hidden, blocks, vocab, context, .. } = self.sizes;
        let tied = config.bool_or(TIED, self.tied)?;
        let embedding = "model.embed_tokens.weight";
        let head = resolve_head(tensors, embedding, "lm_head.weight", tied)?;
        let kind = (self.norm)(config.f64_or("rms_norm_eps", self.epsilon)?);
        let activation = Activation::from_config(config, self.activation.0, self.activation.1)?;
        let final_norm = NormSpec { key: "norm", name: "model.norm".into(), width: hidden, kind };
        Ok(Layout {
            family: self.family,
            hidden,
            vocab,
            context,
            linears: (0..blocks).flat_map(|block| self.linears(block)).collect(),
            blocks: self
                .attention
                .iter()
                .enumerate()
                .map(|(i, attention)| self.block(i, attention, kind, activation))
                .collect(),
            embedding: Embedding {
                tokens: embedding.to_string(),
                scale: self.embedding_scale,
                needs_bos: self.needs_bos,
                ..Embedding::default()
            },
            head: Readout::Next(HeadLayout {
                norm: Some(final_norm),
                weight: head,
                soft_cap: self.logit_cap,
                ..HeadLayout::default()
            }),
            width_keys: WidthKeys {
                dense: "intermediate_size",
                expert: self.mixture.as_ref().map_or("intermediate_size", |mixture| mixture.width_key),
            },
        })
    }

    fn block(&self, index: usize, attention: &LayerAttention, kind: NormKind, activation: Activation) -> BlockLayout {
        let Sizes { hidden, heads, kv_heads, head_dim, .. } = self.sizes;
        let norm = |key, name: &str, width| {
            let name = format!("model.layers.{index}.{name}");
            NormSpec { key, name, width, kind }
        };
        let mut norms = vec![norm("attn_norm", "input_layernorm", hidden)];
        if self.head_norms {
            norms.push(norm("q_norm", "self_attn.q_norm", head_dim));
            norms.push(norm("k_norm", "self_attn.k_norm", head_dim));
        }
        if self.post_norms {
            norms.push(norm("attn_post_norm", "post_attention_layernorm", hidden));
            norms.push(norm("mlp_norm", "pre_feedforward_layernorm", hidden));
            norms.push(norm("mlp_post_norm", "post_feedforward_layernorm", hidden));
        } else {
            norms.push(norm("mlp_norm", "post_attention_layernorm", hidden));
        }
        let scores = Scores { scale: self.score_scale, soft_cap: self.score_cap };
        let (rope, sliding_window) = (Some(attention.rope.clone()), attention.sliding_window);
        let attention = Attention { heads, kv_heads, head_dim, rope, scores, sliding_window };
        let (inner, tensors) = self.inner(index, FeedForward { activation });
        BlockLayout { shape: Shape::PreNorm(PreNorm { attention, inner }), norms, tensors }
    }

    /// Fails unless the first block with experts has as many as the config says, and all together are not too many.
    fn expect_experts(&self, tensors: &Tensors) -> Result<()> {
        let Some(mixture) = &self.mixture else { return Ok(()) };
        let Some(block) = mixture.sparse.iter().position(|sparse| *sparse) else { return Ok(()) };
        let (router, experts, _) = mixture.names;
        let count = usize::from(mixture.count);
        tensors.expect(&format!("model.layers.{block}.{router}.weight"), &[count, self.sizes.hidden])?;
        tensors.expect_numbered(&format!("model.layers.{block}.{experts}"), count, mixture.count_key)?;
        let all = count * mixture.sparse.iter().filter(|sparse| **sparse).count();
        if all > MOST_EXPERTS {
            user_bail!(
                "config.json: `{}` = {count} makes {all} experts in all blocks, more than the {MOST_EXPERTS} that are supported", mixture.count_key;
                "get the model's original config.json"
            );
        }
        Ok(())
    }

    /// The experts of block `index`.
    fn mixture(&self, index: usize) -> Option<&Mixture> {
        self.mixture.as_ref().filter(|mixture| mixture.sparse.get(index).copied().unwrap_or(false))
    }

    fn inner(&self, index: usize, each: FeedForward) -> (Inner, Vec<TensorSpec>) {
        let Some(mixture) = self.mixture(index) else { return (Inner::One(each), Vec::new()) };
        let tensor = |key, name: &str, rows| TensorSpec {
            key,
            name: format!("model.layers.{index}.{name}.weight"),
            shape: vec![rows, self.sizes.hidden],
        };
        let mut tensors = vec![tensor("moe.router", mixture.names.0, usize::from(mixture.count))];
        if mixture.shared.is_some() {
            tensors.push(tensor("moe.shared_gate", "mlp.shared_expert_gate", 1));
        }
        let experts = Experts {
            each,
            count: mixture.count,
            chosen: mixture.chosen,
            normalised: mixture.normalised,
            shared: mixture.shared.map(|_| "shared_expert_intermediate_size"),
        };
        (Inner::Experts(experts), tensors)
    }

    /// In the order in which activations reach them.
    fn linears(&self, block: usize) -> Vec<LinearSpec> {
        let attention = self.dense_linears(block).into_iter().filter(|spec| spec.id.role.is_attention());
        match self.mixture(block) {
            None => self.dense_linears(block),
            Some(mixture) => attention.chain(self.expert_linears(block, mixture)).collect(),
        }
    }

    /// Those of the shared expert, then every expert's gate and up, then every expert's down.
    fn expert_linears(&self, block: usize, mixture: &Mixture) -> Vec<LinearSpec> {
        let hidden = self.sizes.hidden;
        let spec = |role, site, name: String, out, input| LinearSpec {
            id: LinearId { block, role },
            site,
            name: format!("model.layers.{block}.{name}"),
            out,
            input,
            bias: false,
            stored: Stored::Plain,
        };
        let mut linears = Vec::new();
        if let Some(width) = mixture.shared {
            let name = |part| format!("mlp.shared_expert.{part}_proj");
            linears.push(spec(Role::Gate, Site::MlpIn, name("gate"), width, hidden));
            linears.push(spec(Role::Up, Site::MlpIn, name("up"), width, hidden));
            linears.push(spec(Role::Down, Site::MlpOut, name("down"), hidden, width));
        }
        let (_, experts, [gate, up, down]) = mixture.names;
        for expert in 0..mixture.count {
            for (part, name) in [(FfnPart::Gate, gate), (FfnPart::Up, up)] {
                let (role, name) = (Role::Expert(expert, part), format!("{experts}.{expert}.{name}"));
                linears.push(spec(role, Site::ExpertIn(expert), name, mixture.width, hidden));
            }
        }
        for expert in 0..mixture.count {
            let (role, name) = (Role::Expert(expert, FfnPart::Down), format!("{experts}.{expert}.{down}"));
            linears.push(spec(role, Site::ExpertOut(expert), name, hidden, mixture.width));
        }
        linears
    }

    fn dense_linears(&self, block: usize) -> Vec<LinearSpec> {
        let Sizes { hidden, ffn, heads, kv_heads, head_dim, .. } = self.sizes;
        // A product too large for any tensor stays that.
        let (q, kv) = (heads.saturating_mul(head_dim), kv_heads.saturating_mul(head_dim));
        let [qkv_bias, o_bias, mlp_bias] = self.biases;
        // Of a fused matrix: its name, and the part's name and first row.
        let qkv = |part, start| self.fused.then_some(("self_attn.qkv_proj", part, start));
        let gate_up = |part, start| self.fused.then_some(("mlp.gate_up_proj", part, start));
        let table = [
            (Role::Q, Site::AttnIn, "self_attn.q_proj", q, hidden, qkv_bias, qkv("q", 0)),
            (Role::K, Site::AttnIn, "self_attn.k_proj", kv, hidden, qkv_bias, qkv("k", q)),
            (Role::V, Site::AttnIn, "self_attn.v_proj", kv, hidden, qkv_bias, qkv("v", q.saturating_add(kv))),
            (Role::O, Site::AttnOut, "self_attn.o_proj", hidden, q, o_bias, None),
            (Role::Gate, Site::MlpIn, "mlp.gate_proj", ffn, hidden, mlp_bias, gate_up("gate", 0)),
            (Role::Up, Site::MlpIn, "mlp.up_proj", ffn, hidden, mlp_bias, gate_up("up", ffn)),
            (Role::Down, Site::MlpOut, "mlp.down_proj", hidden, ffn, mlp_bias, None),
        ];
        let spec = |(role, site, name, out, input, bias, part): (_, _, &str, _, _, _, Option<(&str, &str, _)>)| {
            let full = |name: &str| format!("model.layers.{block}.{name}");
            let (name, stored) = match part {
                None => (full(name), Stored::Plain),
                Some((matrix, part, start)) => {
                    let (matrix, rows) = (full(matrix), RowRuns::from(start));
                    (format!("{matrix}.{part}"), Stored::Part { matrix, rows, transposed: false })
                }
            };
            LinearSpec { id: LinearId { block, role }, site, name, out, input, bias, stored }
        };
        table.map(spec).into()
    }
}

/// Which blocks see a window only: as `layer_types` lists them, or by `default` where the config has no list.
pub(super) fn windowed(config: &Config, blocks: usize, default: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
    let Some(types) = config.get("layer_types") else { return Ok((0..blocks).map(default).collect()) };
    let list = types.as_array().map_or(&[][..], Vec::as_slice);
    if list.len() != blocks {
        user_bail!(
            "config.json: `layer_types` lists {} of {blocks} layers", list.len();
            "get the model's original config.json"
        );
    }
    let windowed = |kind: &Value| match kind.as_str() {
        Some("sliding_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => user_bail!(
            "config.json: `layer_types` has {kind}, which is not supported";
            "known are \"full_attention\" and \"sliding_attention\""
        ),
    };
    list.iter().map(windowed).collect()
}

//! BERT and DistilBERT: post-norm encoders with absolute positions, of which the second has no token types.
//!
//! Which head a checkpoint has is seen by its tensors: masked-token head, classifier over the first position, or none, which
//! includes heads that softlm does not run (question answering, tags of tokens).

use super::super::block::{Attention, FeedForward, PostNorm, Shape};
use super::super::config::Config;
use super::super::ids::{LinearId, Role, Site};
use super::super::layout::{
    BlockLayout, ClassLayout, DenseLayout, Embedding, HeadLayout, Layout, NormKind, NormSpec, Positions, Readout,
    TokenTypes, WidthKeys,
};
use super::super::spec::{LinearSpec, Stored};
use super::super::tensors::Tensors;
use super::{Family, TIED, must_divide, resolve_head};
use crate::ops::{Activation, Scores};
use crate::user_bail;
use anyhow::Result;

/// LayerNorm's ε where the config gives none.
const EPSILON: f64 = 1e-12;

/// What the two families call their parts, and the keys of their configs.
struct Names {
    family: &'static Family,
    /// Keys of hidden width, feed-forward width, blocks, heads and activation.
    keys: [&'static str; 5],
    /// Key of LayerNorm's ε, for families whose configs have one.
    epsilon_key: Option<&'static str>,
    /// q, k, v, o, up, down
    linears: [&'static str; 6],
    norms: [&'static str; 2],
    /// Masked-token head: layer, norm, projection, and what its bias may be called.
    masked: [&'static str; 3],
    masked_bias: [&'static str; 2],
    /// In front of the classifier.
    pooler: (&'static str, Activation),
    types: Option<&'static str>,
}

pub(super) const BERT: Family = Family {
    model_type: "bert",
    prefix: "bert.",
    embedding: "embeddings.word_embeddings.weight",
    layers: "encoder.layer",
    head: "cls.predictions.decoder.weight",
    synonyms: &[],
    keys: &[&[
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "hidden_act",
        "max_position_embeddings",
        "type_vocab_size",
        "layer_norm_eps",
        "position_embedding_type",
        "is_decoder",
        "add_cross_attention",
        // Training alone.
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "classifier_dropout",
        // A pooler of the first, Chinese, files, which had no other.
        "directionality",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
    ]],
    sizes: &[],
    describe: layout,
};

pub(super) const DISTILBERT: Family = Family {
    model_type: "distilbert",
    prefix: "distilbert.",
    embedding: "embeddings.word_embeddings.weight",
    layers: "transformer.layer",
    head: "vocab_projector.weight",
    synonyms: &[("hidden_size", "dim"), ("num_attention_heads", "n_heads"), ("num_hidden_layers", "n_layers")],
    keys: &[&[
        "vocab_size",
        "max_position_embeddings",
        "n_layers",
        "n_heads",
        "dim",
        "hidden_dim",
        "activation",
        // How positions are drawn; the checkpoint has them in any case.
        "sinusoidal_pos_embds",
        // Training alone.
        "dropout",
        "attention_dropout",
        "qa_dropout",
        "seq_classif_dropout",
        // Names of the first files.
        "tie_weights_",
    ]],
    sizes: &[],
    describe: layout_distil,
};

const BERT_NAMES: Names = Names {
    family: &BERT,
    epsilon_key: Some("layer_norm_eps"),
    keys: ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act"],
    linears: [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ],
    norms: ["attention.output.LayerNorm", "output.LayerNorm"],
    masked: ["cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.decoder"],
    masked_bias: ["cls.predictions.bias", "cls.predictions.decoder.bias"],
    pooler: ("bert.pooler.dense", Activation::Tanh),
    types: Some("embeddings.token_type_embeddings.weight"),
};

const DISTILBERT_NAMES: Names = Names {
    family: &DISTILBERT,
    epsilon_key: None,
    keys: ["dim", "hidden_dim", "n_layers", "n_heads", "activation"],
    linears: ["attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2"],
    norms: ["sa_layer_norm", "output_layer_norm"],
    masked: ["vocab_transform", "vocab_layer_norm", "vocab_projector"],
    masked_bias: ["vocab_projector.bias", "vocab_projector.bias"],
    pooler: ("pre_classifier", Activation::Relu),
    types: None,
};

fn layout(tensors: &mut Tensors, config: &Config) -> Result<Layout> {
    let kind = config.str_or("position_embedding_type", "absolute")?;
    if kind != "absolute" {
        user_bail!(
            "config.json: `position_embedding_type` = \"{kind}\" is not supported for bert";
            "softlm runs this family with absolute positions"
        );
    }
    config.only("is_decoder", false)?;
    config.only("add_cross_attention", false)?;
    BERT_NAMES.layout(tensors, config)
}

fn layout_distil(tensors: &mut Tensors, config: &Config) -> Result<Layout> {
    DISTILBERT_NAMES.layout(tensors, config)
}

impl Names {
    fn layout(&self, tensors: &mut Tensors, config: &Config) -> Result<Layout> {
        let [hidden_key, ffn_key, blocks_key, heads_key, activation_key] = self.keys;
        let (hidden, vocab) = tensors.embedding_sizes(config, hidden_key, "vocab_size")?;
        let (ffn, heads) = (config.usize(ffn_key)?, config.usize(heads_key)?);
        let blocks = tensors.layers(config, blocks_key)?;
        must_divide(hidden_key, hidden, heads_key, heads)?;
        let activation = Activation::from_config(config, activation_key, "gelu")?;
        let epsilon = self.epsilon_key.map(|key| config.f64_or(key, EPSILON)).transpose()?;
        let kind = NormKind::Layer(epsilon.unwrap_or(EPSILON));
        let prefix = self.family.prefix;
        let norm = |key, name: String| NormSpec { key, name, width: hidden, kind };
        let at = |index: usize, name: &str| format!("{prefix}{}.{index}.{name}", self.family.layers);

        let sizes = [hidden, hidden, hidden, hidden, ffn, hidden];
        let inputs = [hidden, hidden, hidden, hidden, hidden, ffn];
        let roles = [Role::Q, Role::K, Role::V, Role::O, Role::Up, Role::Down];
        let sites = [Site::AttnIn, Site::AttnIn, Site::AttnIn, Site::AttnOut, Site::MlpIn, Site::MlpOut];
        let linear = |block, i: usize| LinearSpec {
            id: LinearId { block, role: roles[i] },
            site: sites[i],
            name: at(block, self.linears[i]),
            out: sizes[i],
            input: inputs[i],
            bias: true,
            stored: Stored::Plain,
        };
        let (head_dim, scores) = (hidden / heads, Scores::default());
        let block = |index| BlockLayout {
            shape: Shape::PostNorm(PostNorm {
                attention: Attention { heads, kv_heads: heads, head_dim, rope: None, scores, sliding_window: None },
                feed_forward: FeedForward { activation },
            }),
            norms: vec![norm("attn_norm", at(index, self.norms[0])), norm("mlp_norm", at(index, self.norms[1]))],
            tensors: Vec::new(),
        };
        let types = match self.types {
            Some(name) => {
                Some(TokenTypes { name: format!("{prefix}{name}"), count: config.usize_or("type_vocab_size", 2)? })
            }
            None => None,
        };
        let positions = Positions { name: format!("{prefix}embeddings.position_embeddings.weight"), offset: 0 };
        let tokens = format!("{prefix}{}", self.family.embedding);
        Ok(Layout {
            family: self.family.model_type,
            hidden,
            vocab,
            context: config.usize_or("max_position_embeddings", 512)?,
            linears: (0..blocks)
                .flat_map(|index| (0..roles.len()).map(move |i| (index, i)))
                .map(|(index, i)| linear(index, i))
                .collect(),
            blocks: (0..blocks).map(block).collect(),
            head: self.head(tensors, config, &tokens, hidden, kind)?,
            embedding: Embedding {
                tokens,
                positions: Some(positions),
                types,
                norm: Some(norm("norm", format!("{prefix}embeddings.LayerNorm"))),
                ..Embedding::default()
            },
            width_keys: WidthKeys { dense: ffn_key, expert: ffn_key },
        })
    }

    fn head(
        &self,
        tensors: &mut Tensors,
        config: &Config,
        embedding: &str,
        width: usize,
        kind: NormKind,
    ) -> Result<Readout> {
        let [dense, norm, projection] = self.masked;
        let (pooler, pooled) = self.pooler;
        let shape = |name: &str| tensors.shape(&format!("{name}.weight")).map(<[usize]>::to_vec);
        if shape(dense).is_some() {
            let bias = self.masked_bias.into_iter().find(|name| tensors.is_there(name));
            let activation = Activation::from_config(config, self.keys[4], "gelu")?;
            let tied = config.bool_or(TIED, true)?;
            return Ok(Readout::Masked(HeadLayout {
                dense: Some(DenseLayout { name: dense.into(), activation }),
                norm: Some(NormSpec { key: "norm", name: norm.into(), width, kind }),
                weight: resolve_head(tensors, embedding, &format!("{projection}.weight"), tied)?,
                bias: Some(bias.unwrap_or(self.masked_bias[0]).into()),
                soft_cap: None,
            }));
        }
        let classes = shape("classifier").and_then(|shape| shape.first().copied());
        Ok(match (classes, shape(pooler)) {
            (Some(classes), Some(_)) => Readout::Classes(ClassLayout {
                pooler: DenseLayout { name: pooler.into(), activation: pooled },
                name: "classifier".into(),
                classes,
            }),
            _ => Readout::States,
        })
    }
}

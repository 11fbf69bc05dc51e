//! Mamba and Mamba-2: state-space blocks alone, RMSNorm, no positions.
//!
//! Mamba's projections from and to the time step (`x_proj`, `dt_proj`) have one very short side: they hold a few per cent of
//! a block's weights and decide what the recurrence remembers. They are small linears, left dense unless asked for.

use super::super::block::{Selection, Shape, StateSpace};
use super::super::config::Config;
use super::super::ids::{LinearId, Role, Site};
use super::super::layout::{
    BlockLayout, Embedding, HeadLayout, Layout, NormKind, NormSpec, Readout, TensorSpec, UNBOUNDED, WidthKeys,
};
use super::super::spec::{LinearSpec, Stored};
use super::super::tensors::Tensors;
use super::{Family, TIED, must_divide, resolve_head};
use crate::ops::{Activation, Scan};
use crate::user_bail;
use anyhow::Result;
use serde_json::Value;

pub(super) const MAMBA: Family = Family {
    model_type: "mamba",
    prefix: "backbone.",
    embedding: "embeddings.weight",
    layers: "layers",
    head: "lm_head.weight",
    synonyms: &[],
    keys: &[
        COMMON_KEYS,
        &[
            "intermediate_size",
            "time_step_scale",
            "time_step_init_scheme",
            "use_mambapy",
            "use_associative_scan",
            // Of the first implementation, beside their newer names.
            "d_model",
            "d_inner",
            "n_layer",
            "ssm_cfg",
            "rms_norm",
            "fused_add_norm",
            "pad_vocab_size_multiple",
        ],
    ],
    sizes: &[],
    describe: layout1,
};

pub(super) const MAMBA2: Family = Family {
    model_type: "mamba2",
    keys: &[COMMON_KEYS, &["num_heads", "head_dim", "n_groups", "rms_norm", "time_step_limit", "chunk_size"]],
    describe: layout2,
    ..MAMBA
};

/// Those about time steps but the rank say how weights are drawn; the kind of residual is that of f32 in any case.
const COMMON_KEYS: &[&str] = &[
    "vocab_size",
    "hidden_size",
    "state_size",
    "num_hidden_layers",
    "layer_norm_epsilon",
    "expand",
    "conv_kernel",
    "use_bias",
    "use_conv_bias",
    "hidden_act",
    "residual_in_fp32",
    "time_step_rank",
    "time_step_min",
    "time_step_max",
    "time_step_floor",
    "rescale_prenorm_residual",
];

/// What both have in common.
struct Common {
    family: &'static str,
    hidden: usize,
    vocab: usize,
    scan: Scan,
    /// Channels of the convolution.
    convolved: usize,
    /// Shape of A.
    a: Vec<usize>,
    /// Activation of the gate, if it is not that of the convolution.
    gate: Option<Activation>,
    /// Role, site, name, output, input, bias.
    linears: Vec<(Role, Site, &'static str, usize, usize, bool)>,
    selection: Selection,
    tied: bool,
}

fn layout1(tensors: &mut Tensors, config: &Config) -> Result<Layout> {
    let (hidden, vocab) = tensors.embedding_sizes(config, "hidden_size", "vocab_size")?;
    let channels = config.usize_or("intermediate_size", expanded(config, hidden)?)?;
    let state = config.usize_or("state_size", 16)?;
    let rank = match config.get("time_step_rank").and_then(Value::as_str) {
        Some("auto") => hidden.div_ceil(16),
        _ => config.usize_or("time_step_rank", hidden.div_ceil(16))?,
    };
    let bias = config.bool_or("use_bias", false)?;
    let linears = vec![
        (Role::SsmIn, Site::SsmIn, "in_proj", channels.saturating_mul(2), hidden, bias),
        (Role::SsmX, Site::SsmConv, "x_proj", rank.saturating_add(state.saturating_mul(2)), channels, false),
        (Role::SsmDt, Site::SsmDt, "dt_proj", channels, rank, true),
        (Role::SsmOut, Site::SsmOut, "out_proj", hidden, channels, bias),
    ];
    let scan = Scan { heads: channels, per_head: 1, groups: 1, state };
    Common {
        family: "mamba",
        hidden,
        vocab,
        scan,
        convolved: channels,
        a: vec![channels, state],
        gate: None,
        linears,
        selection: Selection::Projected { rank },
        tied: true,
    }
    .layout(tensors, config)
}

fn layout2(tensors: &mut Tensors, config: &Config) -> Result<Layout> {
    let (hidden, vocab) = tensors.embedding_sizes(config, "hidden_size", "vocab_size")?;
    let channels = expanded(config, hidden)?;
    let heads = config.usize_or("num_heads", 128)?;
    let per_head = config.usize_or("head_dim", 64)?;
    if heads.checked_mul(per_head) != Some(channels) {
        user_bail!(
            "config.json: `num_heads` · `head_dim` = {heads} · {per_head} is not `expand` · `hidden_size` = {channels}";
            "get the model's original config.json"
        );
    }
    let groups = config.usize_or("n_groups", 8)?;
    must_divide("num_heads", heads, "n_groups", groups)?;
    config.only("rms_norm", true)?;
    let state = config.usize_or("state_size", 128)?;
    let bias = config.bool_or("use_bias", false)?;
    // A number too large for any tensor stays that.
    let convolved = channels.saturating_add(groups.saturating_mul(state).saturating_mul(2));
    let linears = vec![
        (Role::SsmIn, Site::SsmIn, "in_proj", channels.saturating_add(convolved).saturating_add(heads), hidden, bias),
        (Role::SsmOut, Site::SsmOut, "out_proj", hidden, channels, bias),
    ];
    Common {
        family: "mamba2",
        hidden,
        vocab,
        scan: Scan { heads, per_head, groups, state },
        convolved,
        a: vec![heads],
        gate: Some(Activation::Silu),
        linears,
        selection: Selection::Direct { limits: limits(config)? },
        tied: false,
    }
    .layout(tensors, config)
}

/// `expand` · hidden.
fn expanded(config: &Config, hidden: usize) -> Result<usize> {
    let expand = config.f64_or("expand", 2.0)?;
    let channels = (expand * hidden as f64) as usize;
    if channels == 0 {
        user_bail!("config.json: `expand` = {expand} leaves no channels"; "get the model's original config.json");
    }
    Ok(channels)
}

/// Smallest and largest time step.
fn limits(config: &Config) -> Result<[f64; 2]> {
    let key = "time_step_limit";
    let Some(value) = config.get(key) else { return Ok([0.0, f64::INFINITY]) };
    let list = value.as_array().map_or(&[][..], Vec::as_slice);
    match list.iter().map(Value::as_f64).collect::<Option<Vec<_>>>().as_deref() {
        // Infinity is read as the largest f32.
        Some(&[low, high]) if low <= high => Ok([low, if high >= f64::from(f32::MAX) { f64::INFINITY } else { high }]),
        _ => {
            user_bail!("config.json: `{key}` is {value}, expected two numbers in order"; "get the model's original config.json")
        }
    }
}

impl Common {
    fn layout(self, tensors: &mut Tensors, config: &Config) -> Result<Layout> {
        let blocks = tensors.layers(config, "num_hidden_layers")?;
        let kind = NormKind::Rms(config.f64_or("layer_norm_epsilon", 1e-5)?);
        let activation = Activation::from_config(config, "hidden_act", "silu")?;
        let taps = config.usize_or("conv_kernel", 4)?;
        let conv_bias = config.bool_or("use_conv_bias", true)?;
        let tied = config.bool_or(TIED, self.tied)?;
        let embedding = "backbone.embeddings.weight";
        let head = resolve_head(tensors, embedding, "lm_head.weight", tied)?;
        let norm = NormSpec { key: "norm", name: "backbone.norm_f".into(), width: self.hidden, kind };
        let block = |index| BlockLayout {
            shape: Shape::StateSpace(StateSpace {
                scan: self.scan,
                activation,
                gate: self.gate.unwrap_or(activation),
                selection: self.selection,
            }),
            norms: self.norms(index, kind),
            tensors: self.tensors(index, taps, conv_bias),
        };
        Ok(Layout {
            family: self.family,
            hidden: self.hidden,
            vocab: self.vocab,
            context: UNBOUNDED,
            linears: (0..blocks).flat_map(|index| self.linears(index)).collect(),
            blocks: (0..blocks).map(block).collect(),
            embedding: Embedding { tokens: embedding.to_string(), ..Embedding::default() },
            head: Readout::Next(HeadLayout { norm: Some(norm), weight: head, ..HeadLayout::default() }),
            width_keys: WidthKeys { dense: "intermediate_size", expert: "intermediate_size" },
        })
    }

    fn linears(&self, block: usize) -> Vec<LinearSpec> {
        let spec = |&(role, site, name, out, input, bias)| {
            let name = format!("backbone.layers.{block}.mixer.{name}");
            LinearSpec { id: LinearId { block, role }, site, name, out, input, bias, stored: Stored::Plain }
        };
        self.linears.iter().map(spec).collect()
    }

    fn norms(&self, block: usize, kind: NormKind) -> Vec<NormSpec> {
        let name = format!("backbone.layers.{block}");
        let mut norms = vec![NormSpec { key: "norm", name: format!("{name}.norm"), width: self.hidden, kind }];
        if matches!(self.selection, Selection::Direct { .. }) {
            let width = self.scan.channels();
            norms.push(NormSpec { key: "gate_norm", name: format!("{name}.mixer.norm"), width, kind });
        }
        norms
    }

    fn tensors(&self, block: usize, taps: usize, conv_bias: bool) -> Vec<TensorSpec> {
        let tensor = |key, name: &str, shape| {
            let name = format!("backbone.layers.{block}.mixer.{name}");
            TensorSpec { key, name, shape }
        };
        let mut tensors = vec![
            tensor("a_log", "A_log", self.a.clone()),
            tensor("skip", "D", vec![self.scan.heads]),
            tensor("conv.weight", "conv1d.weight", vec![self.convolved, 1, taps]),
        ];
        if conv_bias {
            tensors.push(tensor("conv.bias", "conv1d.bias", vec![self.convolved]));
        }
        if matches!(self.selection, Selection::Direct { .. }) {
            tensors.push(tensor("dt_bias", "dt_bias", vec![self.scan.heads]));
        }
        tensors
    }
}

//! The pre-norm decoder block and the model made of it.
//!
//! ```text
//! a = norm(x)      h = x + O · attention(Q a, K a, V a)
//! m = norm(h)      y = h + Down · (act(Gate m) ∘ Up m)        (or Down · act(Up m))
//! ```
//! Sites, in order: `attn_in` sees a, `attn_out` what enters O, `mlp_in` sees m, `mlp_out` what enters Down.

use super::attention::causal_attention;
use super::grad;
use super::ids::{LinearSpec, Role, Site, Stored};
use super::linear::Linear;
use super::ops::{Activation, Norm, add, is_finite};
use super::rope::Rope;
use crate::checkpoint::Source;
use crate::user_bail;
use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use std::collections::{BTreeMap, HashMap};

/// Whether the forward pass goes on after a site was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// Nothing behind this site is needed.
    Stop,
}

/// Sees every activation that enters a site, (batch, t, n).
pub trait Tap {
    /// Called once per site and forward pass.
    fn see(&mut self, site: Site, x: &Tensor) -> Result<Flow>;
}

/// Looks at nothing.
impl Tap for () {
    fn see(&mut self, _: Site, _: &Tensor) -> Result<Flow> {
        Ok(Flow::Continue)
    }
}

/// Kind of normalisation, with its ε.
#[derive(Debug, Clone, Copy)]
pub(super) enum NormKind {
    Rms(f64),
    Layer(f64),
}

/// What a family says about itself: sizes, kinds and tensor names.
#[derive(Debug)]
pub(super) struct Layout {
    pub family: &'static str,
    pub hidden: usize,
    pub vocab: usize,
    pub blocks: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub context: usize,
    pub norm: NormKind,
    pub activation: Activation,
    /// Key of config.json that holds the feed-forward width.
    pub width_key: &'static str,
    pub rope: Option<Rope>,
    /// Every linear of every block, in block order.
    pub linears: Vec<LinearSpec>,
    /// (vocab, hidden)
    pub embedding: String,
    /// Learned positions, (context, hidden).
    pub positions: Option<String>,
    /// Prefix of block i's norms: `<block>i.<attn_norm>.weight`.
    pub block: String,
    pub attn_norm: &'static str,
    pub mlp_norm: &'static str,
    pub final_norm: String,
    /// (vocab, hidden); the embedding's name when tied.
    pub head: String,
}

/// A decoder language model over a checkpoint. Holds names and sizes; weights are read when asked for.
pub struct Model {
    source: Source,
    layout: Layout,
    device: Device,
}

impl Model {
    /// Recognises the family of `source` and checks names and shapes. Reads no weight.
    pub fn load(mut source: Source, device: &Device) -> Result<Self> {
        let mut layout = super::family::layout(&mut source, device)?;
        // A compressed model may have biases where its family has none.
        if source.config().contains_key("softlm") {
            for spec in layout.linears.iter_mut().filter(|spec| spec.stored == Stored::Plain) {
                spec.bias |= source.info(&format!("{}.bias", spec.name)).is_some();
            }
        }
        super::check::check(&source, &layout)?;
        Ok(Self { source, layout, device: device.clone() })
    }

    /// The checkpoint behind the model.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Name of the family, as `model_type` has it.
    pub fn family(&self) -> &'static str {
        self.layout.family
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.layout.blocks
    }

    /// Longest sequence the model was made for.
    pub fn context(&self) -> usize {
        self.layout.context
    }

    /// Rows of the embedding.
    pub fn vocab(&self) -> usize {
        self.layout.vocab
    }

    /// Width of the hidden state.
    pub fn hidden(&self) -> usize {
        self.layout.hidden
    }

    /// The device that runs the model.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Every linear of every block, in block order, with its dense shape.
    pub fn linears(&self) -> &[LinearSpec] {
        &self.layout.linears
    }

    /// The linears of block `index`.
    pub fn block_linears(&self, index: usize) -> impl Iterator<Item = &LinearSpec> {
        self.layout.linears.iter().filter(move |spec| spec.id.block == index)
    }

    /// Key of config.json that holds the feed-forward width.
    pub fn width_key(&self) -> &'static str {
        self.layout.width_key
    }

    /// The bias (out) of a linear, if it has one.
    pub fn bias(&self, spec: &LinearSpec) -> Result<Option<Tensor>> {
        if !spec.bias {
            return Ok(None);
        }
        super::linear::load_bias(&self.source, spec, DType::F32, &self.device).map(Some)
    }

    /// Looks up the embeddings of `rows`, equally long sequences: (rows, t, hidden).
    pub fn embed(&self, rows: &[&[u32]]) -> Result<Tensor> {
        let t = rows.first().map_or(0, |r| r.len());
        if t > self.layout.context {
            user_bail!(
                "a window of {t} tokens is longer than the model's context of {}", self.layout.context;
                "use a smaller --window"
            );
        }
        let ids: Vec<u32> = rows.iter().flat_map(|r| r.iter().copied()).collect();
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.layout.vocab) {
            user_bail!(
                "token id {id} is outside the embedding, which has {} rows", self.layout.vocab;
                "the tokenizer does not belong to this model"
            );
        }
        let hidden = self.layout.hidden;
        // Rows of a tied or huge embedding are gathered from the map: only what the text uses is read.
        let mut distinct = ids.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let place: HashMap<u32, u32> = distinct.iter().enumerate().map(|(i, &id)| (id, i as u32)).collect();
        let table = self.source.rows(&self.layout.embedding, &distinct, hidden, DType::F32, &self.device)?;
        let index: Vec<u32> = ids.iter().map(|id| place[id]).collect();
        let index = Tensor::from_vec(index, ids.len(), &self.device)?;
        let x = table.index_select(&index, 0)?.reshape((rows.len(), t, hidden))?;
        let Some(positions) = &self.layout.positions else { return Ok(x) };
        let order: Vec<u32> = (0..t as u32).collect();
        let positions = self.source.rows(positions, &order, hidden, DType::F32, &self.device)?;
        Ok(x.broadcast_add(&positions)?)
    }

    /// Loads block `index`.
    pub fn block(&self, index: usize) -> Result<Block<'_>> {
        let layout = &self.layout;
        let linears = self
            .block_linears(index)
            .map(|spec| Ok((spec.id.role, Linear::load(&self.source, spec, DType::F32, &self.device)?)))
            .collect::<Result<BTreeMap<_, _>>>()
            .with_context(|| format!("loading block {index}"))?;
        let prefix = format!("{}{index}.", layout.block);
        Ok(Block {
            index,
            layout,
            attn_norm: self.norm(&format!("{prefix}{}", layout.attn_norm))?,
            mlp_norm: self.norm(&format!("{prefix}{}", layout.mlp_norm))?,
            linears,
            differentiable: false,
        })
    }

    /// Loads the final norm and the output head.
    pub fn head(&self) -> Result<Head> {
        let shape = [self.layout.vocab, self.layout.hidden];
        let weight = self.source.tensor(&self.layout.head, &shape, DType::F32, &self.device)?;
        Ok(Head { norm: self.norm(&self.layout.final_norm)?, weight })
    }

    fn norm(&self, name: &str) -> Result<Norm> {
        let read =
            |part: &str| self.source.tensor(&format!("{name}.{part}"), &[self.layout.hidden], DType::F32, &self.device);
        Ok(match self.layout.norm {
            NormKind::Rms(eps) => Norm::Rms { weight: read("weight")?, eps },
            NormKind::Layer(eps) => Norm::Layer { weight: read("weight")?, bias: read("bias")?, eps },
        })
    }
}

/// One decoder block with its weights in memory. A clone shares them.
#[derive(Clone)]
pub struct Block<'m> {
    index: usize,
    layout: &'m Layout,
    pub(super) attn_norm: Norm,
    pub(super) mlp_norm: Norm,
    pub(super) linears: BTreeMap<Role, Linear>,
    pub(super) differentiable: bool,
}

impl Block<'_> {
    /// The linear with this role, if the block has one.
    pub fn linear(&self, role: Role) -> Option<&Linear> {
        self.linears.get(&role)
    }

    /// Replaces a linear and returns the one before. Gate, Up and Down may change their inner width together.
    pub fn swap_linear(&mut self, role: Role, linear: Linear) -> Result<Linear> {
        self.linears.insert(role, linear).with_context(|| format!("block {} has no {role}", self.index))
    }

    /// Runs x (batch, t, hidden) through the block; `None` when the tap stopped it.
    pub fn forward(&self, x: &Tensor, tap: &mut dyn Tap) -> Result<Option<Tensor>> {
        let a = self.normalise(&self.attn_norm, x)?;
        if tap.see(Site::AttnIn, &a)? == Flow::Stop {
            return Ok(None);
        }
        let mixed = self.attention(&a)?;
        if tap.see(Site::AttnOut, &mixed)? == Flow::Stop {
            return Ok(None);
        }
        let h = self.add(x, &self.apply(Role::O, &mixed)?)?;
        let m = self.normalise(&self.mlp_norm, &h)?;
        if tap.see(Site::MlpIn, &m)? == Flow::Stop {
            return Ok(None);
        }
        let up = self.apply(Role::Up, &m)?;
        let gate = self.linears.get(&Role::Gate).map(|gate| gate.forward(&m)).transpose()?;
        let inner = self.activate(gate.as_ref(), &up)?;
        if tap.see(Site::MlpOut, &inner)? == Flow::Stop {
            return Ok(None);
        }
        let y = self.add(&h, &self.apply(Role::Down, &inner)?)?;
        if !self.differentiable && !is_finite(&y)? {
            user_bail!(
                "block {} produced NaN or infinite activations", self.index;
                "the checkpoint is damaged, or its weights overflow f32"
            );
        }
        Ok(Some(y))
    }

    fn attention(&self, a: &Tensor) -> Result<Tensor> {
        let (batch, t, _) = a.dims3()?;
        let layout = self.layout;
        let split =
            |role, heads| -> Result<Tensor> { Ok(self.apply(role, a)?.reshape((batch, t, heads, layout.head_dim))?) };
        let q = split(Role::Q, layout.heads)?;
        let k = split(Role::K, layout.kv_heads)?;
        let v = split(Role::V, layout.kv_heads)?;
        if self.differentiable {
            let heads_first = |x: Tensor| -> Result<Tensor> { Ok(x.transpose(1, 2)?.contiguous()?) };
            let (mut q, mut k, v) = (heads_first(q)?, heads_first(k)?, heads_first(v)?);
            if let Some(rope) = &layout.rope {
                q = rope.apply_differentiable(&q)?;
                k = rope.apply_differentiable(&k)?;
            }
            return grad::causal_attention(&q, &k, &v);
        }
        match &layout.rope {
            Some(rope) => causal_attention(&rope.apply(&q)?, &rope.apply(&k)?, &v),
            None => causal_attention(&q, &k, &v),
        }
    }

    fn add(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        if self.differentiable { Ok((x + y)?) } else { add(x, y) }
    }

    /// act(gate) ∘ up, or act(up) without a gate.
    fn activate(&self, gate: Option<&Tensor>, up: &Tensor) -> Result<Tensor> {
        let activation = self.layout.activation;
        match (gate, self.differentiable) {
            (Some(gate), true) => Ok((grad::activation(activation, gate)? * up)?),
            (Some(gate), false) => activation.apply_gate(gate, up),
            (None, true) => grad::activation(activation, up),
            (None, false) => activation.apply(up),
        }
    }

    fn normalise(&self, norm: &Norm, x: &Tensor) -> Result<Tensor> {
        if self.differentiable { grad::norm(norm, x) } else { norm.forward(x) }
    }

    fn apply(&self, role: Role, x: &Tensor) -> Result<Tensor> {
        let linear = self.linears.get(&role).with_context(|| format!("block {} has no {role}", self.index))?;
        linear.forward(x)
    }
}

/// Final norm and output projection.
pub struct Head {
    pub(super) norm: Norm,
    pub(super) weight: Tensor,
}

impl Head {
    /// h (rows, hidden) to logits (rows, vocab).
    pub fn logits(&self, h: &Tensor) -> Result<Tensor> {
        Ok(self.norm.forward(h)?.matmul(&self.weight.t()?)?)
    }
}

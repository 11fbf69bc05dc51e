//! Blocks: what all shapes share. Each shape has a file of its own that opens with its equations and sites.

mod attention;
mod cache;
mod experts;
mod feed_forward;
mod output_gradients;
mod parallel;
mod post_norm;
mod pre_norm;
mod state_space;

pub(super) use attention::Attention;
pub use cache::Cache;
pub(super) use experts::Experts;
pub(super) use feed_forward::FeedForward;
pub use output_gradients::OutputGradients;
pub(super) use parallel::Parallel;
pub(super) use post_norm::PostNorm;
pub(super) use pre_norm::{Inner, PreNorm};
pub(super) use state_space::{Selection, StateSpace};

use super::ids::{Role, Site};
use super::layout::BlockLayout;
use super::linear::Linear;
use super::norm::Norm;
use super::spec::LinearSpec;
use crate::checkpoint::Source;
use crate::compute::Compute;
use crate::error::UserError;
use crate::ops::{Activation, MatmulPrecision, activation, gated_activation, is_finite, magnitude};
use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use std::collections::BTreeMap;

/// Whether the forward pass goes on after a site was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// Nothing behind this site is needed.
    Stop,
}

/// Sees every activation that enters a site, (batch, t, n), or (tokens, n) at those of an expert.
pub trait Tap {
    /// Called once per site and forward pass.
    fn see(&mut self, site: Site, x: &Tensor) -> Result<Flow>;

    /// Whether the sites of an expert are to see every token of the block instead of those routed to it. What the block
    /// computes is the same either way.
    fn wants_every_token(&self, _expert: u16) -> bool {
        false
    }

    /// A pass begins whose batch is shown in parts if the device has no room for all of it.
    fn begin(&mut self) -> Result<()> {
        Ok(())
    }

    /// That pass has failed: forgets what was seen of it. `false` if it cannot be forgotten.
    fn forget(&mut self) -> bool {
        false
    }
}

/// Looks at nothing.
impl Tap for () {
    fn see(&mut self, _: Site, _: &Tensor) -> Result<Flow> {
        Ok(Flow::Continue)
    }

    fn forget(&mut self) -> bool {
        true
    }
}

/// The equations of a block. A forward pass is `None` when the tap stopped it.
#[derive(Debug)]
pub(super) enum Shape {
    /// Norms in front of attention and feed-forward layer, one after the other.
    PreNorm(PreNorm),
    /// Norms in front of attention and feed-forward layer, side by side.
    Parallel(Parallel),
    /// Norms behind attention and feed-forward layer; positions see both ways.
    PostNorm(PostNorm),
    /// A gated recurrence.
    StateSpace(StateSpace),
}

/// What a forward pass has beside the states.
pub(super) struct Pass<'a> {
    /// Where each sequence of the batch ends when not all fill it: positions from there on are padding. A causal block
    /// need not look: nothing sees what comes behind it.
    pub lengths: Option<&'a [usize]>,
    /// What the block has seen before, when positions come in pieces.
    pub cache: Option<&'a mut Cache>,
    tap: &'a mut dyn Tap,
}

impl Pass<'_> {
    /// Position of the first of `t` states, and the length of the sequence that they are part of.
    fn place(&self, t: usize) -> (usize, usize) {
        let (seen, expected) = self.cache.as_ref().map_or((0, 0), |cache| (cache.seen(), cache.expected));
        (seen, expected.max(seen + t))
    }

    /// Shows `x` to the tap; `true` when that is all it wants to see.
    fn stops_at(&mut self, site: Site, x: &Tensor) -> Result<bool> {
        Ok(self.tap.see(site, x)? == Flow::Stop)
    }
}

impl Shape {
    /// Length of sequence behind which the first positions too are rotated in another way.
    pub fn original_context(&self) -> Option<usize> {
        self.attention()?.rope.as_ref().and_then(|rope| rope.original_context())
    }

    /// The attention, if there is one.
    pub fn attention(&self) -> Option<&Attention> {
        match self {
            Shape::PreNorm(shape) => Some(&shape.attention),
            Shape::Parallel(shape) => Some(&shape.attention),
            Shape::PostNorm(shape) => Some(&shape.attention),
            Shape::StateSpace(_) => None,
        }
    }

    /// Key of config.json that holds the width of the feed-forward layer that stands beside experts.
    pub fn shared_width_key(&self) -> Option<&'static str> {
        match self {
            Shape::PreNorm(PreNorm { inner: Inner::Experts(experts), .. }) => experts.shared,
            _ => None,
        }
    }
}

/// One block with its weights in memory. A clone shares them.
#[derive(Clone)]
pub struct Block<'m> {
    index: usize,
    shape: &'m Shape,
    norms: BTreeMap<&'static str, Norm>,
    tensors: BTreeMap<&'static str, Tensor>,
    linears: BTreeMap<Role, Linear>,
    checked: bool,
    precision: MatmulPrecision,
    output_gradients: Option<OutputGradients>,
}

impl<'m> Block<'m> {
    pub(super) fn load<'s>(
        source: &Source,
        index: usize,
        layout: &'m BlockLayout,
        linears: impl Iterator<Item = &'s LinearSpec>,
        compute: &Compute,
    ) -> Result<Self> {
        let linears = linears.map(|spec| Ok((spec.id.role, Linear::load(source, spec, compute)?)));
        let norms = layout.norms.iter().map(|norm| Ok((norm.key, Norm::load(source, norm, compute)?)));
        let tensors = layout.tensors.iter().map(|t| Ok((t.key, compute.read(source, &t.name, &t.shape)?)));
        Ok(Self {
            index,
            shape: &layout.shape,
            linears: linears.collect::<Result<_>>()?,
            norms: norms.collect::<Result<_>>()?,
            tensors: tensors.collect::<Result<_>>()?,
            checked: true,
            precision: compute.precision,
            output_gradients: None,
        })
    }
}

impl Block<'_> {
    /// What products of its weights may lose.
    pub fn precision(&self) -> MatmulPrecision {
        self.precision
    }

    /// The linear with this role, if the block has one.
    pub fn linear(&self, role: Role) -> Option<&Linear> {
        self.linears.get(&role)
    }

    /// Replaces a linear and returns the one before. Gate, Up and Down may change their inner width together, V and O the
    /// dimensions of a head's values.
    pub fn swap_linear(&mut self, role: Role, linear: Linear) -> Result<Linear> {
        self.linears.insert(role, linear).with_context(|| format!("block {} has no {role}", self.index))
    }

    /// Leaves the search for NaN to the one who sees the loss. Where gradients are tracked it is left to them anyway.
    pub fn leave_unchecked(&mut self) {
        self.checked = false;
    }

    /// From now on gradients on what leaves the linears are put into `found` when they pass there.
    pub fn watch_outputs(&mut self, found: OutputGradients) {
        self.output_gradients = Some(found);
    }

    /// Numbers in the matrices of its linears, and the bytes that they take in memory.
    pub fn linear_storage(&self) -> (usize, usize) {
        let each = self.linears.values().map(Linear::storage);
        each.fold((0, 0), |sum, (numbers, bytes)| (sum.0 + numbers, sum.1 + bytes))
    }

    /// Runs x (batch, t, hidden) through the block; `None` when the tap stopped it.
    pub fn forward(&self, x: &Tensor, tap: &mut dyn Tap) -> Result<Option<Tensor>> {
        self.forward_padded(x, None, tap)
    }

    /// [`Block::forward`] of sequences that need not fill the batch: row i ends at `lengths[i]`, what follows is padding.
    pub fn forward_padded(&self, x: &Tensor, lengths: Option<&[usize]>, tap: &mut dyn Tap) -> Result<Option<Tensor>> {
        let mut magnitudes = Vec::new();
        let y = self.forward_unsettled(x, lengths, tap, &mut magnitudes)?;
        self.settle(&magnitudes)?;
        Ok(y)
    }

    /// [`Block::forward_padded`], but a device is not waited for: whether what came out is finite is to be asked for with
    /// [`Block::settle`], once for the `magnitudes` of any number of passes.
    pub fn forward_unsettled(
        &self,
        x: &Tensor,
        lengths: Option<&[usize]>,
        tap: &mut dyn Tap,
        magnitudes: &mut Vec<Tensor>,
    ) -> Result<Option<Tensor>> {
        let (batch, t, _) = x.dims3()?;
        ensure!(
            lengths.is_none_or(|l| l.len() == batch && l.iter().all(|l| (1..=t).contains(l))),
            "{lengths:?} are no lengths of {batch} sequences in {t} positions"
        );
        let y = self.run(x, Pass { lengths, cache: None, tap })?;
        if let Some(y) = y.as_ref().filter(|y| self.is_searched(y)) {
            if y.device().is_cpu() {
                self.refuse_unless(is_finite(y)?)?;
            } else {
                magnitudes.push(magnitude(y)?);
            }
        }
        Ok(y)
    }

    /// Refuses what is not finite of the passes that left these `magnitudes`.
    pub fn settle(&self, magnitudes: &[Tensor]) -> Result<()> {
        if magnitudes.is_empty() {
            return Ok(());
        }
        self.refuse_unless(Tensor::stack(magnitudes, 0)?.to_vec1::<f32>()?.iter().all(|x| x.is_finite()))
    }

    fn is_searched(&self, y: &Tensor) -> bool {
        self.checked && !y.track_op()
    }

    fn refuse_unless(&self, finite: bool) -> Result<()> {
        if finite {
            return Ok(());
        }
        let error = UserError::not_finite(format!("block {} produced NaN or infinite activations", self.index));
        Err(error.hint("the checkpoint is damaged, or its weights overflow f32").into())
    }

    /// Runs x (batch, t, hidden) through the block as what follows the positions in `cache`, and adds it to them. Not for
    /// blocks that see both ways, nor where gradients are wanted.
    pub fn forward_cached(&self, x: &Tensor, cache: &mut Cache) -> Result<Tensor> {
        ensure!(!matches!(self.shape, Shape::PostNorm(_)), "a block that sees both ways needs the whole sequence");
        let y = self.run(x, Pass { lengths: None, cache: Some(&mut *cache), tap: &mut () })?;
        cache.advance(x.dim(1)?);
        let y = y.context("a forward pass without a tap was stopped")?;
        if self.is_searched(&y) {
            self.refuse_unless(is_finite(&y)?)?;
        }
        Ok(y)
    }

    fn run(&self, x: &Tensor, mut pass: Pass) -> Result<Option<Tensor>> {
        match self.shape {
            Shape::PreNorm(shape) => shape.forward(self, x, &mut pass),
            Shape::Parallel(shape) => shape.forward(self, x, &mut pass),
            Shape::PostNorm(shape) => shape.forward(self, x, &mut pass),
            Shape::StateSpace(shape) => shape.forward(self, x, &mut pass),
        }
    }

    /// Replaces every weight by what `f` makes of its name and value; the shape must stay.
    ///
    /// Names are `attn_norm.weight`, `mlp_norm.bias`, per linear `attn.q.weight` or `attn.q.factor_a` and
    /// `attn.q.factor_b`, and `attn.q.bias`, and what the shape calls its other tensors.
    pub fn map_weights(&mut self, f: &mut dyn FnMut(&str, &Tensor) -> Result<Tensor>) -> Result<()> {
        for (name, norm) in &mut self.norms {
            let (weight, bias) = match norm {
                Norm::Rms { weight, .. } => (weight, None),
                Norm::Layer { weight, bias, .. } => (weight, Some(bias)),
            };
            *weight = f(&format!("{name}.weight"), weight)?;
            if let Some(bias) = bias {
                *bias = f(&format!("{name}.bias"), bias)?;
            }
        }
        for (name, tensor) in &mut self.tensors {
            *tensor = f(name, tensor)?;
        }
        for (role, linear) in &mut self.linears {
            let bias = match linear {
                Linear::Dense { weight, bias } => {
                    *weight = f(&format!("{role}.weight"), weight)?;
                    bias
                }
                Linear::LowRank { a, b, bias } => {
                    *a = f(&format!("{role}.factor_a"), a)?;
                    *b = f(&format!("{role}.factor_b"), b)?;
                    bias
                }
            };
            if let Some(bias) = bias {
                *bias = f(&format!("{role}.bias"), bias)?;
            }
        }
        Ok(())
    }

    /// The norm `key` of x (…, width).
    fn normalise(&self, key: &str, x: &Tensor) -> Result<Tensor> {
        let norm = self.norms.get(key).with_context(|| format!("block {} has no {key}", self.index))?;
        norm.forward(x)
    }

    /// The norm `key` of x, or x itself in a block without it.
    fn normalise_if_any(&self, key: &str, x: Tensor) -> Result<Tensor> {
        if self.norms.contains_key(key) { self.normalise(key, &x) } else { Ok(x) }
    }

    /// The linear `role` of x (…, in).
    fn apply(&self, role: Role, x: &Tensor) -> Result<Tensor> {
        let linear = self.linears.get(&role).with_context(|| format!("block {} has no {role}", self.index))?;
        let y = linear.forward(x, self.precision)?;
        match &self.output_gradients {
            Some(found) => found.watch(role, &y),
            None => Ok(y),
        }
    }

    /// What is neither a linear nor a norm.
    fn tensor(&self, key: &str) -> Result<&Tensor> {
        self.tensors.get(key).with_context(|| format!("block {} has no {key}", self.index))
    }
}

/// act(gate) ∘ up, or act(up) without a gate.
fn activate(kind: Activation, gate: Option<&Tensor>, up: &Tensor) -> Result<Tensor> {
    Ok(match gate {
        Some(gate) => gated_activation(kind, gate, up)?,
        None => activation(kind, up)?,
    })
}

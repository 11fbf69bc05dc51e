//! Linears that an output stores smaller than its base has them: feed-forward layers of fewer channels, values of fewer
//! dimensions per head.
//!
//! A linear may be smaller on the side that meets the other linears of its sublayer ([`Role::inner_side`]); the other side is
//! the model's. The `linears` of the output's section say its shape, config.json keeps the base's. What belongs together is
//! smaller together, each sublayer apart from the others:
//!
//! - gate, up and down have one number of channels;
//! - v is (kv_heads · r, hidden), o is (hidden, heads · r): the values of a head have r dimensions in place of head_dim.
//!
//! Biases are as long as the outputs.

use super::ids::{FfnPart, Role, Side};
use super::layout::{BlockLayout, Layout};
use super::opened::Model;
use super::spec::LinearSpec;
use crate::checkpoint::{Dtype, FORMAT, NamedTensor, Section, Source};
use crate::linalg::Mat;
use crate::user_bail;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The attention of a block: its heads as the base has them. Of their values any dimensions can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; query head h reads h / (heads / kv_heads).
    pub kv_heads: usize,
    /// Dimensions of each.
    pub head_dim: usize,
}

/// The linears of one feed-forward layer, the only one of its block or one of several.
#[derive(Debug, Clone, Copy)]
pub struct FeedForwardLinears<'m> {
    /// (channels, hidden); `None` in a layer without a gate.
    pub gate: Option<&'m LinearSpec>,
    /// (channels, hidden)
    pub up: &'m LinearSpec,
    /// (hidden, channels)
    pub down: &'m LinearSpec,
}

impl Heads {
    pub(super) fn of(block: &BlockLayout) -> Option<Self> {
        let attention = block.shape.attention()?;
        Some(Self { heads: attention.heads, kv_heads: attention.kv_heads, head_dim: attention.head_dim })
    }

    /// How many heads v puts out and o takes in; `None` for other linears.
    pub fn count(&self, role: Role) -> Option<usize> {
        match role {
            Role::V => Some(self.kv_heads),
            Role::O => Some(self.heads),
            _ => None,
        }
    }

    /// Dimensions per head of v or o as `spec` has it.
    ///
    /// # Errors
    /// A [`UserError`](crate::error::UserError) if its shape is not one of so many heads of 1 to head_dim dimensions.
    pub fn dimensions(&self, spec: &LinearSpec) -> Result<usize> {
        let (inner, heads) = spec.inner().zip(self.count(spec.id.role)).context("neither v nor o")?;
        if !inner.is_multiple_of(heads) || !(1..=self.head_dim).contains(&(inner / heads)) {
            user_bail!(
                "{} has {inner} {}, which {heads} heads of at most {} dimensions do not give", spec.name,
                if spec.id.role.inner_side() == Some(Side::Inputs) { "inputs" } else { "outputs" }, self.head_dim;
                "get or make the output again"
            );
        }
        Ok(inner / heads)
    }

    /// Where the dimensions of the smaller `spec` lie among the outputs of v, or the inputs of o, that the base has: they are
    /// the first of each head.
    pub fn places(&self, spec: &LinearSpec) -> Result<Vec<usize>> {
        let r = self.dimensions(spec)?;
        let heads = self.count(spec.id.role).context("neither v nor o")?;
        Ok((0..heads).flat_map(|head| head * self.head_dim..head * self.head_dim + r).collect())
    }
}

impl Model {
    /// The attention of block `index`; `None` in a block without.
    pub fn heads(&self, index: usize) -> Option<Heads> {
        self.layout().blocks.get(index).and_then(Heads::of)
    }

    /// The feed-forward layers of block `index`: none in a state-space block, in one with experts those of all experts.
    pub fn feed_forwards(&self, index: usize) -> Vec<FeedForwardLinears<'_>> {
        let find = |role| self.block_linears(index).find(|spec| spec.id.role == role);
        let downs = self.block_linears(index).filter(|spec| spec.id.role.ffn_part() == Some(FfnPart::Down));
        downs
            .filter_map(|down| {
                let part = |part| find(down.id.role.sibling(part));
                Some(FeedForwardLinears { gate: part(FfnPart::Gate), up: part(FfnPart::Up)?, down })
            })
            .collect()
    }
}

impl LinearSpec {
    /// Size of the side on which it may be stored smaller, if there is such a side.
    pub fn inner(&self) -> Option<usize> {
        Some(match self.id.role.inner_side()? {
            Side::Outputs => self.out,
            Side::Inputs => self.input,
        })
    }

    /// Whether it has the shape of `base`, or is smaller on the side where it may be.
    pub fn is_within(&self, base: &LinearSpec) -> bool {
        let (have, most) = ((self.out, self.input), (base.out, base.input));
        match self.id.role.inner_side() {
            Some(Side::Outputs) => (1..=most.0).contains(&have.0) && have.1 == most.1,
            Some(Side::Inputs) => have.0 == most.0 && (1..=most.1).contains(&have.1),
            None => have == most,
        }
    }

    /// The tensors of this linear of a base as one of the shape (out, in) of `w`, dense, in its source's layout; a part of a
    /// fused matrix stands on its own. `bias` (out of `w`) is stored where it is given: a linear that has one needs it if
    /// its outputs are fewer.
    pub fn narrowed(&self, w: &Mat, bias: Option<&[f64]>, dtype: Dtype) -> Result<Vec<NamedTensor>> {
        let (out, input) = (w.rows(), w.cols());
        let narrower = LinearSpec { out, input, ..self.clone() };
        ensure!(narrower.is_within(self), "{} cannot have the shape ({out}, {input})", self.name);
        ensure!(bias.is_none_or(|bias| bias.len() == out), "{}: a bias of another length than its outputs", self.name);
        ensure!(bias.is_some() || !self.bias || out == self.out, "{} lacks a bias for fewer outputs", self.name);
        let turned = (self.transposed() && self.fused().is_none()).then(|| w.transpose());
        let stored = turned.as_ref().unwrap_or(w);
        let shape = [stored.rows(), stored.cols()];
        let mut tensors = vec![NamedTensor::rounded(self.own_weight_name(), dtype, shape, &stored.to_rows())?];
        if let Some(bias) = bias {
            tensors.push(NamedTensor::rounded(format!("{}.bias", self.name), dtype, [out], bias)?);
        }
        Ok(tensors)
    }
}

/// What is read of an entry of `linears`.
#[derive(Deserialize)]
struct Shape {
    #[serde(rename = "in")]
    input: usize,
    out: usize,
}

/// Gives the linears of an output the shapes that its section lists.
///
/// # Errors
/// A [`UserError`](crate::error::UserError) where these are none that the base's can become, or do not fit one another.
pub(super) fn take_shapes(source: &Source, layout: &mut Layout) -> Result<()> {
    if Section::of(source.config()).is_none_or(|section| section.format < FORMAT) {
        return Ok(());
    }
    let section = source.config().get("softlm").and_then(|section| section.get("linears"));
    let Some(listed) = section.and_then(Value::as_object) else { return Ok(()) };
    let mut smaller = BTreeSet::new();
    for spec in &mut layout.linears {
        let Some(entry) = listed.get(&spec.name) else { continue };
        let Ok(Shape { input, out }) = Shape::deserialize(entry) else {
            user_bail!(
                "config.json: what `linears` says of {} cannot be read: {entry}", spec.name;
                "get or make the output again"
            );
        };
        let have = LinearSpec { input, out, ..spec.clone() };
        if have == *spec {
            continue;
        }
        if !have.is_within(spec) {
            user_bail!(
                "config.json: `linears` gives {} the shape ({out}, {input}), which ({}, {}) of the base cannot become",
                spec.name, spec.out, spec.input;
                "get or make the output again"
            );
        }
        let bias = (have.bias && out < spec.out).then(|| format!("{}.bias", have.name));
        let weight = have.fused().is_some().then(|| have.own_weight_name());
        let [factor, _] = have.factor_names();
        let weight = weight.filter(|_| source.info(&factor).is_none());
        if let Some(missing) = weight.into_iter().chain(bias).find(|name| source.info(name).is_none()) {
            user_bail!(
                "tensor `{missing}` is missing: {} is smaller than the base's", have.name;
                "the output is incomplete: get or make it again"
            );
        }
        smaller.insert(have.id.block);
        *spec = have;
    }
    smaller.into_iter().try_for_each(|block| fit(layout, block))
}

/// Fails unless the linears of a block that belong together are smaller together.
fn fit(layout: &Layout, block: usize) -> Result<()> {
    let Layout { linears, blocks, .. } = layout;
    let linears: Vec<&LinearSpec> = linears.iter().filter(|spec| spec.id.block == block).collect();
    let mut layers: BTreeMap<Role, &LinearSpec> = BTreeMap::new();
    for &spec in linears.iter().filter(|spec| spec.id.role.ffn_part().is_some()) {
        let other = *layers.entry(spec.id.role.sibling(FfnPart::Down)).or_insert(spec);
        if other.inner() != spec.inner() {
            let channels = |spec: &LinearSpec| spec.inner().unwrap_or(0);
            user_bail!(
                "config.json: `linears` gives {} {} channels, but {} {}",
                other.name, channels(other), spec.name, channels(spec);
                "get or make the output again"
            );
        }
    }
    let layout = blocks.get(block).context("a linear of no block")?;
    let find = |role| linears.iter().find(|spec| spec.id.role == role);
    let (Some(heads), [Some(v), Some(o)]) = (Heads::of(layout), [Role::V, Role::O].map(find)) else {
        return Ok(());
    };
    let (of_v, of_o) = (heads.dimensions(v)?, heads.dimensions(o)?);
    if of_v != of_o {
        user_bail!(
            "config.json: `linears` gives {} {of_v} dimensions per head, but {} {of_o}", v.name, o.name;
            "get or make the output again"
        );
    }
    Ok(())
}

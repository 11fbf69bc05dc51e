//! Linears that an output stores smaller than its base has them: feed-forward layers of fewer channels, heads of fewer
//! dimensions.
//!
//! A linear may be smaller on the side that meets the other linears of its sublayer ([`Role::inner_side`]); the other side is
//! the model's. The `linears` of the output's section say its shape, config.json keeps the base's. What belongs together is
//! smaller together, each sublayer apart from the others:
//!
//! - gate, up and down have one number of channels;
//! - v is (kv_heads · r, hidden), o is (hidden, heads · r): the values of a head have r dimensions in place of head_dim;
//! - q is (heads · r, hidden), k is (kv_heads · r, hidden). Where positions rotate the dimensions i and i + head_dim / 2 of a
//!   head together, r / 2 such pairs are left of each key/value head and the query heads that read it: first the dimensions i
//!   of all of them, then their partners. Which pairs these are stands in `<k>.rotary_pairs`, I64 (kv_heads, r / 2), each row
//!   ascending. Where nothing rotates any r dimensions will do, and nothing says which. Scores are scaled as in the base.
//!
//! Biases are as long as the outputs.

use super::ids::{FfnPart, Role, Side};
use super::layout::{BlockLayout, Layout, TensorSpec};
use super::opened::Model;
use super::spec::LinearSpec;
use crate::checkpoint::{Dtype, FORMAT, NamedTensor, Section, Source};
use crate::linalg::Mat;
use crate::user_bail;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What a block calls the rotary pairs that are left of its heads.
pub(super) const ROTARY_PAIRS: &str = "rotary_pairs";

/// The attention of a block: its heads as the base has them, and which of their dimensions can be left out. Those of values
/// always can, any of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; query head h reads h / (heads / kv_heads).
    pub kv_heads: usize,
    /// Dimensions of each.
    pub head_dim: usize,
    /// Which dimensions of queries and keys can be left out.
    pub query_key: QueryKey,
}

/// Which dimensions of a head's queries and keys can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryKey {
    /// Any: nothing but their products is computed from them.
    Dimensions,
    /// Any pair of the dimensions i and i + head_dim / 2, which positions rotate together.
    Pairs,
    /// None, for this reason.
    Whole(&'static str),
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
        let (heads, kv_heads, head_dim) = (attention.heads, attention.kv_heads, attention.head_dim);
        let query_key = match &attention.rope {
            _ if block.norms.iter().any(|norm| ["q_norm", "k_norm"].contains(&norm.key)) => {
                QueryKey::Whole("a norm is taken over all dimensions of its queries and keys")
            }
            None => QueryKey::Dimensions,
            Some(rope) if rope.rotated() == head_dim => QueryKey::Pairs,
            Some(_) => QueryKey::Whole("positions rotate a part of each head alone"),
        };
        Some(Self { heads, kv_heads, head_dim, query_key })
    }

    /// How many heads the linear has; `None` outside attention.
    pub fn count(&self, role: Role) -> Option<usize> {
        match role {
            Role::Q | Role::O => Some(self.heads),
            Role::K | Role::V => Some(self.kv_heads),
            _ => None,
        }
    }

    /// Dimensions per head of a linear of attention as `spec` has it.
    ///
    /// # Errors
    /// A [`UserError`](crate::error::UserError) if its shape is not one of so many heads of 1 to head_dim dimensions.
    pub fn dimensions(&self, spec: &LinearSpec) -> Result<usize> {
        let (inner, heads) = spec.inner().zip(self.count(spec.id.role)).context("not a linear of attention")?;
        if !inner.is_multiple_of(heads) || !(1..=self.head_dim).contains(&(inner / heads)) {
            user_bail!(
                "{} has {inner} {}, which {heads} heads of at most {} dimensions do not give", spec.name,
                if spec.id.role.inner_side() == Some(Side::Inputs) { "inputs" } else { "outputs" }, self.head_dim;
                "get or make the output again"
            );
        }
        Ok(inner / heads)
    }

    /// The rotary pairs that are left of each key/value head, as the tensor beside k says.
    pub fn rotary_pairs(&self, tensor: &NamedTensor) -> Result<Vec<Vec<usize>>> {
        rotary_pairs(tensor, self.head_dim / 2)
    }

    /// Where the dimensions of the smaller `spec` lie among the outputs, or of o the inputs, of the base's linear.
    /// `pairs` are the rotary pairs that are left, where positions rotate q and k; without them the
    /// dimensions are the first of each head.
    pub fn places(&self, spec: &LinearSpec, pairs: Option<&[Vec<usize>]>) -> Result<Vec<usize>> {
        let r = self.dimensions(spec)?;
        let heads = self.count(spec.id.role).context("not a linear of attention")?;
        let pairs = pairs.filter(|_| matches!(spec.id.role, Role::Q | Role::K));
        let mut places = Vec::with_capacity(heads * r);
        for head in 0..heads {
            let first = head * self.head_dim;
            match pairs {
                None => places.extend(first..first + r),
                Some(pairs) => {
                    let pairs = pairs.get(head / (heads / self.kv_heads)).context("a head without its pairs")?;
                    ensure!(2 * pairs.len() == r, "{} has {r} dimensions per head, not two per pair", spec.name);
                    places.extend(pairs.iter().map(|i| first + i));
                    places.extend(pairs.iter().map(|i| first + i + self.head_dim / 2));
                }
            }
        }
        Ok(places)
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

    /// Name of the tensor with the rotary pairs that are left, if this is k.
    pub fn rotary_pairs_name(&self) -> String {
        format!("{}.{ROTARY_PAIRS}", self.name)
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

    /// The tensor that says which rotary pairs of each key/value head are left, if this is k.
    pub fn rotary_pairs(&self, pairs: &[Vec<usize>]) -> NamedTensor {
        let shape = [pairs.len(), pairs.first().map_or(0, Vec::len)];
        let bytes = pairs.iter().flatten().flat_map(|&pair| (pair as i64).to_le_bytes()).collect();
        NamedTensor::new(self.rotary_pairs_name(), Dtype::I64, shape, bytes)
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

/// Fails unless the linears of a block that belong together are smaller together; adds the tensor that they then need.
fn fit(layout: &mut Layout, block: usize) -> Result<()> {
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
    let layout = blocks.get_mut(block).context("a linear of no block")?;
    let find = |role| linears.iter().find(|spec| spec.id.role == role);
    let (Some(heads), [Some(q), Some(k), Some(v), Some(o)]) =
        (Heads::of(layout), [Role::Q, Role::K, Role::V, Role::O].map(find))
    else {
        return Ok(());
    };
    for (a, b) in [(v, o), (q, k)] {
        let (of_a, of_b) = (heads.dimensions(a)?, heads.dimensions(b)?);
        if of_a != of_b {
            user_bail!(
                "config.json: `linears` gives {} {of_a} dimensions per head, but {} {of_b}", a.name, b.name;
                "get or make the output again"
            );
        }
    }
    let r = heads.dimensions(k)?;
    if r == heads.head_dim {
        return Ok(());
    }
    match heads.query_key {
        QueryKey::Dimensions => {}
        QueryKey::Pairs if r.is_multiple_of(2) => layout.tensors.push(TensorSpec {
            key: ROTARY_PAIRS,
            name: k.rotary_pairs_name(),
            shape: vec![heads.kv_heads, r / 2],
            below: Some(heads.head_dim / 2),
        }),
        QueryKey::Pairs => user_bail!(
            "config.json: `linears` gives {} {r} dimensions per head, of which positions rotate pairs", k.name;
            "get or make the output again"
        ),
        QueryKey::Whole(reason) => user_bail!(
            "config.json: `linears` gives {} {r} of {} dimensions per head, but {reason}", k.name, heads.head_dim;
            "get or make the output again"
        ),
    }
    Ok(())
}

/// The rotary pairs (kv_heads, pairs) in the tensor `name` of `source`, which says below what they are.
pub(super) fn stored_pairs(source: &Source, name: &str, below: usize) -> Result<Vec<Vec<usize>>> {
    let info = source.info(name).with_context(|| format!("tensor `{name}` is missing"))?;
    rotary_pairs(&NamedTensor::new(name, info.dtype, info.shape.clone(), source.bytes(name)?.to_vec()), below)
}

/// The rotary pairs (kv_heads, pairs) in `tensor`, in each row ascending and below `below`.
fn rotary_pairs(tensor: &NamedTensor, below: usize) -> Result<Vec<Vec<usize>>> {
    let NamedTensor { name, dtype, shape, bytes } = tensor;
    let &[_, width] = &shape[..] else { anyhow::bail!("tensor `{name}` is not a matrix") };
    ensure!(*dtype == Dtype::I64 && width > 0, "tensor `{name}` holds no I64 numbers");
    let numbers = bytes.chunks_exact(8).map(|bytes| {
        let mut number = [0; 8];
        number.copy_from_slice(bytes);
        i64::from_le_bytes(number)
    });
    let numbers: Vec<i64> = numbers.collect();
    let rows = numbers.chunks(width).map(|row| {
        let pairs: Vec<usize> = row.iter().filter_map(|&pair| usize::try_from(pair).ok()).collect();
        let ascend = pairs.windows(2).all(|two| two[0] < two[1]);
        if pairs.len() < width || !ascend || pairs.last().is_some_and(|&last| last >= below) {
            user_bail!(
                "tensor `{name}` holds {row:?}, which are no ascending rotary pairs below {below}";
                "the output is damaged: get or make it again"
            );
        }
        Ok(pairs)
    });
    rows.collect()
}

//! The linears of an output: how they are stored, and what they become under another config.

use crate::checkpoint::{Dtype, Source, encode};
use crate::compute::Compute;
use crate::linalg::Mat;
use crate::model::{Description, Heads, Linear, LinearSpec, Side, Stored, load_bias};
use crate::user_bail;
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::ops::Range;

/// Elements of a product that are in memory as f64 at a time.
const STRIP: usize = 1 << 22;

/// A linear as an output holds it.
#[derive(Clone)]
pub(super) struct Held {
    /// With its own number of channels, and the bias that a method may have added.
    pub spec: LinearSpec,
    /// Rank of its factors.
    pub rank: Option<usize>,
}

/// A linear as it is stored, and as a plain checkpoint has it.
pub(super) struct Pair {
    pub have: Held,
    pub want: LinearSpec,
    /// Where its inner side lies in that of the plain one.
    places: Places,
}

/// Where the outputs or inputs of a smaller linear lie in the larger one, which has zeros between them.
enum Places {
    /// In front, in whatever order: a permutation of channels changes no output.
    First,
    /// Here.
    At(Vec<usize>),
}

impl Places {
    fn at(&self, i: usize) -> usize {
        match self {
            Places::First => i,
            Places::At(places) => places.get(i).copied().unwrap_or(i),
        }
    }
}

impl Held {
    /// Whether it is stored under its own name although the plain checkpoint has it in a fused matrix, or as factors.
    pub fn is_apart(&self, source: &Source) -> bool {
        self.rank.is_some() || self.spec.fused().is_some() && source.is_stored(&own_weight(&self.spec))
    }

    /// Channels of the feed-forward layer that it belongs to.
    pub fn channels(&self) -> Option<usize> {
        self.spec.id.role.ffn_part().and(self.spec.inner())
    }
}

impl Pair {
    /// Whether what was removed has to come back.
    pub fn is_narrower(&self) -> bool {
        self.have.spec.inner() < self.want.inner()
    }

    /// Fails unless all that differs is a size that may be smaller.
    fn new(have: &Held, want: &LinearSpec, heads: Option<Heads>) -> Result<Self> {
        let spec = &have.spec;
        if !spec.is_within(want) {
            user_bail!(
                "{} is stored with shape ({}, {}), but the config asks for ({}, {})", spec.name, spec.out, spec.input, want.out, want.input;
                "config and weights do not belong together: `softlm verify` names everything that is wrong"
            );
        }
        let smaller = spec.inner() < want.inner();
        let places = match heads.filter(|_| smaller && spec.id.role.is_attention()) {
            Some(heads) => Places::At(heads.places(spec)?),
            None => Places::First,
        };
        Ok(Self { have: have.clone(), want: want.clone(), places })
    }

    /// Row of the shared matrix that output `i` becomes.
    fn row(&self, i: usize) -> usize {
        self.want.row(if self.want.id.role.inner_side() == Some(Side::Outputs) { self.places.at(i) } else { i })
    }

    /// Input that input `j` becomes.
    fn column(&self, j: usize) -> usize {
        if self.want.id.role.inner_side() == Some(Side::Inputs) { self.places.at(j) } else { j }
    }
}

/// Every linear that `have` describes, in the shape that is stored.
pub(super) fn held(source: &Source, have: &Description) -> Result<Vec<Held>> {
    let linears = have.linears().iter().map(|spec| {
        let ((out, input), rank) = stored_shape(source, spec)?;
        let bias = spec.bias || source.is_stored(&own_bias(spec));
        Ok(Held { spec: LinearSpec { out, input, bias, ..spec.clone() }, rank })
    });
    linears.collect()
}

/// The same linears under the config that is wanted.
pub(super) fn pairs(held: &[Held], want: &Description) -> Result<Vec<Pair>> {
    let pairs = held.iter().zip(want.linears()).map(|(have, linear)| {
        ensure!(have.spec.id == linear.id, "{} stands where {} should", have.spec.id, linear.id);
        Pair::new(have, linear, want.heads(linear.id.block))
    });
    pairs.collect()
}

/// (out, in) as stored, and the rank of the factors.
fn stored_shape(source: &Source, spec: &LinearSpec) -> Result<((usize, usize), Option<usize>)> {
    let matrix = |name: &str| match source.info(name).map(|info| &info.shape[..]) {
        Some(&[rows, columns]) => Ok(Some((rows, columns))),
        Some(shape) => {
            user_bail!("tensor {name} has shape {shape:?}, not that of a matrix"; "the checkpoint is damaged")
        }
        None => Ok(None),
    };
    let [a, b] = factors(spec);
    if let (Some((rank, input)), Some((out, columns))) = (matrix(&a)?, matrix(&b)?) {
        if rank != columns || rank == 0 {
            user_bail!(
                "the factors of {} have ranks {rank} and {columns}", spec.name;
                "the checkpoint is damaged: `softlm verify` names everything that is wrong"
            );
        }
        return Ok(((out, input), Some(rank)));
    }
    let alone = spec.fused().is_none();
    let stored = matrix(&if alone { spec.weight_name() } else { own_weight(spec) })?;
    Ok((
        match stored {
            Some((rows, columns)) if alone && spec.transposed() => (columns, rows),
            Some(shape) => shape,
            // In the fused matrix, or missing: reading it tells.
            None => (spec.out, spec.input),
        },
        None,
    ))
}

/// Two layers whose feed-forward widths differ although config.json has one number for both.
pub(super) fn uneven<'h>(held: &'h [Held], have: &Description) -> Option<(&'h Held, &'h Held)> {
    let mut first: BTreeMap<&str, &Held> = BTreeMap::new();
    held.iter().filter(|linear| linear.channels().is_some()).find_map(|linear| {
        let other = *first.entry(have.width_key(linear.spec.id)).or_insert(linear);
        (other.channels() != linear.channels()).then_some((other, linear))
    })
}

/// Names of A and B.
pub(super) fn factors(spec: &LinearSpec) -> [String; 2] {
    ["a", "b"].map(|factor| format!("{}.factor_{factor}.weight", spec.name))
}

pub(super) fn own_weight(spec: &LinearSpec) -> String {
    format!("{}.weight", spec.name)
}

pub(super) fn own_bias(spec: &LinearSpec) -> String {
    format!("{}.bias", spec.name)
}

/// Name of the tensor that holds the bias in a plain checkpoint.
pub(super) fn bias_name(spec: &LinearSpec) -> String {
    match &spec.stored {
        Stored::Plain => own_bias(spec),
        Stored::Part { matrix, .. } => format!("{matrix}.bias"),
    }
}

/// The matrix that `parts` share in a plain checkpoint, or the one linear that fills it, of `shape` as stored there.
///
/// Each product is computed once in f64, strip by strip, and rounded to `dtype`. Channels that were removed come back as
/// zeros behind those that are left, dimensions of a head where they were.
pub(super) fn matrix(source: &Source, parts: &[&Pair], shape: &[usize], dtype: Dtype) -> Result<Vec<u8>> {
    let &[_, columns] = shape else { anyhow::bail!("{shape:?} is no matrix") };
    let size = dtype.bitsize() / 8;
    // Zero bits are the number zero in every type.
    let mut bytes = vec![0; shape.iter().product::<usize>() * size];
    for pair in parts {
        let width = pair.have.spec.input;
        each_strip(source, pair, |rows, values| {
            let mut strip = Vec::new();
            rounded(&values, dtype, &mut strip, &pair.want.weight_name())?;
            for (i, row) in rows.zip(strip.chunks_exact(width * size)) {
                let at = pair.row(i);
                for (j, value) in row.chunks_exact(size).enumerate() {
                    let j = pair.column(j);
                    let place = if pair.want.transposed() { j * columns + at } else { at * columns + j };
                    bytes[place * size..][..size].copy_from_slice(value);
                }
            }
            Ok(())
        })?;
    }
    Ok(bytes)
}

/// The weight (out, in) of a linear in f64, some rows at a time, row-major.
fn each_strip(source: &Source, pair: &Pair, mut take: impl FnMut(Range<usize>, Vec<f64>) -> Result<()>) -> Result<()> {
    let spec = LinearSpec { bias: false, ..pair.have.spec.clone() };
    let linear = Linear::load(source, &spec, &in_f64())?;
    let height = (STRIP / spec.input.max(1)).max(1);
    let strips = (0..spec.out).step_by(height).map(|start| start..spec.out.min(start + height));
    match linear {
        Linear::LowRank { a, b, .. } => {
            let (a, b) = (mat(&a)?, mat(&b)?);
            for rows in strips {
                let product = b.row_range(rows.clone()).matmul(&a);
                take(rows, product.to_rows())?;
            }
        }
        Linear::Dense { weight, .. } => {
            for rows in strips {
                let values = weight.narrow(0, rows.start, rows.len())?.flatten_all()?.to_vec1()?;
                take(rows, values)?;
            }
        }
    }
    Ok(())
}

/// Products are made in f64, on the CPU.
fn in_f64() -> Compute {
    Compute { dtype: DType::F64, ..Compute::from(&Device::Cpu) }
}

fn mat(tensor: &Tensor) -> Result<Mat> {
    let (rows, columns) = tensor.dims2()?;
    Ok(Mat::from_rows(rows, columns, &tensor.flatten_all()?.to_vec1()?))
}

/// The bias of the matrix that `parts` share, of `len` numbers; zeros for linears that have none.
pub(super) fn bias(source: &Source, parts: &[&Pair], len: usize, dtype: Dtype) -> Result<Vec<u8>> {
    let mut values = vec![0.0; len];
    for pair in parts.iter().filter(|pair| pair.have.spec.bias) {
        let stored: Vec<f64> = load_bias(source, &pair.have.spec, &in_f64())?.to_vec1()?;
        for (i, value) in stored.into_iter().enumerate() {
            *values.get_mut(pair.row(i)).context("a bias is longer than its matrix")? = value;
        }
    }
    let mut bytes = Vec::new();
    let name = parts.first().map(|pair| bias_name(&pair.want)).unwrap_or_default();
    rounded(&values, dtype, &mut bytes, &name)?;
    Ok(bytes)
}

/// Appends `values` in `dtype`; fails naming the tensor where one is too large for it.
pub(super) fn rounded(values: &[f64], dtype: Dtype, out: &mut Vec<u8>, name: &str) -> Result<()> {
    if let Err(value) = encode(values, dtype, out) {
        user_bail!("{name} does not fit into {dtype}: it has the value {value}"; "use --dtype f32 or bf16, which reach further");
    }
    Ok(())
}

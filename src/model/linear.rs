//! y = x Wᵀ + bias, whichever way W is held.

use super::needed::Form;
use super::spec::{LinearSpec, Stored};
use crate::checkpoint::Source;
use crate::compute::Compute;
use crate::ops::MatmulPrecision;
use crate::ops::linear;
use crate::user_bail;
use anyhow::Result;
use candle_core::Tensor;

/// A linear layer, dense or factorised.
#[derive(Debug, Clone)]
pub enum Linear {
    /// W as one matrix.
    Dense {
        /// (out, in)
        weight: Tensor,
        /// (out)
        bias: Option<Tensor>,
    },
    /// W = B A.
    LowRank {
        /// A, (rank, in)
        a: Tensor,
        /// B, (out, rank)
        b: Tensor,
        /// (out)
        bias: Option<Tensor>,
    },
}

impl Linear {
    /// Loads the linear `spec` describes, dense or factorised, whichever the checkpoint holds.
    pub fn load(source: &Source, spec: &LinearSpec, compute: &Compute) -> Result<Self> {
        let bias = if spec.bias { Some(load_bias(source, spec, compute)?) } else { None };
        let [a, b] = spec.factor_names();
        match (source.info(&a), source.info(&b)) {
            (Some(a_info), Some(_)) => {
                let rank = a_info.shape.first().copied().unwrap_or(0);
                if rank == 0 {
                    user_bail!("tensor `{a}` has no rows"; "a factor needs a rank of at least 1");
                }
                let a = compute.matrix(source, &a, &[rank, spec.input])?;
                let b = compute.matrix(source, &b, &[spec.out, rank])?;
                Ok(Linear::LowRank { a, b, bias })
            }
            (Some(_), None) => {
                user_bail!("`{a}` is there but `{b}` is missing"; "a factorised linear needs both factors")
            }
            (None, Some(_)) => {
                user_bail!("`{b}` is there but `{a}` is missing"; "a factorised linear needs both factors")
            }
            (None, None) => Ok(Linear::Dense { weight: load_weight(source, spec, compute)?, bias }),
        }
    }

    /// x (…, in) to (…, out).
    pub fn forward(&self, x: &Tensor, precision: MatmulPrecision) -> Result<Tensor> {
        let mut shape = x.dims().to_vec();
        let width = shape.pop().unwrap_or(0);
        let rows = x.reshape(((), width))?;
        let (y, bias) = match self {
            Linear::Dense { weight, bias } => (linear(&rows, weight, precision)?, bias),
            Linear::LowRank { a, b, bias } => (linear(&linear(&rows, a, precision)?, b, precision)?, bias),
        };
        let y = match bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        };
        shape.push(y.dim(1)?);
        Ok(y.reshape(shape)?)
    }

    /// Numbers in its matrices, and the bytes that they take in memory.
    pub fn storage(&self) -> (usize, usize) {
        let of = |w: &Tensor| (w.elem_count(), w.elem_count() * w.dtype().size_in_bytes());
        match self {
            Linear::Dense { weight, .. } => of(weight),
            Linear::LowRank { a, b, .. } => {
                let (a, b) = (of(a), of(b));
                (a.0 + b.0, a.1 + b.1)
            }
        }
    }

    /// Number of inputs.
    pub fn width(&self) -> usize {
        let (Linear::Dense { weight: last, .. } | Linear::LowRank { a: last, .. }) = self;
        last.dims().get(1).copied().unwrap_or(0)
    }

    /// The bias, (out), if there is one.
    pub fn bias(&self) -> Option<&Tensor> {
        match self {
            Linear::Dense { bias, .. } | Linear::LowRank { bias, .. } => bias.as_ref(),
        }
    }

    /// The weight (out, in) of a dense layer; `None` when it is factorised.
    pub fn dense_weight(&self) -> Option<&Tensor> {
        match self {
            Linear::Dense { weight, .. } => Some(weight),
            Linear::LowRank { .. } => None,
        }
    }

    /// Rank of the factors, `None` for a dense layer.
    pub fn rank(&self) -> Option<usize> {
        match self {
            Linear::Dense { .. } => None,
            Linear::LowRank { a, .. } => a.dims().first().copied(),
        }
    }
}

fn load_weight(source: &Source, spec: &LinearSpec, compute: &Compute) -> Result<Tensor> {
    match &spec.stored {
        Stored::Part { rows, transposed, .. } if spec.form(source) == Form::Matrix => {
            let whole = spec.weight_name();
            if !transposed {
                return compute.matrix_rows(source, &whole, &row_numbers(spec), spec.input);
            }
            let total = source.info(&whole).and_then(|info| info.shape.get(1).copied()).unwrap_or(spec.out);
            let whole = compute.matrix(source, &whole, &[spec.input, total])?;
            Ok(whole.narrow(1, rows.start, spec.out)?.t()?.contiguous()?)
        }
        _ => compute.matrix(source, &spec.own_weight_name(), &[spec.out, spec.input]),
    }
}

/// The bias (out) of a linear that has one: its own, or its part of a fused matrix's.
pub fn load_bias(source: &Source, spec: &LinearSpec, compute: &Compute) -> Result<Tensor> {
    let name = spec.bias_name(source);
    if name == format!("{}.bias", spec.name) {
        return compute.read(source, &name, &[spec.out]);
    }
    let total = source.info(&name).and_then(|info| info.shape.first().copied()).unwrap_or(spec.out);
    let whole = compute.read(source, &name, &[total])?;
    Ok(whole.index_select(&Tensor::new(row_numbers(spec), &compute.device)?, 0)?)
}

fn row_numbers(spec: &LinearSpec) -> Vec<u32> {
    (0..spec.out).map(|i| spec.row(i) as u32).collect()
}

//! Compressed linears as they will be stored: raw tensors with their final names and types.
//!
//! Activations are propagated through exactly these bytes, so that a resumed run, which reads them back, continues with
//! the same numbers as one that was never interrupted.

use crate::checkpoint::{NamedTensor, Source};
use crate::linalg::Mat;
use crate::model::{FfnPart, Linear, LinearSpec, Model};
use crate::recipe::StoredType;
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use safetensors::Dtype;

/// The type to store the factors of `spec` in.
pub fn stored_dtype(source: &Source, spec: &LinearSpec, wanted: StoredType) -> Result<Dtype> {
    Ok(match wanted {
        StoredType::F32 => Dtype::F32,
        StoredType::F16 => Dtype::F16,
        StoredType::Bf16 => Dtype::BF16,
        StoredType::Auto => {
            let name = spec.weight_name();
            source.info(&name).with_context(|| format!("tensor `{name}` is missing"))?.dtype
        }
    })
}

/// The factors of `spec` cut to `rank`: `factor_a` (rank, in) and `factor_b` (out, rank).
pub fn factors(spec: &LinearSpec, b: &Mat, a: &Mat, rank: usize, dtype: Dtype) -> Result<Vec<NamedTensor>> {
    Ok(vec![factor_a(spec, &a.row_range(0..rank), dtype)?, factor_b(spec, &b.col_range(0..rank), dtype)?])
}

/// A (rank, in).
pub fn factor_a(spec: &LinearSpec, a: &Mat, dtype: Dtype) -> Result<NamedTensor> {
    encode(format!("{}.factor_a.weight", spec.name), a, dtype)
}

/// B (out, rank).
pub fn factor_b(spec: &LinearSpec, b: &Mat, dtype: Dtype) -> Result<NamedTensor> {
    encode(format!("{}.factor_b.weight", spec.name), b, dtype)
}

/// A weight that was put together again, in its source's layout; a part of a fused matrix stands on its own.
pub fn dense(spec: &LinearSpec, w: &Mat, dtype: Dtype) -> Result<NamedTensor> {
    let name = format!("{}.weight", spec.name);
    if spec.transposed() && spec.fused().is_none() {
        encode(name, &w.transpose(), dtype)
    } else {
        encode(name, w, dtype)
    }
}

/// The bias (out) of a linear after `deviation` was added; one that had none gets one, in `dtype`.
pub fn bias(model: &Model, spec: &LinearSpec, deviation: &[f32], dtype: Dtype) -> Result<NamedTensor> {
    let mut values = deviation.to_vec();
    if let Some(bias) = model.bias(spec)? {
        values.iter_mut().zip(bias.to_vec1::<f32>()?).for_each(|(value, bias)| *value += bias);
    }
    let values: Vec<f64> = values.into_iter().map(f64::from).collect();
    whole_bias(spec, &values, dtype)
}

/// A bias of as many numbers as the linear has outputs now.
pub fn whole_bias(spec: &LinearSpec, values: &[f64], dtype: Dtype) -> Result<NamedTensor> {
    NamedTensor::rounded(format!("{}.bias", spec.name), dtype, [values.len()], values)
}

/// A part of a fused matrix, on its own and unchanged: `<name>.weight` (out, in).
pub fn dense_part(source: &Source, spec: &LinearSpec) -> Result<NamedTensor> {
    rows(source, spec, 0..spec.out)
}

/// Some outputs of a linear as a plain matrix of its own, `<name>.weight`, in the source's type.
fn rows(source: &Source, spec: &LinearSpec, outputs: impl ExactSizeIterator<Item = usize>) -> Result<NamedTensor> {
    let whole = spec.weight_name();
    let info = source.info(&whole).with_context(|| format!("tensor `{whole}` is missing"))?.clone();
    let size = info.bytes() / info.elements().max(1);
    let bytes = source.bytes(&whole)?;
    let shape = vec![outputs.len(), spec.input];
    let mut data = Vec::with_capacity(outputs.len() * spec.input * size);
    for row in outputs.map(|i| spec.row(i)) {
        if spec.transposed() {
            let columns = (0..spec.input).map(|column| (column * info.shape[1] + row) * size);
            columns.for_each(|at| data.extend_from_slice(&bytes[at..at + size]));
        } else {
            data.extend_from_slice(&bytes[row * spec.input * size..(row + 1) * spec.input * size]);
        }
    }
    Ok(NamedTensor::new(format!("{}.weight", spec.name), info.dtype, shape, data))
}

/// The tensors of a feed-forward linear with only the `channels` kept, in the source's own type and layout. A part of a
/// fused matrix stands on its own then.
pub fn pruned(source: &Source, spec: &LinearSpec, channels: &[usize]) -> Result<Vec<NamedTensor>> {
    // Channels are outputs of gate and up, inputs of down; a transposed layout turns that round.
    let outputs = spec.id.role.ffn_part() != Some(FfnPart::Down);
    let mut tensors = vec![if spec.fused().is_some() && outputs {
        rows(source, spec, channels.iter().copied())?
    } else {
        select(source, &spec.weight_name(), channels, usize::from(outputs == spec.transposed()))?
    }];
    if spec.bias && outputs {
        let places: Vec<usize> = channels.iter().map(|&i| spec.row(i)).collect();
        let bias = select(source, &spec.weight_name().replace(".weight", ".bias"), &places, 0)?;
        tensors.push(NamedTensor { name: format!("{}.bias", spec.name), ..bias });
    }
    Ok(tensors)
}

/// The slices `keep` of tensor `name` along `dim` (0 or 1).
fn select(source: &Source, name: &str, keep: &[usize], dim: usize) -> Result<NamedTensor> {
    let info = source.info(name).with_context(|| format!("tensor `{name}` is missing"))?.clone();
    let size = info.bytes() / info.elements().max(1);
    let bytes = source.bytes(name)?;
    let mut shape = info.shape.clone();
    let row = shape.iter().skip(1).product::<usize>() * size;
    let data = if dim == 0 {
        keep.iter().flat_map(|&i| &bytes[i * row..(i + 1) * row]).copied().collect()
    } else {
        let rows = bytes.chunks_exact(row);
        rows.flat_map(|row| keep.iter().flat_map(move |&j| &row[j * size..(j + 1) * size])).copied().collect()
    };
    shape[dim] = keep.len();
    Ok(NamedTensor::new(name, info.dtype, shape, data))
}

/// The linear that `tensors` hold for `spec`, in f32; `None` if they hold none. `bias` is the one it has so far.
pub fn linear(
    tensors: &[NamedTensor],
    spec: &LinearSpec,
    bias: Option<Tensor>,
    device: &Device,
) -> Result<Option<Linear>> {
    let find = |name: String| tensors.iter().find(|t| t.name == name).map(|t| t.tensor(device)).transpose();
    let bias = match find(format!("{}.bias", spec.name))? {
        // Channels were removed, or a deviation was added.
        Some(changed) => Some(changed),
        None => bias,
    };
    if let (Some(a), Some(b)) =
        (find(format!("{}.factor_a.weight", spec.name))?, find(format!("{}.factor_b.weight", spec.name))?)
    {
        return Ok(Some(Linear::LowRank { a, b, bias }));
    }
    let Some(weight) = find(format!("{}.weight", spec.name))? else { return Ok(None) };
    // A part of a fused matrix is stored plainly once it stands on its own.
    let turned = spec.transposed() && spec.fused().is_none();
    let weight = if turned { weight.t()?.contiguous()? } else { weight };
    Ok(Some(Linear::Dense { weight, bias }))
}

/// A matrix in row-major order. What is not stored in f64 gets there by way of f32, in which decompositions wait to be cut.
fn encode(name: String, matrix: &Mat, dtype: Dtype) -> Result<NamedTensor> {
    let values = match dtype {
        Dtype::F64 => matrix.to_rows(),
        _ => matrix.to_f32_rows().into_iter().map(f64::from).collect(),
    };
    NamedTensor::rounded(name, dtype, [matrix.rows(), matrix.cols()], &values)
}

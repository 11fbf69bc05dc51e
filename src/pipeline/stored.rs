//! Compressed linears as they will be stored: raw tensors with their final names and types.
//!
//! Activations are propagated through exactly these bytes, so that a resumed run, which reads them back, continues with
//! the same numbers as one that was never interrupted.

use crate::checkpoint::{NamedTensor, Source};
use crate::linalg::Mat;
use crate::model::{Linear, LinearSpec, Model, Role, Stored};
use crate::recipe::StoredType;
use crate::user_bail;
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use half::{bf16, f16};
use safetensors::Dtype;

/// Name of the tensor that holds the dense weight of `spec`.
pub fn weight_name(spec: &LinearSpec) -> String {
    match &spec.stored {
        Stored::Plain => format!("{}.weight", spec.name),
        Stored::Conv1d { fused, .. } => format!("{fused}.weight"),
    }
}

/// The type to store the factors of `spec` in.
pub fn stored_dtype(source: &Source, spec: &LinearSpec, wanted: StoredType) -> Result<Dtype> {
    Ok(match wanted {
        StoredType::F32 => Dtype::F32,
        StoredType::F16 => Dtype::F16,
        StoredType::Bf16 => Dtype::BF16,
        StoredType::Auto => {
            let name = weight_name(spec);
            source.info(&name).with_context(|| format!("tensor `{name}` is missing"))?.dtype
        }
    })
}

/// The factors of `spec` cut to `rank`: `factor_a` (rank, in) and `factor_b` (out, rank).
pub fn factors(spec: &LinearSpec, b: &Mat, a: &Mat, rank: usize, dtype: Dtype) -> Result<Vec<NamedTensor>> {
    let name = &spec.name;
    Ok(vec![
        encode(format!("{name}.factor_a.weight"), &a.row_range(0..rank), dtype)?,
        encode(format!("{name}.factor_b.weight"), &b.col_range(0..rank), dtype)?,
    ])
}

/// A weight that was put together again, in its source's layout; a part of a fused matrix stands on its own.
pub fn dense(spec: &LinearSpec, w: &Mat, dtype: Dtype) -> Result<NamedTensor> {
    match &spec.stored {
        Stored::Conv1d { fused, .. } if *fused == spec.name => encode(weight_name(spec), &w.transpose(), dtype),
        _ => encode(format!("{}.weight", spec.name), w, dtype),
    }
}

/// The biases of the linears of a block after `deviations` were added: (out) each, those of a fused matrix together.
/// A linear without a bias gets one.
pub fn biases(
    model: &Model,
    deviations: &[(LinearSpec, Vec<f32>)],
    dtype: impl Fn(&LinearSpec) -> Result<Dtype>,
) -> Result<Vec<NamedTensor>> {
    let mut parts: Vec<(String, usize, Vec<f32>, Dtype)> = Vec::new();
    for (spec, deviation) in deviations {
        let (name, start) = match &spec.stored {
            Stored::Plain => (format!("{}.bias", spec.name), 0),
            Stored::Conv1d { fused, start } => (format!("{fused}.bias"), *start),
        };
        let mut values = deviation.clone();
        if let Some(bias) = model.bias(spec)? {
            values.iter_mut().zip(bias.to_vec1::<f32>()?).for_each(|(value, bias)| *value += bias);
        }
        let dtype = model.source().info(&name).map_or_else(|| dtype(spec), |info| Ok(info.dtype))?;
        parts.push((name, start, values, dtype));
    }
    parts.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    let mut tensors: Vec<NamedTensor> = Vec::new();
    for (name, _, values, dtype) in parts {
        let (_, _, _, bytes) = encode(name.clone(), &Mat::from_f32_rows(1, values.len(), &values), dtype)?;
        match tensors.last_mut().filter(|last| last.0 == name) {
            Some((_, _, shape, all)) => {
                shape[0] += values.len();
                all.extend(bytes);
            }
            None => tensors.push((name, dtype, vec![values.len()], bytes)),
        }
    }
    Ok(tensors)
}

/// A part of a fused matrix, on its own and unchanged: `<name>.weight` (out, in).
pub fn dense_part(source: &Source, spec: &LinearSpec) -> Result<NamedTensor> {
    let fused = weight_name(spec);
    let info = source.info(&fused).with_context(|| format!("tensor `{fused}` is missing"))?.clone();
    let start = match &spec.stored {
        Stored::Plain => 0,
        Stored::Conv1d { start, .. } => *start,
    };
    let (size, total) = (info.bytes() / info.elements().max(1), info.shape[1]);
    let bytes = source.bytes(&fused)?;
    let mut data = Vec::with_capacity(spec.params() * size);
    for row in start..start + spec.out {
        for column in 0..spec.input {
            let at = (column * total + row) * size;
            data.extend_from_slice(&bytes[at..at + size]);
        }
    }
    Ok((format!("{}.weight", spec.name), info.dtype, vec![spec.out, spec.input], data))
}

/// The tensors of a feed-forward linear with only the `channels` kept, in the source's own type and layout.
pub fn pruned(source: &Source, spec: &LinearSpec, channels: &[usize]) -> Result<Vec<NamedTensor>> {
    let name = weight_name(spec);
    // Channels are outputs of gate and up, inputs of down; a transposed layout turns that round.
    let transposed = matches!(spec.stored, Stored::Conv1d { .. });
    let rows = (spec.id.role != Role::Down) != transposed;
    let mut tensors = vec![select(source, &name, channels, if rows { 0 } else { 1 })?];
    if spec.bias && spec.id.role != Role::Down {
        let bias = name.replace(".weight", ".bias");
        tensors.push(select(source, &bias, channels, 0)?);
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
    Ok((name.to_string(), info.dtype, shape, data))
}

/// The linear that `tensors` hold for `spec`, in f32; `None` if they hold none. `bias` is the one it has so far.
pub fn linear(
    tensors: &[NamedTensor],
    spec: &LinearSpec,
    bias: Option<Tensor>,
    device: &Device,
) -> Result<Option<Linear>> {
    let find = |name: String| tensors.iter().find(|t| t.0 == name).map(|t| decode(t, device)).transpose();
    let start = match &spec.stored {
        Stored::Plain => 0,
        Stored::Conv1d { start, .. } => *start,
    };
    let bias = match find(weight_name(spec).replace(".weight", ".bias"))? {
        // Channels were removed, or a deviation was added; the parts of a fused matrix share one.
        Some(changed) if changed.dim(0)? > spec.out => Some(changed.narrow(0, start, spec.out)?.contiguous()?),
        Some(changed) => Some(changed),
        None => bias,
    };
    if let (Some(a), Some(b)) =
        (find(format!("{}.factor_a.weight", spec.name))?, find(format!("{}.factor_b.weight", spec.name))?)
    {
        return Ok(Some(Linear::LowRank { a, b, bias }));
    }
    let fused = matches!(&spec.stored, Stored::Conv1d { fused, .. } if *fused == spec.name);
    let Some(weight) = find(format!("{}.weight", spec.name))? else { return Ok(None) };
    let weight = if fused { weight.t()?.contiguous()? } else { weight };
    Ok(Some(Linear::Dense { weight, bias }))
}

fn encode(name: String, matrix: &Mat, dtype: Dtype) -> Result<NamedTensor> {
    let rows = matrix.to_f32_rows();
    let (bytes, finite): (Vec<u8>, bool) = match dtype {
        Dtype::F16 => {
            let rows: Vec<f16> = rows.iter().map(|&x| f16::from_f32(x)).collect();
            (rows.iter().flat_map(|x| x.to_le_bytes()).collect(), rows.iter().all(|x| x.is_finite()))
        }
        Dtype::BF16 => {
            let rows: Vec<bf16> = rows.iter().map(|&x| bf16::from_f32(x)).collect();
            (rows.iter().flat_map(|x| x.to_le_bytes()).collect(), rows.iter().all(|x| x.is_finite()))
        }
        Dtype::F32 => (rows.iter().flat_map(|x| x.to_le_bytes()).collect(), rows.iter().all(|x| x.is_finite())),
        Dtype::F64 => (matrix.to_rows().iter().flat_map(|x| x.to_le_bytes()).collect(), matrix.is_finite()),
        other => user_bail!("factors cannot be stored as {other:?}"; "use --dtype f32, f16 or bf16"),
    };
    if !finite {
        let hint = match dtype {
            Dtype::F16 => "use --dtype f32 or bf16, which reach further",
            _ => "the weights or activations are too large for any type: is the checkpoint damaged?",
        };
        user_bail!("`{name}` does not fit into {dtype:?}: a value overflows"; "{hint}");
    }
    Ok((name, dtype, vec![matrix.rows(), matrix.cols()], bytes))
}

fn decode((name, dtype, shape, bytes): &NamedTensor, device: &Device) -> Result<Tensor> {
    let values: Vec<f32> = match dtype {
        Dtype::F16 => bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::BF16 => bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F64 => bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
        other => anyhow::bail!("`{name}` has type {other:?}"),
    };
    Ok(Tensor::from_vec(values, shape.as_slice(), device)?)
}

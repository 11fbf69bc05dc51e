//! Training state on disk: f32 tensors bit for bit.

use crate::checkpoint::{Dtype, NamedTensor, TensorFile};
use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};

/// `tensor` (f32) under `name`.
pub(super) fn encode(name: String, tensor: &Tensor) -> Result<NamedTensor> {
    let values: Vec<f32> = tensor.flatten_all()?.to_vec1().with_context(|| name.clone())?;
    Ok((name, Dtype::F32, tensor.dims().to_vec(), values.iter().flat_map(|x| x.to_le_bytes()).collect()))
}

/// The tensor `name`, which must have been written by [`encode`] with this shape.
pub(super) fn decode(file: &TensorFile, name: &str, shape: &[usize], device: &Device) -> Result<Tensor> {
    let info = file.info(name).with_context(|| format!("{} has no tensor {name}", file.name()))?;
    ensure!(
        info.dtype == Dtype::F32 && info.shape == shape,
        "{}: {name} is {:?} {:?}, expected f32 {shape:?}",
        file.name(),
        info.dtype,
        info.shape
    );
    let values: Vec<f32> = file.bytes(name)?.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    Ok(Tensor::from_vec(values, shape, device)?)
}

//! A tensor in memory as it lies in a file.

use super::TensorFile;
use super::convert::{decode, encode};
use crate::user_bail;
use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use safetensors::Dtype;
use std::borrow::Cow;

/// Name, type, shape and little-endian bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// Name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// The elements in row-major order, little-endian.
    pub bytes: Vec<u8>,
}

/// What a file of tensors is written from.
pub trait TensorData {
    /// Name.
    fn name(&self) -> &str;
    /// Element type.
    fn dtype(&self) -> Dtype;
    /// Shape; empty for a scalar.
    fn shape(&self) -> &[usize];
    /// Number of bytes.
    fn size(&self) -> usize;
    /// The elements in row-major order, little-endian.
    fn data(&self) -> Result<Cow<'_, [u8]>>;
}

impl TensorData for NamedTensor {
    fn name(&self) -> &str {
        &self.name
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn size(&self) -> usize {
        self.bytes.len()
    }

    fn data(&self) -> Result<Cow<'_, [u8]>> {
        Ok(Cow::Borrowed(&self.bytes))
    }
}

/// Something to be written that need not exist as bytes before: a training's state would be in memory twice.
pub enum Unwritten {
    /// Bytes as they are.
    Bytes(NamedTensor),
    /// An f32 tensor by its name, bit for bit, copied from its device when it is written.
    Tensor(String, Tensor),
}

impl TensorData for Unwritten {
    fn name(&self) -> &str {
        match self {
            Self::Bytes(tensor) => &tensor.name,
            Self::Tensor(name, _) => name,
        }
    }

    fn dtype(&self) -> Dtype {
        match self {
            Self::Bytes(tensor) => tensor.dtype,
            Self::Tensor(..) => Dtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Self::Bytes(tensor) => &tensor.shape,
            Self::Tensor(_, tensor) => tensor.dims(),
        }
    }

    fn size(&self) -> usize {
        match self {
            Self::Bytes(tensor) => tensor.bytes.len(),
            Self::Tensor(_, tensor) => 4 * tensor.elem_count(),
        }
    }

    fn data(&self) -> Result<Cow<'_, [u8]>> {
        match self {
            Self::Bytes(tensor) => tensor.data(),
            Self::Tensor(name, tensor) => Ok(Cow::Owned(NamedTensor::of(name.as_str(), tensor)?.bytes)),
        }
    }
}

impl NamedTensor {
    /// Of bytes as they are.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: impl Into<Vec<usize>>, bytes: Vec<u8>) -> Self {
        Self { name: name.into(), dtype, shape: shape.into(), bytes }
    }

    /// f32 values, bit for bit.
    pub fn f32(name: impl Into<String>, shape: impl Into<Vec<usize>>, values: &[f32]) -> Self {
        Self::new(name, Dtype::F32, shape, values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// f64 values, bit for bit.
    pub fn f64(name: impl Into<String>, shape: impl Into<Vec<usize>>, values: &[f64]) -> Self {
        Self::new(name, Dtype::F64, shape, values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// A count.
    pub fn count(name: impl Into<String>, value: u64) -> Self {
        Self::new(name, Dtype::U64, [1], value.to_le_bytes().to_vec())
    }

    /// A text, as UTF-8.
    pub fn text(name: impl Into<String>, text: &str) -> Self {
        Self::new(name, Dtype::U8, [text.len()], text.as_bytes().to_vec())
    }

    /// An f32 tensor, bit for bit, copied from its device.
    pub fn of(name: impl Into<String>, tensor: &Tensor) -> Result<Self> {
        let name = name.into();
        let values: Vec<f32> = tensor.flatten_all()?.to_vec1().with_context(|| name.clone())?;
        Ok(Self::f32(name, tensor.dims(), &values))
    }

    /// Values rounded to `dtype`, which weights may have.
    ///
    /// # Errors
    /// A [`crate::error::UserError`] if one is beyond what the type can hold, or no number.
    pub fn rounded(name: String, dtype: Dtype, shape: impl Into<Vec<usize>>, values: &[f64]) -> Result<Self> {
        if !super::is_float(dtype) {
            user_bail!("factors cannot be stored as {dtype:?}"; "use --dtype f32, f16 or bf16");
        }
        let mut bytes = Vec::new();
        if encode(values, dtype, &mut bytes).is_err() || !values.iter().all(|x| x.is_finite()) {
            let hint = match dtype {
                Dtype::F16 => "use --dtype f32 or bf16, which reach further",
                _ => "the weights or activations are too large for any type: is the checkpoint damaged?",
            };
            user_bail!("`{name}` does not fit into {dtype:?}: a value overflows"; "{hint}");
        }
        Ok(Self::new(name, dtype, shape, bytes))
    }

    /// The values on `device`, in f32.
    pub fn tensor(&self, device: &Device) -> Result<Tensor> {
        ensure!(super::is_float(self.dtype), "`{}` has type {:?}", self.name, self.dtype);
        Ok(Tensor::from_vec(decode::<f32>(self.dtype, &self.bytes), self.shape.as_slice(), device)?)
    }
}

impl TensorFile {
    /// A tensor with its bytes.
    pub fn read(&self, name: &str) -> Result<NamedTensor> {
        let info = self.info(name).with_context(|| format!("{} has no tensor {name}", self.name()))?;
        Ok(NamedTensor::new(name, info.dtype, info.shape.clone(), self.bytes(name)?.to_vec()))
    }

    /// The values of an f32 tensor.
    pub fn f32s(&self, name: &str) -> Result<Vec<f32>> {
        Ok(decode(Dtype::F32, self.typed(name, Dtype::F32)?))
    }

    /// The values of an f64 tensor.
    pub fn f64s(&self, name: &str) -> Result<Vec<f64>> {
        Ok(decode(Dtype::F64, self.typed(name, Dtype::F64)?))
    }

    /// What [`NamedTensor::count`] wrote.
    pub fn count(&self, name: &str) -> Result<u64> {
        let bytes = self.typed(name, Dtype::U64)?;
        Ok(u64::from_le_bytes(bytes.try_into().with_context(|| format!("{}: {name} is no count", self.name()))?))
    }

    /// What [`NamedTensor::text`] wrote.
    pub fn text(&self, name: &str) -> Result<String> {
        Ok(String::from_utf8_lossy(self.typed(name, Dtype::U8)?).into_owned())
    }

    /// An f32 tensor, which must have this shape, on `device`.
    pub fn tensor(&self, name: &str, shape: &[usize], device: &Device) -> Result<Tensor> {
        let found = self.info(name).map_or(&[][..], |info| &info.shape);
        ensure!(found == shape, "{}: {name} has shape {found:?}, expected {shape:?}", self.name());
        Ok(Tensor::from_vec(self.f32s(name)?, shape, device)?)
    }

    fn typed(&self, name: &str, dtype: Dtype) -> Result<&[u8]> {
        let bytes = self.bytes(name)?;
        let found = self.info(name).map(|info| info.dtype);
        ensure!(found == Some(dtype), "{}: {name} is {found:?}, expected {dtype:?}", self.name());
        Ok(bytes)
    }
}

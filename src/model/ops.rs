//! The few operations every block shape is made of.

use super::attention::slice;
use super::config::Config;
use super::layout::{NormKind, NormSpec};
use super::simd;
use crate::checkpoint::Source;
use crate::user_bail;
use anyhow::Result;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, DType, Device, Layout, Shape, Storage, Tensor};
use rayon::prelude::*;

/// Numbers handed to a thread at once.
pub(super) const PIECE: usize = 1 << 14;

/// Non-linearity of a feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x)
    Silu,
    /// Exact GELU, x · Φ(x)
    Gelu,
    /// GELU's tanh approximation
    GeluTanh,
    /// max(x, 0)
    Relu,
    /// tanh x, of poolers
    Tanh,
}

impl Activation {
    /// Reads the activation a config names under `key`.
    pub fn from_config(config: &Config, key: &str, default: &str) -> Result<Self> {
        let name = config.str_or(key, default)?;
        Ok(match name.as_str() {
            "silu" | "swish" => Activation::Silu,
            "gelu" | "gelu_python" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_accurate" | "gelu_fast" => {
                Activation::GeluTanh
            }
            "relu" => Activation::Relu,
            _ => {
                user_bail!("config.json: `{key}` is \"{name}\", which softlm does not know"; "known are silu, gelu, gelu_new, relu")
            }
        })
    }

    /// Applies it element by element.
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Activation::Silu if x.device().is_cpu() => x.contiguous()?.apply_op1_no_bwd(&Elementwise(simd::silu))?,
            Activation::GeluTanh if x.device().is_cpu() => {
                x.contiguous()?.apply_op1_no_bwd(&Elementwise(simd::gelu_tanh))?
            }
            Activation::Gelu if x.device().is_cpu() => {
                x.contiguous()?.apply_op1_no_bwd(&Elementwise(simd::gelu_erf))?
            }
            Activation::Silu => x.silu()?,
            Activation::Gelu => x.gelu_erf()?,
            Activation::GeluTanh => x.gelu()?,
            Activation::Relu => x.relu()?,
            Activation::Tanh => x.tanh()?,
        })
    }

    /// act(gate) ∘ up, of the same shape.
    pub fn apply_gate(self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        if self == Activation::Silu && gate.device().is_cpu() {
            return Ok(gate.contiguous()?.apply_op2_no_bwd(&up.contiguous()?, &Pairwise(simd::silu_times))?);
        }
        Ok((self.apply(gate)? * up)?)
    }
}

/// A function of each number alone, on the CPU.
pub(super) struct Elementwise(pub fn(&[f32], &mut [f32]));

impl CustomOp1 for Elementwise {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = slice(x, layout)?;
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).for_each(|(y, x)| (self.0)(x, y));
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }
}

/// A function of each pair of numbers alone, on the CPU.
pub(super) struct Pairwise(pub fn(&[f32], &[f32], &mut [f32]));

impl CustomOp2 for Pairwise {
    fn name(&self) -> &'static str {
        "pairwise"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (a, b) = (slice(a, a_layout)?, slice(b, b_layout)?);
        let mut y = vec![0f32; a.len()];
        let pieces = y.par_chunks_mut(PIECE).zip(a.par_chunks(PIECE)).zip(b.par_chunks(PIECE));
        pieces.for_each(|((y, a), b)| (self.0)(a, b, y));
        Ok((CpuStorage::F32(y), a_layout.shape().clone()))
    }
}

/// x + y, of the same shape.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        // candle's own sum waits actively for a second pool of threads.
        return Ok(x.contiguous()?.apply_op2_no_bwd(&y.contiguous()?, &Pairwise(simd::add))?);
    }
    Ok((x + y)?)
}

/// Normalisation over the last dimension.
#[derive(Debug, Clone)]
pub enum Norm {
    /// x / rms(x) · weight
    Rms { weight: Tensor, eps: f64 },
    /// (x − mean) / std · weight + bias
    Layer { weight: Tensor, bias: Tensor, eps: f64 },
}

impl Norm {
    /// Reads the norm that `spec` describes.
    pub(super) fn load(source: &Source, spec: &NormSpec, device: &Device) -> Result<Self> {
        let [weight, bias] = spec.parts(source);
        let read = |name: &str| source.tensor(name, &[spec.width], DType::F32, device);
        let weight = read(&weight)?;
        Ok(match spec.kind {
            NormKind::Rms(eps) => Norm::Rms { weight, eps },
            NormKind::RmsPlusOne(eps) => Norm::Rms { weight: (weight + 1.0)?, eps },
            NormKind::Layer(eps) => Norm::Layer { weight, bias: read(&bias)?, eps },
        })
    }

    /// Normalises `x` (…, width).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.contiguous()?;
        Ok(match self {
            Norm::Rms { weight, eps } if x.device().is_cpu() => {
                x.apply_op2_no_bwd(weight, &RmsNorm { eps: *eps as f32 })?
            }
            Norm::Rms { weight, eps } => candle_nn::ops::rms_norm(&x, weight, *eps as f32)?,
            Norm::Layer { weight, bias, eps } => candle_nn::ops::layer_norm(&x, weight, bias, *eps as f32)?,
        })
    }
}

/// Root mean square normalisation on the CPU.
struct RmsNorm {
    eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, weight) = (slice(x, layout)?, slice(weight, weight_layout)?);
        let y = by_rows(x, weight.len(), |x, y| simd::rms_norm(x, weight, self.eps, y));
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }
}

/// What `f` makes of every row of `width` numbers.
pub(super) fn by_rows(x: &[f32], width: usize, f: impl Fn(&[f32], &mut [f32]) + Sync) -> Vec<f32> {
    let width = width.max(1);
    let mut y = vec![0f32; x.len()];
    let piece = row_piece(width);
    y.par_chunks_mut(piece).zip(x.par_chunks(piece)).for_each(|(y, x)| {
        y.chunks_exact_mut(width).zip(x.chunks_exact(width)).for_each(|(y, x)| f(x, y));
    });
    y
}

/// Numbers handed to a thread at once where whole rows belong together.
pub(super) fn row_piece(width: usize) -> usize {
    width * (PIECE / width).max(1)
}

/// Shows the numbers of an f32 tensor, without a copy where it lies in one piece in this machine's memory.
pub fn with_numbers<R>(x: &Tensor, look: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = x.storage_and_layout();
    if let (Storage::Cpu(CpuStorage::F32(numbers)), Some((from, to))) = (&*storage, layout.contiguous_offsets()) {
        return Ok(look(&numbers[from..to]));
    }
    drop(storage);
    Ok(look(&x.flatten_all()?.to_vec1()?))
}

/// Whether every element of `x` is finite.
pub fn is_finite(x: &Tensor) -> Result<bool> {
    if !x.device().is_cpu() {
        // A sum of magnitudes is finite exactly when every term is (short of overflowing f32 altogether).
        return Ok(x.abs()?.mean_keepdim(D::Minus1)?.sum_all()?.to_scalar::<f32>()?.is_finite());
    }
    with_numbers(x, |numbers| numbers.par_chunks(PIECE).all(simd::all_finite))
}

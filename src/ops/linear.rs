//! Product with a weight.
//!
//! ```text
//! y = x Wᵀ        x (rows, in), W (out, in)
//! ```
//! W may be held in bf16 or f16 while all else is f32: few rows are then multiplied with it as it is, for more it is widened first.
//!
//! Back, with g (rows, out) the gradient on y: on x it is g W, on W gᵀ x.

use super::cpu::{CpuOp, Input, apply, numbers};
use crate::linalg::bf16::{self, product};
use crate::linalg::{Held, RowMajor, Side, few_rows_product, widened};
use candle_core::{CpuStorage, DType, Device, Error, Result, Shape, Storage, Tensor};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Fewer rows do not pay for the copy of the weight that bf16 products need.
const ROWS: usize = 16;

/// More rows are faster in pieces that fit into the caches, which a general product has.
const FEW: usize = 8;

/// What may be lost in products of f32 matrices, in the words of `torch.set_float32_matmul_precision`. Sums are in f32
/// whatever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum MatmulPrecision {
    /// Nothing: products are in f32.
    #[default]
    Highest,
    /// On a GPU, factors are rounded to tf32: 11 bits.
    High,
    /// As high; on a processor that multiplies bf16 numbers faster (AVX512-BF16), factors are rounded to these: 8 bits.
    Medium,
}

impl MatmulPrecision {
    /// What the factors of f32 products on `device` are rounded to.
    pub fn on(self, device: &Device) -> ProductType {
        match self {
            Self::High | Self::Medium if device.is_cuda() => ProductType::Tf32,
            Self::Medium if device.is_cpu() && bf16::is_supported() => ProductType::Bf16,
            _ => ProductType::F32,
        }
    }
}

/// What the factors of products are rounded to, whose sums are in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProductType {
    /// Nothing is lost.
    F32,
    /// 11 bits.
    Tf32,
    /// 8 bits.
    Bf16,
}

impl ProductType {
    /// As reports name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }
}

/// `x` (rows, in) and `weight` (out, in) to (rows, out).
pub fn linear(x: &Tensor, weight: &Tensor, precision: MatmulPrecision) -> Result<Tensor> {
    if matches!(weight.dtype(), DType::BF16 | DType::F16) && x.dtype() == DType::F32 {
        // Of weights in f32 all rows are multiplied alike, so that no bit depends on how many go at once.
        if x.dim(0)? <= FEW && x.device().is_cpu() {
            return few_rows(x, weight);
        }
        let weight = match x.device() {
            Device::Cpu => with_held(weight, |held| Tensor::from_vec(widened(held), weight.shape(), x.device()))?,
            _ => weight.to_dtype(DType::F32)?,
        };
        return linear(x, &weight, precision);
    }
    if precision.on(x.device()) == ProductType::Bf16 && x.dim(0)? >= ROWS {
        return apply(Bf16Linear, [x, weight]);
    }
    x.matmul(&weight.t()?)
}

/// x Wᵀ with W in bf16 or f16. Carries no gradients.
fn few_rows(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    if x.track_op() {
        return Err(Error::msg("a weight held in half precision carries no gradients"));
    }
    let ((rows, width), out) = (x.dims2()?, weight.dim(0)?);
    let x = x.contiguous()?;
    let y = with_held(weight, |held| Ok(few_rows_product(&numbers(&x)?, width, held, out)))?;
    Tensor::from_vec(y, (rows, out), x.device())
}

/// What `f` makes of the numbers of a weight in this machine's memory.
fn with_held<T>(weight: &Tensor, f: impl FnOnce(Held) -> Result<T>) -> Result<T> {
    let weight = weight.contiguous()?;
    let (storage, layout) = weight.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::BF16(w)), Some((from, to))) => f(Held::Bf16(&w[from..to])),
        (Storage::Cpu(CpuStorage::F16(w)), Some((from, to))) => f(Held::F16(&w[from..to])),
        _ => Err(Error::msg("neither bf16 nor f16 numbers in this machine's memory")),
    }
}

/// The gradient on x, (rows, in), that `gradient` (rows, out) on y leaves: for what keeps no graph.
pub fn linear_back(gradient: &Tensor, weight: &Tensor, precision: MatmulPrecision) -> Result<Tensor> {
    if precision.on(weight.device()) != ProductType::Bf16 || gradient.dim(0)? < ROWS {
        return gradient.matmul(weight);
    }
    let (gradient, weight) = (gradient.contiguous()?, weight.contiguous()?);
    let (rows, (out, width)) = (gradient.dim(0)?, weight.dims2()?);
    let on_x = back(&numbers(&gradient)?, &numbers(&weight)?, rows, out, width);
    Tensor::from_vec(on_x, (rows, width), weight.device())
}

/// g W
fn back(g: &[f32], weight: &[f32], rows: usize, out: usize, width: usize) -> Vec<f32> {
    product((matrix(g, rows, out), Side::Plain), (matrix(weight, out, width), Side::Transposed))
}

fn matrix(data: &[f32], rows: usize, cols: usize) -> RowMajor<'_> {
    RowMajor { data, rows, cols, stride: cols }
}

/// With every factor rounded to bf16, forward and backward.
struct Bf16Linear;

impl CpuOp<2> for Bf16Linear {
    const NAME: &'static str = "bf16-linear";

    fn forward(&self, [x, weight]: [Input; 2]) -> Result<(Vec<f32>, Shape)> {
        let ((rows, width), out) = (x.shape.dims2()?, weight.shape.dims2()?.0);
        let y = product((matrix(&x, rows, width), Side::Plain), (matrix(&weight, out, width), Side::Plain));
        Ok((y, (rows, out).into()))
    }

    fn backward(&self, [x, weight]: [Input; 2], g: &[f32], wanted: [bool; 2]) -> Result<[Vec<f32>; 2]> {
        let ((rows, width), out) = (x.shape.dims2()?, weight.shape.dims2()?.0);
        let on_x = if wanted[0] { back(g, &weight, rows, out, width) } else { Vec::new() };
        let (g, x) = ((matrix(g, rows, out), Side::Transposed), (matrix(&x, rows, width), Side::Transposed));
        Ok([on_x, if wanted[1] { product(g, x) } else { Vec::new() }])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::bf16::{is_supported, rounded};
    use candle_core::Var;

    /// Against f32 products of the rounded factors. Unrounded ones are a thousand times as far off.
    #[test]
    fn medium_precision_rounds_factors_and_nothing_else() -> Result<()> {
        if !is_supported() {
            println!("skipped: this processor has no AVX512-BF16");
            return Ok(());
        }
        let (rows, width, out) = (37, 70, 45);
        let of = |rows: usize, cols: usize, seed: usize| {
            let value = |i: usize| ((i * 7919 + seed) as f32).sin();
            Tensor::from_vec((0..rows * cols).map(value).collect(), (rows, cols), &Device::Cpu)
        };
        let (x, weight, g) =
            (Var::from_tensor(&of(rows, width, 1)?)?, Var::from_tensor(&of(out, width, 2)?)?, of(rows, out, 3)?);
        let y = linear(&x, &weight, MatmulPrecision::Medium)?;
        let mut gradients = (&y * &g)?.sum_all()?.backward()?;
        let mut on = |var: &Var| gradients.remove(var).expect("a gradient");
        let results = [y.detach(), on(&x), on(&weight), linear_back(&g, &weight, MatmulPrecision::Medium)?];

        let bf16 = |x: &Tensor| {
            let numbers: Vec<f32> = x.flatten_all()?.to_vec1()?;
            Tensor::from_vec(numbers.into_iter().map(rounded).collect(), x.shape(), x.device())
        };
        let products = |x: &Tensor, weight: &Tensor, g: &Tensor| -> Result<[Tensor; 4]> {
            let back = g.matmul(weight)?;
            Ok([x.matmul(&weight.t()?)?, back.clone(), g.t()?.matmul(x)?, back])
        };
        let rounded = products(&bf16(&x)?, &bf16(&weight)?, &bf16(&g)?)?;
        let exact = products(&x, &weight, &g)?;
        let distance = |a: &Tensor, b: &Tensor| (a - b)?.abs()?.max_all()?.to_scalar::<f32>();
        for ((ours, rounded), exact) in results.iter().zip(&rounded).zip(&exact) {
            assert!(distance(ours, rounded)? < 1e-5, "{}", distance(ours, rounded)?);
            assert!(distance(ours, exact)? > 1e-3);
        }
        Ok(())
    }

    #[test]
    fn few_rows_and_highest_precision_are_products_in_f32() -> Result<()> {
        let x = Tensor::from_vec((0..60).map(|i| (i as f32).sin()).collect(), (20, 3), &Device::Cpu)?;
        let weight = Tensor::from_vec(vec![0.1f32, 0.2, 0.3, 0.4, 0.5, 0.6], (2, 3), &Device::Cpu)?;
        let exact: Vec<Vec<f32>> = x.matmul(&weight.t()?)?.to_vec2()?;
        assert_eq!(linear(&x, &weight, MatmulPrecision::Highest)?.to_vec2::<f32>()?, exact);
        let few = linear(&x.narrow(0, 0, ROWS - 1)?, &weight, MatmulPrecision::Medium)?;
        assert_eq!(few.to_vec2::<f32>()?, exact[..ROWS - 1]);
        Ok(())
    }
}

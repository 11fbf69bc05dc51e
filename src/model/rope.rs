//! Rotary position embedding, half-split layout: dimension i turns with dimension i + d/2.

use super::attention::slice;
use super::config::Config;
use crate::error::UserError;
use crate::user_bail;
use anyhow::Result;
use candle_core::{CpuStorage, CustomOp3, Device, Layout, Shape, Tensor};
use rayon::prelude::*;
use serde_json::Value;
use std::f64::consts::PI;

/// Cosines and sines for every position, each (positions, d/2) in f32.
#[derive(Debug, Clone)]
pub struct Rope {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    /// Tables for `positions` positions and head dimension `d`, with the config's base and scaling.
    pub fn new(config: &Config, d: usize, positions: usize, device: &Device) -> Result<Self> {
        let freqs = inverse_frequencies(config, d)?;
        let angles = |f: fn(f64) -> f64| -> Result<Tensor> {
            let table: Vec<f32> =
                (0..positions).flat_map(|p| freqs.iter().map(move |w| f(p as f64 * w) as f32)).collect();
            Ok(Tensor::from_vec(table, (positions, d / 2), device)?)
        };
        Ok(Self { cos: angles(f64::cos)?, sin: angles(f64::sin)? })
    }

    /// Rotates `x` (batch, t, heads, d), whose first row stands at position 0.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let t = x.dim(1)?;
        let (cos, sin) = (self.cos.narrow(0, 0, t)?, self.sin.narrow(0, 0, t)?);
        if x.device().is_cpu() {
            return Ok(x.contiguous()?.apply_op3_no_bwd(&cos, &sin, &Rotate)?);
        }
        Ok(candle_nn::rotary_emb::rope_thd(&x.contiguous()?, &cos, &sin)?)
    }
}

/// The rotation on the CPU.
struct Rotate;

impl CustomOp3 for Rotate {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        cos: &CpuStorage,
        cos_layout: &Layout,
        sin: &CpuStorage,
        sin_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (_, t, heads, d) = x_layout.shape().dims4()?;
        let (x, cos, sin) = (slice(x, x_layout)?, slice(cos, cos_layout)?, slice(sin, sin_layout)?);
        let (width, half) = (heads * d, d / 2);
        let mut y = vec![0f32; x.len()];
        let rows = y.par_chunks_mut(width).zip(x.par_chunks(width)).enumerate().with_min_len(64);
        rows.for_each(|(row, (y, x))| {
            let at = row % t * half..(row % t + 1) * half;
            let (cos, sin) = (&cos[at.clone()], &sin[at]);
            for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                let ((y1, y2), (x1, x2)) = (y.split_at_mut(half), x.split_at(half));
                for i in 0..half {
                    y1[i] = x1[i] * cos[i] - x2[i] * sin[i];
                    y2[i] = x1[i] * sin[i] + x2[i] * cos[i];
                }
            }
        });
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }
}

impl Rope {
    /// [`Rope::apply`] by operations that carry gradients.
    pub(super) fn apply_differentiable(&self, x: &Tensor) -> Result<Tensor> {
        let t = x.dim(2)?;
        super::grad::rotate(x, &self.cos.narrow(0, 0, t)?, &self.sin.narrow(0, 0, t)?)
    }
}

/// θ^(−2i/d) for i < d/2, scaled as the config asks.
fn inverse_frequencies(config: &Config, d: usize) -> Result<Vec<f64>> {
    if !d.is_multiple_of(2) {
        user_bail!("head dimension {d} is odd; rotary position embedding needs pairs"; "check `head_dim` in config.json");
    }
    // Newer configs gather everything under `rope_parameters`.
    let parameters = config.get("rope_parameters").or_else(|| config.get("rope_scaling"));
    let base = match parameters.and_then(|p| p.get("rope_theta")).and_then(Value::as_f64) {
        Some(theta) => theta,
        None => config.f64_or("rope_theta", 10_000.0)?,
    };
    let mut freqs: Vec<f64> = (0..d / 2).map(|i| base.powf(-2.0 * i as f64 / d as f64)).collect();
    let Some(parameters) = parameters else { return Ok(freqs) };
    let kind = parameters.get("rope_type").or_else(|| parameters.get("type")).and_then(Value::as_str);
    match kind {
        None | Some("default") => {}
        Some("linear") => {
            let factor = number(parameters, "factor")?;
            freqs.iter_mut().for_each(|w| *w /= factor);
        }
        Some("llama3") => {
            let scaling = Llama3 {
                factor: number(parameters, "factor")?,
                low: number(parameters, "low_freq_factor")?,
                high: number(parameters, "high_freq_factor")?,
                original: number(parameters, "original_max_position_embeddings")?,
            };
            freqs.iter_mut().for_each(|w| *w = scaling.scale(*w));
        }
        Some(other) => user_bail!(
            "config.json: rope scaling \"{other}\" is not supported";
            "known are default, linear and llama3"
        ),
    }
    Ok(freqs)
}

fn number(parameters: &Value, key: &str) -> Result<f64> {
    let value = parameters.get(key).and_then(Value::as_f64).filter(|x| x.is_finite() && *x > 0.0);
    value.ok_or_else(|| UserError::new(format!("config.json: rope scaling has no positive `{key}`")).into())
}

/// Llama 3's scaling: low frequencies are divided by `factor`, high ones kept, those between blended.
struct Llama3 {
    factor: f64,
    low: f64,
    high: f64,
    original: f64,
}

impl Llama3 {
    fn scale(&self, w: f64) -> f64 {
        let wavelength = 2.0 * PI / w;
        if wavelength < self.original / self.high {
            w
        } else if wavelength > self.original / self.low {
            w / self.factor
        } else {
            let smooth = (self.original / wavelength - self.low) / (self.high - self.low);
            (1.0 - smooth) * w / self.factor + smooth * w
        }
    }
}

//! Rotary position embedding, half-split layout: dimension i turns with dimension i + d/2.

use super::attention::slice;
use super::config::Config;
use crate::error::UserError;
use crate::user_bail;
use anyhow::Result;
use candle_core::{CpuStorage, CustomOp3, D, Device, Layout, Shape, Tensor};
use rayon::prelude::*;
use serde_json::Value;
use std::f64::consts::PI;

/// Cosines and sines for every position. Where fewer dimensions than a head has are rotated, the others stay.
#[derive(Debug, Clone)]
pub struct Rope {
    usual: Table,
    /// What takes its place in sequences longer than this.
    beyond: Option<(usize, Table)>,
}

/// Each (positions, rotated / 2) in f32.
#[derive(Debug, Clone)]
struct Table {
    cos: Tensor,
    sin: Tensor,
}

impl Table {
    /// For frequencies, with cosines and sines multiplied by `times`.
    fn new(freqs: &[f64], times: f64, positions: usize, device: &Device) -> Result<Self> {
        let angles = |f: fn(f64) -> f64| -> Result<Tensor> {
            let row = |p: usize| freqs.iter().map(move |w| (times * f(p as f64 * w)) as f32);
            let table: Vec<f32> = (0..positions).flat_map(row).collect();
            Ok(Tensor::from_vec(table, (positions, freqs.len()), device)?)
        };
        Ok(Self { cos: angles(f64::cos)?, sin: angles(f64::sin)? })
    }
}

/// What a config says about the rotation.
#[derive(Debug, Clone, Copy)]
pub struct Rotation<'a> {
    /// θ, the base.
    pub theta: f64,
    /// Dimensions of each head that are rotated, the first ones.
    pub rotated: usize,
    /// The kind of scaling.
    pub kind: Option<&'a str>,
    /// The object with its parameters.
    pub scaling: Option<&'a Value>,
    /// The context before it was extended, where the config says so outside that object.
    pub original: Option<usize>,
}

impl<'a> Rotation<'a> {
    /// The rotation of whole heads of dimension `d`, as most configs describe it.
    pub fn read(config: &'a Config, d: usize) -> Result<Self> {
        // Newer configs gather everything under `rope_parameters`.
        let scaling = config.get("rope_parameters").or_else(|| config.get("rope_scaling"));
        let theta = match scaling.and_then(|p| p.get("rope_theta")).and_then(Value::as_f64) {
            Some(theta) => theta,
            None => config.f64_or("rope_theta", 10_000.0)?,
        };
        let original = config.usize_or_null("original_max_position_embeddings", None)?;
        Ok(Self { theta, rotated: d, kind: None, scaling: None, original }.scaled(scaling))
    }

    /// The same with other parameters of scaling.
    pub fn scaled(self, scaling: Option<&'a Value>) -> Self {
        let kind = scaling.and_then(|s| s.get("rope_type").or_else(|| s.get("type"))).and_then(Value::as_str);
        Self { kind, scaling, ..self }
    }

    /// The same with only a fraction of each head rotated.
    pub fn partial(self, key: &str, fraction: f64) -> Result<Self> {
        if !(fraction > 0.0 && fraction <= 1.0) {
            user_bail!("config.json: `{key}` = {fraction} is not a fraction of a head"; "get the model's original config.json");
        }
        Ok(Self { rotated: (self.rotated as f64 * fraction) as usize, ..self })
    }
}

impl Rope {
    /// Tables for `positions` positions.
    pub fn new(rotation: Rotation, positions: usize, device: &Device) -> Result<Self> {
        let plain = plain(rotation)?;
        if rotation.kind == Some("longrope") {
            return LongRope::read(rotation, positions)?.rope(&plain, positions, device);
        }
        let (freqs, times) = scaled(rotation, plain, positions)?;
        Ok(Self { usual: Table::new(&freqs, times, positions, device)?, beyond: None })
    }

    /// Length of sequence behind which all positions, the first ones too, are rotated in another way.
    pub fn turning_point(&self) -> Option<usize> {
        self.beyond.as_ref().map(|(longest, _)| *longest)
    }

    /// Cosines and sines for `t` positions from `start` on in a sequence of this length.
    fn table(&self, start: usize, t: usize, length: usize) -> Result<(Tensor, Tensor)> {
        let table = match &self.beyond {
            Some((longest, beyond)) if length > *longest => beyond,
            _ => &self.usual,
        };
        Ok((table.cos.narrow(0, start, t)?, table.sin.narrow(0, start, t)?))
    }

    /// Rotates `x` (batch, t, heads, d), whose first row stands at position `start` of a sequence of this length.
    pub fn apply(&self, x: &Tensor, start: usize, length: usize) -> Result<Tensor> {
        let (t, d) = (x.dim(1)?, x.dim(3)?);
        let (cos, sin) = self.table(start, t, length)?;
        if x.device().is_cpu() {
            return Ok(x.contiguous()?.apply_op3_no_bwd(&cos, &sin, &Rotate)?);
        }
        let rotated = 2 * cos.dim(1)?;
        let turned = candle_nn::rotary_emb::rope_thd(&x.narrow(3, 0, rotated)?.contiguous()?, &cos, &sin)?;
        with_rest(turned, x, rotated, d)
    }
}

/// `turned`, followed by the dimensions of x (…, d) from `rotated` on.
fn with_rest(turned: Tensor, x: &Tensor, rotated: usize, d: usize) -> Result<Tensor> {
    if rotated == d {
        return Ok(turned);
    }
    Ok(Tensor::cat(&[turned, x.narrow(D::Minus1, rotated, d - rotated)?], D::Minus1)?)
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
        let (width, half) = (heads * d, cos_layout.shape().dims2()?.1);
        let mut y = vec![0f32; x.len()];
        let rows = y.par_chunks_mut(width).zip(x.par_chunks(width)).enumerate().with_min_len(64);
        rows.for_each(|(row, (y, x))| {
            let at = row % t * half..(row % t + 1) * half;
            let (cos, sin) = (&cos[at.clone()], &sin[at]);
            for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                y[2 * half..].copy_from_slice(&x[2 * half..]);
                let ((y1, y2), (x1, x2)) = (y.split_at_mut(half), x.split_at(half));
                for i in 0..half {
                    y1[i] = x1[i] * cos[i] - x2[i] * sin[i];
                    y2[i] = x1[i] * sin[i] + x2[i] * cos[i];
                }
            }
        });
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    /// The same angle the other way.
    fn bwd(
        &self,
        _: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        Ok((Some(gradient.contiguous()?.apply_op3_no_bwd(cos, &sin.neg()?, &Rotate)?), None, None))
    }
}

impl Rope {
    /// [`Rope::apply`] of x (batch, t, heads, d) by operations that carry gradients.
    pub(super) fn apply_differentiable(&self, x: &Tensor) -> Result<Tensor> {
        let t = x.dim(1)?;
        let (cos, sin) = self.table(0, t, t)?;
        if x.device().is_cpu() {
            return Ok(x.contiguous()?.apply_op3(&cos, &sin, Rotate)?);
        }
        composed(x, &cos, &sin)
    }
}

/// [`Rotate`] made of operations that every device has.
fn composed(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let rotated = 2 * cos.dim(1)?;
    let turned = super::grad::rotate(&x.narrow(3, 0, rotated)?, cos, sin)?;
    with_rest(turned, x, rotated, x.dim(3)?)
}

/// θ^(−2i/d) for i < d/2, d dimensions being rotated.
fn plain(rotation: Rotation) -> Result<Vec<f64>> {
    let Rotation { theta, rotated: d, .. } = rotation;
    if !d.is_multiple_of(2) || d == 0 {
        user_bail!("head dimension {d} is odd; rotary position embedding needs pairs"; "check `head_dim` in config.json");
    }
    Ok((0..d / 2).map(|i| theta.powf(-2.0 * i as f64 / d as f64)).collect())
}

/// The frequencies scaled as the config asks, and what cosines and sines are multiplied by.
fn scaled(rotation: Rotation, mut freqs: Vec<f64>, positions: usize) -> Result<(Vec<f64>, f64)> {
    let Some(parameters) = rotation.scaling else { return Ok((freqs, 1.0)) };
    let mut times = 1.0;
    match rotation.kind {
        // Dynamic scaling begins behind the context, where no window reaches.
        None | Some("default" | "dynamic") => {}
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
        Some("yarn") => {
            let yarn = Yarn::read(parameters, positions)?;
            yarn.scale(&mut freqs, rotation.theta);
            times = yarn.times;
        }
        Some(other) => user_bail!(
            "config.json: rope scaling \"{other}\" is not supported";
            "known are default, linear, dynamic, llama3, yarn and longrope"
        ),
    }
    Ok((freqs, times))
}

/// A positive number, or `default` when it is absent or null.
fn number_or(parameters: &Value, key: &str, default: f64) -> Result<f64> {
    if parameters.get(key).is_none_or(Value::is_null) { Ok(default) } else { number(parameters, key) }
}

fn number(parameters: &Value, key: &str) -> Result<f64> {
    let value = parameters.get(key).and_then(Value::as_f64).filter(|x| x.is_finite() && *x > 0.0);
    let error = || UserError::new(format!("config.json: rope scaling has no positive `{key}`"));
    value.ok_or_else(|| error().hint("get the model's original config.json").into())
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

/// YaRN (arXiv 2309.00071): dimensions that turn often within the original context keep their frequency, those that turn
/// rarely are divided by `factor`, those between are blended; queries and keys grow a little.
struct Yarn {
    factor: f64,
    original: f64,
    /// Turns within the original context from which on a frequency is kept, and below which it is divided.
    fast: f64,
    slow: f64,
    /// Whether the dimensions between which is blended are whole numbers.
    truncate: bool,
    /// What cosines and sines are multiplied by.
    times: f64,
}

impl Yarn {
    fn read(parameters: &Value, positions: usize) -> Result<Self> {
        let factor = number(parameters, "factor")?;
        let grown = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        // Zero means absent here.
        let given = |key: &str| parameters.get(key).and_then(Value::as_f64).filter(|x| *x != 0.0);
        let times = match (given("mscale"), given("mscale_all_dim")) {
            (Some(one), Some(all)) => grown(one) / grown(all),
            _ => grown(1.0),
        };
        Ok(Self {
            factor,
            original: number_or(parameters, "original_max_position_embeddings", positions as f64)?,
            fast: number_or(parameters, "beta_fast", 32.0)?,
            slow: number_or(parameters, "beta_slow", 1.0)?,
            truncate: parameters.get("truncate").and_then(Value::as_bool).unwrap_or(true),
            times: number_or(parameters, "attention_factor", times)?,
        })
    }

    fn scale(&self, freqs: &mut [f64], base: f64) {
        let d = 2.0 * freqs.len() as f64;
        // The dimension that turns so many times within the original context.
        let dimension = |turns: f64| d * (self.original / (turns * 2.0 * PI)).ln() / (2.0 * base.ln());
        let (mut low, mut high) = (dimension(self.fast), dimension(self.slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(d - 1.0));
        if low == high {
            high += 0.001;
        }
        for (i, w) in freqs.iter_mut().enumerate() {
            let divided = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            *w = *w / self.factor * divided + *w * (1.0 - divided);
        }
    }
}

/// LongRoPE (arXiv 2402.13753): every frequency is divided by a factor of its own, by another one in sequences longer than
/// the original context; queries and keys grow a little.
struct LongRope {
    short: Vec<f64>,
    long: Vec<f64>,
    original: usize,
    times: f64,
}

impl LongRope {
    fn read(rotation: Rotation, positions: usize) -> Result<Self> {
        let none = Value::Null;
        let parameters = rotation.scaling.unwrap_or(&none);
        let factors = |key: &str| -> Result<Vec<f64>> {
            let list = parameters.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let factors: Vec<f64> =
                list.iter().filter_map(Value::as_f64).filter(|x| *x > 0.0 && x.is_finite()).collect();
            let wanted = rotation.rotated / 2;
            if factors.len() != list.len() || factors.len() != wanted {
                user_bail!(
                    "config.json: `{key}` of the rope scaling holds {} positive numbers, {wanted} are needed", factors.len();
                    "get the model's original config.json"
                );
            }
            Ok(factors)
        };
        let original = rotation.original.unwrap_or(positions);
        let grown = match rotation.original {
            Some(original) => positions as f64 / original as f64,
            None => number(parameters, "factor")?,
        };
        let times = if grown <= 1.0 { 1.0 } else { (1.0 + grown.ln() / (original as f64).ln()).sqrt() };
        Ok(Self {
            short: factors("short_factor")?,
            long: factors("long_factor")?,
            original,
            times: number_or(parameters, "attention_factor", times)?,
        })
    }

    fn rope(&self, plain: &[f64], positions: usize, device: &Device) -> Result<Rope> {
        let table = |factors: &[f64], positions| {
            let freqs: Vec<f64> = plain.iter().zip(factors).map(|(w, factor)| w / factor).collect();
            Table::new(&freqs, self.times, positions, device)
        };
        let usual = table(&self.short, positions.min(self.original))?;
        let beyond = (positions > self.original).then(|| table(&self.long, positions)).transpose()?;
        Ok(Rope { usual, beyond: beyond.map(|table| (self.original, table)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    #[test]
    fn the_rotation_and_its_gradient_are_those_of_plain_operations() {
        let wave = |len: usize, phase: f32| (0..len).map(|i| (phase + 1.7 * i as f32).sin()).collect::<Vec<_>>();
        // Six of eight dimensions are rotated.
        let x = Var::from_vec(wave(2 * 70 * 3 * 8, 0.0), (2, 70, 3, 8), &Device::Cpu).unwrap();
        let weights = Tensor::from_vec(wave(2 * 70 * 3 * 8, 1.0), (2, 70, 3, 8), &Device::Cpu).unwrap();
        let rotation = Rotation { theta: 100.0, rotated: 6, kind: None, scaling: None, original: None };
        let rope = Rope::new(rotation, 128, &Device::Cpu).unwrap();
        let (cos, sin) = rope.table(0, 70, 70).unwrap();
        let results = [rope.apply_differentiable(&x), composed(&x, &cos, &sin)].map(|y| {
            let y = y.unwrap();
            let graph = (&y * &weights).unwrap().sum_all().unwrap().backward().unwrap();
            [y.detach(), graph.get(&x).unwrap().clone()]
        });
        for (fused, plain) in results[0].iter().zip(&results[1]) {
            let apart = (fused - plain).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(apart < 1e-6, "{apart:e}");
        }
        let moved = (&results[0][0] - x.as_detached_tensor()).unwrap().abs().unwrap().max_all().unwrap();
        assert!(moved.to_scalar::<f32>().unwrap() > 0.5);
    }
}

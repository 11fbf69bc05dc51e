//! Frequencies: θ^(−2i/d) for i < d/2, d dimensions being rotated, and the ways to stretch them over longer contexts.

use super::parameters::{Llama3, LongRope, Rotation, Scaling, Yarn};
use crate::user_bail;
use anyhow::Result;
use std::f64::consts::PI;

/// How fast each pair of dimensions turns.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Frequencies {
    /// Radians per position.
    pub each: Vec<f64>,
    /// What cosines and sines are multiplied by.
    pub times: f64,
}

/// The usual frequencies, and those of sequences longer than so many positions, if these differ.
pub(super) fn frequencies(rotation: &Rotation, context: usize) -> Result<(Frequencies, Option<(usize, Frequencies)>)> {
    let plain = plain(rotation)?;
    let (usual, beyond) = match &rotation.scaling {
        // Dynamic scaling begins behind the context, where no window reaches.
        Scaling::None | Scaling::Dynamic => (Frequencies { each: plain, times: 1.0 }, None),
        Scaling::Linear { factor } => {
            (Frequencies { each: plain.iter().map(|w| w / factor).collect(), times: 1.0 }, None)
        }
        Scaling::Llama3(llama3) => {
            (Frequencies { each: plain.iter().map(|w| llama3.scale(*w)).collect(), times: 1.0 }, None)
        }
        Scaling::Yarn(yarn) => (yarn.frequencies(plain, rotation.theta, context as f64), None),
        Scaling::LongRope(long) => long.frequencies(&plain, context),
    };
    let mut all = usual.each.iter().chain(beyond.iter().flat_map(|(_, f)| &f.each));
    if !all.all(|w| w.is_finite()) || !usual.times.is_finite() {
        user_bail!(
            "config.json: rope parameters with a base of {} give frequencies that are no numbers", rotation.theta;
            "get the model's original config.json"
        );
    }
    Ok((usual, beyond))
}

fn plain(rotation: &Rotation) -> Result<Vec<f64>> {
    let Rotation { theta, rotated: d, .. } = *rotation;
    if !d.is_multiple_of(2) || d == 0 {
        user_bail!("head dimension {d} is odd; rotary position embedding needs pairs"; "check `head_dim` in config.json");
    }
    Ok((0..d / 2).map(|i| theta.powf(-2.0 * i as f64 / d as f64)).collect())
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

impl Yarn {
    fn frequencies(&self, plain: Vec<f64>, base: f64, context: f64) -> Frequencies {
        let d = 2.0 * plain.len() as f64;
        let original = self.original.unwrap_or(context);
        // The dimension that turns so many times within the original context.
        let dimension = |turns: f64| d * (original / (turns * 2.0 * PI)).ln() / (2.0 * base.ln());
        let (mut low, mut high) = (dimension(self.fast), dimension(self.slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(d - 1.0));
        if low == high {
            high += 0.001;
        }
        let stretch = |(i, w): (usize, f64)| {
            let divided = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            w / self.factor * divided + w * (1.0 - divided)
        };
        Frequencies { each: plain.into_iter().enumerate().map(stretch).collect(), times: self.times() }
    }

    fn times(&self) -> f64 {
        let grown = |scale: f64| if self.factor <= 1.0 { 1.0 } else { 0.1 * scale * self.factor.ln() + 1.0 };
        self.times.unwrap_or_else(|| match self.mscale {
            Some((one, all)) => grown(one) / grown(all),
            None => grown(1.0),
        })
    }
}

impl LongRope {
    fn frequencies(&self, plain: &[f64], context: usize) -> (Frequencies, Option<(usize, Frequencies)>) {
        let original = self.original.unwrap_or(context);
        let grown = self.factor.unwrap_or(context as f64 / original as f64);
        let growth = || if grown <= 1.0 { 1.0 } else { (1.0 + grown.ln() / (original as f64).ln()).sqrt() };
        let times = self.times.unwrap_or_else(growth);
        let divided = |factors: &[f64]| {
            let each = plain.iter().zip(factors).map(|(w, factor)| w / factor).collect();
            Frequencies { each, times }
        };
        let beyond = (context > original).then(|| (original, divided(&self.long)));
        (divided(&self.short), beyond)
    }
}

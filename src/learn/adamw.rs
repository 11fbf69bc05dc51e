//! AdamW (Loshchilov, Hutter 2019, arXiv 1711.05101), as torch.optim.AdamW computes it.
//!
//! ```text
//! θ ← θ (1 − η λ)
//! m ← β₁ m + (1 − β₁) g        v ← β₂ v + (1 − β₂) g²
//! θ ← θ − η / (1 − β₁ᵗ) · m / (√(v / (1 − β₂ᵗ)) + ε)
//! ```

use crate::checkpoint::{NamedTensor, TensorFile, Unwritten};
use anyhow::{Result, ensure};
use candle_core::{Tensor, Var};

/// The constants of all groups.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWOptions {
    /// Memory of the gradient's mean.
    pub beta1: f64,
    /// Memory of the gradient's square.
    pub beta2: f64,
    /// ε
    pub eps: f64,
}

impl Default for AdamWOptions {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8 }
    }
}

/// Parameters that share a learning rate and a weight decay.
#[derive(Debug, Clone)]
pub struct Group {
    /// η, before the schedule's factor.
    pub lr: f64,
    /// λ
    pub weight_decay: f64,
    /// The parameters, f32, by names that are unique over all groups.
    pub parameters: Vec<(String, Var)>,
}

/// The optimiser with its state.
pub struct AdamW {
    options: AdamWOptions,
    slots: Vec<Slot>,
}

struct Slot {
    name: String,
    var: Var,
    lr: f64,
    weight_decay: f64,
    /// t: steps in which this parameter had a gradient.
    steps: u64,
    m: Tensor,
    v: Tensor,
}

impl AdamW {
    /// A fresh optimiser of `groups`.
    pub fn new(groups: Vec<Group>, options: AdamWOptions) -> Result<Self> {
        let mut slots = Vec::new();
        for group in groups {
            for (name, var) in group.parameters {
                let zero = var.as_tensor().zeros_like()?.detach();
                let (lr, weight_decay) = (group.lr, group.weight_decay);
                slots.push(Slot { name, var, lr, weight_decay, steps: 0, m: zero.clone(), v: zero });
            }
        }
        Ok(Self { options, slots })
    }

    /// What is stepped, by name, in the order of the groups.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.slots.iter().map(|slot| (slot.name.as_str(), &slot.var))
    }

    /// One step. `gradients` are in the order of the groups' parameters; one that is absent leaves its parameter and
    /// its state alone. `factor` multiplies every learning rate.
    pub fn step(&mut self, gradients: &[Option<Tensor>], factor: f64) -> Result<()> {
        ensure!(
            gradients.len() == self.slots.len(),
            "{} gradients for {} parameters",
            gradients.len(),
            self.slots.len()
        );
        let AdamWOptions { beta1, beta2, eps } = self.options;
        for (slot, gradient) in self.slots.iter_mut().zip(gradients) {
            let Some(g) = gradient else { continue };
            slot.steps += 1;
            let lr = slot.lr * factor;
            slot.m = ((&slot.m * beta1)? + (g * (1.0 - beta1))?)?;
            slot.v = ((&slot.v * beta2)? + (g.sqr()? * (1.0 - beta2))?)?;
            let left = |beta: f64| 1.0 - beta.powf(slot.steps as f64);
            let spread = ((&slot.v / left(beta2))?.sqrt()? + eps)?;
            let change = ((&slot.m / spread)? * (lr / left(beta1)))?;
            let theta = (slot.var.as_detached_tensor() * (1.0 - lr * slot.weight_decay))?;
            slot.var.set(&(theta - change)?)?;
        }
        Ok(())
    }

    /// Back to the state of a fresh optimiser, with the same learning rates.
    pub fn forget(&mut self) -> Result<()> {
        for slot in &mut self.slots {
            let zero = slot.var.as_tensor().zeros_like()?.detach();
            (slot.steps, slot.m, slot.v) = (0, zero.clone(), zero);
        }
        Ok(())
    }

    /// The whole state, without the parameters themselves: `m.<name>`, `v.<name>`, `t.<name>`.
    pub fn state(&self) -> Vec<Unwritten> {
        let mut tensors = Vec::new();
        for slot in &self.slots {
            tensors.push(Unwritten::Tensor(format!("m.{}", slot.name), slot.m.clone()));
            tensors.push(Unwritten::Tensor(format!("v.{}", slot.name), slot.v.clone()));
            tensors.push(Unwritten::Bytes(NamedTensor::count(format!("t.{}", slot.name), slot.steps)));
        }
        tensors
    }

    /// Takes back what [`AdamW::state`] gave, bit for bit.
    pub fn restore(&mut self, file: &TensorFile) -> Result<()> {
        for slot in &mut self.slots {
            let read = |part: &str| file.tensor(&format!("{part}.{}", slot.name), slot.var.dims(), slot.var.device());
            (slot.m, slot.v) = (read("m")?, read("v")?);
            slot.steps = file.count(&format!("t.{}", slot.name))?;
        }
        Ok(())
    }
}

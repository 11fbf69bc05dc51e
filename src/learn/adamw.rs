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

/// Numbers of the small parameters that are stepped in one go on a device.
const JOINT: usize = 1 << 24;

/// Parameters that are stepped in one go, with their gradients: on a device small ones that lie together, have had as many
/// steps and have a gradient, so that the work is not all in beginning it.
fn runs<'s>(
    mut slots: &'s mut [Slot],
    mut gradients: &'s [Option<Tensor>],
) -> Vec<(&'s mut [Slot], &'s [Option<Tensor>])> {
    let mut runs = Vec::new();
    while let Some(first) = slots.first() {
        let (on_device, steps) = (!first.var.device().is_cpu(), first.steps);
        let mut numbers = 0;
        let fits = |(slot, gradient): &(&Slot, &Option<Tensor>)| {
            numbers += slot.var.elem_count();
            on_device && gradient.is_some() && slot.steps == steps && numbers <= JOINT
        };
        let len = slots.iter().zip(gradients).take_while(fits).count().max(1);
        let (run, rest) = slots.split_at_mut(len);
        let (of_run, of_rest) = gradients.split_at(len);
        (slots, gradients) = (rest, of_rest);
        runs.push((run, of_run));
    }
    runs
}

/// One step of parameters that have had as many steps.
fn step(slots: &mut [Slot], gradients: &[Tensor], options: AdamWOptions, factor: f64) -> Result<()> {
    let AdamWOptions { beta1, beta2, eps } = options;
    let joined = |tensors: Vec<&Tensor>| match tensors.as_slice() {
        [alone] => Ok((*alone).clone()),
        many => Tensor::cat(&many.iter().map(|x| x.flatten_all()).collect::<candle_core::Result<Vec<_>>>()?, 0),
    };
    let g = joined(gradients.iter().collect())?;
    let m = joined(slots.iter().map(|slot| &slot.m).collect())?;
    let v = joined(slots.iter().map(|slot| &slot.v).collect())?;
    let m = ((m * beta1)? + (&g * (1.0 - beta1))?)?;
    let v = ((v * beta2)? + (g.sqr()? * (1.0 - beta2))?)?;
    let steps = slots.first().map_or(0, |slot| slot.steps) + 1;
    let left = |beta: f64| 1.0 - beta.powf(steps as f64);
    let spread = ((&v / left(beta2))?.sqrt()? + eps)?;
    let change = (&m / spread)?;
    let mut start = 0;
    let alone = slots.len() == 1;
    for slot in slots {
        let len = slot.var.elem_count();
        let own = |x: &Tensor| if alone { Ok(x.clone()) } else { x.narrow(0, start, len)?.reshape(slot.var.shape()) };
        let lr = slot.lr * factor;
        let change = (own(&change)? * (lr / left(beta1)))?;
        let mut theta = slot.var.as_detached_tensor();
        if slot.weight_decay != 0.0 {
            theta = (theta * (1.0 - lr * slot.weight_decay))?;
        }
        slot.var.set(&(theta - change)?)?;
        (slot.m, slot.v) = (own(&m)?, own(&v)?);
        slot.steps = steps;
        start += len;
    }
    Ok(())
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
        for (slots, gradients) in runs(&mut self.slots, gradients) {
            let Some(gradients) = gradients.iter().cloned().collect::<Option<Vec<_>>>() else { continue };
            step(slots, &gradients, self.options, factor)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    const SHAPES: [(usize, usize); 4] = [(3, 5), (1, 7), (6, 2), (4, 4)];

    fn numbers((rows, cols): (usize, usize), phase: f32, device: &Device) -> Tensor {
        let numbers: Vec<f32> = (0..rows * cols).map(|i| (phase + 1.3 * i as f32).sin()).collect();
        Tensor::from_vec(numbers, (rows, cols), device).unwrap()
    }

    fn optimiser(device: &Device) -> AdamW {
        let group = |(i, shape): (usize, &(usize, usize))| Group {
            lr: 0.01 * (i + 1) as f64,
            weight_decay: 0.1 * (i % 2) as f64,
            parameters: vec![(i.to_string(), Var::from_tensor(&numbers(*shape, i as f32, device)).unwrap())],
        };
        AdamW::new(SHAPES.iter().enumerate().map(group).collect(), AdamWOptions::default()).unwrap()
    }

    /// One gradient in three steps is absent.
    fn gradients(at: usize, device: &Device) -> Vec<Option<Tensor>> {
        let gradient = |(i, shape): (usize, &(usize, usize))| {
            (i != 2 || at != 1).then(|| numbers(*shape, (10 * at + i) as f32, device))
        };
        SHAPES.iter().enumerate().map(gradient).collect()
    }

    fn all(optimiser: &AdamW) -> Vec<f32> {
        let tensors = optimiser.slots.iter().flat_map(|slot| [slot.var.as_tensor(), &slot.m, &slot.v]);
        tensors.flat_map(|x| x.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
    }

    #[test]
    fn parameters_stepped_together_are_those_stepped_alone() {
        let (mut alone, mut together) = (optimiser(&Device::Cpu), optimiser(&Device::Cpu));
        for at in 0..3 {
            let gradients = gradients(if at == 1 { 2 } else { at }, &Device::Cpu);
            alone.step(&gradients, 0.7).unwrap();
            let gradients: Vec<Tensor> = gradients.into_iter().flatten().collect();
            step(&mut together.slots, &gradients, together.options, 0.7).unwrap();
            assert_eq!(all(&alone), all(&together));
        }
    }

    #[test]
    fn a_device_steps_as_the_processor() {
        let mut here = optimiser(&Device::Cpu);
        let devices =
            crate::device::Choice::Cuda(0).open(|_| ()).inspect_err(|why| eprintln!("skipped on a GPU: {why}"));
        let mut there: Vec<(Device, AdamW)> = devices.into_iter().map(|gpu| (gpu.clone(), optimiser(&gpu))).collect();
        for at in 0..3 {
            here.step(&gradients(at, &Device::Cpu), 0.7).unwrap();
            assert_eq!(here.slots[2].steps, if at == 0 { 1 } else { at as u64 });
            for (device, there) in &mut there {
                there.step(&gradients(at, device), 0.7).unwrap();
                assert!(all(&here).iter().zip(all(there)).all(|(x, y)| (x - y).abs() < 1e-6));
            }
        }
    }
}

//! A student whose linears are sums of gated components, W' = B diag(g) A: what [`learn_spectra`] trains.
//!
//! [`learn_spectra`]: super::learn_spectra

use super::adamw::{AdamW, AdamWOptions, Group};
use super::backward::{Gradients, Student};
use super::course::{Course, Lesson, root_mean_square};
use crate::checkpoint::{NamedTensor, TensorFile};
use crate::method::{Controlled, Phase, Spectral, SpectralSettings};
use crate::model::{Block, Linear, LinearSpec, Role};
use crate::plan::{Choice, Plan};
use anyhow::{Context, Result};
use candle_core::{Tensor, Var};

/// Names of what is trained, behind that of the linear.
const CONTROL: &str = "control";
const DEVIATION: &str = "deviation";

/// The components of one linear: W = B A.
pub struct Components {
    /// B, (m, k)
    pub b: Tensor,
    /// A, (k, n)
    pub a: Tensor,
    /// Size of each component, (k), in the recipe's unit.
    pub sigma: Vec<f64>,
}

/// Learning rates of what a spectrum has to train.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SpectralRates {
    /// Of the controls.
    pub control: f64,
    /// Of B, A and ρ, relative to their size.
    pub basis: f64,
    /// Of the deviation.
    pub deviation: f64,
}

/// One linear in training.
pub(super) struct Gated {
    pub(super) spec: LinearSpec,
    /// σ at the start, (k).
    sigma: Tensor,
    b: Tensor,
    a: Tensor,
    rho: Tensor,
    control: Tensor,
    deviation: Option<Tensor>,
    /// What is trained of these, with its learning rate. The control is the first.
    trained: Vec<(String, Var, f64)>,
}

/// What is left of a linear: the components `kept`, with a gate for each.
pub(super) struct Cut {
    pub(super) kept: Vec<usize>,
    pub(super) gates: Vec<f64>,
}

/// The student beside the original.
pub(super) struct Spectrum<'a> {
    method: &'a dyn Spectral,
    settings: &'a SpectralSettings,
    lesson: Lesson<'a>,
    pub(super) course: Course<'a>,
    pub(super) blocks: Vec<Vec<Gated>>,
    pub(super) phase: Phase,
    /// 1 for the components that are still there, (k) for every linear of every block; everything without it.
    mask: Option<Vec<Vec<Tensor>>>,
}

impl<'a> Spectrum<'a> {
    /// Takes the components that `basis` gives for the linears of each block, in their order.
    pub(super) fn new(
        method: &'a dyn Spectral,
        settings: &'a SpectralSettings,
        rates: SpectralRates,
        lesson: Lesson<'a>,
        basis: &dyn Fn(usize) -> Result<Vec<Components>>,
    ) -> Result<Self> {
        let trains = method.trains(settings);
        let model = lesson.model;
        let gated = |(spec, parts): (&LinearSpec, Components)| -> Result<Gated> {
            let device = model.device();
            let k = parts.sigma.len();
            let sigma: Vec<f32> = parts.sigma.iter().map(|&sigma| sigma as f32).collect();
            let mut trained = Vec::new();
            let mut train = |on: bool, name: &str, tensor: Tensor, rate: f64| -> Result<Tensor> {
                if !on {
                    return Ok(tensor);
                }
                let var = Var::from_tensor(&tensor)?;
                let tensor = var.as_tensor().clone();
                trained.push((format!("{}.{name}", spec.id), var, rate));
                Ok(tensor)
            };
            let start = method.start(k);
            let length = start.len();
            let control = train(true, CONTROL, Tensor::from_vec(start, length, device)?, rates.control)?;
            let one = Tensor::ones(k, candle_core::DType::F32, device)?;
            let rho = train(trains.spectrum, "rho", one, rates.basis)?;
            let rate = |tensor: &Tensor| Ok::<_, anyhow::Error>(rates.basis * root_mean_square(tensor)?);
            let (rate_b, rate_a) = (rate(&parts.b)?, rate(&parts.a)?);
            let b = train(trains.basis, "b", parts.b, rate_b)?;
            let a = train(trains.basis, "a", parts.a, rate_a)?;
            let deviation = if trains.deviation {
                let zero = Tensor::zeros(spec.out, candle_core::DType::F32, device)?;
                Some(train(true, DEVIATION, zero, rates.deviation)?)
            } else {
                None
            };
            Ok(Gated {
                spec: spec.clone(),
                sigma: Tensor::from_vec(sigma, k, device)?,
                b,
                a,
                rho,
                control,
                deviation,
                trained,
            })
        };
        let mut blocks = Vec::new();
        for index in 0..model.blocks() {
            let parts = basis(index)?;
            blocks.push(model.block_linears(index).zip(parts).map(gated).collect::<Result<Vec<_>>>()?);
        }
        let course = Course::new(lesson)?;
        Ok(Self { method, settings, lesson, course, blocks, phase: Phase::Explore, mask: None })
    }

    /// Every linear, in model order.
    pub(super) fn linears(&self) -> impl Iterator<Item = &Gated> {
        self.blocks.iter().flatten()
    }

    /// What is trained, in the order of [`Gradients::all`].
    fn trained(&self) -> impl Iterator<Item = &(String, Var, f64)> {
        self.linears().flat_map(|linear| &linear.trained)
    }

    /// A fresh optimiser of everything that is trained. Nothing decays: that would change ranks by itself.
    pub(super) fn optimiser(&self) -> Result<AdamW> {
        let group = |(name, var, lr): &(String, Var, f64)| Group {
            lr: *lr,
            weight_decay: 0.0,
            parameters: vec![(name.clone(), var.clone())],
        };
        AdamW::new(self.trained().map(group).collect(), AdamWOptions { beta2: 0.99, ..AdamWOptions::default() })
    }

    /// Every linear as the pressure sees it.
    pub(super) fn controlled(&self) -> Result<Vec<Controlled>> {
        let total: usize = self.linears().map(|linear| linear.spec.params()).sum();
        self.linears()
            .map(|linear| {
                Ok(Controlled {
                    unit: (linear.spec.out + linear.spec.input) as f64 / total as f64,
                    whole: linear.spec.params() as f64 / total as f64,
                    sigma: doubles(&(&linear.sigma * &linear.rho)?)?,
                    control: doubles(&linear.control)?,
                })
            })
            .collect()
    }

    /// Adds the pressure's gradients on the controls.
    pub(super) fn add_pressure(&self, gradients: &mut Gradients, pressure: Vec<Vec<f64>>) -> Result<()> {
        let mut pressure = pressure.into_iter();
        for (index, block) in self.blocks.iter().enumerate() {
            let mut slot = 0;
            for linear in block {
                let part = pressure.next().context("a linear without pressure")?;
                let part: Vec<f32> = part.iter().map(|&x| x as f32).collect();
                gradients.add(index, slot, Tensor::from_vec(part, linear.control.dims(), linear.control.device())?)?;
                slot += linear.trained.len();
            }
        }
        Ok(())
    }

    /// What `plan` leaves of every linear: the components that are `worth` most. Of a dense one all are left.
    pub(super) fn kept(&self, worth: &[Vec<f64>], plan: &Plan) -> Vec<Vec<usize>> {
        let keep = |(linear, worth): (&Gated, &Vec<f64>)| {
            let mut kept: Vec<usize> = (0..worth.len()).collect();
            if let Some(Choice::Rank(rank)) = plan.choice(linear.spec.id) {
                kept.sort_by(|&i, &j| worth[j].total_cmp(&worth[i]));
                kept.truncate(rank);
                kept.sort_unstable();
            }
            kept
        };
        self.linears().zip(worth).map(keep).collect()
    }

    /// Mean held-out loss of the components in `kept`, a list for each linear.
    pub(super) fn heldout_loss(&self, kept: &[Vec<usize>]) -> Result<f64> {
        let cuts = self.cuts(kept)?;
        let starts: Vec<usize> =
            self.blocks.iter().scan(0, |at, block| Some(std::mem::replace(at, *at + block.len()))).collect();
        self.course.judge(&|index| {
            let mut block = self.course.original(index)?;
            for (linear, cut) in self.blocks[index].iter().zip(&cuts[starts[index]..]) {
                let (b, a) = linear.factors(cut)?;
                linear.install(&mut block, b.matmul(&a)?)?;
            }
            // Whether it is finite is seen in the loss.
            block.leave_unchecked();
            Ok(block)
        })
    }

    /// From here on only the components in `kept`, a list for each linear, are there.
    pub(super) fn freeze(&mut self, kept: &[Vec<usize>]) -> Result<()> {
        let mut kept = kept.iter();
        let mut mask = Vec::new();
        for block in &self.blocks {
            let mut of_block = Vec::new();
            for linear in block {
                let mut ones = vec![0f32; linear.sigma.elem_count()];
                kept.next().context("a linear without a list of components")?.iter().for_each(|&i| ones[i] = 1.0);
                of_block.push(Tensor::from_vec(ones, linear.sigma.dims(), linear.sigma.device())?);
            }
            mask.push(of_block);
        }
        self.mask = Some(mask);
        Ok(())
    }

    /// Puts controls and deviations back to where training began with them.
    pub(super) fn begin_anew(&self) -> Result<()> {
        for linear in self.linears() {
            let start = self.method.start(linear.sigma.elem_count());
            for (name, var, _) in &linear.trained {
                if name.ends_with(CONTROL) {
                    var.set(&Tensor::from_slice(&start, var.dims(), var.device())?)?;
                } else if name.ends_with(DEVIATION) {
                    var.set(&var.zeros_like()?)?;
                }
            }
        }
        Ok(())
    }

    /// What is left of every linear when no components but those in `kept` stay.
    pub(super) fn cuts(&self, kept: &[Vec<usize>]) -> Result<Vec<Cut>> {
        let controlled = self.controlled()?;
        let gate = |((linear, controlled), kept): ((&Gated, &Controlled), &Vec<usize>)| {
            let gates = self.method.final_gates(self.settings, controlled, &doubles(&linear.rho)?, kept);
            Ok(Cut { kept: kept.clone(), gates })
        };
        self.linears().zip(&controlled).zip(kept).map(gate).collect()
    }

    fn student_block(&self, index: usize) -> Result<Block<'a>> {
        let mut block = self.course.original(index)?;
        for (place, linear) in self.blocks[index].iter().enumerate() {
            let mut gates =
                self.method.gates(self.settings, self.phase, &linear.sigma, &linear.rho, &linear.control)?;
            if let Some(mask) = &self.mask {
                gates = (gates * &mask[index][place])?;
            }
            let gates = gates.reshape((1, gates.elem_count()))?;
            linear.install(&mut block, linear.b.broadcast_mul(&gates)?.matmul(&linear.a)?)?;
        }
        block.set_differentiable(true);
        Ok(block)
    }

    /// A copy of everything that is trained, as it is now.
    pub(super) fn snapshot(&self) -> Result<Vec<Tensor>> {
        self.trained().map(|(_, var, _)| Ok(var.as_tensor().copy()?.detach())).collect()
    }

    /// Goes back to a snapshot.
    pub(super) fn restore(&self, snapshot: &[Tensor]) -> Result<()> {
        self.trained().zip(snapshot).try_for_each(|((_, var, _), tensor)| Ok(var.set(tensor)?))
    }

    /// What is trained under `now.`, and the snapshot under `best.`.
    pub(super) fn state(&self, best: &[Tensor]) -> Result<Vec<NamedTensor>> {
        let mut tensors = Vec::new();
        for ((name, var, _), best) in self.trained().zip(best) {
            tensors.push(NamedTensor::of(format!("now.{name}"), var)?);
            tensors.push(NamedTensor::of(format!("best.{name}"), best)?);
        }
        Ok(tensors)
    }

    /// Takes back what [`Spectrum::state`] gave; returns the snapshot.
    pub(super) fn resume(&self, file: &TensorFile) -> Result<Vec<Tensor>> {
        let mut best = Vec::new();
        for (name, var, _) in self.trained() {
            let read = |kind: &str| file.tensor(&format!("{kind}.{name}"), var.dims(), var.device());
            var.set(&read("now")?)?;
            best.push(read("best")?);
        }
        Ok(best)
    }

    /// Number of trained numbers.
    pub(super) fn size(&self) -> usize {
        self.trained().map(|(_, var, _)| var.elem_count()).sum()
    }

    /// Tokens to judge by.
    pub(super) fn heldout_tokens(&self) -> usize {
        self.lesson.heldout_tokens()
    }
}

impl Gated {
    /// Puts W' into the block; the deviation joins the bias.
    fn install(&self, block: &mut Block, weight: Tensor) -> Result<()> {
        let role: Role = self.spec.id.role;
        let bias = block.linear(role).and_then(|linear| linear.bias().cloned());
        let bias = match (bias, &self.deviation) {
            (Some(bias), Some(deviation)) => Some((bias + deviation)?),
            (None, Some(deviation)) => Some(deviation.clone()),
            (bias, None) => bias,
        };
        block.swap_linear(role, Linear::Dense { weight, bias })?;
        Ok(())
    }

    /// B (m, r) and A (r, n) of what `cut` leaves. The gates and the size of each component go to both sides in equal
    /// parts, so that they keep their digits in half precision and train at one pace.
    pub(super) fn factors(&self, cut: &Cut) -> Result<(Tensor, Tensor)> {
        let device = self.b.device();
        let index: Vec<u32> = cut.kept.iter().map(|&i| i as u32).collect();
        let index = Tensor::from_vec(index, cut.kept.len(), device)?;
        let b = self.b.detach().index_select(&index, 1)?;
        let a = self.a.detach().index_select(&index, 0)?;
        let lengths = |squares: Tensor| -> Result<Vec<f64>> { doubles(&squares.sqrt()?) };
        let (b_length, a_length) = (lengths(b.sqr()?.sum(0)?)?, lengths(a.sqr()?.sum(1)?)?);
        let mut scales = (Vec::new(), Vec::new());
        for ((gate, b), a) in cut.gates.iter().zip(&b_length).zip(&a_length) {
            let balance = if *a > 0.0 && *b > 0.0 { (a / b).sqrt() } else { 1.0 };
            let root = gate.abs().sqrt();
            scales.0.push((root * balance) as f32);
            scales.1.push((root / balance * gate.signum()) as f32);
        }
        let rank = cut.kept.len();
        let b = b.broadcast_mul(&Tensor::from_vec(scales.0, (1, rank), device)?)?;
        let a = a.broadcast_mul(&Tensor::from_vec(scales.1, (rank, 1), device)?)?;
        Ok((b, a))
    }

    /// d, (m).
    pub(super) fn deviation(&self) -> Option<Tensor> {
        self.deviation.as_ref().map(Tensor::detach)
    }
}

impl Student for Spectrum<'_> {
    fn blocks(&self) -> usize {
        self.blocks.len()
    }

    fn block(&self, index: usize) -> Result<Block<'_>> {
        self.student_block(index)
    }

    fn parameters(&self, index: usize) -> Vec<Var> {
        self.blocks[index].iter().flat_map(|linear| &linear.trained).map(|(_, var, _)| var.clone()).collect()
    }
}

fn doubles(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor.to_vec1::<f32>()?.into_iter().map(f64::from).collect())
}

#[cfg(test)]
mod tests;

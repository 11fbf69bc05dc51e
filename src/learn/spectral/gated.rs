//! A student whose linears are sums of gated components, W' = B diag(g) A.

use super::SpectralJob;
use crate::backward::{BlockStack, Gradients};
use crate::learn::adamw::{AdamW, AdamWOptions, Group};
use crate::learn::distillation::DistillationLoss;
use crate::learn::root_mean_square;
use crate::linalg::Mat;
use crate::method::{Controlled, Phase};
use crate::model::{Block, Linear, LinearSpec, Role};
use crate::plan::{Choice, Plan};
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Tensor, Var};

/// Names of what is trained, behind that of the linear.
const CONTROL: &str = "control";
const DEVIATION: &str = "deviation";

/// One linear in training.
pub(super) struct GatedLinear {
    pub(super) spec: LinearSpec,
    /// σ at the start, (k), in the recipe's unit.
    sigma: Tensor,
    b: Tensor,
    a: Tensor,
    rho: Tensor,
    control: Tensor,
    deviation: Option<Tensor>,
    /// 1 for the components that are still there, (k); all are without it.
    mask: Option<Tensor>,
    /// What is trained of these, with its learning rate. The control is the first.
    trained: Vec<(String, Var, f64)>,
}

/// What is left of a linear: the components `kept`, with a gate for each.
pub(super) struct Cut {
    pub(super) kept: Vec<usize>,
    pub(super) gates: Vec<f64>,
}

/// The student.
pub(super) struct GatedModel<'a> {
    job: &'a SpectralJob<'a>,
    /// Its loss beside the original.
    pub(super) loss: DistillationLoss<'a>,
    blocks: Vec<Vec<GatedLinear>>,
    pub(super) phase: Phase,
}

impl<'a> GatedModel<'a> {
    /// Takes the components of every linear.
    pub(super) fn new(job: &'a SpectralJob<'a>) -> Result<Self> {
        let model = job.distillation.model;
        let (count, known) = (model.linears().len(), job.units.len());
        ensure!(count == known, "{known} units for {count} linears");
        let mut units = job.units.iter();
        let mut blocks = Vec::new();
        for index in 0..model.blocks() {
            let linears = model.block_linears(index).zip(&mut units);
            blocks.push(linears.map(|(spec, unit)| GatedLinear::new(job, spec, *unit)).collect::<Result<_>>()?);
        }
        let loss = DistillationLoss::new(job.distillation)?;
        Ok(Self { job, loss, blocks, phase: Phase::Explore })
    }

    /// Every linear, in model order.
    pub(super) fn linears(&self) -> impl Iterator<Item = &GatedLinear> {
        self.blocks.iter().flatten()
    }

    /// What is trained, in the order of [`Gradients::all`].
    pub(super) fn trained(&self) -> impl Iterator<Item = &(String, Var, f64)> {
        self.linears().flat_map(|linear| &linear.trained)
    }

    /// The same without learning rates.
    pub(super) fn parameters(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.trained().map(|(name, var, _)| (name.as_str(), var))
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
        let sigmas =
            self.linears().map(|linear| &linear.sigma * &linear.rho).collect::<candle_core::Result<Vec<_>>>()?;
        let controls: Vec<Tensor> = self.linears().map(|linear| linear.control.clone()).collect();
        let (sigmas, controls) = (all_doubles(&sigmas)?, all_doubles(&controls)?);
        let controlled = |((linear, sigma), control): ((&GatedLinear, _), _)| Controlled {
            unit: (linear.spec.out + linear.spec.input) as f64 / total as f64,
            whole: linear.spec.params() as f64 / total as f64,
            sigma,
            control,
        };
        Ok(self.linears().zip(sigmas).zip(controls).map(controlled).collect())
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
        let keep = |(linear, worth): (&GatedLinear, &Vec<f64>)| {
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
        self.loss.heldout_loss(&|index| {
            let mut block = self.loss.original(index)?;
            for (linear, cut) in self.linears().zip(&cuts).filter(|(linear, _)| linear.spec.id.block == index) {
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
        for (linear, kept) in self.blocks.iter_mut().flatten().zip(kept) {
            let mut ones = vec![0f32; linear.sigma.elem_count()];
            kept.iter().for_each(|&i| ones[i] = 1.0);
            linear.mask = Some(Tensor::from_vec(ones, linear.sigma.dims(), linear.sigma.device())?);
        }
        Ok(())
    }

    /// Puts controls and deviations back to where training began with them.
    pub(super) fn begin_anew(&self) -> Result<()> {
        for linear in self.linears() {
            let start = self.job.method.start(linear.sigma.elem_count());
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
        let rho = all_doubles(&self.linears().map(|linear| linear.rho.clone()).collect::<Vec<_>>())?;
        let gate = |((rho, controlled), kept): ((&Vec<f64>, &Controlled), &Vec<usize>)| Cut {
            kept: kept.clone(),
            gates: self.job.method.final_gates(self.job.settings, controlled, rho, kept),
        };
        Ok(rho.iter().zip(&controlled).zip(kept).map(gate).collect())
    }

    fn student_block(&self, index: usize) -> Result<Block<'a>> {
        let mut block = self.loss.original(index)?;
        for linear in &self.blocks[index] {
            let mut gates =
                self.job.method.gates(self.job.settings, self.phase, &linear.sigma, &linear.rho, &linear.control)?;
            if let Some(mask) = &linear.mask {
                gates = (gates * mask)?;
            }
            let gates = gates.reshape((1, gates.elem_count()))?;
            linear.install(&mut block, linear.b.broadcast_mul(&gates)?.matmul(&linear.a)?)?;
        }
        Ok(block)
    }

    /// Number of trained numbers.
    pub(super) fn size(&self) -> usize {
        self.trained().map(|(_, var, _)| var.elem_count()).sum()
    }
}

impl GatedLinear {
    /// Components as they are, with gates that are open; sizes are divided by `unit`.
    fn new(job: &SpectralJob, spec: &LinearSpec, unit: f64) -> Result<Self> {
        let (trains, rates, device) =
            (job.method.trains(job.settings), job.options.rates, job.distillation.model.device());
        let parts = (job.basis)(spec)?;
        let tensor = |m: &Mat| Tensor::from_vec(m.to_f32_rows(), (m.rows(), m.cols()), device);
        let (b, a, k) = (tensor(&parts.b)?, tensor(&parts.a)?, parts.energy.len());
        let sigma: Vec<f32> = parts.energy.iter().map(|energy| (energy.sqrt() / unit) as f32).collect();
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
        let start = job.method.start(k);
        let length = start.len();
        let control = train(true, CONTROL, Tensor::from_vec(start, length, device)?, rates.control)?;
        let rho = train(trains.spectrum, "rho", Tensor::ones(k, DType::F32, device)?, rates.basis)?;
        let (rate_b, rate_a) = (rates.basis * root_mean_square(&b)?, rates.basis * root_mean_square(&a)?);
        let b = train(trains.basis, "b", b, rate_b)?;
        let a = train(trains.basis, "a", a, rate_a)?;
        let deviation = match trains.deviation {
            true => Some(train(true, DEVIATION, Tensor::zeros(spec.out, DType::F32, device)?, rates.deviation)?),
            false => None,
        };
        let sigma = Tensor::from_vec(sigma, k, device)?;
        Ok(Self { spec: spec.clone(), sigma, b, a, rho, control, deviation, mask: None, trained })
    }

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

impl BlockStack for GatedModel<'_> {
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

/// The numbers of vectors. A device is waited for once.
fn all_doubles(vectors: &[Tensor]) -> Result<Vec<Vec<f64>>> {
    if vectors.is_empty() {
        return Ok(Vec::new());
    }
    let all = doubles(&Tensor::cat(vectors, 0)?)?;
    let mut rest = all.as_slice();
    let mut next = |vector: &Tensor| {
        let (numbers, after) = rest.split_at(vector.elem_count());
        rest = after;
        numbers.to_vec()
    };
    Ok(vectors.iter().map(&mut next).collect())
}

fn doubles(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor.to_vec1::<f32>()?.into_iter().map(f64::from).collect())
}

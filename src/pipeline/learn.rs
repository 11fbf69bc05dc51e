//! The learned methods: components of every linear, a training run that finds out which of them matter, finished blocks.

use super::block::FinishedBlock;
use super::factorise::{cut_report, dense_report, weight};
use super::heal::matrix;
use super::{Run, allocate, stored};
use crate::calibrate::{BlockStats, States, collect};
use crate::checkpoint::{NamedTensor, TensorFile};
use crate::learn::{
    Components, Learned, LearnedLinear, SpectralJob, SpectralOptions, SpectralRates, SpectralReport, learn_spectra,
};
use crate::linalg::Mat;
use crate::machine::StageClock;
use crate::method::{Decomposition, Method, Spectral, Unit, heldout_curve, of_basis};
use crate::model::{Block, Linear, LinearSpec};
use crate::plan::{AllocationRule, Choice, Plan};
use crate::recipe::{Learn, Recipe};
use crate::report::{LearnedSpectrum, LinearReport};
use anyhow::{Context, Result};
use candle_core::Tensor;
use safetensors::Dtype;

impl Run<'_> {
    /// Learns what to keep and stores the finished blocks.
    pub(super) fn learn(
        &self,
        learned: &dyn Spectral,
        options: &Learn,
        clock: &mut StageClock,
    ) -> Result<(Plan, SpectralReport)> {
        clock.stage("decomposing", self.model.blocks() as u64);
        self.decompose(of_basis(options.settings.basis))?;
        let units = self.units(options.settings.unit, clock)?;
        clock.stage("learning", options.steps as u64);
        let state = self.job.learning_file();
        let job = SpectralJob {
            lesson: self.lesson(options.batch),
            method: learned,
            settings: &options.settings,
            basis: &|index| {
                let first = self.model.linears().iter().position(|spec| spec.id.block == index).unwrap_or(0);
                let mut components = self.components(index)?;
                for (parts, unit) in components.iter_mut().zip(&units[first..]) {
                    parts.sigma.iter_mut().for_each(|sigma| *sigma /= unit);
                }
                Ok(components)
            },
            plan: &|worth| allocate::by_worth(self.recipe, self.method, &self.model, worth),
            even: &|| {
                let even = Recipe { allocation: AllocationRule::Even, ..self.recipe.clone() };
                allocate::by_shape(&even, self.method, &self.model)
            },
            keep: allocate::keep_fraction(self.recipe, &self.model)?,
            state: &state,
            options: SpectralOptions {
                steps: options.steps,
                rates: SpectralRates { control: options.lr, basis: options.basis_lr, deviation: options.deviation_lr },
                explore: options.explore,
                refine: options.refine,
                seconds: self.recipe.max_seconds,
            },
        };
        crate::machine::keep_memory();
        let result = learn_spectra(&job, self.progress).context("learning")?;
        crate::machine::return_memory_early();
        if let Some(why) = &result.report.stopped {
            self.progress.note(&format!("learning ended after {} steps: {why}", result.report.done));
        }
        clock.stage("folding", self.model.blocks() as u64);
        self.fold(&result)?;
        Ok((result.plan, result.report))
    }

    /// Decomposes every linear of the dense model into all its components.
    fn decompose(&self, method: &dyn Method) -> Result<()> {
        self.each_dense_block(&|index| self.job.basis_file(index), &|block, spec, stats| {
            decompose_linear(method, block, spec, stats)
        })
    }

    /// The components of the linears of block `index`, in their order.
    fn components(&self, index: usize) -> Result<Vec<Components>> {
        let file = TensorFile::open_unfinished(&self.job.basis_file(index))?;
        let read = |spec: &LinearSpec| -> Result<Components> {
            let tensor = |part: &str| -> Result<Tensor> {
                let name = key(spec, part);
                let info = file.info(&name).with_context(|| format!("{} has no {name}", file.name()))?;
                let bytes = file.bytes(&name)?.as_chunks::<4>().0;
                let values: Vec<f32> = bytes.iter().map(|b| f32::from_le_bytes(*b)).collect();
                Ok(Tensor::from_vec(values, info.shape.as_slice(), self.model.device())?)
            };
            let sigma = file.bytes(&key(spec, "sigma"))?.as_chunks::<8>().0;
            let sigma = sigma.iter().map(|b| f64::from_le_bytes(*b)).collect();
            Ok(Components { b: tensor("b")?, a: tensor("a")?, sigma })
        };
        self.model.block_linears(index).map(read).collect()
    }

    /// What the sizes of each linear's components are divided by, in model order.
    fn units(&self, unit: Unit, clock: &mut StageClock) -> Result<Vec<f64>> {
        if unit == Unit::Raw {
            return Ok(vec![1.0; self.model.linears().len()]);
        }
        let mut sizes = Vec::new();
        for index in 0..self.model.blocks() {
            sizes.extend(self.components(index)?.into_iter().map(|parts| parts.sigma));
        }
        if unit == Unit::Median {
            return Ok(sizes.iter().map(|sizes| median(sizes.clone())).collect());
        }
        let energies: Vec<Vec<f64>> = sizes.iter().map(|sizes| sizes.iter().map(|x| x * x).collect()).collect();
        let weights = self.kl_weights(&energies, &|spec, rank| self.first_components(spec, rank), clock)?;
        let specs = self.model.linears().iter();
        // Where nothing was lost by cutting, nothing is worth keeping.
        let scale = |(spec, weight): (&LinearSpec, &f64)| (weight.max(1e-30) / (spec.out + spec.input) as f64).sqrt();
        let scales: Vec<f64> = specs.zip(&weights).map(scale).collect();
        let scaled = sizes.iter().zip(&scales).flat_map(|(sizes, scale)| sizes.iter().map(move |size| size * scale));
        let middle = median(scaled.collect());
        Ok(scales.iter().map(|scale| middle / scale).collect())
    }

    /// One linear cut to its first `rank` components.
    fn first_components(&self, spec: &LinearSpec, rank: usize) -> Result<Linear> {
        let place = self.model.block_linears(spec.id.block).position(|other| other.id == spec.id);
        let parts = self.components(spec.id.block)?.into_iter().nth(place.context("a linear of its block")?);
        let parts = parts.context("a linear without components")?;
        let rank = rank.min(parts.sigma.len());
        let (a, b) = (parts.a.narrow(0, 0, rank)?, parts.b.narrow(1, 0, rank)?.contiguous()?);
        Ok(Linear::LowRank { a, b, bias: self.model.bias(spec)? })
    }

    /// Stores what training has left of every block.
    fn fold(&self, result: &Learned) -> Result<()> {
        let mut heldout = States::embed(&self.model, &self.calibration.heldout.ids())?;
        let nothing = States::embed::<Vec<u32>>(&self.model, &[])?;
        for index in 0..self.model.blocks() {
            let block = self.model.block(index)?;
            if !self.job.block_file(index).exists() {
                let stats = collect(&block, &nothing, &heldout, &self.model.block_sites(index))?;
                self.fold_block(index, &block, &stats, result).with_context(|| format!("storing block {index}"))?;
            }
            heldout.advance(&block)?;
            self.progress.step(1)?;
        }
        Ok(())
    }

    fn fold_block(&self, index: usize, block: &Block, stats: &BlockStats, result: &Learned) -> Result<()> {
        let mut done = FinishedBlock::default();
        for linear in result.linears.iter().filter(|linear| linear.spec.id.block == index) {
            let choice = result.plan.choice(linear.spec.id).context("a linear without a plan")?;
            let (tensors, report) = self.fold_linear(block, stats, linear, choice)?;
            done.tensors.extend(tensors);
            done.linears.push(report);
            if let Some(deviation) = &linear.deviation {
                let (deviation, dtype) = (deviation.to_vec1::<f32>()?, self.factor_dtype(&linear.spec)?);
                done.tensors.push(stored::bias(&self.model, &linear.spec, &deviation, dtype)?);
            }
        }
        done.split_fused(&self.model, index)?;
        done.save(&self.job.block_file(index))
    }

    fn fold_linear(
        &self,
        block: &Block,
        stats: &BlockStats,
        linear: &LearnedLinear,
        choice: Choice,
    ) -> Result<(Vec<NamedTensor>, LinearReport)> {
        let spec = &linear.spec;
        let dtype = self.factor_dtype(spec)?;
        let (b, a) = (matrix(&linear.b)?, matrix(&linear.a)?);
        let tensors = match choice {
            Choice::Rank(rank) => stored::factors(spec, &b, &a, rank, dtype)?,
            _ => vec![stored::dense(spec, &b.matmul(&a), dtype)?],
        };
        let w = weight(block, spec)?;
        let rank = a.rows();
        // No held-out token may have been routed to an expert.
        let x = stats.get(&spec.site).map_or(&[][..], |stats| &stats.heldout);
        let parts = Decomposition { b, a, energy: vec![0.0; rank], note: None };
        let error = heldout_curve(&w, &parts, x, rank).relative(rank);
        let mut report = match choice {
            Choice::Rank(rank) => cut_report(spec, &[], rank, error, None),
            _ => LinearReport { heldout_error: error, ..dense_report(spec) },
        };
        let kept = |i: usize| linear.gates[i] != 0.0;
        let energies = || linear.sigma.iter().map(|sigma| sigma * sigma).enumerate();
        let total: f64 = energies().map(|(_, energy)| energy).sum();
        let left: f64 = energies().filter(|(i, _)| kept(*i)).map(|(_, energy)| energy).sum();
        report.energy_kept = (total > 0.0).then(|| left / total);
        if linear.deviation.is_some() && !spec.bias {
            report.params_after += spec.out as u64;
        }
        report.learned = Some(LearnedSpectrum::new(&linear.sigma, &linear.gates, &linear.worth));
        Ok((tensors, report))
    }
}

/// The median of the positive values; 1 if there are none.
fn median(mut values: Vec<f64>) -> f64 {
    values.retain(|x| *x > 0.0);
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(1.0)
}

fn key(spec: &LinearSpec, part: &str) -> String {
    format!("{}.{part}", spec.id.role)
}

fn decompose_linear(
    method: &dyn Method,
    block: &Block,
    spec: &LinearSpec,
    stats: &BlockStats,
) -> Result<Vec<NamedTensor>> {
    let w = weight(block, spec)?;
    let stats = stats.get(&spec.site).with_context(|| format!("no statistics for {}", spec.id))?;
    let parts = method.decompose(&w, Some(stats)).with_context(|| spec.id.to_string())?;
    let f32s = |m: &Mat| m.to_f32_rows().iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let sigma = parts.energy.iter().flat_map(|energy| energy.sqrt().to_le_bytes()).collect();
    Ok(vec![
        (key(spec, "b"), Dtype::F32, vec![parts.b.rows(), parts.b.cols()], f32s(&parts.b)),
        (key(spec, "a"), Dtype::F32, vec![parts.a.rows(), parts.a.cols()], f32s(&parts.a)),
        (key(spec, "sigma"), Dtype::F64, vec![parts.energy.len()], sigma),
    ])
}

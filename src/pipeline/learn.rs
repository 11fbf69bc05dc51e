//! The learned methods: components of every linear, a training run that finds out which of them matter, finished blocks.

use super::block::FinishedBlock;
use super::cut::{choice, cut_report, dense_report};
use super::decompose::{heldout_inputs, weight};
use super::decompositions::Decompositions;
use super::heal::matrix;
use super::{Run, allocate, stored};
use crate::calibrate::BlockStats;
use crate::checkpoint::{Dtype, NamedTensor};
use crate::forward::each_block;
use crate::learn::{
    Learned, LearnedLinear, SpectralJob, SpectralOptions, SpectralRates, SpectralReport, learn_spectra,
};
use crate::linalg::solving_with;
use crate::machine::StageClock;
use crate::method::{Decomposition, Needs, Spectral, Unit, heldout_curve, of_basis};
use crate::model::{Block, LinearSpec};
use crate::plan::{AllocationRule, Choice, Plan};
use crate::recipe::{Learn, Recipe};
use crate::report::{LearnedSpectrum, LinearReport};
use anyhow::{Context, Result};

impl Run<'_> {
    /// Learns what to keep and stores the finished blocks.
    pub(super) fn learn(
        &self,
        learned: &dyn Spectral,
        options: &Learn,
        clock: &mut StageClock,
    ) -> Result<(Plan, SpectralReport)> {
        clock.stage("decomposing", self.model.blocks() as u64);
        // Any component may turn out to matter.
        self.decompose(of_basis(options.settings.basis), &|spec| Some(spec.out.min(spec.input)))?;
        let units = self.units(options.settings.unit, clock)?;
        clock.stage("learning", options.steps as u64);
        let state = self.job.learning_file();
        let job = SpectralJob {
            distillation: self.distillation(options.batch),
            method: learned,
            settings: &options.settings,
            basis: &|spec| {
                let file = Decompositions::open(&self.job.decompositions_file(spec.id.block))?;
                Ok(file.linear(spec, usize::MAX)?.parts)
            },
            units: &units,
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
        let result = learn_spectra(&job, self.progress).context("learning")?;
        if let Some(why) = &result.report.stopped {
            self.progress.note(&format!("learning ended after {} steps: {why}", result.report.done));
        }
        clock.stage("folding", self.model.blocks() as u64);
        self.fold(&result)?;
        Ok((result.plan, result.report))
    }

    /// What the sizes of each linear's components are divided by, in model order.
    fn units(&self, unit: Unit, clock: &mut StageClock) -> Result<Vec<f64>> {
        if unit == Unit::Raw {
            return Ok(vec![1.0; self.model.linears().len()]);
        }
        let energies = self.energies()?;
        let sizes = |energies: &[f64]| energies.iter().map(|x| x.sqrt()).collect::<Vec<f64>>();
        if unit == Unit::Median {
            return Ok(energies.iter().map(|energies| median(sizes(energies))).collect());
        }
        // Training works with factors in f32.
        let weights = self.kl_weights(&energies, &|_| Ok(Dtype::F32), clock)?;
        let specs = self.model.linears().iter();
        // Where nothing was lost by cutting, nothing is worth keeping.
        let scale = |(spec, weight): (&LinearSpec, &f64)| (weight.max(1e-30) / (spec.out + spec.input) as f64).sqrt();
        let scales: Vec<f64> = specs.zip(&weights).map(scale).collect();
        let scaled = energies.iter().zip(&scales).flat_map(|(e, scale)| e.iter().map(move |e| e.sqrt() * scale));
        let middle = median(scaled.collect());
        Ok(scales.iter().map(|scale| middle / scale).collect())
    }

    /// Stores what training has left of every block.
    fn fold(&self, result: &Learned) -> Result<()> {
        let (mut nothing, mut heldout) = self.embed(Needs::Nothing)?;
        each_block(&self.model, |index, block| {
            if self.job.block_file(index).exists() {
                heldout.advance(&block)?;
            } else {
                let stats = self.stats_and_advance(index, &block, &mut nothing, &mut heldout)?;
                self.fold_block(index, &block, &stats, result).with_context(|| format!("storing block {index}"))?;
            }
            self.progress.step(1)
        })
    }

    fn fold_block(&self, index: usize, block: &Block, stats: &BlockStats, result: &Learned) -> Result<()> {
        let mut done = FinishedBlock::default();
        for linear in result.linears.iter().filter(|linear| linear.spec.id.block == index) {
            let choice = choice(&result.plan, &linear.spec)?;
            let fold = || self.fold_linear(block, stats, linear, choice);
            let (tensors, report) = self.solving(|solver| solving_with(solver, fold))?;
            done.tensors.extend(tensors);
            done.linears.push(report);
            if let Some(deviation) = &linear.deviation {
                let (deviation, dtype) = (deviation.to_vec1::<f32>()?, self.factor_dtype(&linear.spec)?);
                done.tensors.push(stored::bias(&self.model, &linear.spec, &deviation, dtype)?);
            }
        }
        done.complete(&self.model, index)?;
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
        let parts = Decomposition { b, a, energy: vec![0.0; rank], note: None };
        let error = heldout_curve(&w, &parts, heldout_inputs(stats.get(&spec.site)), rank).relative(rank);
        let mut report = match choice {
            Choice::Rank(rank) => cut_report(spec, &[], rank, error),
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

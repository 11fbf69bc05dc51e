//! `--heal`: trains what the finished blocks hold and stores the healed blocks beside them.

use super::block::FinishedBlock;
use super::{Run, stored};
use crate::checkpoint::Dtype;
use crate::learn::{Dataset, Distillation, HealJob, HealOptions, HealReport, Healed, TrainedMatrix, heal};
use crate::linalg::Mat;
use crate::machine::StageClock;
use crate::model::{Block, LinearSpec, Role};
use crate::user_bail;
use anyhow::{Context, Result};
use candle_core::{DType, Tensor};
use std::path::PathBuf;

/// Around this learning rate a better one is looked for where none is given, from 0.0003 to 0.08.
const USUAL_RATE: f64 = 0.02;

impl Run<'_> {
    /// Fails early when there is nothing that healing could be judged by.
    pub(super) fn check_healing(&self) -> Result<()> {
        let trains = self.recipe.heal > 0 || self.recipe.learn.is_some();
        if trains && self.calibration.labels.is_none() && self.calibration.trained_on().1.is_empty() {
            user_bail!(
                "training needs held-out text, but the calibration text is a single window";
                "give more --calib text, or a smaller --window"
            );
        }
        if trains { self.distillation(1).check() } else { Ok(()) }
    }

    /// The original and the text to train on.
    pub(super) fn distillation(&self, batch: usize) -> Distillation<'_> {
        Distillation {
            model: &self.model,
            dataset: match &self.calibration.labels {
                Some(labels) => Dataset::Labelled { train: &labels.train, heldout: &labels.heldout },
                None => {
                    let (train, heldout) = self.calibration.trained_on();
                    Dataset::Text { train, heldout }
                }
            },
            objective: self.recipe.objective,
            batch,
            seed: self.recipe.seed,
            block_memory: self.model.compute().limits.trained_blocks,
            teacher_memory: self.model.compute().limits.teacher_states,
        }
    }

    /// Heals the finished blocks if the recipe says so; learning took `spent` seconds.
    pub(super) fn heal(&self, spent: f64, clock: &mut StageClock) -> Result<Option<HealReport>> {
        let recipe = self.recipe;
        if recipe.heal == 0 {
            return Ok(None);
        }
        clock.stage("healing", recipe.heal as u64);
        let install = |index: usize, block: &mut Block| {
            FinishedBlock::load(&self.job.block_file(index))?.install(&self.model, block, index)
        };
        let stored = |index: usize, role: Role| match self.factor_dtype(self.spec(index, role)?)? {
            Dtype::F16 => Ok(DType::F16),
            Dtype::BF16 => Ok(DType::BF16),
            _ => Ok(DType::F32),
        };
        let state = self.job.healing_file();
        let job = HealJob {
            distillation: self.distillation(recipe.heal_batch),
            install: &install,
            stored: &stored,
            state: &state,
            options: HealOptions {
                steps: recipe.heal,
                lr: recipe.heal_lr.unwrap_or(USUAL_RATE),
                find_rate: recipe.heal_lr.is_none(),
                seconds: recipe.max_seconds.map(|seconds| seconds - spent),
            },
        };
        let healed = heal(&job, self.progress).context("healing")?;
        if let Some(why) = &healed.report.stopped {
            self.progress.note(&format!("healing ended after {} steps: {why}", healed.report.done));
        }
        for index in 0..self.model.blocks() {
            self.store_healed(index, &healed)?;
        }
        Ok(Some(healed.report))
    }

    /// The file with the final tensors of block `index`.
    pub(super) fn final_block(&self, index: usize) -> PathBuf {
        if self.recipe.heal > 0 { self.job.healed_file(index) } else { self.job.block_file(index) }
    }

    /// Block `index` with what was trained in place of what it was made with.
    fn store_healed(&self, index: usize, healed: &Healed) -> Result<()> {
        let mut block = FinishedBlock::load(&self.job.block_file(index))?;
        for spec in self.model.block_linears(index) {
            let dtype = self.factor_dtype(spec)?;
            let trained = healed.matrices.get(&(index, spec.id.role)).into_iter().flatten();
            let trained = trained.map(|(which, tensor)| {
                let tensor = matrix(tensor)?;
                match which {
                    TrainedMatrix::FactorA => stored::factor_a(spec, &tensor, dtype),
                    TrainedMatrix::FactorB => stored::factor_b(spec, &tensor, dtype),
                    TrainedMatrix::Weight => stored::dense(spec, &tensor, dtype),
                }
            });
            let trained = trained.collect::<Result<Vec<_>>>()?;
            for tensor in trained {
                let place = block.tensors.iter().position(|old| old.name == tensor.name);
                let place = place.with_context(|| format!("`{}` was not stored", tensor.name))?;
                block.tensors[place] = tensor;
            }
        }
        block.save(&self.job.healed_file(index))
    }

    fn spec(&self, index: usize, role: Role) -> Result<&LinearSpec> {
        let mut specs = self.model.block_linears(index);
        specs.find(|spec| spec.id.role == role).with_context(|| format!("block {index} has no {role}"))
    }
}

pub(super) fn matrix(tensor: &Tensor) -> Result<Mat> {
    let (rows, cols) = tensor.dims2()?;
    Ok(Mat::from_f32_rows(rows, cols, &tensor.flatten_all()?.to_vec1::<f32>()?))
}

//! The survey: every linear of the dense model decomposed once, up to break-even, before the budget is shared out.
//!
//! What lies above break-even would be stored dense anyway, so a block's survey is never larger than the block in f32.
//! Any budget can be cut from it without looking at the model again.

use super::block::FinishedBlock;
use super::factorise::{cut_report, dense_report, weight};
use super::waves::in_waves;
use super::{Run, allocate, stored};
use crate::calibrate::{BlockStats, States};
use crate::checkpoint::{NamedTensor, TensorFile, write_sealed};
use crate::eval::{Variant, sensitivities};
use crate::linalg::Mat;
use crate::machine::StageClock;
use crate::method::{Decomposition, HeldoutCurve, heldout_curve};
use crate::model::{Block, Linear, LinearSpec, Model};
use crate::plan::{Choice, Plan, largest_saving_rank};
use crate::recipe::WeightRule;
use crate::text::Windows;
use crate::user_bail;
use anyhow::{Context, Result};
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Tokens on which the divergence of single cuts is measured, at most and at least. Few will do: on three small models the
/// perplexities of `whiten` at keep 0.6 and 0.4 were within 6 % of each other for 64, 256 and 2048 tokens, in no order.
const KL_TOKENS: (usize, usize) = (2048, 64);
/// Tokens of a window where there are fewer than that: many short ones see more of the text than few long ones.
const KL_WINDOW: usize = 32;
/// Multiplications the measurement may take; a model that is too large for this gets fewer tokens.
const KL_WORK: usize = 5_000_000_000_000;

/// The tensor that holds what was measured.
const KL: &str = "kl";

/// What the survey knows of one linear.
pub(super) struct Surveyed {
    pub parts: Decomposition,
    pub heldout: HeldoutCurve,
    pub seconds: f64,
}

/// What is to be stored of a linear of a dense block with these statistics.
type LinearWork<'a> = dyn Fn(&Block, &LinearSpec, &BlockStats) -> Result<Vec<NamedTensor>> + Sync + 'a;

impl Run<'_> {
    /// Decomposes every linear of the dense model. Blocks surveyed by an earlier run are kept.
    pub(super) fn survey(&self) -> Result<()> {
        self.each_dense_block(&|index| self.job.survey_file(index), &|block, spec, stats| {
            self.survey_linear(block, spec, stats)
        })
    }

    /// Takes the calibration text through the dense model and stores what `work` makes of every linear, a file per block.
    /// Files of an earlier run are kept.
    pub(super) fn each_dense_block(&self, file: &dyn Fn(usize) -> PathBuf, work: &LinearWork) -> Result<()> {
        let finished = (0..self.model.blocks()).take_while(|&i| file(i).exists()).count();
        if finished == self.model.blocks() {
            return self.progress.step(finished as u64);
        }
        let mut states = States::embed(&self.model, &self.calibration.windows.ids())?;
        let mut heldout = States::embed(&self.model, &self.calibration.heldout.ids())?;
        for index in 0..self.model.blocks() {
            let block = self.model.block(index)?;
            if index >= finished {
                let stats = self
                    .stats(index, &block, &states, &heldout, &self.model.block_sites(index))
                    .with_context(|| format!("measuring the inputs of block {index}"))?;
                let specs: Vec<&LinearSpec> = self.model.block_linears(index).collect();
                let tensors = in_waves(&specs, |spec| *spec, |spec| work(&block, spec, &stats))
                    .with_context(|| format!("decomposing block {index}"))?;
                let tensors: Vec<NamedTensor> = tensors.into_iter().flatten().collect();
                write_sealed(&file(index), &tensors, &BTreeMap::new())?;
            }
            states.advance(&block)?;
            heldout.advance(&block)?;
            self.progress.step(1)?;
        }
        Ok(())
    }

    fn survey_linear(&self, block: &Block, spec: &LinearSpec, stats: &BlockStats) -> Result<Vec<NamedTensor>> {
        let started = Instant::now();
        let w = weight(block, spec)?;
        let stats = stats.get(&spec.site).with_context(|| format!("no statistics for {}", spec.id))?;
        let parts = self.method.decompose(&w, Some(stats)).with_context(|| spec.id.to_string())?;
        let rank = largest_saving_rank(spec.out, spec.input).min(parts.energy.len());
        let heldout = heldout_curve(&w, &parts, &stats.heldout, rank);
        Ok(encode(spec, &Surveyed { parts, heldout, seconds: started.elapsed().as_secs_f64() }, rank))
    }

    /// The energies of every linear, in model order.
    pub(super) fn surveyed_energies(&self) -> Result<Vec<Vec<f64>>> {
        let mut energies = Vec::new();
        for index in 0..self.model.blocks() {
            let file = TensorFile::open_unfinished(&self.job.survey_file(index))?;
            for spec in self.model.block_linears(index) {
                energies.push(f64s(file.bytes(&key(spec, "energy"))?));
            }
        }
        Ok(energies)
    }

    /// The weight of every linear that makes their energies comparable, by the recipe's rule.
    pub(super) fn weights(&self, clock: &mut StageClock) -> Result<Vec<f64>> {
        let energies = self.surveyed_energies()?;
        match self.recipe.weight {
            WeightRule::Unit => Ok(vec![1.0; energies.len()]),
            WeightRule::Energy => Ok(energies.iter().map(|e| ratio(1.0, e.iter().sum())).collect()),
            WeightRule::Kl => self.kl_weights(&energies, &|spec, rank| self.cut_linear(spec, rank), clock),
        }
    }

    /// KL measured with one linear cut to its share of the budget by `cut`, divided by the energy that cut drops.
    pub(super) fn kl_weights(
        &self,
        energies: &[Vec<f64>],
        cut: &dyn Fn(&LinearSpec, usize) -> Result<Linear>,
        clock: &mut StageClock,
    ) -> Result<Vec<f64>> {
        let path = self.job.weights_file();
        // Measured by the run that was interrupted.
        if path.exists() {
            return Ok(f64s(TensorFile::open_unfinished(&path)?.bytes(KL)?));
        }
        let keep = allocate::keep_fraction(self.recipe, &self.model)?;
        let share = |spec: &LinearSpec| crate::plan::paper_rank(keep, spec.out, spec.input).max(1);
        let ranks: Vec<usize> = self.model.linears().iter().map(share).collect();
        let variants: Vec<Variant> = self
            .model
            .linears()
            .iter()
            .zip(&ranks)
            .map(|(spec, &rank)| Variant { id: spec.id, load: Box::new(move || cut(spec, rank)) })
            .collect();
        let windows = self.kl_windows();
        clock.stage("measuring", (variants.len() * self.model.blocks()) as u64);
        let kl = sensitivities(&self.model, &variants, &windows, self.progress)?;
        let dropped = energies.iter().zip(&ranks).map(|(energy, &rank)| energy.iter().skip(rank).sum::<f64>());
        let weights: Vec<f64> = kl.iter().zip(dropped).map(|(&kl, dropped)| ratio(kl, dropped)).collect();
        let bytes = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
        write_sealed(&path, &[(KL.to_string(), Dtype::F64, vec![weights.len()], bytes)], &BTreeMap::new())?;
        Ok(weights)
    }

    /// The first windows of the calibration text, or their beginnings.
    fn kl_windows(&self) -> Windows {
        let all = &self.calibration.windows;
        let tokens = kl_tokens(&self.model);
        let most = if tokens < KL_TOKENS.0 { KL_WINDOW } else { tokens };
        let window = all.window.min(most);
        let mut windows = crate::text::choose(all, (tokens / window).max(1), crate::text::Sampling::First);
        windows.rows.iter_mut().for_each(|row| row.ids.truncate(window));
        windows.window = window;
        windows
    }

    /// One linear cut to `rank` by the survey.
    fn cut_linear(&self, spec: &LinearSpec, rank: usize) -> Result<Linear> {
        let surveyed = read(&self.job.survey_file(spec.id.block), spec)?;
        let tensors = self.cut(spec, &surveyed.parts, rank.min(surveyed.parts.a.rows()))?;
        let bias = self.model.bias(spec)?;
        stored::linear(&tensors, spec, bias, self.model.device())?.context("a cut linear lacks its factors")
    }

    /// Stores block `index` as `plan` says, from the survey alone.
    pub(super) fn cut_from_survey(&self, index: usize, plan: &Plan) -> Result<()> {
        if self.job.block_file(index).exists() {
            return Ok(());
        }
        let mut done = FinishedBlock::default();
        let path = self.job.survey_file(index);
        for spec in self.model.block_linears(index) {
            match plan.choice(spec.id).with_context(|| format!("no plan for {}", spec.id))? {
                Choice::Dense => done.linears.push(dense_report(spec)),
                Choice::Width(_) => {
                    user_bail!("{} cannot be narrowed from a survey", spec.id; "use --allocation lorap")
                }
                Choice::Rank(rank) => {
                    let surveyed = read(&path, spec)?;
                    done.tensors.extend(self.cut(spec, &surveyed.parts, rank)?);
                    let error = surveyed.heldout.relative(rank);
                    let mut report = cut_report(spec, &surveyed.parts.energy, rank, error, surveyed.parts.note);
                    report.seconds = surveyed.seconds;
                    done.linears.push(report);
                }
            }
        }
        done.split_fused(&self.model, index)?;
        done.save(&self.job.block_file(index))
    }
}

/// Every variant runs through the blocks from its own on, so the work grows with the square of the depth.
fn kl_tokens(model: &Model) -> usize {
    let per_block = model.linears().iter().map(|spec| spec.params()).sum::<usize>() / model.blocks().max(1);
    let per_token = model.linears().iter().map(|spec| (model.blocks() - spec.id.block) * per_block).sum::<usize>();
    (KL_WORK / per_token.max(1)).clamp(KL_TOKENS.1, KL_TOKENS.0)
}

/// a / b, or 0 when there is nothing to divide by: a linear that loses nothing needs no rank.
fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

fn key(spec: &LinearSpec, part: &str) -> String {
    format!("{}.{part}", spec.id.role)
}

fn encode(spec: &LinearSpec, surveyed: &Surveyed, rank: usize) -> Vec<NamedTensor> {
    let f32s = |m: Mat| m.to_f32_rows().iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let f64_bytes = |x: &[f64]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let parts = &surveyed.parts;
    let vector = |name: &str, values: &[f64]| (key(spec, name), Dtype::F64, vec![values.len()], f64_bytes(values));
    let mut tensors = vec![
        (key(spec, "a"), Dtype::F32, vec![rank, spec.input], f32s(parts.a.row_range(0..rank))),
        (key(spec, "b"), Dtype::F32, vec![spec.out, rank], f32s(parts.b.col_range(0..rank))),
        vector("energy", &parts.energy),
        vector("heldout", &surveyed.heldout.error),
        vector("facts", &[surveyed.heldout.total, surveyed.seconds]),
    ];
    if let Some(note) = &parts.note {
        tensors.push((key(spec, "note"), Dtype::U8, vec![note.len()], note.clone().into_bytes()));
    }
    tensors
}

fn read(path: &Path, spec: &LinearSpec) -> Result<Surveyed> {
    let file = TensorFile::open_unfinished(path)?;
    let f32s = |part: &str| -> Result<Vec<f32>> {
        Ok(file.bytes(&key(spec, part))?.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    };
    let a = f32s("a")?;
    let rank = a.len() / spec.input;
    let facts = f64s(file.bytes(&key(spec, "facts"))?);
    let note = key(spec, "note");
    let note =
        if file.info(&note).is_some() { Some(String::from_utf8_lossy(file.bytes(&note)?).into_owned()) } else { None };
    Ok(Surveyed {
        parts: Decomposition {
            a: Mat::from_f32_rows(rank, spec.input, &a),
            b: Mat::from_f32_rows(spec.out, rank, &f32s("b")?),
            energy: f64s(file.bytes(&key(spec, "energy"))?),
            note,
        },
        heldout: HeldoutCurve { total: facts[0], error: f64s(file.bytes(&key(spec, "heldout"))?) },
        seconds: facts[1],
    })
}

fn f64s(bytes: &[u8]) -> Vec<f64> {
    bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
}

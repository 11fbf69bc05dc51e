//! `--allocation forms`: every part of every block gets the form that costs least.
//!
//! ```text
//! windows → output gradients → survey of every part → one measurement of each → plan → cut
//! ```
//! The survey of a block is the file of its decompositions: what each form of each part would lose at every size, and what it
//! takes to make it.

mod cut;
mod part;
mod survey;

use super::Run;
use super::shrink::Shrunk;
use super::weights::{KL, ratio};
use crate::backward::{output_gram_batches, output_grams};
use crate::checkpoint::{NamedTensor, TensorFile, write_sealed};
use crate::eval::Variant;
use crate::machine::StageClock;
use crate::method::GRADIENTS;
use crate::model::LinearId;
use crate::plan::{self, Item, Plan, Target};
use crate::text::Windows;
use anyhow::{Context, Result};
pub(super) use part::{BlockPart, block_parts};
use std::collections::{BTreeMap, BTreeSet};

/// The least scale of a part, as a share of the median.
const LEAST_SCALE: f64 = 0.01;
/// Tokens whose predictions are differentiated, at most. Second moments of m outputs need a few times m of them.
const GRADIENT_TOKENS: usize = 8192;

impl Run<'_> {
    /// Surveys, plans and cuts.
    pub(super) fn shrink_by_forms(&self, clock: &mut StageClock) -> Result<Shrunk> {
        let blocks = self.model.blocks() as u64;
        let with_gradients: bool = self.recipe.options.get(&GRADIENTS)?;
        if with_gradients {
            self.differentiate(clock)?;
        }
        clock.stage("decomposing", blocks);
        self.survey()?;
        let scales = self.measured_scales(clock)?;
        let planned = |target| self.plan_forms(&scales, target);
        let (plan, trials) = self.settle(&planned, &|plan| self.cut_forms(plan), clock)?;
        let mut weights = BTreeMap::new();
        for (part, scale) in self.parts().into_iter().zip(&scales) {
            weights.extend(part.linears().into_iter().map(|spec| (spec.id, *scale)));
        }
        let weights = self.model.linears().iter().filter_map(|spec| weights.get(&spec.id).copied()).collect();
        Ok(Shrunk { plan, weights: Some(weights), learning: None, trials })
    }

    /// The parts of all blocks.
    fn parts(&self) -> Vec<BlockPart<'_>> {
        (0..self.model.blocks()).flat_map(|index| block_parts(&self.model, index)).collect()
    }

    /// Second moments of the gradients behind every part, one file per block.
    fn differentiate(&self, clock: &mut StageClock) -> Result<()> {
        let path = |index| self.job.gradients_file(index);
        if (0..self.model.blocks()).all(|index| path(index).exists()) {
            return Ok(());
        }
        let ids = self.calibration.windows.ids();
        let count = gradient_windows(&self.calibration.windows);
        // Spread over the text, as the windows are.
        let windows: Vec<&[u32]> = (0..count).map(|i| ids[i * ids.len() / count]).collect();
        clock.stage("differentiating", output_gram_batches(&self.model, &windows) as u64);
        // Where the error of a part is weighed.
        let wanted: BTreeSet<LinearId> = self.parts().iter().map(|part| part.output().id).collect();
        output_grams(&self.model, &windows, self.recipe.seed, &|spec| wanted.contains(&spec.id), &path, self.progress)
    }

    /// What the predicted losses of every part are multiplied with, in the order of the parts: the KL of one of its forms
    /// alone, measured, for what was predicted of that.
    fn measured_scales(&self, clock: &mut StageClock) -> Result<Vec<f64>> {
        let path = self.job.weights_file();
        // Measured by the run that was interrupted.
        if path.exists() {
            return TensorFile::open_unfinished(&path)?.f64s(KL);
        }
        let (mut predicted, mut sizes) = (Vec::new(), Vec::new());
        let mut variants = Vec::new();
        for index in 0..self.model.blocks() {
            let survey = self.surveyed(index)?;
            let parts = block_parts(&self.model, index);
            // Linears that share an input, as q and k, are measured together: it is their product that counts.
            for together in parts.chunk_by(|a, b| a.shares_input(b)) {
                let chosen = |part: &BlockPart<'_>| part.reference_size(self.recipe.multiple_of);
                let chosen: Vec<(BlockPart, usize)> =
                    together.iter().filter_map(|part| Some((part.clone(), chosen(part)?))).collect();
                let lost = |(part, kept): &(BlockPart, usize)| Ok(survey.losses(part.output())?.get(*kept).copied());
                let losses = chosen.iter().map(lost).collect::<Result<Vec<Option<f64>>>>()?;
                predicted.push(losses.into_iter().flatten().sum::<f64>());
                sizes.push(together.len());
                let load = move || {
                    let linears = chosen.iter().map(|(part, kept)| self.linears_of(part, part.choice(*kept)));
                    Ok(linears.collect::<Result<Vec<_>>>()?.concat())
                };
                variants.push(Variant { block: index, load: Box::new(load) });
            }
        }
        let kl = self.measure(&variants, clock)?;
        let scales = not_nothing(kl.iter().zip(predicted).map(|(&kl, predicted)| ratio(kl, predicted)).collect());
        let scales: Vec<f64> = scales.into_iter().zip(sizes).flat_map(|(scale, size)| vec![scale; size]).collect();
        write_sealed(&path, &[NamedTensor::f64(KL, [scales.len()], &scales)], &BTreeMap::new())?;
        Ok(scales)
    }

    /// The options of least loss under a budget.
    fn plan_forms(&self, scales: &[f64], target: Target) -> Result<Plan> {
        let items: Vec<Item> = self.model.linears().iter().map(Item::from).collect();
        let mut parts = Vec::with_capacity(scales.len());
        for index in 0..self.model.blocks() {
            let survey = self.surveyed(index)?;
            for part in block_parts(&self.model, index) {
                let scale = scales.get(parts.len()).copied().context("a part that was not measured")?;
                parts.push(part.ladder(&survey.losses(part.output())?, scale, self.recipe.multiple_of));
            }
        }
        plan::forms(&items, &parts, target)
    }
}

/// Number of windows whose predictions are differentiated.
pub(super) fn gradient_windows(windows: &Windows) -> usize {
    (GRADIENT_TOKENS / windows.window.max(1)).clamp(1, windows.len().max(1))
}

/// What lies on the disk of the parts of all blocks beside decompositions: the second moments of gradients, and those of the
/// inputs of what gets narrower.
pub(super) fn survey_bytes(run: &Run) -> Result<u64> {
    let gradients: bool = run.recipe.options.get(&GRADIENTS)?;
    let square = |n: usize| 4 * (n as u64).pow(2);
    let of_part = |part: BlockPart| {
        let spec = part.output();
        let moments = if gradients { square(spec.out) } else { 0 };
        moments + if matches!(part, BlockPart::Linear(_)) { 0 } else { square(spec.input) }
    };
    Ok(run.parts().into_iter().map(of_part).sum())
}

/// What rounding, or few tokens, make nothing of still costs something: a hundredth of the median.
fn not_nothing(mut scales: Vec<f64>) -> Vec<f64> {
    let mut sorted: Vec<f64> = scales.iter().copied().filter(|scale| *scale > 0.0).collect();
    sorted.sort_by(f64::total_cmp);
    let least = sorted.get(sorted.len() / 2).map_or(1.0, |median| LEAST_SCALE * median);
    scales.iter_mut().for_each(|scale| *scale = scale.max(least));
    scales
}

#[cfg(test)]
mod tests {
    use super::not_nothing;

    #[test]
    fn a_part_that_measured_nothing_is_not_free() {
        assert_eq!(not_nothing(vec![0.0, 2.0, 4.0, 8.0]), [0.04, 2.0, 4.0, 8.0]);
        assert_eq!(not_nothing(vec![0.0, 0.0]), [1.0, 1.0]);
    }
}

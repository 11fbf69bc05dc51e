//! What makes the energies of different linears comparable when the budget is shared out over all of them.

use super::decompositions::Decompositions;
use super::{Run, allocate};
use crate::checkpoint::{Dtype, NamedTensor, TensorFile, write_sealed};
use crate::eval::{Variant, sensitivities};
use crate::machine::StageClock;
use crate::model::{LinearSpec, Model};
use crate::recipe::WeightRule;
use crate::text::{Sampling, Windows, choose};
use anyhow::Result;
use std::collections::BTreeMap;

/// Tokens on which the divergence of single cuts is measured, at most and at least. Few will do: on three small models the
/// perplexities of `whiten` at keep 0.6 and 0.4 were within 6 % of each other for 64, 256 and 2048 tokens, in no order.
pub(super) const KL_TOKENS: (usize, usize) = (2048, 64);
/// Tokens of a window where there are fewer than that: many short ones see more of the text than few long ones.
const KL_WINDOW: usize = 32;
/// Multiplications the measurement may take; a model that is too large for this gets fewer tokens. SmolLM2-135M gets 506; with
/// 1013 the perplexities of `auto` were 40.3, 74.9 and 183 instead of 39.0, 71.3 and 171 at keep 0.8, 0.6 and 0.4 (WikiText-2).
const KL_WORK: usize = 2_500_000_000_000;

/// The tensor that holds what was measured.
pub(super) const KL: &str = "kl";

impl Run<'_> {
    /// The energies of every linear, in model order.
    pub(super) fn energies(&self) -> Result<Vec<Vec<f64>>> {
        let mut energies = Vec::new();
        for index in 0..self.model.blocks() {
            let file = Decompositions::open(&self.job.decompositions_file(index))?;
            for spec in self.model.block_linears(index) {
                energies.push(file.energy(spec)?);
            }
        }
        Ok(energies)
    }

    /// The weight of every linear, by the recipe's rule.
    pub(super) fn weights(&self, energies: &[Vec<f64>], clock: &mut StageClock) -> Result<Vec<f64>> {
        match self.recipe.weight {
            WeightRule::Unit => Ok(vec![1.0; energies.len()]),
            WeightRule::Energy => Ok(energies.iter().map(|e| ratio(1.0, e.iter().sum())).collect()),
            WeightRule::Kl => self.kl_weights(energies, &|spec| self.factor_dtype(spec), clock),
        }
    }

    /// KL measured with one linear alone cut to its share of the budget, its factors in the type that `dtype` says, divided by
    /// the energy that cut drops.
    pub(super) fn kl_weights(
        &self,
        energies: &[Vec<f64>],
        dtype: &dyn Fn(&LinearSpec) -> Result<Dtype>,
        clock: &mut StageClock,
    ) -> Result<Vec<f64>> {
        let path = self.job.weights_file();
        // Measured by the run that was interrupted.
        if path.exists() {
            return TensorFile::open_unfinished(&path)?.f64s(KL);
        }
        let keep = allocate::keep_fraction(self.recipe, &self.model)?;
        let share = |spec: &LinearSpec| crate::plan::paper_rank(keep, spec.out, spec.input).max(1);
        let ranks: Vec<usize> = self.model.linears().iter().map(share).collect();
        let variant = |(spec, &rank): (&'_ LinearSpec, &usize)| {
            let (spec, block) = (spec.clone(), spec.id.block);
            let load = move || Ok(vec![(spec.id.role, self.cut_linear(&spec, rank, dtype(&spec)?)?)]);
            Variant { block, load: Box::new(load) }
        };
        let variants: Vec<Variant> = self.model.linears().iter().zip(&ranks).map(variant).collect();
        let kl = self.measure(&variants, clock)?;
        let dropped = energies.iter().zip(&ranks).map(|(energy, &rank)| energy.iter().skip(rank).sum::<f64>());
        let weights: Vec<f64> = kl.iter().zip(dropped).map(|(&kl, dropped)| ratio(kl, dropped)).collect();
        write_sealed(&path, &[NamedTensor::f64(KL, [weights.len()], &weights)], &BTreeMap::new())?;
        Ok(weights)
    }

    /// The KL of each variant.
    pub(super) fn measure(&self, variants: &[Variant], clock: &mut StageClock) -> Result<Vec<f64>> {
        clock.stage("measuring", (variants.len() * self.model.blocks()) as u64);
        let windows = kl_windows(&self.model, variants.iter().map(|variant| variant.block), &self.calibration.windows);
        sensitivities(&self.model, variants, &windows, self.progress)
    }
}

/// The first windows of the calibration text, or their beginnings, on which variants of these `blocks` are measured.
pub(super) fn kl_windows(model: &Model, blocks: impl Iterator<Item = usize>, all: &Windows) -> Windows {
    let tokens = kl_tokens(model, blocks);
    let most = if tokens < KL_TOKENS.0 { KL_WINDOW } else { tokens };
    let window = all.window.min(most);
    let mut windows = choose(all, (tokens / window.max(1)).max(1), Sampling::First);
    windows.rows.iter_mut().for_each(|row| row.ids.truncate(window));
    windows.window = window;
    windows
}

/// Every variant runs through the blocks from its own on, so the work grows with the square of the depth.
pub(super) fn kl_tokens(model: &Model, blocks: impl Iterator<Item = usize>) -> usize {
    let per_block = model.linears().iter().map(|spec| spec.params()).sum::<usize>() / model.blocks().max(1);
    let per_token = blocks.map(|block| (model.blocks() - block) * per_block).sum::<usize>();
    (KL_WORK / per_token.max(1)).clamp(KL_TOKENS.1, KL_TOKENS.0)
}

/// a / b, or 0 when there is nothing to divide by: a linear that loses nothing needs no rank.
pub(super) fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

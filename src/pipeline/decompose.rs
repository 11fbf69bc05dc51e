//! Every linear of the dense model decomposed, each once, before the budget is shared out.
//!
//! Of a closed form no more components are kept than pay, those below break-even, or than a budget that is shared out by
//! shape leaves, so that a block's file is never larger than the block in f32; a learned method gets them all.

use super::decompositions::{Decomposed, Decompositions};
use super::{Run, stored};
use crate::calibrate::{BlockStats, SiteStats, collect, collect_and_advance};
use crate::checkpoint::NamedTensor;
use crate::forward::{States, each_block};
use crate::linalg::Mat;
use crate::method::{Method, Needs, heldout_curve};
use crate::model::{Block, LinearSpec, Site};
use anyhow::{Context, Result};
use std::panic::resume_unwind;
use std::thread::{self, ScopedJoinHandle};
use std::time::Instant;

/// Takes a block, its number and its statistics to what is stored of it.
pub(super) type BlockWork<'a> = dyn Fn(usize, &Block, &BlockStats) -> Result<Vec<NamedTensor>> + 'a;

impl Run<'_> {
    /// Decomposes the linears of the dense model with `method` and keeps `components` of each; those without a number stay as
    /// they are.
    pub(super) fn decompose(
        &self,
        method: &dyn Method,
        components: &dyn Fn(&LinearSpec) -> Option<usize>,
    ) -> Result<()> {
        self.decompose_blocks(method.needs(), &|index, block, stats| {
            self.decompose_block(method, index, block, stats, components)
        })
    }

    /// Writes the decompositions of every block that `work` makes of it and its statistics, in one pass. Blocks that an earlier
    /// run has finished are kept.
    pub(super) fn decompose_blocks(&self, needs: Needs, work: &BlockWork) -> Result<()> {
        let path = |index| self.job.decompositions_file(index);
        let finished = (0..self.model.blocks()).take_while(|&i| path(i).exists()).count();
        if finished == self.model.blocks() {
            return self.progress.step(finished as u64);
        }
        let (mut states, mut heldout) = self.embed(needs)?;
        // A block's file is written while the next block computes.
        thread::scope(|scope| {
            let mut writing = None;
            each_block(&self.model, |index, block| {
                if index < finished {
                    states.advance(&block)?;
                    heldout.advance(&block)?;
                    return self.progress.step(1);
                }
                let stats = self.stats_and_advance(index, &block, &mut states, &mut heldout)?;
                let tensors = work(index, &block, &stats).with_context(|| format!("decomposing block {index}"))?;
                written(writing.take())?;
                let path = path(index);
                writing = Some(scope.spawn(move || Decompositions::write(&path, &tensors)));
                if !self.model.compute().limits.read_ahead {
                    written(writing.take())?;
                }
                self.progress.step(1)
            })?;
            written(writing)
        })
    }

    /// What is stored of the linears of a block.
    fn decompose_block(
        &self,
        method: &dyn Method,
        index: usize,
        block: &Block,
        stats: &BlockStats,
        components: &dyn Fn(&LinearSpec) -> Option<usize>,
    ) -> Result<Vec<NamedTensor>> {
        let limits: Vec<(&LinearSpec, usize)> =
            self.model.block_linears(index).filter_map(|spec| Some((spec, components(spec)?))).collect();
        let work = |&(spec, limit): &(&LinearSpec, usize)| {
            let found = decompose_linear(method, block, spec, stats, limit)?;
            let dtype = stored::stored_dtype(self.model.source(), spec, self.recipe.dtype)?;
            found.encode(spec, limit.min(found.parts.rank()), dtype)
        };
        let tensors = self.in_waves(&limits, |(spec, _)| *spec, work)?;
        Ok(tensors.into_iter().flatten().collect())
    }

    /// The calibration and held-out windows in front of the first block; nothing where all there is to see was seen before,
    /// and no calibration windows for what does not need them.
    pub(super) fn embed(&self, needs: Needs) -> Result<(States, States)> {
        let nothing = || States::embed::<Vec<u32>>(&self.model, &[]);
        if self.stats.as_ref().is_some_and(|stats| stats.is_finished() && stats.missing().is_none()) {
            return Ok((nothing()?, nothing()?));
        }
        let looks = needs != Needs::Nothing || self.stats.is_some();
        let states = if looks { States::embed(&self.model, &self.calibration.windows.ids())? } else { nothing()? };
        Ok((states, States::embed(&self.model, &self.calibration.heldout.ids())?))
    }

    /// Statistics of a dense block, from the user's folder when it has them, else collected (and put there) in the pass that
    /// takes the states through the block.
    pub(super) fn stats_and_advance(
        &self,
        index: usize,
        block: &Block,
        states: &mut States,
        heldout: &mut States,
    ) -> Result<BlockStats> {
        if let Some(stats) = self.stats.as_ref().filter(|stats| stats.has(index)) {
            states.advance(block)?;
            heldout.advance(block)?;
            return stats.get(index);
        }
        let stats = collect_and_advance(block, states, heldout, &self.model.block_sites(index))
            .with_context(|| format!("measuring the inputs of block {index}"))?;
        self.stats.as_ref().map_or(Ok(()), |store| store.put(index, &stats))?;
        Ok(stats)
    }

    /// Statistics of `sites` of a block; as above, but the states stay in front of it.
    pub(super) fn stats(
        &self,
        index: usize,
        block: &Block,
        (states, heldout): (&States, &States),
        sites: &[Site],
    ) -> Result<BlockStats> {
        match self.stats.as_ref() {
            Some(stats) if stats.has(index) => stats.get(index),
            Some(store) => {
                let stats = collect(block, states, heldout, sites)?;
                store.put(index, &stats)?;
                Ok(stats)
            }
            None => collect(block, states, heldout, sites),
        }
    }
}

/// Waits for a file that is being written.
fn written(writing: Option<ScopedJoinHandle<'_, Result<()>>>) -> Result<()> {
    writing.map_or(Ok(()), |thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
}

/// Decomposes one linear and measures the cuts to up to `rank` components on held-out inputs.
pub(super) fn decompose_linear(
    method: &dyn Method,
    block: &Block,
    spec: &LinearSpec,
    stats: &BlockStats,
    rank: usize,
) -> Result<Decomposed> {
    let started = Instant::now();
    let w = weight(block, spec)?;
    let stats = stats.get(&spec.site);
    let parts = method.decompose(&w, stats).with_context(|| spec.id.to_string())?;
    let heldout = heldout_curve(&w, &parts, heldout_inputs(stats), rank);
    Ok(Decomposed { parts, heldout, seconds: started.elapsed().as_secs_f64() })
}

/// No held-out token may have been routed to an expert.
pub(super) fn heldout_inputs(stats: Option<&SiteStats>) -> &[f32] {
    stats.map_or(&[], |stats| &stats.heldout)
}

/// The dense weight of a linear of `block`, in f64.
pub(super) fn weight(block: &Block, spec: &LinearSpec) -> Result<Mat> {
    let linear = block.linear(spec.id.role).with_context(|| format!("the block has no {}", spec.id))?;
    let weight = linear.dense_weight().with_context(|| format!("{} is already factorised", spec.id))?;
    let rows: Vec<f32> = weight.flatten_all()?.to_vec1()?;
    Ok(Mat::from_f32_rows(spec.out, spec.input, &rows))
}

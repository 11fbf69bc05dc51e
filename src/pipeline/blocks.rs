//! The pass that compresses block after block, for methods that calibrate behind what is compressed already.
//!
//! Which activations a linear is calibrated with is the method's choice ([`Inputs`]): those behind the compressed earlier
//! blocks, or those behind every linear compressed so far. In the last case a block is worked through in groups that share
//! an input: {q, k, v}, {o}, {gate, up}, {down}. Those of the dense model come here too when feed-forward channels are
//! chosen, which takes statistics that no decomposition has.

use super::Run;
use super::block::{FinishedBlock, install};
use super::cut::{choice, dense_report};
use super::decompose::decompose_linear;
use crate::calibrate::BlockStats;
use crate::forward::{States, each_block};
use crate::memory;
use crate::method::Inputs;
use crate::model::{Block, LinearSpec, Site};
use crate::plan::{Choice, Plan};
use anyhow::{Context, Result, bail};

impl Run<'_> {
    /// Compresses every block as `plan` says. Finished blocks of an earlier run are trusted as far as they go.
    pub(super) fn compress_blocks(&self, plan: &Plan) -> Result<()> {
        let path = |index| self.job.block_file(index);
        let finished = (0..self.model.blocks()).take_while(|&i| path(i).exists()).count();
        if finished == self.model.blocks() {
            return self.progress.step(finished as u64);
        }
        let behind_dense = self.recipe.inputs == Inputs::Dense;
        let (mut states, mut heldout) = self.embed(self.method.needs())?;
        each_block(&self.model, |index, mut block| {
            if index < finished {
                if !behind_dense {
                    FinishedBlock::load(&path(index))?.install(&self.model, &mut block, index)?;
                }
            } else if plan.block_is_dense(index) {
                let linears = self.model.block_linears(index).map(dense_report).collect();
                FinishedBlock { linears, ..FinishedBlock::default() }.save(&path(index))?;
            } else {
                let dense = behind_dense.then(|| block.clone());
                self.compress_block(index, &mut block, (&states, &heldout), plan)
                    .with_context(|| format!("compressing block {index}"))?;
                block = dense.unwrap_or(block);
            }
            states.advance(&block)?;
            heldout.advance(&block)?;
            self.progress.step(1)
        })
    }

    /// Compresses one block, leaves the compressed linears in it and stores them.
    fn compress_block(&self, index: usize, block: &mut Block, states: (&States, &States), plan: &Plan) -> Result<()> {
        let mut done = FinishedBlock::default();
        for sites in self.site_groups(index, plan) {
            let stats = self.stats(index, block, states, &sites)?;
            let specs: Vec<&LinearSpec> =
                self.model.block_linears(index).filter(|spec| sites.contains(&spec.site)).collect();
            self.compress_linears(block, &specs, &stats, plan, &mut done)?;
            for spec in &specs {
                install(&done.tensors, spec, &self.model, block)?;
            }
            drop(stats);
            memory::trim();
        }
        done.complete(&self.model, index)?;
        done.save(&self.job.block_file(index))
    }

    /// Sites whose linears are compressed from one look at the block.
    fn site_groups(&self, index: usize, plan: &Plan) -> Vec<Vec<Site>> {
        let sites = self.model.block_sites(index);
        if self.recipe.inputs != Inputs::Sequential {
            return vec![sites];
        }
        let narrowed =
            self.model.block_linears(index).filter(|spec| matches!(plan.choice(spec.id), Some(Choice::Width(_))));
        let narrowed: Vec<Site> = narrowed.map(|spec| spec.site).collect();
        // Channels are chosen by looking at both ends of the feed-forward layer, and experts stand side by side.
        let together = |a: &Site, b: &Site| match (a, b) {
            (Site::ExpertIn(_), Site::ExpertIn(_)) | (Site::ExpertOut(_), Site::ExpertOut(_)) => true,
            (a, b) => narrowed.contains(a) && narrowed.contains(b),
        };
        sites.chunk_by(together).map(<[Site]>::to_vec).collect()
    }

    fn compress_linears(
        &self,
        block: &Block,
        specs: &[&LinearSpec],
        stats: &BlockStats,
        plan: &Plan,
        done: &mut FinishedBlock,
    ) -> Result<()> {
        let (mut factorised, mut narrowed) = (Vec::new(), Vec::new());
        for &spec in specs {
            match choice(plan, spec)? {
                Choice::Dense => done.linears.push(dense_report(spec)),
                Choice::Rank(rank) => factorised.push((spec, rank)),
                Choice::Width(width) => narrowed.push((spec, width)),
                Choice::HeadDim { .. } => bail!("{}: heads become smaller with --allocation forms alone", spec.id),
            }
        }
        let work = |&(spec, rank): &(&LinearSpec, usize)| {
            self.cut(spec, &decompose_linear(self.method, block, spec, stats, rank)?, rank)
        };
        for (tensors, report) in self.in_waves(&factorised, |(spec, _)| *spec, work)? {
            done.tensors.extend(tensors);
            done.linears.push(report);
        }
        narrowed.sort_by_key(|(spec, _)| spec.id.role.expert());
        for layer in narrowed.chunk_by(|(a, _), (b, _)| a.id.role.expert() == b.id.role.expert()) {
            let specs: Vec<&LinearSpec> = layer.iter().map(|(spec, _)| *spec).collect();
            self.narrow(block, &specs, stats, layer[0].1, done)?;
        }
        Ok(())
    }
}

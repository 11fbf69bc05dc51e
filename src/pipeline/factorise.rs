//! The pass that compresses block after block.
//!
//! Which activations a linear is calibrated with is the method's choice ([`Inputs`]): those of the dense model, those
//! behind the compressed earlier blocks, or those behind every linear compressed so far. In the last case a block is
//! worked through in groups that share an input: {q, k, v}, {o}, {gate, up}, {down}.

use super::block::{FinishedBlock, install};
use super::waves::in_waves;
use super::{Run, stored};
use crate::calibrate::{BlockStats, States, collect};
use crate::checkpoint::NamedTensor;
use crate::linalg::Mat;
use crate::machine::StageClock;
use crate::method::{Decomposition, Inputs, heldout_curve};
use crate::model::{Block, FfnPart, LinearSpec, Site};
use crate::plan::{Choice, Plan};
use crate::report::LinearReport;
use anyhow::{Context, Result};
use std::time::Instant;

impl Run<'_> {
    /// Compresses every block as `plan` says. Finished blocks of an earlier run are trusted as far as they go.
    pub(super) fn factorise(&self, plan: &Plan, clock: &mut StageClock) -> Result<()> {
        clock.stage("compressing", self.model.blocks() as u64);
        let surveyed = self.recipe.inputs == Inputs::Dense && self.job.survey_file(0).exists();
        let finished = (0..self.model.blocks()).take_while(|&i| self.job.block_file(i).exists()).count();
        if finished == self.model.blocks() {
            return self.progress.step(finished as u64);
        }
        if surveyed {
            for index in 0..self.model.blocks() {
                self.cut_from_survey(index, plan)?;
                self.progress.step(1)?;
            }
            return Ok(());
        }
        let mut states = States::embed(&self.model, &self.calibration.windows.ids())?;
        let mut heldout = States::embed(&self.model, &self.calibration.heldout.ids())?;
        for index in 0..self.model.blocks() {
            let mut block = self.model.block(index)?;
            if index < finished {
                if self.recipe.inputs != Inputs::Dense {
                    FinishedBlock::load(&self.job.block_file(index))?.install(&self.model, &mut block, index)?;
                }
            } else if plan.block_is_dense(index) {
                let mut done = FinishedBlock::default();
                for spec in self.model.block_linears(index) {
                    done.linears.push(dense_report(spec));
                }
                done.save(&self.job.block_file(index))?;
            } else {
                self.factorise_block(index, &mut block, &states, &heldout, plan)
                    .with_context(|| format!("compressing block {index}"))?;
                if self.recipe.inputs == Inputs::Dense {
                    block = self.model.block(index)?;
                }
            }
            states.advance(&block)?;
            heldout.advance(&block)?;
            self.progress.step(1)?;
        }
        Ok(())
    }

    /// Compresses one block, leaves the compressed linears in it and stores them.
    fn factorise_block(
        &self,
        index: usize,
        block: &mut Block,
        states: &States,
        heldout: &States,
        plan: &Plan,
    ) -> Result<()> {
        let mut done = FinishedBlock::default();
        for sites in self.site_groups(index, plan) {
            let stats = self.stats(index, block, states, heldout, &sites)?;
            let specs: Vec<&LinearSpec> =
                self.model.block_linears(index).filter(|spec| sites.contains(&spec.site)).collect();
            self.compress_linears(block, &specs, &stats, plan, &mut done)?;
            for spec in &specs {
                install(&done.tensors, spec, &self.model, block)?;
            }
        }
        done.split_fused(&self.model, index)?;
        let order: Vec<String> = self.model.block_linears(index).map(|spec| spec.id.to_string()).collect();
        done.linears.sort_by_key(|linear| order.iter().position(|id| *id == linear.id));
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

    /// Statistics of a block: from the user's folder when it has them, else collected now (and put there).
    pub(super) fn stats(
        &self,
        index: usize,
        block: &Block,
        states: &States,
        heldout: &States,
        sites: &[Site],
    ) -> Result<BlockStats> {
        if let Some(store) = &self.stats {
            if store.has(index) {
                return store.get(index);
            }
            let stats = collect(block, states, heldout, sites)?;
            store.put(index, &stats)?;
            return Ok(stats);
        }
        collect(block, states, heldout, sites)
    }

    fn compress_linears(
        &self,
        block: &Block,
        specs: &[&LinearSpec],
        stats: &BlockStats,
        plan: &Plan,
        done: &mut FinishedBlock,
    ) -> Result<()> {
        let choice = |spec: &LinearSpec| plan.choice(spec.id).with_context(|| format!("no plan for {}", spec.id));
        let mut factorised = Vec::new();
        let mut narrowed = Vec::new();
        for spec in specs {
            match choice(spec)? {
                Choice::Dense => done.linears.push(dense_report(spec)),
                Choice::Rank(rank) => factorised.push((*spec, rank)),
                Choice::Width(width) => narrowed.push((*spec, width)),
            }
        }
        let results =
            in_waves(&factorised, |&(spec, _)| spec, |&(spec, rank)| self.compress_linear(block, spec, stats, rank))?;
        for (tensors, report) in results {
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

    fn compress_linear(
        &self,
        block: &Block,
        spec: &LinearSpec,
        stats: &BlockStats,
        rank: usize,
    ) -> Result<(Vec<NamedTensor>, LinearReport)> {
        let started = Instant::now();
        let w = weight(block, spec)?;
        let stats = stats.get(&spec.site).with_context(|| format!("no statistics for {}", spec.id))?;
        let parts = self.method.decompose(&w, Some(stats)).with_context(|| spec.id.to_string())?;
        let tensors = self.cut(spec, &parts, rank)?;
        let error = heldout_curve(&w, &parts, &stats.heldout, rank).relative(rank);
        let mut report = cut_report(spec, &parts.energy, rank, error, parts.note);
        report.seconds = started.elapsed().as_secs_f64();
        Ok((tensors, report))
    }

    /// The factors of `parts` at `rank`, as they will be stored.
    pub(super) fn cut(&self, spec: &LinearSpec, parts: &Decomposition, rank: usize) -> Result<Vec<NamedTensor>> {
        let dtype = stored::stored_dtype(self.model.source(), spec, self.recipe.dtype)?;
        stored::factors(spec, &parts.b, &parts.a, rank, dtype)
    }

    /// Keeps `width` channels of a feed-forward layer.
    fn narrow(
        &self,
        block: &Block,
        specs: &[&LinearSpec],
        stats: &BlockStats,
        width: usize,
        done: &mut FinishedBlock,
    ) -> Result<()> {
        let started = Instant::now();
        let find = |part| specs.iter().find(|spec| spec.id.role.ffn_part() == Some(part));
        let up = find(FfnPart::Up).context("a feed-forward layer without an up projection")?;
        let down = find(FfnPart::Down).context("a feed-forward layer without a down projection")?;
        let gate = find(FfnPart::Gate).map(|gate| weight(block, gate)).transpose()?;
        let entering = stats.get(&up.site).context("no statistics of the feed-forward input")?;
        let inner = stats.get(&down.site).context("no statistics of the feed-forward channels")?;
        let (up, down) = (weight(block, up)?, weight(block, down)?);
        let channels = self.method.channels(entering, inner, gate.as_ref(), &up, &down, width)?;
        let seconds = started.elapsed().as_secs_f64() / specs.len() as f64;
        for spec in specs {
            done.tensors.extend(stored::pruned(self.model.source(), spec, &channels)?);
            let is_down = spec.id.role.ffn_part() == Some(FfnPart::Down);
            let shape = if is_down { [spec.out, width] } else { [width, spec.input] };
            done.linears.push(LinearReport {
                form: "pruned".into(),
                pruned_shape: Some(shape),
                params_after: (shape[0] * shape[1]) as u64,
                seconds,
                ..dense_report(spec)
            });
        }
        Ok(())
    }
}

/// The dense weight of a linear of `block`, in f64.
pub(super) fn weight(block: &Block, spec: &LinearSpec) -> Result<Mat> {
    let linear = block.linear(spec.id.role).with_context(|| format!("the block has no {}", spec.id))?;
    let weight = linear.dense_weight().with_context(|| format!("{} is already factorised", spec.id))?;
    let rows: Vec<f32> = weight.flatten_all()?.to_vec1()?;
    Ok(Mat::from_f32_rows(spec.out, spec.input, &rows))
}

/// A linear that stays as it is.
pub(super) fn dense_report(spec: &LinearSpec) -> LinearReport {
    LinearReport {
        id: spec.id.to_string(),
        name: spec.name.clone(),
        shape: [spec.out, spec.input],
        form: "dense".into(),
        rank: None,
        pruned_shape: None,
        params_before: spec.params() as u64,
        params_after: spec.params() as u64,
        energy_kept: None,
        heldout_error: None,
        weight: None,
        note: None,
        seconds: 0.0,
    }
}

/// A linear cut to `rank`.
pub(super) fn cut_report(
    spec: &LinearSpec,
    energy: &[f64],
    rank: usize,
    heldout_error: Option<f64>,
    note: Option<String>,
) -> LinearReport {
    let total: f64 = energy.iter().sum();
    let kept: f64 = energy.iter().take(rank).sum();
    LinearReport {
        form: "low-rank".into(),
        rank: Some(rank),
        params_after: (rank * (spec.out + spec.input)) as u64,
        energy_kept: (total > 0.0).then(|| (kept / total).min(1.0)),
        heldout_error,
        note,
        ..dense_report(spec)
    }
}

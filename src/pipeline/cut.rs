//! From decompositions and a plan to finished blocks.

use super::Run;
use super::block::FinishedBlock;
use super::decompose::weight;
use super::decompositions::{Decomposed, Decompositions};
use super::stored;
use crate::calibrate::BlockStats;
use crate::checkpoint::{Dtype, NamedTensor};
use crate::model::{Block, FfnPart, Linear, LinearSpec, Side};
use crate::plan::{Choice, Plan};
use crate::report::{Form, LinearReport};
use crate::user_bail;
use anyhow::{Context, Result};
use std::time::Instant;

/// What is stored of linears and what is to be said of them.
pub(super) type Cut = (Vec<NamedTensor>, Vec<LinearReport>);

impl Run<'_> {
    /// Cuts every block from its decompositions as `plan` says. Blocks that an earlier run has finished are kept.
    pub(super) fn cut_all(&self, plan: &Plan) -> Result<()> {
        self.cut_blocks(&|index| {
            let file = Decompositions::open(&self.job.decompositions_file(index))?;
            let specs: Vec<&LinearSpec> = self.model.block_linears(index).collect();
            let cut = |spec: &&LinearSpec| match choice(plan, spec)? {
                Choice::Dense => Ok((Vec::new(), dense_report(spec))),
                Choice::Rank(rank) => self.cut(spec, &file.linear(spec, rank)?, rank),
                Choice::Width(_) | Choice::HeadDim { .. } => {
                    user_bail!("{} cannot be narrowed by its decomposition", spec.id; "use --allocation lorap")
                }
            };
            let cut = self.in_waves(&specs, |spec| spec, cut)?;
            Ok(cut.into_iter().map(|(tensors, report)| (tensors, vec![report])).collect())
        })
    }

    /// Stores every block as `cut` makes it, one entry per linear or per linears that change together. Blocks that an earlier
    /// run has finished are kept.
    pub(super) fn cut_blocks(&self, cut: &dyn Fn(usize) -> Result<Vec<Cut>>) -> Result<()> {
        for index in 0..self.model.blocks() {
            if !self.job.block_file(index).exists() {
                let mut done = FinishedBlock::default();
                for (tensors, reports) in cut(index)? {
                    done.tensors.extend(tensors);
                    done.linears.extend(reports);
                }
                done.complete(&self.model, index)?;
                done.save(&self.job.block_file(index))?;
            }
            self.progress.step(1)?;
        }
        Ok(())
    }

    /// A linear cut to `rank` components: what is stored of it and what is to be said of it.
    pub(super) fn cut(
        &self,
        spec: &LinearSpec,
        decomposed: &Decomposed,
        rank: usize,
    ) -> Result<(Vec<NamedTensor>, LinearReport)> {
        let Decomposed { parts, heldout, seconds } = decomposed;
        if parts.rank() < rank {
            user_bail!(
                "the decomposition of {} has {} components, of which {rank} are wanted: it is damaged", spec.id, parts.rank();
                "make the elastic output again, or start over with --force"
            );
        }
        let report = LinearReport {
            note: parts.note.clone(),
            seconds: *seconds,
            ..cut_report(spec, &parts.energy, rank, heldout.relative(rank))
        };
        Ok((stored::factors(spec, &parts.b, &parts.a, rank, self.factor_dtype(spec)?)?, report))
    }

    /// A linear cut to at most `rank` components of its decomposition, its factors rounded to `dtype`.
    pub(super) fn cut_linear(&self, spec: &LinearSpec, rank: usize, dtype: Dtype) -> Result<Linear> {
        let file = Decompositions::open(&self.job.decompositions_file(spec.id.block))?;
        let parts = file.linear(spec, rank)?.parts;
        let tensors = stored::factors(spec, &parts.b, &parts.a, parts.rank(), dtype)?;
        let bias = self.model.bias(spec)?;
        stored::linear(&tensors, spec, bias, self.model.device())?.context("a cut linear lacks its factors")
    }

    /// The type that the factors of `spec` are stored in.
    pub(super) fn factor_dtype(&self, spec: &LinearSpec) -> Result<Dtype> {
        stored::stored_dtype(self.model.source(), spec, self.recipe.dtype)
    }

    /// Keeps `width` channels of the feed-forward layer that `specs` are.
    pub(super) fn narrow(
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
            done.linears.push(LinearReport { seconds, ..narrowed_report(spec, width) });
        }
        Ok(())
    }
}

/// What `plan` makes of a linear.
pub(super) fn choice(plan: &Plan, spec: &LinearSpec) -> Result<Choice> {
    plan.choice(spec.id).with_context(|| format!("no plan for {}", spec.id))
}

/// A linear that stays as it is.
pub(super) fn dense_report(spec: &LinearSpec) -> LinearReport {
    LinearReport {
        id: spec.id,
        name: spec.name.clone(),
        shape: [spec.out, spec.input],
        form: Form::Dense,
        rank: None,
        pruned_shape: None,
        params_before: spec.params() as u64,
        params_after: spec.params() as u64,
        energy_kept: None,
        heldout_error: None,
        predicted_loss: None,
        weight: None,
        note: None,
        seconds: 0.0,
        learned: None,
    }
}

/// A linear that stays dense with `inner` of its inputs or outputs, whichever meets the other linears of its sublayer.
pub(super) fn narrowed_report(spec: &LinearSpec, inner: usize) -> LinearReport {
    let shape = match spec.id.role.inner_side() {
        Some(Side::Inputs) => [spec.out, inner],
        _ => [inner, spec.input],
    };
    LinearReport {
        form: Form::Pruned,
        pruned_shape: Some(shape),
        params_after: (shape[0] * shape[1]) as u64,
        ..dense_report(spec)
    }
}

/// A linear cut to `rank`.
pub(super) fn cut_report(spec: &LinearSpec, energy: &[f64], rank: usize, heldout_error: Option<f64>) -> LinearReport {
    let total: f64 = energy.iter().sum();
    let kept: f64 = energy.iter().take(rank).sum();
    LinearReport {
        form: Form::LowRank,
        rank: Some(rank),
        params_after: (rank * (spec.out + spec.input)) as u64,
        energy_kept: (total > 0.0).then(|| (kept / total).min(1.0)),
        heldout_error,
        ..dense_report(spec)
    }
}

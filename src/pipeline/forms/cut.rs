//! From a survey and a plan to finished blocks.

use super::super::Run;
use super::super::block::FinishedBlock;
use super::super::cut::{choice, dense_report};
use super::super::decompose::weight;
use super::super::decompositions::Decompositions;
use super::super::stored;
use super::part::{BlockPart, block_parts, value_heads};
use super::survey::Survey;
use crate::checkpoint::NamedTensor;
use crate::form::channels;
use crate::form::value_output::ValueOutput;
use crate::model::{Block, FeedForwardLinears, Linear, LinearSpec, Role};
use crate::plan::{Choice, Plan};
use crate::report::{Form, LinearReport};
use anyhow::{Context, Result, bail};
use std::time::Instant;

impl Run<'_> {
    /// Cuts every block as `plan` says. Blocks that an earlier run has finished are kept.
    pub(super) fn cut_forms(&self, plan: &Plan) -> Result<()> {
        for index in 0..self.model.blocks() {
            if !self.job.block_file(index).exists() {
                let block = self.model.block(index)?;
                let survey = Survey::open(self, index)?;
                let parts = block_parts(&self.model, index);
                let cut = |part: &BlockPart| self.cut_part(part, &block, &survey, choice(plan, part.output())?);
                let mut done = FinishedBlock::default();
                for (tensors, reports) in self.in_waves(&parts, |part| part.output(), cut)? {
                    done.tensors.extend(tensors);
                    done.linears.extend(reports);
                }
                let place = |id| self.model.block_linears(index).position(|spec| spec.id == id);
                done.linears.sort_by_key(|linear| place(linear.id));
                done.split_fused(&self.model, index)?;
                done.save(&self.job.block_file(index))?;
            }
            self.progress.step(1)?;
        }
        Ok(())
    }

    pub(super) fn cut_part(
        &self,
        part: &BlockPart,
        block: &Block,
        survey: &Survey,
        choice: Choice,
    ) -> Result<(Vec<NamedTensor>, Vec<LinearReport>)> {
        let started = Instant::now();
        let output = part.output();
        let (tensors, mut reports) = match (part, choice) {
            (_, Choice::Dense) => return Ok((Vec::new(), part.linears().into_iter().map(dense_report).collect())),
            (BlockPart::Linear(spec), Choice::Rank(rank)) => {
                let file = Decompositions::open(&self.job.decompositions_file(spec.id.block))?;
                let (tensors, report) = self.cut(spec, &file.linear(spec, rank)?, rank)?;
                (tensors, vec![LinearReport { predicted_loss: Some(survey.loss(part, rank)?), ..report }])
            }
            (BlockPart::Channels(layer), Choice::Width(width)) => self.narrow_channels(layer, block, survey, width)?,
            (&BlockPart::Values { v, o, heads }, Choice::HeadDim { kept, .. }) => {
                let (value, output) = (weight(block, v)?, weight(block, o)?);
                let gradients = self.gradients(o.id.block)?;
                let moments = gradients.map(|gradients| gradients.get(o.id.role)).transpose()?.flatten();
                let bias = self.model.bias(v)?.map(|bias| bias.to_vec1::<f32>()).transpose()?;
                let bias = bias.map(|bias| bias.into_iter().map(f64::from).collect::<Vec<_>>());
                let found = ValueOutput::new(&output, &survey.gram(o)?, value_heads(heads), moments.as_ref())?;
                let narrowed = found.narrowed(kept, &value, bias.as_deref())?;
                let mut tensors = v.narrowed(&narrowed.value, narrowed.value_bias.as_deref(), self.factor_dtype(v)?)?;
                tensors.extend(o.narrowed(&narrowed.output, None, self.factor_dtype(o)?)?);
                let shapes = [(v, [heads.kv_heads * kept, v.input]), (o, [o.out, heads.heads * kept])];
                (tensors, shapes.map(|(spec, shape)| narrowed_report(spec, shape)).into())
            }
            (part, choice) => bail!("{choice:?} is no form of {}", part.output().id),
        };
        if !matches!(part, BlockPart::Linear(_)) {
            let kept = match choice {
                Choice::Width(kept) | Choice::HeadDim { kept, .. } => kept,
                _ => 0,
            };
            let seconds = survey.seconds(output)? + started.elapsed().as_secs_f64();
            let count = reports.len() as f64;
            for report in &mut reports {
                report.seconds = seconds / count;
                report.predicted_loss = Some(survey.loss(part, kept)? / count);
            }
        }
        Ok((tensors, reports))
    }

    /// What `choice` makes of a part, ready to compute with.
    pub(super) fn linears_of(&self, part: &BlockPart, choice: Choice) -> Result<Vec<(Role, Linear)>> {
        let index = part.output().id.block;
        let block = self.model.block(index)?;
        let (tensors, _) = self.cut_part(part, &block, &Survey::open(self, index)?, choice)?;
        let linear = |spec: &LinearSpec| {
            let linear = stored::linear(&tensors, spec, self.model.bias(spec)?, self.model.device())?;
            Ok((spec.id.role, linear.context("a part without one of its linears")?))
        };
        part.linears().into_iter().map(linear).collect()
    }

    /// The feed-forward layer with its best `width` channels, down repaired.
    fn narrow_channels(
        &self,
        layer: &FeedForwardLinears,
        block: &Block,
        survey: &Survey,
        width: usize,
    ) -> Result<(Vec<NamedTensor>, Vec<LinearReport>)> {
        let FeedForwardLinears { gate, up, down } = *layer;
        let mut kept = survey.order(down)?;
        kept.truncate(width);
        kept.sort_unstable();
        let source = self.model.source();
        let (mut tensors, mut reports) = (Vec::new(), Vec::new());
        for spec in gate.into_iter().chain([up]) {
            tensors.extend(stored::pruned(source, spec, &kept)?);
            reports.push(narrowed_report(spec, [width, spec.input]));
        }
        let w = weight(block, down)?;
        let dtype = self.factor_dtype(down)?;
        let repaired = channels::refit(&w, &survey.gram(down)?, &kept)?;
        tensors.extend(down.narrowed(&repaired, None, dtype)?);
        if down.bias {
            let change = channels::bias_correction(&w, &repaired, &kept, &survey.mean(down)?);
            let change: Vec<f32> = change.into_iter().map(|x| x as f32).collect();
            tensors.push(stored::bias(&self.model, down, &change, dtype)?);
        }
        reports.push(narrowed_report(down, [down.out, width]));
        Ok((tensors, reports))
    }
}

/// A linear that stays dense with a smaller shape.
fn narrowed_report(spec: &LinearSpec, shape: [usize; 2]) -> LinearReport {
    LinearReport {
        form: Form::Pruned,
        pruned_shape: Some(shape),
        params_after: (shape[0] * shape[1]) as u64,
        ..dense_report(spec)
    }
}

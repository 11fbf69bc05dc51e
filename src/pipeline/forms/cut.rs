//! From a survey and a plan to finished blocks.

use super::super::Run;
use super::super::cut::{Cut, choice, dense_report, narrowed_report};
use super::super::decompose::weight;
use super::super::decompositions::{Decompositions, Narrowing};
use super::super::stored;
use super::part::{BlockPart, block_parts, value_heads};
use crate::form::channels;
use crate::form::value_output::ValueOutput;
use crate::model::{Block, FeedForwardLinears, Heads, Linear, LinearSpec, Role};
use crate::plan::{Choice, Plan};
use crate::report::LinearReport;
use anyhow::{Context, Result, bail};
use std::time::Instant;

impl Run<'_> {
    /// Cuts every block as `plan` says.
    pub(super) fn cut_forms(&self, plan: &Plan) -> Result<()> {
        self.cut_blocks(&|index| {
            let (block, survey) = (self.model.block(index)?, self.surveyed(index)?);
            let parts = block_parts(&self.model, index);
            let cut = |part: &BlockPart| self.cut_part(part, &block, &survey, choice(plan, part.output())?);
            self.in_waves(&parts, |part| part.output(), cut)
        })
    }

    /// The survey of block `index`.
    pub(super) fn surveyed(&self, index: usize) -> Result<Decompositions> {
        Decompositions::open(&self.job.decompositions_file(index))
    }

    /// What `choice` makes of a part, ready to compute with.
    pub(super) fn linears_of(&self, part: &BlockPart, choice: Choice) -> Result<Vec<(Role, Linear)>> {
        let index = part.output().id.block;
        let (tensors, _) = self.cut_part(part, &self.model.block(index)?, &self.surveyed(index)?, choice)?;
        let linear = |spec: &LinearSpec| {
            let linear = stored::linear(&tensors, spec, self.model.bias(spec)?, self.model.device())?;
            Ok((spec.id.role, linear.context("a part without one of its linears")?))
        };
        part.linears().into_iter().map(linear).collect()
    }

    fn cut_part(&self, part: &BlockPart, block: &Block, survey: &Decompositions, choice: Choice) -> Result<Cut> {
        match (part, choice) {
            (_, Choice::Dense) => Ok((Vec::new(), part.linears().into_iter().map(dense_report).collect())),
            (BlockPart::Linear(spec), Choice::Rank(rank)) => {
                let (tensors, report) = self.cut(spec, &survey.linear(spec, rank)?, rank)?;
                let predicted_loss = survey.losses(spec)?.get(rank).copied();
                Ok((tensors, vec![LinearReport { predicted_loss, ..report }]))
            }
            (BlockPart::Channels(layer), Choice::Width(width)) => {
                self.narrow_channels(layer, block, survey.narrowing(layer.down)?, width)
            }
            (&BlockPart::Values { v, o, heads }, Choice::HeadDim { kept, .. }) => {
                self.narrow_values((v, o, heads), block, survey.narrowing(o)?, kept)
            }
            (part, choice) => bail!("{choice:?} is no form of {}", part.output().id),
        }
    }

    /// The feed-forward layer with its best `width` channels, down repaired.
    fn narrow_channels(
        &self,
        layer: &FeedForwardLinears,
        block: &Block,
        mut found: Narrowing,
        width: usize,
    ) -> Result<Cut> {
        let started = Instant::now();
        let FeedForwardLinears { gate, up, down } = *layer;
        found.order.truncate(width);
        found.order.sort_unstable();
        let kept = &found.order;
        let mut tensors = Vec::new();
        for spec in gate.into_iter().chain([up]) {
            tensors.extend(stored::pruned(self.model.source(), spec, kept)?);
        }
        let w = weight(block, down)?;
        let dtype = self.factor_dtype(down)?;
        let repaired = channels::refit(&w, &found.gram, kept)?;
        tensors.extend(down.narrowed(&repaired, None, dtype)?);
        if down.bias {
            let change = channels::bias_correction(&w, &repaired, kept, &found.mean);
            let change: Vec<f32> = change.into_iter().map(|x| x as f32).collect();
            tensors.push(stored::bias(&self.model, down, &change, dtype)?);
        }
        let linears: Vec<_> = gate.into_iter().chain([up, down]).map(|spec| (spec, width)).collect();
        Ok((tensors, reports(&linears, &found, width, started)))
    }

    /// Values with `kept` dimensions per head, o repaired.
    fn narrow_values(
        &self,
        (v, o, heads): (&LinearSpec, &LinearSpec, Heads),
        block: &Block,
        found: Narrowing,
        kept: usize,
    ) -> Result<Cut> {
        let started = Instant::now();
        let (value, output) = (weight(block, v)?, weight(block, o)?);
        let moments = self.gradients(o.id.block)?.map_or(Ok(None), |gradients| gradients.get(o))?;
        let bias = self.model.bias(v)?.map(|bias| bias.to_vec1::<f32>()).transpose()?;
        let bias = bias.map(|bias| bias.into_iter().map(f64::from).collect::<Vec<_>>());
        let narrowed = ValueOutput::new(&output, &found.gram, value_heads(heads), moments.as_ref())?.narrowed(
            kept,
            &value,
            bias.as_deref(),
        )?;
        let mut tensors = v.narrowed(&narrowed.value, narrowed.value_bias.as_deref(), self.factor_dtype(v)?)?;
        tensors.extend(o.narrowed(&narrowed.output, None, self.factor_dtype(o)?)?);
        let linears = [(v, heads.kv_heads * kept), (o, heads.heads * kept)];
        Ok((tensors, reports(&linears, &found, kept, started)))
    }
}

/// Of linears that changed together, each with what is left of its inner side; each has its share of loss and time.
fn reports(linears: &[(&LinearSpec, usize)], found: &Narrowing, size: usize, started: Instant) -> Vec<LinearReport> {
    let count = linears.len() as f64;
    let seconds = (found.seconds + started.elapsed().as_secs_f64()) / count;
    let predicted_loss = found.losses.get(size).map(|loss| loss / count);
    let report = |&(spec, inner): &(&LinearSpec, usize)| LinearReport {
        seconds,
        predicted_loss,
        ..narrowed_report(spec, inner)
    };
    linears.iter().map(report).collect()
}

//! What every form of every part of a block would lose, at every size.

use super::super::Run;
use super::super::decompose::{heldout_inputs, weight};
use super::super::decompositions::Decomposed;
use super::part::{BlockPart, block_parts, value_heads};
use crate::backward::OutputGrams;
use crate::calibrate::{BlockStats, SiteStats};
use crate::checkpoint::{NamedTensor, TensorFile};
use crate::form::channels;
use crate::form::value_output::ValueOutput;
use crate::linalg::Mat;
use crate::method::{GRADIENTS, heldout_curve, two_sided};
use crate::model::{Block, LinearSpec};
use crate::pipeline::stored;
use crate::plan::{largest_saving_rank, tails};
use anyhow::{Context, Result};
use std::time::Instant;

impl Run<'_> {
    /// Surveys every block in one pass over the calibration text.
    pub(super) fn survey(&self) -> Result<()> {
        self.decompose_blocks(self.method.needs(), &|index, block, stats| self.survey_block(index, block, stats))
    }

    /// The second moments of gradients of block `index`; `None` where the recipe does without.
    pub(super) fn gradients(&self, index: usize) -> Result<Option<OutputGrams>> {
        let wanted: bool = self.recipe.options.get(&GRADIENTS)?;
        wanted.then(|| OutputGrams::open(&self.job.gradients_file(index))).transpose()
    }

    fn survey_block(&self, index: usize, block: &Block, stats: &BlockStats) -> Result<Vec<NamedTensor>> {
        let parts = block_parts(&self.model, index);
        let gradients = self.gradients(index)?;
        let work = |part: &BlockPart| {
            let output = part.output();
            let moments = match &gradients {
                Some(gradients) => gradients.get(output.id.role)?,
                None => None,
            };
            let site =
                stats.get(&output.site).with_context(|| format!("no statistics of the input of {}", output.id))?;
            self.survey_part(part, block, site, moments.as_ref())
        };
        Ok(self.in_waves(&parts, |part| part.output(), work)?.into_iter().flatten().collect())
    }

    fn survey_part(
        &self,
        part: &BlockPart,
        block: &Block,
        stats: &SiteStats,
        moments: Option<&Mat>,
    ) -> Result<Vec<NamedTensor>> {
        let started = Instant::now();
        let spec = part.output();
        let w = weight(block, spec)?;
        let vector = |name: &str, values: &[f64]| NamedTensor::f64(key(spec, name), [values.len()], values);
        let seconds = || started.elapsed().as_secs_f64();
        // Half the squared error per token: nats, where the second moments of gradients weigh it.
        let per_token = |error: &[f64]| error.iter().map(|e| 0.5 * e.max(0.0) / stats.tokens.max(1) as f64).collect();
        match part {
            BlockPart::Linear(_) => {
                let parts = match moments {
                    Some(moments) => two_sided(&w, stats, moments)?,
                    None => self.method.decompose(&w, Some(stats))?,
                };
                let rank = largest_saving_rank(spec.out, spec.input).min(parts.rank());
                let loss: Vec<f64> = per_token(&tails(&parts.energy));
                let heldout = heldout_curve(&w, &parts, heldout_inputs(Some(stats)), rank);
                let dtype = stored::stored_dtype(self.model.source(), spec, self.recipe.dtype)?;
                let mut tensors = Decomposed { parts, heldout, seconds: seconds() }.encode(spec, rank, dtype)?;
                tensors.push(vector("loss", &loss));
                Ok(tensors)
            }
            BlockPart::Channels(_) => {
                let gram = inner_gram(spec, stats);
                let found = channels::order_and_curve(&w, &gram, moments)?;
                let order: Vec<f64> = found.order.iter().map(|&channel| channel as f64).collect();
                Ok(vec![
                    square("gram", spec, &gram),
                    vector("order", &order),
                    vector("sum", &stats.sum),
                    vector("loss", &per_token(&found.error)),
                    vector("facts", &[stats.tokens as f64, seconds()]),
                ])
            }
            BlockPart::Values { heads, .. } => {
                let found = ValueOutput::new(&w, &stats.gram, value_heads(*heads), moments)?;
                Ok(vec![
                    square("gram", spec, &stats.gram),
                    vector("loss", &per_token(&found.error)),
                    vector("facts", &[stats.tokens as f64, seconds()]),
                ])
            }
        }
    }
}

/// Σ h hᵀ of what enters down, without the mean where its bias takes that over.
fn inner_gram(spec: &LinearSpec, stats: &SiteStats) -> Mat {
    if spec.bias { channels::centred(&stats.gram, &stats.sum, stats.tokens) } else { stats.gram.clone() }
}

fn square(name: &str, spec: &LinearSpec, matrix: &Mat) -> NamedTensor {
    NamedTensor::f32(key(spec, name), [matrix.rows(), matrix.cols()], &matrix.to_f32_rows())
}

fn key(spec: &LinearSpec, part: &str) -> String {
    format!("{}.{part}", spec.id.role)
}

/// The survey of one block.
pub(super) struct Survey(TensorFile);

impl Survey {
    pub fn open(run: &Run, index: usize) -> Result<Self> {
        Ok(Self(TensorFile::open_unfinished(&run.job.decompositions_file(index))?))
    }

    /// What is lost with each size of a part, from nothing to all of it.
    pub fn losses(&self, part: &BlockPart) -> Result<Vec<f64>> {
        self.0.f64s(&key(part.output(), "loss"))
    }

    /// What is lost with one size.
    pub fn loss(&self, part: &BlockPart, kept: usize) -> Result<f64> {
        Ok(self.losses(part)?.get(kept).copied().unwrap_or(0.0))
    }

    /// The Gram matrix of what enters `spec`.
    pub fn gram(&self, spec: &LinearSpec) -> Result<Mat> {
        let n = spec.input;
        Ok(Mat::from_f32_rows(n, n, &self.0.f32s(&key(spec, "gram"))?))
    }

    /// Channels in the order in which they should be kept.
    pub fn order(&self, spec: &LinearSpec) -> Result<Vec<usize>> {
        Ok(self.0.f64s(&key(spec, "order"))?.into_iter().map(|channel| channel as usize).collect())
    }

    /// The mean of what enters `spec`.
    pub fn mean(&self, spec: &LinearSpec) -> Result<Vec<f64>> {
        let tokens = self.facts(spec)?[0].max(1.0);
        Ok(self.0.f64s(&key(spec, "sum"))?.into_iter().map(|sum| sum / tokens).collect())
    }

    /// Seconds that the survey of the part took.
    pub fn seconds(&self, spec: &LinearSpec) -> Result<f64> {
        Ok(self.facts(spec)?[1])
    }

    fn facts(&self, spec: &LinearSpec) -> Result<Vec<f64>> {
        self.0.f64s(&key(spec, "facts"))
    }
}

//! Second moments of the gradients on what leaves each linear, C = mean g gᵀ (m, m): the output half of a Kronecker-factored
//! Fisher information (K-FAC).
//!
//! A change D of the weight W of y = W x changes what the model predicts by KL ≈ ½ tr(C D G Dᵀ) per token, G = mean x xᵀ:
//! in nats, so it compares between linears.
//!
//! Gradients are heavy-tailed, and those at both ends of a window are unlike the others. So each token's is scaled into
//! [1/10, 10] times the mean norm of its sequence, and C is shrunk towards a multiple of the identity:
//! C ← (1 − a) C + a tr(C)/m I, a = 0.3. Where every token is predicted the first and last eighth of each sequence are left
//! out; where a sequence is, what it is judged by may stand at its first token alone.

use super::gradients::Gradients;
use super::pass::{GradientTap, Segment, backward, forward};
use super::sampled::{Prediction, sampled_gradient};
use crate::checkpoint::{Dtype, NamedTensor, TensorFile, decode, write_sealed};
use crate::compute::Limits;
use crate::linalg::{GramSums, Mat, gram_add};
use crate::memory;
use crate::model::{Flow, LinearSpec, Model, Role, Site, Tap};
use crate::ops::with_numbers;
use crate::progress::Progress;
use crate::random::SplitMix64;
use crate::user_bail;
use anyhow::{Context, Result};
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Norms of gradients are brought to within this factor of their sequence's mean.
const CLIP: f64 = 10.0;
/// One part in so many at each end of a sequence of predicted tokens is left out.
const EDGE: usize = 8;
/// Mean of the diagonal of C where no gradient arrived: nothing, but what divides by it still can.
const NOTHING: f64 = 1e-30;
/// a, the share of the multiple of the identity.
const SHRINK: f64 = 0.3;

/// The second moments of the linears of one block, in a file.
pub struct OutputGrams(TensorFile);

impl OutputGrams {
    /// Opens a file that [`output_grams`] has written.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self(TensorFile::open_unfinished(path)?))
    }

    /// C (m, m) of a linear; a multiple of the identity for one that no gradient reached. `None` if it was not asked for.
    ///
    /// Another shape is a [`UserError`](crate::error::UserError).
    pub fn get(&self, spec: &LinearSpec) -> Result<Option<Mat>> {
        let name = spec.id.role.to_string();
        let Some(info) = self.0.info(&name) else { return Ok(None) };
        let m = spec.out;
        if info.shape != [m, m] {
            user_bail!(
                "{} is damaged: its tensor {name} does not fit {}", self.0.name(), spec.id;
                "make the elastic output again, or start over with --force"
            );
        }
        Ok(Some(Mat::from_f32_rows(m, m, &self.0.f32s(&name)?)))
    }
}

/// Writes the second moments of the linears that are `wanted`, block `index` to `path(index)`, over predictions for
/// `windows`. Steps `progress` once per batch of them, of which there are [`batches`].
///
/// Sums wait on the disk between batches: memory is that of one block's, beside the states in front of all blocks.
pub fn output_grams(
    model: &Model,
    windows: &[&[u32]],
    seed: u64,
    wanted: &dyn Fn(&LinearSpec) -> bool,
    path: &dyn Fn(usize) -> std::path::PathBuf,
    progress: &dyn Progress,
) -> Result<()> {
    let prediction = Prediction::of(model)?;
    let mut random = SplitMix64::new(seed);
    let edge = if matches!(prediction, Prediction::Tokens(_)) { EDGE } else { usize::MAX };
    let mut tap = Collector::new(model, wanted, edge)?;
    for rows in windows.chunks(at_once(model, windows)) {
        let input = model.embed(rows)?;
        let segment = Segment { blocks: 0..model.blocks(), input: &input, lengths: None };
        let pass = forward(model, segment)?;
        let gradient = sampled_gradient(&prediction, &pass.output, &mut random)?;
        backward(model, pass, gradient, Some(&mut tap), &mut Gradients::new(model))?;
        tap.leave()?;
        memory::trim();
        progress.step(1)?;
    }
    for index in 0..model.blocks() {
        write_sealed(&path(index), &tap.block(index)?, &BTreeMap::new())?;
    }
    Ok(())
}

/// Number of batches that [`output_grams`] takes `windows` in.
pub fn batches(model: &Model, windows: &[&[u32]]) -> usize {
    windows.len().div_ceil(at_once(model, windows))
}

fn at_once(model: &Model, windows: &[&[u32]]) -> usize {
    windows_at_once(model, &model.compute().limits, windows.first().map_or(1, |row| row.len()))
}

/// Windows of so many tokens whose states in front of all blocks find room together.
pub fn windows_at_once(model: &Model, limits: &Limits, window: usize) -> usize {
    let tokens = (limits.states / (4 * model.hidden() * (model.blocks() + 1))).min(limits.batch_tokens / 2);
    (tokens / window.max(1)).max(1)
}

/// Sums of gradients, those of one block in memory.
struct Collector {
    /// One part in so many at each end of a sequence is left out.
    edge: usize,
    /// Of every block, the wanted linears with their number of outputs and where their sums lie in `file`.
    places: Vec<BTreeMap<Role, (usize, u64)>>,
    /// Sums and numbers of tokens: m² + 1 numbers in f64 per linear.
    file: File,
    block: Option<usize>,
    sums: BTreeMap<Role, (Mat, f64)>,
}

impl Collector {
    fn new(model: &Model, wanted: &dyn Fn(&LinearSpec) -> bool, edge: usize) -> Result<Self> {
        let mut end = 0;
        let mut place = |spec: &LinearSpec| {
            let at = end;
            end += 8 * (spec.out * spec.out + 1) as u64;
            (spec.id.role, (spec.out, at))
        };
        let places = (0..model.blocks())
            .map(|index| model.block_linears(index).filter(|spec| wanted(spec)).map(&mut place).collect())
            .collect();
        let file = memory::scratch_file()?;
        file.set_len(end)?;
        Ok(Self { edge, places, file, block: None, sums: BTreeMap::new() })
    }

    /// The sums of a linear as they lie on the disk.
    fn read(&self, (m, at): (usize, u64)) -> Result<(Mat, f64)> {
        let mut bytes = vec![0; 8 * (m * m + 1)];
        self.file.read_exact_at(&mut bytes, at).context("reading sums of gradients back")?;
        let mut numbers: Vec<f64> = decode(Dtype::F64, &bytes);
        let tokens = numbers.pop().unwrap_or(0.0);
        Ok((Mat::from_rows(m, m, &numbers), tokens))
    }

    /// Puts the sums of the block that the pass has left on the disk.
    fn leave(&mut self) -> Result<()> {
        let sums = std::mem::take(&mut self.sums);
        let Some(block) = self.block.take() else { return Ok(()) };
        for (role, (sum, tokens)) in sums {
            let (_, at) = self.places[block][&role];
            let mut bytes: Vec<u8> = sum.to_rows().into_iter().flat_map(f64::to_le_bytes).collect();
            bytes.extend(tokens.to_le_bytes());
            self.file.write_all_at(&bytes, at).context("writing sums of gradients")?;
        }
        Ok(())
    }

    /// C of every wanted linear of a block, shrunk.
    fn block(&self, index: usize) -> Result<Vec<NamedTensor>> {
        let finished = |(role, &place): (&Role, &(usize, u64))| {
            let (mut c, tokens) = self.read(place)?;
            c.mirror_lower();
            let m = c.rows();
            let trace: f64 = (0..m).map(|i| c.get(i, i)).sum();
            anyhow::ensure!(trace.is_finite(), "the gradients behind {role} of block {index} are not finite");
            let mean = (trace / m as f64).max(NOTHING * tokens.max(1.0));
            let numbers: Vec<f32> = (0..m * m)
                .map(|at| {
                    let (i, j) = (at / m, at % m);
                    let identity = if i == j { SHRINK * mean } else { 0.0 };
                    (((1.0 - SHRINK) * c.get(i, j) + identity) / tokens.max(1.0)) as f32
                })
                .collect();
            Ok(NamedTensor::f32(role.to_string(), [m, m], &numbers))
        };
        self.places[index].iter().map(finished).collect()
    }
}

impl Tap for Collector {
    fn see(&mut self, _: Site, _: &Tensor) -> Result<Flow> {
        Ok(Flow::Continue)
    }
}

impl GradientTap for Collector {
    fn enter(&mut self, index: usize) -> Result<()> {
        self.leave()?;
        self.block = Some(index);
        Ok(())
    }

    fn see_gradient(&mut self, role: Role, gradient: &Tensor) -> Result<()> {
        let block = self.block.context("a gradient outside all blocks")?;
        let Some(&place) = self.places[block].get(&role) else { return Ok(()) };
        if !self.sums.contains_key(&role) {
            self.sums.insert(role, self.read(place)?);
        }
        let (sum, tokens) = self.sums.get_mut(&role).context("sums that were just read")?;
        let m = place.0;
        // The tokens of an expert belong to no sequence.
        let length = if gradient.rank() == 3 { gradient.dim(1)? } else { gradient.elem_count() / m };
        let mut rows = Vec::new();
        with_numbers(&gradient.contiguous()?, |numbers| {
            for sequence in numbers.chunks_exact(m * length) {
                rows.extend(clipped(sequence, m, self.edge));
            }
        })?;
        *tokens += (rows.len() / m) as f64;
        gram_add(sum, &rows, GramSums::suiting(m, rows.len() / m, false));
        Ok(())
    }
}

/// The gradients of a sequence without one part in `edge` at each end, brought to within [`CLIP`] of their mean norm.
fn clipped(sequence: &[f32], m: usize, edge: usize) -> Vec<f32> {
    let norm = |row: &[f32]| row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    let norms: Vec<f64> = sequence.chunks_exact(m).map(norm).collect();
    let mean = norms.iter().sum::<f64>() / norms.len().max(1) as f64;
    let edge = norms.len() / edge;
    let mut rows = sequence[edge * m..(norms.len() - edge) * m].to_vec();
    for (row, &norm) in rows.chunks_exact_mut(m).zip(&norms[edge..]) {
        // A token that nothing depends on stays one.
        let scale = if norm > 1e-10 * mean { norm.clamp(mean / CLIP, mean * CLIP) / norm } else { 1.0 };
        row.iter_mut().for_each(|x| *x *= scale as f32);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of two numbers with these norms, in the direction (0.6, 0.8).
    fn rows(norms: &[f32]) -> Vec<f32> {
        norms.iter().flat_map(|norm| [0.6 * norm, 0.8 * norm]).collect()
    }

    fn norms(rows: &[f32]) -> Vec<f32> {
        rows.chunks_exact(2).map(|row| row[0].hypot(row[1])).collect()
    }

    fn assert_close(found: &[f32], wanted: &[f32]) {
        assert_eq!(found.len(), wanted.len(), "{found:?}");
        assert!(found.iter().zip(wanted).all(|(a, b)| (a - b).abs() <= 1e-5 * b), "{found:?} for {wanted:?}");
    }

    #[test]
    fn norms_are_brought_to_within_ten_times_their_mean_and_directions_stay() {
        // Sixteen tokens of mean norm 1, the ends of which are two each.
        let mut all = [0.5f32; 16];
        (all[0], all[4], all[9]) = (8.59, 0.01, 0.0);
        let sum: f32 = all.iter().sum();
        all[15] += 16.0 - sum;
        let found = clipped(&rows(&all), 2, EDGE);
        let mut wanted = all[2..14].to_vec();
        wanted[2] = 0.1;
        assert_close(&norms(&found), &wanted);
        assert!(found.chunks_exact(2).all(|row| (row[0] * 0.8 - row[1] * 0.6).abs() < 1e-6), "{found:?}");
        // 31 tokens of norm 1 and one of 969: a mean of 31.25.
        let mut all = [1.0; 32];
        all[20] = 969.0;
        let found = clipped(&rows(&all), 2, EDGE);
        let mut wanted = vec![3.125; 24];
        wanted[16] = 312.5;
        assert_close(&norms(&found), &wanted);
    }

    #[test]
    fn a_sequence_that_is_judged_as_a_whole_keeps_its_ends() {
        let mut all = [0.0; 16];
        all[0] = 3.0;
        let found = clipped(&rows(&all), 2, usize::MAX);
        // Ten times the mean, and fifteen tokens that nothing depends on.
        let mut wanted = [0.0; 16];
        wanted[0] = 30.0 / 16.0;
        assert_close(&norms(&found), &wanted);
        assert!(clipped(&[], 2, EDGE).is_empty());
        assert_close(&norms(&clipped(&rows(&[2.0]), 2, EDGE)), &[2.0]);
    }
}

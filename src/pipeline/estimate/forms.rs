//! What `--allocation forms` takes, stage by stage.

use super::super::forms::{BlockPart, block_parts, gradient_windows};
use super::super::waves::side_by_side;
use super::super::weights::kl_windows;
use super::compression::Compression;
use super::terms::{BACKWARD, Bytes, FORWARD, Terms, host};
use crate::backward::windows_at_once;
use crate::eval::SENSITIVITY_STATES;
use crate::form::{channels, value_output};
use crate::method::{GRADIENTS, Workspace, heldout_numbers, two_sided_workspace};
use crate::model::LinearSpec;
use crate::plan::largest_saving_rank;

/// Tokens whose gradients are copied to panels.
const PANEL: f64 = 256.0;

impl Compression<'_> {
    /// Gradients, survey, measurement and cut, whichever is highest.
    pub(super) fn by_forms(&self, terms: &Terms) -> Bytes {
        let gradients = self.recipe.options.get(&GRADIENTS).unwrap_or(true);
        let differentiating = if gradients { self.differentiating(terms) } else { Bytes::default() };
        let works = |cuts| terms.largest(|index| self.working(terms, index, gradients, cuts));
        differentiating.max(works(false)).max(works(true)).max(self.measuring_forms(terms, gradients))
    }

    /// One batch of windows forward, and back through one block after the other.
    fn differentiating(&self, terms: &Terms) -> Bytes {
        let windows = &self.calibration.windows;
        let at_once = windows_at_once(self.model, terms.limits, windows.window);
        let tokens = (at_once.min(gradient_windows(windows)) * windows.window) as f64;
        let (hidden, blocks) = (self.model.hidden() as f64, self.model.blocks() as f64);
        let states = terms.tensors((blocks + 2.0) * tokens * hidden);
        let block = |index: usize| terms.tensors(self.model.block_numbers(index) as f64);
        let labels = terms.logits(tokens as usize, 3.0) + terms.tensors(3.0 * tokens * hidden);
        let back = terms.largest(|index| {
            let outputs: Vec<f64> =
                block_parts(self.model, index).iter().map(|part| part.output().out as f64).collect();
            let most = outputs.iter().copied().fold(0.0, f64::max);
            // Sums, those of one linear on their way from or to the disk, and the gradients that are added.
            let sums = 8.0 * outputs.iter().map(|m| m * m).sum::<f64>();
            let adding = (16.0 * most * most).max((4.0 * 3.0 * tokens + 8.0 * PANEL) * most);
            block(index) + terms.activations(index, tokens, BACKWARD) + host(sums + adding)
        });
        let there = terms.largest(|index| block(index) + terms.activations(index, tokens, FORWARD));
        terms.head() + states + there.max(labels).max(back)
    }

    /// The parts of a block surveyed, or cut.
    fn working(&self, terms: &Terms, index: usize, gradients: bool, cuts: bool) -> Bytes {
        let parts = block_parts(self.model, index);
        let specs: Vec<&LinearSpec> = parts.iter().map(BlockPart::output).collect();
        let heldout = self.calibration.heldout.tokens();
        let of_part = |place: usize| {
            let Workspace { held, scratch } =
                if cuts { cutting(&parts[place], gradients) } else { surveying(&parts[place], gradients, heldout) };
            (8.0 * (held + scratch) as f64, 8.0 * scratch as f64)
        };
        let mut most = 0f64;
        for wave in side_by_side(terms.limits.decompositions, &specs) {
            let found: Vec<(f64, f64)> = wave.into_iter().map(of_part).collect();
            let scratch = found.iter().map(|(_, scratch)| *scratch).fold(0.0, f64::max);
            most = most.max(found.iter().map(|(all, _)| all + scratch).sum());
        }
        let stored: f64 = parts.iter().map(stored).sum();
        if cuts {
            // What is cut, as it was surveyed and as it will be written.
            let written: f64 = 4.0 * self.model.block_linears(index).map(|spec| spec.params() as f64).sum::<f64>();
            return terms.tensors(self.model.block_numbers(index) as f64) + host(most + stored + written);
        }
        let mapped = if gradients { specs.iter().map(|spec| 4.0 * (spec.out * spec.out) as f64).sum() } else { 0.0 };
        let before = if terms.limits.read_ahead && index > 0 { stored } else { 0.0 };
        let statistics = terms.statistics(&terms.widths(index), true, heldout);
        let collecting = terms.collecting(index, self.batch(terms));
        let surveying = host(most + stored + mapped);
        terms.blocks(index) + self.states(terms) + statistics + host(before) + collecting.max(surveying)
    }

    /// One form of every part alone, and predictions compared.
    fn measuring_forms(&self, terms: &Terms, gradients: bool) -> Bytes {
        let parts: Vec<BlockPart> = (0..self.model.blocks()).flat_map(|index| block_parts(self.model, index)).collect();
        let measured = parts.chunk_by(|a, b| a.shares_input(b));
        let blocks = measured.map(|together| together[0].output().id.block);
        let windows = kl_windows(self.model, blocks, &self.calibration.windows);
        let tokens = windows.tokens();
        let states = 4.0 * (tokens * self.model.hidden()) as f64;
        let group = (terms.limits.states as f64 / SENSITIVITY_STATES as f64 / states.max(1.0)).floor().max(1.0);
        let changed = states * group.min(parts.len() as f64);
        let making = |part: &BlockPart| {
            let Workspace { held, scratch } = cutting(part, gradients);
            let index = part.output().id.block;
            // The block is read once more, and of the survey what the part needs.
            let block = terms.tensors(self.model.block_numbers(index) as f64);
            block + host(8.0 * (held + scratch) as f64 + stored(part))
        };
        let running = terms.largest(|index| {
            let made = block_parts(self.model, index).iter().map(making).fold(Bytes::default(), Bytes::max);
            let batch = terms.batch(windows.len(), windows.window);
            terms.blocks(index) + terms.activations(index, batch, FORWARD).max(made)
        });
        terms.head() + terms.tensors((changed + states) / 4.0) + running.max(terms.logits(tokens, 2.0))
    }
}

/// Numbers (f64) that surveying a part takes.
fn surveying(part: &BlockPart, gradients: bool, heldout: usize) -> Workspace {
    let spec = part.output();
    let (m, n) = (spec.out, spec.input);
    let moments = if gradients { m * m } else { 0 };
    match part {
        BlockPart::Linear(_) => {
            let work = two_sided_workspace(m, n, gradients);
            let measuring = heldout_numbers((m, n), largest_saving_rank(m, n), heldout) + moments;
            Workspace { held: work.held.max(measuring.saturating_sub(work.scratch)), ..work }
        }
        // The weight, and the Gram matrix once more for the survey's file.
        BlockPart::Channels(_) => Workspace { held: m * n + moments + n * n + channels::numbers(m, n), scratch: 0 },
        BlockPart::Values { .. } => Workspace { held: m * n + moments + value_output::numbers(m, n), scratch: 0 },
    }
}

/// Numbers (f64) that cutting a part, or making one form of it, takes.
fn cutting(part: &BlockPart, gradients: bool) -> Workspace {
    let spec = part.output();
    let (m, n) = (spec.out, spec.input);
    let held = match part {
        // Factors as they are read and cut.
        BlockPart::Linear(_) => 2 * largest_saving_rank(m, n) * (m + n),
        // The weight, the new one, columns and squares of what stays and of what goes.
        BlockPart::Channels(_) => 4 * m * n + 2 * n * n,
        BlockPart::Values { v, .. } => {
            let moments = if gradients { m * m } else { 0 };
            m * n + 2 * v.params() + moments + n * n + value_output::numbers(m, n)
        }
    };
    Workspace { held, scratch: 0 }
}

/// Bytes of a part in the survey's file.
fn stored(part: &BlockPart) -> f64 {
    let spec = part.output();
    let numbers = match part {
        BlockPart::Linear(_) => largest_saving_rank(spec.out, spec.input) * (spec.out + spec.input),
        _ => spec.input * spec.input,
    };
    4.0 * numbers as f64
}

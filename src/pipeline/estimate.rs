//! How much memory a run will take, from headers, configuration and numbers of tokens alone, and which limits on its parts
//! keep it within what the user allows.
//!
//! The peak is what the process holds before it begins (program, tokenizer, text) and the largest of its stages:
//!
//! | term | bytes |
//! |---|---|
//! | walk | the largest block in f32, twice where the next one is read ahead, and what a batch of tokens has at once in it |
//! | states | 4 · tokens · hidden of calibration and held-out windows, as far as they are not spilled |
//! | statistics | of every site 8 n² for the Gram matrix, 4 n for every held-out token |
//! | decompositions | of the largest linears that are worked on side by side what the method declares ([`Workspace`]), or what measuring the held-out error takes, whichever is more; for each the largest scratch once more, for the holes it leaves |
//! | factors | in f32 those of a block, twice where one is written while the next is made |
//! | heads | 4 · vocab · hidden of every model that is compared, and a chunk of logits of each |
//! | training | every block, if they are kept, parameters, their two moments, the best ones and gradients; one block's graph; what entered every block |
//!
//! Everything but training and evaluation's heads is a property of the largest block. On a GPU tensors count there.

use super::texts::{Calibration, EvalText};
use super::waves::side_by_side;
use crate::compute::{Allowance, Compute, Limits};
use crate::eval::SENSITIVITY_STATES;
use crate::forward::room;
use crate::learn::Labelled;
use crate::memory;
use crate::method::{Inputs, Method, Needs, Unit, Workspace, heldout_numbers, of_basis};
use crate::model::{LinearSpec, Model, Output, Site};
use crate::plan::{AllocationRule, Choice, Plan, largest_saving_rank};
use crate::progress::Progress;
use crate::recipe::{Recipe, WeightRule};
use crate::report::{MemoryEstimate, bytes};
use crate::user_bail;
use anyhow::Result;
use std::ops::Add;

/// How far measured peaks are from estimates at most. What is allowed has to hold an estimate and this much more.
const ERROR: f64 = 0.2;
/// What the allocator's holes take, relative to what lies between them.
const HOLES: f64 = 0.06;
/// What a GPU's libraries take for themselves.
const DEVICE_BASE: f64 = 600e6;
/// Numbers per token of hidden states, and of the widest layer, that a block has at once on the way forward.
const FORWARD: (f64, f64) = (4.0, 3.0);
/// The same with a graph, on the way back.
const BACKWARD: (f64, f64) = (16.0, 11.0);
/// Tokens whose inputs are copied to panels for a Gram matrix.
const PANEL: f64 = 256.0;
/// Tokens on which the divergence of single cuts is measured, at most.
const KL_TOKENS: usize = 2048;

/// What a stage takes at its height.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Bytes {
    host: f64,
    device: f64,
}

impl Bytes {
    fn max(self, other: Self) -> Self {
        Self { host: self.host.max(other.host), device: self.device.max(other.device) }
    }
}

impl Add for Bytes {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { host: self.host + other.host, device: self.device + other.device }
    }
}

/// Under which limits, and where, something is done.
#[derive(Clone, Copy)]
struct Setting<'a> {
    limits: &'a Limits,
    on_gpu: bool,
}

/// One model there.
struct Terms<'a> {
    model: &'a Model,
    limits: &'a Limits,
    on_gpu: bool,
}

impl<'a> Terms<'a> {
    fn new(model: &'a Model, Setting { limits, on_gpu }: Setting<'a>) -> Self {
        Self { model, limits, on_gpu }
    }

    /// So many numbers of tensors.
    fn tensors(&self, numbers: f64) -> Bytes {
        let bytes = numbers * self.model.compute().dtype.size_in_bytes() as f64;
        if self.on_gpu { Bytes { device: bytes, host: 0.0 } } else { host(bytes) }
    }

    /// The largest over all blocks.
    fn largest(&self, of: impl Fn(usize) -> Bytes) -> Bytes {
        (0..self.model.blocks()).map(of).fold(Bytes::default(), Bytes::max)
    }

    /// Tokens of windows of this length that go through a block at once.
    fn batch(&self, windows: usize, window: usize) -> f64 {
        ((self.limits.batch_tokens / window.max(1)).clamp(1, windows.max(1)) * window) as f64
    }

    /// A block and the one behind it.
    fn blocks(&self, index: usize) -> Bytes {
        let ahead = self.limits.read_ahead && index + 1 < self.model.blocks();
        let next = if ahead { self.model.block_numbers(index + 1) } else { 0 };
        let read = if self.on_gpu { host(4.0 * self.model.block_numbers(index) as f64) } else { Bytes::default() };
        self.tensors((self.model.block_numbers(index) + next) as f64) + read
    }

    /// What so many tokens have at once in block `index`.
    fn activations(&self, index: usize, tokens: f64, (states, widest): (f64, f64)) -> Bytes {
        self.tensors(tokens * (states * self.model.hidden() as f64 + widest * self.model.widest(index) as f64))
    }

    /// States of so many windows, which lie on the disk as far as they find no room, but for a batch.
    fn states(&self, windows: usize, window: usize) -> Bytes {
        let all = 4.0 * (windows * window * self.model.hidden()) as f64;
        let batch = 4.0 * self.batch(windows, window) * self.model.hidden() as f64;
        let resident = all.min(room(self.limits) as f64);
        // A batch that is read back exists as bytes too.
        let spilled = if all > resident { host(2.0 * batch) } else { Bytes::default() };
        self.tensors(resident / 4.0) + spilled
    }

    /// What is kept of the inputs of some sites of block `index`, and what summing them takes.
    fn statistics(&self, widths: &[usize], sums: bool, heldout: usize) -> Bytes {
        let of_site = |&n: &usize| {
            let n = n as f64;
            let gram = if sums { 8.0 * n * n } else { 0.0 };
            let on_device = if self.on_gpu { gram } else { 0.0 };
            Bytes { host: gram + 4.0 * n * heldout as f64, device: on_device }
        };
        widths.iter().map(of_site).fold(Bytes::default(), Bytes::add)
    }

    /// Statistics of block `index` being made of a batch of so many tokens.
    fn collecting(&self, index: usize, tokens: f64) -> Bytes {
        let widest = self.model.widest(index) as f64;
        let panels = if self.on_gpu { self.tensors(2.0 * tokens * widest) } else { host(8.0 * PANEL * widest) };
        self.activations(index, tokens, FORWARD) + panels
    }

    fn widths(&self, index: usize) -> Vec<usize> {
        let widths = self.model.site_widths(index);
        self.model.block_sites(index).iter().filter_map(|site| widths.get(site).copied()).collect()
    }

    /// A chunk of the logits of so many models that share the limit.
    fn logits(&self, positions: usize, sets: f64) -> Bytes {
        let row = 4.0 * self.model.vocab() as f64;
        let most = (self.limits.logits as f64 / sets).max(row).min(positions as f64 * row);
        let capped = if self.model.caps_logits() { 2.0 } else { 1.0 };
        self.tensors(sets * capped * most / 4.0)
    }

    fn head(&self) -> Bytes {
        match self.model.output() {
            Output::NextToken | Output::MaskedToken => self.tensors((self.model.vocab() * self.model.hidden()) as f64),
            Output::Classes(_) | Output::States => Bytes::default(),
        }
    }
}

fn host(bytes: f64) -> Bytes {
    Bytes { host: bytes, device: 0.0 }
}

/// What one linear is worked on with.
struct Work<'a> {
    spec: &'a LinearSpec,
    /// Components that are kept.
    rank: usize,
}

impl Work<'_> {
    /// Bytes of its factors in f32.
    fn factors(&self) -> f64 {
        4.0 * (self.rank * (self.spec.out + self.spec.input)) as f64
    }
}

/// Some linears of a block being decomposed, as many side by side as `limits` and threads allow.
fn decompositions(limits: &Limits, linears: &[Work], method: &dyn Method, heldout: usize) -> Bytes {
    let specs: Vec<&LinearSpec> = linears.iter().map(|work| work.spec).collect();
    let of_linear = |place: usize| {
        let Work { spec, rank } = linears[place];
        let Workspace { held, scratch } = method.workspace(spec.out, spec.input);
        let measuring = heldout_numbers((spec.out, spec.input), rank, heldout);
        (8.0 * (held + scratch).max(measuring) as f64, 8.0 * scratch as f64)
    };
    let mut most = 0f64;
    for wave in side_by_side(limits.decompositions, &specs) {
        let found: Vec<(f64, f64)> = wave.into_iter().map(of_linear).collect();
        let scratch = found.iter().map(|(_, scratch)| *scratch).fold(0.0, f64::max);
        most = most.max(found.iter().map(|(all, _)| all + scratch).sum());
    }
    host(most)
}

/// Everything that decides what `compress` takes.
pub(super) struct Compression<'a> {
    pub recipe: &'a Recipe,
    pub method: &'static dyn Method,
    pub model: &'a Model,
    pub calibration: &'a Calibration,
    pub texts: &'a [EvalText],
    pub plan: &'a Plan,
}

impl Compression<'_> {
    /// The limits that keep the run within what is allowed, and what it takes under them.
    pub(super) fn fit(&self) -> Result<(Limits, MemoryEstimate)> {
        fit(self.model, "compressing", |setting| self.peak(setting))
    }

    fn peak(&self, setting: Setting) -> Bytes {
        let terms = Terms::new(self.model, setting);
        let learns = self.recipe.learn.as_ref();
        let mut peak = if self.recipe.inputs == Inputs::Dense && !self.narrows() {
            let decomposer = learns.map_or(self.method, |learn| of_basis(learn.settings.basis));
            self.behind_dense(&terms, decomposer)
        } else {
            self.behind_compressed(&terms)
        };
        let measures_kl = match learns {
            Some(learn) => learn.settings.unit == Unit::Sensitivity,
            None => self.recipe.allocation == AllocationRule::Global && self.recipe.weight == WeightRule::Kl,
        };
        if measures_kl {
            peak = peak.max(self.measuring_kl(&terms));
        }
        if learns.is_some() || self.recipe.heal > 0 {
            peak = peak.max(self.training(&terms));
        }
        peak.max(evaluating(setting, self.model, Some(self.model), &sequences(self.texts)))
    }

    /// Whether feed-forward layers lose channels.
    fn narrows(&self) -> bool {
        self.plan.choices.iter().any(|(_, choice)| matches!(choice, Choice::Width(_)))
    }

    /// Components of a linear that its block's file holds: those that a plan leaves, or that pay; a learned method's all.
    fn rank(&self, spec: &LinearSpec) -> usize {
        if self.recipe.learn.is_some() {
            return spec.out.min(spec.input);
        }
        match (self.recipe.allocation, self.plan.choice(spec.id)) {
            (AllocationRule::Global, _) => largest_saving_rank(spec.out, spec.input),
            (_, Some(Choice::Rank(rank))) => rank,
            _ => 0,
        }
    }

    fn works(&self, index: usize) -> Vec<Work<'_>> {
        let works = self.model.block_linears(index).map(|spec| Work { spec, rank: self.rank(spec) });
        works.filter(|work| work.rank > 0).collect()
    }

    fn heldout_tokens(&self) -> usize {
        self.calibration.heldout.tokens()
    }

    /// Calibration and held-out windows in front of a block. What needs no text has none of the former.
    fn states(&self, terms: &Terms) -> Bytes {
        let of = |windows: &crate::text::Windows| terms.states(windows.len(), windows.window);
        let calibration = match self.method.needs() {
            Needs::Nothing => Bytes::default(),
            Needs::Gram => of(&self.calibration.windows),
        };
        calibration + of(&self.calibration.heldout)
    }

    fn batch(&self, terms: &Terms) -> f64 {
        terms.batch(self.calibration.windows.len(), self.calibration.windows.window)
    }

    /// Every linear decomposed by inputs of the original model.
    fn behind_dense(&self, terms: &Terms, method: &dyn Method) -> Bytes {
        terms.largest(|index| {
            let works = self.works(index);
            let sums = method.needs() == Needs::Gram;
            let statistics = terms.statistics(&terms.widths(index), sums, self.heldout_tokens());
            let factors: f64 = works.iter().map(Work::factors).sum();
            let written = if terms.limits.read_ahead && index > 0 { factors } else { 0.0 };
            let decomposing = decompositions(terms.limits, &works, method, self.heldout_tokens()) + host(factors);
            let collecting = terms.collecting(index, self.batch(terms));
            terms.blocks(index) + self.states(terms) + statistics + host(written) + collecting.max(decomposing)
        })
    }

    /// Block after block compressed, each behind those before it.
    fn behind_compressed(&self, terms: &Terms) -> Bytes {
        let by_site = self.recipe.inputs == Inputs::Sequential && !self.narrows();
        terms.largest(|index| {
            let widths = self.model.site_widths(index);
            let sites = self.model.block_sites(index);
            let groups = if by_site { sites.chunks(1).collect() } else { vec![sites.as_slice()] };
            let of_group = |group: &[Site]| {
                let seen: Vec<usize> = group.iter().filter_map(|site| widths.get(site).copied()).collect();
                let mut works = self.works(index);
                works.retain(|work| group.contains(&work.spec.site));
                let compressing = decompositions(terms.limits, &works, self.method, self.heldout_tokens());
                let collecting = terms.collecting(index, self.batch(terms));
                let most = compressing.max(self.narrowing(index)).max(collecting);
                terms.statistics(&seen, true, self.heldout_tokens()) + most
            };
            let heaviest = groups.into_iter().map(of_group).fold(Bytes::default(), Bytes::max);
            // What is stored of the block, and the same as tensors in its linears' places.
            let factors: f64 = self.works(index).iter().map(Work::factors).sum();
            terms.blocks(index) + self.states(terms) + heaviest + host(factors) + terms.tensors(factors / 4.0)
        })
    }

    /// The weights of a feed-forward layer whose channels are chosen.
    fn narrowing(&self, index: usize) -> Bytes {
        let narrowed = |spec: &&LinearSpec| matches!(self.plan.choice(spec.id), Some(Choice::Width(_)));
        let largest = self.model.block_linears(index).filter(narrowed).map(LinearSpec::params).max();
        host(8.0 * 3.0 * largest.unwrap_or(0) as f64)
    }

    /// Every linear cut alone, and predictions compared.
    fn measuring_kl(&self, terms: &Terms) -> Bytes {
        let (windows, window) = (self.calibration.windows.len(), self.calibration.windows.window);
        let tokens = KL_TOKENS.min(windows * window).max(window.min(KL_TOKENS));
        let states = 4.0 * (tokens * self.model.hidden()) as f64;
        let changed = ((terms.limits.states / SENSITIVITY_STATES) as f64).max(states);
        let largest = self.model.linears().iter().map(LinearSpec::params).max().unwrap_or(0);
        let reading = host(2.0 * 8.0 * 2.0 * largest as f64);
        let running = terms
            .largest(|index| terms.blocks(index) + terms.activations(index, terms.batch(1, window), FORWARD) + reading);
        let head = terms.head() + terms.tensors((changed + states) / 4.0);
        head + running.max(terms.logits(tokens, 2.0))
    }

    /// Training of what the method learns, and of the factors that are left.
    fn training(&self, terms: &Terms) -> Bytes {
        let linears: f64 = self.model.linears().iter().map(|spec| spec.params() as f64).sum();
        let kept = 4.0 * linears <= terms.limits.trained_blocks as f64;
        let numbers = |index: usize| self.model.block_numbers(index) as f64;
        let all: f64 = (0..self.model.blocks()).map(numbers).sum();
        let originals =
            if kept { terms.tensors(all) } else { terms.largest(|index| terms.tensors(2.0 * numbers(index))) };
        let factors = |spec: &LinearSpec, rank: usize| (rank * (spec.out + spec.input)) as f64;
        let mut most = Bytes::default();
        if let Some((learned, learn)) = self.method.learned().zip(self.recipe.learn.as_ref()) {
            let components: f64 = self.model.linears().iter().map(|spec| factors(spec, spec.out.min(spec.input))).sum();
            let trains_basis = learned.trains(&learn.settings).basis;
            // Dense weights are made of the components, and both have gradients: W', B diag(g), A and what they are made of.
            let made = terms.largest(|index| terms.tensors(6.0 * numbers(index)));
            let trained = if trains_basis { components } else { 0.0 };
            most = terms.tensors(components - trained) + self.steps(terms, trained, learn.batch) + made;
        }
        if self.recipe.heal > 0 {
            let rank = |spec: &LinearSpec| match self.plan.choice(spec.id) {
                Some(Choice::Rank(rank)) => rank,
                _ => 0,
            };
            let trained = self.model.linears().iter().map(|spec| factors(spec, rank(spec))).sum();
            most = most.max(self.steps(terms, trained, self.recipe.heal_batch));
        }
        terms.head() + originals + most
    }

    /// Steps on so many parameters.
    fn steps(&self, terms: &Terms, trained: f64, batch: usize) -> Bytes {
        let (windows, heldout) = (&self.calibration.windows, &self.calibration.heldout);
        let labels = self.calibration.labels.as_ref();
        let shown = labels.map_or(windows.tokens(), |labels| tokens(&labels.train));
        let judged = labels.map_or(heldout.tokens(), |labels| tokens(&labels.heldout));
        let window = labels.map_or(windows.window, |labels| longest(&labels.train));
        let at_once = terms.batch(batch, window);
        let hidden = self.model.hidden() as f64;
        let teacher = if labels.is_some() {
            0.0
        } else {
            (4.0 * shown as f64 * hidden).min(terms.limits.teacher_states as f64) / 4.0
        };
        // Final states that are right, and those of the student that are judged.
        let states = terms.tensors(teacher + 2.0 * judged as f64 * hidden);
        // What entered every block waits for the way back.
        let inputs = terms.tensors(self.model.blocks() as f64 * at_once * hidden);
        let graph = terms.largest(|index| terms.activations(index, at_once, BACKWARD));
        let logits = terms.logits(at_once as usize, 4.0);
        let stepping = terms.tensors(trained) + inputs + graph.max(logits);
        // Parameters, two moments and the best parameters.
        terms.tensors(4.0 * trained) + states + stepping
    }
}

fn tokens(examples: &[Labelled]) -> usize {
    examples.iter().map(|example| example.sequence.ids.len()).sum()
}

fn longest(examples: &[Labelled]) -> usize {
    examples.iter().map(|example| example.sequence.ids.len()).max().unwrap_or(1)
}

/// Sequences that are evaluated.
pub struct Sequences {
    /// How many go through a model before any is scored, if there is room.
    pub count: usize,
    /// Tokens of each.
    pub length: usize,
}

/// Those of some texts. A pseudo-perplexity masks every token of a window in turn.
pub fn sequences(texts: &[EvalText]) -> Vec<Sequences> {
    let of = |text: &EvalText| {
        let (count, length) = (text.windows.len(), text.windows.window);
        Sequences { count: if text.mask.is_some() { length } else { count }, length }
    };
    texts.iter().map(of).collect()
}

/// `model` on sequences, beside `base`.
fn evaluating(setting: Setting, model: &Model, base: Option<&Model>, sequences: &[Sequences]) -> Bytes {
    let models: Vec<Terms> =
        [Some(model), base].into_iter().flatten().map(|model| Terms::new(model, setting)).collect();
    let of = |&Sequences { count, length }: &Sequences| {
        let (mut fixed, mut running, mut logits) = (Bytes::default(), Bytes::default(), Bytes::default());
        for terms in &models {
            let of_one = 4.0 * (length * terms.model.hidden()) as f64;
            let group = (terms.limits.states as f64).max(of_one).min(count as f64 * of_one);
            fixed = fixed + terms.head() + terms.tensors(group / 4.0);
            let activations = |index| terms.activations(index, terms.batch(count, length), FORWARD);
            running = running.max(terms.largest(|index| terms.blocks(index) + activations(index)));
            if terms.head() != Bytes::default() {
                logits = logits + terms.logits(length, 1.0);
            }
        }
        fixed + running.max(logits)
    };
    sequences.iter().map(of).fold(Bytes::default(), Bytes::max)
}

/// The limits that keep an evaluation within what is allowed, and what it takes under them.
pub fn fit_evaluation(
    model: &Model,
    base: Option<&Model>,
    sequences: &[Sequences],
) -> Result<(Limits, MemoryEstimate)> {
    fit(model, "evaluating", |setting| evaluating(setting, model, base, sequences))
}

/// The same of collecting the statistics of `calibration`.
pub fn fit_calibration(model: &Model, calibration: &Calibration) -> Result<(Limits, MemoryEstimate)> {
    let (windows, heldout) = (&calibration.windows, &calibration.heldout);
    fit(model, "calibrating", |setting| {
        let terms = Terms::new(model, setting);
        let states = terms.states(windows.len(), windows.window) + terms.states(heldout.len(), heldout.window);
        terms.largest(|index| {
            let statistics = terms.statistics(&terms.widths(index), true, heldout.tokens());
            let collecting = terms.collecting(index, terms.batch(windows.len(), windows.window));
            // Triangles as bytes, and one of them as numbers.
            let writing = host(statistics.host);
            terms.blocks(index) + states + statistics + collecting.max(writing)
        })
    })
}

/// The roomiest limits under which the peak of `of` is within what `model` is allowed.
fn fit(model: &Model, what: &str, of: impl Fn(Setting) -> Bytes) -> Result<(Limits, MemoryEstimate)> {
    let Compute { allowed, limits, device, .. } = model.compute();
    let on_gpu = !device.is_cpu();
    memory::trim();
    let base = Bytes { host: memory::rss_bytes().unwrap_or(0) as f64, device: if on_gpu { DEVICE_BASE } else { 0.0 } };
    let name = model.source().label();
    let (limits, peak) = choose(*limits, *allowed, &format!("{what} {name}"), |limits| {
        let Bytes { host, device } = of(Setting { limits, on_gpu });
        Bytes { host: base.host + host * (1.0 + HOLES), device: base.device + device }
    })?;
    let estimate = MemoryEstimate {
        peak_rss_bytes: peak.host as u64,
        device_bytes: on_gpu.then_some(peak.device as u64),
        max_memory_bytes: allowed.host,
        max_device_memory_bytes: allowed.device,
    };
    Ok((limits, estimate))
}

/// The first of ever tighter limits whose peak is allowed, by some way, and that peak.
fn choose(limits: Limits, allowed: Allowance, what: &str, peak: impl Fn(&Limits) -> Bytes) -> Result<(Limits, Bytes)> {
    let with_error = |bytes: f64| (bytes * (1.0 + ERROR)).ceil() as u64;
    let within = |bytes: f64, most: Option<u64>| most.is_none_or(|most| with_error(bytes) <= most);
    let mut last = Bytes::default();
    for limits in tighter(limits) {
        last = peak(&limits);
        if within(last.host, allowed.host) && within(last.device, allowed.device) {
            return Ok((limits, last));
        }
    }
    let host_is_short = !within(last.host, allowed.host);
    let (flag, needed, most, instead) = if host_is_short {
        ("--max-memory", with_error(last.host), allowed.host, "")
    } else {
        ("--max-device-memory", with_error(last.device), allowed.device, ", or --device cpu")
    };
    user_bail!(
        "{what} needs {} at least, {flag} allows {}", bytes(needed), bytes(most.unwrap_or_default());
        "with {flag} {needed} it is sure to run; shorter windows and fewer --threads take less{instead}"
    )
}

/// Limits, each tighter than the one before: first what is kept for speed alone, last how many tokens go through a block at
/// once, on which the last bits of a result may depend.
fn tighter(limits: Limits) -> Vec<Limits> {
    let mut all = vec![limits];
    let less = |bytes: usize, step: u32| bytes.checked_shr(2 * step).unwrap_or(0);
    for step in 1..=12 {
        all.push(Limits {
            read_ahead: false,
            resident_states: less(limits.resident_states.min(1 << 34), step),
            states: less(limits.states, step),
            logits: less(limits.logits, step),
            decompositions: less(limits.decompositions, step),
            trained_blocks: less(limits.trained_blocks, step),
            teacher_states: less(limits.teacher_states, step),
            ..limits
        });
    }
    let tightest = all[all.len() - 1];
    let halves = std::iter::successors(Some(limits.batch_tokens / 2), |&tokens| (tokens > 1).then_some(tokens / 2));
    all.extend(halves.map(|batch_tokens| Limits { batch_tokens, ..tightest }));
    all
}

/// Says what a run will take, before it begins.
pub fn announce(estimate: &MemoryEstimate, progress: &dyn Progress) {
    progress.note(&format!("memory: {}", estimate.describe()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Source;
    use crate::error::UserError;
    use candle_core::Device;

    /// What scales with the limits, and what does not.
    fn peak(limits: &Limits) -> Bytes {
        let bytes = (limits.decompositions + limits.logits) as f64 + 100.0 * limits.batch_tokens as f64 + 1e6;
        Bytes { host: bytes, device: 2.0 * bytes }
    }

    #[test]
    fn limits_are_no_tighter_than_they_must_be() {
        let usual = Limits::default();
        let chosen = |host, device| choose(usual, Allowance { host, device }, "this", peak);
        assert_eq!(chosen(None, None).unwrap().0, usual);
        assert_eq!(chosen(Some(2 << 30), None).unwrap().0, usual);
        for allowed in [1 << 30, 64 << 20, 4 << 20] {
            for (host, device) in [(Some(allowed), None), (None, Some(allowed))] {
                let (limits, peak) = chosen(host, device).unwrap();
                let found = if host.is_some() { peak.host } else { peak.device };
                assert!(found * (1.0 + ERROR) <= allowed as f64, "{found} of {allowed}");
                assert!(limits.decompositions < usual.decompositions && !limits.read_ahead);
                // Tokens at once come last.
                assert!(limits.batch_tokens == usual.batch_tokens || limits.decompositions < 1 << 10);
            }
        }
    }

    #[test]
    fn what_is_not_enough_is_refused_with_what_is() {
        for (flag, host, device) in
            [("--max-memory", Some(1_100_000), None), ("--max-device-memory", None, Some(1_100_000))]
        {
            let error = choose(Limits::default(), Allowance { host, device }, "this", peak).unwrap_err();
            let hint = error.downcast_ref::<UserError>().and_then(UserError::hint_text).expect("a hint");
            let needed: u64 = hint.split(' ').find_map(|word| word.parse().ok()).expect("a number of bytes");
            assert!(error.to_string().contains(flag) && hint.contains(flag), "{error} {hint}");
            let allowed = if host.is_some() {
                Allowance { host: Some(needed), device: None }
            } else {
                Allowance { host: None, device: Some(needed) }
            };
            choose(Limits::default(), allowed, "this", peak).expect("what was said to be enough");
        }
    }

    #[test]
    fn each_step_is_tighter_than_the_one_before() {
        let steps = tighter(Limits::default());
        for pair in steps.windows(2) {
            let sizes = |l: &Limits| [l.states, l.logits, l.decompositions, l.trained_blocks, l.batch_tokens];
            assert!(sizes(&pair[0]).iter().zip(sizes(&pair[1])).all(|(a, b)| *a >= b));
        }
        assert_eq!(steps.last().map(|limits| (limits.batch_tokens, limits.read_ahead)), Some((1, false)));
    }

    #[test]
    fn tensors_count_where_they_lie() {
        let model = Model::load(Source::demo(), &Device::Cpu).unwrap();
        let limits = Limits::default();
        let sequences = [Sequences { count: 4, length: 128 }];
        let of = |on_gpu| evaluating(Setting { limits: &limits, on_gpu }, &model, Some(&model), &sequences);
        let (here, there) = (of(false), of(true));
        assert_eq!((here.device, here.host), (0.0, there.device));
        // A block passes through on its way.
        assert!(there.host > 0.0 && there.host < 0.5 * here.host, "{there:?} {here:?}");
        let twice = evaluating(Setting { limits: &limits, on_gpu: false }, &model, None, &sequences);
        assert!(twice.host < here.host);
    }
}

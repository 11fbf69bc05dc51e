//! What `compress` takes.

use super::super::forms::gradient_windows;
use super::super::tasks::{EvalData, task_sequences};
use super::super::texts::Calibration;
use super::super::weights::KL_TOKENS;
use super::evaluation::{evaluating, sequences};
use super::fit::fit;
use super::terms::{BACKWARD, Bytes, FORWARD, Setting, Terms, Work, decompositions, host};
use crate::compute::Limits;
use crate::eval::SENSITIVITY_STATES;
use crate::learn::Labelled;
use crate::method::{GRADIENTS, Inputs, Method, Needs, Unit, of_basis};
use crate::model::{LinearSpec, Model, Site};
use crate::plan::{AllocationRule, Choice, Plan, largest_saving_rank};
use crate::recipe::{Recipe, WeightRule};
use crate::report::MemoryEstimate;
use anyhow::Result;

/// Everything that decides what `compress` takes.
pub struct Compression<'a> {
    pub recipe: &'a Recipe,
    pub method: &'static dyn Method,
    pub model: &'a Model,
    pub calibration: &'a Calibration,
    pub data: EvalData<'a>,
    pub plan: &'a Plan,
}

impl Compression<'_> {
    /// The limits that keep the run within what is allowed, and what it takes under them.
    pub fn fit(&self) -> Result<(Limits, MemoryEstimate)> {
        fit(self.model, "compressing", |setting| self.peak(setting))
    }

    fn peak(&self, setting: Setting) -> Bytes {
        let terms = Terms::new(self.model, setting);
        let learns = self.recipe.learn.as_ref();
        let mut peak = if self.recipe.allocation == AllocationRule::Forms {
            self.by_forms(&terms)
        } else if self.recipe.inputs == Inputs::Dense && !self.narrows() {
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
        let mut evaluated = sequences(self.data.texts);
        evaluated.extend(task_sequences(self.data.tasks));
        peak.max(evaluating(setting, self.model, Some(self.model), &evaluated))
    }

    /// Whether `auto` weighs errors by gradients.
    pub(super) fn with_gradients(&self) -> bool {
        self.recipe.options.get(&GRADIENTS).unwrap_or(false)
    }

    /// Tokens whose predictions it differentiates for that.
    pub(super) fn gradient_tokens(&self) -> usize {
        let windows = &self.calibration.windows;
        gradient_windows(windows).min(windows.len()) * windows.window
    }

    /// Whether feed-forward layers lose channels.
    pub(super) fn narrows(&self) -> bool {
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
    pub(super) fn states(&self, terms: &Terms) -> Bytes {
        let of = |windows: &crate::text::Windows| terms.states(windows.len(), windows.window);
        let calibration = match self.method.needs() {
            Needs::Nothing => Bytes::default(),
            Needs::Gram => of(&self.calibration.windows),
        };
        calibration + of(&self.calibration.heldout)
    }

    pub(super) fn batch(&self, terms: &Terms) -> f64 {
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
        let tokens = KL_TOKENS.0.min(windows * window).max(window.min(KL_TOKENS.0));
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
            most = terms.tensors(components - trained) + self.steps(terms, trained, (learn.steps, learn.batch)) + made;
        }
        if self.recipe.heal > 0 {
            let rank = |spec: &LinearSpec| match self.plan.choice(spec.id) {
                Some(Choice::Rank(rank)) => rank,
                _ => 0,
            };
            let trained = self.model.linears().iter().map(|spec| factors(spec, rank(spec))).sum();
            most = most.max(self.steps(terms, trained, (self.recipe.heal, self.recipe.heal_batch)));
        }
        terms.head() + originals + most
    }

    /// So many steps of so many windows on so many parameters.
    fn steps(&self, terms: &Terms, trained: f64, (steps, batch): (usize, usize)) -> Bytes {
        let (windows, heldout) = self.calibration.trained_on();
        let labels = self.calibration.labels.as_ref();
        // Every window comes once before any comes again.
        let some = steps.saturating_mul(batch).min(windows.len()) * windows.window;
        let shown = labels.map_or(some, |labels| tokens(&labels.train));
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

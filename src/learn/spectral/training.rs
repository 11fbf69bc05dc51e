//! How the training of a learned method goes: phases, pressure, cuts to the budget.

use super::gated::GatedModel;
use super::{Learned, LearnedLinear, SpectralJob, SpectralPoint, SpectralReport};
use crate::backward::{BlockStack, Gradients};
use crate::learn::adamw::AdamW;
use crate::learn::distillation::DistillationLoss;
use crate::learn::schedule::Schedule;
use crate::learn::trainer::{Log, LossPoint, Training, restore, snapshot};
use crate::method::{Phase, ratios};
use crate::plan::Plan;
use crate::user_bail;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// By how much a steered pressure can change while the size falls to the budget: e to this power.
const RANGE: f64 = 5.0;
/// Share of that time after which the size should have arrived.
const FALL: f64 = 0.7;
/// How far off the size has to be, relative to the budget, for the pressure to change at full speed.
const TOLERANCE: f64 = 0.1;
/// Looks at the held-out windows without a better state after which the last phase stops.
const PATIENCE: usize = 5;

/// The student with everything that is not a parameter.
pub(super) struct SpectralTraining<'a> {
    job: &'a SpectralJob<'a>,
    student: GatedModel<'a>,
    /// The unbounded ratio at the start.
    start: f64,
    state: SpectralState,
}

/// What has to survive a kill.
#[derive(Default, Serialize, Deserialize)]
struct SpectralState {
    pressure: f64,
    /// What the last phase goes on with, once it has begun anew with a cut.
    frozen: Option<Survivors>,
    /// What every look saw beside losses.
    seen: Vec<Seen>,
}

/// The student at a look.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Seen {
    phase: Phase,
    ratio: f64,
    pressure: f64,
}

/// What a budget leaves of a student: which components, not their gates.
#[derive(Clone, Serialize, Deserialize)]
struct Survivors {
    plan: Plan,
    kept: Vec<Vec<usize>>,
    /// Why these.
    worth: Vec<Vec<f64>>,
}

impl<'a> SpectralTraining<'a> {
    /// Takes the components of every linear.
    pub(super) fn new(job: &'a SpectralJob<'a>) -> Result<Self> {
        let student = GatedModel::new(job)?;
        let controlled = student.controlled()?;
        let all: Vec<usize> = controlled.iter().map(|linear| linear.sigma.len()).collect();
        let start = ratios(&controlled, &all).1;
        Ok(Self { job, student, start, state: SpectralState::default() })
    }

    /// Whether the last phase will, or would, begin anew with what a cut leaves.
    fn will_begin_anew(&self) -> bool {
        self.job.method.ends_on_a_cut(self.job.settings) && self.state.frozen.is_none()
    }

    fn steers(&self) -> bool {
        self.job.method.steers(self.job.settings)
    }

    /// What the budget costs a model that is not trained: held-out loss per share of the linears' parameters given up, when
    /// all are cut alike to their largest components.
    fn price(&self) -> Result<f64> {
        let sizes: Vec<Vec<f64>> = self.student.controlled()?.into_iter().map(|linear| linear.sigma).collect();
        let kept = self.student.kept(&sizes, &(self.job.even)()?);
        let price = self.student.heldout_loss(&kept)? / (1.0 - self.job.keep);
        // A model that such a cut ruins is cut to the budget in the end all the same.
        Ok(if price.is_finite() { price } else { 0.0 })
    }

    /// How hard the size is pressed in the next step.
    fn strength(&mut self, log: &Log) -> Result<f64> {
        let (bounded, free) = self.ratio()?;
        if self.steers() {
            self.steer(log, bounded, free);
            return Ok(self.state.pressure);
        }
        Ok(if bounded > self.job.keep { self.state.pressure } else { 0.0 })
    }

    /// Raises the pressure if the student is too large for this moment of the run, lowers it if it is too small.
    fn steer(&mut self, log: &Log, bounded: f64, free: f64) {
        let keep = self.job.keep;
        let explore = self.job.options.explore * log.steps as f64;
        let progress = log.done as f64 / (FALL * explore).max(1.0);
        // Fast at first: most components are cheap to lose.
        let allowed = self.start + (keep - self.start) * progress.min(1.0).sqrt();
        // What counts is the bounded size, but before anything falls below its dense size only the other one moves.
        let off = (bounded - keep).min(free - allowed);
        let most = RANGE / explore.max(RANGE);
        let gain = (off / (TOLERANCE * keep) * most).clamp(-most, most).exp();
        let least = self.state.seen.first().map_or(0.0, |seen| seen.pressure);
        self.state.pressure = (self.state.pressure * gain).max(least);
    }

    /// The student's own count of what it keeps: bounded by dense forms, and not.
    fn ratio(&self) -> Result<(f64, f64)> {
        let controlled = self.student.controlled()?;
        let kept: Vec<usize> =
            controlled.iter().map(|linear| self.job.method.kept(self.job.settings, linear)).collect();
        Ok(ratios(&controlled, &kept))
    }

    fn phase(&self, log: &Log) -> Phase {
        let at = log.done as f64 / log.steps.max(1) as f64;
        self.job.method.phase_at(&[self.job.options.explore, self.job.options.refine], at)
    }

    /// Whether one of the last looks of the last phase was the best of that phase. What came before it is no measure:
    /// there the student is not made to be cut.
    fn still_improves(&self, log: &Log) -> bool {
        let in_last = |(_, seen): &(_, &Seen)| seen.phase == Phase::Sparsify;
        let looks = log.curve.iter().zip(&self.state.seen).filter(in_last);
        let last: Vec<f64> = looks.filter_map(|(point, _)| point.heldout_loss).collect();
        let best = (0..last.len()).rev().min_by(|&i, &j| last[i].total_cmp(&last[j]));
        best.is_none_or(|best| last.len() - best <= PATIENCE)
    }

    /// What the budget would leave of the student as it is; `None` when training has made that meaningless.
    fn survivors(&self) -> Result<Option<Survivors>> {
        if self.state.frozen.is_some() {
            return Ok(self.state.frozen.clone());
        }
        let worth: Vec<Vec<f64>> =
            self.student.controlled()?.iter().map(|linear| self.job.method.worth(self.job.settings, linear)).collect();
        if !worth.iter().flatten().all(|worth| worth.is_finite()) {
            return Ok(None);
        }
        let plan = (self.job.plan)(&worth)?;
        Ok(Some(Survivors { kept: self.student.kept(&worth, &plan), plan, worth }))
    }

    /// Mean held-out loss of what is left with `survivors`, as the last phase would find it.
    fn judged(&self, survivors: &Survivors) -> Result<f64> {
        if !self.will_begin_anew() {
            return self.student.heldout_loss(&survivors.kept);
        }
        let now = snapshot(self.student.parameters())?;
        self.student.begin_anew()?;
        let loss = self.student.heldout_loss(&survivors.kept)?;
        restore(self.student.parameters(), &now)?;
        Ok(loss)
    }

    /// Cuts what was trained and folds the gates into factors.
    pub(super) fn finish(self, log: Log) -> Result<Learned> {
        let Some(survivors) = self.survivors()?.filter(|_| log.best_loss.is_finite()) else {
            user_bail!("the compressed model's output is NaN or infinite at every look"; "keep more, or lower --lr")
        };
        if self.will_begin_anew() {
            self.student.begin_anew()?;
        }
        let Survivors { plan, kept, worth } = survivors;
        let (cuts, controlled) = (self.student.cuts(&kept)?, self.student.controlled()?);
        let mut linears = Vec::new();
        for (((linear, cut), worth), controlled) in self.student.linears().zip(&cuts).zip(worth).zip(controlled) {
            let (b, a) = linear.factors(cut)?;
            let mut gates = vec![0.0; worth.len()];
            cut.kept.iter().zip(&cut.gates).for_each(|(&i, &gate)| gates[i] = gate);
            linears.push(LearnedLinear {
                spec: linear.spec.clone(),
                b,
                a,
                deviation: linear.deviation(),
                sigma: controlled.sigma,
                gates,
                control: controlled.control,
                worth,
            });
        }
        Ok(Learned { report: self.report(log), plan, linears })
    }

    fn report(&self, log: Log) -> SpectralReport {
        let point = |(point, seen): (&LossPoint, &Seen)| SpectralPoint {
            step: point.step,
            phase: seen.phase,
            loss: point.loss,
            ratio: seen.ratio,
            pressure: seen.pressure,
            heldout_loss: point.heldout_loss,
        };
        SpectralReport {
            aim: self.job.distillation.aim(),
            steps: log.steps,
            done: log.done,
            best_step: log.best_step,
            batch: self.job.distillation.batch,
            trained: self.student.size(),
            tokens: log.tokens,
            heldout_tokens: self.job.distillation.heldout_tokens(),
            loss: log.best_loss,
            stopped: log.stopped,
            curve: log.curve.iter().zip(&self.state.seen).map(point).collect(),
        }
    }
}

impl Training for SpectralTraining<'_> {
    /// None: the schedule ends at a low rate by itself.
    const RETURNS: usize = 0;

    fn student(&self) -> &dyn BlockStack {
        &self.student
    }

    fn loss(&self) -> &DistillationLoss<'_> {
        &self.student.loss
    }

    fn optimiser(&self) -> Result<AdamW> {
        self.student.optimiser()
    }

    /// The last phase on a final cut is a run of its own.
    fn schedule(&self, log: &Log) -> (usize, Schedule) {
        let options = &self.job.options;
        let first = ((options.explore + options.refine) * log.steps as f64).ceil() as usize;
        let (begin, steps) = match (self.will_begin_anew(), &self.state.frozen) {
            (true, _) => (0, first),
            (false, Some(_)) => (first, log.steps.saturating_sub(first)),
            (false, None) => (0, log.steps),
        };
        (begin, Schedule { steps, floor: 0.1 })
    }

    fn begin_step(&mut self, log: &Log) -> Result<bool> {
        self.student.phase = self.phase(log);
        Ok(self.student.phase == Phase::Sparsify && self.will_begin_anew())
    }

    /// Makes the cut of the best state final and begins anew with it.
    fn restart(&mut self) -> Result<()> {
        self.state.frozen = self.survivors()?;
        if let Some(survivors) = &self.state.frozen {
            self.student.begin_anew()?;
            self.student.freeze(&survivors.kept)?;
        }
        Ok(())
    }

    fn regularise(&mut self, log: &Log, gradients: &mut Gradients) -> Result<()> {
        if self.state.frozen.is_some() {
            return Ok(());
        }
        let (strength, controlled) = (self.strength(log)?, self.student.controlled()?);
        let pressure = self.job.method.pressure(self.job.settings, self.student.phase, &controlled, strength);
        self.student.add_pressure(gradients, pressure.gradients)
    }

    fn is_finished(&self) -> Result<bool> {
        Ok(!self.job.method.refines() && !self.steers() && self.ratio()?.0 <= self.job.keep)
    }

    /// Cut to the budget.
    fn evaluate(&mut self, log: &Log) -> Result<f64> {
        if log.curve.is_empty() {
            self.state.pressure = match self.job.settings.pressure {
                Some(pressure) => pressure,
                None => self.job.method.usual_pressure(&|| self.price())?,
            };
        }
        let loss = match self.survivors()? {
            Some(survivors) => self.judged(&survivors)?,
            None => f64::INFINITY,
        };
        let (phase, ratio, pressure) = (self.student.phase, self.ratio()?.0, self.state.pressure);
        self.state.seen.push(Seen { phase, ratio, pressure });
        Ok(loss)
    }

    fn is_out_of_patience(&self, log: &Log) -> bool {
        self.student.phase == Phase::Sparsify && !self.still_improves(log)
    }

    fn state(&self) -> Result<Value> {
        Ok(serde_json::to_value(&self.state)?)
    }

    fn resume(&mut self, state: Value) -> Result<()> {
        self.state = serde_json::from_value(state).context("a saved state lacks that of its method")?;
        self.state.frozen.as_ref().map_or(Ok(()), |frozen| self.student.freeze(&frozen.kept))
    }
}

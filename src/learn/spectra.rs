//! Learning which components of a model's linears matter: the training run of the learned methods.
//!
//! Every step lowers KL(original ‖ student), or what else a [`Lesson`](super::Lesson) asks for, on a batch and, as long as
//! the student is too large, puts pressure on the method's controls. Now and then the student is cut to the budget and
//! judged on held-out windows: such cuts have one size, so they can be compared over the whole run, and the best one is the
//! result.

use super::heal::finite;
use super::schedule::{Decay, Schedule};
use super::spectral_job::{Learned, LearnedLinear, SpectralJob, SpectralPoint, SpectralReport};
use super::spectrum::Spectrum;
use super::watch::Watch;
use crate::checkpoint::{TensorFile, write_sealed};
use crate::method::{Phase, ratios};
use crate::plan::Plan;
use crate::progress::Progress;
use crate::user_bail;
use anyhow::{Context, Result};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// By how much a steered pressure can change while the size falls to the budget: e to this power.
const RANGE: f64 = 5.0;
/// Share of that time after which the size should have arrived.
const FALL: f64 = 0.7;
/// How far off the size has to be, relative to the budget, for the pressure to change at full speed.
const TOLERANCE: f64 = 0.1;
/// Gradients are scaled down to this norm.
const CLIP: f64 = 1.0;
/// Looks at the held-out windows without a better state after which the last phase stops.
const PATIENCE: usize = 5;

/// Trains, cuts to the budget and folds.
///
/// Steps `progress` once per step. A run that was interrupted goes on from the last saved state and ends with the same
/// bits.
pub fn learn_spectra(job: &SpectralJob, progress: &dyn Progress) -> Result<Learned> {
    let mut training = Training::start(job)?;
    progress.step(training.report.done as u64)?;
    while training.report.done < training.report.steps && training.report.stopped.is_none() {
        training.step()?;
        progress.step(1)?;
    }
    training.finish()
}

struct Training<'a> {
    job: &'a SpectralJob<'a>,
    student: Spectrum<'a>,
    optimiser: super::AdamW,
    report: SpectralReport,
    best: Vec<Tensor>,
    pressure: f64,
    watch: Watch,
    /// Loss and its terms since the last look.
    since: (f64, usize),
    /// The unbounded ratio at the start.
    start: f64,
    frozen: Option<Survivors>,
}

/// What a budget leaves of a student: which components, not their gates.
#[derive(Clone, Serialize, Deserialize)]
struct Survivors {
    plan: Plan,
    kept: Vec<Vec<usize>>,
    /// Why these.
    worth: Vec<Vec<f64>>,
}

/// What has to survive a kill beside tensors.
#[derive(Serialize, Deserialize)]
struct Saved {
    report: SpectralReport,
    frozen: Option<Survivors>,
    pressure: f64,
    seconds: f64,
}

impl<'a> Training<'a> {
    fn start(job: &'a SpectralJob<'a>) -> Result<Self> {
        let options = &job.options;
        let mut student = Spectrum::new(job.method, job.settings, options.rates, job.lesson, job.basis)?;
        let mut optimiser = student.optimiser()?;
        let controlled = student.controlled()?;
        let all: Vec<usize> = controlled.iter().map(|linear| linear.sigma.len()).collect();
        let start = ratios(&controlled, &all).1;
        if job.state.exists() {
            let file = TensorFile::open_unfinished(job.state)?;
            let saved = file.metadata().get("saved").context("a saved state lacks its report")?;
            let saved: Saved =
                serde_json::from_str(saved).with_context(|| format!("{} is damaged", job.state.display()))?;
            optimiser.restore(&file)?;
            let best = student.resume(&file)?;
            let watch = Watch::start(options.seconds, saved.seconds);
            let (report, pressure, frozen) = (saved.report, saved.pressure, saved.frozen);
            if let Some(frozen) = &frozen {
                student.freeze(&frozen.kept)?;
            }
            let since = (0.0, 0);
            return Ok(Self { job, student, optimiser, report, best, pressure, watch, since, start, frozen });
        }
        let report = SpectralReport {
            aim: job.lesson.aim(),
            steps: options.steps,
            done: 0,
            best_step: 0,
            batch: job.lesson.batch,
            trained: student.size(),
            tokens: 0,
            heldout_tokens: student.heldout_tokens(),
            loss: f64::INFINITY,
            stopped: None,
            curve: Vec::new(),
        };
        let (best, pressure) = (student.snapshot()?, 0.0);
        let watch = Watch::start(options.seconds, 0.0);
        let since = (0.0, 0);
        let mut this = Self { job, student, optimiser, report, best, pressure, watch, since, start, frozen: None };
        this.pressure = match job.settings.pressure {
            Some(pressure) => pressure,
            None => job.method.usual_pressure(&|| this.price())?,
        };
        this.look()?;
        Ok(this)
    }

    fn step(&mut self) -> Result<()> {
        let (job, done) = (self.job, self.report.done);
        self.student.phase = self.phase(done);
        if self.student.phase == Phase::Sparsify && self.will_begin_anew() {
            self.freeze()?;
        }
        let mut taught = self.student.course.teach(&self.student, &self.student.course.batch(done))?;
        if !taught.loss.is_finite() {
            let (loss, step) = (taught.loss, done + 1);
            self.report.stopped = Some(format!("the loss was {loss} at step {step}: the best state was restored"));
            return Ok(());
        }
        if self.frozen.is_none() {
            let strength = self.strength()?;
            let controlled = self.student.controlled()?;
            let pressure = job.method.pressure(job.settings, self.student.phase, &controlled, strength);
            self.student.add_pressure(&mut taught.gradients, pressure.gradients)?;
        }
        taught.gradients.clip(CLIP)?;
        self.optimiser.step(&taught.gradients.all(), self.factor(done))?;
        self.since.0 += taught.loss;
        self.since.1 += taught.terms;
        self.report.done = done + 1;
        self.report.tokens += taught.tokens;
        self.report.steps = self.watch.fitting(done + 1, self.report.steps);
        let met = || Ok::<_, anyhow::Error>(self.ratio()?.0 <= job.keep);
        if !job.method.refines() && !self.steers() && met()? {
            self.report.steps = done + 1;
        }
        if self.watch.is_over() {
            self.report.stopped = Some(format!("the time was up after {} steps", done + 1));
        }
        let last = self.report.done >= self.report.steps || self.report.stopped.is_some();
        if self.report.done.is_multiple_of(self.interval()) || last {
            self.look()?;
        }
        Ok(())
    }

    fn ends_on_a_cut(&self) -> bool {
        self.job.method.ends_on_a_cut(self.job.settings)
    }

    /// Whether the last phase will, or would, begin anew with what a cut leaves.
    fn will_begin_anew(&self) -> bool {
        self.ends_on_a_cut() && self.frozen.is_none()
    }

    fn steers(&self) -> bool {
        self.job.method.steers(self.job.settings)
    }

    /// Goes back to the best cut, makes it final and begins anew with it.
    fn freeze(&mut self) -> Result<()> {
        self.student.restore(&self.best)?;
        if let Some(survivors) = self.survivors()? {
            self.student.begin_anew()?;
            self.student.freeze(&survivors.kept)?;
            self.frozen = Some(survivors);
            self.best = self.student.snapshot()?;
            self.optimiser = self.student.optimiser()?;
        }
        Ok(())
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
    fn strength(&mut self) -> Result<f64> {
        let (bounded, free) = self.ratio()?;
        if self.steers() {
            self.steer(bounded, free);
            return Ok(self.pressure);
        }
        Ok(if bounded > self.job.keep { self.pressure } else { 0.0 })
    }

    /// Raises the pressure if the student is too large for this moment of the run, lowers it if it is too small.
    fn steer(&mut self, bounded: f64, free: f64) {
        let keep = self.job.keep;
        let explore = self.job.options.explore * self.report.steps as f64;
        let progress = self.report.done as f64 / (FALL * explore).max(1.0);
        // Fast at first: most components are cheap to lose.
        let allowed = self.start + (keep - self.start) * progress.min(1.0).sqrt();
        // What counts is the bounded size, but before anything falls below its dense size only the other one moves.
        let off = (bounded - keep).min(free - allowed);
        let most = RANGE / explore.max(RANGE);
        let gain = (off / (TOLERANCE * keep) * most).clamp(-most, most).exp();
        let least = self.report.curve.first().map_or(0.0, |point| point.pressure);
        self.pressure = (self.pressure * gain).max(least);
    }

    /// The student's own count of what it keeps: bounded by dense forms, and not.
    fn ratio(&self) -> Result<(f64, f64)> {
        let controlled = self.student.controlled()?;
        let kept: Vec<usize> =
            controlled.iter().map(|linear| self.job.method.kept(self.job.settings, linear)).collect();
        Ok(ratios(&controlled, &kept))
    }

    fn phase(&self, step: usize) -> Phase {
        let at = step as f64 / self.report.steps.max(1) as f64;
        self.job.method.phase_at(&[self.job.options.explore, self.job.options.refine], at)
    }

    /// What learning rates are multiplied with. The last phase on a final cut is a run of its own.
    fn factor(&self, step: usize) -> f64 {
        let options = &self.job.options;
        let whole = self.report.steps;
        let first = ((options.explore + options.refine) * whole as f64).ceil() as usize;
        let (begin, steps) = match (self.ends_on_a_cut(), self.frozen.is_some()) {
            (true, true) => (first, whole.saturating_sub(first)),
            (true, false) => (0, first),
            (false, _) => (0, whole),
        };
        let schedule = Schedule { steps, warm_up: steps / 20, decay: Decay::Cosine, floor: 0.1 };
        schedule.factor(step.saturating_sub(begin))
    }

    /// Steps between two looks, after each of which the state is saved.
    fn interval(&self) -> usize {
        self.job.options.steps.div_ceil(20).clamp(1, 50)
    }

    /// Cuts the student as it is and judges it, keeps it if it is the best so far, and saves everything.
    fn look(&mut self) -> Result<()> {
        let loss = match self.survivors()? {
            Some(survivors) => self.judged(&survivors)?,
            None => f64::INFINITY,
        };
        let step = self.report.done;
        self.report.curve.push(SpectralPoint {
            step,
            phase: self.student.phase,
            loss: (self.since.1 > 0).then(|| self.since.0 / self.since.1 as f64),
            ratio: self.ratio()?.0,
            pressure: self.pressure,
            heldout_loss: finite(loss),
        });
        self.since = (0.0, 0);
        if loss < self.report.loss {
            (self.report.loss, self.report.best_step) = (loss, step);
            self.best = self.student.snapshot()?;
        } else if self.student.phase == Phase::Sparsify && !self.still_improves() {
            self.report.stopped = Some(format!("no better state since step {}", self.report.best_step));
        }
        self.save()
    }

    /// Whether one of the last looks of the last phase was the best of that phase. What came before it is no measure:
    /// there the student is not made to be cut.
    fn still_improves(&self) -> bool {
        let last: Vec<f64> = self
            .report
            .curve
            .iter()
            .filter(|point| point.phase == Phase::Sparsify)
            .filter_map(|point| point.heldout_loss)
            .collect();
        let best = (0..last.len()).rev().min_by(|&i, &j| last[i].total_cmp(&last[j]));
        best.is_none_or(|best| last.len() - best <= PATIENCE)
    }

    fn save(&self) -> Result<()> {
        let mut tensors = self.optimiser.state()?;
        tensors.extend(self.student.state(&self.best)?);
        let report = SpectralReport { loss: self.report.loss.min(f64::MAX), ..self.report.clone() };
        let frozen = self.frozen.clone();
        let saved = Saved { report, frozen, pressure: self.pressure, seconds: self.watch.elapsed() };
        write_sealed(self.job.state, &tensors, &BTreeMap::from([("saved".to_string(), serde_json::to_string(&saved)?)]))
    }

    /// What the budget would leave of the student as it is; `None` when training has made that meaningless.
    fn survivors(&self) -> Result<Option<Survivors>> {
        if self.frozen.is_some() {
            return Ok(self.frozen.clone());
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
        let now = self.student.snapshot()?;
        self.student.begin_anew()?;
        let loss = self.student.heldout_loss(&survivors.kept)?;
        self.student.restore(&now)?;
        Ok(loss)
    }

    /// Goes back to the best state, cuts it and folds the gates into factors.
    fn finish(self) -> Result<Learned> {
        self.student.restore(&self.best)?;
        let Some(survivors) = self.survivors()?.filter(|_| self.report.loss < f64::MAX) else {
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
        Ok(Learned { report: self.report, plan, linears })
    }
}

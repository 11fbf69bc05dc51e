//! The loop of every training: steps, looks at what is judged by, the best state, going back to it, time, and a file from
//! which an interrupted run goes on and ends with the same bits.
//!
//! What is particular about one kind of training stands in its [`Training`].

use super::adamw::AdamW;
use super::deadline::Deadline;
use super::distillation::DistillationLoss;
use super::schedule::Schedule;
use crate::backward::{BlockStack, Gradients};
use crate::checkpoint::{TensorFile, Unwritten, write_sealed};
use crate::progress::Progress;
use anyhow::{Context, Result};
use candle_core::{Tensor, Var};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// The rate that is tried first where none is given, relative to the usual one, and how far from that others go.
const FIRST_RATE: f64 = 0.25;
const RATES: (f64, f64) = (1.0 / 64.0, 4.0);
/// Steps with every rate that is tried: a twentieth of all, so many at most.
const TRIED_STEPS: usize = 4;
/// Gradients are scaled down to this norm.
const CLIP: f64 = 1.0;
/// Key of the saved state's free-form strings.
const SAVED: &str = "training";

/// A look at what is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossPoint {
    /// Steps done.
    pub step: usize,
    /// Mean training loss since the look before.
    #[serde(default, with = "crate::number::optional", skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Mean held-out loss; absent, in JSON `"NaN"`, when it is not finite.
    #[serde(with = "crate::number::finite")]
    pub heldout_loss: Option<f64>,
}

/// A learning rate that was tried.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RateTrial {
    /// The rate.
    pub lr: f64,
    /// Mean held-out loss after a few steps with it.
    #[serde(with = "crate::number")]
    pub heldout_loss: f64,
}

/// How far a training is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Log {
    /// Steps planned.
    pub steps: usize,
    /// Steps between two looks, after each of which the state is saved.
    pub interval: usize,
    /// Steps done.
    pub done: usize,
    /// The step whose state is the best so far.
    pub best_step: usize,
    /// Its mean held-out loss; infinite before the first look.
    #[serde(with = "crate::number")]
    pub best_loss: f64,
    /// Steps after which training went back to the best state and on at half the rate.
    pub slowed: Vec<usize>,
    /// What the optimiser's rates were multiplied with, each for a few steps, where they had to be found.
    pub tried: Vec<RateTrial>,
    /// Training tokens seen, repeated ones included.
    pub tokens: u64,
    /// Why it ended early, if it did.
    pub stopped: Option<String>,
    /// All looks.
    pub curve: Vec<LossPoint>,
}

impl Log {
    fn new(steps: usize) -> Self {
        Self {
            steps,
            interval: steps.div_ceil(20).clamp(1, 50),
            done: 0,
            best_step: 0,
            best_loss: f64::INFINITY,
            slowed: Vec::new(),
            tried: Vec::new(),
            tokens: 0,
            stopped: None,
            curve: Vec::new(),
        }
    }

    /// Looks since the last one that led to a better state or back to one.
    pub(super) fn looks_in_vain(&self) -> usize {
        (self.done - self.best_step.max(self.slowed.last().copied().unwrap_or(0))) / self.interval
    }

    /// What the optimiser's rates are multiplied with: of what was tried, what led to the best state.
    pub(super) fn found_rate(&self) -> f64 {
        let best = self.tried.iter().min_by(|a, b| a.heldout_loss.total_cmp(&b.heldout_loss));
        best.map_or(1.0, |trial| trial.lr)
    }

    /// What learning rates are multiplied with in the next step, by a schedule that began at step `begin`. Behind every
    /// return they rise anew: the optimiser knows nothing yet.
    fn rate(&self, (begin, schedule): (usize, Schedule)) -> f64 {
        let rising = |&step: &usize| (self.done - step + 1) as f64 / (schedule.warm_up() + 1) as f64;
        let risen = self.slowed.last().map_or(1.0, rising);
        self.found_rate()
            * 0.5f64.powi(self.slowed.len() as i32)
            * risen.min(1.0)
            * schedule.factor(self.done.saturating_sub(begin))
    }
}

/// What is trained, what it adds to the gradients, how it is judged, what is saved of it, and when it has had enough.
pub(super) trait Training {
    /// Times in a row that training goes back to the best state before it stops.
    const RETURNS: usize;

    /// The student.
    fn student(&self) -> &dyn BlockStack;

    /// The loss of its predictions.
    fn loss(&self) -> &DistillationLoss<'_>;

    /// A fresh optimiser of the student's parameters, in the order of [`Gradients::all`].
    fn optimiser(&self) -> Result<AdamW>;

    /// Whether the optimiser's rates are no more than usual ones: then some are tried first.
    fn finds_rate(&self) -> bool {
        false
    }

    /// The schedule that the next step belongs to, and the step at which it began.
    fn schedule(&self, log: &Log) -> (usize, Schedule);

    /// Called before each step. `true` asks for the best state so far, from which [`restart`](Self::restart) goes on.
    fn begin_step(&mut self, _log: &Log) -> Result<bool> {
        Ok(false)
    }

    /// Makes of the best state what is trained from here on, by a fresh optimiser.
    fn restart(&mut self) -> Result<()> {
        Ok(())
    }

    /// Adds to the gradients of a step what does not come from its loss.
    fn regularise(&mut self, _log: &Log, _gradients: &mut Gradients) -> Result<()> {
        Ok(())
    }

    /// Whether what was just done leaves nothing to do.
    fn is_finished(&self) -> Result<bool> {
        Ok(false)
    }

    /// Mean held-out loss of what would be the result now. One that is not finite is no result.
    fn evaluate(&mut self, log: &Log) -> Result<f64>;

    /// After a look without a better state: whether that was one too many.
    fn is_out_of_patience(&self, log: &Log) -> bool;

    /// What has to survive a kill beside the parameters and the [`Log`].
    fn state(&self) -> Result<Value> {
        Ok(Value::Null)
    }

    /// Takes back what [`state`](Self::state) gave, after the parameters.
    fn resume(&mut self, _state: Value) -> Result<()> {
        Ok(())
    }
}

/// Everything a training survives a kill by, beside tensors.
#[derive(Serialize, Deserialize)]
struct Saved {
    log: Log,
    state: Value,
    seconds: f64,
}

/// Trains for at most `steps` steps and `seconds`, and leaves the best state in the parameters.
///
/// Steps `progress` once per step, and not at all while rates are tried. A run that was interrupted goes on from what was last saved at `path` and ends with the
/// same bits.
pub(super) fn train<T: Training>(
    training: &mut T,
    steps: usize,
    seconds: Option<f64>,
    path: &Path,
    progress: &dyn Progress,
) -> Result<Log> {
    let mut trainer = Trainer::start(training, steps, seconds, path, progress)?;
    progress.step(trainer.log.done as u64)?;
    while trainer.log.done < trainer.log.steps && trainer.log.stopped.is_none() {
        trainer.step()?;
        progress.step(1)?;
    }
    restore(trainer.optimiser.parameters(), &trainer.best)?;
    Ok(trainer.log)
}

struct Trainer<'a, T: Training> {
    training: &'a mut T,
    optimiser: AdamW,
    log: Log,
    best: Vec<Tensor>,
    deadline: Deadline,
    path: &'a Path,
    /// Loss and its terms since the last look.
    since: (f64, usize),
}

impl<'a, T: Training> Trainer<'a, T> {
    fn start(
        training: &'a mut T,
        steps: usize,
        seconds: Option<f64>,
        path: &'a Path,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let optimiser = training.optimiser()?;
        let (best, log, deadline) = (Vec::new(), Log::new(steps), Deadline::start(seconds, 0.0));
        let mut this = Self { training, optimiser, log, best, deadline, path, since: (0.0, 0) };
        if path.exists() {
            this.resume(seconds)?;
        } else {
            this.best = snapshot(this.optimiser.parameters())?;
            this.look()?;
        }
        if this.best.is_empty() {
            this.log.stopped = Some("no linear is factorised: there is nothing to train".into());
        } else if this.log.tried.is_empty() && this.training.finds_rate() {
            this.find_rate(progress)?;
        }
        Ok(this)
    }

    /// Takes a few steps with several rates, each from the start, and keeps the one that leads to the best state: twice the
    /// first one as long as that is better, or half of it.
    fn find_rate(&mut self, progress: &dyn Progress) -> Result<()> {
        self.try_rate(FIRST_RATE, progress)?;
        for factor in [2.0, 0.5] {
            let mut rate = FIRST_RATE * factor;
            while rate >= RATES.0 && rate <= RATES.1 && !self.deadline.has_passed() {
                self.try_rate(rate, progress)?;
                if self.log.found_rate() != rate {
                    break;
                }
                rate *= factor;
            }
            if self.log.found_rate() != FIRST_RATE {
                break;
            }
        }
        restore(self.optimiser.parameters(), &self.best)?;
        self.optimiser.forget()?;
        self.save()
    }

    /// Takes a few steps with `rate` and notes the held-out loss they lead to; infinite where that is nowhere.
    fn try_rate(&mut self, rate: f64, progress: &dyn Progress) -> Result<()> {
        restore(self.optimiser.parameters(), &self.best)?;
        self.optimiser.forget()?;
        let mut heldout_loss = f64::INFINITY;
        let steps = (self.log.steps / 20).clamp(1, TRIED_STEPS);
        let log = Log { done: steps, ..self.log.clone() };
        for step in 0..steps {
            let mut of_step = self.training.loss().step(self.training.student(), step)?;
            if !of_step.loss.is_finite() {
                break;
            }
            of_step.gradients.clip(CLIP)?;
            progress.step(0)?;
            // They rise, as they will at the beginning.
            self.optimiser.step(&of_step.gradients.all(), rate * (step + 1) as f64 / steps as f64)?;
            if step + 1 == steps {
                heldout_loss = Some(self.training.evaluate(&log)?).filter(|x| x.is_finite()).unwrap_or(f64::INFINITY);
            }
        }
        self.log.tried.push(RateTrial { lr: rate, heldout_loss });
        Ok(())
    }

    fn step(&mut self) -> Result<()> {
        let step = self.log.done + 1;
        if self.training.begin_step(&self.log)? {
            restore(self.optimiser.parameters(), &self.best)?;
            self.training.restart()?;
            self.best = snapshot(self.optimiser.parameters())?;
            self.optimiser.forget()?;
        }
        let mut of_step = self.training.loss().step(self.training.student(), self.log.done)?;
        if !of_step.loss.is_finite() {
            let loss = of_step.loss;
            self.log.stopped = Some(format!("the loss was {loss} at step {step}: the best state was restored"));
            return Ok(());
        }
        self.training.regularise(&self.log, &mut of_step.gradients)?;
        of_step.gradients.clip(CLIP)?;
        let rate = self.log.rate(self.training.schedule(&self.log));
        self.optimiser.step(&of_step.gradients.all(), rate)?;
        self.since.0 += of_step.loss;
        self.since.1 += of_step.terms;
        self.log.done = step;
        self.log.tokens += of_step.tokens;
        self.log.steps = self.deadline.fitting(step, self.log.steps);
        if self.training.is_finished()? {
            self.log.steps = step;
        }
        if self.deadline.has_passed() {
            self.log.stopped = Some(format!("the time was up after {step} steps"));
        }
        let last = step >= self.log.steps || self.log.stopped.is_some();
        if step.is_multiple_of(self.log.interval) || last {
            self.look()?;
        }
        Ok(())
    }

    /// Judges the state as it is, keeps it if it is the best so far, and saves everything.
    fn look(&mut self) -> Result<()> {
        let heldout = self.training.evaluate(&self.log)?;
        let (step, (loss, terms)) = (self.log.done, std::mem::take(&mut self.since));
        self.log.curve.push(LossPoint {
            step,
            loss: (terms > 0).then(|| loss / terms as f64),
            heldout_loss: heldout.is_finite().then_some(heldout),
        });
        if heldout < self.log.best_loss {
            (self.log.best_loss, self.log.best_step) = (heldout, step);
            self.best = snapshot(self.optimiser.parameters())?;
        } else if self.training.is_out_of_patience(&self.log) {
            self.go_back()?;
        }
        self.save()
    }

    /// Back to the best state and on at half the rate, if that has not been tried often enough.
    fn go_back(&mut self) -> Result<()> {
        let best_step = self.log.best_step;
        if self.log.slowed.iter().filter(|&&step| step > best_step).count() == T::RETURNS {
            self.log.stopped = Some(format!("no better state since step {best_step}"));
            return Ok(());
        }
        self.log.slowed.push(self.log.done);
        restore(self.optimiser.parameters(), &self.best)?;
        self.optimiser.forget()
    }

    fn save(&self) -> Result<()> {
        let mut tensors = self.optimiser.state();
        for ((name, var), best) in self.optimiser.parameters().zip(&self.best) {
            tensors.push(Unwritten::Tensor(format!("now.{name}"), var.as_tensor().clone()));
            tensors.push(Unwritten::Tensor(format!("best.{name}"), best.clone()));
        }
        let (state, seconds) = (self.training.state()?, self.deadline.elapsed());
        let saved = serde_json::to_string(&Saved { log: self.log.clone(), state, seconds })?;
        write_sealed(self.path, &tensors, &BTreeMap::from([(SAVED.to_string(), saved)]))
    }

    fn resume(&mut self, seconds: Option<f64>) -> Result<()> {
        let file = TensorFile::open_unfinished(self.path)?;
        let saved = file.metadata().get(SAVED).context("a saved state lacks its log")?;
        let saved: Saved =
            serde_json::from_str(saved).with_context(|| format!("{} is damaged", self.path.display()))?;
        self.optimiser.restore(&file)?;
        for (name, var) in self.optimiser.parameters() {
            let read = |kind: &str| file.tensor(&format!("{kind}.{name}"), var.dims(), var.device());
            var.set(&read("now")?)?;
            self.best.push(read("best")?);
        }
        self.log = saved.log;
        self.deadline = Deadline::start(seconds, saved.seconds);
        self.training.resume(saved.state)
    }
}

/// A copy of `parameters` as they are now.
pub(super) fn snapshot<'v>(parameters: impl Iterator<Item = (&'v str, &'v Var)>) -> Result<Vec<Tensor>> {
    parameters.map(|(_, var)| Ok(var.as_tensor().copy()?.detach())).collect()
}

/// Goes back to a snapshot.
pub(super) fn restore<'v>(parameters: impl Iterator<Item = (&'v str, &'v Var)>, snapshot: &[Tensor]) -> Result<()> {
    parameters.zip(snapshot).try_for_each(|((_, var), tensor)| Ok(var.set(tensor)?))
}

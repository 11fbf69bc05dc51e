//! The compressed model under treatment beside the original: what [`heal`](super::heal()) does in one step.

use super::adamw::{AdamW, AdamWOptions, Group};
use super::backward::Student;
use super::course::{Course, Taught, root_mean_square};
use super::heal::{HealPoint, HealReport, Healing, finite};
use crate::checkpoint::{NamedTensor, TensorFile, write_sealed};
use crate::model::{Block, Role};
use crate::user_bail;
use anyhow::{Context, Result};
use candle_core::{DType, Tensor, Var};
use std::collections::BTreeMap;
use std::path::Path;

/// A factor in training.
struct Trained {
    block: usize,
    /// Its name in the block: `attn.q.factor_a`.
    name: String,
    var: Var,
    /// What it is rounded to when stored.
    stored: DType,
}

impl Trained {
    /// Its name in the model: `3.attn.q.factor_a`.
    fn key(&self) -> String {
        format!("{}.{}", self.block, self.name)
    }
}

/// The compressed model under treatment beside the original.
pub(super) struct Patient<'a> {
    job: &'a Healing<'a>,
    course: Course<'a>,
    /// The compressed blocks, if they fit.
    compressed: Option<Vec<Block<'a>>>,
    trained: Vec<Trained>,
}

impl<'a> Patient<'a> {
    /// Loads both models and makes the factors trainable.
    pub(super) fn new(job: &'a Healing<'a>) -> Result<Self> {
        let course = Course::new(job.lesson)?;
        let mut patient = Self { job, course, compressed: None, trained: Vec::new() };
        let mut compressed = Vec::new();
        for index in 0..job.lesson.model.blocks() {
            let block = patient.adopt(index, patient.course.original(index)?)?;
            if job.lesson.fits() {
                compressed.push(block);
            }
        }
        patient.compressed = job.lesson.fits().then_some(compressed);
        Ok(patient)
    }

    /// Makes the factors of a block trainable when it is seen for the first time.
    fn adopt(&mut self, index: usize, mut block: Block<'a>) -> Result<Block<'a>> {
        (self.job.install)(index, &mut block)?;
        block.map_weights(&mut |name, weight| {
            let Some((role, _)) = factor(name) else { return Ok(weight.clone()) };
            let var = Var::from_tensor(weight)?;
            let tensor = var.as_tensor().clone();
            let stored = (self.job.stored)(index, role)?;
            self.trained.push(Trained { block: index, name: name.to_string(), var, stored });
            Ok(tensor)
        })?;
        block.set_differentiable(true);
        Ok(block)
    }

    fn student_block(&self, index: usize) -> Result<Block<'a>> {
        if let Some(blocks) = &self.compressed {
            return Ok(blocks[index].clone());
        }
        let mut block = self.course.original(index)?;
        (self.job.install)(index, &mut block)?;
        block.map_weights(&mut |name, weight| {
            let trained = self.in_block(index).find(|trained| trained.name == name);
            Ok(trained.map_or_else(|| weight.clone(), |trained| trained.var.as_tensor().clone()))
        })?;
        block.set_differentiable(true);
        Ok(block)
    }

    fn in_block(&self, index: usize) -> impl Iterator<Item = &Trained> {
        self.trained.iter().filter(move |trained| trained.block == index)
    }

    /// One group per factor: what a learning rate means depends on how large its entries are.
    pub(super) fn optimiser(&self) -> Result<AdamW> {
        let group = |trained: &Trained| -> Result<Group> {
            let lr = self.job.options.lr * root_mean_square(&trained.var)?;
            Ok(Group { lr, weight_decay: 0.0, parameters: vec![(trained.key(), trained.var.clone())] })
        };
        AdamW::new(self.trained.iter().map(group).collect::<Result<_>>()?, AdamWOptions::default())
    }

    /// The loss of `step` and its gradients.
    pub(super) fn taught(&self, step: usize) -> Result<Taught> {
        self.course.teach(self, &self.course.batch(step))
    }

    /// Mean held-out loss, with the factors as they would be stored.
    pub(super) fn heldout_loss(&self) -> Result<f64> {
        self.course.judge(&|index| {
            let mut block = self.student_block(index)?;
            block.map_weights(&mut |name, weight| {
                let stored = self.in_block(index).find(|trained| trained.name == name).map(|trained| trained.stored);
                let weight = weight.detach();
                Ok(stored.map_or(Ok(weight.clone()), |dtype| weight.to_dtype(dtype)?.to_dtype(DType::F32))?)
            })?;
            block.leave_unchecked();
            Ok(block)
        })
    }

    /// Whether there is nothing to train.
    pub(super) fn is_empty(&self) -> bool {
        self.trained.is_empty()
    }

    /// The report before the first step.
    pub(super) fn before(&self) -> Result<HealReport> {
        let (options, loss) = (&self.job.options, self.heldout_loss()?);
        if !loss.is_finite() {
            user_bail!("the compressed model's output is NaN or infinite"; "keep more, or choose another method");
        }
        Ok(HealReport {
            aim: self.job.lesson.aim(),
            steps: options.steps,
            done: 0,
            best_step: 0,
            slowed: Vec::new(),
            batch: self.job.lesson.batch,
            lr: options.lr,
            tokens: 0,
            heldout_tokens: self.job.lesson.heldout_tokens(),
            loss_before: loss,
            loss_after: loss,
            stopped: self.is_empty().then(|| "no linear is factorised: there is nothing to train".to_string()),
            curve: vec![HealPoint { step: 0, loss: None, heldout_loss: finite(loss) }],
        })
    }

    /// A copy of all factors as they are now.
    pub(super) fn snapshot(&self) -> Result<Vec<Tensor>> {
        self.trained.iter().map(|trained| Ok(trained.var.as_tensor().copy()?.detach())).collect()
    }

    /// Goes back to a snapshot.
    pub(super) fn restore(&self, snapshot: &[Tensor]) -> Result<()> {
        self.trained.iter().zip(snapshot).try_for_each(|(trained, tensor)| Ok(trained.var.set(tensor)?))
    }

    /// Writes everything that a resumed run needs.
    pub(super) fn save(
        &self,
        path: &Path,
        optimiser: &AdamW,
        report: &HealReport,
        best: &[Tensor],
        seconds: f64,
    ) -> Result<()> {
        let mut tensors = optimiser.state()?;
        for (trained, best) in self.trained.iter().zip(best) {
            tensors.push(NamedTensor::of(format!("now.{}", trained.key()), &trained.var)?);
            tensors.push(NamedTensor::of(format!("best.{}", trained.key()), best)?);
        }
        let facts = [("report", serde_json::to_string(report)?), ("seconds", seconds.to_string())];
        write_sealed(path, &tensors, &BTreeMap::from(facts.map(|(key, value)| (key.to_string(), value))))
    }

    /// Goes back to what [`Patient::save`] wrote; returns the report, the best factors so far and the seconds spent.
    pub(super) fn resume(&self, path: &Path, optimiser: &mut AdamW) -> Result<(HealReport, Vec<Tensor>, f64)> {
        let file = TensorFile::open_unfinished(path)?;
        let report = file.metadata().get("report").context("a saved state lacks its report")?;
        let report = serde_json::from_str(report).with_context(|| format!("{} is damaged", path.display()))?;
        optimiser.restore(&file)?;
        let mut best = Vec::new();
        for trained in &self.trained {
            let read = |kind: &str| {
                file.tensor(&format!("{kind}.{}", trained.key()), trained.var.dims(), trained.var.device())
            };
            trained.var.set(&read("now")?)?;
            best.push(read("best")?);
        }
        let seconds = file.metadata().get("seconds").and_then(|text| text.parse().ok());
        Ok((report, best, seconds.context("a saved state lacks its time")?))
    }

    /// `best`, sorted by linear.
    pub(super) fn factors(&self, best: Vec<Tensor>) -> Result<BTreeMap<(usize, Role), (Tensor, Tensor)>> {
        let mut found: BTreeMap<(usize, Role), [Option<Tensor>; 2]> = BTreeMap::new();
        for (trained, tensor) in self.trained.iter().zip(best) {
            let (role, second) = factor(&trained.name).context("only factors are trained")?;
            found.entry((trained.block, role)).or_default()[usize::from(second)] = Some(tensor);
        }
        let whole = |[a, b]: [Option<Tensor>; 2]| -> Result<(Tensor, Tensor)> {
            Ok((a.context("a factorised linear without A")?, b.context("a factorised linear without B")?))
        };
        found.into_iter().map(|(key, pair)| Ok((key, whole(pair)?))).collect()
    }
}

/// The role a factor belongs to, and whether it is B.
fn factor(name: &str) -> Option<(Role, bool)> {
    let of = |suffix| name.strip_suffix(suffix)?.parse::<Role>().ok();
    of(".factor_a").map(|role| (role, false)).or_else(|| of(".factor_b").map(|role| (role, true)))
}

impl Student for Patient<'_> {
    fn blocks(&self) -> usize {
        self.job.lesson.model.blocks()
    }

    fn block(&self, index: usize) -> Result<Block<'_>> {
        self.student_block(index)
    }

    fn parameters(&self, index: usize) -> Vec<Var> {
        self.in_block(index).map(|trained| trained.var.clone()).collect()
    }
}

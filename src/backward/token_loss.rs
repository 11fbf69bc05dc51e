//! The loss of predicted tokens, and the gradient on the hidden states in front of the head.
//!
//! ```text
//! L = (1/N) Σ_positions  α τ² KL(softmax(u/τ) ‖ softmax(z/τ)) + γ (−log softmax(z)[next token])
//! ```
//! z are the student's logits, u the teacher's. The gradient on z is known in closed form; only the final norm is
//! differentiated by the graph. Positions are taken in chunks, so neither model's logits ever exist as a whole.

use super::pass::gradients_of;
use crate::model::Head;
use crate::ops::{add_difference, add_softmax, divergence, divergence_of, log_softmax, log_sum_exp, with_numbers};
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor, Var};
use rayon::prelude::*;
use serde::Serialize;
use std::borrow::Cow;

/// What is minimised where a model predicts tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Objective {
    /// α, the weight of the divergence from the teacher.
    pub divergence: f64,
    /// τ, the temperature of both distributions in it; gradients keep their size by the factor τ².
    pub temperature: f64,
    /// γ, the weight of the negative log-likelihood of the next token.
    pub likelihood: f64,
}

impl Objective {
    /// Divergence from the teacher alone, at temperature 1.
    pub const DISTIL: Self = Self { divergence: 1.0, temperature: 1.0, likelihood: 0.0 };
    /// Likelihood of what is known to be right alone.
    pub const LABELS: Self = Self { divergence: 0.0, temperature: 1.0, likelihood: 1.0 };

    /// A mean of both, in which the likelihood has this `share`.
    pub fn mean(share: f64, temperature: f64) -> Self {
        Self { divergence: 1.0 - share, temperature, likelihood: share }
    }
}

/// What the student is to come close to.
#[derive(Clone, Copy)]
pub struct Teacher<'a> {
    /// Its head.
    pub head: &'a Head,
    /// Its final hidden states, (windows, t, hidden), of the same windows.
    pub states: &'a Tensor,
}

/// The sum of the loss over all positions that have a next token, and `scale` times its gradient on `states`.
///
/// `states` (windows, t, hidden) are the student's final hidden states of `rows`, equally long windows. The gradient has
/// their shape; it is zero at the last position of each window.
pub fn token_loss_gradient(
    head: &Head,
    states: &Tensor,
    teacher: Option<Teacher>,
    rows: &[&[u32]],
    objective: &Objective,
    scale: f64,
) -> Result<(f64, Tensor)> {
    ensure!(teacher.is_some() || objective.divergence == 0.0, "a divergence needs a teacher");
    let (windows, t, hidden) = states.dims3()?;
    let (mut losses, mut gradients) = (Vec::new(), Vec::new());
    each_chunk(head, states, teacher, rows, |chunk| {
        let input = Var::from_tensor(&chunk.student)?;
        let normalised = head.normalise(&input)?;
        let logits = head.project(&normalised.detach())?;
        let (loss, gradient) = chunk.loss(&logits, objective, scale)?;
        losses.push(loss);
        let mut graph = gradients_of(&normalised, &head.project_back(&gradient, &logits)?)?;
        gradients.push(graph.remove(&input).context("the head passes no gradient on")?);
        Ok(())
    })?;
    let gradient = Tensor::cat(&gradients, 0)?.reshape((windows, t - 1, hidden))?;
    let last = Tensor::zeros((windows, 1, hidden), gradient.dtype(), gradient.device())?;
    Ok((sum(&losses)?, Tensor::cat(&[gradient, last], 1)?))
}

/// The loss of [`token_loss_gradient`] without the gradient, which costs as much again.
pub fn token_loss(
    head: &Head,
    states: &Tensor,
    teacher: Option<Teacher>,
    rows: &[&[u32]],
    objective: &Objective,
) -> Result<f64> {
    let mut losses = Vec::new();
    each_chunk(head, states, teacher, rows, |chunk| {
        let logits = head.logits(&chunk.student)?;
        losses.push(chunk.loss(&logits, objective, 0.0)?.0);
        Ok(())
    })?;
    sum(&losses)
}

/// The sum of single numbers in f64, in order. A device is waited for once.
fn sum(losses: &[Tensor]) -> Result<f64> {
    if losses.is_empty() {
        return Ok(0.0);
    }
    Ok(Tensor::stack(losses, 0)?.to_vec1::<f64>()?.iter().sum())
}

/// Some positions with everything the loss needs to know of them.
struct Chunk<'a> {
    /// The student's states, (positions, hidden).
    student: Tensor,
    /// The teacher's logits, (positions, vocab).
    teacher: Option<Tensor>,
    /// The next tokens.
    targets: &'a [u32],
}

/// Calls `f` with one chunk of positions after the other.
fn each_chunk(
    head: &Head,
    states: &Tensor,
    teacher: Option<Teacher>,
    rows: &[&[u32]],
    mut f: impl FnMut(&Chunk) -> Result<()>,
) -> Result<()> {
    let (windows, t, _) = states.dims3()?;
    ensure!(t >= 2, "a window of {t} tokens predicts nothing");
    ensure!(rows.len() == windows && rows.iter().all(|row| row.len() == t), "states and windows do not fit");
    let targets: Vec<u32> = rows.iter().flat_map(|row| row[1..].iter().copied()).collect();
    let student = flat(states)?;
    let teacher = teacher.map(|teacher| Ok::<_, anyhow::Error>((teacher.head, flat(teacher.states)?))).transpose()?;
    // Student, teacher and two gradients.
    let size = head.positions_at_once(4);
    for (i, targets) in targets.chunks(size).enumerate() {
        let part = |states: &Tensor| states.narrow(0, i * size, targets.len())?.contiguous();
        let teacher = teacher.as_ref().map(|(head, states)| head.logits(&part(states)?)).transpose()?;
        f(&Chunk { student: part(&student)?, teacher, targets })?;
    }
    Ok(())
}

/// (windows, t, hidden) to (windows · (t − 1), hidden): the last position of a window predicts nothing that is known.
fn flat(states: &Tensor) -> Result<Tensor> {
    let (windows, t, hidden) = states.dims3()?;
    Ok(states.narrow(1, 0, t - 1)?.contiguous()?.reshape((windows * (t - 1), hidden))?)
}

impl Chunk<'_> {
    /// The sum of the loss, and `scale` times its gradient on the student's `logits` (positions, vocab).
    fn loss(&self, logits: &Tensor, objective: &Objective, scale: f64) -> Result<(Tensor, Tensor)> {
        logit_loss(logits, self.teacher.as_ref(), self.targets, objective, scale)
    }
}

/// The sum of the loss, one number in f64, and `scale` times its gradient on the student's `logits` (rows, classes), which
/// means nothing where `scale` is 0. The `teacher`'s have the same shape.
pub(super) fn logit_loss(
    logits: &Tensor,
    teacher: Option<&Tensor>,
    targets: &[u32],
    objective: &Objective,
    scale: f64,
) -> Result<(Tensor, Tensor)> {
    if !logits.device().is_cpu() {
        return by_tensors(&logits.detach(), teacher, targets, objective, scale);
    }
    let classes = logits.dim(1)?;
    let mut rows: Vec<f32> = logits.flatten_all()?.to_vec1()?;
    let mut of_rows = |teacher: Option<&[f32]>| -> Vec<f64> {
        let rows = rows.par_chunks_exact_mut(classes).zip(targets).enumerate();
        rows.map(|(i, (row, &target))| {
            let teacher = teacher.map(|teacher| &teacher[i * classes..(i + 1) * classes]);
            row_loss(row, teacher, target as usize, objective, scale)
        })
        .collect()
    };
    let losses = match teacher {
        Some(teacher) => with_numbers(teacher, |teacher| of_rows(Some(teacher)))?,
        None => of_rows(None),
    };
    // Summed in order, whatever the number of threads.
    let loss = Tensor::new(losses.iter().sum::<f64>(), &Device::Cpu)?;
    Ok((loss, Tensor::from_vec(rows, logits.shape(), &Device::Cpu)?))
}

/// The same by tensor operations: nothing leaves the device.
fn by_tensors(
    z: &Tensor,
    u: Option<&Tensor>,
    targets: &[u32],
    objective: &Objective,
    scale: f64,
) -> Result<(Tensor, Tensor)> {
    let Objective { divergence: alpha, temperature: tau, likelihood: gamma } = *objective;
    let mut loss = Tensor::zeros((), DType::F64, z.device())?;
    let mut gradient: Option<Tensor> = None;
    let mut add = |part: Tensor| -> Result<()> {
        gradient = Some(match gradient.take() {
            Some(sum) => (sum + part)?,
            None => part,
        });
        Ok(())
    };
    if let Some(u) = u.filter(|_| alpha != 0.0) {
        let tempered = |x: &Tensor| log_softmax(&(x.to_dtype(DType::F64)? / tau)?);
        let (log_q, log_p) = (tempered(z)?, tempered(u)?);
        loss = (loss + (divergence_of(&log_p, &log_q)? * (alpha * tau * tau))?)?;
        if scale != 0.0 {
            add(((log_q.exp()? - log_p.exp()?)? * (scale * alpha * tau))?)?;
        }
    }
    if gamma != 0.0 {
        let targets = Tensor::new(targets, z.device())?.unsqueeze(1)?;
        let log_q = log_softmax(z)?;
        loss = (loss - (log_q.gather(&targets, 1)?.sum_all()? * gamma)?)?;
        if scale != 0.0 {
            let ones = Tensor::ones(targets.dims(), DType::F64, z.device())?;
            add((log_q.exp()?.scatter_add(&targets, &ones.neg()?, 1)? * (scale * gamma))?)?;
        }
    }
    let gradient = match gradient {
        Some(gradient) => gradient.to_dtype(z.dtype())?,
        None => z.zeros_like()?,
    };
    Ok((loss, gradient))
}

/// The loss at one position; `z` holds the logits and is left with `scale` times the gradient on them.
fn row_loss(z: &mut [f32], u: Option<&[f32]>, target: usize, objective: &Objective, scale: f64) -> f64 {
    let Objective { divergence: alpha, temperature: tau, likelihood: gamma } = *objective;
    let mut loss = 0.0;
    let mut gradient = vec![0f32; if scale == 0.0 { 0 } else { z.len() }];
    if let Some(u) = u.filter(|_| alpha != 0.0) {
        let (q, p) = (tempered(z, tau), tempered(u, tau));
        let (lse_q, lse_p) = (log_sum_exp(&q), log_sum_exp(&p));
        loss += alpha * tau * tau * divergence(&p, lse_p, &q, lse_q);
        add_difference(&q, lse_q, &p, lse_p, scale * alpha * tau, &mut gradient);
    }
    if gamma != 0.0 {
        let lse = log_sum_exp(z);
        loss += gamma * (lse - f64::from(z[target]));
        add_softmax(z, lse, scale * gamma, &mut gradient);
        if let Some(gradient) = gradient.get_mut(target) {
            *gradient -= (scale * gamma) as f32;
        }
    }
    if scale != 0.0 {
        z.copy_from_slice(&gradient);
    }
    loss
}

/// x / τ
fn tempered(x: &[f32], tau: f64) -> Cow<'_, [f32]> {
    if tau == 1.0 { Cow::Borrowed(x) } else { x.iter().map(|&x| (f64::from(x) / tau) as f32).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of every size that logits have.
    fn logits(rows: usize, classes: usize, phase: f32, device: &Device) -> Tensor {
        let numbers: Vec<f32> = (0..rows * classes).map(|i| 9.0 * (phase + 1.7 * i as f32).sin()).collect();
        Tensor::from_vec(numbers, (rows, classes), device).unwrap()
    }

    #[test]
    fn forms_agree_on_every_device() {
        let (rows, classes) = (23, 77);
        let targets: Vec<u32> = (0..rows as u32).map(|i| i * 7 % classes as u32).collect();
        let objectives = [
            Objective::DISTIL,
            Objective::LABELS,
            Objective::mean(0.3, 2.5),
            Objective { divergence: 0.0, temperature: 1.0, likelihood: 0.0 },
        ];
        let mut devices = crate::device::Choice::Cuda(0).open(|_| ()).into_iter().collect::<Vec<_>>();
        devices.push(Device::Cpu);
        for objective in objectives {
            for scale in [0.0, 0.25] {
                let here = |x: f32| logits(rows, classes, x, &Device::Cpu);
                let (loss, gradient) = logit_loss(&here(0.1), Some(&here(0.7)), &targets, &objective, scale).unwrap();
                let loss = loss.to_scalar::<f64>().unwrap();
                for device in &devices {
                    let there = |x: f32| logits(rows, classes, x, device);
                    let (found, found_gradient) =
                        by_tensors(&there(0.1), Some(&there(0.7)), &targets, &objective, scale).unwrap();
                    let found = found.to_scalar::<f64>().unwrap();
                    assert!((found - loss).abs() <= 1e-5 * loss.abs(), "{objective:?}: {found} {loss}");
                    let off = (found_gradient.to_device(&Device::Cpu).unwrap() - &gradient).unwrap();
                    let off = off.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                    assert!(scale == 0.0 || off < 1e-6, "{objective:?}: {off:e}");
                }
            }
        }
    }
}

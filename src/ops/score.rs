//! How well rows of logits predict what comes, and how far they are from other logits: sums over rows, in f64.
//!
//! ```text
//! nll = Σ lse(z) − z_target        kl = Σ KL(softmax(u) ‖ softmax(z))        agree = number of rows with argmax u = argmax z
//! ```
//! z are the logits (rows, vocab), u those of the model that z is compared with.

use super::loss::{argmax, divergence, log_sum_exp};
use super::with_numbers;
use candle_core::{D, DType, Device, Result, Tensor};
use rayon::prelude::*;

/// Rows that are worth another thread.
const ROWS: usize = 16;

/// Sums over the rows.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Score {
    /// Σ −log p(target), nats.
    pub nll: f64,
    /// The same under the other model; 0 without one.
    pub base_nll: f64,
    /// Σ KL(other ‖ this), nats; 0 without another one.
    pub kl: f64,
    /// Rows where both models' most likely token is the same.
    pub agree: usize,
}

impl Score {
    /// What [`score`] gave, however often, in one go: a device is waited for once.
    pub fn read(scores: &[Tensor]) -> Result<Vec<Self>> {
        if scores.is_empty() {
            return Ok(Vec::new());
        }
        let of_row = |sums: &[f64]| Self { nll: sums[0], base_nll: sums[1], kl: sums[2], agree: sums[3] as usize };
        Ok(Tensor::cat(scores, 0)?.to_vec1::<f64>()?.chunks_exact(4).map(of_row).collect())
    }
}

/// Scores `logits` (rows, vocab) by their `targets` and, when given, against the logits of another model: the numbers of a
/// [`Score`], (4), f64, where the logits are.
pub fn score(logits: &Tensor, base: Option<&Tensor>, targets: &[u32]) -> Result<Tensor> {
    if !logits.device().is_cpu() {
        return by_tensors(logits, base, targets);
    }
    let vocab = logits.dim(1)?;
    let of_rows = |z: &[f32], base: Option<&[f32]>| -> Vec<Score> {
        let of_row = |(i, z): (usize, &[f32])| {
            of_row(z, base.map(|base| &base[i * vocab..(i + 1) * vocab]), targets[i] as usize)
        };
        z.par_chunks_exact(vocab).enumerate().with_min_len(ROWS).map(of_row).collect()
    };
    let rows = with_numbers(logits, |z| match base {
        Some(base) => with_numbers(base, |base| of_rows(z, Some(base))),
        None => Ok(of_rows(z, None)),
    })??;
    let mut sum = Score::default();
    for row in rows {
        sum.nll += row.nll;
        sum.base_nll += row.base_nll;
        sum.kl += row.kl;
        sum.agree += row.agree;
    }
    Tensor::new(&[sum.nll, sum.base_nll, sum.kl, sum.agree as f64], &Device::Cpu)
}

fn of_row(z: &[f32], base: Option<&[f32]>, target: usize) -> Score {
    let lse = log_sum_exp(z);
    let mut score = Score { nll: lse - f64::from(z[target]), ..Score::default() };
    if let Some(base) = base {
        let base_lse = log_sum_exp(base);
        score.base_nll = base_lse - f64::from(base[target]);
        score.kl = divergence(base, base_lse, z, lse);
        score.agree = usize::from(argmax(base) == argmax(z));
    }
    score
}

/// The same by tensor operations.
fn by_tensors(logits: &Tensor, base: Option<&Tensor>, targets: &[u32]) -> Result<Tensor> {
    let targets = Tensor::new(targets, logits.device())?.unsqueeze(1)?;
    let nll = |log_p: &Tensor| log_p.gather(&targets, 1)?.sum_all()?.neg();
    let log_q = log_softmax(logits)?;
    let Some(base) = base else {
        let nothing = Tensor::zeros(3, DType::F64, logits.device())?;
        return Tensor::cat(&[nll(&log_q)?.unsqueeze(0)?, nothing], 0);
    };
    let log_p = log_softmax(base)?;
    let agree = base.argmax(D::Minus1)?.eq(&logits.argmax(D::Minus1)?)?.to_dtype(DType::F64)?.sum_all()?;
    Tensor::stack(&[nll(&log_q)?, nll(&log_p)?, divergence_of(&log_p, &log_q)?, agree], 0)
}

/// How well each row of `logits` (rows, vocab) predicts its target: (rows, 2), f64, where the logits are: log p(target) in nats,
/// and 1 if the target is the first of the most likely tokens, otherwise 0.
pub fn target_scores(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    if !logits.device().is_cpu() {
        return target_scores_by_tensors(logits, targets);
    }
    let vocab = logits.dim(1)?;
    let of_row = |(z, &target): (&[f32], &u32)| {
        let log_p = f64::from(z[target as usize]) - log_sum_exp(z);
        [log_p, f64::from(u8::from(argmax(z) == target as usize))]
    };
    let of_rows = |z: &[f32]| -> Vec<f64> {
        z.par_chunks_exact(vocab).zip(targets).with_min_len(ROWS).flat_map_iter(of_row).collect()
    };
    Tensor::from_vec(with_numbers(logits, of_rows)?, (targets.len(), 2), &Device::Cpu)
}

fn target_scores_by_tensors(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let targets = Tensor::new(targets, logits.device())?.unsqueeze(1)?;
    let log_p = log_softmax(logits)?.gather(&targets, 1)?;
    let greedy = logits.argmax_keepdim(D::Minus1)?.eq(&targets)?.to_dtype(DType::F64)?;
    Tensor::cat(&[log_p, greedy], 1)
}

/// log softmax of logits (rows, vocab) in f64, by tensor operations.
pub fn log_softmax(z: &Tensor) -> Result<Tensor> {
    let z = z.to_dtype(DType::F64)?;
    let z = z.broadcast_sub(&z.max_keepdim(D::Minus1)?)?;
    z.broadcast_sub(&z.exp()?.sum_keepdim(D::Minus1)?.log()?)
}

/// Σ KL(p ‖ q) over rows, from logarithms of probabilities.
pub fn divergence_of(log_p: &Tensor, log_q: &Tensor) -> Result<Tensor> {
    (log_p.exp()? * (log_p - log_q)?)?.sum_all()
}

/// Logits that others are compared with.
pub struct Reference {
    /// On the CPU the logits, (rows, vocab), elsewhere their log softmax.
    p: Tensor,
    /// log Σ exp of every row; empty elsewhere.
    lse: Vec<f64>,
}

impl Reference {
    /// Of logits (rows, vocab).
    pub fn new(logits: &Tensor) -> Result<Self> {
        if !logits.device().is_cpu() {
            return Ok(Self { p: log_softmax(logits)?, lse: Vec::new() });
        }
        let vocab = logits.dim(1)?;
        let of_rows = |p: &[f32]| p.par_chunks_exact(vocab).with_min_len(ROWS).map(log_sum_exp).collect();
        Ok(Self { p: logits.clone(), lse: with_numbers(logits, of_rows)? })
    }

    /// KL(softmax(these) ‖ softmax(`logits`)), nats, in f64 where the logits are: of every row on the CPU, so that how many
    /// are compared at once does not matter to who adds them up; elsewhere the sum, (1).
    pub fn divergence(&self, logits: &Tensor) -> Result<Tensor> {
        if !logits.device().is_cpu() {
            return divergence_of(&self.p, &log_softmax(logits)?)?.reshape(1);
        }
        let vocab = logits.dim(1)?;
        let of_rows = |p: &[f32], q: &[f32]| -> Vec<f64> {
            let rows = p.par_chunks_exact(vocab).zip(q.par_chunks_exact(vocab)).zip(&self.lse);
            rows.with_min_len(ROWS).map(|((p, q), &lse)| divergence(p, lse, q, log_sum_exp(q))).collect()
        };
        let rows = with_numbers(&self.p, |p| with_numbers(logits, |q| of_rows(p, q)))??;
        Tensor::from_vec(rows, logits.dim(0)?, &Device::Cpu)
    }
}

#[cfg(test)]
mod tests {
    use super::super::parity::{other_devices, wave};
    use super::*;

    #[test]
    fn rows_are_scored_one_by_one_on_every_device() {
        let z = (wave(&[37, 101], 0.2) * 9.0).unwrap();
        let likely = z.argmax(D::Minus1).unwrap().to_vec1::<u32>().unwrap();
        let targets: Vec<u32> = (0..37).map(|i| if i % 3 == 0 { likely[i as usize] } else { i * 7 % 101 }).collect();
        let here = target_scores(&z, &targets).unwrap().to_vec2::<f64>().unwrap();
        let log_p = log_softmax(&z).unwrap().to_vec2::<f64>().unwrap();
        for (i, row) in here.iter().enumerate() {
            assert!((row[0] - log_p[i][targets[i] as usize]).abs() < 1e-12, "{i}");
            assert_eq!(row[1] == 1.0, targets[i] == likely[i], "{i}");
        }
        let mut found = vec![target_scores_by_tensors(&z, &targets).unwrap()];
        found.extend(
            other_devices().iter().map(|device| target_scores(&z.to_device(device).unwrap(), &targets).unwrap()),
        );
        for rows in found {
            for (row, here) in rows.to_vec2::<f64>().unwrap().iter().zip(&here) {
                assert!((row[0] - here[0]).abs() < 1e-9 && row[1] == here[1], "{row:?} {here:?}");
            }
        }
    }

    #[test]
    fn forms_agree_on_every_device() {
        let z = (wave(&[37, 101], 0.2) * 9.0).unwrap();
        let u = ((&z * 0.8).unwrap() + wave(&[101, 37], 0.3).t().unwrap() * 1.5).unwrap();
        let targets: Vec<u32> = (0..37).map(|i| i * 7 % 101).collect();
        let read = |sums: candle_core::Result<Tensor>| Score::read(&[sums.unwrap()]).unwrap()[0];
        let here = read(score(&z, Some(&u), &targets));
        assert!(here.agree > 0 && here.agree < 37 && here.kl > 1.0, "{here:?}");
        let divergence = |z: &Tensor, u: &Tensor| -> f64 {
            Reference::new(u).unwrap().divergence(z).unwrap().to_vec1::<f64>().unwrap().iter().sum()
        };
        assert_eq!(divergence(&z, &u), here.kl);
        let mut found = vec![read(by_tensors(&z, Some(&u), &targets))];
        for device in other_devices() {
            let (z, u) = (z.to_device(&device).unwrap(), u.to_device(&device).unwrap());
            found.push(read(score(&z, Some(&u), &targets)));
            assert!((divergence(&z, &u) - here.kl).abs() < 1e-9);
            assert!((read(score(&z, None, &targets)).nll - here.nll).abs() < 1e-9);
        }
        for found in found {
            let off = [found.nll - here.nll, found.base_nll - here.base_nll, found.kl - here.kl];
            assert!(off.iter().all(|off| off.abs() < 1e-9) && found.agree == here.agree, "{found:?} {here:?}");
        }
        let alone = Score { nll: here.nll, ..Score::default() };
        assert_eq!(read(score(&z, None, &targets)), alone);
        let by_tensors = read(by_tensors(&z, None, &targets));
        assert!((by_tensors.nll - here.nll).abs() < 1e-9 && by_tensors.kl == 0.0);
        let all = [score(&z, Some(&u), &targets).unwrap(), score(&z, None, &targets).unwrap()];
        assert_eq!(Score::read(&all).unwrap(), [here, alone]);
        assert!(Score::read(&[]).unwrap().is_empty());
    }
}

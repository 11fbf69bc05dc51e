//! How well rows of logits predict what comes, and how far they are from other logits: sums over rows, in f64.
//!
//! ```text
//! nll = Σ lse(z) − z_target        kl = Σ KL(softmax(u) ‖ softmax(z))        agree = number of rows with argmax u = argmax z
//! ```
//! z are the logits (rows, vocab), u those of the model that z is compared with.

use super::loss::{argmax, divergence, log_sum_exp};
use super::with_numbers;
use candle_core::{D, DType, Result, Tensor};
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

/// Scores `logits` (rows, vocab) by their `targets` and, when given, against the logits of another model.
pub fn score(logits: &Tensor, base: Option<&Tensor>, targets: &[u32]) -> Result<Score> {
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
    Ok(sum)
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

/// The same by tensor operations: nothing but the sums leaves the device.
fn by_tensors(logits: &Tensor, base: Option<&Tensor>, targets: &[u32]) -> Result<Score> {
    let targets = Tensor::new(targets, logits.device())?.unsqueeze(1)?;
    let log_softmax = |z: &Tensor| {
        let z = z.to_dtype(DType::F64)?;
        let z = z.broadcast_sub(&z.max_keepdim(D::Minus1)?)?;
        z.broadcast_sub(&z.exp()?.sum_keepdim(D::Minus1)?.log()?)
    };
    let nll = |log_p: &Tensor| log_p.gather(&targets, 1)?.sum_all()?.neg();
    let log_q = log_softmax(logits)?;
    let Some(base) = base else {
        return Ok(Score { nll: nll(&log_q)?.to_scalar()?, ..Score::default() });
    };
    let log_p = log_softmax(base)?;
    let kl = (log_p.exp()? * (&log_p - &log_q)?)?.sum_all()?;
    let agree = base.argmax(D::Minus1)?.eq(&logits.argmax(D::Minus1)?)?.to_dtype(DType::F64)?.sum_all()?;
    let sums = Tensor::stack(&[nll(&log_q)?, nll(&log_p)?, kl, agree], 0)?.to_vec1::<f64>()?;
    Ok(Score { nll: sums[0], base_nll: sums[1], kl: sums[2], agree: sums[3] as usize })
}

#[cfg(test)]
mod tests {
    use super::super::parity::{other_devices, wave};
    use super::*;

    #[test]
    fn forms_agree_on_every_device() {
        let z = (wave(&[37, 101], 0.2) * 9.0).unwrap();
        let u = ((&z * 0.8).unwrap() + wave(&[101, 37], 0.3).t().unwrap() * 1.5).unwrap();
        let targets: Vec<u32> = (0..37).map(|i| i * 7 % 101).collect();
        let here = score(&z, Some(&u), &targets).unwrap();
        assert!(here.agree > 0 && here.agree < 37 && here.kl > 1.0, "{here:?}");
        let mut found = vec![by_tensors(&z, Some(&u), &targets).unwrap()];
        for device in other_devices() {
            let (z, u) = (z.to_device(&device).unwrap(), u.to_device(&device).unwrap());
            found.push(score(&z, Some(&u), &targets).unwrap());
        }
        for found in found {
            let off = [found.nll - here.nll, found.base_nll - here.base_nll, found.kl - here.kl];
            assert!(off.iter().all(|off| off.abs() < 1e-9) && found.agree == here.agree, "{found:?} {here:?}");
        }
        let alone = Score { nll: here.nll, ..Score::default() };
        assert_eq!(score(&z, None, &targets).unwrap(), alone);
        assert!((by_tensors(&z, None, &targets).unwrap().nll - here.nll).abs() < 1e-9);
    }
}

//! Feed-forward layers with fewer channels, and the last matrix refitted to what they leave.
//!
//! Lin, Gao, Smith, Patel, Tuli, Shen, Jin and Hsu, *MoDeGPT: Modular Decomposition for Large Language Model Compression*,
//! ICLR 2025, arXiv 2408.09632 (type I, Nyström); the same least squares in FLAT-LLM, arXiv 2505.23966.
//!
//! ```text
//! y = W h + b        S: channels that stay        W' = W C[:,S] C[S,S]⁻¹
//! error(S) = Σ ‖M^½ (W h − W' h_S)‖² = tr(M W (C − C[:,S] C[S,S]⁻¹ C[S,:]) Wᵀ)
//! ```
//!
//! | symbol | meaning | shape |
//! |---|---|---|
//! | h, N | what enters the last matrix ("down"), width of the layer | (N) |
//! | W, W' | the last matrix, before and after | (m, N), (m, k) |
//! | C | Σ h hᵀ over the calibration tokens, unscaled | (N, N) |
//! | M | weight of the output errors, symmetric positive semi-definite; the identity if there is none | (m, m) |
//!
//! W' is the least-squares optimum for its S, whatever M is. The rows S of the matrices before ("up" and "gate", with their
//! biases) stay as they are, so the layer is dense and narrower.
//!
//! With a mean to take off, C − tokens · h̄ h̄ᵀ ([`centred`]) in the place of C, the same functions give the optimum with a
//! bias b' = b + (W − W' at S) h̄ ([`bias_correction`]), as FLAP (AAAI 2024, arXiv 2312.11983) compensates.
//!
//! Departures:
//! - The paper takes the channels of the largest ridge leverage diag(C (C + λ I)⁻¹), which does not see W. Here the next
//!   channel is the one that lowers the error most, so that one run gives a nested order and the error of every size. On
//!   SmolLM2-135M (blocks 3, 15, 29; 32 k tokens; widths 0.1 to 0.95) ‖error‖ is 1 to 6 % below leverage and 0.2 to 2 % below
//!   leverage · ‖W column‖; taking channels away one by one, from the inverse of C, gives the same to 0.3 %.
//! - C may be singular: channels that others determine come last, at no cost, by the norm of their columns.

use super::elimination::{WAITING, eliminate};
use super::least_squares::solve;
use crate::linalg::Mat;
use anyhow::Result;

/// Channels, the ones to keep first, and what keeping so many costs.
#[derive(Debug, Clone, PartialEq)]
pub struct Ordering {
    /// Every channel once, length N.
    pub order: Vec<usize>,
    /// Summed squared error, weighted by M, with the first k channels and the matrix refitted, k = 0 ..= N. Falls to 0.
    pub error: Vec<f64>,
}

/// The order in which channels stay and the error of every width, for `w` (m, N), `c` (N, N) and `weight` M (m, m).
///
/// About 6 N³ floating-point operations, most of them on several threads, and 2 N² + 2 m N numbers beside the arguments.
///
/// NaN or infinite values are a [`crate::error::UserError`].
pub fn order_and_curve(w: &Mat, c: &Mat, weight: Option<&Mat>) -> Result<Ordering> {
    run(w, c, weight, None)
}

/// Numbers that [`order_and_curve`] and [`curve`] have in memory at their height for `w` (m, N), beside the arguments.
pub fn numbers(m: usize, n: usize) -> usize {
    // C Wᵀ, the same times M, and Q; then Q, C, and vectors that wait to be subtracted from them.
    (n * n + 2 * m * n).max(2 * n * n + 4 * WAITING * n)
}

/// The error with the first k channels of `order`, k = 0 ..= N, as in [`Ordering::error`].
pub fn curve(w: &Mat, c: &Mat, weight: Option<&Mat>, order: &[usize]) -> Result<Vec<f64>> {
    assert_eq!(order.len(), w.cols(), "an order holds every channel");
    Ok(run(w, c, weight, Some(order))?.error)
}

fn run(w: &Mat, c: &Mat, weight: Option<&Mat>, order: Option<&[usize]>) -> Result<Ordering> {
    assert_eq!((w.cols(), w.cols()), (c.rows(), c.cols()), "shapes of weight and Gram matrix");
    w.ensure_finite("the weight")?;
    c.ensure_finite("the calibration statistics")?;
    let p = c.nt_matmul(w);
    let q = match weight {
        Some(weight) => {
            weight.ensure_finite("the statistics of gradients")?;
            p.matmul(weight).nt_matmul_symmetric(&p)
        }
        None => p.nt_matmul_symmetric(&p),
    };
    let norms: Vec<f64> = (0..w.cols()).map(|j| w.col(j).iter().map(|x| x * x).sum()).collect();
    Ok(eliminate(c.clone(), q, order, &norms))
}

/// W' (m, k): the columns `kept` of `w` (m, N), in that order, with what the others contribute added by least squares.
pub fn refit(w: &Mat, c: &Mat, kept: &[usize]) -> Result<Mat> {
    let mut stays = vec![false; w.cols()];
    kept.iter().for_each(|&j| stays[j] = true);
    let gone: Vec<usize> = (0..w.cols()).filter(|&j| !stays[j]).collect();
    let columns = |of: &[usize]| Mat::from_fn(w.rows(), of.len(), |i, j| w.get(i, of[j]));
    let block = |rows: &[usize]| Mat::from_fn(rows.len(), kept.len(), |i, j| c.get(rows[i], kept[j]));
    let mut out = columns(kept);
    if !gone.is_empty() {
        out.add_assign(&solve(&columns(&gone).matmul(&block(&gone)), &block(kept))?);
    }
    Ok(out)
}

/// What the bias of the last matrix gains (m): (W − W' at `kept`) h̄, for `mean` h̄ (N).
pub fn bias_correction(w: &Mat, refitted: &Mat, kept: &[usize], mean: &[f64]) -> Vec<f64> {
    let mean = Mat::from_columns(mean.len(), 1, mean);
    let part = Mat::from_fn(kept.len(), 1, |i, _| mean.get(kept[i], 0));
    w.matmul(&mean).sub(&refitted.matmul(&part)).col(0).to_vec()
}

/// Σ (h − h̄) (h − h̄)ᵀ (N, N) from Σ h hᵀ, Σ h and the number of tokens.
pub fn centred(gram: &Mat, sum: &[f64], tokens: u64) -> Mat {
    let sum = Mat::from_columns(sum.len(), 1, sum);
    let mut mean = sum.clone();
    mean.scale_rows(&vec![1.0 / tokens.max(1) as f64; sum.rows()]);
    let mut out = gram.clone();
    out.subtract_nt(&sum, &mean);
    out
}

#[cfg(test)]
mod tests {
    use super::super::tests::{error, gram, noise};
    use super::*;
    use crate::linalg::on_one_thread;

    /// W (5, 12), inputs that are correlated and of different size (12, 60), M (5, 5).
    fn case() -> (Mat, Mat, Mat) {
        let mut x = noise(12, 12, 1).matmul(&noise(12, 60, 2));
        x.scale_rows(&(0..12).map(|j| 1.5f64.powi(j - 6)).collect::<Vec<_>>());
        (noise(5, 12, 3), x, gram(&noise(5, 5, 4)))
    }

    /// W − W' at S.
    fn difference(w: &Mat, refitted: &Mat, kept: &[usize]) -> Mat {
        let mut e = w.clone();
        for (i, &j) in kept.iter().enumerate() {
            e.col_mut(j).iter_mut().zip(refitted.col(i)).for_each(|(x, y)| *x -= y);
        }
        e
    }

    #[test]
    fn the_curve_is_the_error_measured_at_every_width() {
        let (w, x, m) = case();
        for weight in [None, Some(&m)] {
            let Ordering { order, error: curve } = order_and_curve(&w, &gram(&x), weight).unwrap();
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..12).collect::<Vec<_>>());
            assert!(curve.is_sorted_by(|a, b| a > b) && curve[12] == 0.0);
            assert_eq!(super::curve(&w, &gram(&x), weight, &order).unwrap(), curve);
            let backwards: Vec<usize> = order.iter().rev().copied().collect();
            for (order, curve) in
                [(&backwards, super::curve(&w, &gram(&x), weight, &backwards).unwrap()), (&order, curve)]
            {
                for k in 0..=12 {
                    let refitted = refit(&w, &gram(&x), &order[..k]).unwrap();
                    let direct = error(&difference(&w, &refitted, &order[..k]), &x, weight);
                    assert!((direct - curve[k]).abs() < 1e-9 * curve[0], "{k}: {direct} {}", curve[k]);
                }
            }
        }
    }

    /// The first channel is the best of all, the second the best beside it, and so on.
    #[test]
    fn every_step_is_the_best_one() {
        let (w, x, m) = case();
        let Ordering { order, .. } = order_and_curve(&w, &gram(&x), Some(&m)).unwrap();
        for k in 0..4 {
            let cost = |j: usize| {
                let kept: Vec<usize> = order[..k].iter().copied().chain([j]).collect();
                error(&difference(&w, &refit(&w, &gram(&x), &kept).unwrap(), &kept), &x, Some(&m))
            };
            let best = order[k..].iter().copied().min_by(|&i, &j| cost(i).total_cmp(&cost(j)));
            assert_eq!(best, Some(order[k]));
        }
    }

    #[test]
    fn refitted_weights_satisfy_the_normal_equations_and_beat_those_that_are_not() {
        let (w, x, m) = case();
        let kept = [7, 2, 11, 4];
        let refitted = refit(&w, &gram(&x), &kept).unwrap();
        let e = difference(&w, &refitted, &kept);
        let inputs = Mat::from_fn(4, 60, |i, t| x.get(kept[i], t));
        assert!(e.matmul(&x).nt_matmul(&inputs).frobenius() < 1e-6 * w.matmul(&x).nt_matmul(&inputs).frobenius());
        let as_it_was = difference(&w, &Mat::from_fn(5, 4, |i, j| w.get(i, kept[j])), &kept);
        for weight in [None, Some(&m)] {
            assert!(error(&e, &x, weight) < error(&as_it_was, &x, weight));
        }
        let mut all: Vec<usize> = (0..12).collect();
        all.swap(3, 8);
        assert_eq!(difference(&w, &refit(&w, &gram(&x), &all).unwrap(), &all), Mat::zeros(5, 12));
    }

    /// Three dead channels, one that is another's double, fewer tokens than channels; and nothing at all.
    #[test]
    fn channels_that_others_determine_come_last_and_cost_nothing() {
        let (w, mut x, _) = case();
        x = x.col_range(0..7);
        for t in 0..7 {
            [1, 5, 6].iter().for_each(|&j| x.set(j, t, 0.0));
            x.set(9, t, -2.0 * x.get(8, t));
        }
        let c = gram(&x);
        let Ordering { order, error: curve } = order_and_curve(&w, &c, None).unwrap();
        assert!(curve[6] > 1e-6 * curve[0] && curve[7] < 1e-9 * curve[0], "{curve:?}");
        let refitted = refit(&w, &c, &order[..7]).unwrap();
        assert!(error(&difference(&w, &refitted, &order[..7]), &x, None) < 1e-9 * curve[0]);
        let zero = order_and_curve(&w, &Mat::zeros(12, 12), None).unwrap();
        assert_eq!(zero.error, vec![0.0; 13]);
        let norms: Vec<f64> = zero.order.iter().map(|&j| w.col(j).iter().map(|x| x * x).sum()).collect();
        assert!(norms.is_sorted_by(|a, b| a >= b));
        assert_eq!(refit(&w, &Mat::zeros(12, 12), &[4, 0]).unwrap(), Mat::from_fn(5, 2, |i, j| w.get(i, 4 - 4 * j)));
        let mut damaged = c;
        damaged.set(2, 2, f64::NAN);
        assert!(order_and_curve(&w, &damaged, None).is_err());
    }

    #[test]
    fn a_bias_takes_the_mean() {
        let (w, mut x, _) = case();
        for t in 0..60 {
            x.col_mut(t).iter_mut().enumerate().for_each(|(j, x)| *x += j as f64 - 3.0);
        }
        let sum: Vec<f64> = (0..12).map(|j| (0..60).map(|t| x.get(j, t)).sum()).collect();
        let mean: Vec<f64> = sum.iter().map(|x| x / 60.0).collect();
        let c = centred(&gram(&x), &sum, 60);
        let Ordering { order, error: curve } = order_and_curve(&w, &c, None).unwrap();
        let kept = &order[..5];
        let refitted = refit(&w, &c, kept).unwrap();
        let bias = bias_correction(&w, &refitted, kept, &mean);
        let mut rest = difference(&w, &refitted, kept).matmul(&x);
        (0..60).for_each(|t| rest.col_mut(t).iter_mut().zip(&bias).for_each(|(x, b)| *x -= b));
        assert!((rest.frobenius().powi(2) - curve[5]).abs() < 1e-9 * curve[0]);
        let plain = refit(&w, &gram(&x), kept).unwrap();
        assert!(curve[5] < error(&difference(&w, &plain, kept), &x, None));
    }

    /// Longer than what waits to be subtracted, and with several threads.
    #[test]
    fn blocks_of_pivots_do_not_show() {
        let (n, m) = (210, 20);
        let (w, x) = (noise(m, n, 1), noise(n, n, 2).matmul(&noise(n, 2 * n, 3)));
        let c = gram(&x);
        let found = order_and_curve(&w, &c, None).unwrap();
        assert_eq!(on_one_thread(|| order_and_curve(&w, &c, None)).unwrap(), found);
        for k in [1, 63, 64, 65, 130, 200] {
            let refitted = refit(&w, &c, &found.order[..k]).unwrap();
            let direct = error(&difference(&w, &refitted, &found.order[..k]), &x, None);
            assert!((direct - found.error[k]).abs() < 1e-9 * found.error[0], "{k}: {direct} {}", found.error[k]);
        }
    }
}

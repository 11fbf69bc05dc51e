//! A linear's weight fitted to outputs that are wanted, from the inputs that it gets.
//!
//! Inputs X' come from layers that are compressed already, targets Y from the original model. Damped least squares towards
//! the weight that is there (MPIFA, ICML 2025; SAES-SVD, ICLR 2026):
//!
//! ```text
//! W' = argmin ‖Y − W' X'‖² + μ ‖W' − W₀‖² = (Y X'ᵀ + μ W₀) (H + μ I)⁻¹ = W₀ + (Y X'ᵀ − W₀ H) (H + μ I)⁻¹
//! ```
//!
//! | symbol | meaning | shape |
//! |---|---|---|
//! | X', Y | inputs and wanted outputs, one token per column; only their products are needed | (n, tokens), (m, tokens) |
//! | Y X'ᵀ, H = X' X'ᵀ | sums over tokens | (m, n), (n, n) |
//! | W₀, W' | weight before and after | (m, n) |
//! | μ | damping · mean of diag H | |
//!
//! Departures:
//! - The last form of the line above is computed. Where there is nothing to correct, W₀ comes back as it was; so do the
//!   columns of inputs that no token reached, and what is undetermined stays near W₀.
//! - μ is relative: an absolute one means something else for every number of tokens.
//! - The system is solved in units in which H has a unit diagonal, with a ridge of 1e-8 there, so that H may be singular and
//!   channels of any size.

use crate::linalg::{Mat, solve_positive};
use crate::user_bail;
use anyhow::Result;

/// Ridges relative to the diagonal, the smallest that works. All but the first are for sums in f32, which may leave H a
/// little indefinite.
const RIDGES: [f64; 4] = [1e-8, 1e-7, 1e-6, 1e-5];

/// W' (m, n) from the weight `w0` (m, n), `yx` = Y X'ᵀ (m, n) and `h` = X' X'ᵀ (n, n).
///
/// NaN or infinite sums are a [`crate::error::UserError`], as is an H with eigenvalues well below zero.
pub fn refit(w0: &Mat, yx: &Mat, h: &Mat, damping: f64) -> Result<Mat> {
    assert_eq!((w0.rows(), w0.cols()), (yx.rows(), yx.cols()), "shapes of weight and Y X'ᵀ");
    let mut out = solve(&yx.sub(&w0.matmul(h)), h, damping)?;
    out.add_assign(w0);
    Ok(out)
}

/// X (m, n) with X (H + μ I) = `right` (m, n), zero where H has a zero diagonal.
pub(super) fn solve(right: &Mat, h: &Mat, damping: f64) -> Result<Mat> {
    let n = h.rows();
    assert_eq!((h.cols(), right.cols()), (n, n), "shapes of a linear system");
    h.ensure_finite("the calibration statistics")?;
    right.ensure_finite("the products of outputs and inputs")?;
    let diagonal: Vec<f64> = (0..n).map(|j| h.get(j, j)).collect();
    let mu = damping * diagonal.iter().sum::<f64>() / n.max(1) as f64;
    let units: Vec<f64> = diagonal.iter().map(|x| if *x > 0.0 { (x + mu).sqrt().recip() } else { 0.0 }).collect();
    let scaled = |x: f64, i: usize, j: usize| x * units[i] * units[j];
    let mut unit = Mat::from_fn(n, n, |i, j| if i == j { 1.0 } else { scaled(h.get(i, j), i, j) });
    let mut columns = right.transpose();
    columns.scale_rows(&units);
    for ridge in RIDGES {
        (0..n).for_each(|j| unit.set(j, j, 1.0 + ridge));
        if let Some(mut x) = solve_positive(&unit, &columns) {
            x.scale_rows(&units);
            return Ok(x.transpose());
        }
    }
    user_bail!(
        "the calibration statistics of shape ({n}, {n}) have eigenvalues well below zero: they are no sums over tokens";
        "calibrate again"
    );
}

#[cfg(test)]
mod tests {
    use super::super::tests::{gram, noise};
    use super::*;

    fn error(w: &Mat, y: &Mat, x: &Mat) -> f64 {
        y.sub(&w.matmul(x)).frobenius().powi(2)
    }

    #[test]
    fn the_fit_is_the_minimum_and_satisfies_its_equations() {
        let (m, n, tokens) = (6, 9, 40);
        let (w0, x, y) = (noise(m, n, 1), noise(n, tokens, 2), noise(m, tokens, 3));
        let (h, yx) = (gram(&x), y.nt_matmul(&x));
        for damping in [0.0, 0.01, 1.0] {
            let w = refit(&w0, &yx, &h, damping).unwrap();
            let mu = damping * (0..n).map(|j| h.get(j, j)).sum::<f64>() / n as f64;
            // (Y − W' X') X'ᵀ = μ (W' − W₀)
            let mut right = w.sub(&w0);
            right.scale_cols(&vec![mu; n]);
            let left = yx.sub(&w.matmul(&h));
            assert!(left.sub(&right).frobenius() < 1e-6 * yx.frobenius(), "{damping}");
            let objective = |w: &Mat| error(w, &y, &x) + mu * w.sub(&w0).frobenius().powi(2);
            let best = objective(&w);
            assert!(best < objective(&w0));
            for seed in 4..8 {
                let mut other = noise(m, n, seed);
                other.scale_cols(&[1e-3; 9]);
                other.add_assign(&w);
                assert!(best < objective(&other), "{damping}");
            }
        }
    }

    #[test]
    fn outputs_that_the_weight_gives_already_change_nothing() {
        let (w0, x) = (noise(5, 8, 1), noise(8, 3, 2));
        let h = gram(&x);
        let w = refit(&w0, &w0.matmul(&h), &h, 1e-3).unwrap();
        assert_eq!(w, w0);
    }

    /// Fewer tokens than channels, a channel that no token reached, one twice and one that is huge.
    #[test]
    fn singular_sums_are_fitted_and_what_no_token_reached_stays() {
        let mut x = noise(12, 5, 1);
        for t in 0..5 {
            x.set(3, t, 0.0);
            x.set(5, t, x.get(4, t));
            x.set(7, t, 1e8 * x.get(7, t));
        }
        let (w0, y) = (noise(4, 12, 2), noise(4, 5, 3));
        let w = refit(&w0, &y.nt_matmul(&x), &gram(&x), 0.0).unwrap();
        assert!(error(&w, &y, &x) < 1e-10 * error(&w0, &y, &x), "{}", error(&w, &y, &x));
        assert_eq!(w.col(3), w0.col(3));
        let zero = Mat::zeros(12, 12);
        assert_eq!(refit(&w0, &Mat::zeros(4, 12), &zero, 1e-3).unwrap(), w0);
        let wrong = Mat::from_fn(12, 12, |i, j| if i == j { 1.0 } else { 3.0 });
        assert!(refit(&w0, &w0, &wrong, 0.0).unwrap_err().to_string().contains("below zero"));
    }
}

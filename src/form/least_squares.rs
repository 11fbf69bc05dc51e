//! The normal equations of a repair: X H = R, where H may be singular and its channels of any size.
//!
//! They are solved in units in which H has a unit diagonal, with a ridge of 1e-8 there.

use crate::linalg::{Mat, solve_positive};
use crate::user_bail;
use anyhow::Result;

/// Ridges relative to the diagonal, the smallest that works. All but the first are for sums in f32, which may leave H a
/// little indefinite.
const RIDGES: [f64; 4] = [1e-8, 1e-7, 1e-6, 1e-5];

/// X (m, n) with X H = `right` (m, n) for `h` = H (n, n), zero where H has a zero diagonal.
///
/// NaN or infinite sums are a [`crate::error::UserError`], as is an H with eigenvalues well below zero.
pub(super) fn solve(right: &Mat, h: &Mat) -> Result<Mat> {
    let n = h.rows();
    assert_eq!((h.cols(), right.cols()), (n, n), "shapes of a linear system");
    h.ensure_finite("the calibration statistics")?;
    right.ensure_finite("the products of outputs and inputs")?;
    let diagonal: Vec<f64> = (0..n).map(|j| h.get(j, j)).collect();
    let units: Vec<f64> = diagonal.iter().map(|x| if *x > 0.0 { x.sqrt().recip() } else { 0.0 }).collect();
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

    /// Y X'ᵀ H⁻¹ for H = X' X'ᵀ: the fit of Y (m, tokens) to X' (n, tokens).
    fn fit(y: &Mat, x: &Mat) -> Mat {
        solve(&y.nt_matmul(x), &gram(x)).unwrap()
    }

    #[test]
    fn the_fit_leaves_a_rest_that_no_input_explains() {
        let (x, y) = (noise(9, 40, 2), noise(6, 40, 3));
        let rest = y.sub(&fit(&y, &x).matmul(&x));
        assert!(rest.nt_matmul(&x).frobenius() < 1e-6 * y.nt_matmul(&x).frobenius());
        assert!(rest.frobenius() > 0.1 * y.frobenius());
    }

    /// Fewer tokens than channels, a channel that no token reached, one twice and one that is huge.
    #[test]
    fn singular_sums_are_fitted_and_what_no_token_reached_is_zero() {
        let mut x = noise(12, 5, 1);
        for t in 0..5 {
            x.set(3, t, 0.0);
            x.set(5, t, x.get(4, t));
            x.set(7, t, 1e8 * x.get(7, t));
        }
        let y = noise(4, 5, 3);
        let w = fit(&y, &x);
        assert!(y.sub(&w.matmul(&x)).frobenius() < 1e-5 * y.frobenius());
        assert_eq!(w.col(3), [0.0; 4]);
        assert_eq!(solve(&Mat::zeros(4, 12), &Mat::zeros(12, 12)).unwrap(), Mat::zeros(4, 12));
        let wrong = Mat::from_fn(12, 12, |i, j| if i == j { 1.0 } else { 3.0 });
        assert!(solve(&y.nt_matmul(&x), &wrong).unwrap_err().to_string().contains("below zero"));
    }
}

//! Errors of a decomposition on inputs it was not made from.

use super::Decomposition;
use crate::linalg::Mat;

/// Squared output error on held-out inputs, in full.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldoutCurve {
    /// ‖W X‖².
    pub total: f64,
    /// ‖(W − B_r A_r) X‖² for r = 0, 1, …, as long as asked for.
    pub error: Vec<f64>,
}

impl HeldoutCurve {
    /// Relative squared error at `rank`, if the curve reaches that far and there was anything to miss.
    pub fn relative(&self, rank: usize) -> Option<f64> {
        let error = self.error.get(rank)?;
        (self.total > 0.0).then(|| (error / self.total).max(0.0))
    }
}

/// The error of every rank up to `max_rank` on the rows of `x`, row-major (tokens, n).
///
/// With Y = W X, P = Bᵀ Y and Z = A X: ‖Y − B_r Z_r‖² = ‖Y‖² − 2 Σ_i ⟨p_i, z_i⟩ + Σ_ij (BᵀB)_ij ⟨z_i, z_j⟩ over
/// i, j < r, so all ranks cost hardly more than one.
pub fn heldout_curve(w: &Mat, parts: &Decomposition, x: &[f32], max_rank: usize) -> HeldoutCurve {
    let n = w.cols();
    let tokens = x.len() / n.max(1);
    let x = Mat::from_f32_rows(tokens, n, x);
    let rank = max_rank.min(parts.energy.len());
    let (b, a) = (parts.b.col_range(0..rank), parts.a.row_range(0..rank));
    let y = w.nt_matmul(&x);
    let z = a.nt_matmul(&x);
    let p = b.tn_matmul(&y);
    let (bb, zz) = (b.tn_matmul(&b), z.nt_matmul(&z));
    let total = y.frobenius().powi(2);
    let mut error = Vec::with_capacity(rank + 1);
    error.push(total);
    let mut current = total;
    for r in 0..rank {
        let cross: f64 = (0..tokens).map(|t| p.get(r, t) * z.get(r, t)).sum();
        let inner: f64 = (0..r).map(|i| bb.get(i, r) * zz.get(i, r)).sum();
        current += -2.0 * cross + 2.0 * inner + bb.get(r, r) * zz.get(r, r);
        error.push(current.max(0.0));
    }
    HeldoutCurve { total, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curve_equals_the_errors_measured_one_by_one() {
        let (m, n, k, tokens) = (5, 7, 4, 11);
        let noise = |seed: usize| move |i: usize, j: usize| ((seed + 31 * i + 17 * j) as f64).sin();
        let w = Mat::from_fn(m, n, noise(1));
        let parts = Decomposition {
            b: Mat::from_fn(m, k, noise(2)),
            a: Mat::from_fn(k, n, noise(3)),
            energy: vec![0.0; k],
            note: None,
        };
        let x: Vec<f32> = (0..tokens * n).map(|i| (i as f32 * 0.7).cos()).collect();
        let curve = heldout_curve(&w, &parts, &x, k);
        let xm = Mat::from_f32_rows(tokens, n, &x);
        for r in 0..=k {
            let cut = parts.b.col_range(0..r).matmul(&parts.a.row_range(0..r));
            let direct = w.sub(&cut).nt_matmul(&xm).frobenius().powi(2);
            assert!((curve.error[r] - direct).abs() < 1e-9 * curve.total, "rank {r}: {} {direct}", curve.error[r]);
        }
    }
}

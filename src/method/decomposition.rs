//! What every method makes of a weight, and its error on inputs it was not made from.

use crate::linalg::Mat;

/// W ≈ B A, cut to any rank: the first r columns of `b` (m, k) and rows of `a` (k, n).
#[derive(Debug, Clone)]
pub struct Decomposition {
    /// Output factor, (m, k).
    pub b: Mat,
    /// Input factor, (k, n).
    pub a: Mat,
    /// The method's own squared objective per component, non-increasing. Dropping components r.. costs exactly their sum.
    /// It goes on where the factors were cut, so that its sum stays the whole.
    pub energy: Vec<f64>,
    /// Something the user should know: a fallback taken, damping applied. Shown in the report.
    pub note: Option<String>,
}

impl Decomposition {
    /// k, the number of components that are there.
    pub fn rank(&self) -> usize {
        self.a.rows()
    }

    /// The objective after keeping `rank` components: the sum of the dropped energies.
    pub fn loss(&self, rank: usize) -> f64 {
        self.energy.iter().skip(rank).rev().sum()
    }
}

/// Numbers (f64) that decomposing one weight has in memory at its height.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Workspace {
    /// Matrices, the weight's own copy among them.
    pub held: usize,
    /// What a factorisation works in, in one piece.
    pub scratch: usize,
}

impl Workspace {
    /// Of [`thin_svd`](crate::linalg::thin_svd) on a weight (m, n): the weight, its scaled copy, U and V; the bidiagonal form
    /// and, by divide and conquer, six squares of the smaller side. A long matrix is brought to a square by QR first.
    pub fn svd(m: usize, n: usize) -> Self {
        let (short, whole) = (m.min(n), m * n);
        let long = m.max(n) as f64 / short.max(1) as f64 > 11.0 / 6.0;
        let squares = if long { 8 } else { 6 };
        Self { held: 2 * whole + (m + n) * short, scratch: whole + squares * short * short }
    }

    /// Of an eigenvalue decomposition of side `n`: the matrix, its scaled copy and the vectors; by divide and conquer three
    /// more.
    pub fn evd(n: usize) -> Self {
        Self { held: 3 * n * n, scratch: 3 * n * n }
    }

    /// The same beside so many more numbers.
    pub fn beside(self, numbers: usize) -> Self {
        Self { held: self.held + numbers, ..self }
    }
}

/// Numbers that [`heldout_curve`] has in memory at its height for a weight (m, n) and all its k components, cut to `rank`, on
/// so many tokens.
pub fn heldout_numbers((m, n): (usize, usize), rank: usize, tokens: usize) -> usize {
    let rank = rank.min(m.min(n));
    // W, B, A; X; both factors cut; Y, Z, P; Bᵀ twice; BᵀB and ZZᵀ.
    let parts = m * n + (m + n) * m.min(n);
    parts + n * tokens + (m + n) * rank + (m + 2 * rank) * tokens + 2 * m * rank + 2 * rank * rank
}

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
    let rank = max_rank.min(parts.rank());
    let (b, a) = (parts.b.col_range(0..rank), parts.a.row_range(0..rank));
    let y = w.nt_matmul(&x);
    let z = a.nt_matmul(&x);
    let p = b.tn_matmul(&y);
    let columns = b.transpose();
    let (bb, zz) = (columns.nt_matmul_symmetric(&columns), z.nt_matmul_symmetric(&z));
    let mut cross = vec![0.0; rank];
    for t in 0..tokens {
        cross.iter_mut().zip(p.col(t).iter().zip(z.col(t))).for_each(|(sum, (p, z))| *sum += p * z);
    }
    let total = y.frobenius().powi(2);
    let mut error = Vec::with_capacity(rank + 1);
    error.push(total);
    let mut current = total;
    for (r, cross) in cross.into_iter().enumerate() {
        let inner: f64 = bb.col(r)[..r].iter().zip(zz.col(r)).map(|(b, z)| b * z).sum();
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

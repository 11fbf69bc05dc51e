//! The subspace of a vector z (d) that matters most to what reads it, at every rank.
//!
//! z has the second moments S, and what reads it weighs an error e of it as eᵀ M e. The best projector of rank r:
//!
//! ```text
//! min tr(M (I − P) S (I − P)ᵀ), P = B A        M = Fᵀ F        F S Fᵀ = U Λ Uᵀ        rows of A: span of Fᵀ U_r
//! ```
//!
//! This is the SVD of M^½ S^½ by a route without an inverse: with M^½ S^½ = U Σ Vᵀ, V_rᵀ S^-½ and U_rᵀ M^½ have the same row
//! space. A is orthonormalised from its first row on, so that its first r rows are the basis of rank r for every r.

use crate::linalg::{Mat, Qr, evd_symmetric};
use anyhow::Result;

/// Second moments are raised by this share of their mean, so that directions in which z never went follow M.
const FLOOR: f64 = 1e-12;

/// A (d, d), orthogonal, for `m` and `s` (d, d), both symmetric positive semi-definite.
pub(super) fn nested_basis(m: &Mat, s: &Mat) -> Result<Mat> {
    let d = m.rows();
    let mean = (0..d).map(|i| s.get(i, i)).sum::<f64>() / d.max(1) as f64;
    let floor = if mean > 0.0 { mean * FLOOR } else { 1.0 };
    let raised = Mat::from_fn(d, d, |i, j| s.get(i, j) + if i == j { floor } else { 0.0 });
    let root = evd_symmetric(m, "the weight of the errors")?;
    let mut f = root.vectors;
    f.scale_cols(&root.values.iter().map(|x| x.max(0.0).sqrt()).collect::<Vec<_>>());
    // `f` is Fᵀ.
    let inner = evd_symmetric(&f.tn_matmul(&raised).matmul(&f), "the second moments")?;
    Ok(Qr::new(&f.matmul(&inner.vectors)).q_times(&Mat::identity(d)).transpose())
}

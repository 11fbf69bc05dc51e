//! Principal components of a linear's outputs, from the Gram matrix of its inputs: the algebra behind `rom` and `whiten`.
//!
//! y = W x with W (m, n), G = Σ x xᵀ (n, n). The best W' of rank r in the sense of Σ ‖y − W' x‖² is U_r U_rᵀ W with U_r
//! the top eigenvectors of C = W G Wᵀ = Σ y yᵀ, and the error is the sum of the dropped eigenvalues. Neither outputs nor
//! an inverse of G are needed, so a singular G is harmless.
//!
//! When m > n, C has rank n at most and is never formed: with W = Q R, Q (m, n) orthonormal and R (n, n), the
//! eigenvectors of C are U = Q Z with Z those of R G Rᵀ (n, n), orthonormal by construction.

use super::{Decomposition, Workspace};
use crate::calibrate::SiteStats;
use crate::linalg::{Mat, Qr, evd_symmetric, fix_signs};
use anyhow::Result;

/// B = U (m, k) orthonormal, A = Uᵀ W (k, n), k = min(m, n), in the order of the outputs' energy.
///
/// Directions that no calibration token reaches have energy zero. Among themselves they follow the plain SVD of what is
/// left of W, so that spare rank is spent well and the full rank is W again.
pub(super) fn decompose(w: &Mat, stats: &SiteStats) -> Result<Decomposition> {
    w.ensure_finite("the weight")?;
    stats.gram.ensure_finite("the calibration statistics")?;
    let qr = (w.rows() > w.cols()).then(|| Qr::new(w));
    let r = qr.as_ref().map(Qr::r);
    // Same row space as W, with k rows.
    let core = r.as_ref().unwrap_or(w);
    let k = core.rows();
    let covariance = core.matmul(&stats.gram).nt_matmul_symmetric(core);
    let evd = evd_symmetric(&covariance, "the output covariance")?;
    // What rounding alone leaves in sums as long as these.
    let floor = evd.values.first().copied().unwrap_or(0.0) * w.rows().max(w.cols()) as f64 * f64::EPSILON;
    let seen = evd.values.iter().take_while(|&&x| x > floor).count();
    let mut notes: Vec<String> = evd.note.into_iter().collect();
    let mut z = evd.vectors;
    if seen < k {
        notes.push(format!(
            "calibration reaches {seen} of {k} output directions; the others are ordered by the weight alone"
        ));
        z = order_unseen(z, seen, core, &mut notes)?;
    }
    let mut a = z.tn_matmul(core);
    let mut b = match qr {
        Some(qr) => qr.q_times(&z),
        None => z,
    };
    a.scale_rows(&fix_signs(&mut b));
    let energy = evd.values.iter().enumerate().map(|(i, &x)| if i < seen { x } else { 0.0 }).collect();
    Ok(Decomposition { b, a, energy, note: (!notes.is_empty()).then(|| notes.join("; ")) })
}

/// What [`decompose`] takes for W (m, n): W, with m > n its reflectors and R, and the decomposition of the covariance; or,
/// behind that, B and A beside the weight.
pub(super) fn workspace(m: usize, n: usize) -> Workspace {
    let square = m.min(n).pow(2);
    let tall = if m > n { m * n + square } else { 0 };
    let during = Workspace::evd(m.min(n)).beside(m * n + tall);
    let behind = 2 * m * n + tall + 3 * square;
    Workspace { held: during.held.max(behind.saturating_sub(during.scratch)), ..during }
}

/// Turns the columns of `z` from `seen` on, which span what calibration did not see, to the left singular vectors of
/// their part of `core`.
fn order_unseen(z: Mat, seen: usize, core: &Mat, notes: &mut Vec<String>) -> Result<Mat> {
    let unseen = z.col_range(seen..z.cols());
    let rest = unseen.tn_matmul(core);
    let evd = evd_symmetric(&rest.nt_matmul_symmetric(&rest), "the weight")?;
    notes.extend(evd.note);
    let turned = unseen.matmul(&evd.vectors);
    let mut out = z;
    for j in 0..turned.cols() {
        out.col_mut(seen + j).copy_from_slice(turned.col(j));
    }
    Ok(out)
}

//! Eigenvalue, singular value and QR decompositions, on one thread or by the [`Solver`](super::Solver) that the caller has.

use super::{Mat, solver};
use anyhow::{Result, bail};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{ComputeEigenvectors, SelfAdjointEvdParams, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::linalg::householder::{
    apply_block_householder_sequence_on_the_left_in_place_scratch,
    apply_block_householder_sequence_on_the_left_in_place_with_conj,
};
use faer::linalg::qr::no_pivoting::factor::{qr_in_place, qr_in_place_scratch, recommended_block_size};
use faer::linalg::svd::{ComputeSvdVectors, svd, svd_scratch};
use faer::{Conj, Par, Spec};

/// A = V diag(values) Vᵀ for symmetric A (n, n).
#[derive(Debug, Clone)]
pub struct Evd {
    /// Eigenvalues, largest first, length n.
    pub values: Vec<f64>,
    /// Eigenvectors as orthonormal columns, (n, n). The entry of largest magnitude in each is positive.
    pub vectors: Mat,
    /// The fallback that was needed, if one was.
    pub note: Option<String>,
}

/// A = U diag(s) Vᵀ for A (m, n), k = min(m, n).
#[derive(Debug, Clone)]
pub struct Svd {
    /// Left singular vectors as orthonormal columns, (m, k). The entry of largest magnitude in each is positive.
    pub u: Mat,
    /// Singular values, largest first, length k.
    pub s: Vec<f64>,
    /// Right singular vectors as orthonormal columns, (n, k).
    pub v: Mat,
    /// The fallback that was needed, if one was.
    pub note: Option<String>,
}

/// Eigenvalues and vectors of a symmetric matrix; only its lower triangle is read.
///
/// `what` names the matrix in errors: NaN or infinite values are a [`crate::error::UserError`]. Divide and conquer is
/// tried first, then the QR algorithm.
pub fn evd_symmetric(a: &Mat, what: &str) -> Result<Evd> {
    let n = a.rows();
    assert_eq!(n, a.cols(), "an eigenvalue decomposition needs a square matrix");
    let (scaled, scale) = scaled_to_unit(a, what)?;
    let mut params: Spec<SelfAdjointEvdParams, f64> = Spec::default();
    let mut note = None;
    let elsewhere = solver::evd(&scaled).map(|(values, vectors)| (values, vectors.0));
    let found = elsewhere.or_else(|| evd_once(&scaled, params)).or_else(|| {
        note = Some(format!("eigenvalues of {what} ({n}, {n}): divide and conquer failed, QR algorithm used"));
        params.config.recursion_threshold = usize::MAX;
        evd_once(&scaled, params)
    });
    let Some((values, vectors)) = found else {
        bail!("the eigenvalue decomposition of {what} of shape ({n}, {n}) does not converge");
    };
    // Both sort upwards.
    let values = values.iter().rev().map(|x| x * scale).collect();
    let mut vectors = Mat(vectors.as_ref().reverse_cols().to_owned());
    fix_signs(&mut vectors);
    Ok(Evd { values, vectors, note })
}

fn evd_once(a: &Mat, params: Spec<SelfAdjointEvdParams, f64>) -> Option<(Vec<f64>, faer::Mat<f64>)> {
    let n = a.rows();
    let mut values = Diag::<f64>::zeros(n);
    let mut vectors = faer::Mat::<f64>::zeros(n, n);
    let mut memory =
        MemBuffer::try_new(self_adjoint_evd_scratch::<f64>(n, ComputeEigenvectors::Yes, Par::Seq, params)).ok()?;
    let stack = MemStack::new(&mut memory);
    self_adjoint_evd(a.view(), values.as_mut(), Some(vectors.as_mut()), Par::Seq, stack, params).ok()?;
    let values: Vec<f64> = values.column_vector().iter().copied().collect();
    let vectors = Mat(vectors);
    (values.iter().all(|x| x.is_finite()) && vectors.is_finite()).then_some((values, vectors.0))
}

/// Thin singular value decomposition of A (m, n).
///
/// `what` names the matrix in errors: NaN or infinite values are a [`crate::error::UserError`]. If the iteration does
/// not converge, the eigenvectors of the smaller Gram matrix are used, and the note says so. So it is, without a note, where
/// a [`Solver`](super::Solver) is at hand: products and symmetric matrices are what such machines are good at.
pub fn thin_svd(a: &Mat, what: &str) -> Result<Svd> {
    let (scaled, scale) = scaled_to_unit(a, what)?;
    let mut found = if solver::takes(a.rows().min(a.cols())) {
        Svd { note: None, ..svd_by_gram(&scaled, what)? }
    } else {
        match svd_once(&scaled) {
            Some(found) => found,
            None => svd_by_gram(&scaled, what)?,
        }
    };
    found.s.iter_mut().for_each(|x| *x *= scale);
    let signs = fix_signs(&mut found.u);
    found.v.scale_cols(&signs);
    Ok(found)
}

fn svd_once(a: &Mat) -> Option<Svd> {
    let (m, n) = (a.rows(), a.cols());
    let k = m.min(n);
    let mut s = Diag::<f64>::zeros(k);
    let (mut u, mut v) = (faer::Mat::<f64>::zeros(m, k), faer::Mat::<f64>::zeros(n, k));
    let thin = ComputeSvdVectors::Thin;
    let params = Spec::default();
    let mut memory = MemBuffer::try_new(svd_scratch::<f64>(m, n, thin, thin, Par::Seq, params)).ok()?;
    let stack = MemStack::new(&mut memory);
    svd(a.view(), s.as_mut(), Some(u.as_mut()), Some(v.as_mut()), Par::Seq, stack, params).ok()?;
    let s: Vec<f64> = s.column_vector().iter().copied().collect();
    let (u, v) = (Mat(u), Mat(v));
    (s.iter().all(|x| x.is_finite()) && u.is_finite() && v.is_finite()).then_some(Svd { u, s, v, note: None })
}

/// The SVD through the eigenvectors of A Aᵀ or Aᵀ A, whichever is smaller. Singular values below about 1e-8 of the
/// largest lose their digits, but both bases are orthonormal and the product is A to rounding.
fn svd_by_gram(a: &Mat, what: &str) -> Result<Svd> {
    let (m, n) = (a.rows(), a.cols());
    let wide = m <= n;
    let gram = if wide { a.nt_matmul(a) } else { a.tn_matmul(a) };
    let evd = evd_symmetric(&gram, what).map_err(|e| e.context(format!("{what} ({m}, {n}): no SVD either")))?;
    // A = E (Aᵀ E)ᵀ, and the columns of Aᵀ E are orthogonal up to rounding: its QR has a diagonal R.
    let other = Qr::new(&if wide { a.tn_matmul(&evd.vectors) } else { a.matmul(&evd.vectors) });
    let r = other.r();
    let k = m.min(n);
    let mut order: Vec<usize> = (0..k).collect();
    order.sort_by(|&i, &j| r.get(j, j).abs().total_cmp(&r.get(i, i).abs()));
    let pick = |from: &Mat, sign: bool| {
        Mat::from_fn(from.rows(), k, |i, j| {
            let flip = sign && r.get(order[j], order[j]) < 0.0;
            if flip { -from.get(i, order[j]) } else { from.get(i, order[j]) }
        })
    };
    let (own, other) = (pick(&evd.vectors, false), pick(&other.q(), true));
    let (u, v) = if wide { (own, other) } else { (other, own) };
    let s = order.iter().map(|&i| r.get(i, i).abs()).collect();
    let note = format!("SVD of {what} ({m}, {n}) did not converge; eigenvectors of its Gram matrix used");
    Ok(Svd { u, s, v, note: Some(note) })
}

/// A = Q R, Q (m, k) orthonormal whatever the rank of A, R (k, n), k = min(m, n).
pub struct Qr(Form);

enum Form {
    /// Householder reflections.
    Reflections { reflectors: faer::Mat<f64>, coefficients: faer::Mat<f64> },
    /// Q itself, (m, n) with m ≥ n, and R (n, n).
    Explicit { q: Mat, r: Mat },
}

impl Qr {
    /// Decomposes A (m, n).
    pub fn new(a: &Mat) -> Self {
        if let Some((q, r)) = solver::qr(a) {
            return Self(Form::Explicit { q, r });
        }
        let (m, n) = (a.rows(), a.cols());
        let block = recommended_block_size::<f64>(m, n);
        let mut reflectors = a.0.clone();
        let mut coefficients = faer::Mat::<f64>::zeros(block, m.min(n));
        let params = Spec::default();
        let mut memory = MemBuffer::new(qr_in_place_scratch::<f64>(m, n, block, Par::Seq, params));
        let stack = MemStack::new(&mut memory);
        qr_in_place(reflectors.as_mut(), coefficients.as_mut(), Par::Seq, stack, params);
        Self(Form::Reflections { reflectors, coefficients })
    }

    /// R (k, n), upper triangular.
    pub fn r(&self) -> Mat {
        match &self.0 {
            Form::Explicit { r, .. } => r.clone(),
            Form::Reflections { reflectors, .. } => {
                let (m, n) = (reflectors.nrows(), reflectors.ncols());
                Mat::from_fn(m.min(n), n, |i, j| if i <= j { reflectors[(i, j)] } else { 0.0 })
            }
        }
    }

    /// Q (m, k).
    fn q(self) -> Mat {
        match self.0 {
            Form::Explicit { q, .. } => q,
            Form::Reflections { ref reflectors, .. } => {
                let k = reflectors.nrows().min(reflectors.ncols());
                self.q_times(&Mat::identity(k))
            }
        }
    }

    /// Q · other for `other` (k, c), without forming Q where it is not there.
    pub fn q_times(&self, other: &Mat) -> Mat {
        let (reflectors, coefficients) = match &self.0 {
            Form::Explicit { q, .. } => return q.matmul(other),
            Form::Reflections { reflectors, coefficients } => (reflectors, coefficients),
        };
        let (m, n) = (reflectors.nrows(), reflectors.ncols());
        let (k, c) = (m.min(n), other.cols());
        assert_eq!(k, other.rows());
        let mut out = faer::Mat::<f64>::zeros(m, c);
        out.as_mut().subrows_mut(0, k).copy_from(other.view());
        let block = coefficients.nrows();
        let mut memory =
            MemBuffer::new(apply_block_householder_sequence_on_the_left_in_place_scratch::<f64>(m, block, c));
        apply_block_householder_sequence_on_the_left_in_place_with_conj(
            reflectors.as_ref().subcols(0, k),
            coefficients.as_ref(),
            Conj::No,
            out.as_mut(),
            Par::Seq,
            MemStack::new(&mut memory),
        );
        Mat(out)
    }
}

/// Makes the entry of largest magnitude in each column positive. Returns the factor ±1 of each column, for the other
/// side of the decomposition.
///
/// Factorisations leave the sign of a component open; this makes it a function of the component.
pub fn fix_signs(columns: &mut Mat) -> Vec<f64> {
    let largest = |column: &[f64]| column.iter().fold(0.0f64, |a, &x| if x.abs() > a.abs() { x } else { a });
    let signs: Vec<f64> = (0..columns.cols()).map(|j| if largest(columns.col(j)) < 0.0 { -1.0 } else { 1.0 }).collect();
    columns.scale_cols(&signs);
    signs
}

/// The matrix divided by a power of two that brings its largest entry into [0.5, 1), and that power: exact, and squares
/// can neither overflow nor vanish.
fn scaled_to_unit(a: &Mat, what: &str) -> Result<(Mat, f64)> {
    let largest = a.ensure_finite(what)?;
    let scale = if largest > 0.0 { 2f64.powi((largest.log2().floor() as i32 + 1).clamp(-1000, 1000)) } else { 1.0 };
    let mut scaled = a.clone();
    if scale != 1.0 {
        let inverse = scale.recip();
        (0..scaled.cols()).for_each(|j| scaled.col_mut(j).iter_mut().for_each(|x| *x *= inverse));
    }
    Ok((scaled, scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: usize, cols: usize) -> Mat {
        let mut state = 1u64;
        Mat::from_fn(rows, cols, |_, _| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as f64 / (1u64 << 31) as f64 - 0.5
        })
    }

    fn assert_orthonormal(q: &Mat) {
        let error = q.tn_matmul(q).sub(&Mat::identity(q.cols())).frobenius();
        assert!(error < 1e-12, "{q:?} not orthonormal: {error:e}");
    }

    fn assert_svd(a: &Mat, svd: &Svd) {
        assert_orthonormal(&svd.u);
        assert_orthonormal(&svd.v);
        assert!(svd.s.is_sorted_by(|a, b| a >= b) && svd.s.iter().all(|s| *s >= 0.0));
        let mut us = svd.u.clone();
        us.scale_cols(&svd.s);
        assert!(us.nt_matmul(&svd.v).sub(a).frobenius() <= 1e-13 * a.frobenius());
    }

    /// Random, singular, zero, and of many equal values, below and above the size where divide and conquer starts.
    fn samples() -> Vec<Mat> {
        let mut all = vec![Mat::from_rows(3, 2, &[1., 2., 2., 4., 3., 6.]), matrix(60, 2).nt_matmul(&matrix(50, 2))];
        for (m, n) in [(0, 0), (0, 3), (1, 1), (1, 4), (4, 1), (9, 9), (20, 90), (200, 150), (150, 400)] {
            all.extend([matrix(m, n), Mat::zeros(m, n)]);
            all.push(Mat::from_fn(m, n, |i, j| if i == j { 2.0 } else { 0.0 }));
            all.push(Mat::from_fn(m, n, |i, _| if i == 0 { 1.0 } else { 0.0 }));
        }
        all
    }

    #[test]
    fn svd_and_its_fallback() {
        for a in samples() {
            assert_svd(&a, &thin_svd(&a, "test").unwrap());
            let fallback = svd_by_gram(&a, "test").unwrap();
            assert_svd(&a, &fallback);
            assert!(fallback.note.is_some());
            let direct = thin_svd(&a, "test").unwrap();
            for (x, y) in direct.s.iter().zip(&fallback.s) {
                assert!((x - y).abs() <= 1e-7 * direct.s[0], "{x} {y}");
            }
        }
    }

    #[test]
    fn evd_and_its_fallback() {
        for a in samples() {
            let a = a.nt_matmul(&a);
            let evd = evd_symmetric(&a, "test").unwrap();
            let check = |values: &[f64], vectors: &Mat| {
                assert_orthonormal(vectors);
                let mut scaled = vectors.clone();
                scaled.scale_cols(values);
                assert!(scaled.nt_matmul(vectors).sub(&a).frobenius() <= 1e-13 * a.frobenius());
            };
            assert!(evd.values.is_sorted_by(|a, b| a >= b));
            check(&evd.values, &evd.vectors);
            let mut params: Spec<SelfAdjointEvdParams, f64> = Spec::default();
            params.config.recursion_threshold = usize::MAX;
            let (values, vectors) = evd_once(&a, params).unwrap();
            check(&values, &Mat(vectors));
        }
    }

    #[test]
    fn qr_keeps_q_orthonormal_at_any_rank() {
        for a in samples() {
            let qr = Qr::new(&a);
            let k = a.rows().min(a.cols());
            let q = qr.q_times(&Mat::identity(k));
            assert_orthonormal(&q);
            assert!(q.matmul(&qr.r()).sub(&a).frobenius() <= 1e-13 * a.frobenius());
        }
    }

    #[test]
    fn scale_does_not_matter_and_signs_are_fixed() {
        let a = matrix(12, 7);
        let plain = thin_svd(&a, "test").unwrap();
        for power in [-900, 700] {
            let mut scaled = a.clone();
            scaled.scale_cols(&[2f64.powi(power); 7]);
            let svd = thin_svd(&scaled, "test").unwrap();
            assert_eq!((&svd.u, &svd.v), (&plain.u, &plain.v), "2^{power}");
            assert!(svd.s.iter().zip(&plain.s).all(|(x, y)| *x == y * 2f64.powi(power)), "2^{power}");
        }
        for u in [plain.u, evd_symmetric(&a.nt_matmul(&a), "test").unwrap().vectors] {
            for j in 0..u.cols() {
                assert!(
                    u.col(j).iter().copied().fold(f64::MIN, f64::max) >= -u.col(j).iter().copied().fold(0.0, f64::min)
                );
            }
        }
    }

    #[test]
    fn damage_is_named() {
        let mut a = matrix(3, 3);
        a.set(2, 0, f64::NAN);
        assert!(thin_svd(&a, "the weight").unwrap_err().to_string().contains("NaN or infinite values in the weight"));
        assert!(evd_symmetric(&a, "G").unwrap_err().downcast_ref::<crate::error::UserError>().is_some());
    }
}

//! Systems with a symmetric positive definite matrix, by Cholesky.

use super::Mat;
use super::product::{cut, for_each_tile};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{LltParams, cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::cholesky::llt::solve::{solve_in_place_scratch, solve_in_place_with_conj};
use faer::{Conj, Par, Spec};

/// Right sides that are solved for at a time, by one thread.
const COLUMNS: usize = 64;

/// X (n, c) with A X = B, for symmetric A (n, n), of which the lower triangle is read, and B (n, c). `None` where A is not
/// positive definite to rounding, or not finite.
pub fn solve_positive(a: &Mat, b: &Mat) -> Option<Mat> {
    let n = a.rows();
    assert_eq!((n, n), (a.cols(), b.rows()), "shapes of a linear system");
    let mut l = a.0.clone();
    let params: Spec<LltParams, f64> = Spec::default();
    let mut memory = MemBuffer::try_new(cholesky_in_place_scratch::<f64>(n, Par::Seq, params)).ok()?;
    let stack = MemStack::new(&mut memory);
    cholesky_in_place(l.as_mut(), Default::default(), Par::Seq, stack, params).ok()?;
    let mut x = b.clone();
    let parts = cut(x.0.as_mut(), n.max(1), COLUMNS);
    for_each_tile(parts, n * n * b.cols(), |(_, _, part)| {
        let mut memory = MemBuffer::new(solve_in_place_scratch::<f64>(n, part.ncols(), Par::Seq));
        solve_in_place_with_conj(l.as_ref(), Conj::No, part, Par::Seq, MemStack::new(&mut memory));
    });
    x.is_finite().then_some(x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::on_one_thread;

    fn matrix(rows: usize, cols: usize) -> Mat {
        Mat::from_fn(rows, cols, |i, j| ((i * 7919 + j * 104_729 + i * j) as f64).sin())
    }

    #[test]
    fn solutions_solve_the_system() {
        for (n, c) in [(1, 1), (3, 0), (0, 2), (5, 3), (90, 70), (150, 2 * COLUMNS + 3)] {
            let root = matrix(n, n + 3);
            let (a, b) = (root.nt_matmul_symmetric(&root), matrix(n, c));
            let x = solve_positive(&a, &b).expect("positive definite");
            assert!(a.matmul(&x).sub(&b).frobenius() <= 1e-9 * b.frobenius(), "{n} {c}");
            assert_eq!(on_one_thread(|| solve_positive(&a, &b)), Some(x));
        }
    }

    #[test]
    fn matrices_that_are_not_positive_are_told_apart() {
        let b = matrix(2, 1);
        for rows in [[1.0, 2.0, 2.0, 1.0], [0.0; 4], [-1.0, 0.0, 0.0, 1.0], [f64::NAN, 0.0, 0.0, 1.0]] {
            assert_eq!(solve_positive(&Mat::from_rows(2, 2, &rows), &b), None, "{rows:?}");
        }
    }
}

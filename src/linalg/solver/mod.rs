//! Decompositions and products on another machine than this processor, and the proof that they are right.
//!
//! Who has such a machine hands it to [`solving_with`]; the functions of this module then give it what is large. Every
//! answer is checked with one fixed vector x of ±1, for which the mean of ‖E x‖ is ‖E‖ of the matrix of errors E:
//!
//! ```text
//! A = V Λ Vᵀ    ‖A x − V Λ Vᵀ x‖ ≤ 30 n ε ‖A‖     ‖x − V Vᵀ x‖ ≤ 30 n ε ‖x‖
//! A = Q R       ‖A x − Q R x‖ ≤ 30 m ε ‖A‖         ‖x − Qᵀ Q x‖ ≤ 30 m ε ‖x‖
//! C = A B       ‖C x − A B x‖ ≤ 64 √k ε ‖A‖ ‖B‖
//! ```
//! Norms are Frobenius norms; 30 is what LAPACK's own tests allow, rounding errors of k products grow like √k. Arithmetic
//! in f32 misses these bounds by four digits. What fails is computed by the processor, as without the machine.

#![allow(unsafe_code, reason = "numbers of a matrix without gaps, as a slice")]

mod check;
#[cfg(test)]
mod tests;

use super::Mat;
use anyhow::{Result, ensure};
use check::{distance, length, signs, size, symmetric_times, times, transposed_times};
use std::borrow::Cow;
use std::cell::Cell;
use std::sync::{Mutex, PoisonError};

/// Sides from which a decomposition is worth the way to another machine and back.
pub(super) const SMALLEST: usize = 256;
/// Multiplications from which a product is, and the smallest side.
const MULTIPLICATIONS: usize = 1 << 33;
const THINNEST: usize = 64;

/// How a matrix enters a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// As it is.
    Plain,
    /// Transposed.
    Transposed,
}

/// A matrix that enters a product.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    /// Rows of what is stored.
    pub rows: usize,
    /// Columns of what is stored.
    pub cols: usize,
    /// rows × cols numbers, one column after the other.
    pub numbers: &'a [f64],
    /// Whether the transpose is meant.
    pub side: Side,
}

/// A machine that computes in f64. Matrices are column-major, without gaps.
pub trait Solver: Send + Sync {
    /// Replaces the symmetric `a` (n, n), of which the lower triangle counts, by its eigenvectors as columns. Returns the
    /// eigenvalues, smallest first.
    fn evd(&self, n: usize, a: &mut [f64]) -> Result<Vec<f64>>;

    /// Replaces `a` (m, n), m ≥ n, by Q with orthonormal columns. Returns R (n, n), of which the upper triangle counts.
    fn qr(&self, m: usize, n: usize, a: &mut [f64]) -> Result<Vec<f64>>;

    /// a · b.
    fn product(&self, a: Operand, b: Operand) -> Result<Vec<f64>>;
}

/// A [`Solver`] in use.
pub struct CheckedSolver {
    solver: Box<dyn Solver>,
    trouble: Mutex<Trouble>,
}

#[derive(Default)]
struct Trouble {
    /// What has not been told yet.
    untold: Option<String>,
    /// Whether anything ever went wrong.
    any: bool,
    /// Whether an answer was wrong: nothing is asked any more.
    wrong: bool,
}

impl CheckedSolver {
    /// Checks all that `solver` answers.
    pub fn new(solver: Box<dyn Solver>) -> Self {
        Self { solver, trouble: Mutex::default() }
    }

    /// What went wrong first, if anything did and it was not asked for before.
    pub fn take_trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).untold.take()
    }

    /// What `work` answers if it is `right`.
    fn ask<T>(
        &self,
        what: &str,
        work: impl FnOnce(&dyn Solver) -> Result<T>,
        right: impl FnOnce(&T) -> bool,
    ) -> Option<T> {
        if self.trouble.lock().unwrap_or_else(PoisonError::into_inner).wrong {
            return None;
        }
        let (why, wrong) = match work(&*self.solver) {
            Ok(answer) if right(&answer) => return Some(answer),
            Ok(_) => (format!("{what} by the GPU is wrong; the processor computes all of them from here on"), true),
            Err(e) => (format!("the GPU cannot compute {what}, the processor does: {e:#}"), false),
        };
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.wrong |= wrong;
        if !std::mem::replace(&mut trouble.any, true) {
            trouble.untold = Some(why);
        }
        None
    }

    /// Eigenvalues of `a` (n, n), smallest first, and eigenvectors as columns.
    fn evd(&self, a: &Mat) -> Option<(Vec<f64>, Mat)> {
        let n = a.rows();
        let work = |solver: &dyn Solver| {
            let mut vectors = a.columns().into_owned();
            let values = solver.evd(n, &mut vectors)?;
            ensure!(values.len() == n, "{} eigenvalues of {n}", values.len());
            Ok((values, Mat::from_columns(n, n, &vectors)))
        };
        self.ask(&format!("a decomposition of shape ({n}, {n})"), work, |(values, vectors)| {
            let x = signs(n);
            let parts = transposed_times(vectors, &x);
            let scaled: Vec<f64> = parts.iter().zip(values).map(|(x, value)| x * value).collect();
            let bound = 30.0 * n as f64 * f64::EPSILON;
            let (ax, size) = symmetric_times(a, &x);
            values.is_sorted()
                && distance(&ax, &times(vectors, &scaled)) <= bound * size
                && distance(&x, &times(vectors, &parts)) <= bound * length(&x)
        })
    }

    /// Q (m, n) and R (n, n) of `a` (m, n), m ≥ n.
    fn qr(&self, a: &Mat) -> Option<(Mat, Mat)> {
        let (m, n) = (a.rows(), a.cols());
        let work = |solver: &dyn Solver| {
            let mut q = a.columns().into_owned();
            let mut r = solver.qr(m, n, &mut q)?;
            ensure!(r.len() == n * n, "R has {} elements", r.len());
            (0..n).for_each(|j| r[j * n + j + 1..(j + 1) * n].fill(0.0));
            Ok((Mat::from_columns(m, n, &q), Mat::from_columns(n, n, &r)))
        };
        self.ask(&format!("a decomposition of shape ({m}, {n})"), work, |(q, r)| {
            let x = signs(n);
            let bound = 30.0 * m as f64 * f64::EPSILON;
            distance(&times(a, &x), &times(q, &times(r, &x))) <= bound * size(a)
                && distance(&x, &transposed_times(q, &times(q, &x))) <= bound * length(&x)
        })
    }

    /// a · b
    fn product(&self, a: (&Mat, Side), b: (&Mat, Side)) -> Option<Mat> {
        let shape = |(a, side): (&Mat, Side)| match side {
            Side::Plain => (a.rows(), a.cols()),
            Side::Transposed => (a.cols(), a.rows()),
        };
        let ((m, k), (_, n)) = (shape(a), shape(b));
        let work = |solver: &dyn Solver| {
            let (left, right) = (a.0.columns(), b.0.columns());
            let operand = |(a, side): (&Mat, Side), numbers| Operand { rows: a.rows(), cols: a.cols(), numbers, side };
            let numbers = solver.product(operand(a, &left), operand(b, &right))?;
            ensure!(numbers.len() == m * n, "a product has {} elements", numbers.len());
            Ok(Mat::from_columns(m, n, &numbers))
        };
        self.ask(&format!("a product of shape ({m}, {k}) by ({k}, {n})"), work, |c| {
            let times = |(a, side): (&Mat, Side), x: &[f64]| match side {
                Side::Plain => times(a, x),
                Side::Transposed => transposed_times(a, x),
            };
            let x = signs(n);
            let bound = 64.0 * (k as f64).sqrt() * f64::EPSILON;
            distance(&self::times(c, &x), &times(a, &times(b, &x))) <= bound * size(a.0) * size(b.0)
        })
    }
}

thread_local! {
    static SOLVER: Cell<Option<&'static CheckedSolver>> = const { Cell::new(None) };
}

/// Runs `work`, whose large matrices on the calling thread are the business of `solver`. Without one the processor computes
/// everything.
pub fn solving_with<R>(solver: Option<&'static CheckedSolver>, work: impl FnOnce() -> R) -> R {
    struct Restore(Option<&'static CheckedSolver>);
    impl Drop for Restore {
        fn drop(&mut self) {
            SOLVER.set(self.0);
        }
    }
    let _restore = Restore(SOLVER.replace(solver));
    work()
}

/// Whether a decomposition whose smaller side is `side` is given away.
pub(super) fn takes(side: usize) -> bool {
    side >= SMALLEST && SOLVER.get().is_some()
}

/// As [`super::evd_symmetric`], but smallest first and with signs as they come. `None`: the processor has to.
pub(super) fn evd(a: &Mat) -> Option<(Vec<f64>, Mat)> {
    SOLVER.get().filter(|_| takes(a.rows()))?.evd(a)
}

/// As [`super::Qr`], for at least as many rows as columns.
pub(super) fn qr(a: &Mat) -> Option<(Mat, Mat)> {
    SOLVER.get().filter(|_| takes(a.cols()) && a.rows() >= a.cols())?.qr(a)
}

/// a · b of large matrices. `None`: the processor has to.
pub(super) fn product(a: (&Mat, Side), b: (&Mat, Side)) -> Option<Mat> {
    let solver = SOLVER.get()?;
    let (inner, outer) = match a.1 {
        Side::Plain => (a.0.cols(), a.0.rows()),
        Side::Transposed => (a.0.rows(), a.0.cols()),
    };
    let other = if b.1 == Side::Plain { b.0.cols() } else { b.0.rows() };
    let pays = inner.min(outer).min(other) >= THINNEST && inner * outer * other >= MULTIPLICATIONS;
    if pays { solver.product(a, b) } else { None }
}

impl Mat {
    /// The numbers, one column after the other.
    fn columns(&self) -> Cow<'_, [f64]> {
        let (rows, cols) = (self.rows(), self.cols());
        if self.0.col_stride() == rows as isize {
            // SAFETY: columns follow each other without gaps, so that there are as many numbers in one piece.
            return Cow::Borrowed(unsafe { std::slice::from_raw_parts(self.0.as_ptr(), rows * cols) });
        }
        let mut all = Vec::with_capacity(rows * cols);
        (0..cols).for_each(|j| all.extend_from_slice(self.col(j)));
        Cow::Owned(all)
    }

    /// From numbers, one column after the other. Panics unless there are rows × cols of them.
    pub fn from_columns(rows: usize, cols: usize, numbers: &[f64]) -> Self {
        assert_eq!(numbers.len(), rows * cols, "column-major data of shape ({rows}, {cols})");
        let mut out = Self::zeros(rows, cols);
        for (j, column) in numbers.chunks_exact(rows.max(1)).enumerate() {
            out.col_mut(j).copy_from_slice(column);
        }
        out
    }
}

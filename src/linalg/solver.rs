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

use super::Mat;
use anyhow::{Result, ensure};
use rayon::prelude::*;
use std::borrow::Cow;
use std::cell::Cell;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Sides from which a decomposition is worth the way to another machine and back.
pub(super) const SMALLEST: usize = 256;
/// Multiplications from which a product is, and the smallest side.
const MULTIPLICATIONS: usize = 1 << 33;
const THINNEST: usize = 64;
/// Elements from which several threads check a matrix, so many columns at a time.
const LARGE: usize = 1 << 22;
const COLUMNS: usize = 128;

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

fn signs(n: usize) -> Vec<f64> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut sign = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        if state >> 63 == 0 { 1.0 } else { -1.0 }
    };
    (0..n).map(|_| sign()).collect()
}

/// a x
fn times(a: &Mat, x: &[f64]) -> Vec<f64> {
    let add = |mut y: Vec<f64>, z: &[f64]| {
        y.iter_mut().zip(z).for_each(|(y, z)| *y += z);
        y
    };
    let parts = by_columns(a, |columns| {
        let mut y = vec![0.0; a.rows()];
        for j in columns {
            y.iter_mut().zip(a.col(j)).for_each(|(y, a)| *y += a * x[j]);
        }
        y
    });
    parts.iter().fold(vec![0.0; a.rows()], |y, part| add(y, part))
}

/// aᵀ x
fn transposed_times(a: &Mat, x: &[f64]) -> Vec<f64> {
    by_columns(a, |columns| columns.map(|j| dot(a.col(j), x)).collect::<Vec<f64>>()).concat()
}

/// ‖a‖
fn size(a: &Mat) -> f64 {
    by_columns(a, |columns| columns.map(|j| dot(a.col(j), a.col(j))).sum::<f64>()).iter().sum::<f64>().sqrt()
}

/// What `work` makes of columns that lie together, on several threads where there are enough of them.
fn by_columns<R: Send>(a: &Mat, work: impl Fn(Range<usize>) -> R + Sync) -> Vec<R> {
    let starts = (0..a.cols()).step_by(COLUMNS);
    let work = |start: usize| work(start..a.cols().min(start + COLUMNS));
    if a.rows() * a.cols() < LARGE {
        starts.map(work).collect()
    } else {
        starts.collect::<Vec<_>>().into_par_iter().map(work).collect()
    }
}

/// a x and ‖a‖ of a symmetric matrix, from its lower triangle.
fn symmetric_times(a: &Mat, x: &[f64]) -> (Vec<f64>, f64) {
    let (mut y, mut squares) = (vec![0.0; x.len()], 0.0);
    for j in 0..x.len() {
        let (diagonal, below) = (a.get(j, j), &a.col(j)[j + 1..]);
        y[j] += diagonal * x[j] + dot(below, &x[j + 1..]);
        y[j + 1..].iter_mut().zip(below).for_each(|(y, a)| *y += a * x[j]);
        squares += diagonal * diagonal + 2.0 * dot(below, below);
    }
    (y, squares.sqrt())
}

/// In lanes, so that it is not one long chain of additions.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0.0; 16];
    let ((a_chunks, a_rest), (b_chunks, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        lanes.iter_mut().zip(a.iter().zip(b)).for_each(|(lane, (a, b))| *lane += a * b);
    }
    lanes.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f64>()
}

fn length(x: &[f64]) -> f64 {
    dot(x, x).sqrt()
}

/// NaN where anything is, so that no bound holds.
fn distance(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt()
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

#[cfg(test)]
mod tests {
    use super::super::{Qr, evd_symmetric, thin_svd};
    use super::*;
    use anyhow::bail;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// What the stand-in for a GPU does to a right answer.
    #[derive(Clone, Copy, PartialEq)]
    enum Fault {
        None,
        Fails,
        /// One number of the answer is off by this much, relative to the largest.
        Off(f64),
        NotANumber,
        /// Eigenvectors that belong to other eigenvalues; a matrix that is not triangular.
        Mixed,
    }

    /// The processor, posing as another machine.
    struct Pose {
        fault: Fault,
        asked: AtomicUsize,
    }

    impl Pose {
        fn spoil(&self, numbers: &mut [f64]) -> Result<()> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let (middle, largest) = (numbers.len() / 2, numbers.iter().fold(0f64, |a, x| a.max(x.abs())));
            match self.fault {
                Fault::Fails => bail!("out of memory"),
                Fault::Off(by) => numbers[middle] += by * largest,
                Fault::NotANumber => numbers[middle] = f64::NAN,
                Fault::None | Fault::Mixed => {}
            }
            Ok(())
        }
    }

    impl Solver for Pose {
        fn evd(&self, n: usize, a: &mut [f64]) -> Result<Vec<f64>> {
            let found = solving_with(None, || evd_symmetric(&Mat::from_columns(n, n, a), "test"))?;
            let mut vectors = Mat::from_fn(n, n, |i, j| -found.vectors.get(i, n - 1 - j)).columns().into_owned();
            self.spoil(&mut vectors)?;
            if self.fault == Fault::Mixed {
                vectors.rotate_left(n);
            }
            a.copy_from_slice(&vectors);
            Ok(found.values.into_iter().rev().collect())
        }

        fn qr(&self, m: usize, n: usize, a: &mut [f64]) -> Result<Vec<f64>> {
            let found = solving_with(None, || Qr::new(&Mat::from_columns(m, n, a)));
            let mut q = found.q_times(&Mat::identity(n)).columns().into_owned();
            self.spoil(&mut q)?;
            a.copy_from_slice(&q);
            // Below the diagonal LAPACK leaves something else.
            let r = found.r();
            let below = if self.fault == Fault::Mixed { r.get(0, n - 1) } else { 7.0 };
            Ok(Mat::from_fn(n, n, |i, j| if i <= j && self.fault != Fault::Mixed { r.get(i, j) } else { below })
                .columns()
                .into_owned())
        }

        fn product(&self, a: Operand, b: Operand) -> Result<Vec<f64>> {
            let [a, b] = [a, b].map(|side| {
                let stored = Mat::from_columns(side.rows, side.cols, side.numbers);
                if side.side == Side::Plain { stored } else { stored.transpose() }
            });
            let mut product = solving_with(None, || a.matmul(&b)).columns().into_owned();
            self.spoil(&mut product)?;
            if self.fault == Fault::Mixed {
                product.rotate_left(a.rows());
            }
            Ok(product)
        }
    }

    /// Columns of very different size, as activations have them.
    fn matrix(rows: usize, cols: usize) -> Mat {
        Mat::from_fn(rows, cols, |i, j| ((i * 7919 + j * 104_729) as f64).sin() * 10f64.powi(j as i32 % 5 - 2))
    }

    /// What `work` answers with the processor posing as another machine, the trouble told, and how often it was asked.
    fn with_pose<R>(fault: Fault, work: impl Fn() -> R) -> (R, Option<String>, usize) {
        let pose: &'static Pose = Box::leak(Box::new(Pose { fault, asked: AtomicUsize::new(0) }));
        struct Shared(&'static Pose);
        impl Solver for Shared {
            fn evd(&self, n: usize, a: &mut [f64]) -> Result<Vec<f64>> {
                self.0.evd(n, a)
            }
            fn qr(&self, m: usize, n: usize, a: &mut [f64]) -> Result<Vec<f64>> {
                self.0.qr(m, n, a)
            }
            fn product(&self, a: Operand, b: Operand) -> Result<Vec<f64>> {
                self.0.product(a, b)
            }
        }
        let solver: &'static CheckedSolver = Box::leak(Box::new(CheckedSolver::new(Box::new(Shared(pose)))));
        let answer = solving_with(Some(solver), work);
        let told = solver.take_trouble();
        assert!(solver.take_trouble().is_none());
        (answer, told, pose.asked.load(Ordering::Relaxed))
    }

    const WRONG: [Fault; 4] = [Fault::Off(1e-3), Fault::Off(1e-7), Fault::NotANumber, Fault::Mixed];

    #[test]
    fn right_answers_are_taken_and_wrong_ones_computed_again() {
        let n = SMALLEST;
        let a = matrix(n + 9, n);
        let gram = a.tn_matmul(&a);
        let here = (evd_symmetric(&gram, "test").unwrap(), Qr::new(&a), thin_svd(&a, "test").unwrap());
        let evd = || evd_symmetric(&gram, "test").unwrap();
        let (found, told, asked) = with_pose(Fault::None, evd);
        assert_eq!((told, asked, found.note), (None, 1, None));
        assert_eq!((found.values, found.vectors), (here.0.values.clone(), here.0.vectors.clone()));
        for fault in WRONG {
            let (found, told, asked) = with_pose(fault, || (evd(), evd()).1);
            assert!(told.is_some_and(|told| told.contains("is wrong")) && asked == 1);
            assert_eq!((found.values, found.vectors), (here.0.values.clone(), here.0.vectors.clone()));
        }
        let (found, told, asked) = with_pose(Fault::Fails, || (evd(), evd()).1);
        assert!(told.is_some_and(|told| told.contains("out of memory")) && asked == 2);
        assert_eq!(found.values, here.0.values);

        let qr = || {
            let qr = Qr::new(&a);
            (qr.q_times(&Mat::identity(n)), qr.r())
        };
        for fault in WRONG.into_iter().chain([Fault::None, Fault::Fails]) {
            let ((q, r), told, asked) = with_pose(fault, qr);
            assert_eq!((told.is_none(), asked), (fault == Fault::None, 1));
            assert_eq!(r, here.1.r());
            assert!(q.tn_matmul(&q).sub(&Mat::identity(n)).frobenius() < 1e-12);
        }

        let svd = || thin_svd(&a, "test").unwrap();
        for fault in [Fault::None, Fault::Fails, Fault::Off(1e-3)] {
            let (found, told, asked) = with_pose(fault, svd);
            assert!(asked > 0 && told.is_none() == (fault == Fault::None) && found.note.is_none());
            let mut us = found.u.clone();
            us.scale_cols(&found.s);
            assert!(us.nt_matmul(&found.v).sub(&a).frobenius() <= 1e-13 * a.frobenius());
            let close = |(x, y): (&f64, &f64)| (x - y).abs() <= 1e-7 * here.2.s[0];
            assert!(found.s.iter().zip(&here.2.s).all(close) && found.s.is_sorted_by(|a, b| a >= b));
        }
    }

    #[test]
    fn products_are_checked() {
        let (a, b) = (matrix(90, 300), matrix(300, 70));
        let (a_turned, b_turned) = (a.transpose(), b.transpose());
        let wanted = a.matmul(&b);
        for fault in WRONG.into_iter().chain([Fault::None, Fault::Fails]) {
            let pose = Box::new(Pose { fault, asked: AtomicUsize::new(0) });
            let solver = CheckedSolver::new(pose);
            let found = solver.product((&a, Side::Plain), (&b, Side::Plain));
            assert_eq!(found.is_some(), fault == Fault::None);
            assert_eq!(solver.take_trouble().is_none(), fault == Fault::None);
            if let Some(found) = found {
                assert_eq!(found, wanted);
                let turned = solver.product((&a_turned, Side::Transposed), (&b_turned, Side::Transposed));
                assert!(turned.is_some_and(|turned| turned.sub(&wanted).frobenius() < 1e-14 * wanted.frobenius()));
            }
        }
    }

    #[test]
    fn several_threads_check_what_one_does() {
        let a = matrix(2100, 2000);
        assert!(a.rows() * a.cols() >= LARGE);
        let (x, y) = (signs(2000), signs(2100));
        let column = |x: &[f64]| Mat::from_columns(x.len(), 1, x);
        let bound = 1e-13 * a.frobenius();
        assert!(distance(&times(&a, &x), &a.matmul(&column(&x)).columns()) < bound * length(&x));
        assert!(distance(&transposed_times(&a, &y), &a.tn_matmul(&column(&y)).columns()) < bound * length(&y));
        assert!((size(&a) - a.frobenius()).abs() < bound);
    }

    #[test]
    fn arithmetic_in_single_precision_is_found_out() {
        struct Single;
        impl Solver for Single {
            fn evd(&self, n: usize, a: &mut [f64]) -> Result<Vec<f64>> {
                let found = solving_with(None, || evd_symmetric(&Mat::from_columns(n, n, a), "test"))?;
                let vectors = Mat::from_fn(n, n, |i, j| f64::from(found.vectors.get(i, n - 1 - j) as f32));
                a.copy_from_slice(&vectors.columns());
                Ok(found.values.into_iter().rev().collect())
            }
            fn qr(&self, m: usize, n: usize, a: &mut [f64]) -> Result<Vec<f64>> {
                let found = solving_with(None, || Qr::new(&Mat::from_columns(m, n, a)));
                a.copy_from_slice(&found.q_times(&Mat::identity(n)).columns());
                let r = found.r();
                Ok(Mat::from_fn(n, n, |i, j| f64::from(r.get(i, j) as f32)).columns().into_owned())
            }
            fn product(&self, a: Operand, b: Operand) -> Result<Vec<f64>> {
                let [a, b] = [a, b].map(|side| Mat::from_columns(side.rows, side.cols, side.numbers));
                let rounded = |x: &f64| f64::from(*x as f32);
                Ok(solving_with(None, || a.matmul(&b)).columns().iter().map(rounded).collect())
            }
        }
        let solver = || CheckedSolver::new(Box::new(Single));
        let a = matrix(SMALLEST, SMALLEST);
        assert!(solver().evd(&a.tn_matmul(&a)).is_none());
        assert!(solver().qr(&a).is_none());
        assert!(solver().product((&a, Side::Plain), (&a, Side::Plain)).is_none());
    }

    #[test]
    fn a_solver_lasts_as_long_as_the_call_and_small_matrices_stay() {
        let small = matrix(40, 30);
        let (_, told, asked) = with_pose(Fault::Fails, || {
            assert!(takes(SMALLEST) && !takes(SMALLEST - 1));
            (thin_svd(&small, "test").unwrap(), small.tn_matmul(&small))
        });
        assert_eq!((told, asked), (None, 0));
        assert!(!takes(usize::MAX));
    }
}

use super::*;
use crate::linalg::{Qr, evd_symmetric, thin_svd};
use anyhow::bail;
use std::sync::Arc;
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
    asked: Arc<AtomicUsize>,
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
    let asked = Arc::new(AtomicUsize::new(0));
    let pose = Pose { fault, asked: asked.clone() };
    let solver: &'static CheckedSolver = Box::leak(Box::new(CheckedSolver::new(Box::new(pose))));
    let answer = solving_with(Some(solver), work);
    let told = solver.take_trouble();
    assert!(solver.take_trouble().is_none());
    (answer, told, asked.load(Ordering::Relaxed))
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
        let pose = Box::new(Pose { fault, asked: Arc::default() });
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

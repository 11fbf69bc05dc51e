//! What answers are checked with: a matrix times a vector, and norms.

use crate::linalg::Mat;
use rayon::prelude::*;
use std::ops::Range;

/// Elements from which several threads check a matrix, so many columns at a time.
const LARGE: usize = 1 << 22;
const COLUMNS: usize = 128;

pub(super) fn signs(n: usize) -> Vec<f64> {
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
pub(super) fn times(a: &Mat, x: &[f64]) -> Vec<f64> {
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
pub(super) fn transposed_times(a: &Mat, x: &[f64]) -> Vec<f64> {
    by_columns(a, |columns| columns.map(|j| dot(a.col(j), x)).collect::<Vec<f64>>()).concat()
}

/// ‖a‖
pub(super) fn size(a: &Mat) -> f64 {
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
pub(super) fn symmetric_times(a: &Mat, x: &[f64]) -> (Vec<f64>, f64) {
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

pub(super) fn length(x: &[f64]) -> f64 {
    dot(x, x).sqrt()
}

/// NaN where anything is, so that no bound holds.
pub(super) fn distance(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_threads_check_what_one_does() {
        let a = Mat::from_fn(2100, 2000, |i, j| ((i * 7919 + j * 104_729) as f64).sin() * 10f64.powi(j as i32 % 5 - 2));
        assert!(a.rows() * a.cols() >= LARGE);
        let (x, y) = (signs(2000), signs(2100));
        let column = |x: &[f64]| Mat::from_columns(x.len(), 1, x);
        let bound = 1e-13 * a.frobenius();
        assert!(distance(&times(&a, &x), &a.matmul(&column(&x)).columns()) < bound * length(&x));
        assert!(distance(&transposed_times(&a, &y), &a.tn_matmul(&column(&y)).columns()) < bound * length(&y));
        assert!((size(&a) - a.frobenius()).abs() < bound);
    }
}

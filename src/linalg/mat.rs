//! A dense f64 matrix.

use crate::user_bail;
use anyhow::Result;
use faer::MatRef;
use std::fmt;
use std::ops::Range;

/// Side of the square blocks in which row-major data is turned into columns: both sides of a block stay in cache.
const BLOCK: usize = 32;

/// A dense matrix of f64, owned.
#[derive(Clone, PartialEq)]
pub struct Mat(pub(super) faer::Mat<f64>);

impl fmt::Debug for Mat {
    /// Small matrices in full, larger ones by their shape.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rows() * self.cols() <= 64 { self.0.fmt(f) } else { write!(f, "Mat({}, {})", self.rows(), self.cols()) }
    }
}

impl Mat {
    /// Zeros of shape (rows, cols).
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self(faer::Mat::zeros(rows, cols))
    }

    /// Ones on the diagonal, shape (n, n).
    pub fn identity(n: usize) -> Self {
        Self(faer::Mat::identity(n, n))
    }

    /// The matrix whose element at row i, column j is `f(i, j)`.
    pub fn from_fn(rows: usize, cols: usize, f: impl FnMut(usize, usize) -> f64) -> Self {
        Self(faer::Mat::from_fn(rows, cols, f))
    }

    /// From row-major f32 values, as a checkpoint holds them. Panics unless there are rows × cols of them.
    pub fn from_f32_rows(rows: usize, cols: usize, data: &[f32]) -> Self {
        Self::from_rows_with(rows, cols, data, f64::from)
    }

    /// From row-major f64 values. Panics unless there are rows × cols of them.
    pub fn from_rows(rows: usize, cols: usize, data: &[f64]) -> Self {
        Self::from_rows_with(rows, cols, data, |x| x)
    }

    /// The values in row-major order, rounded to f32. Values beyond f32 become infinite.
    pub fn to_f32_rows(&self) -> Vec<f32> {
        self.to_rows_with(0.0, |x| x as f32)
    }

    /// The values in row-major order.
    pub fn to_rows(&self) -> Vec<f64> {
        self.to_rows_with(0.0, |x| x)
    }

    fn from_rows_with<T: Copy>(rows: usize, cols: usize, data: &[T], convert: impl Fn(T) -> f64) -> Self {
        assert_eq!(data.len(), rows * cols, "row-major data of shape ({rows}, {cols})");
        let mut out = faer::Mat::zeros(rows, cols);
        for j0 in (0..cols).step_by(BLOCK) {
            for i0 in (0..rows).step_by(BLOCK) {
                for j in j0..cols.min(j0 + BLOCK) {
                    let column = &mut out.col_as_slice_mut(j)[i0..rows.min(i0 + BLOCK)];
                    for (value, i) in column.iter_mut().zip(i0..) {
                        *value = convert(data[i * cols + j]);
                    }
                }
            }
        }
        Self(out)
    }

    fn to_rows_with<T: Copy>(&self, zero: T, convert: impl Fn(f64) -> T) -> Vec<T> {
        let (rows, cols) = (self.rows(), self.cols());
        let mut out = vec![zero; rows * cols];
        for i0 in (0..rows).step_by(BLOCK) {
            for j0 in (0..cols).step_by(BLOCK) {
                for j in j0..cols.min(j0 + BLOCK) {
                    let column = &self.col(j)[i0..rows.min(i0 + BLOCK)];
                    for (&value, i) in column.iter().zip(i0..) {
                        out[i * cols + j] = convert(value);
                    }
                }
            }
        }
        out
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.0.nrows()
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.0.ncols()
    }

    /// The element at row `i`, column `j`.
    pub fn get(&self, i: usize, j: usize) -> f64 {
        self.0[(i, j)]
    }

    /// Replaces the element at row `i`, column `j`.
    pub fn set(&mut self, i: usize, j: usize, value: f64) {
        self.0[(i, j)] = value;
    }

    /// Column `j`.
    pub fn col(&self, j: usize) -> &[f64] {
        self.0.col_as_slice(j)
    }

    /// Column `j`, to be changed.
    pub fn col_mut(&mut self, j: usize) -> &mut [f64] {
        self.0.col_as_slice_mut(j)
    }

    /// The transpose, as a copy.
    pub fn transpose(&self) -> Self {
        let (rows, cols) = (self.cols(), self.rows());
        let mut out = faer::Mat::zeros(rows, cols);
        for i0 in (0..rows).step_by(BLOCK) {
            for j in 0..cols {
                let column = &mut out.col_as_slice_mut(j)[i0..rows.min(i0 + BLOCK)];
                for (value, i) in column.iter_mut().zip(i0..) {
                    *value = self.0[(j, i)];
                }
            }
        }
        Self(out)
    }

    /// The chosen columns, as a copy.
    pub fn col_range(&self, range: Range<usize>) -> Self {
        Self(self.0.as_ref().subcols(range.start, range.len()).to_owned())
    }

    /// The chosen rows, as a copy.
    pub fn row_range(&self, range: Range<usize>) -> Self {
        Self(self.0.as_ref().subrows(range.start, range.len()).to_owned())
    }

    /// Multiplies column j by `factors[j]`.
    pub fn scale_cols(&mut self, factors: &[f64]) {
        assert_eq!(factors.len(), self.cols());
        for (j, factor) in factors.iter().enumerate() {
            self.col_mut(j).iter_mut().for_each(|x| *x *= factor);
        }
    }

    /// Multiplies row i by `factors[i]`.
    pub fn scale_rows(&mut self, factors: &[f64]) {
        assert_eq!(factors.len(), self.rows());
        for j in 0..self.cols() {
            self.col_mut(j).iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
        }
    }

    /// Adds another matrix of the same shape.
    pub fn add_assign(&mut self, other: &Mat) {
        assert_eq!((self.rows(), self.cols()), (other.rows(), other.cols()));
        for j in 0..self.cols() {
            self.col_mut(j).iter_mut().zip(other.col(j)).for_each(|(x, y)| *x += y);
        }
    }

    /// self − other, of the same shape.
    pub fn sub(&self, other: &Mat) -> Self {
        assert_eq!((self.rows(), self.cols()), (other.rows(), other.cols()));
        let mut out = self.clone();
        for j in 0..out.cols() {
            out.col_mut(j).iter_mut().zip(other.col(j)).for_each(|(x, y)| *x -= y);
        }
        out
    }

    /// Copies the lower triangle onto the upper one: what [`super::gram_add`] needs when all tokens are in.
    pub fn mirror_lower(&mut self) {
        assert_eq!(self.rows(), self.cols());
        let n = self.rows();
        for j0 in (0..n).step_by(BLOCK) {
            for i0 in (j0..n).step_by(BLOCK) {
                for j in j0..n.min(j0 + BLOCK) {
                    for i in i0.max(j + 1)..n.min(i0 + BLOCK) {
                        self.0[(j, i)] = self.0[(i, j)];
                    }
                }
            }
        }
    }

    /// √Σ x².
    pub fn frobenius(&self) -> f64 {
        (0..self.cols()).map(|j| self.col(j).iter().map(|x| x * x).sum::<f64>()).sum::<f64>().sqrt()
    }

    /// Largest |x|; NaN counts as infinite. Zero for an empty matrix.
    pub fn max_abs(&self) -> f64 {
        let larger = |a: f64, x: &f64| if x.is_nan() { f64::INFINITY } else { a.max(x.abs()) };
        (0..self.cols()).map(|j| self.col(j).iter().fold(0.0, larger)).fold(0.0, f64::max)
    }

    /// Whether no element is NaN or infinite.
    pub fn is_finite(&self) -> bool {
        self.max_abs().is_finite()
    }

    /// [`Mat::max_abs`], or a [`crate::error::UserError`] saying that `what` holds NaN or infinite values.
    pub fn ensure_finite(&self, what: &str) -> Result<f64> {
        let largest = self.max_abs();
        if !largest.is_finite() {
            let (m, n) = (self.rows(), self.cols());
            user_bail!("NaN or infinite values in {what} of shape ({m}, {n})"; "check the model itself: does `softlm eval` give a finite perplexity?");
        }
        Ok(largest)
    }

    pub(super) fn view(&self) -> MatRef<'_, f64> {
        self.0.as_ref()
    }
}

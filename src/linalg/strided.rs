//! f32 products of row-major pieces of larger arrays, on the calling thread: what attention is made of.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// A matrix inside a larger array: `rows` rows of `cols` numbers each, `stride` apart, from the start of `data`.
#[derive(Debug, Clone, Copy)]
pub struct RowMajor<'a> {
    /// At least (rows − 1) · stride + cols numbers.
    pub data: &'a [f32],
    /// Number of rows.
    pub rows: usize,
    /// Numbers per row.
    pub cols: usize,
    /// From the start of one row to that of the next, at least `cols`.
    pub stride: usize,
}

impl<'a> RowMajor<'a> {
    /// Row `i`.
    pub fn row(&self, i: usize) -> &'a [f32] {
        &self.data[i * self.stride..][..self.cols]
    }

    fn view(self) -> MatRef<'a, f32> {
        let len = needed(self.rows, self.cols, self.stride);
        MatRef::from_column_major_slice_with_stride(&self.data[..len], self.cols, self.rows, self.stride).transpose()
    }
}

fn needed(rows: usize, cols: usize, stride: usize) -> usize {
    if rows == 0 { 0 } else { (rows - 1) * stride + cols }
}

/// out ← lhs · rhsᵀ. Rows of `out` are `stride` apart; panics where it is too short or shapes disagree.
pub fn nt_product(out: &mut [f32], stride: usize, lhs: RowMajor, rhs: RowMajor) {
    assert_eq!(lhs.cols, rhs.cols, "inner dimensions of a product");
    product(out, stride, Accum::Replace, lhs.view(), rhs.view().transpose());
}

/// out ← lhs · rhs. Rows of `out` are `stride` apart; panics where it is too short or shapes disagree.
pub fn nn_product(out: &mut [f32], stride: usize, lhs: RowMajor, rhs: RowMajor) {
    assert_eq!(lhs.cols, rhs.rows, "inner dimensions of a product");
    product(out, stride, Accum::Replace, lhs.view(), rhs.view());
}

/// out ← out + lhsᵀ · rhs. Rows of `out` are `stride` apart; panics where it is too short or shapes disagree.
pub fn tn_product_add(out: &mut [f32], stride: usize, lhs: RowMajor, rhs: RowMajor) {
    assert_eq!(lhs.rows, rhs.rows, "inner dimensions of a product");
    product(out, stride, Accum::Add, lhs.view().transpose(), rhs.view());
}

fn product(out: &mut [f32], stride: usize, accum: Accum, lhs: MatRef<f32>, rhs: MatRef<f32>) {
    let (rows, cols) = (lhs.nrows(), rhs.ncols());
    let out = &mut out[..needed(rows, cols, stride)];
    // The row-major constructor of a mutable view is broken in faer 0.24.
    let out = MatMut::from_column_major_slice_with_stride_mut(out, cols, rows, stride).transpose_mut();
    matmul(out, accum, lhs, rhs, 1.0, Par::Seq);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_pieces_touch_nothing_else() {
        let numbers = |n: usize| (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 32.0).collect::<Vec<f32>>();
        for (m, k, n) in [(1, 1, 1), (3, 8, 5), (64, 8, 256), (17, 40, 33)] {
            let (a, b) = (numbers(m * (k + 3)), numbers(n.max(k) * (n.max(k) + 2)));
            let lhs = RowMajor { data: &a, rows: m, cols: k, stride: k + 3 };
            for transposed in [true, false] {
                let (rows, cols) = if transposed { (n, k) } else { (k, n) };
                let rhs = RowMajor { data: &b, rows, cols, stride: cols + 2 };
                let mut out = vec![7.0; m * (n + 1)];
                let product = if transposed { nt_product } else { nn_product };
                product(&mut out, n + 1, lhs, rhs);
                for i in 0..m {
                    for j in 0..n {
                        let at = |p: usize| if transposed { b[j * (cols + 2) + p] } else { b[p * (cols + 2) + j] };
                        let wanted: f32 = (0..k).map(|p| a[i * (k + 3) + p] * at(p)).sum();
                        let got = out[i * (n + 1) + j];
                        assert!((got - wanted).abs() <= 1e-5 * wanted.abs().max(10.0), "{got} {wanted}");
                    }
                    assert_eq!(out[i * (n + 1) + n], 7.0);
                }
            }
            // Both have m rows.
            let other = numbers(m * n);
            let rhs = RowMajor { data: &other, rows: m, cols: n, stride: n };
            let mut out = vec![7.0; k * (n + 1)];
            tn_product_add(&mut out, n + 1, lhs, rhs);
            for i in 0..k {
                for j in 0..n {
                    let wanted: f32 = (0..m).map(|p| a[p * (k + 3) + i] * other[p * n + j]).sum::<f32>() + 7.0;
                    let got = out[i * (n + 1) + j];
                    assert!((got - wanted).abs() <= 1e-5 * wanted.abs().max(10.0), "{got} {wanted}");
                }
                assert_eq!(out[i * (n + 1) + n], 7.0);
            }
        }
    }
}

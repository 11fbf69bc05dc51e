//! Products of f32 matrices whose numbers are rounded to bf16 first: what PyTorch calls float32_matmul_precision "medium".
//!
//! A processor with AVX512-BF16 multiplies 32 pairs in the time that 16 take in f32, and sums them in f32. Numbers of a
//! checkpoint in bf16 lose nothing; others keep eight bits, an error of 2^-9 at most.
//!
//! Both operands are copied first, pairs of neighbours along the inner dimension side by side as the instruction wants
//! them; both copies together take a few percent of the time. Every entry is summed in the same order whatever the number
//! of threads.

#![allow(unsafe_code, reason = "instructions that are looked for at run time")]

use super::simd::for_each_width;
use super::{RowMajor, Side};
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Rows of the result, at most, that one call of the kernel computes.
const ROWS: usize = 12;
/// Columns that it computes, and rows of an operand that are copied together.
const PANEL: usize = 32;
/// Pairs that are summed before the next part of the inner dimension is read: one part of a panel is 64 KiB.
const PAIRS: usize = 512;
/// Rows of the result that one thread computes at once; a multiple of [`ROWS`] and [`PANEL`].
const ROWS_AT_ONCE: usize = 192;

/// A matrix that enters a product as it is stored, (rows, inner), or as the transpose of that.
pub type Operand<'a> = (RowMajor<'a>, Side);

/// Rows, and what a product sums over.
fn shape((matrix, side): Operand) -> (usize, usize) {
    match side {
        Side::Plain => (matrix.rows, matrix.cols),
        Side::Transposed => (matrix.cols, matrix.rows),
    }
}

/// Whether this processor has the instructions.
pub fn is_supported() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// a · bᵀ of operands with the same inner dimension, row-major (rows of a, rows of b).
///
/// # Panics
/// Where [`is_supported`] says no, and if the operands do not fit together.
pub fn product(a: Operand, b: Operand) -> Vec<f32> {
    assert!(is_supported(), "this processor has no products of bf16 numbers");
    let ((rows, inner), (columns, other)) = (shape(a), shape(b));
    assert_eq!(inner, other, "inner dimensions of a product");
    let count = rows * columns;
    if count == 0 || inner == 0 {
        return vec![0.0; count];
    }
    let mut out = Vec::with_capacity(count);
    let (a, b) = (if a.1 == Side::Plain { Packed::rows(a.0) } else { Packed::panels(a) }, Packed::panels(b));
    let chunks = out.spare_capacity_mut()[..count].par_chunks_mut(ROWS_AT_ONCE * columns).enumerate();
    chunks.for_each(|(chunk, out)| multiply_block(&a, &b, chunk * ROWS_AT_ONCE, 0, columns, out));
    // SAFETY: every number was written.
    unsafe { out.set_len(count) };
    out
}

/// Rows of an operand, to be multiplied with one another.
pub struct Panels(Packed);

impl Panels {
    /// Copies `operand`.
    pub fn of(operand: Operand) -> Self {
        assert!(is_supported(), "this processor has no products of bf16 numbers");
        Self(Packed::panels(operand))
    }

    /// The products of `rows` with `others`, row-major. Both ranges start at a multiple of 32.
    pub fn products(&self, rows: Range<usize>, others: Range<usize>) -> Vec<f32> {
        assert!(rows.end.max(others.end) <= self.0.rows, "{rows:?} or {others:?} of {} rows", self.0.rows);
        assert!(rows.start.is_multiple_of(PANEL) && others.start.is_multiple_of(PANEL), "{rows:?}, {others:?}");
        let count = rows.len() * others.len();
        let mut out = Vec::with_capacity(count);
        if self.0.pairs == 0 {
            return vec![0.0; count];
        }
        if count > 0 {
            let numbers = &mut out.spare_capacity_mut()[..count];
            multiply_block(&self.0, &self.0, rows.start, others.start, others.len(), numbers);
        }
        // SAFETY: every number was written.
        unsafe { out.set_len(count) };
        out
    }
}

/// Rows of a from `first_row` on times `columns` rows of b from `first_column` on, as many as `out` has room for: all of it
/// is written.
fn multiply_block(
    a: &Packed,
    b: &Packed,
    first_row: usize,
    first_column: usize,
    columns: usize,
    out: &mut [MaybeUninit<f32>],
) {
    let rows = out.len() / columns;
    for start in (0..a.pairs).step_by(PAIRS) {
        let pairs = PAIRS.min(a.pairs - start);
        for column in (0..columns).step_by(PANEL) {
            let width = PANEL.min(columns - column);
            let mut row = 0;
            while row < rows {
                let in_panel = if a.is_panels { PANEL - row % PANEL } else { ROWS };
                let count = in_panel.min(ROWS).min(rows - row);
                let tile = Tile {
                    a: &a.numbers[a.at(first_row + row, start)..],
                    row_stride: a.row_stride,
                    pair_stride: a.pair_stride,
                    b: &b.numbers[b.at(first_column + column, start)..],
                    pairs,
                    stride: columns,
                    width,
                    adds: start > 0,
                };
                multiply(count, &tile, &mut out[row * columns + column..]);
                row += count;
            }
        }
    }
}

/// An operand in bf16; what is missing in the last pair is zero. Row r and pair p are at [`Packed::at`].
struct Packed {
    numbers: Vec<u32>,
    rows: usize,
    pairs: usize,
    is_panels: bool,
    row_stride: usize,
    pair_stride: usize,
}

impl Packed {
    /// (rows, pairs).
    fn rows(matrix: RowMajor) -> Self {
        let pairs = matrix.cols.div_ceil(2);
        // Rows a power of two apart would share few lines of the cache.
        let stride = pairs.next_multiple_of(16) + 16;
        let mut numbers = vec![0; matrix.rows * stride];
        let rows = numbers.par_chunks_mut(stride).enumerate().with_min_len(16);
        rows.for_each(|(i, to)| pair_neighbours(matrix.row(i), to));
        Self { numbers, rows: matrix.rows, pairs, is_panels: false, row_stride: stride, pair_stride: 1 }
    }

    /// (panels, pairs, rows of a panel).
    fn panels(operand: Operand) -> Self {
        let ((rows, inner), (matrix, side)) = (shape(operand), operand);
        let pairs = inner.div_ceil(2);
        let mut numbers = vec![0; rows.div_ceil(PANEL) * pairs * PANEL];
        numbers.par_chunks_mut(pairs * PANEL).enumerate().for_each(|(panel, to)| {
            let first = panel * PANEL;
            let width = PANEL.min(rows - first);
            if side == Side::Transposed {
                for (pair, to) in to.chunks_exact_mut(PANEL).enumerate() {
                    let row = |i: usize| if i < inner { &matrix.row(i)[first..][..width] } else { &[] };
                    pair_rows(row(2 * pair), row(2 * pair + 1), to);
                }
                return;
            }
            let mut row = vec![0u32; pairs.next_multiple_of(16)];
            for i in 0..width {
                pair_neighbours(matrix.row(first + i), &mut row);
                to.chunks_exact_mut(PANEL).zip(&row).for_each(|(to, pair)| to[i] = *pair);
            }
        });
        Self { numbers, rows, pairs, is_panels: true, row_stride: 1, pair_stride: PANEL }
    }

    fn at(&self, row: usize, pair: usize) -> usize {
        if self.is_panels {
            (row / PANEL * self.pairs + pair) * PANEL + row % PANEL
        } else {
            row * self.row_stride + pair
        }
    }
}

/// The nearest bf16, of two the even one, in the lower half; NaN stays NaN.
#[inline(always)]
fn to_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    let nearest = (bits.wrapping_add(0x7fff + (bits >> 16 & 1))) >> 16;
    if x.is_nan() { 0x7fc0 } else { nearest }
}

/// `x` as products see it.
pub fn rounded(x: f32) -> f32 {
    f32::from_bits(to_bf16(x) << 16)
}

for_each_width! {
    /// Pairs of neighbours in `x`.
    pub fn pair_neighbours(x: &[f32], pairs: &mut [u32]) {
        let (whole, rest) = x.as_chunks::<2>();
        for (to, [low, high]) in pairs.iter_mut().zip(whole) {
            *to = to_bf16(*low) | to_bf16(*high) << 16;
        }
        if let (Some(to), Some(low)) = (pairs.get_mut(whole.len()), rest.first()) {
            *to = to_bf16(*low);
        }
    }
}

for_each_width! {
    /// Pairs of what stands at the same place in two rows, the second of which may be missing.
    pub fn pair_rows(low: &[f32], high: &[f32], pairs: &mut [u32]) {
        for (to, low) in pairs.iter_mut().zip(low) {
            *to = to_bf16(*low);
        }
        for (to, high) in pairs.iter_mut().zip(high) {
            *to |= to_bf16(*high) << 16;
        }
    }
}

/// What one call of the kernel reads, and how what it writes is laid out.
struct Tile<'a> {
    a: &'a [u32],
    row_stride: usize,
    pair_stride: usize,
    /// (pairs, PANEL)
    b: &'a [u32],
    pairs: usize,
    /// Numbers from one row of the result to the next.
    stride: usize,
    /// Columns of the result, at most [`PANEL`].
    width: usize,
    /// Whether to add to what is there; otherwise it is not read.
    adds: bool,
}

/// `count` rows of a tile, at most [`ROWS`]. The caller has made sure that the processor can.
#[cfg(target_arch = "x86_64")]
fn multiply(count: usize, tile: &Tile, out: &mut [MaybeUninit<f32>]) {
    // SAFETY: `product` asserts that the processor has the features.
    unsafe {
        match count {
            1 => multiply_rows::<1>(tile, out),
            2 => multiply_rows::<2>(tile, out),
            3 => multiply_rows::<3>(tile, out),
            4 => multiply_rows::<4>(tile, out),
            5 => multiply_rows::<5>(tile, out),
            6 => multiply_rows::<6>(tile, out),
            7 => multiply_rows::<7>(tile, out),
            8 => multiply_rows::<8>(tile, out),
            9 => multiply_rows::<9>(tile, out),
            10 => multiply_rows::<10>(tile, out),
            11 => multiply_rows::<11>(tile, out),
            _ => multiply_rows::<ROWS>(tile, out),
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn multiply(_: usize, _: &Tile, _: &mut [MaybeUninit<f32>]) {
    unreachable!("is_supported is false");
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply_rows<const N: usize>(tile: &Tile, out: &mut [MaybeUninit<f32>]) {
    use std::arch::x86_64::*;
    let Tile { a, row_stride, pair_stride, b, pairs, stride, width, adds } = *tile;
    assert!(a.len() > (N - 1) * row_stride + (pairs - 1) * pair_stride && b.len() >= pairs * PANEL);
    assert!(width <= PANEL && out.len() >= (N - 1) * stride + width);
    let columns = (1u64 << width) - 1;
    let masks = [columns as __mmask16, (columns >> 16) as __mmask16];
    let mut sums = [[_mm512_setzero_ps(); 2]; N];
    // SAFETY: the assertions above bound every address that is read or written; masks leave out what lies beyond.
    unsafe {
        let (a, b, out) = (a.as_ptr(), b.as_ptr(), out.as_mut_ptr().cast::<f32>());
        for pair in 0..pairs {
            let columns = b.add(pair * PANEL);
            let low: __m512bh = std::mem::transmute(_mm512_loadu_si512(columns.cast()));
            let high: __m512bh = std::mem::transmute(_mm512_loadu_si512(columns.add(16).cast()));
            for (row, [left, right]) in sums.iter_mut().enumerate() {
                let x = *a.add(row * row_stride + pair * pair_stride);
                let x: __m512bh = std::mem::transmute(_mm512_set1_epi32(x as i32));
                *left = _mm512_dpbf16_ps(*left, x, low);
                *right = _mm512_dpbf16_ps(*right, x, high);
            }
        }
        for (row, halves) in sums.iter().enumerate() {
            for (half, sum) in halves.iter().enumerate() {
                let to = out.wrapping_add(row * stride + 16 * half);
                let sum = if adds { _mm512_add_ps(_mm512_maskz_loadu_ps(masks[half], to), *sum) } else { *sum };
                _mm512_mask_storeu_ps(to, masks[half], sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect()
    }

    /// Rounded by another implementation.
    fn rounded(x: f32) -> f64 {
        f64::from(half::bf16::from_f32(x).to_f32())
    }

    #[test]
    fn numbers_are_rounded_as_elsewhere() {
        let bits =
            (0..=u32::MAX).step_by(65_521).chain([0x7f80_0000, 0xff80_0000, 0x7f80_0001, 0x3f80_8000, 0x3f81_8000]);
        for x in bits.map(f32::from_bits) {
            let (ours, theirs) = (half::bf16::from_bits(to_bf16(x) as u16), half::bf16::from_f32(x));
            assert!(ours == theirs || ours.is_nan() && theirs.is_nan(), "{x:e}: {ours}, {theirs}");
        }
    }

    #[test]
    fn products_are_those_of_rounded_numbers_in_every_layout() {
        if !is_supported() {
            println!("skipped: this processor has no AVX512-BF16");
            return;
        }
        let shapes =
            [(1, 1, 1), (3, 5, 2), (12, 32, 64), (13, 33, 7), (47, 70, 2 * PAIRS + 3), (2 * ROWS_AT_ONCE + 5, 40, 31)];
        for (m, n, k) in shapes {
            let (a, b) = (numbers(m * k, 1), numbers(n * k, 2));
            let turned =
                |x: &[f32], rows: usize| -> Vec<f32> { (0..rows * k).map(|i| x[i % rows * k + i / rows]).collect() };
            let (at, bt) = (turned(&a, m), turned(&b, n));
            let plain = |data, rows| (RowMajor { data, rows, cols: k, stride: k }, Side::Plain);
            let transposed = |data, rows| (RowMajor { data, rows: k, cols: rows, stride: rows }, Side::Transposed);
            let y = product(plain(&a, m), plain(&b, n));
            for i in 0..m {
                for j in 0..n {
                    let terms = (0..k).map(|p| rounded(a[i * k + p]) * rounded(b[j * k + p]));
                    let (exact, size) = terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
                    let error = (exact - f64::from(y[i * n + j])).abs();
                    assert!(error <= 4e-6 * size + 1e-30, "{m} {n} {k}: {error:e} of {size}");
                }
            }
            assert_eq!(product(transposed(&at, m), plain(&b, n)), y);
            assert_eq!(product(plain(&a, m), transposed(&bt, n)), y);
            assert_eq!(product(transposed(&at, m), transposed(&bt, n)), y);
        }
        let of = |data, rows, cols| (RowMajor { data, rows, cols, stride: cols }, Side::Plain);
        assert_eq!(product(of(&[], 0, 3), of(&[1.0; 6], 2, 3)), [0f32; 0]);
        assert_eq!(product(of(&[], 2, 0), of(&[], 1, 0)), [0.0; 2]);
        // A piece of a larger array.
        let (wide, narrow) = (numbers(5 * 9, 3), RowMajor { data: &[1.0, 2.0, 3.0], rows: 1, cols: 3, stride: 3 });
        let piece = RowMajor { data: &wide[2..], rows: 5, cols: 3, stride: 9 };
        let alone: Vec<f32> = (0..5).flat_map(|i| wide[9 * i + 2..][..3].to_vec()).collect();
        assert_eq!(
            product((piece, Side::Plain), (narrow, Side::Plain)),
            product(of(&alone, 5, 3), (narrow, Side::Plain))
        );
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        if !is_supported() {
            println!("skipped: this processor has no AVX512-BF16");
            return;
        }
        let row = |data| (RowMajor { data, rows: 1, cols: 3, stride: 3 }, Side::Plain);
        assert!(product(row(&[1.0, f32::NAN, 1.0]), row(&[1.0, 0.0, 1.0]))[0].is_nan());
        assert_eq!(product(row(&[1.0, f32::INFINITY, 1.0]), row(&[1.0; 3])), [f32::INFINITY]);
    }
}

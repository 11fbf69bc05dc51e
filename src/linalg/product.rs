//! Matrix products and Gram accumulation, cut into tiles so that the bytes of the result depend on the shapes alone.

use super::solver::{self, Side};
use super::{Mat, RowMajor, bf16};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par, unzip, zip};
use rayon::prelude::*;
use std::cell::Cell;

// Tile sizes are the fastest of those measured on an AVX-512 core with 2 MiB of L2 cache: about 70 GFLOP/s for products
// and 60 for Gram matrices, where squares of 192 × 512 tokens reached 55 and squares of 768 only 30.

/// Tile of a product, rows × columns. Multiples of the register block of the AVX-512 kernel (48 × 4).
const TILE_ROWS: usize = 384;
const TILE_COLS: usize = 512;
/// Side of the square tiles of a Gram matrix.
const GRAM_TILE: usize = 96;
/// Tokens copied to panels at a time, and those whose products are summed in f32 at most.
const GRAM_TOKENS: usize = 256;
/// Below this many multiplications a product is not worth waking another thread for.
const SMALL: usize = 1 << 20;

thread_local! {
    static ONE_THREAD: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` with all products of this module kept on the calling thread.
///
/// For callers that spread whole matrices over rayon: a thread that waits for the tiles of one matrix would otherwise
/// start on the next matrix, and more matrices than threads would be in memory. The results do not change.
pub fn on_one_thread<R>(work: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            ONE_THREAD.set(self.0);
        }
    }
    let _restore = Restore(ONE_THREAD.replace(true));
    work()
}

/// Runs `work` on every tile, on several threads if it pays.
pub(super) fn for_each_tile<T: Send>(tiles: Vec<T>, multiplications: usize, work: impl Fn(T) + Sync + Send) {
    if tiles.len() < 2 || multiplications < SMALL || ONE_THREAD.get() {
        tiles.into_iter().for_each(work);
    } else {
        tiles.into_par_iter().with_max_len(1).for_each(work);
    }
}

/// Which entries of a product are wanted.
#[derive(Clone, Copy, PartialEq)]
enum Entries {
    All,
    /// On and below the diagonal.
    Lower,
}

/// Disjoint tiles of at most (rows, cols), each with the row and column where it starts.
pub(super) fn cut(mut whole: MatMut<'_, f64>, rows: usize, cols: usize) -> Vec<(usize, usize, MatMut<'_, f64>)> {
    let mut tiles = Vec::new();
    let mut j = 0;
    while whole.ncols() > 0 {
        let width = cols.min(whole.ncols());
        let (mut columns, rest) = whole.split_at_col_mut(width);
        let mut i = 0;
        while columns.nrows() > 0 {
            let height = rows.min(columns.nrows());
            let (tile, below) = columns.split_at_row_mut(height);
            tiles.push((i, j, tile));
            columns = below;
            i += height;
        }
        whole = rest;
        j += width;
    }
    tiles
}

/// lhs · rhs in those tiles that hold `entries`.
fn product(lhs: MatRef<'_, f64>, rhs: MatRef<'_, f64>, entries: Entries) -> Mat {
    assert_eq!(lhs.ncols(), rhs.nrows(), "inner dimensions of a product");
    let mut out = faer::Mat::<f64>::zeros(lhs.nrows(), rhs.ncols());
    let mut tiles = cut(out.as_mut(), TILE_ROWS, TILE_COLS);
    if entries == Entries::Lower {
        tiles.retain(|(i, j, tile)| i + tile.nrows() > *j);
    }
    let multiplications = lhs.nrows() * rhs.ncols() * lhs.ncols();
    for_each_tile(tiles, multiplications, |(i, j, tile)| {
        let (a, b) = (lhs.subrows(i, tile.nrows()), rhs.subcols(j, tile.ncols()));
        matmul(tile, Accum::Replace, a, b, 1.0, Par::Seq);
    });
    Mat(out)
}

impl Mat {
    /// self · other.
    pub fn matmul(&self, other: &Mat) -> Mat {
        solver::product((self, Side::Plain), (other, Side::Plain))
            .unwrap_or_else(|| product(self.view(), other.view(), Entries::All))
    }

    /// selfᵀ · other.
    pub fn tn_matmul(&self, other: &Mat) -> Mat {
        solver::product((self, Side::Transposed), (other, Side::Plain))
            .unwrap_or_else(|| product(self.view().transpose(), other.view(), Entries::All))
    }

    /// self · otherᵀ.
    pub fn nt_matmul(&self, other: &Mat) -> Mat {
        // The kernel walks down the columns of its right operand: a third of the speed when they are strided.
        solver::product((self, Side::Plain), (other, Side::Transposed))
            .unwrap_or_else(|| product(self.view(), other.transpose().view(), Entries::All))
    }

    /// self · otherᵀ where that is known to be symmetric: only the lower triangle is computed, the rest is copied.
    pub fn nt_matmul_symmetric(&self, other: &Mat) -> Mat {
        let mut out = solver::product((self, Side::Plain), (other, Side::Transposed))
            .unwrap_or_else(|| product(self.view(), other.transpose().view(), Entries::Lower));
        out.mirror_lower();
        out
    }

    /// self − a · bᵀ, in place.
    pub fn subtract_nt(&mut self, a: &Mat, b: &Mat) {
        assert_eq!((self.rows(), self.cols(), a.cols()), (a.rows(), b.rows(), b.cols()), "shapes of a product");
        let multiplications = a.rows() * b.rows() * a.cols();
        // As in nt_matmul.
        let (a, b) = (a.view(), b.transpose());
        for_each_tile(cut(self.0.as_mut(), TILE_ROWS, TILE_COLS), multiplications, |(i, j, tile)| {
            let (a, b) = (a.subrows(i, tile.nrows()), b.view().subcols(j, tile.ncols()));
            matmul(tile, Accum::Add, a, b, -1.0, Par::Seq);
        });
    }
}

/// How the products of a Gram matrix are summed over tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GramSums {
    /// In f64, in which products of f32 values are exact.
    F64,
    /// In f32 over 256 tokens at a time, and these sums in f64: half the work. An entry is off by less than
    /// 1e-6 · √(G_ii G_jj), so what a singular matrix leaves of its null space is no longer zero to f64's rounding.
    /// The diagonal is summed in f64; elsewhere numbers below 1e-17, whose products leave the range of f32, count as zero.
    F32Blocks,
    /// As in blocks, of inputs rounded to bf16, which is what a linear sees where products are of such numbers. Only on
    /// processors with AVX512-BF16.
    Bf16Blocks,
}

impl GramSums {
    /// What `tokens` inputs of width `n` are best summed in: blocks where that saves time that counts, and where there are
    /// tokens enough for the matrix to have full rank. `is_bf16` says whether the linears round their inputs.
    pub fn suiting(n: usize, tokens: usize, is_bf16: bool) -> Self {
        match (n >= 512 && tokens >= 4 * n, is_bf16) {
            (true, false) => Self::F32Blocks,
            (true, true) => Self::Bf16Blocks,
            (false, _) => Self::F64,
        }
    }
}

/// Adds Σ x xᵀ over the rows of `x` to the lower triangle of `acc` (n, n).
///
/// `x` is row-major (tokens, n). The upper triangle is left behind: call [`Mat::mirror_lower`] when all tokens are in.
pub fn gram_add(acc: &mut Mat, x: &[f32], sums: GramSums) {
    let n = acc.rows();
    assert_eq!(n, acc.cols(), "a Gram matrix is square");
    if n == 0 || x.is_empty() {
        return;
    }
    assert_eq!(x.len() % n, 0, "rows of {n} values");
    // Larger squares overflow f32, and smaller numbers come too close to those that count as zero.
    let fits = || (1e-9..1e15).contains(&x.iter().fold(0f32, |largest, x| largest.max(x.abs())));
    if sums == GramSums::F64 || !fits() {
        return gram_add_panels(acc, x, f64::from, |tile, a, b| {
            matmul(tile, Accum::Add, a, b.transpose(), 1.0, Par::Seq);
        });
    }
    let is_bf16 = sums == GramSums::Bf16Blocks;
    let diagonal = diagonal(acc, x, |x| if is_bf16 { bf16::rounded(x) } else { x });
    if is_bf16 {
        gram_add_bf16(acc, x);
    } else {
        let flush = |x: f32| if x.abs() < 1e-17 { 0.0 } else { x };
        gram_add_panels(acc, x, flush, |tile, a, b| {
            let mut sums = [0f32; GRAM_TILE * GRAM_TILE];
            let (rows, cols) = (tile.nrows(), tile.ncols());
            let sums = &mut sums[..rows * cols];
            let block = MatMut::from_column_major_slice_mut(&mut *sums, rows, cols);
            matmul(block, Accum::Replace, a, b.transpose(), 1.0, Par::Seq);
            add_block(tile, sums);
        });
    }
    diagonal.into_iter().enumerate().for_each(|(j, sum)| acc.set(j, j, sum));
}

/// Adds column-major `sums` of the tile's shape.
fn add_block(tile: MatMut<'_, f64>, sums: &[f32]) {
    let block = MatRef::from_column_major_slice(sums, tile.nrows(), tile.ncols());
    zip!(tile, block).for_each(|unzip!(to, sum)| *to += f64::from(*sum));
}

/// The diagonal of `acc` and Σ x² of what `rounded` makes of each channel.
fn diagonal(acc: &Mat, x: &[f32], rounded: impl Fn(f32) -> f32) -> Vec<f64> {
    let mut diagonal: Vec<f64> = (0..acc.rows()).map(|j| acc.get(j, j)).collect();
    for row in x.chunks_exact(acc.rows()) {
        diagonal.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(rounded(x)).powi(2));
    }
    diagonal
}

/// The work of [`gram_add`] in bf16.
fn gram_add_bf16(acc: &mut Mat, x: &[f32]) {
    let n = acc.rows();
    for x in x.chunks(n * GRAM_TOKENS) {
        let tokens = x.len() / n;
        let channels = bf16::Panels::of((RowMajor { data: x, rows: tokens, cols: n, stride: n }, Side::Transposed));
        let mut tiles = cut(acc.0.as_mut(), GRAM_TILE, GRAM_TILE);
        tiles.retain(|(i, j, _)| i >= j);
        for_each_tile(tiles, tokens * n * n / 2, |(i, j, tile)| {
            let sums = channels.products(j..j + tile.ncols(), i..i + tile.nrows());
            add_block(tile, &sums);
        });
    }
}

/// The work of [`gram_add`] in f32 and f64: tokens as T in panels of channels, and `add` for every pair of panels.
fn gram_add_panels<T: Copy + Default + Send + Sync>(
    acc: &mut Mat,
    x: &[f32],
    convert: impl Fn(f32) -> T + Sync + Send,
    add: impl Fn(MatMut<'_, f64>, MatRef<'_, T>, MatRef<'_, T>) + Sync + Send,
) {
    let n = acc.rows();
    // One panel per GRAM_TILE channels, each (channels, tokens) with the channels of a token side by side: the kernel then
    // reads memory in order whatever n is.
    let mut panels = vec![T::default(); n * (x.len() / n).min(GRAM_TOKENS)];
    for x in x.chunks(n * GRAM_TOKENS) {
        let tokens = x.len() / n;
        for_each_tile(panels[..x.len()].chunks_mut(GRAM_TILE * tokens).enumerate().collect(), x.len(), |(p, panel)| {
            let width = panel.len() / tokens;
            for (to, from) in panel.chunks_mut(width).zip(x.chunks(n)) {
                let from = &from[p * GRAM_TILE..][..width];
                to.iter_mut().zip(from).for_each(|(to, from)| *to = convert(*from));
            }
        });
        let panel = |start: usize| {
            let width = GRAM_TILE.min(n - start);
            MatRef::from_column_major_slice(&panels[start * tokens..(start + width) * tokens], width, tokens)
        };
        let mut tiles = cut(acc.0.as_mut(), GRAM_TILE, GRAM_TILE);
        tiles.retain(|(i, j, _)| i >= j);
        for_each_tile(tiles, tokens * n * n / 2, |(i, j, tile)| add(tile, panel(i), panel(j)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small integers: every order of summation gives the same f64.
    fn integers(rows: usize, cols: usize, seed: usize) -> Mat {
        Mat::from_fn(rows, cols, |i, j| ((i * 31 + j * 17 + seed * 7 + i * j) % 13) as f64 - 6.0)
    }

    fn naive(a: &Mat, b: &Mat) -> Mat {
        Mat::from_fn(a.rows(), b.cols(), |i, j| (0..a.cols()).map(|k| a.get(i, k) * b.get(k, j)).sum())
    }

    #[test]
    fn products_are_right_across_tiles() {
        for (m, k, n) in [(1, 1, 1), (3, 0, 2), (0, 3, 2), (5, 9, 4), (TILE_ROWS + 1, 3, TILE_COLS + 1), (50, 600, 2)] {
            let (a, b) = (integers(m, k, 1), integers(k, n, 2));
            let expected = naive(&a, &b);
            assert_eq!(a.matmul(&b), expected);
            assert_eq!(a.transpose().tn_matmul(&b), expected);
            assert_eq!(a.nt_matmul(&b.transpose()), expected);
            assert_eq!(on_one_thread(|| a.matmul(&b)), expected);
            let mut rest = expected.clone();
            rest.subtract_nt(&a, &b.transpose());
            assert_eq!(rest, Mat::zeros(m, n));
        }
        for n in [1, 7, TILE_ROWS + 5] {
            let a = integers(n, 6, 3);
            assert_eq!(a.nt_matmul_symmetric(&a), naive(&a, &a.transpose()));
        }
    }

    #[test]
    fn gram_matrices_are_right_across_tiles_and_token_blocks() {
        for (tokens, n) in [(1, 1), (3, 5), (GRAM_TOKENS + 3, 4), (2, GRAM_TILE + 1), (GRAM_TOKENS, 2 * GRAM_TILE + 7)]
        {
            let x = integers(tokens, n, 4);
            let once = naive(&x.transpose(), &x);
            for sums in here([GramSums::F64, GramSums::F32Blocks, GramSums::Bf16Blocks]) {
                let mut gram = Mat::zeros(n, n);
                gram_add(&mut gram, &x.to_f32_rows(), sums);
                gram_add(&mut gram, &[], sums);
                gram_add(&mut gram, &x.to_f32_rows(), sums);
                gram.mirror_lower();
                assert_eq!(gram, Mat::from_fn(n, n, |i, j| 2.0 * once.get(i, j)), "{tokens} {n} {sums:?}");
            }
        }
    }

    /// Those that this processor can.
    fn here<const N: usize>(all: [GramSums; N]) -> impl Iterator<Item = GramSums> {
        let is_there = |sums: &GramSums| *sums != GramSums::Bf16Blocks || bf16::is_supported();
        if !bf16::is_supported() {
            println!("sums in bf16 skipped: this processor has no AVX512-BF16");
        }
        all.into_iter().filter(is_there)
    }

    /// Channels of very different size, and many tokens: the error of an entry is relative to its own two channels.
    #[test]
    fn blocks_summed_in_single_precision_keep_the_digits_of_every_entry() {
        let (n, tokens) = (GRAM_TILE + 9, 4 * GRAM_TOKENS + 5);
        let value = |t: usize, c: usize| ((t * 7919 + c * 104_729) as f64).sin() * 10f64.powi(c as i32 % 9 - 4);
        for sums in here([GramSums::F32Blocks, GramSums::Bf16Blocks]) {
            let mut x = Mat::from_fn(tokens, n, value).to_f32_rows();
            if sums == GramSums::Bf16Blocks {
                x.iter_mut().for_each(|x| *x = bf16::rounded(*x));
            }
            keeps_digits(n, &x, sums);
        }
    }

    fn keeps_digits(n: usize, x: &[f32], sums: GramSums) {
        let sum = |sums| {
            let mut gram = Mat::zeros(n, n);
            gram_add(&mut gram, x, sums);
            gram
        };
        let (exact, blocks) = (sum(GramSums::F64), sum(sums));
        assert_eq!(on_one_thread(|| sum(sums)), blocks);
        let mut largest = 0.0f64;
        for j in 0..n {
            for i in j..n {
                let scale = (exact.get(i, i) * exact.get(j, j)).sqrt();
                largest = largest.max((exact.get(i, j) - blocks.get(i, j)).abs() / scale);
            }
            assert!((exact.get(j, j) - blocks.get(j, j)).abs() <= 1e-14 * exact.get(j, j));
        }
        assert!(largest > 0.0 && largest < 1e-6, "{largest:e}");
        for scale in [1e-25f32, 1e20] {
            let x: Vec<f32> = x.iter().map(|x| x * scale).collect();
            let mut sums = [GramSums::F64, sums].map(|sums| {
                let mut gram = Mat::zeros(n, n);
                gram_add(&mut gram, &x, sums);
                gram
            });
            assert_eq!(sums[0], sums[1], "{scale:e}");
            sums[0].mirror_lower();
            assert!(sums[0].is_finite() && sums[0].max_abs() > 0.0);
        }
    }

    #[test]
    fn one_thread_lasts_as_long_as_the_call() {
        on_one_thread(|| {
            on_one_thread(|| ());
            assert!(ONE_THREAD.get());
        });
        assert!(!ONE_THREAD.get());
        let panicked = std::panic::catch_unwind(|| on_one_thread(|| panic!("on purpose")));
        assert!(panicked.is_err() && !ONE_THREAD.get());
    }
}

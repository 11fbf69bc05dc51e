//! y = x Wᵀ for few rows of x, as in decoding: time is that of reading W, once, in the type that it is held in.

use super::simd::{LANES, fold, for_each_width};
use half::{bf16, f16};
use rayon::prelude::*;

/// Elements of W below which a task is not worth its start.
const TASK: usize = 1 << 16;
/// Rows of x that are multiplied with a row of W while it is in registers.
const AT_ONCE: usize = 4;

/// W (out, width), row-major.
#[derive(Clone, Copy)]
pub enum Held<'a> {
    /// In f32.
    F32(&'a [f32]),
    /// In bf16; products and sums are in f32.
    Bf16(&'a [bf16]),
    /// In f16, finite; as above.
    F16(&'a [f16]),
}

/// x (rows, width) and W (out, width) to y (rows, out). The same bits for any number of threads.
pub fn few_rows_product(x: &[f32], width: usize, weight: Held, out: usize) -> Vec<f32> {
    let rows = x.len() / width.max(1);
    // y transposed: each row of W gives numbers that lie beside each other.
    let mut y = vec![0f32; rows * out];
    if rows == 0 || width == 0 {
        return y;
    }
    // As few tasks as keep all threads busy if one of them is late; each number is one thread's whatever they are.
    let task = (TASK / width).max(out.div_ceil(2 * rayon::current_num_threads())).max(1);
    let work = |(part, y): (usize, &mut [f32])| {
        let mut wide = vec![0f32; width];
        for (i, y) in y.chunks_mut(rows).enumerate() {
            let row = (part * task + i) * width..(part * task + i + 1) * width;
            match weight {
                Held::F32(w) => dots(&w[row], x, y),
                Held::Bf16(w) if rows == 1 => y[0] = dot_bf16(&w[row], x),
                Held::F16(w) if rows == 1 => y[0] = dot_f16(&w[row], x),
                Held::Bf16(w) => {
                    widen_bf16(&w[row], &mut wide);
                    dots(&wide, x, y);
                }
                Held::F16(w) => {
                    widen_f16(&w[row], &mut wide);
                    dots(&wide, x, y);
                }
            }
        }
    };
    if out <= task {
        work((0, &mut y));
    } else {
        y.par_chunks_mut(rows * task).enumerate().for_each(work);
    }
    if rows == 1 {
        return y;
    }
    let mut turned = vec![0f32; rows * out];
    for (o, y) in y.chunks(rows).enumerate() {
        y.iter().enumerate().for_each(|(row, &y)| turned[row * out + o] = y);
    }
    turned
}

/// All of a weight in f32, for products with many rows.
pub fn widened(weight: Held) -> Vec<f32> {
    let part = |range: std::ops::Range<usize>, wide: &mut [f32]| match weight {
        Held::F32(w) => wide.copy_from_slice(&w[range]),
        Held::Bf16(w) => widen_bf16(&w[range], wide),
        Held::F16(w) => widen_f16(&w[range], wide),
    };
    let count = match weight {
        Held::F32(w) => w.len(),
        Held::Bf16(w) => w.len(),
        Held::F16(w) => w.len(),
    };
    let mut wide = vec![0f32; count];
    wide.par_chunks_mut(TASK).enumerate().for_each(|(i, wide)| part(i * TASK..i * TASK + wide.len(), wide));
    wide
}

for_each_width! {
    /// w · xᵣ for every row of x.
    pub fn dots(w: &[f32], x: &[f32], y: &mut [f32]) {
        let n = w.len();
        let (fours, rest) = y.as_chunks_mut::<AT_ONCE>();
        for (i, y) in fours.iter_mut().enumerate() {
            let x = &x[i * AT_ONCE * n..(i + 1) * AT_ONCE * n];
            *y = four(w, &x[..n], &x[n..2 * n], &x[2 * n..3 * n], &x[3 * n..]);
        }
        let first = fours.len() * AT_ONCE;
        for (i, y) in rest.iter_mut().enumerate() {
            *y = one(w, &x[(first + i) * n..(first + i + 1) * n]);
        }
    }
}

/// w · x
#[inline(always)]
fn one(w: &[f32], x: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let ((w, w_rest), (x, x_rest)) = (w.as_chunks::<LANES>(), x.as_chunks::<LANES>());
    for (w, x) in w.iter().zip(x) {
        for lane in 0..LANES {
            lanes[lane] += w[lane] * x[lane];
        }
    }
    let mut sum = fold(lanes, |a, b| a + b);
    for (w, x) in w_rest.iter().zip(x_rest) {
        sum += w * x;
    }
    sum
}

/// w · a, w · b, w · c and w · d, each as [`one`] has it. Written out: lanes in an array of arrays end up in memory.
#[inline(always)]
fn four(w: &[f32], a: &[f32], b: &[f32], c: &[f32], d: &[f32]) -> [f32; 4] {
    let (mut of_a, mut of_b, mut of_c, mut of_d) = ([0f32; LANES], [0f32; LANES], [0f32; LANES], [0f32; LANES]);
    let (w, w_rest) = w.as_chunks::<LANES>();
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let ((c, c_rest), (d, d_rest)) = (c.as_chunks::<LANES>(), d.as_chunks::<LANES>());
    for ((((w, a), b), c), d) in w.iter().zip(a).zip(b).zip(c).zip(d) {
        for lane in 0..LANES {
            of_a[lane] += w[lane] * a[lane];
            of_b[lane] += w[lane] * b[lane];
            of_c[lane] += w[lane] * c[lane];
            of_d[lane] += w[lane] * d[lane];
        }
    }
    let mut sums =
        [fold(of_a, |a, b| a + b), fold(of_b, |a, b| a + b), fold(of_c, |a, b| a + b), fold(of_d, |a, b| a + b)];
    for (i, w) in w_rest.iter().enumerate() {
        sums[0] += w * a_rest[i];
        sums[1] += w * b_rest[i];
        sums[2] += w * c_rest[i];
        sums[3] += w * d_rest[i];
    }
    sums
}

/// w · x, with what makes numbers of w.
#[inline(always)]
fn dot<T: Copy>(w: &[T], x: &[f32], f32_of: impl Fn(T) -> f32) -> f32 {
    // Two sets of lanes: a sum waits for the one before it.
    let (mut first, mut second) = ([0f32; LANES], [0f32; LANES]);
    let (chunks, rest) = w.as_chunks::<{ 2 * LANES }>();
    let (pieces, tail) = x.as_chunks::<{ 2 * LANES }>();
    for (w, x) in chunks.iter().zip(pieces) {
        for lane in 0..LANES {
            first[lane] += f32_of(w[lane]) * x[lane];
            second[lane] += f32_of(w[LANES + lane]) * x[LANES + lane];
        }
    }
    let mut sum = fold(first, |a, b| a + b) + fold(second, |a, b| a + b);
    for (w, x) in rest.iter().zip(tail) {
        sum += f32_of(*w) * x;
    }
    sum
}

for_each_width! {
    /// w · x
    pub fn dot_bf16(w: &[bf16], x: &[f32]) -> f32 {
        dot(w, x, f32_of_bf16)
    }
}

/// w · x
#[allow(unsafe_code, reason = "instructions that are looked for at run time")]
fn dot_f16(w: &[f16], x: &[f32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
        // SAFETY: the processor has the features.
        return unsafe { dot_f16c(w, x) };
    }
    dot_f16_plain(w, x)
}

for_each_width! {
    /// w · x
    pub fn dot_f16_plain(w: &[f16], x: &[f32]) -> f32 {
        dot(w, x, f32_of_f16)
    }
}

/// [`dot`] where the processor has an instruction that widens: the same lanes, the same order, the same bits.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
#[allow(unsafe_code, reason = "loads of eight numbers")]
fn dot_f16c(w: &[f16], x: &[f32]) -> f32 {
    use std::arch::x86_64::{
        _mm_loadu_si128, _mm256_add_ps, _mm256_cvtph_ps, _mm256_loadu_ps, _mm256_mul_ps, _mm256_setzero_ps,
        _mm256_storeu_ps,
    };
    let mut sums = [_mm256_setzero_ps(); 4];
    let (chunks, rest) = w.as_chunks::<{ 2 * LANES }>();
    let (pieces, tail) = x.as_chunks::<{ 2 * LANES }>();
    for (w, x) in chunks.iter().zip(pieces) {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: eight numbers from 8 i on lie within the 32 of each chunk.
            let (w, x) =
                unsafe { (_mm_loadu_si128(w.as_ptr().add(8 * i).cast()), _mm256_loadu_ps(x.as_ptr().add(8 * i))) };
            *sum = _mm256_add_ps(*sum, _mm256_mul_ps(_mm256_cvtph_ps(w), x));
        }
    }
    let mut lanes = [0f32; 2 * LANES];
    for (lanes, sum) in lanes.chunks_exact_mut(8).zip(sums) {
        // SAFETY: a chunk has room for eight numbers.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
    }
    let half = |first: usize| std::array::from_fn(|i| lanes[first + i]);
    let mut sum = fold(half(0), |a: f32, b| a + b) + fold(half(LANES), |a: f32, b| a + b);
    for (w, x) in rest.iter().zip(tail) {
        sum += f32_of_f16(*w) * x;
    }
    sum
}

for_each_width! {
    /// w in f32.
    pub fn widen_bf16(w: &[bf16], wide: &mut [f32]) {
        for (wide, w) in wide.iter_mut().zip(w) {
            *wide = f32_of_bf16(*w);
        }
    }
}

for_each_width! {
    /// w in f32.
    pub fn widen_f16(w: &[f16], wide: &mut [f32]) {
        for (wide, w) in wide.iter_mut().zip(w) {
            *wide = f32_of_f16(*w);
        }
    }
}

/// bf16 is the upper half of f32. What half has for it calls a function.
#[inline(always)]
fn f32_of_bf16(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

/// A finite f16: its bits in the places of those of f32, whose exponent begins 112 lower.
#[inline(always)]
fn f32_of_f16(x: f16) -> f32 {
    const SCALE: f32 = f32::from_bits((127 + 112) << 23);
    let bits = u32::from(x.to_bits());
    f32::from_bits((bits & 0x8000) << 16 | (bits & 0x7fff) << 13) * SCALE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: f32) -> Vec<f32> {
        (0..n).map(|i| ((i as f32 + 1.0) * seed).sin()).collect()
    }

    /// Against sums in f64, at sizes around those that lanes and tasks are cut by.
    #[test]
    fn it_is_the_product_at_every_size() {
        for (rows, width, out) in
            [(1, 1, 1), (1, 33, 5), (2, 70, 3), (4, 64, 7), (7, 100, 4), (3, 300, 701), (1, 577, 431)]
        {
            let (x, w) = (numbers(rows * width, 0.7), numbers(out * width, 1.3));
            let narrow: Vec<bf16> = w.iter().copied().map(bf16::from_f32).collect();
            let half: Vec<f16> = w.iter().copied().map(f16::from_f32).collect();
            let of_bf16: Vec<f32> = narrow.iter().map(|w| w.to_f32()).collect();
            let of_f16: Vec<f32> = half.iter().map(|w| w.to_f32()).collect();
            for (held, w) in [(Held::F32(&w), &w), (Held::Bf16(&narrow), &of_bf16), (Held::F16(&half), &of_f16)] {
                let y = few_rows_product(&x, width, held, out);
                for (i, y) in y.iter().enumerate() {
                    let (r, o) = (i / out, i % out);
                    let row = |m: &[f32], i: usize| m[i * width..(i + 1) * width].to_vec();
                    let pairs = row(&x, r).into_iter().zip(row(w, o));
                    let wanted: f64 = pairs.map(|(x, w)| f64::from(x) * f64::from(w)).sum();
                    assert!((f64::from(*y) - wanted).abs() < 1e-6 * width as f64, "{rows} {width} {out}: {y} {wanted}");
                }
            }
        }
        assert_eq!(few_rows_product(&[], 4, Held::F32(&[1.0; 8]), 2), Vec::<f32>::new());
    }

    #[test]
    fn every_way_to_multiply_f16_gives_the_same_bits() {
        for width in [1, 31, 64, 577] {
            let (x, w) = (numbers(width, 0.9), numbers(width, 1.7));
            let w: Vec<f16> = w.into_iter().map(f16::from_f32).collect();
            assert_eq!(dot_f16(&w, &x).to_bits(), dot_f16_plain(&w, &x).to_bits(), "{width}");
        }
    }

    #[test]
    fn every_finite_number_of_16_bits_is_widened_exactly() {
        for bits in 0..=u16::MAX {
            let (a, b) = (f16::from_bits(bits), bf16::from_bits(bits));
            if a.is_finite() {
                assert_eq!(f32_of_f16(a).to_bits(), a.to_f32().to_bits(), "{a}");
            }
            if b.is_finite() {
                assert_eq!(f32_of_bf16(b).to_bits(), b.to_f32().to_bits(), "{b}");
            }
        }
    }
}

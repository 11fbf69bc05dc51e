//! What kernels over f32 slices are made of: exponentials and sums, and [`for_each_width`], which compiles a kernel for
//! several instruction sets of which the widest is chosen at run time.
//!
//! Sums run in a fixed number of lanes and no multiply-add is fused, so every machine gives the same bits.

use std::f32::consts::LOG2_E as LOG2_E_32;
use std::f64::consts::LOG2_E;

/// Numbers worked on at once; slices that are no multiple of it pay for the rest one by one.
pub const LANES: usize = 16;

/// Compiles a function for AVX-512, for AVX2 and for the least the target has. What its body calls must be
/// `#[inline(always)]`, closures included, or it is compiled for the last only.
macro_rules! for_each_width {
    ($(#[$doc:meta])* pub fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        #[allow(unsafe_code, reason = "instructions that are looked for at run time")]
        pub fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn plain($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    plain($($arg),*)
                }
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    plain($($arg),*)
                }
                if is_x86_feature_detected!("avx512f") {
                    // SAFETY: the processor has the feature.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has the feature.
                    return unsafe { avx2($($arg),*) };
                }
            }
            plain($($arg),*)
        }
    };
}
pub(crate) use for_each_width;

/// e^x to about one unit in the last place: 2^n times the Taylor polynomial of the rest, which is at most ln 2 / 2.
/// 0 below −87, infinite above 88, NaN for NaN.
#[inline(always)]
pub fn exp32(x: f32) -> f32 {
    // Adding 1.5 · 2^23 leaves the nearest integer in the lowest bits.
    const MAGIC: f32 = 12_582_912.0;
    // ln 2 in two parts; the product of the first with any n here is exact.
    const HIGH: f32 = 0.693_359_4;
    const LOW: f32 = (std::f64::consts::LN_2 - HIGH as f64) as f32;
    let shifted = x * LOG2_E_32 + MAGIC;
    let n = shifted - MAGIC;
    let r = (x - n * HIGH) - n * LOW;
    let mut p = 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    let y = p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    let y = if x < -87.0 { 0.0 } else { y };
    if x > 88.0 { f32::INFINITY } else { y }
}

/// [`exp32`] in f64, for x ≤ 0; 0 below −708.
#[inline(always)]
pub fn exp64(x: f64) -> f64 {
    const MAGIC: f64 = 6_755_399_441_055_744.0;
    // ln 2 in two parts; the second has the digits that LN_2 lacks.
    const HIGH: f64 = 0.693_147_182_464_599_6;
    const LOW: f64 = -1.904_654_299_957_768e-9;
    let shifted = x * LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = (x - n * HIGH) - n * LOW;
    let mut p = 1.0 / 6_227_020_800.0;
    p = p * r + 1.0 / 479_001_600.0;
    p = p * r + 1.0 / 39_916_800.0;
    p = p * r + 1.0 / 3_628_800.0;
    p = p * r + 1.0 / 362_880.0;
    p = p * r + 1.0 / 40_320.0;
    p = p * r + 1.0 / 5_040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    let y = p * f64::from_bits((shifted.to_bits() << 52).wrapping_add(1023 << 52));
    if x < -708.0 { 0.0 } else { y }
}

/// tanh x to about two units in the last place: a series near 0, where 1 − 2 / (1 + e^2x) would cancel.
#[inline(always)]
pub fn tanh32(x: f32) -> f32 {
    let magnitude = x.abs();
    let large = 1.0 - 2.0 / (1.0 + exp32(2.0 * magnitude));
    let s = x * x;
    let mut p = -1382.0 / 155_925.0;
    p = p * s + 62.0 / 2835.0;
    p = p * s - 17.0 / 315.0;
    p = p * s + 2.0 / 15.0;
    p = p * s - 1.0 / 3.0;
    p = p * s + 1.0;
    let small = magnitude * p;
    let y = if magnitude < 0.3 { small } else { large };
    if x < 0.0 { -y } else { y }
}

/// Combines the lanes pairwise: four steps that wait for each other instead of fifteen. Written out, lanes stay in registers;
/// in a loop they go through memory.
#[inline(always)]
pub fn fold<T: Copy>(lanes: [T; LANES], combine: impl Fn(T, T) -> T) -> T {
    let [a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, b4, b5, b6, b7] = lanes;
    let (a0, a1, a2, a3) = (combine(a0, b0), combine(a1, b1), combine(a2, b2), combine(a3, b3));
    let (a4, a5, a6, a7) = (combine(a4, b4), combine(a5, b5), combine(a6, b6), combine(a7, b7));
    let (a0, a1, a2, a3) = (combine(a0, a4), combine(a1, a5), combine(a2, a6), combine(a3, a7));
    combine(combine(a0, a2), combine(a1, a3))
}

/// Σ f(x)
#[inline(always)]
pub fn sum_of(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f(x);
        }
    }
    let mut sum = fold(lanes, |a, b| a + b);
    for &x in rest {
        sum += f(x);
    }
    sum
}

/// The largest element, NaN left out; −∞ for none.
#[inline(always)]
pub fn max_of(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, x);
        }
    }
    let mut max = fold(lanes, larger);
    for &x in rest {
        max = larger(max, x);
    }
    max
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_and_hyperbolic_tangents_are_exact_to_rounding() {
        let values = |range: f32| (0..10007).map(move |i| ((i * 7919 % 10007) as f32 / 5003.0 - 1.0) * range);
        for x in values(87.0) {
            let error = f64::from(exp32(x)) / f64::from(x).exp() - 1.0;
            assert!(error.abs() < 1.5e-7, "exp32({x}) off by {error:e}");
            let x = -f64::from(x).abs() * 8.1;
            let error = exp64(x) / x.exp() - 1.0;
            assert!(error.abs() < 1e-15, "exp64({x}) off by {error:e}");
        }
        for x in [0.1, 1.0, 30.0].into_iter().flat_map(values) {
            let wanted = f64::from(x).tanh();
            assert!((f64::from(tanh32(x)) - wanted).abs() <= 5e-7 * wanted.abs(), "tanh32({x}) for {wanted}");
        }
        assert_eq!((exp32(0.0), exp64(0.0)), (1.0, 1.0));
        assert_eq!((exp32(f32::NEG_INFINITY), exp64(f64::NEG_INFINITY)), (0.0, 0.0));
        assert_eq!((exp32(-1e30), exp64(-1e300)), (0.0, 0.0));
        assert_eq!((exp32(1e30), exp32(f32::INFINITY)), (f32::INFINITY, f32::INFINITY));
        assert_eq!((tanh32(f32::INFINITY), tanh32(-1e30)), (1.0, -1.0));
        assert!(exp32(f32::NAN).is_nan() && exp64(f64::NAN).is_nan() && tanh32(f32::NAN).is_nan());
    }

    #[test]
    fn sums_and_maxima_are_those_of_all_elements_at_every_length() {
        for len in 0..70 {
            let x: Vec<f32> = (0..len).map(|i| ((i * 29) % 71) as f32 - 35.0).collect();
            assert_eq!(sum_of(&x, |x| 2.0 * x), 2.0 * x.iter().sum::<f32>(), "{len}");
            assert_eq!(max_of(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max), "{len}");
        }
        assert_eq!(max_of(&[f32::NAN, 1.0, f32::NAN]), 1.0);
    }
}

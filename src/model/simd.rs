//! Exponentials and sums over slices, compiled for several instruction sets of which the widest is chosen at run time.
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
pub(super) use for_each_width;

mod back;
pub use back::{
    add_difference, add_softmax, normalise_back, scaled, silu_times_back, softmax_back, sum, sum_of_squares,
};

/// e^x to about one unit in the last place: 2^n times the Taylor polynomial of the rest, which is at most ln 2 / 2.
/// 0 below −87, infinite above 88, NaN for NaN.
#[inline(always)]
pub(super) fn exp32(x: f32) -> f32 {
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
fn exp64(x: f64) -> f64 {
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
fn tanh32(x: f32) -> f32 {
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

/// Combines the lanes pairwise: four steps that wait for each other instead of fifteen.
#[inline(always)]
pub(super) fn fold<T: Copy>(mut lanes: [T; LANES], combine: impl Fn(T, T) -> T) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = combine(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Σ f(x)
#[inline(always)]
fn sum_of(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
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
fn max_of(x: &[f32]) -> f32 {
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

for_each_width! {
    /// The largest element, NaN left out; −∞ for none.
    pub fn max(x: &[f32]) -> f32 {
        max_of(x)
    }
}

for_each_width! {
    /// x ← exp(scale · (x − max)) / Σ, scale > 0.
    pub fn softmax(x: &mut [f32], scale: f32) {
        let max = max_of(x);
        for x in x.iter_mut() {
            *x = exp32(scale * (*x - max));
        }
        let factor = 1.0 / sum_of(x, #[inline(always)] |x| x);
        for x in x.iter_mut() {
            *x *= factor;
        }
    }
}

for_each_width! {
    /// x ← cap · tanh(scale · x / cap)
    pub fn soft_cap(x: &mut [f32], scale: f32, cap: f32) {
        let inner = scale / cap;
        for x in x.iter_mut() {
            *x = cap * tanh32(*x * inner);
        }
    }
}

for_each_width! {
    /// log Σ exp(x), each exponential and the sum in f64.
    pub fn log_sum_exp(x: &[f32]) -> f64 {
        let max = f64::from(max_of(x));
        let (chunks, rest) = x.as_chunks::<LANES>();
        let mut lanes = [0f64; LANES];
        for chunk in chunks {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane += exp64(f64::from(x) - max);
            }
        }
        let mut sum = fold(lanes, |a, b| a + b);
        for &x in rest {
            sum += exp64(f64::from(x) - max);
        }
        max + sum.ln()
    }
}

for_each_width! {
    /// KL(p ‖ q) in nats, from logits and their [`log_sum_exp`]s, in f64.
    pub fn divergence(p: &[f32], p_lse: f64, q: &[f32], q_lse: f64) -> f64 {
        let ((p_chunks, p_rest), (q_chunks, q_rest)) = (p.as_chunks::<LANES>(), q.as_chunks::<LANES>());
        let mut lanes = [0f64; LANES];
        for (p, q) in p_chunks.iter().zip(q_chunks) {
            for ((lane, &p), &q) in lanes.iter_mut().zip(p).zip(q) {
                let log_p = f64::from(p) - p_lse;
                *lane += exp64(log_p) * (log_p - (f64::from(q) - q_lse));
            }
        }
        let mut sum = fold(lanes, |a, b| a + b);
        for (&p, &q) in p_rest.iter().zip(q_rest) {
            let log_p = f64::from(p) - p_lse;
            sum += exp64(log_p) * (log_p - (f64::from(q) - q_lse));
        }
        sum
    }
}

for_each_width! {
    /// y ← x · sigmoid(x)
    pub fn silu(x: &[f32], y: &mut [f32]) {
        for (&x, y) in x.iter().zip(y) {
            *y = x / (1.0 + exp32(-x));
        }
    }
}

for_each_width! {
    /// y ← x · sigmoid(x) · up
    pub fn silu_times(x: &[f32], up: &[f32], y: &mut [f32]) {
        for ((&x, &up), y) in x.iter().zip(up).zip(y) {
            *y = x / (1.0 + exp32(-x)) * up;
        }
    }
}

for_each_width! {
    /// GELU's tanh approximation: ½ x (1 + tanh u) = x · sigmoid(2u), u = √(2/π) (x + 0.044715 x³).
    pub fn gelu_tanh(x: &[f32], y: &mut [f32]) {
        const TWICE: f32 = 1.595_769_2;
        for (&x, y) in x.iter().zip(y) {
            *y = x / (1.0 + exp32(-TWICE * (x + 0.044715 * x * x * x)));
        }
    }
}

for_each_width! {
    /// Exact GELU, x Φ(x), with Φ to 1e-7: Abramowitz and Stegun 7.1.26, erfc(z) = (a₁ t + … + a₅ t⁵) exp(−z²) for z ≥ 0,
    /// t = 1 / (1 + p z).
    pub fn gelu_erf(x: &[f32], y: &mut [f32]) {
        const P: f32 = 0.327_591_1;
        const A: [f32; 5] = [0.254_829_6, -0.284_496_74, 1.421_413_7, -1.453_152, 1.061_405_4];
        for (&x, y) in x.iter().zip(y) {
            let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
            let t = 1.0 / (1.0 + P * z);
            let series = t * (A[0] + t * (A[1] + t * (A[2] + t * (A[3] + t * A[4]))));
            let half = 0.5 * series * exp32(-z * z);
            *y = x * if x < 0.0 { half } else { 1.0 - half };
        }
    }
}

for_each_width! {
    /// y ← x / √(mean x² + eps) · weight
    pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
        let sum = sum_of(x, #[inline(always)] |x| x * x);
        let rms = (sum / x.len() as f32 + eps).sqrt();
        for ((&x, &weight), y) in x.iter().zip(weight).zip(y) {
            *y = x / rms * weight;
        }
    }
}

for_each_width! {
    /// sum ← x + y
    pub fn add(x: &[f32], y: &[f32], sum: &mut [f32]) {
        for ((&x, &y), sum) in x.iter().zip(y).zip(sum) {
            *sum = x + y;
        }
    }
}

for_each_width! {
    /// Whether no element is NaN or infinite.
    pub fn all_finite(x: &[f32]) -> bool {
        // An integer maximum vectorises where a chain of float comparisons with early exit would not.
        let mut largest = 0;
        for &x in x {
            let magnitude = x.to_bits() & 0x7fff_ffff;
            largest = if magnitude > largest { magnitude } else { largest };
        }
        largest < 0x7f80_0000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values on both sides of zero, of every size that occurs.
    fn values(len: usize, range: f32) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 % 10007) as f32 / 5003.0 - 1.0) * range).collect()
    }

    #[test]
    fn exponentials_are_exact_to_rounding() {
        for x in values(10007, 87.0) {
            let error = f64::from(exp32(x)) / f64::from(x).exp() - 1.0;
            assert!(error.abs() < 1.5e-7, "exp32({x}) off by {error:e}");
            let x = -f64::from(x).abs() * 8.1;
            let error = exp64(x) / x.exp() - 1.0;
            assert!(error.abs() < 1e-15, "exp64({x}) off by {error:e}");
        }
        assert_eq!((exp32(0.0), exp64(0.0)), (1.0, 1.0));
        assert_eq!((exp32(f32::NEG_INFINITY), exp64(f64::NEG_INFINITY)), (0.0, 0.0));
        assert_eq!((exp32(-1e30), exp64(-1e300)), (0.0, 0.0));
        assert_eq!((exp32(1e30), exp32(f32::INFINITY)), (f32::INFINITY, f32::INFINITY));
        assert!(exp32(f32::NAN).is_nan() && exp64(f64::NAN).is_nan());
    }

    #[test]
    fn softmax_and_log_sums_agree_with_f64_at_every_length() {
        for len in (1..70).chain([1000]) {
            let (x, q) = (values(len, 9.0), values(len + 3, 5.0)[3..].to_vec());
            let exact = |x: &[f32]| x.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
            assert!((log_sum_exp(&x) - exact(&x)).abs() < 1e-13, "{len}");
            let mut soft = x.clone();
            softmax(&mut soft, 0.5);
            let halved: Vec<f32> = x.iter().map(|x| x / 2.0).collect();
            let lse = exact(&halved);
            for (soft, x) in soft.iter().zip(&halved) {
                assert!((f64::from(*soft) / (f64::from(*x) - lse).exp() - 1.0).abs() < 1e-6, "{len}");
            }
            let (p_lse, q_lse) = (exact(&x), exact(&q));
            let term = |(&p, &q): (&f32, &f32)| {
                let log_p = f64::from(p) - p_lse;
                log_p.exp() * (log_p - f64::from(q) + q_lse)
            };
            let expected: f64 = x.iter().zip(&q).map(term).sum();
            assert!((divergence(&x, p_lse, &q, q_lse) - expected).abs() < 1e-13, "{len}");
        }
    }

    #[test]
    fn activations_and_norm_agree_with_f64() {
        let (x, up) = (values(1003, 30.0), values(1003, 2.0));
        let (mut plain, mut gated, mut gelu, mut norm) = (x.clone(), x.clone(), x.clone(), x.clone());
        silu(&x, &mut plain);
        silu_times(&x, &up, &mut gated);
        gelu_tanh(&x, &mut gelu);
        rms_norm(&x, &up, 1e-5, &mut norm);
        let rms = (x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / x.len() as f64 + 1e-5).sqrt();
        for i in 0..x.len() {
            let (v, w) = (f64::from(x[i]), f64::from(up[i]));
            let silu = v / (1.0 + (-v).exp());
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v.powi(3));
            let close = |got: f32, wanted: f64| (f64::from(got) - wanted).abs() <= 1e-6 * wanted.abs().max(1e-6);
            assert!(close(plain[i], silu) && close(gated[i], silu * w), "silu({v})");
            // 1 + tanh cancels where the sigmoid does not; compare where f64 still has digits.
            assert!((f64::from(gelu[i]) - 0.5 * v * (1.0 + inner.tanh())).abs() <= 3e-6 * v.abs(), "gelu({v})");
            assert!(close(norm[i], v / rms * w), "{i}");
        }
    }

    #[test]
    fn exact_gelu_agrees_with_f64() {
        // erf by its series, which converges everywhere.
        let erf = |z: f64| {
            let (mut term, mut sum) = (z, z);
            for n in 1..200 {
                term *= -z * z / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            sum * 2.0 / std::f64::consts::PI.sqrt()
        };
        let x = values(1003, 5.0);
        let mut y = x.clone();
        gelu_erf(&x, &mut y);
        for (&x, &y) in x.iter().zip(&y) {
            let v = f64::from(x);
            let wanted = 0.5 * v * (1.0 + erf(v / std::f64::consts::SQRT_2));
            assert!((f64::from(y) - wanted).abs() <= 5e-7 * v.abs(), "gelu({v}): {y} for {wanted}");
        }
        let mut bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -30.0];
        gelu_erf(&bad.clone(), &mut bad);
        assert!(bad[0].is_nan() && bad[1] == f32::INFINITY && bad[3] == 0.0);
    }

    #[test]
    fn soft_caps_agree_with_f64() {
        for range in [0.1, 1.0, 30.0, 4000.0] {
            let x = values(1003, range);
            let mut capped = x.clone();
            soft_cap(&mut capped, 0.5, 20.0);
            for (x, y) in x.iter().zip(&capped) {
                let wanted = 20.0 * (f64::from(*x) / 40.0).tanh();
                assert!((f64::from(*y) - wanted).abs() <= 5e-7 * wanted.abs(), "{x}: {y} for {wanted}");
            }
        }
        let mut bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        soft_cap(&mut bad, 1.0, 3.0);
        assert!(bad[0].is_nan() && bad[1..] == [3.0, -3.0]);
    }

    #[test]
    fn what_is_not_finite_is_never_hidden() {
        for at in [0, 3, 15, 16, 40] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = values(41, 1.0);
                assert!(all_finite(&x));
                x[at] = bad;
                assert!(!all_finite(&x), "{bad} at {at}");
                let mut soft = x.clone();
                softmax(&mut soft, 1.0);
                // A score of −∞ means that a key is not looked at.
                assert_eq!(all_finite(&soft), bad == f32::NEG_INFINITY, "{bad} at {at}");
                assert_eq!(log_sum_exp(&x).is_finite(), bad == f32::NEG_INFINITY, "{bad} at {at}");
                let mut y = x.clone();
                silu(&x, &mut y);
                assert!(!all_finite(&y), "{bad} at {at}");
            }
        }
        assert_eq!(max(&[]), f32::NEG_INFINITY);
    }
}

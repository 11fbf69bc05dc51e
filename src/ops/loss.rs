//! Losses on rows of logits: values in f64, and gradients.
//!
//! ```text
//! lse(z) = log Σ exp z      KL(p ‖ q) = Σ softmax(p) (log softmax(p) − log softmax(q))      ∂KL/∂q = softmax(q) − softmax(p)
//! −log softmax(z)_i = lse(z) − z_i                                                          ∂/∂z = softmax(z) − onehot_i
//! ```
//! p, q and z are logits. Gradients are added, in f32, to what is there.

use crate::linalg::simd::{self, LANES, exp64, fold, max_of};

/// The first of the largest elements.
pub fn argmax(row: &[f32]) -> usize {
    let largest = max(row);
    row.iter().position(|&x| x == largest).unwrap_or(0)
}

simd::for_each_width! {
    /// The largest element, NaN left out; −∞ for none.
    pub fn max(x: &[f32]) -> f32 {
        max_of(x)
    }
}

simd::for_each_width! {
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

simd::for_each_width! {
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

simd::for_each_width! {
    /// sum ← sum + weight · exp(x − lse), the exponential in f64.
    pub fn add_softmax(x: &[f32], lse: f64, weight: f64, sum: &mut [f32]) {
        for (&x, sum) in x.iter().zip(sum) {
            *sum += (weight * exp64(f64::from(x) - lse)) as f32;
        }
    }
}

simd::for_each_width! {
    /// sum ← sum + weight · (exp(q − q_lse) − exp(p − p_lse)), each in f64: where p and q are close, little is left.
    pub fn add_difference(q: &[f32], q_lse: f64, p: &[f32], p_lse: f64, weight: f64, sum: &mut [f32]) {
        for ((&q, &p), sum) in q.iter().zip(p).zip(sum) {
            *sum += (weight * (exp64(f64::from(q) - q_lse) - exp64(f64::from(p) - p_lse))) as f32;
        }
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
    fn values_and_gradients_agree_with_f64_at_every_length() {
        for len in (1..70).chain([1000]) {
            let (x, q) = (values(len, 9.0), values(len + 3, 5.0)[3..].to_vec());
            let exact = |x: &[f32]| x.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
            assert!((log_sum_exp(&x) - exact(&x)).abs() < 1e-13, "{len}");
            let (p_lse, q_lse) = (exact(&x), exact(&q));
            let term = |(&p, &q): (&f32, &f32)| {
                let log_p = f64::from(p) - p_lse;
                log_p.exp() * (log_p - f64::from(q) + q_lse)
            };
            let expected: f64 = x.iter().zip(&q).map(term).sum();
            assert!((divergence(&x, p_lse, &q, q_lse) - expected).abs() < 1e-13, "{len}");
            let mut sums = vec![1f32; len];
            add_softmax(&x, p_lse, 0.5, &mut sums);
            add_difference(&q, q_lse, &x, p_lse, 2.0, &mut sums);
            for i in 0..len {
                let (q, p) = ((f64::from(q[i]) - q_lse).exp(), (f64::from(x[i]) - p_lse).exp());
                let expected = 1.0 + 0.5 * p + 2.0 * (q - p);
                assert!((f64::from(sums[i]) - expected).abs() < 1e-6, "{i} of {len}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_never_hidden() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = values(41, 1.0);
            x[16] = bad;
            assert_eq!(log_sum_exp(&x).is_finite(), bad == f32::NEG_INFINITY, "{bad}");
        }
        assert_eq!(log_sum_exp(&[]), f64::NEG_INFINITY);
    }

    #[test]
    fn the_first_of_the_largest_is_found() {
        assert_eq!(argmax(&[1.0, f32::NAN, 3.0, -1.0, 3.0]), 2);
        assert_eq!((argmax(&[]), argmax(&[f32::NAN])), (0, 0));
    }
}

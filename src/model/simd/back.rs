//! What training needs: sums, and the backward passes of norms, gates and losses.

use super::{LANES, exp32, exp64, fold, sum_of};

for_each_width! {
    /// Σ x
    pub fn sum(x: &[f32]) -> f32 {
        sum_of(x, #[inline(always)] |x| x)
    }
}

for_each_width! {
    /// Σ (x − mean)²
    pub fn sum_of_squares(x: &[f32], mean: f32) -> f32 {
        sum_of(x, #[inline(always)] |x| (x - mean) * (x - mean))
    }
}

for_each_width! {
    /// y ← (x − mean) · scale · weight
    pub fn scaled(x: &[f32], mean: f32, scale: f32, weight: &[f32], y: &mut [f32]) {
        for ((&x, &weight), y) in x.iter().zip(weight).zip(y) {
            *y = (x - mean) * scale * weight;
        }
    }
}

for_each_width! {
    /// on_x ← scale · (g w − mean(g w z) z), less scale · mean(g w) if `centred`, where z = (x − mean) · scale.
    pub fn normalise_back(
        x: &[f32],
        mean: f32,
        scale: f32,
        centred: bool,
        w: &[f32],
        g: &[f32],
        on_x: &mut [f32]
    ) {
        for ((&g, &w), on_x) in g.iter().zip(w).zip(on_x.iter_mut()) {
            *on_x = g * w;
        }
        let width = x.len() as f32;
        let shift = if centred { sum_of(on_x, #[inline(always)] |x| x) / width } else { 0.0 };
        let (mut lanes, mut along) = ([0f32; LANES], 0f32);
        let ((x_chunks, x_rest), (g_chunks, g_rest)) = (x.as_chunks::<LANES>(), on_x.as_chunks::<LANES>());
        for (x, g) in x_chunks.iter().zip(g_chunks) {
            for ((lane, &x), &g) in lanes.iter_mut().zip(x).zip(g) {
                *lane += (x - mean) * g;
            }
        }
        for (&x, &g) in x_rest.iter().zip(g_rest) {
            along += (x - mean) * g;
        }
        let along = (fold(lanes, |a, b| a + b) + along) * scale * scale / width;
        for (&x, on_x) in x.iter().zip(on_x) {
            *on_x = scale * (*on_x - shift - along * (x - mean));
        }
    }
}

for_each_width! {
    /// The gradients on gate and up of silu(gate) · up, on which it is g.
    pub fn silu_times_back(gate: &[f32], up: &[f32], g: &[f32], on_gate: &mut [f32], on_up: &mut [f32]) {
        for ((((&x, &up), &g), on_gate), on_up) in gate.iter().zip(up).zip(g).zip(on_gate).zip(on_up) {
            let sigmoid = 1.0 / (1.0 + exp32(-x));
            *on_up = g * x * sigmoid;
            *on_gate = g * up * sigmoid * (1.0 + x * (1.0 - sigmoid));
        }
    }
}

for_each_width! {
    /// x ← the gradient on scores whose softmax is p and has the gradient g: p (g − Σ g p).
    pub fn softmax_back(p: &[f32], g: &[f32], x: &mut [f32]) {
        for ((&p, &g), x) in p.iter().zip(g).zip(x.iter_mut()) {
            *x = p * g;
        }
        let mean = sum_of(x, #[inline(always)] |x| x);
        for (&p, x) in p.iter().zip(x) {
            *x -= p * mean;
        }
    }
}

for_each_width! {
    /// sum ← sum + weight · exp(x − lse), the exponential in f64.
    pub fn add_softmax(x: &[f32], lse: f64, weight: f64, sum: &mut [f32]) {
        for (&x, sum) in x.iter().zip(sum) {
            *sum += (weight * exp64(f64::from(x) - lse)) as f32;
        }
    }
}

for_each_width! {
    /// sum ← sum + weight · (exp(q − q_lse) − exp(p − p_lse)), each in f64: where p and q are close, little is left.
    pub fn add_difference(q: &[f32], q_lse: f64, p: &[f32], p_lse: f64, weight: f64, sum: &mut [f32]) {
        for ((&q, &p), sum) in q.iter().zip(p).zip(sum) {
            *sum += (weight * (exp64(f64::from(q) - q_lse) - exp64(f64::from(p) - p_lse))) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{log_sum_exp, softmax};
    use super::*;

    fn values(len: usize, phase: f32) -> Vec<f32> {
        (0..len).map(|i| 2.0 * (phase + 1.7 * i as f32).sin()).collect()
    }

    /// Compares `found` with central differences of the f64 function `f` at `x`.
    fn check(f: impl Fn(&[f64]) -> f64, x: &[f32], found: &[f32], what: &str) {
        let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        for (i, &found) in found.iter().enumerate() {
            let at = |h: f64| {
                let mut x = x.clone();
                x[i] += h;
                f(&x)
            };
            let expected = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((f64::from(found) - expected).abs() < 2e-5, "{what} {i} of {}: {found} for {expected}", x.len());
        }
    }

    fn dot(x: &[f64], g: &[f32]) -> f64 {
        x.iter().zip(g).map(|(x, &g)| x * f64::from(g)).sum()
    }

    #[test]
    fn norms_go_back_as_differences_do() {
        for len in [1, 5, 16, 37] {
            let (x, w, g) = (values(len, 0.3), values(len, 1.0), values(len, 2.0));
            for centred in [false, true] {
                let eps = 0.1;
                let moments = |x: &[f64]| {
                    let mean = if centred { x.iter().sum::<f64>() / len as f64 } else { 0.0 };
                    (mean, 1.0 / (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / len as f64 + eps).sqrt())
                };
                let f = |x: &[f64]| {
                    let (mean, scale) = moments(x);
                    let y: Vec<f64> = x.iter().zip(&w).map(|(x, &w)| (x - mean) * scale * f64::from(w)).collect();
                    dot(&y, &g)
                };
                let mean = if centred { sum(&x) / len as f32 } else { 0.0 };
                let scale = 1.0 / (sum_of_squares(&x, mean) / len as f32 + eps as f32).sqrt();
                let mut found = vec![0f32; len];
                normalise_back(&x, mean, scale, centred, &w, &g, &mut found);
                check(f, &x, &found, "norm");
                scaled(&x, mean, scale, &w, &mut found);
                let value: f64 = found.iter().zip(&g).map(|(&y, &g)| f64::from(y) * f64::from(g)).sum();
                let wanted = f(&x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
                assert!((value - wanted).abs() < 1e-4, "{len} {centred}: {value} for {wanted}");
            }
        }
    }

    #[test]
    fn gates_and_softmax_go_back_as_differences_do() {
        for len in [1, 5, 16, 37] {
            let (x, up, g) = (values(len, 0.3), values(len, 1.0), values(len, 2.0));
            let (mut on_gate, mut on_up) = (vec![0f32; len], vec![0f32; len]);
            silu_times_back(&x, &up, &g, &mut on_gate, &mut on_up);
            let silu = |x: f64| x / (1.0 + (-x).exp());
            let with_gate =
                |x: &[f64]| dot(&x.iter().zip(&up).map(|(&x, &up)| silu(x) * f64::from(up)).collect::<Vec<_>>(), &g);
            check(with_gate, &x, &on_gate, "gate");
            let with_up =
                |up: &[f64]| dot(&up.iter().zip(&x).map(|(&up, &x)| silu(f64::from(x)) * up).collect::<Vec<_>>(), &g);
            check(with_up, &up, &on_up, "up");
            let (mut p, mut found) = (x.clone(), vec![0f32; len]);
            softmax(&mut p, 1.0);
            softmax_back(&p, &g, &mut found);
            let of = |x: &[f64]| {
                let sum: f64 = x.iter().map(|x| x.exp()).sum();
                dot(&x.iter().map(|x| x.exp() / sum).collect::<Vec<_>>(), &g)
            };
            check(of, &x, &found, "softmax");
            let mut sums = vec![1f32; len];
            let (lse_x, lse_up) = (log_sum_exp(&x), log_sum_exp(&up));
            add_softmax(&x, lse_x, 0.5, &mut sums);
            add_difference(&x, lse_x, &up, lse_up, 2.0, &mut sums);
            for i in 0..len {
                let (q, p) = ((f64::from(x[i]) - lse_x).exp(), (f64::from(up[i]) - lse_up).exp());
                let expected = 1.0 + 0.5 * q + 2.0 * (q - p);
                assert!((f64::from(sums[i]) - expected).abs() < 1e-6, "{i} of {len}");
            }
        }
    }
}

//! Queries and keys with fewer rotary pairs per head.
//!
//! A rotary embedding turns dimensions (p, p + P) of queries and keys by an angle that depends on the position. Only matrices
//! that commute with these turns may stand between q and k, so dimensions are not mixed: whole pairs stay or go, as in Lin
//! et al., *MoDeGPT*, ICLR 2025, arXiv 2408.09632 (type II).
//!
//! ```text
//! part of pair p in the score of positions t and s ≤ t:   δ = q_pᵀ κ        κ = R(−θ_p (t − s)) k_p, R a turn of the plane
//! cost(j, p) = Σ_h mean over t, q of (mean over s, k of δ² − (mean over s, k of δ)²) = Σ_h tr(mean(q_hp q_hpᵀ) N_jp)
//! N_jp = mean over t of (mean over s, k of κ κᵀ − κ̄_t κ̄_tᵀ)        κ̄_t = mean over s, k of κ        heads h of group j
//! error(k) = Σ_j cost of the pairs that go
//! ```
//!
//! | symbol | meaning | shape |
//! |---|---|---|
//! | H, G, d | query heads, KV groups, dimensions per head | |
//! | P, θ | rotary pairs per head, their angles per position; dimensions from 2 P on are not turned and stay | P, (P) |
//! | T | positions of a window, t = 0 .. T − 1 | |
//! | Q, K | query and key matrices, biases may be with them | (H d, n), (G d, n) |
//! | q_hp, k_jp | pair p of the query of head h and of the key of group j | (2) |
//! | N_jp | what of a turned key varies over the keys of a query | (2, 2) |
//!
//! Means are exact where queries and keys are independent of each other and of positions; moments are those of the inputs
//! through Q and K, biases included. Groups keep the same number of pairs, each its own: the frequencies that stay differ
//! from group to group.
//!
//! Departures:
//! - The paper scores one head by ‖C^½ Q_pᵀ‖ ‖C^½ K_pᵀ‖, half the square of which is the mean of δ² over all angles. That
//!   counts what changes all scores of a query alike, which the softmax does not see, and takes slow pairs for fast ones. On
//!   SmolLM2-135M, all blocks at 28, 24 and 20 of 32 pairs, KL to the original is 0.031, 0.120 and 0.277 here, 0.037, 0.132 and
//!   0.344 with the paper's score (8 k tokens to calibrate, 3 k others).
//! - Squares are summed over the heads of a group; products of different pairs are left out of the error of several.
//! - A norm of each head's queries and keys (QK-norm) is not known here: what it makes of the pairs that stay is the caller's.

use super::query_key::{Affine, HeadMoments, InputSums, Narrowed, by_head, head_moments, summed};
use super::value_output::Heads;
use crate::linalg::Mat;
use anyhow::Result;

/// Rotary pairs of one layer, the ones to keep first, and what keeping so many costs.
#[derive(Debug, Clone, PartialEq)]
pub struct RotaryPairs {
    heads: Heads,
    /// The pairs of every group, each once, length P.
    pub order: Vec<Vec<usize>>,
    /// Mean squared change of a score that the softmax sees with k pairs per head, summed over heads and pairs that go,
    /// k = 0 ..= P. Falls to 0.
    pub error: Vec<f64>,
}

impl RotaryPairs {
    /// From `query` (H d, n), `key` (G d, n) and the sums of what enters both. `frequencies` θ (P) are in radians per
    /// position, `length` T is that of the windows that the model is to serve.
    ///
    /// NaN or infinite values are a [`crate::error::UserError`].
    pub fn new(
        query: Affine,
        key: Affine,
        inputs: InputSums,
        heads: Heads,
        frequencies: &[f64],
        length: usize,
    ) -> Result<Self> {
        let pairs = frequencies.len();
        assert!(2 * pairs <= heads.dim, "pairs of {} dimensions", heads.dim);
        let queries = head_moments(query, inputs, heads.heads, heads.dim)?;
        let keys = head_moments(key, inputs, heads.groups, heads.dim)?;
        let mut order = Vec::with_capacity(heads.groups);
        let mut error = vec![0.0; pairs + 1];
        for (of_group, keys) in queries.chunks(heads.per_group()).zip(keys) {
            let queries = summed(of_group);
            let cost: Vec<f64> = frequencies
                .iter()
                .enumerate()
                .map(|(p, &frequency)| {
                    let ([q00, q01, q11], [n00, n01, n11]) =
                        (block(&queries, p, pairs), varying(&keys, p, pairs, frequency, length));
                    (q00 * n00 + 2.0 * q01 * n01 + q11 * n11).max(0.0)
                })
                .collect();
            let mut best: Vec<usize> = (0..pairs).collect();
            best.sort_by(|&a, &b| cost[b].total_cmp(&cost[a]));
            let mut rest = 0.0;
            for k in (0..pairs).rev() {
                rest += cost[best[k]];
                error[k] += rest;
            }
            order.push(best);
        }
        Ok(Self { heads, order, error })
    }

    /// The `k` pairs that stay in every group, upwards.
    pub fn kept(&self, k: usize) -> Vec<Vec<usize>> {
        let kept = |order: &Vec<usize>| {
            let mut kept = order[..k].to_vec();
            kept.sort_unstable();
            kept
        };
        self.order.iter().map(kept).collect()
    }

    /// With the pairs [`kept`](Self::kept) of `k`: rows (p …, p + P …, dimensions that are not turned …) of every head.
    pub fn narrowed(&self, k: usize, query: Affine, key: Affine) -> Narrowed {
        let pairs = self.order.first().map_or(0, Vec::len);
        let chosen = |kept: Vec<usize>| {
            let second = kept.iter().map(|p| p + pairs);
            let rows: Vec<usize> = kept.iter().copied().chain(second).chain(2 * pairs..self.heads.dim).collect();
            Mat::from_fn(rows.len(), self.heads.dim, |i, j| f64::from(u8::from(rows[i] == j)))
        };
        let groups: Vec<Mat> = self.kept(k).into_iter().map(chosen).collect();
        let per_group = self.heads.per_group();
        let queries: Vec<&Mat> = (0..self.heads.heads).map(|h| &groups[h / per_group]).collect();
        let (query, query_bias) = by_head(query, &queries);
        let (key, key_bias) = by_head(key, &groups.iter().collect::<Vec<_>>());
        Narrowed { query, query_bias, key, key_bias }
    }
}

/// The pair's block of a symmetric (d, d): first diagonal element, the one beside it, second diagonal element.
fn block(moments: &Mat, p: usize, pairs: usize) -> [f64; 3] {
    [moments.get(p, p), moments.get(p, p + pairs), moments.get(p + pairs, p + pairs)]
}

/// N_jp, elements as in [`block`].
fn varying(keys: &HeadMoments, p: usize, pairs: usize, frequency: f64, length: usize) -> [f64; 3] {
    let [k00, k01, k11] = block(&keys.second, p, pairs);
    let (m0, m1) = (keys.mean[p], keys.mean[p + pairs]);
    let mut out = [0.0; 3];
    // Sums over the distances 0 ..= t of cos and sin of the angle and of twice the angle.
    let (mut cos, mut sin, mut cos2, mut sin2) = (0.0, 0.0, 0.0, 0.0);
    for t in 0..length {
        let angle = frequency * t as f64;
        cos += angle.cos();
        sin += angle.sin();
        cos2 += (2.0 * angle).cos();
        sin2 += (2.0 * angle).sin();
        let keys = (t + 1) as f64;
        // A symmetric matrix turned: half its trace stays, the rest turns twice as fast.
        let (half, difference) = (0.5 * (k00 + k11), 0.5 * (k00 - k11));
        let turned = (cos2 * difference + sin2 * k01) / keys;
        let beside = (cos2 * k01 - sin2 * difference) / keys;
        let (mean0, mean1) = ((cos * m0 + sin * m1) / keys, (cos * m1 - sin * m0) / keys);
        out[0] += half + turned - mean0 * mean0;
        out[1] += beside - mean0 * mean1;
        out[2] += half - turned - mean1 * mean1;
    }
    out.map(|x| x / length.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::super::query_key::tests::{Case, D, TOKENS, outputs};
    use super::*;

    const FREQUENCIES: [f64; 3] = [1.0, 0.3, 0.01];
    const LENGTH: usize = 4;

    /// What the softmax sees of pair p: its part of the scores of one head, `at` its two rows in queries and keys, less the
    /// mean over keys and positions, squared and averaged over queries and positions.
    fn seen(queries: &Mat, keys: &Mat, query_at: [usize; 2], key_at: [usize; 2], frequency: f64) -> f64 {
        let mut total = 0.0;
        for t in 0..LENGTH {
            for a in 0..TOKENS {
                let q = query_at.map(|i| queries.get(i, a));
                let mut parts = Vec::new();
                for s in 0..=t {
                    let (sin_t, cos_t) = (frequency * t as f64).sin_cos();
                    let (sin_s, cos_s) = (frequency * s as f64).sin_cos();
                    // As a model turns both: (x0 cos − x1 sin, x1 cos + x0 sin).
                    let q = [q[0] * cos_t - q[1] * sin_t, q[1] * cos_t + q[0] * sin_t];
                    for b in 0..TOKENS {
                        let k = key_at.map(|i| keys.get(i, b));
                        let k = [k[0] * cos_s - k[1] * sin_s, k[1] * cos_s + k[0] * sin_s];
                        parts.push(q[0] * k[0] + q[1] * k[1]);
                    }
                }
                let mean = parts.iter().sum::<f64>() / parts.len() as f64;
                total += parts.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / parts.len() as f64;
            }
        }
        total / (LENGTH * TOKENS) as f64
    }

    #[test]
    fn the_curve_is_the_mean_squared_change_that_the_softmax_sees() {
        for (groups, pairs, biased) in [(4, 3, false), (2, 3, true), (1, 2, true)] {
            let case = Case::new(groups);
            let [query, key] = case.linears(biased);
            let form = RotaryPairs::new(query, key, case.inputs(), case.heads, &FREQUENCIES[..pairs], LENGTH).unwrap();
            assert!(form.error.is_sorted_by(|a, b| a > b) && form.error[pairs] == 0.0);
            let queries = outputs(query.weight, query.bias, &case.x);
            let keys = outputs(key.weight, key.bias, &case.x);
            for k in 0..=pairs {
                let mut change = 0.0;
                for h in 0..4 {
                    let g = h / case.heads.per_group();
                    for &p in &form.order[g][k..] {
                        let at = |h: usize| [h * D + p, h * D + p + pairs];
                        change += seen(&queries, &keys, at(h), at(g), FREQUENCIES[p]);
                    }
                }
                assert!((change - form.error[k]).abs() < 1e-9 * form.error[0], "{groups} {k}: {change}");
            }
        }
    }

    #[test]
    fn the_rows_of_the_pairs_that_stay_are_left_as_they_were() {
        for (groups, pairs, biased) in [(4, 3, false), (2, 2, true)] {
            let case = Case::new(groups);
            let [query, key] = case.linears(biased);
            let form = RotaryPairs::new(query, key, case.inputs(), case.heads, &FREQUENCIES[..pairs], LENGTH).unwrap();
            for k in 0..=pairs {
                let (cut, kept) = (form.narrowed(k, query, key), form.kept(k));
                let width = 2 * k + D - 2 * pairs;
                assert_eq!((cut.query.rows(), cut.key.rows()), (4 * width, groups * width));
                for h in 0..4 {
                    let of_group = &kept[h / case.heads.per_group()];
                    assert!(of_group.is_sorted());
                    let second = of_group.iter().map(|p| p + pairs);
                    for (i, row) in of_group.iter().copied().chain(second).chain(2 * pairs..D).enumerate() {
                        assert_eq!(
                            cut.query.row_range(h * width + i..h * width + i + 1),
                            query.weight.row_range(h * D + row..h * D + row + 1)
                        );
                        let bias = cut.query_bias.as_ref().map(|bias| bias[h * width + i]);
                        assert_eq!(bias, query.bias.map(|bias| bias[h * D + row]));
                    }
                }
                if k == pairs {
                    assert_eq!((&cut.query, &cut.key), (query.weight, key.weight));
                    assert_eq!((cut.query_bias.as_deref(), cut.key_bias.as_deref()), (query.bias, key.bias));
                }
            }
        }
    }

    /// A slow pair whose keys are all alike changes nothing, however large it is.
    #[test]
    fn keys_that_are_all_alike_cost_nothing_where_nothing_turns() {
        let case = Case::new(4);
        let query = Affine { weight: &case.query, bias: None };
        let zero = Mat::zeros(4 * D, 9);
        let key = Affine { weight: &zero, bias: Some(&[5.0; 4 * D]) };
        let form = RotaryPairs::new(query, key, case.inputs(), case.heads, &[1.0, 1e-9, 0.5], 16).unwrap();
        assert!(form.order.iter().all(|order| order[2] == 1));
        assert!(form.error[2] < 1e-9 * form.error[0]);
    }

    #[test]
    fn damage_is_named_and_no_inputs_are_not() {
        let case = Case::new(2);
        let [query, key] = case.linears(true);
        let mut gram = case.gram.clone();
        gram.set(1, 1, f64::INFINITY);
        let damaged = InputSums { gram: &gram, ..case.inputs() };
        assert!(RotaryPairs::new(query, key, damaged, case.heads, &FREQUENCIES, LENGTH).is_err());
        let zero = Mat::zeros(9, 9);
        let nothing = InputSums { gram: &zero, sum: &[0.0; 9], tokens: 0 };
        let [query, key] = case.linears(false);
        let form = RotaryPairs::new(query, key, nothing, case.heads, &FREQUENCIES, 0).unwrap();
        assert_eq!((form.order, form.error), (vec![vec![0, 1, 2]; 2], vec![0.0; 4]));
    }
}

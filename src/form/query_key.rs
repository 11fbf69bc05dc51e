//! Queries and keys through fewer dimensions per head, where no rotary embedding stands between them.
//!
//! Wong et al., *A3: an Analytical Low-Rank Approximation Framework for Attention*, ICML 2026, arXiv 2505.12942; the
//! projector is that of `subspace.rs`.
//!
//! ```text
//! score of tokens t and s in head h of KV group j:   q_hᵀ k_j        q_h = Q_h x_t + b_h        k_j = K_j x_s + c_j
//! error(r) = Σ_j Σ_h mean (δ − mean over s of δ)², δ = q_hᵀ k_j − q_hᵀ B_j A_j k_j
//!          = Σ_j tr(M_j (I − B_j A_j) S_j (I − B_j A_j)ᵀ)
//! M_j = Σ_h mean q_h q_hᵀ        S_j = cov k_j        K'_j = A_j K_j        Q'_h = B_jᵀ Q_h        heads h of group j
//! ```
//!
//! | symbol | meaning | shape |
//! |---|---|---|
//! | H, G, d | query heads, KV groups, dimensions per head | |
//! | Q, K | query and key matrices, Q_h and K_j their rows of one head or group; b, c the biases | (H d, n), (G d, n) |
//! | M_j, S_j | second moments of queries, covariance of keys, from the moments of the inputs | (d, d) |
//! | A_j, B_j | the projector B_j A_j of rank r that is best for all heads of the group at once | (r, d), (d, r) |
//!
//! The mean is over tokens t and s drawn independently, before the division by √d, which stays that of the original d. Under
//! it the optimum is exact, with several heads per group too: all of them read the same S_j.
//!
//! Departures:
//! - The same r in every group of a layer. Bases of A are nested over r.
//! - Keys are taken about their mean: what changes all scores of a query alike is not seen by the softmax.
//! - Biases take part in the moments and are multiplied with their rows.

use super::subspace::{nested_basis, reconstruction};
use super::value_output::Heads;
use crate::linalg::Mat;
use anyhow::Result;

/// What is known of the tokens that enter: sums, as calibration collects them.
#[derive(Clone, Copy)]
pub struct InputSums<'a> {
    /// Σ x xᵀ (n, n).
    pub gram: &'a Mat,
    /// Σ x, length n.
    pub sum: &'a [f64],
    /// Number of tokens.
    pub tokens: u64,
}

/// Weight (rows, n) and bias (rows) of a linear.
#[derive(Clone, Copy)]
pub struct Affine<'a> {
    /// The weight.
    pub weight: &'a Mat,
    /// The bias, if there is one.
    pub bias: Option<&'a [f64]>,
}

/// Queries and keys with fewer dimensions per head.
#[derive(Debug, Clone, PartialEq)]
pub struct Narrowed {
    /// Q' (H r, n).
    pub query: Mat,
    /// Bias of Q' (H r), if there was one.
    pub query_bias: Option<Vec<f64>>,
    /// K' (G r, n).
    pub key: Mat,
    /// Bias of K' (G r), if there was one.
    pub key_bias: Option<Vec<f64>>,
}

/// Q and K of one layer without rotary embedding, ready for any number of dimensions per head.
#[derive(Debug, Clone)]
pub struct JointQueryKey {
    heads: Heads,
    /// A_j (d, d); its first r rows are the basis of r dimensions.
    bases: Vec<Mat>,
    /// S_j (d, d).
    keys: Vec<Mat>,
    /// Mean squared change of a score that the softmax sees with r dimensions per head, summed over heads, r = 0 ..= d.
    /// Falls to 0.
    pub error: Vec<f64>,
}

impl JointQueryKey {
    /// From `query` (H d, n), `key` (G d, n) and the sums of what enters both.
    ///
    /// NaN or infinite values are a [`crate::error::UserError`].
    pub fn new(query: Affine, key: Affine, inputs: InputSums, heads: Heads) -> Result<Self> {
        let queries = head_moments(query, inputs, heads.heads, heads.dim)?;
        let keys = head_moments(key, inputs, heads.groups, heads.dim)?;
        let keys: Vec<Mat> = keys.iter().map(HeadMoments::covariance).collect();
        let mut bases = Vec::with_capacity(heads.groups);
        let mut error = vec![0.0; heads.dim + 1];
        for (queries, s) in queries.chunks(heads.per_group()).zip(&keys) {
            let (basis, of_group) = nested_basis(&summed(queries), s)?;
            bases.push(basis);
            error.iter_mut().zip(of_group).for_each(|(sum, x)| *sum += x);
        }
        Ok(Self { heads, bases, keys, error })
    }

    /// With `r` dimensions per head, from the matrices given to [`new`](Self::new).
    pub fn narrowed(&self, r: usize, query: Affine, key: Affine) -> Result<Narrowed> {
        let bases: Vec<Mat> = self.bases.iter().map(|basis| basis.row_range(0..r)).collect();
        let readers = bases.iter().zip(&self.keys).map(|(basis, s)| Ok(reconstruction(basis, s)?.transpose()));
        let readers = readers.collect::<Result<Vec<Mat>>>()?;
        let per_group = self.heads.per_group();
        let queries: Vec<&Mat> = (0..self.heads.heads).map(|h| &readers[h / per_group]).collect();
        let (query, query_bias) = by_head(query, &queries);
        let (key, key_bias) = by_head(key, &bases.iter().collect::<Vec<_>>());
        Ok(Narrowed { query, query_bias, key, key_bias })
    }
}

/// The rows of each head multiplied from the left by its matrix (r, d): weight (heads r, n) and bias.
pub(super) fn by_head(linear: Affine, factors: &[&Mat]) -> (Mat, Option<Vec<f64>>) {
    let product = |x: &Mat| {
        let (r, d) = factors.first().map_or((0, 0), |factor| (factor.rows(), factor.cols()));
        assert_eq!(x.rows(), factors.len() * d, "rows of a matrix of heads");
        let mut out = Mat::zeros(factors.len() * r, x.cols());
        for (h, factor) in factors.iter().enumerate() {
            let part = factor.matmul(&x.row_range(h * d..(h + 1) * d));
            (0..x.cols()).for_each(|t| out.col_mut(t)[h * r..(h + 1) * r].copy_from_slice(part.col(t)));
        }
        out
    };
    let bias = linear.bias.map(|bias| product(&Mat::from_columns(bias.len(), 1, bias)).col(0).to_vec());
    (product(linear.weight), bias)
}

/// Moments of y, a head's part of what a linear makes of the inputs.
pub(super) struct HeadMoments {
    /// Mean of y yᵀ (d, d).
    pub second: Mat,
    /// Mean of y, length d.
    pub mean: Vec<f64>,
}

impl HeadMoments {
    /// Mean of (y − ȳ) (y − ȳ)ᵀ (d, d).
    fn covariance(&self) -> Mat {
        let mean = Mat::from_columns(self.mean.len(), 1, &self.mean);
        let mut out = self.second.clone();
        out.subtract_nt(&mean, &mean);
        out
    }
}

/// Σ mean y yᵀ over several heads (d, d).
pub(super) fn summed(heads: &[HeadMoments]) -> Mat {
    let mut out = heads[0].second.clone();
    heads[1..].iter().for_each(|head| out.add_assign(&head.second));
    out
}

/// The moments of every head.
pub(super) fn head_moments(linear: Affine, inputs: InputSums, heads: usize, dim: usize) -> Result<Vec<HeadMoments>> {
    let w = linear.weight;
    assert_eq!((w.rows(), w.cols(), w.cols()), (heads * dim, inputs.gram.rows(), inputs.sum.len()), "shapes of heads");
    w.ensure_finite("the weight")?;
    inputs.gram.ensure_finite("the calibration statistics")?;
    let scale = vec![1.0 / inputs.tokens.max(1) as f64; w.rows()];
    let mut wg = w.matmul(inputs.gram);
    wg.scale_rows(&scale);
    let mut mean = w.matmul(&Mat::from_columns(w.cols(), 1, inputs.sum));
    mean.scale_rows(&scale);
    let moments = |h: usize| {
        let rows = h * dim..(h + 1) * dim;
        let mut second = wg.row_range(rows.clone()).nt_matmul_symmetric(&w.row_range(rows.clone()));
        let mut mean = mean.col(0)[rows.clone()].to_vec();
        if let Some(bias) = linear.bias {
            let bias = &bias[rows];
            let with_bias = |i: usize, j: usize| mean[i] * bias[j] + bias[i] * mean[j] + bias[i] * bias[j];
            second.add_assign(&Mat::from_fn(dim, dim, with_bias));
            mean.iter_mut().zip(bias).for_each(|(mean, bias)| *mean += bias);
        }
        HeadMoments { second, mean }
    };
    Ok((0..heads).map(moments).collect())
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::tests::{gram, noise};
    use super::*;

    pub const D: usize = 6;
    pub const TOKENS: usize = 30;

    pub struct Case {
        pub heads: Heads,
        pub query: Mat,
        pub key: Mat,
        pub query_bias: Vec<f64>,
        pub key_bias: Vec<f64>,
        pub x: Mat,
        pub gram: Mat,
        pub sum: Vec<f64>,
    }

    impl Case {
        pub fn new(groups: usize) -> Self {
            let x = noise(9, TOKENS, 3);
            Self {
                heads: Heads { heads: 4, groups, dim: D },
                query: noise(4 * D, 9, 1),
                key: noise(groups * D, 9, 2),
                query_bias: noise(4 * D, 1, 4).col(0).to_vec(),
                key_bias: noise(groups * D, 1, 5).col(0).to_vec(),
                gram: gram(&x),
                sum: (0..9).map(|i| (0..TOKENS).map(|t| x.get(i, t)).sum()).collect(),
                x,
            }
        }

        pub fn inputs(&self) -> InputSums<'_> {
            InputSums { gram: &self.gram, sum: &self.sum, tokens: TOKENS as u64 }
        }

        pub fn linears(&self, biased: bool) -> [Affine<'_>; 2] {
            let affine = |weight, bias| Affine { weight, bias: Some(bias).filter(|_| biased) };
            [affine(&self.query, self.query_bias.as_slice()), affine(&self.key, self.key_bias.as_slice())]
        }
    }

    /// What a linear makes of the tokens: (rows, tokens).
    pub fn outputs(weight: &Mat, bias: Option<&[f64]>, x: &Mat) -> Mat {
        let mut y = weight.matmul(x);
        if let Some(bias) = bias {
            (0..y.cols()).for_each(|t| y.col_mut(t).iter_mut().zip(bias).for_each(|(y, b)| *y += b));
        }
        y
    }

    /// The scores of every head over all pairs of tokens, with r dimensions per head.
    fn scores(query: &Mat, key: &Mat, heads: Heads, r: usize) -> Vec<Mat> {
        let rows = |x: &Mat, h: usize| x.row_range(h * r..(h + 1) * r);
        (0..heads.heads).map(|h| rows(query, h).tn_matmul(&rows(key, h / heads.per_group()))).collect()
    }

    /// Less the mean of every query's row, which the softmax does not see.
    fn seen(scores: &Mat) -> Mat {
        let mut mean = scores.matmul(&Mat::from_fn(TOKENS, 1, |_, _| 1.0));
        mean.scale_rows(&[1.0 / TOKENS as f64; TOKENS]);
        let mut out = scores.clone();
        out.subtract_nt(&mean, &Mat::from_fn(TOKENS, 1, |_, _| 1.0));
        out
    }

    #[test]
    fn the_curve_is_the_mean_squared_change_of_the_scores() {
        for (groups, biased) in [(4, false), (2, true), (1, true)] {
            let case = Case::new(groups);
            let [query, key] = case.linears(biased);
            let form = JointQueryKey::new(query, key, case.inputs(), case.heads).unwrap();
            assert!(form.error.is_sorted_by(|a, b| a > b) && form.error[D] == 0.0);
            let whole = scores(
                &outputs(query.weight, query.bias, &case.x),
                &outputs(key.weight, key.bias, &case.x),
                case.heads,
                D,
            );
            for r in 0..=D {
                let cut = form.narrowed(r, query, key).unwrap();
                assert_eq!(cut.query_bias.is_some(), biased);
                let narrow = scores(
                    &outputs(&cut.query, cut.query_bias.as_deref(), &case.x),
                    &outputs(&cut.key, cut.key_bias.as_deref(), &case.x),
                    case.heads,
                    r,
                );
                let change: f64 = whole.iter().zip(&narrow).map(|(a, b)| seen(&a.sub(b)).frobenius().powi(2)).sum();
                let direct = change / (TOKENS * TOKENS) as f64;
                assert!((direct - form.error[r]).abs() < 1e-9 * form.error[0], "{groups} {r}: {direct}");
            }
        }
    }

    /// Every group's scores have rank d, and no matrix of rank r is nearer than the SVD's.
    #[test]
    fn groups_are_cut_as_well_as_can_be() {
        let case = Case::new(1);
        let [query, key] = case.linears(false);
        let form = JointQueryKey::new(query, key, case.inputs(), case.heads).unwrap();
        let all = scores(&query.weight.matmul(&case.x), &key.weight.matmul(&case.x), case.heads, D);
        let all: Vec<Mat> = all.iter().map(seen).collect();
        let stacked = Mat::from_fn(4 * TOKENS, TOKENS, |i, j| all[i / TOKENS].get(i % TOKENS, j));
        let s = crate::linalg::thin_svd(&stacked, "test").unwrap().s;
        for r in 0..=D {
            let tail = s[r..].iter().map(|s| s * s).sum::<f64>() / (TOKENS * TOKENS) as f64;
            assert!((form.error[r] - tail).abs() < 1e-9 * form.error[0], "{r}");
        }
    }

    #[test]
    fn no_inputs_are_no_reason_to_fail() {
        let case = Case::new(2);
        let [query, key] = case.linears(false);
        let nothing = (Mat::zeros(9, 9), vec![0.0; 9]);
        let inputs = InputSums { gram: &nothing.0, sum: &nothing.1, tokens: 0 };
        let form = JointQueryKey::new(query, key, inputs, case.heads).unwrap();
        assert_eq!(form.error, vec![0.0; D + 1]);
        assert!(form.narrowed(3, query, key).unwrap().query.is_finite());
    }
}

//! Values and outputs of attention through fewer dimensions per head.
//!
//! Lin et al., *MoDeGPT*, ICLR 2025, arXiv 2408.09632 (type III) and Tian et al., *FLAT-LLM*, EACL 2026 Findings, arXiv
//! 2505.23966: V and O of a head meet in d dimensions only, whose number can fall without a further factor. The cache of
//! values shrinks with it.
//!
//! ```text
//! S_j = Σ_h G[h,h]        M_j = Σ_h O_hᵀ M O_h        heads h of KV group j
//! A_j: rows of the best projector of rank r, min tr(M_j (I − P) S_j (I − P)ᵀ), orthonormal
//! V'_j = A_j V_j        b'_j = A_j b_j        O' = O G Āᵀ (Ā G Āᵀ)⁻¹, Ā = blockdiag(A_j of each head)
//! error(r) = tr(M (O − O' Ā) G (O − O' Ā)ᵀ)
//! ```
//!
//! | symbol | meaning | shape |
//! |---|---|---|
//! | H, K, d | heads, KV groups, dimensions per head; H a multiple of K (H = K: multi-head, K = 1: multi-query) | |
//! | z | what enters O: the heads' outputs, one after the other | (H d) |
//! | G | Σ z zᵀ over the calibration tokens, unscaled; `G[h,h]` its block of head h | (H d, H d) |
//! | O, O_h | output matrix, its columns of head h | (m, H d), (m, d) |
//! | M | weight of the output errors; the identity if there is none | (m, m) |
//! | V, V_j, b | value matrix, its rows of group j, bias | (K d, n), (d, n), (K d) |
//! | A_j | basis of the values of group j | (r, d) |
//!
//! z is linear in each group's values, so A_j may be moved from z into V_j, and the bias with it. O' is the exact least-
//! squares optimum for its bases, with what heads have in common, whatever M is.
//!
//! In the coordinates Ā z keeping r dimensions of every head is keeping channels of O's input: error and O' are those of
//! [`channels`] in the order first dimension of every head, second of every head, …, so all r cost one run.
//!
//! Departures:
//! - Second moments are those of z, behind the attention, not of the values in front of it.
//! - A_j is best for one head per group; with several, S_j and M_j are summed before they are multiplied. On SmolLM2-135M
//!   (blocks 3, 15, 29; 3 heads per group; r of 8 to 60) ‖error‖ lies between 5 % below and 1 % above that of moments in front
//!   of the attention, and between 9 % below and 1 % above that of the principal components of z. Three rounds of alternating
//!   least squares for A_j and O' take off 4 to 8 % more, but the bases of different r are then not nested.
//! - The same r in every group of a layer.

use super::channels;
use super::subspace::nested_basis;
use crate::linalg::Mat;
use anyhow::Result;

/// Heads of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads H.
    pub heads: usize,
    /// KV groups K; the heads of a group lie together.
    pub groups: usize,
    /// Dimensions d of a head.
    pub dim: usize,
}

impl Heads {
    /// Heads per group.
    fn per_group(&self) -> usize {
        assert!(self.groups > 0 && self.heads.is_multiple_of(self.groups), "heads are spread evenly over groups");
        self.heads / self.groups
    }
}

/// V and O of one layer, ready for any number of dimensions per head.
#[derive(Debug, Clone)]
pub struct ValueOutput {
    heads: Heads,
    /// A_j (d, d) of every group; its first r rows are the basis of r dimensions.
    bases: Vec<Mat>,
    /// O Āᵀ (m, H d) at r = d.
    output: Mat,
    /// Ā G Āᵀ (H d, H d) at r = d.
    gram: Mat,
    /// Summed squared error of the layer, weighted by M, with r dimensions per head and O refitted, r = 0 ..= d. Falls to 0.
    pub error: Vec<f64>,
}

/// Numbers that [`ValueOutput::new`] has in memory at its height for `o` (m, n), beside the arguments.
pub fn numbers(m: usize, n: usize) -> usize {
    // O Āᵀ, and while G is turned three of it; then Ā G Āᵀ and its error curve.
    m * n + (3 * n * n).max(n * n + channels::numbers(m, n))
}

/// V and O with r dimensions per head.
#[derive(Debug, Clone, PartialEq)]
pub struct Narrowed {
    /// V' (K r, n).
    pub value: Mat,
    /// b' (K r), if there was a bias.
    pub value_bias: Option<Vec<f64>>,
    /// O' (m, H r).
    pub output: Mat,
}

impl ValueOutput {
    /// From `o` (m, H d), `gram` G (H d, H d) and `weight` M (m, m).
    ///
    /// NaN or infinite values are a [`crate::error::UserError`].
    pub fn new(o: &Mat, gram: &Mat, heads: Heads, weight: Option<&Mat>) -> Result<Self> {
        let (d, per_group) = (heads.dim, heads.per_group());
        assert_eq!((o.cols(), gram.rows(), gram.cols()), (heads.heads * d, heads.heads * d, heads.heads * d));
        o.ensure_finite("the weight")?;
        gram.ensure_finite("the calibration statistics")?;
        let mut bases = Vec::with_capacity(heads.groups);
        for j in 0..heads.groups {
            let (mut s, mut m) = (Mat::zeros(d, d), Mat::zeros(d, d));
            for h in j * per_group..(j + 1) * per_group {
                let at = h * d..(h + 1) * d;
                s.add_assign(&gram.row_range(at.clone()).col_range(at.clone()));
                let o = o.col_range(at);
                m.add_assign(&o.tn_matmul(&weight.map_or_else(|| o.clone(), |weight| weight.matmul(&o))));
            }
            bases.push(nested_basis(&m, &s)?);
        }
        let output = rotated(o, &bases, heads);
        let gram = rotated(&rotated(gram, &bases, heads).transpose(), &bases, heads);
        let order: Vec<usize> = (0..d).flat_map(|i| (0..heads.heads).map(move |h| h * d + i)).collect();
        let curve = channels::curve(&output, &gram, weight, &order)?;
        let error = curve.into_iter().step_by(heads.heads).collect();
        Ok(Self { heads, bases, output, gram, error })
    }

    /// With `r` dimensions per head, `value` V (K d, n) and `value_bias` b (K d).
    pub fn narrowed(&self, r: usize, value: &Mat, value_bias: Option<&[f64]>) -> Result<Narrowed> {
        let bias = value_bias.map(|bias| self.narrowed_values(r, &Mat::from_columns(bias.len(), 1, bias)));
        Ok(Narrowed {
            value: self.narrowed_values(r, value),
            value_bias: bias.map(|bias| bias.col(0).to_vec()),
            output: channels::refit(&self.output, &self.gram, &self.kept(r))?,
        })
    }

    /// The coordinates of Ā z that stay with `r` dimensions per head.
    fn kept(&self, r: usize) -> Vec<usize> {
        let Heads { heads, dim, .. } = self.heads;
        (0..heads).flat_map(|h| h * dim..h * dim + r).collect()
    }

    /// A_j V_j of every group, one after the other: (K r, n).
    fn narrowed_values(&self, r: usize, value: &Mat) -> Mat {
        let Heads { groups, dim, .. } = self.heads;
        assert_eq!(value.rows(), groups * dim, "rows of the value matrix");
        let mut out = Mat::zeros(groups * r, value.cols());
        for (j, basis) in self.bases.iter().enumerate() {
            let part = basis.row_range(0..r).matmul(&value.row_range(j * dim..(j + 1) * dim));
            for t in 0..part.cols() {
                out.col_mut(t)[j * r..(j + 1) * r].copy_from_slice(part.col(t));
            }
        }
        out
    }
}

/// x Āᵀ for x (rows, H d), head by head.
fn rotated(x: &Mat, bases: &[Mat], heads: Heads) -> Mat {
    let mut out = Mat::zeros(x.rows(), x.cols());
    for h in 0..heads.heads {
        let part = x.col_range(h * heads.dim..(h + 1) * heads.dim).nt_matmul(&bases[h / heads.per_group()]);
        for i in 0..heads.dim {
            out.col_mut(h * heads.dim + i).copy_from_slice(part.col(i));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::tests::{error, gram, noise};
    use super::*;

    const D: usize = 6;

    fn layouts() -> [Heads; 3] {
        [(4, 4), (4, 2), (4, 1)].map(|(heads, groups)| Heads { heads, groups, dim: D })
    }

    /// Mixes of values over tokens, as attention makes them: z_h = V_g(h) X T_h + b.
    fn heads_outputs(values: &Mat, heads: Heads, r: usize) -> Mat {
        let mut z = Mat::zeros(heads.heads * r, 40);
        for h in 0..heads.heads {
            let g = h / heads.per_group();
            let part = values.row_range(g * r..(g + 1) * r).matmul(&noise(values.cols(), 40, 50 + h));
            (0..40).for_each(|t| z.col_mut(t)[h * r..(h + 1) * r].copy_from_slice(part.col(t)));
        }
        z
    }

    #[test]
    fn the_curve_is_the_error_of_the_whole_layer_at_every_size() {
        for heads in layouts() {
            let (o, v) = (noise(9, 4 * D, 1), noise(heads.groups * D, 7, 2));
            let x = noise(7, 15, 3);
            let z = heads_outputs(&v.matmul(&x), heads, D);
            let m = gram(&noise(9, 9, 4));
            for weight in [None, Some(&m)] {
                let form = ValueOutput::new(&o, &gram(&z), heads, weight).unwrap();
                assert!(form.error.is_sorted_by(|a, b| a > b) && form.error.len() == D + 1 && form.error[D] == 0.0);
                for r in 0..=D {
                    let cut = form.narrowed(r, &v, None).unwrap();
                    // As a model computes it: from the narrower values on.
                    let narrow = heads_outputs(&cut.value.matmul(&x), heads, r);
                    let rest = o.matmul(&z).sub(&cut.output.matmul(&narrow));
                    let direct = error(&Mat::identity(9), &rest, weight);
                    assert!((direct - form.error[r]).abs() < 1e-8 * form.error[0], "{heads:?} {r}: {direct}");
                }
            }
        }
    }

    /// One head: no basis of rank r is better, and the error is what the SVD of M^½ S^½ leaves.
    #[test]
    fn one_head_is_cut_as_well_as_can_be() {
        let heads = Heads { heads: 1, groups: 1, dim: D };
        let (o, z) = (noise(9, D, 1), noise(D, D, 2).matmul(&noise(D, 30, 3)));
        let form = ValueOutput::new(&o, &gram(&z), heads, None).unwrap();
        let s = crate::linalg::thin_svd(&o.matmul(&z), "test").unwrap().s;
        for r in 0..=D {
            let tail: f64 = s[r..D].iter().map(|s| s * s).sum();
            assert!((form.error[r] - tail).abs() < 1e-9 * form.error[0], "{r}");
        }
    }

    #[test]
    fn all_dimensions_are_the_layer_as_it_was_and_biases_follow_their_values() {
        for heads in layouts() {
            let (o, v) = (noise(9, 4 * D, 1), noise(heads.groups * D, 7, 2));
            let bias: Vec<f64> = (0..heads.groups * D).map(|i| (i as f64).cos()).collect();
            // No tokens, few tokens, a dead head dimension.
            for tokens in [0, 3, 40] {
                let mut z = noise(4 * D, tokens, 5);
                (0..tokens).for_each(|t| z.set(2, t, 0.0));
                let form = ValueOutput::new(&o, &gram(&z), heads, None).unwrap();
                let whole = form.narrowed(D, &v, Some(&bias)).unwrap();
                let column = Mat::from_columns(bias.len(), 1, &bias);
                let new_bias = whole.value_bias.unwrap();
                for h in 0..4 {
                    let g = h / heads.per_group();
                    let (at, rows) = (h * D..(h + 1) * D, g * D..(g + 1) * D);
                    let was = o.col_range(at.clone()).matmul(&v.row_range(rows.clone()));
                    let is = whole.output.col_range(at.clone()).matmul(&whole.value.row_range(rows.clone()));
                    assert!(was.sub(&is).frobenius() < 1e-12 * was.frobenius());
                    let was = o.col_range(at.clone()).matmul(&column.row_range(rows.clone()));
                    let is = whole.output.col_range(at).matmul(&Mat::from_columns(D, 1, &new_bias[rows]));
                    assert!(was.sub(&is).frobenius() < 1e-12 * was.frobenius());
                }
                let cut = form.narrowed(2, &v, Some(&bias)).unwrap();
                assert_eq!((cut.value.rows(), cut.output.cols()), (2 * heads.groups, 8));
                assert!(cut.output.is_finite());
                assert_eq!(form.error.len(), D + 1);
            }
        }
    }
}

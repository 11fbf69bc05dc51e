//! AWSVD: the SVD of a weight whose columns are scaled by the size of their inputs.

use super::{Decomposition, Inputs, Method, MethodCard, Needs, Workspace, required};
use crate::calibrate::SiteStats;
use crate::linalg::{Mat, thin_svd};
use crate::user_bail;
use anyhow::Result;

static CARD: MethodCard = MethodCard {
    name: "awsvd",
    summary: "SVD weighted by the size of each input channel, on every linear",
    paper: "LoRAP: Transformer Sub-Layers Deserve Differentiated Structured Compression for Large Language Models \
            (arXiv 2404.09695), its AWSVD",
    citation: super::lorap::CITATION,
    doc: DOC,
};

const DOC: &str = r"
# awsvd: activation-weighted SVD

Li, Tang and Zhang, *LoRAP: Transformer Sub-Layers Deserve Differentiated Structured Compression for Large Language
Models*, ICML 2024, arXiv 2404.09695; the part called AWSVD, here on every linear.

    d_j = ‖X_j‖        D = diag(d)        W D = U Σ Vᵀ
    B = U_r Σ_r^(1/2)        A = Σ_r^(1/2) V_rᵀ D⁻¹        W' = B A

| symbol | meaning | shape |
|---|---|---|
| W | weight of the linear, y = W x | (m, n) |
| X | calibration inputs, one token per column; X_j is channel j | (n, tokens) |
| d | l2 norm of each input channel | (n) |
| U, Σ, V | singular value decomposition of W D | (m, k), (k), (n, k), k = min(m, n) |
| B, A | factors of rank r | (m, r), (r, n) |

Minimises Σ_ij (W − W')_ij² d_j² = Σ_{i>r} σ_i². That is the output error when input channels are uncorrelated; with
correlated channels `whiten` is never worse and usually better, and plain `svd` can be better too.

Departures from the authors' code:
- A dead channel (d_j = 0) gets a floor relative to the mean, d_j ≥ 1e-4 · mean(d), not the absolute 1e-4: the result
  must not depend on the scale of the activations. The minimised error is the one with the floor in place.
- d is divided by its mean, which leaves W' alone and keeps A and B of one size however long the calibration text is.
- f64 instead of f32. If no input was ever different from zero, plain SVD takes over.
";

/// The smallest channel norm, as a fraction of the mean norm.
const FLOOR: f64 = 1e-4;

/// Activation-weighted SVD.
pub struct Awsvd;

impl Method for Awsvd {
    fn card(&self) -> &'static MethodCard {
        &CARD
    }

    fn needs(&self) -> Needs {
        Needs::Gram
    }

    fn inputs(&self) -> Inputs {
        Inputs::Blocks
    }

    fn workspace(&self, m: usize, n: usize) -> Workspace {
        // Beside the SVD's own the weight as it is.
        Workspace::svd(m, n).beside(m * n)
    }

    fn decompose(&self, w: &Mat, stats: Option<&SiteStats>) -> Result<Decomposition> {
        decompose(w, required(w, stats, CARD.name)?)
    }
}

/// Channel norms d_j = √(Σ x_j²) divided by their mean and held above 1e-4, and that mean.
///
/// All ones, and zero, when no input was ever different from zero.
pub fn input_scales(stats: &SiteStats) -> Result<(Vec<f64>, f64)> {
    let norms: Vec<f64> = stats.squares().iter().map(|x| x.sqrt()).collect();
    let mean = norms.iter().sum::<f64>() / norms.len().max(1) as f64;
    if !mean.is_finite() {
        user_bail!("NaN, infinite or negative values in the calibration statistics"; "calibrate again; the model itself may produce NaN");
    }
    if mean == 0.0 {
        return Ok((vec![1.0; norms.len()], 0.0));
    }
    Ok((norms.iter().map(|d| (d / mean).max(FLOOR)).collect(), mean))
}

/// The decomposition LoRAP uses for attention.
pub(super) fn decompose(w: &Mat, stats: &SiteStats) -> Result<Decomposition> {
    let (scales, mean) = input_scales(stats)?;
    let mut weighted = w.clone();
    weighted.scale_cols(&scales);
    let svd = thin_svd(&weighted, "the weight")?;
    let roots: Vec<f64> = svd.s.iter().map(|s| s.sqrt()).collect();
    let mut b = svd.u;
    b.scale_cols(&roots);
    let mut a = svd.v.transpose();
    a.scale_rows(&roots);
    a.scale_cols(&scales.iter().map(|s| s.recip()).collect::<Vec<_>>());
    Ok(Decomposition { b, a, energy: svd.s.iter().map(|s| (s * mean).powi(2)).collect(), note: svd.note })
}

//! LLM-ROM: principal components of a layer's outputs, folded into its weight.

use super::{Decomposition, Inputs, Method, MethodCard, Needs, Workspace, output_pca, required};
use crate::calibrate::SiteStats;
use crate::linalg::Mat;
use anyhow::Result;

static CARD: MethodCard = MethodCard {
    name: "rom",
    summary: "PCA of each layer's outputs, every layer calibrated behind the compressed ones before it",
    paper: "Rethinking Compression: Reduced Order Modelling of Latent Features in Large Language Models (arXiv 2312.07046)",
    citation: CITATION,
    doc: DOC,
};

const CITATION: &str = r"@misc{chavan2023rethinking,
  title = {Rethinking Compression: Reduced Order Modelling of Latent Features in Large Language Models},
  author = {Chavan, Arnav and Lele, Nahush and Gupta, Deepak},
  year = {2023},
  eprint = {2312.07046},
  archivePrefix = {arXiv}
}";

const DOC: &str = r"
# rom: reduced order modelling of latent features

Chavan, Lele and Gupta, *Rethinking Compression: Reduced Order Modelling of Latent Features in Large Language Models*,
arXiv 2312.07046.

    Y = W X        C = Y Yᵀ = Vᵀ Λ V        V_r = the first r rows of V
    Y ≈ V_rᵀ V_r W X        B = V_rᵀ        A = V_r W        W' = B A

| symbol | meaning | shape |
|---|---|---|
| W | weight of the linear, y = W x | (m, n) |
| X, Y | calibration inputs and outputs, one token per column | (n, tokens), (m, tokens) |
| G | X Xᵀ, all that is kept of X | (n, n) |
| C | W G Wᵀ, covariance of the outputs, not centred | (m, m) |
| V, Λ | eigenvectors of C as rows, eigenvalues λ_1 ≥ λ_2 ≥ … | (k, m), (k), k = min(m, n) |
| B, A | factors of rank r; Bᵀ B = I | (m, r), (r, n) |

Minimises ‖W X − W' X‖² = Σ_{i>r} λ_i: no other W' of rank r has a smaller output error on the calibration tokens.
Layers are compressed in order, and the inputs of each come from the part of the model that is already compressed
(q, k, v together; then o; then gate, up; then down), so that a layer can repair some of the error before it.

The paper compresses all linears of the last N blocks at one budget and leaves the others alone: 12 blocks at 0.46 for
0.8 overall, 24 at 0.33 for 0.5, in LLaMA-7B. That scheme is one of the allocations; uniform is the default.

Departures:
- C comes from G in f64; the outputs themselves are never stored. For m > n the m × m covariance is avoided by
  W = Q R and the eigenvectors of R G Rᵀ (n, n): the same subspace.
- Not centred. The paper says covariance, but its two linears have no mean term, and a centred covariance without one
  is never better.
- Directions that no token reached are ordered by the plain SVD of what is left of W.
";

/// PCA of the outputs, with sequential calibration.
pub struct Rom;

impl Method for Rom {
    fn card(&self) -> &'static MethodCard {
        &CARD
    }

    fn needs(&self) -> Needs {
        Needs::Gram
    }

    fn inputs(&self) -> Inputs {
        Inputs::Sequential
    }

    fn workspace(&self, m: usize, n: usize) -> Workspace {
        output_pca::workspace(m, n)
    }

    fn decompose(&self, w: &Mat, stats: Option<&SiteStats>) -> Result<Decomposition> {
        output_pca::decompose(w, required(w, stats, CARD.name)?)
    }
}

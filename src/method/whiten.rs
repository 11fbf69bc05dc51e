//! Input whitening: the optimal low-rank approximation of a layer's outputs.

use super::{Decomposition, Inputs, Method, MethodCard, Needs, Workspace, output_pca, required};
use crate::calibrate::SiteStats;
use crate::linalg::Mat;
use crate::plan::AllocationRule;
use anyhow::Result;

static CARD: MethodCard = MethodCard {
    name: "whiten",
    summary: "the smallest output error at any rank, without a matrix inverse; ranks spread over the whole model",
    paper: "SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model Compression (arXiv 2403.07378)",
    citation: CITATION,
    doc: DOC,
};

const CITATION: &str = r"@inproceedings{wang2025svdllm,
  title = {{SVD-LLM}: Truncation-aware Singular Value Decomposition for Large Language Model Compression},
  author = {Wang, Xin and Zheng, Yu and Wan, Zhongwei and Zhang, Mi},
  booktitle = {International Conference on Learning Representations},
  year = {2025},
  eprint = {2403.07378},
  archivePrefix = {arXiv}
}";

const DOC: &str = r"
# whiten: optimal output approximation

Wang, Zheng, Wan and Zhang, *SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model
Compression*, arXiv 2403.07378, by a route that needs no inverse.

    paper:  G = S Sᵀ        W S = U Σ Vᵀ        W' = U_r Σ_r V_rᵀ S⁻¹
    here:   C = W G Wᵀ = U Σ² Uᵀ        B = U_r        A = U_rᵀ W        W' = B A

| symbol | meaning | shape |
|---|---|---|
| W | weight of the linear, y = W x | (m, n) |
| X | calibration inputs, one token per column | (n, tokens) |
| G | X Xᵀ; S is any square root of it | (n, n) |
| U, Σ² | eigenvectors and eigenvalues of C, σ_1 ≥ σ_2 ≥ … | (m, k), (k), k = min(m, n) |
| B, A | factors of rank r; Bᵀ B = I | (m, r), (r, n) |

Minimises ‖W X − W' X‖² = Σ_{i>r} σ_i². Both lines give the same W': since U_r U_rᵀ W S = U_r Σ_r V_rᵀ, multiplying by
S⁻¹ gives U_r U_rᵀ W. The second never divides by anything, so too few tokens or a dead channel cannot break it.
For m > n the m × m matrix is avoided: W = Q R, U = Q Z with Z the eigenvectors of R G Rᵀ (n, n).

Calibrated on the inputs of the original model, in one pass. By default the ranks follow one threshold on the weighted
energies of all linears together, and a linear that would keep its break-even rank m n / (m + n) stays dense.

Departures:
- No Cholesky factor and no damping.
- Directions that no token reached are ordered by the plain SVD of what is left of W.
";

/// Optimal output approximation, calibrated on the original model.
pub struct Whiten;

impl Method for Whiten {
    fn card(&self) -> &'static MethodCard {
        &CARD
    }

    fn needs(&self) -> Needs {
        Needs::Gram
    }

    fn inputs(&self) -> Inputs {
        Inputs::Dense
    }

    fn allocation(&self) -> AllocationRule {
        AllocationRule::Global
    }

    fn workspace(&self, m: usize, n: usize) -> Workspace {
        output_pca::workspace(m, n)
    }

    fn decompose(&self, w: &Mat, stats: Option<&SiteStats>) -> Result<Decomposition> {
        output_pca::decompose(w, required(w, stats, CARD.name)?)
    }
}

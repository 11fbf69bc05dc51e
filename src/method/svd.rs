//! Plain truncated SVD: the baseline every other method has to beat.

use super::{Decomposition, Inputs, Method, MethodCard, Needs};
use crate::calibrate::SiteStats;
use crate::linalg::{Mat, thin_svd};
use anyhow::Result;

static CARD: MethodCard = MethodCard {
    name: "svd",
    summary: "truncated SVD of the weight; looks at no data",
    paper: "Eckart and Young, The approximation of one matrix by another of lower rank (Psychometrika 1936)",
    citation: CITATION,
    doc: DOC,
};

const CITATION: &str = r"@article{eckart1936approximation,
  title = {The approximation of one matrix by another of lower rank},
  author = {Eckart, Carl and Young, Gale},
  journal = {Psychometrika},
  volume = {1},
  number = {3},
  pages = {211--218},
  year = {1936}
}";

const DOC: &str = r"
# svd: truncated singular value decomposition

Eckart and Young, *The approximation of one matrix by another of lower rank*, Psychometrika 1, 1936.

    W = U Σ Vᵀ        B = U_r Σ_r^(1/2)        A = Σ_r^(1/2) V_rᵀ        W' = B A

| symbol | meaning | shape |
|---|---|---|
| W | weight of the linear, y = W x | (m, n) |
| U, V | left and right singular vectors | (m, k), (n, k), k = min(m, n) |
| Σ | singular values, σ_1 ≥ σ_2 ≥ … | (k) |
| B, A | factors of rank r | (m, r), (r, n) |

Minimises ‖W − W'‖² = Σ_{i>r} σ_i². Every weight counts the same, whether its input is ever large or not, so this is
the baseline and not a recommendation.

Ours: the square root of Σ goes to either side, so that both factors keep their digits in half precision.
";

/// Truncated SVD.
pub struct PlainSvd;

impl Method for PlainSvd {
    fn card(&self) -> &'static MethodCard {
        &CARD
    }

    fn needs(&self) -> Needs {
        Needs::Nothing
    }

    fn inputs(&self) -> Inputs {
        Inputs::Dense
    }

    fn decompose(&self, w: &Mat, _stats: Option<&SiteStats>) -> Result<Decomposition> {
        let svd = thin_svd(w, "the weight")?;
        let roots: Vec<f64> = svd.s.iter().map(|s| s.sqrt()).collect();
        let mut b = svd.u;
        b.scale_cols(&roots);
        let mut a = svd.v.transpose();
        a.scale_rows(&roots);
        Ok(Decomposition { b, a, energy: svd.s.iter().map(|s| s * s).collect(), note: svd.note })
    }
}

//! The form that costs least, for every part of every block.

use super::DefaultValue::Fixed;
use super::option::Domain;
use super::{Decomposition, Inputs, Method, MethodCard, MethodOption, Needs, Workspace, output_pca, required};
use crate::calibrate::SiteStats;
use crate::linalg::{Mat, evd_symmetric};
use crate::plan::AllocationRule;
use anyhow::Result;

static CARD: MethodCard = MethodCard {
    name: "auto",
    summary: "every part of a block in the form that loses least: fewer channels, smaller heads, two factors, or dense",
    paper: "MoDeGPT (arXiv 2408.09632), FLAT-LLM (arXiv 2505.23966) for the forms; OBD-LLM (arXiv 2604.00821) for the measure",
    citation: CITATION,
    doc: DOC,
};

const CITATION: &str = r"@inproceedings{lin2025modegpt,
  title = {{MoDeGPT}: Modular Decomposition for Large Language Model Compression},
  author = {Lin, Chi-Heng and Gao, Shangqian and Smith, James Seale and Patel, Abhishek and Tuli, Shikhar and Shen, Yilin and Jin, Hongxia and Hsu, Yen-Chang},
  booktitle = {International Conference on Learning Representations},
  year = {2025},
  eprint = {2408.09632},
  archivePrefix = {arXiv}
}";

const DOC: &str = r"
# auto: a form for every part

Parts of a block, and the forms that each may take:

| part | forms | equations |
|---|---|---|
| q; k; any other linear by itself | two factors of rank r | below |
| v and o together | r of d value dimensions per head, a smaller cache | ‖M^½ O (z − P z)‖, P of rank r per KV group |
| gate, up and down together | n of N channels | W' = W Γ[:,S] Γ[S,S]⁻¹, Γ = Σ h hᵀ (Nyström) |
| any of them | dense | |

One measure for all of them. With y the output of the part's last linear, e the error of a form on it and g the gradient of
−log p on y, the label drawn from the model's own prediction,

    KL(original ‖ compressed) ≈ ½ mean (gᵀ e)² ≈ ½ tr(C E),    C = mean g gᵀ,    E = mean e eᵀ

in nats per token. What this leaves out, that errors are not small and grow on their way, one measurement per part puts
right: s is the KL of the part at half its size, alone, on calibration text, for what was predicted of it. One budget is then
shared out over the forms of all parts at once, the sum of s · ½ tr(C E) being least (a knapsack, `--allocation forms`).

| symbol | meaning | shape |
|---|---|---|
| W, x, G | weight, y = W x; input; Σ x xᵀ | (m, n), (n), (n, n) |
| C, M | output second moments, gradients clipped per token, shrunk by 0.3; M is C of o or down | (m, m) |
| h, Γ, S | what enters down, N channels, mean-free where down has a bias; the channels that stay | (N) |
| z, O, P | what enters o; its weight; projectors of the heads' values | (H d), (m, H d), (d, d) |

Two factors: with C = R², R symmetric, and R W ≈ U (Uᵀ R W) by principal components of R W x (`softlm methods whiten`),
factor B = R⁻¹ U and factor A = Uᵀ R W, least in tr(C (W − B A) G (W − B A)ᵀ). C is shrunk, so R⁻¹ is harmless.

Channels are taken one after the other, each the one that lowers tr(M E) most, by pivoted Cholesky of Γ: the errors of
all sizes are exact and down is its least-squares repair. Values: M_j = Σ O_hᵀ M O_h and S_j = Σ z_h z_hᵀ over the heads h of
KV group j give the projector of rank r that is least in tr(M_j (1 − P) S_j (1 − P)ᵀ); then o is repaired by least squares.

`--gradients false` takes C = I: no backward pass, and s alone makes parts comparable.

Departures:
- One measure and one knapsack for all forms; in the papers each form has a rule of its own.
- q and k take two factors, not fewer rotary pairs: at half their size that lost a third of the KL or less on SmolLM2-135M.
- Channels by exact forward selection instead of ridge leverage scores.
- G, Γ and S of fewer than 4 tokens per input are shrunk towards their diagonals: what seems to cost nothing was not seen.
- Sizes are multiples of 2 to 16, as hardware likes them, where that is about a hundredth of the part.
";

/// Whether output errors are weighted by gradients.
pub static GRADIENTS: MethodOption = MethodOption::new(
    "gradients",
    Domain::Switch,
    Fixed("true"),
    "weight errors by what they do to predictions: one backward pass",
);

/// A form for every part of a block.
pub struct Auto;

impl Method for Auto {
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
        AllocationRule::Forms
    }

    fn options(&self) -> &'static [&'static MethodOption] {
        static OPTIONS: [&MethodOption; 1] = [&GRADIENTS];
        &OPTIONS
    }

    fn workspace(&self, m: usize, n: usize) -> Workspace {
        output_pca::workspace(m, n)
    }

    fn decompose(&self, w: &Mat, stats: Option<&SiteStats>) -> Result<Decomposition> {
        output_pca::decompose(w, required(w, stats, CARD.name)?)
    }
}

/// What [`two_sided`] takes for a weight (m, n), or without second moments the decomposition alone.
pub fn two_sided_workspace(m: usize, n: usize, moments: bool) -> Workspace {
    let decomposing = output_pca::workspace(m, n);
    if !moments {
        return decomposing;
    }
    // The weight and C beside the eigenvectors of C; then these and the weighted weight, which is decomposed.
    let rooting = Workspace::evd(m).beside(m * n + m * m);
    let decomposing = decomposing.beside(m * n + 2 * m * m);
    let scratch = rooting.scratch.max(decomposing.scratch);
    let whole = (rooting.held + rooting.scratch).max(decomposing.held + decomposing.scratch);
    Workspace { held: whole - scratch, scratch }
}

/// Two factors that are least in tr(C (W − B A) G (W − B A)ᵀ), `output` C (m, m) symmetric and positive definite; energies
/// are the parts of that sum. B and A have the sizes that they have without C, whatever the size of C.
pub fn two_sided(w: &Mat, stats: &SiteStats, output: &Mat) -> Result<Decomposition> {
    let evd = evd_symmetric(output, "the second moments of gradients")?;
    let mean = (evd.values.iter().sum::<f64>() / evd.values.len().max(1) as f64).max(f64::MIN_POSITIVE);
    let roots: Vec<f64> = evd.values.iter().map(|&x| (x / mean).max(1e-10).sqrt()).collect();
    let scaled = |scales: Vec<f64>| {
        let mut vectors = evd.vectors.clone();
        vectors.scale_cols(&scales);
        vectors.nt_matmul(&evd.vectors)
    };
    let weighted = scaled(roots.clone()).matmul(w);
    let mut parts = output_pca::decompose(&weighted, stats)?;
    parts.b = scaled(roots.iter().map(|root| 1.0 / root).collect()).matmul(&parts.b);
    parts.energy.iter_mut().for_each(|energy| *energy *= mean);
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::GramSums;

    fn noise(rows: usize, cols: usize, seed: u64) -> Mat {
        let mut numbers = vec![0.0; rows * cols];
        crate::random::SplitMix64::fill_normal(seed, 0, &mut numbers);
        Mat::from_f32_rows(rows, cols, &numbers)
    }

    /// A weight (m, n), statistics of its inputs and second moments of its gradients.
    fn example(m: usize, n: usize) -> (Mat, SiteStats, Mat) {
        let mut stats = SiteStats::empty(n, true);
        stats.add(&noise(40, n, 2).to_f32_rows(), GramSums::F64);
        stats.gram.mirror_lower();
        let g = noise(m, 2 * m, 3);
        (noise(m, n, 1), stats, g.nt_matmul_symmetric(&g))
    }

    #[test]
    fn two_sided_factors_lose_what_they_say_and_less_than_one_sided_ones() {
        let (w, stats, output) = example(7, 5);
        let two = two_sided(&w, &stats, &output).unwrap();
        let one = output_pca::decompose(&w, &stats).unwrap();
        // tr(C (W − B A) G (W − B A)ᵀ)
        let lost = |parts: &Decomposition, rank| {
            let error = w.sub(&parts.b.col_range(0..rank).matmul(&parts.a.row_range(0..rank)));
            let e = output.matmul(&error.matmul(&stats.gram)).nt_matmul(&error);
            (0..e.rows()).map(|i| e.get(i, i)).sum::<f64>()
        };
        for rank in 1..=5 {
            let (found, said, scale) = (lost(&two, rank), two.loss(rank), two.loss(0));
            assert!((found - said).abs() < 1e-9 * scale, "rank {rank}: {found} for {said}");
            assert!(found <= lost(&one, rank) + 1e-9 * scale, "rank {rank}: {found} against {}", lost(&one, rank));
        }
        assert!(two.loss(2) < 0.9 * lost(&one, 2));
    }

    #[test]
    fn factors_do_not_grow_as_gradients_shrink() {
        let (w, stats, output) = example(6, 9);
        let usual = two_sided(&w, &stats, &output).unwrap();
        for scale in [1e-30, 1e12] {
            let mut scaled = output.clone();
            scaled.scale_rows(&[scale; 6]);
            let parts = two_sided(&w, &stats, &scaled).unwrap();
            assert!(parts.b.sub(&usual.b).frobenius() < 1e-9 * usual.b.frobenius(), "{scale:e}");
            assert!(parts.a.sub(&usual.a).frobenius() < 1e-9 * usual.a.frobenius(), "{scale:e}");
            assert!((parts.loss(2) / scale / usual.loss(2) - 1.0).abs() < 1e-9, "{scale:e}");
        }
    }
}

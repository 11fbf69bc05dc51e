//! The method that CONTRIBUTING.md shows.

// A method of its own: in `src/method/columns.rs` the paths begin with `super::` and `crate::`.
use anyhow::{Context, Result};
use softlm::calibrate::SiteStats;
use softlm::linalg::Mat;
use softlm::method::{Decomposition, Inputs, Method, MethodCard, Needs};

static CARD: MethodCard = MethodCard {
    name: "columns",
    summary: "the input channels that carry most of the output",
    paper: "Author, Title (arXiv 0000.00000)",
    citation: "@misc{author2026title,\n  title = {Title},\n  eprint = {0000.00000}\n}",
    doc: r"
# columns: the input channels that carry most of the output

    e_j = ‖W_j‖² ‖X_j‖²        B = columns of W in the order of e        A = rows of I in that order

| symbol | meaning | shape |
|---|---|---|
| W, W_j | weight of the linear, y = W x, and its columns | (m, n) |
| X_j | calibration inputs of channel j | (tokens) |

Minimises Σ_ij (W − W')_ij² ‖X_j‖² among all choices of r channels.
",
};

/// Column selection.
pub struct Columns;

impl Method for Columns {
    fn card(&self) -> &'static MethodCard {
        &CARD
    }

    fn needs(&self) -> Needs {
        Needs::Gram
    }

    fn inputs(&self) -> Inputs {
        Inputs::Dense
    }

    fn decompose(&self, w: &Mat, stats: Option<&SiteStats>) -> Result<Decomposition> {
        let inputs = stats.context("columns needs calibration statistics")?.squares();
        let square = |j: usize| w.col(j).iter().map(|x| x * x).sum::<f64>();
        let energy: Vec<f64> = inputs.iter().enumerate().map(|(j, input)| input * square(j)).collect();
        let mut order: Vec<usize> = (0..w.cols()).collect();
        order.sort_by(|&i, &j| energy[j].total_cmp(&energy[i]));
        Ok(Decomposition {
            b: Mat::from_fn(w.rows(), w.cols(), |i, k| w.get(i, order[k])),
            a: Mat::from_fn(w.cols(), w.cols(), |k, j| f64::from(order[k] == j)),
            energy: order.iter().map(|&j| energy[j]).collect(),
            note: None,
        })
    }
}
// The end of it.

#[test]
fn it_is_the_one_that_contributing_shows_and_does_what_it_says() {
    let (_, code) = include_str!("example_method.rs").split_once("\n// A method of its own").unwrap();
    let (code, _) = code.split_once("\n// The end of it.").unwrap();
    let (_, code) = code.split_once('\n').unwrap();
    let guide = include_str!("../../.github/CONTRIBUTING.md");
    assert!(guide.contains(code.trim()), "put this into CONTRIBUTING.md:\n{code}");

    let w = Mat::from_fn(3, 4, |i, j| ((5 * i + 3 * j) as f64).sin());
    let size = [2.0, 0.5, 3.0, 1.0];
    let gram = Mat::from_fn(4, 4, |i, j| if i == j { size[i] } else { 0.0 });
    let stats = SiteStats { tokens: 1, gram, sum: vec![0.0; 4], heldout: Vec::new() };
    let parts = Columns.decompose(&w, Some(&stats)).unwrap();
    for rank in 0..=4 {
        let left = parts.b.col_range(0..rank).matmul(&parts.a.row_range(0..rank));
        let off = |i: usize, j: usize| (w.get(i, j) - left.get(i, j)).powi(2) * size[j];
        let loss: f64 = (0..3).flat_map(|i| (0..4).map(move |j| (i, j))).map(|(i, j)| off(i, j)).sum();
        assert!((loss - parts.loss(rank)).abs() < 1e-12, "rank {rank}: {loss}");
    }
    let page = softlm::method::page(&Columns);
    assert!(page.contains("e_j = ") && page.contains("--inputs dense") && page.ends_with("}\n"), "{page}");
}

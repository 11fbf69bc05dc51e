//! LoRAP: low-rank attention, pruned feed-forward layers.

use super::option::{DefaultValue::Fixed, MethodOption, POSITIVE};
use super::{Decomposition, Inputs, Method, MethodCard, Needs, Workspace, awsvd, required};
use crate::calibrate::SiteStats;
use crate::linalg::Mat;
use crate::plan::AllocationRule;
use crate::user_bail;
use anyhow::{Result, ensure};
use std::ops::Range;

/// Share of the channels that stays although it is the least important.
const FLOOR: f64 = 0.01;

static CARD: MethodCard = MethodCard {
    name: "lorap",
    summary: "weighted SVD for attention with more rank for v and o, channel pruning for the feed-forward layers",
    paper: "LoRAP: Transformer Sub-Layers Deserve Differentiated Structured Compression for Large Language Models \
            (arXiv 2404.09695)",
    citation: CITATION,
    doc: DOC,
};

pub(super) const CITATION: &str = r"@inproceedings{li2024lorap,
  title = {{LoRAP}: Transformer Sub-Layers Deserve Differentiated Structured Compression for Large Language Models},
  author = {Li, Guangyan and Tang, Yongqiang and Zhang, Wensheng},
  booktitle = {International Conference on Machine Learning},
  year = {2024},
  eprint = {2404.09695},
  archivePrefix = {arXiv}
}";

const DOC: &str = r"
# lorap: low-rank attention, pruned feed-forward layers

Li, Tang and Zhang, *LoRAP: Transformer Sub-Layers Deserve Differentiated Structured Compression for Large Language
Models*, ICML 2024, arXiv 2404.09695.

Attention matrices are close to low rank, feed-forward matrices are not. So q, k, v, o are factorised by activation-
weighted SVD (`softlm methods awsvd`), with ρ times as many parameters left in v, o as in q, k:

    k_att = keep h / 2        q, k: 2 k_att / (1 + ρ)        v, o: 2 ρ k_att / (1 + ρ), dense from h / 2 on

and the feed-forward layer loses whole channels, without gradients:

    u_i = ‖ |W_up[i,:]| ∘ ‖X‖ ‖        g_i = ‖ |W_gate[i,:]| ∘ ‖X‖ ‖        c_i = ‖ W_down[:,i] ‖ · ‖H_i‖
    I_i = u_i + g_i + c_i

| symbol | meaning | shape |
|---|---|---|
| h, N | hidden size, width of the feed-forward layer | |
| W_up, W_gate | first layer(s) | (N, h) |
| W_down | second layer | (h, N) |
| ‖X‖ | norm of each input channel of up and gate over the calibration tokens | (h) |
| ‖H‖ | norm of each input channel of down | (N) |
| I | importance of each channel | (N) |

Channels are sorted by I, upwards. The least important 1 % *stay* (the paper finds them vital), the s N after them go,
s = 1 − keep: sorted positions int(0.01 N) up to int((s + 0.01) N), end excluded. Rows of up and gate (and their biases)
and columns of down disappear; what is left is stored dense and smaller.

All statistics of a block are taken while it is still dense, behind the compressed blocks before it.

Departures:
- Grouped-query attention: ranks are fractions of each matrix's own break-even rank m n / (m + n).
- Dead channels in the weighted SVD: a floor relative to the mean (`softlm methods awsvd`).
- State-space blocks have neither attention nor channels of a feed-forward layer: their linears keep the rank
  keep m n / (m + n). Of several experts each is a feed-forward layer of its own.
- Equal importance is broken by the channel number.
- No LoRA recovery.
";

/// ρ.
pub static RHO: MethodOption =
    MethodOption::new("rho", POSITIVE, Fixed("3"), "parameters kept in v and o per parameter kept in q and k")
        .symbol("ρ");

/// Weighted SVD for what is factorised. Which channels the feed-forward layer keeps is [`ffn_keep`]'s.
pub struct Lorap;

impl Method for Lorap {
    fn card(&self) -> &'static MethodCard {
        &CARD
    }

    fn needs(&self) -> Needs {
        Needs::Gram
    }

    fn inputs(&self) -> Inputs {
        Inputs::Blocks
    }

    fn allocation(&self) -> AllocationRule {
        AllocationRule::Lorap
    }

    fn options(&self) -> &'static [&'static MethodOption] {
        static OPTIONS: [&MethodOption; 1] = [&RHO];
        &OPTIONS
    }

    fn prunes_channels(&self) -> bool {
        true
    }

    fn channels(
        &self,
        entering: &SiteStats,
        inner: &SiteStats,
        gate: Option<&Mat>,
        up: &Mat,
        down: &Mat,
        keep: usize,
    ) -> Result<Vec<usize>> {
        ffn_keep(entering, inner, gate, up, down, keep, FLOOR)
    }

    fn workspace(&self, m: usize, n: usize) -> Workspace {
        // Beside the SVD's own the weight as it is.
        Workspace::svd(m, n).beside(m * n)
    }

    fn decompose(&self, w: &Mat, stats: Option<&SiteStats>) -> Result<Decomposition> {
        awsvd::decompose(w, required(w, stats, CARD.name)?)
    }
}

/// The feed-forward channels that stay, `keep` of N in ascending order.
///
/// `input` are the sums of what enters `up` and `gate` (N, h), `middle` of what enters `down` (h, N); `gate` is `None`
/// for a plain two-layer feed-forward block. Of the N channels in ascending order of importance the first
/// int(`floor` · N) stay, the N − `keep` after them go; the paper's floor is 0.01.
///
/// # Errors
/// Shapes that do not fit, `keep` of zero or more than N, NaN or infinite importance.
pub fn ffn_keep(
    input: &SiteStats,
    middle: &SiteStats,
    gate: Option<&Mat>,
    up: &Mat,
    down: &Mat,
    keep: usize,
    floor: f64,
) -> Result<Vec<usize>> {
    let (n, h) = (up.rows(), up.cols());
    ensure!(
        input.width() == h && middle.width() == n && down.cols() == n,
        "feed-forward shapes do not fit: up ({n}, {h}), down ({}, {}), statistics of {} and {} channels",
        down.rows(),
        down.cols(),
        input.width(),
        middle.width()
    );
    ensure!((1..=n).contains(&keep), "{keep} of {n} feed-forward channels cannot stay");
    let mut importance: Vec<f64> = (0..n)
        .zip(middle.squares())
        .map(|(i, square)| (square * down.col(i).iter().map(|x| x * x).sum::<f64>()).sqrt())
        .collect();
    let squares = input.squares();
    for first in gate.into_iter().chain([up]) {
        ensure!((first.rows(), first.cols()) == (n, h), "gate and up differ in shape");
        let mut rows = vec![0.0; n];
        for (j, square) in squares.iter().enumerate() {
            rows.iter_mut().zip(first.col(j)).for_each(|(sum, w)| *sum += w * w * square);
        }
        importance.iter_mut().zip(&rows).for_each(|(sum, row)| *sum += row.sqrt());
    }
    if importance.iter().any(|x| !x.is_finite()) {
        user_bail!("NaN or infinite values in the importance of the feed-forward channels"; "the checkpoint or the calibration statistics are damaged");
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| importance[i].total_cmp(&importance[j]));
    order.drain(removed(n, keep, floor));
    order.sort_unstable();
    Ok(order)
}

/// Which positions of the ascending order of importance go: those after the floor.
fn removed(n: usize, keep: usize, floor: f64) -> Range<usize> {
    let spared = ((n as f64 * floor) as usize).min(keep);
    spared..spared + n - keep
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(rows: usize, cols: usize, seed: u64) -> Mat {
        let mut state = seed;
        Mat::from_fn(rows, cols, |_, _| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as f64 / (1u64 << 31) as f64 - 0.5
        })
    }

    /// Statistics whose channel norms are these.
    fn norms(norms: &[f64]) -> SiteStats {
        let n = norms.len();
        let gram = Mat::from_fn(n, n, |i, j| if i == j { norms[i] * norms[i] } else { 0.0 });
        SiteStats { tokens: 1, gram, sum: vec![0.0; n], heldout: Vec::new() }
    }

    /// A layer of width n whose channels have the given importance, all of it from `down`.
    fn layer(importance: &[f64]) -> (SiteStats, SiteStats, Mat, Mat) {
        let n = importance.len();
        let down = Mat::from_fn(1, n, |_, i| importance[i]);
        (norms(&[1.0]), norms(&vec![1.0; n]), Mat::zeros(n, 1), down)
    }

    #[test]
    fn importance_is_the_sum_of_three_norms() {
        // One input of norm 2, middle norms 3, 5, 7: I = 2|gate| + 2|up| + |down|·norm.
        let (input, middle) = (norms(&[2.0]), norms(&[3.0, 5.0, 7.0]));
        let gate = Mat::from_rows(3, 1, &[-4.0, 0.0, 1.0]);
        let up = Mat::from_rows(3, 1, &[1.0, -3.0, 2.0]);
        let down = Mat::from_rows(2, 3, &[0.3, 0.6, 0.0, 0.4, -0.8, 1.0]);
        // 8 + 2 + 1.5 = 11.5;  0 + 6 + 5 = 11;  2 + 4 + 7 = 13
        assert_eq!(ffn_keep(&input, &middle, Some(&gate), &up, &down, 2, 0.0).unwrap(), [0, 2]);
        // Without the gate 3.5, 11, 11: the tie goes by channel.
        assert_eq!(ffn_keep(&input, &middle, None, &up, &down, 2, 0.0).unwrap(), [1, 2]);
        assert_eq!(ffn_keep(&input, &middle, None, &up, &down, 1, 0.0).unwrap(), [2]);
        // Two inputs of different size: rows are weighted before their norm is taken.
        let wide = Mat::from_rows(2, 2, &[3.0, 0.0, 0.0, 2.0]);
        let kept = ffn_keep(&norms(&[1.0, 2.0]), &norms(&[1.0, 1.0]), None, &wide, &Mat::zeros(2, 2), 1, 0.0).unwrap();
        assert_eq!(kept, [1]);
    }

    #[test]
    fn removed_positions_are_the_papers() {
        for (n, share, first, end, left) in [
            (11008, 0.20, 110, 2311, 8807),
            (11008, 0.25, 110, 2862, 8256),
            (11008, 0.30, 110, 3412, 7706),
            (11008, 0.50, 110, 5614, 5504),
            (13824, 0.20, 138, 2903, 11059),
            (13824, 0.25, 138, 3594, 10368),
            (13824, 0.30, 138, 4285, 9677),
            (13824, 0.50, 138, 7050, 6912),
        ] {
            assert_eq!(((share + 0.01) * n as f64) as usize, end);
            assert_eq!(removed(n, left, 0.01), first..end, "{n} {share}");
        }
        // Importance rises with the channel number, so sorted positions are channels.
        let (input, middle, up, down) = layer(&(0..300).map(|i| 1.0 + i as f64).collect::<Vec<_>>());
        let kept = ffn_keep(&input, &middle, None, &up, &down, 240, 0.01).unwrap();
        assert_eq!(kept, (0..3).chain(63..300).collect::<Vec<_>>());
    }

    #[test]
    fn the_floor_is_the_papers_only_while_it_fits() {
        let (input, middle, up, down) = layer(&[5.0, 1.0, 4.0, 2.0, 3.0]);
        let keep = |keep, floor| ffn_keep(&input, &middle, None, &up, &down, keep, floor).unwrap();
        assert_eq!(keep(3, 0.0), [0, 2, 4]);
        assert_eq!(keep(3, 0.2), [0, 1, 2]);
        assert_eq!(keep(5, 0.2), [0, 1, 2, 3, 4]);
        assert_eq!(keep(2, 0.9), [1, 3]);
    }

    #[test]
    fn the_choice_follows_the_channels_when_they_are_permuted() {
        let (n, h) = (40, 16);
        let (gate, up, down) = (noise(n, h, 1), noise(n, h, 2), noise(h, n, 3));
        let (input, middle_norms) = (norms(&vec![1.5; h]), (0..n).map(|i| 1.0 + i as f64 * 0.1).collect::<Vec<_>>());
        let kept = ffn_keep(&input, &norms(&middle_norms), Some(&gate), &up, &down, 23, 0.1).unwrap();
        let from = |i: usize| (i * 7 + 3) % n;
        let rows = |w: &Mat| Mat::from_fn(n, h, |i, j| w.get(from(i), j));
        let permuted_norms: Vec<f64> = (0..n).map(|i| middle_norms[from(i)]).collect();
        let permuted_down = Mat::from_fn(h, n, |i, j| down.get(i, from(j)));
        let permuted =
            ffn_keep(&input, &norms(&permuted_norms), Some(&rows(&gate)), &rows(&up), &permuted_down, 23, 0.1).unwrap();
        let mut back: Vec<usize> = permuted.into_iter().map(from).collect();
        back.sort_unstable();
        assert_eq!(back, kept);
        // A longer calibration text of the same kind changes nothing.
        let doubled: Vec<f64> = middle_norms.iter().map(|x| x * 2.0).collect();
        assert_eq!(ffn_keep(&norms(&vec![3.0; h]), &norms(&doubled), Some(&gate), &up, &down, 23, 0.1).unwrap(), kept);
    }

    #[test]
    fn damage_is_an_error() {
        let (input, middle, mut up, down) = layer(&[1.0, 2.0, 3.0]);
        for keep in [0, 4] {
            assert!(ffn_keep(&input, &middle, None, &up, &down, keep, 0.01).is_err());
        }
        assert!(ffn_keep(&middle, &middle, None, &up, &down, 2, 0.01).is_err());
        assert!(ffn_keep(&input, &middle, Some(&Mat::zeros(2, 1)), &up, &down, 2, 0.01).is_err());
        up.set(1, 0, f64::NAN);
        let error = ffn_keep(&input, &middle, None, &up, &down, 2, 0.01).unwrap_err();
        assert!(error.to_string().contains("NaN"), "{error}");
    }
}

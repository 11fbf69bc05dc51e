//! SoCo: importance scores learned on the singular spectrum.

use super::option::DefaultValue::{Absent, Fixed};
use super::option::Domain::{OneOf, Switch};
use super::option::{BELOW_ONE, MethodOption, NOT_NEGATIVE, POSITIVE, words};
use super::spectral::{
    BASIS, BATCH, Controlled, LastPhase, Phase, PhaseSpec, Pressure, STEPS, ScoreMap, Share, Spectral,
    SpectralSettings, TOKENS, Trains, UNIT, Worth, learned, phase,
};
use super::{Decomposition, Inputs, Method, MethodCard, Needs, Workspace, whiten::Whiten};
use crate::calibrate::SiteStats;
use crate::linalg::Mat;
use crate::plan::AllocationRule;
use anyhow::Result;
use candle_core::Tensor;

static CARD: MethodCard = MethodCard {
    name: "soco",
    summary: "importance scores on a frozen spectrum, learned by distillation; survivors may be amplified",
    paper: "SoCo: Progressive Spectrum Optimization for Large Language Model Compression (arXiv 2502.15092)",
    citation: CITATION,
    doc: DOC,
};

const CITATION: &str = r"@misc{li2025soco,
  title = {Optimizing Singular Spectrum for Large Language Model Compression},
  author = {Li, Dengjie and Shen, Tiancheng and Zhou, Yao and Yang, Baisong and Liu, Zhongying and Yang, Masheng and
            Ghanem, Bernard and Yang, Yibo and Zhong, Yujie and Yang, Ming-Hsuan},
  year = {2025},
  eprint = {2502.15092},
  archivePrefix = {arXiv}
}";

const DOC: &str = r"
# soco: learned importance of spectral components

*Progressive Spectrum Optimization for Large Language Model Compression* (SoCo), arXiv 2502.15092.

    W = U Σ Vᵀ        W' = U (Σ ∘ S) Vᵀ        y = W' x + bias + d
    s_i = 2 sigmoid(θ_i)        z_i = 1[s_i > τ]
    ratio = Σ_l min(|z_l| (m_l + n_l), m_l n_l) / Σ_l m_l n_l

| symbol | meaning | shape |
|---|---|---|
| W | weight of the linear, y = W x | (m, n) |
| U, Σ, V | its components, frozen | (m, k), (k), (n, k), k = min(m, n) |
| S, s | importance scores, 1 at the start; above 1 they amplify | (k) |
| θ | what is trained in their place, 0 at the start | (k) |
| d | output deviation, trained, 0 at the start; stored as a bias and counted in the budget | (m) |
| z, τ | what counts as kept, and above which score | (k) |

After three phases of one continuous run the components that are worth most per parameter are kept, over all linears, as
many as the budget pays for and whatever their place in the spectrum; their scores and Σ are folded into two factors. A
linear for which that is better, or whose rank reaches m n / (m + n), is put together again and stored dense.

The published parts are the form of W', the scores above 1, the deviation, the three phases and the roles of the losses.
Formulas and constants are our reading. In particular:
- The ratio's gradient counts m + n for every component (as if z were s), also where the dense form bounds the ratio:
  otherwise a matrix above break-even would feel no pressure.
- In refinement the second term of the loss is off below the budget, and what was dropped too early comes back.
- `last_phase = cut` takes from the first two phases what is worth keeping and nothing else: scores on their way down are
  no gates to cut with. Now and then the model is cut by what its components are worth, the survivors with scores of 1, and
  judged on held-out windows. The last phase makes the best of these cuts final and amplifies its survivors to make up for
  what is gone. `last_phase = sparsity` is the published one: gradients pass z as if it were s.
- l1 is three times what the budget costs a model that is not trained: held-out loss per share of the linears' parameters
  given up, when all are cut alike (`pressure` sets l1 itself). A component whose loss costs more than its parameters
  times l1 stays, a weaker one goes.
- The `basis` may be that of the outputs; see the recipe in configs/ for what each achieves.
- With `worth = energy` a component is worth (s σ)² in the end, with σ in a `unit` that makes linears comparable.
- The paper trains scores and d only. `--heal STEPS` trains the factors themselves in a last part of the run, which
  is more than the paper does.
";

/// l1 in units of what the budget costs: enough for the size to get to it.
const PRICES: f64 = 3.0;

// What served best on small models (README, "How good").
static EXPLORE: MethodOption =
    learned("explore", NOT_NEGATIVE, Fixed("0.25"), "share of the steps in which the size falls to the budget");
static REFINE: MethodOption =
    learned("refine", NOT_NEGATIVE, Fixed("0.25"), "share of the steps in which the size oscillates around the budget");
static OPTIONS: &[&MethodOption] = &[
    &BATCH,
    &TOKENS,
    &STEPS,
    // Scores must not jump in the last phase, which is what a short run is good for: no longer steps for fewer of them.
    &learned("lr", POSITIVE, Fixed("0.1"), "learning rate of θ"),
    &BASIS,
    &UNIT,
    &learned("pressure", POSITIVE, Absent("3 × what the budget costs"), "pressure on the size").symbol("l1"),
    &EXPLORE,
    &REFINE,
    &learned("score_map", OneOf(words::<ScoreMap>), Fixed("sigmoid"), "score s of θ").symbol("s"),
    &learned("cut", BELOW_ONE, Fixed("0.3"), "score above which a component counts as kept").symbol("τ"),
    &learned("worth", OneOf(words::<Worth>), Fixed("energy"), "what decides which components stay"),
    &learned("last_phase", OneOf(words::<LastPhase>), Fixed("cut"), "what the last phase trains"),
    &learned("sparsity", NOT_NEGATIVE, Fixed("0.1"), "weight of the sparsity term of `last_phase = sparsity`")
        .symbol("l2"),
    &learned("deviation", Switch, Fixed("true"), "train an output deviation per linear").symbol("d"),
    &learned("deviation_lr", POSITIVE, Fixed("0.001"), "learning rate of d"),
];

const KL: &str = "KL(original ‖ compressed)";
const LOSS: &str = "KL(original ‖ compressed) + l1 · max(0, ratio − keep)";
static PHASES: &[PhaseSpec] = &[
    phase("exploration", Phase::Explore, Share::Of(&EXPLORE), "s", LOSS),
    phase("refinement", Phase::Refine, Share::Of(&REFINE), "s", LOSS),
    phase("last_phase = cut", Phase::Sparsify, Share::Rest, "s of the final cut, from s = 1, d = 0; 0 elsewhere", KL),
    phase(
        "last_phase = sparsity",
        Phase::Sparsify,
        Share::Rest,
        "s ∘ z",
        "that of refinement + l2 · mean of s over s ≤ τ",
    ),
];

/// Learned importance scores.
pub struct Soco;

impl Method for Soco {
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
        AllocationRule::Learned
    }

    fn options(&self) -> &'static [&'static MethodOption] {
        OPTIONS
    }

    fn learned(&self) -> Option<&'static dyn Spectral> {
        Some(&Soco)
    }

    fn workspace(&self, m: usize, n: usize) -> Workspace {
        Whiten.workspace(m, n)
    }

    fn decompose(&self, w: &Mat, stats: Option<&SiteStats>) -> Result<Decomposition> {
        Whiten.decompose(w, stats)
    }
}

impl ScoreMap {
    /// s(θ) and ds/dθ.
    fn score(self, theta: f64) -> (f64, f64) {
        match self {
            ScoreMap::Sigmoid => {
                let s = 2.0 / (1.0 + (-theta).exp());
                (s, s * (1.0 - 0.5 * s))
            }
            ScoreMap::Tanh => {
                let t = theta.tanh();
                (1.0 + t, 1.0 - t * t)
            }
            ScoreMap::Exp => (theta.exp(), theta.exp()),
        }
    }

    fn tensor(self, theta: &Tensor) -> Result<Tensor> {
        Ok(match self {
            // 2 sigmoid(θ) = 1 + tanh(θ/2)
            ScoreMap::Sigmoid => ((theta * 0.5)?.tanh()? + 1.0)?,
            ScoreMap::Tanh => (theta.tanh()? + 1.0)?,
            ScoreMap::Exp => theta.exp()?,
        })
    }
}

impl Soco {
    fn scored(&self, settings: &SpectralSettings, linear: &Controlled) -> Vec<(f64, f64)> {
        linear.control.iter().map(|&theta| settings.score_map.score(theta)).collect()
    }
}

impl Spectral for Soco {
    fn trains(&self, settings: &SpectralSettings) -> Trains {
        Trains { basis: false, spectrum: false, deviation: settings.deviation }
    }

    fn phases(&self) -> &'static [PhaseSpec] {
        PHASES
    }

    fn ends_on_a_cut(&self, settings: &SpectralSettings) -> bool {
        settings.last_phase == LastPhase::Cut
    }

    fn steers(&self, _: &SpectralSettings) -> bool {
        false
    }

    fn usual_pressure(&self, price: &dyn Fn() -> Result<f64>) -> Result<f64> {
        Ok(PRICES * price()?)
    }

    fn start(&self, k: usize) -> Vec<f32> {
        vec![0.0; k]
    }

    fn gates(
        &self,
        settings: &SpectralSettings,
        phase: Phase,
        _: &Tensor,
        _: &Tensor,
        control: &Tensor,
    ) -> Result<Tensor> {
        let s = settings.score_map.tensor(control)?;
        if phase != Phase::Sparsify || self.ends_on_a_cut(settings) {
            return Ok(s);
        }
        let now = s.detach();
        let z = now.gt(settings.cut)?.to_dtype(now.dtype())?;
        // The value of z, the gradient of s.
        let through = (&s + (z - now)?)?;
        Ok((s * through)?)
    }

    /// s² (m + n), or (s σ)² (m + n).
    fn worth(&self, settings: &SpectralSettings, linear: &Controlled) -> Vec<f64> {
        let scores = self.scored(settings, linear).into_iter().zip(&linear.sigma);
        let size = |((s, _), sigma): ((f64, f64), &f64)| if settings.worth == Worth::Energy { s * sigma } else { s };
        scores.map(|pair| size(pair).powi(2) * linear.unit).collect()
    }

    fn kept(&self, settings: &SpectralSettings, linear: &Controlled) -> usize {
        self.scored(settings, linear).iter().filter(|(s, _)| *s > settings.cut).count()
    }

    fn final_gates(&self, settings: &SpectralSettings, linear: &Controlled, _: &[f64], kept: &[usize]) -> Vec<f64> {
        let scores = self.scored(settings, linear);
        kept.iter().map(|&i| scores[i].0).collect()
    }

    /// l1 (ratio − keep), with the unbounded count in the gradient, and in the last phase l2 · mean of the small scores.
    fn pressure(&self, settings: &SpectralSettings, phase: Phase, linears: &[Controlled], strength: f64) -> Pressure {
        let scores: Vec<Vec<(f64, f64)>> = linears.iter().map(|linear| self.scored(settings, linear)).collect();
        let small: usize = scores.iter().flatten().filter(|(s, _)| *s <= settings.cut).count();
        let sparsity = if phase == Phase::Sparsify { settings.sparsity / small.max(1) as f64 } else { 0.0 };
        let mut loss = 0.0;
        let mut gradients = Vec::with_capacity(linears.len());
        for (linear, scores) in linears.iter().zip(&scores) {
            let kept = scores.iter().filter(|(s, _)| *s > settings.cut).count();
            loss += strength * (kept as f64 * linear.unit).min(linear.whole);
            let term = |&(s, slope): &(f64, f64)| {
                let below = if s <= settings.cut { sparsity } else { 0.0 };
                loss += below * s;
                (strength * linear.unit + below) * slope
            };
            gradients.push(scores.iter().map(term).collect());
        }
        Pressure { loss, gradients }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::spectral::{Basis, Pace, Unit};
    use candle_core::{Device, Var};

    fn settings(score_map: ScoreMap) -> SpectralSettings {
        SpectralSettings {
            basis: Basis::Weight,
            unit: Unit::Raw,
            worth: Worth::Score,
            pace: Pace::Constant,
            pressure: None,
            sharpness: 50.0,
            train_basis: true,
            score_map,
            cut: 0.5,
            last_phase: LastPhase::Sparsity,
            sparsity: 0.3,
            deviation: true,
        }
    }

    const MAPS: [ScoreMap; 3] = [ScoreMap::Sigmoid, ScoreMap::Tanh, ScoreMap::Exp];

    #[test]
    fn scores_start_at_one_may_amplify_and_have_the_right_slope() {
        for map in MAPS {
            assert_eq!(map.score(0.0).0, 1.0);
            assert!(map.score(1.0).0 > 1.0 && map.score(-3.0).0 < 0.2);
            for theta in [-2.0, -0.3, 0.0, 0.8] {
                let difference = (map.score(theta + 1e-6).0 - map.score(theta - 1e-6).0) / 2e-6;
                assert!((difference - map.score(theta).1).abs() < 1e-8, "{map:?} {theta}");
                let theta = Var::from_vec(vec![theta], 1, &Device::Cpu).unwrap();
                let s = map.tensor(&theta).unwrap();
                let slope = s.sum_all().unwrap().backward().unwrap().get(&theta).unwrap().to_vec1::<f64>().unwrap()[0];
                let value = theta.to_vec1::<f64>().unwrap()[0];
                assert!((s.to_vec1::<f64>().unwrap()[0] - map.score(value).0).abs() < 1e-12);
                assert!((slope - map.score(value).1).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn the_last_phase_silences_dropped_components_but_lets_their_gradient_through() {
        let settings = settings(ScoreMap::Sigmoid);
        // s = 1.462, 0.538, 0.238
        let theta = Var::from_vec(vec![1.0f64, -1.0, -2.0], 3, &Device::Cpu).unwrap();
        let unused = theta.detach();
        let gates = |phase| Soco.gates(&settings, phase, &unused, &unused, &theta).unwrap();
        let early = gates(Phase::Refine).to_vec1::<f64>().unwrap();
        let late = gates(Phase::Sparsify);
        assert!((early[2] - 0.2384058).abs() < 1e-6);
        let values = late.to_vec1::<f64>().unwrap();
        assert!(values[2] == 0.0 && (values[0] - early[0]).abs() < 1e-12 && (values[1] - early[1]).abs() < 1e-12);
        // d(s z) = z ds + s dz with dz = ds
        let graph = late.sum_all().unwrap().backward().unwrap();
        let slopes = graph.get(&theta).unwrap().to_vec1::<f64>().unwrap();
        for (i, z) in [1.0, 1.0, 0.0].into_iter().enumerate() {
            let (s, slope) = ScoreMap::Sigmoid.score([1.0, -1.0, -2.0][i]);
            assert!((slopes[i] - (z + s) * slope).abs() < 1e-12, "{i}");
        }
    }

    #[test]
    fn pressure_is_the_gradient_of_the_unbounded_ratio_and_of_the_small_scores() {
        let settings = settings(ScoreMap::Sigmoid);
        let linear = |unit: f64, control: Vec<f64>| Controlled { unit, whole: 0.25, sigma: vec![1.0; 3], control };
        let linears = [linear(0.1, vec![0.0, 0.5, -2.0]), linear(0.2, vec![0.0, 0.0, -3.0])];
        let early = Soco.pressure(&settings, Phase::Explore, &linears, 2.0);
        // Two of 0.1 and two of 0.2, the second bounded by 0.25.
        assert!((early.loss - 2.0 * (0.2 + 0.25)).abs() < 1e-12);
        assert!((early.gradients[1][0] - 2.0 * 0.2 * 0.5).abs() < 1e-12, "bounded, but under pressure");
        let late = Soco.pressure(&settings, Phase::Sparsify, &linears, 2.0);
        let (s1, slope1) = ScoreMap::Sigmoid.score(-2.0);
        let (s2, _) = ScoreMap::Sigmoid.score(-3.0);
        assert!((late.loss - early.loss - 0.3 * (s1 + s2) / 2.0).abs() < 1e-12);
        assert!((late.gradients[0][2] - early.gradients[0][2] - 0.15 * slope1).abs() < 1e-12);
        assert_eq!(late.gradients[0][0], early.gradients[0][0]);
    }
}

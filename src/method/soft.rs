//! SoftLMs: ranks learned by a trainable soft threshold on each spectrum.

use super::option::DefaultValue::{self, Derived, Fixed, OrWithTask};
use super::option::Domain::{OneOf, Switch};
use super::option::{MethodOption, NOT_NEGATIVE, OptionValues, POSITIVE, RunFacts, words};
use super::spectral::{
    BASIS, BATCH, Controlled, Pace, Phase, PhaseSpec, Pressure, STEPS, Share, Spectral, SpectralSettings, TOKENS,
    Trains, UNIT, learned, phase,
};
use super::{Decomposition, Inputs, Method, MethodCard, Needs, Workspace, whiten::Whiten};
use crate::calibrate::SiteStats;
use crate::linalg::Mat;
use crate::plan::AllocationRule;
use anyhow::Result;
use candle_core::Tensor;
use toml::Value;

static CARD: MethodCard = MethodCard {
    name: "soft",
    summary: "a soft threshold on each spectrum, learned with the factors by distillation: ranks come out of training",
    paper: "SoftLMs: Efficient Adaptive Low-Rank Approximation of Language Models using Soft-Thresholding Mechanism \
            (arXiv 2411.10543)",
    citation: CITATION,
    doc: DOC,
};

const CITATION: &str = r"@misc{bhatnagar2024softlms,
  title = {{SoftLMs}: Efficient Adaptive Low-Rank Approximation of Language Models using Soft-Thresholding Mechanism},
  author = {Bhatnagar, Priyansh and Wen, Linfeng and Kang, Mingu},
  year = {2024},
  eprint = {2411.10543},
  archivePrefix = {arXiv}
}";

const DOC: &str = r"
# soft: ranks by a trainable soft threshold

Bhatnagar, Wen and Kang, *SoftLMs: Efficient Adaptive Low-Rank Approximation of Language Models using Soft-Thresholding
Mechanism*, arXiv 2411.10543.

    W = U Σ Vᵀ        W' = U diag(T(σ; α)) Vᵀ
    T(σ; α) = σ tanh(s (σ − α))  for σ > α,   0 otherwise
    dT/dσ = t + s σ (1 − t²)        dT/dα = − s σ (1 − t²)        t = tanh(s (σ − α))

| symbol | meaning | shape |
|---|---|---|
| W | weight of the linear, y = W x | (m, n) |
| U, Σ, V | its components, trained | (m, k), (k), (n, k), k = min(m, n) |
| α | threshold of the linear, trained, 0 at the start | (1) |
| s | sharpness: values within about 3/s above α are damped | |
| λ | pressure on the thresholds | |

U, σ, V and α are trained: the second term of the loss raises the thresholds, the first holds them back where components
matter. When the budget is met the thresholds are frozen, what lies below them is dropped, T(σ; α) is folded into the
factors. A linear whose rank reaches m n / (m + n) is put together again and stored dense. Then the factors are trained on.

What is published of the method is its structure; the function T and its constants are those of a later paper by the
same first author. Departures and readings, all of them ours:
- The first term is the task's loss, as in the paper, where `--task` names labelled examples: cross-entropy of the class, or
  the squared error of a score. Otherwise it is KL to the original's predictions, of tokens or of classes; for an encoder
  without a head 1 − cosine to its states.
- T is scale-dependent and spectra of different linears are not comparable, so σ is measured in a `unit`.
  A step of training changes σ relative to its size.
- The `basis` may be that of the outputs; see the recipe in configs/ for what each achieves.
- With `pace = even` each linear's term is weighted by its size.
- At the freeze all thresholds are scaled by one common factor so that the budget is met exactly: a component is worth
  (σ / α)² (m + n), and the allocation is that of `whiten`, with dense as an option. A component that comes back by this
  gets the gate of the shifted threshold.
";

static PRESSURE: MethodOption =
    learned("pressure", POSITIVE, Fixed("0.1"), "pressure on the thresholds, or where it starts").symbol("λ");
static EXPLORE: MethodOption =
    learned("explore", NOT_NEGATIVE, Fixed("1"), "share of the steps in which the size falls to the budget");
const RATE: DefaultValue = Derived { says: "4 / steps, from 0.06 to 0.4", value: usual_rate };
static OPTIONS: &[&MethodOption] = &[
    &BATCH,
    &TOKENS,
    &STEPS,
    &learned("lr", POSITIVE, RATE, "learning rate of the thresholds"),
    &BASIS,
    &UNIT,
    &PRESSURE,
    &learned("pace", OneOf(words::<Pace>), Fixed("even"), "how the pressure changes"),
    &EXPLORE,
    &learned("sharpness", POSITIVE, Fixed("50"), "sharpness of the threshold").symbol("s"),
    &learned("train_basis", Switch, Fixed("true"), "train U, σ and V beside the thresholds, as the paper does"),
    &learned("basis_lr", POSITIVE, OrWithTask("0.01", "0.0003"), "learning rate of U, σ and V, relative to their size"),
];

const LOSS: &str = "KL(original ‖ compressed) + λ Σ_l exp(−α_l)";
static PHASES: &[PhaseSpec] = &[
    phase("thresholds rise", Phase::Explore, Share::Of(&EXPLORE), "T(σ; α) / σ", LOSS),
    phase("the size stays", Phase::Explore, Share::Rest, "T(σ; α) / σ", LOSS),
    phase("factors alone", Phase::Explore, Share::Heal, "folded in", "KL(original ‖ compressed)"),
];

/// Thresholds have some way to go, at most one rate per step, before they cut anything: a short run needs longer steps.
fn usual_rate(before: &OptionValues, _: &RunFacts) -> Result<Value> {
    Ok(Value::Float((4.0 / before.get::<f64>(&STEPS)?).clamp(0.06, 0.4)))
}

/// Trainable soft thresholds.
pub struct Soft;

impl Method for Soft {
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
        Some(&Soft)
    }

    fn workspace(&self, m: usize, n: usize) -> Workspace {
        Whiten.workspace(m, n)
    }

    fn decompose(&self, w: &Mat, stats: Option<&SiteStats>) -> Result<Decomposition> {
        Whiten.decompose(w, stats)
    }
}

/// T(σ; α) / σ: 0 up to the threshold, then tanh(s (σ − α)).
pub fn soft_gate(sigma: f64, alpha: f64, sharpness: f64) -> f64 {
    if sigma > alpha { (sharpness * (sigma - alpha)).tanh() } else { 0.0 }
}

/// Thresholds below this are as good as none.
const SMALLEST: f64 = 1e-3;

fn threshold(linear: &Controlled) -> f64 {
    linear.control.first().copied().unwrap_or(0.0)
}

impl Spectral for Soft {
    fn trains(&self, settings: &SpectralSettings) -> Trains {
        Trains { basis: settings.train_basis, spectrum: settings.train_basis, deviation: false }
    }

    fn phases(&self) -> &'static [PhaseSpec] {
        PHASES
    }

    fn ends_on_a_cut(&self, _: &SpectralSettings) -> bool {
        false
    }

    fn steers(&self, settings: &SpectralSettings) -> bool {
        settings.pace == Pace::Even
    }

    fn usual_pressure(&self, _: &dyn Fn() -> Result<f64>) -> Result<f64> {
        PRESSURE.fixed()
    }

    fn start(&self, _: usize) -> Vec<f32> {
        vec![0.0]
    }

    /// T(ρ σ; α) / σ.
    fn gates(
        &self,
        settings: &SpectralSettings,
        _: Phase,
        sigma: &Tensor,
        rho: &Tensor,
        control: &Tensor,
    ) -> Result<Tensor> {
        let above = ((sigma * rho)?.broadcast_sub(control)? * settings.sharpness)?;
        // A value at its threshold is dropped: nothing passes there, no gradient either.
        let passes = above.detach().gt(0f64)?.to_dtype(above.dtype())?;
        Ok(((rho * above.tanh()?)? * passes)?)
    }

    /// (σ / α)² (m + n): at its threshold a component of any linear is worth the same per parameter.
    fn worth(&self, _: &SpectralSettings, linear: &Controlled) -> Vec<f64> {
        let alpha = threshold(linear).max(SMALLEST);
        linear.sigma.iter().map(|sigma| (sigma / alpha).powi(2) * linear.unit).collect()
    }

    fn kept(&self, _: &SpectralSettings, linear: &Controlled) -> usize {
        let alpha = threshold(linear);
        linear.sigma.iter().filter(|&&sigma| sigma > alpha).count()
    }

    fn final_gates(&self, settings: &SpectralSettings, linear: &Controlled, rho: &[f64], kept: &[usize]) -> Vec<f64> {
        let smallest = kept.iter().map(|&i| linear.sigma[i]).fold(f64::INFINITY, f64::min);
        let dropped = (0..linear.sigma.len()).filter(|i| kept.binary_search(i).is_err());
        let largest = dropped.map(|i| linear.sigma[i]).fold(0.0, f64::max);
        // Halfway between what stays and what goes, if the trained threshold is above that.
        let alpha = threshold(linear).min(0.5 * (smallest + largest.min(smallest)));
        kept.iter().map(|&i| rho[i] * soft_gate(linear.sigma[i], alpha, settings.sharpness)).collect()
    }

    /// λ Σ w_l exp(−α_l), w_l = 1 or the linear's size relative to the mean.
    fn pressure(&self, settings: &SpectralSettings, _: Phase, linears: &[Controlled], strength: f64) -> Pressure {
        let count = linears.len() as f64;
        let terms: Vec<f64> = linears
            .iter()
            .map(|linear| {
                let weight = if settings.pace == Pace::Even { linear.whole * count } else { 1.0 };
                strength * weight * (-threshold(linear)).exp()
            })
            .collect();
        Pressure { loss: terms.iter().sum(), gradients: terms.iter().map(|term| vec![-term]).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::spectral::{Basis, LastPhase, ScoreMap, Unit, Worth};
    use candle_core::{DType, Device, Var};

    fn settings() -> SpectralSettings {
        SpectralSettings {
            basis: Basis::Weight,
            unit: Unit::Raw,
            worth: Worth::Score,
            pace: Pace::Constant,
            pressure: None,
            sharpness: 50.0,
            train_basis: true,
            score_map: ScoreMap::Sigmoid,
            cut: 0.5,
            last_phase: LastPhase::Sparsity,
            sparsity: 0.0,
            deviation: false,
        }
    }

    /// T, dT/dσ and dT/dα by the graph, f64.
    fn threshold_function(x: f64, alpha: f64) -> [f64; 3] {
        let device = Device::Cpu;
        let sigma = Tensor::ones(1, DType::F64, &device).unwrap();
        let (x, alpha) = (Var::from_vec(vec![x], 1, &device).unwrap(), Var::from_vec(vec![alpha], 1, &device).unwrap());
        let t = Soft.gates(&settings(), Phase::Explore, &sigma, &x, &alpha).unwrap();
        let graph = t.sum_all().unwrap().backward().unwrap();
        let read = |tensor: &Tensor| tensor.to_vec1::<f64>().unwrap()[0];
        [read(&t), read(graph.get(&x).unwrap()), read(graph.get(&alpha).unwrap())]
    }

    #[test]
    fn the_threshold_function_has_the_published_values() {
        for (x, expected) in [
            (0.3, [0.0, 0.0, 0.0]),
            (0.5, [0.0, 0.0, 0.0]),
            (0.501, [0.0250291459, 25.0374376, -24.9874792]),
            (0.51, [0.2356797502, 20.5165343, -20.0544171]),
            (0.52, [0.3960289611, 11.6809270, -10.9193329]),
            (0.55, [0.5426378640, 1.7179005, -0.7312862]),
            (0.6, [0.5999455226, 1.0053567, -0.0054475]),
            (1.0, [1.0, 1.0, 0.0]),
        ] {
            let found = threshold_function(x, 0.5);
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() <= 1e-7 * (1.0 + expected.abs()), "{x}: {found} for {expected}");
            }
            assert!((x * soft_gate(x, 0.5, 50.0) - expected[0]).abs() < 1e-9);
        }
    }

    #[test]
    fn it_rises_with_the_value_falls_with_the_threshold_and_never_amplifies() {
        let t = |x: f64, alpha: f64| x * soft_gate(x, alpha, 50.0);
        for i in 0..200 {
            let x = f64::from(i) * 0.01;
            assert!((0.0..=x).contains(&t(x, 0.7)) && t(x + 0.01, 0.7) >= t(x, 0.7) && t(x, 0.71) <= t(x, 0.7));
        }
        assert!(t(1.0, 1.0 - 3.0 / 50.0) > 0.99 && t(1.0, 1.0) == 0.0);
    }

    #[test]
    fn pressure_raises_every_threshold() {
        let linear = |whole: f64, alpha: f64| Controlled { unit: 0.01, whole, sigma: vec![1.0], control: vec![alpha] };
        let linears = [linear(0.75, 0.0), linear(0.25, 2.0)];
        let constant = Soft.pressure(&settings(), Phase::Explore, &linears, 0.1);
        assert_eq!(constant.gradients, [vec![-0.1], vec![-0.1 * (-2f64).exp()]]);
        assert!((constant.loss - 0.1 * (1.0 + (-2f64).exp())).abs() < 1e-15);
        let even = SpectralSettings { pace: Pace::Even, ..settings() };
        let even = Soft.pressure(&even, Phase::Explore, &linears, 0.1);
        assert_eq!(even.gradients[0], [-0.1 * 1.5], "three quarters of two linears");
    }

    #[test]
    fn what_comes_back_is_gated_by_the_shifted_threshold() {
        let linear = Controlled { unit: 0.1, whole: 1.0, sigma: vec![3.0, 1.0, 0.8, 0.2], control: vec![0.9] };
        let rho = [1.0, 2.0, 1.0, 1.0];
        // Two pass the threshold: nothing changes when two are kept.
        let two = Soft.final_gates(&settings(), &linear, &rho, &[0, 1]);
        assert_eq!(two, [soft_gate(3.0, 0.9, 50.0), 2.0 * soft_gate(1.0, 0.9, 50.0)]);
        let three = Soft.final_gates(&settings(), &linear, &rho, &[0, 1, 2]);
        assert_eq!(three[2], soft_gate(0.8, 0.5, 50.0));
        let all = Soft.final_gates(&settings(), &linear, &rho, &[0, 1, 2, 3]);
        assert!(all[3] > 0.99, "{all:?}");
    }
}

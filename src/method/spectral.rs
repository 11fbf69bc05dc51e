//! What the learned methods have in common: W is a sum of components, and training finds out which of them matter.
//!
//! ```text
//! W = B A        W' = B diag(g) A        g_i = gate of component i, 1 at the start (or close to it)
//! ```
//! | symbol | meaning | shape |
//! |---|---|---|
//! | B, A | the basis: output and input side of each component | (m, k), (k, n), k = min(m, n) |
//! | σ | size of each component at the start, in the recipe's [`Unit`] | (k) |
//! | ρ | what training made of σ: the component's size is now ρ σ | (k) |
//! | control | the method's own parameters: one threshold per linear, or one number per component | (1) or (k) |
//!
//! A method is its gate, the pressure that it puts on its controls until the budget is met, and the score by which
//! components are kept in the end. How gradients reach these is not its business.

use super::option::DefaultValue::{self, Absent, Derived, Fixed, OrWithTask};
use super::option::Domain::{self, Count, OneOf};
use super::option::{MethodOption, OptionValues, RunFacts, words};
use crate::user_bail;
use anyhow::Result;
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use toml::Value;

/// Table of a recipe that the options of learned methods stand in.
const TABLE: &str = "learn";

/// An option of a learned method.
pub(super) const fn learned(
    key: &'static str,
    domain: Domain,
    default: DefaultValue,
    help: &'static str,
) -> MethodOption {
    MethodOption::new(key, domain, default, help).in_table(TABLE)
}

pub(super) static BATCH: MethodOption =
    learned("batch", Count, OrWithTask("8", "32"), "calibration windows, or examples of `--task`, per step");
pub(super) static TOKENS: MethodOption =
    learned("tokens", Count, Absent("none"), "instead of steps: as many as take this many tokens (needs `--window`)")
        .instead_of("steps");
pub(super) static STEPS: MethodOption =
    learned("steps", Count, Derived { says: "300", value: steps }, "steps in which the method learns what to keep");
pub(super) static BASIS: MethodOption =
    learned("basis", OneOf(words::<Basis>), Fixed("whitened"), "components to choose from");
pub(super) static UNIT: MethodOption =
    learned("unit", OneOf(words::<Unit>), Fixed("sensitivity"), "unit of the components' sizes");

fn steps(before: &OptionValues, run: &RunFacts) -> Result<Value> {
    let Ok(tokens) = before.get::<usize>(&TOKENS) else { return Ok(Value::Integer(300)) };
    if run.labelled {
        user_bail!("tokens = {tokens} counts tokens of text, but --task has examples"; "give steps");
    }
    let Some(window) = run.window else {
        user_bail!("tokens = {tokens} needs --window"; "say how long a window is, or give steps")
    };
    let step = before.get::<usize>(&BATCH)? * window;
    Ok(Value::Integer((tokens / step.max(1)).max(1) as i64))
}

/// Which decomposition of W the components come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Basis {
    /// The SVD of the weight itself, as both papers have it.
    #[default]
    Weight,
    /// The principal components of the outputs on the calibration text (`softlm methods whiten`).
    Whitened,
}

/// How hard the pressure of `soft` is at each step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Pace {
    /// Constant, until the budget is met.
    #[default]
    Constant,
    /// Raised and lowered step by step, so that the size falls evenly to the budget and then stays around it.
    Even,
}

/// What the last phase of `soco` works on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LastPhase {
    /// The final cut: its scores and deviations begin anew and are trained to make up for what is gone.
    #[default]
    Cut,
    /// Everything: a sparsity term drives out what is going to be dropped, as published.
    Sparsity,
}

/// The unit in which the sizes σ of a linear's components are measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// None: as the decomposition gives them.
    #[default]
    Raw,
    /// The median of the linear's own components.
    Median,
    /// What makes the sizes of different linears comparable: the square of a size, per parameter of its component, is
    /// in proportion to the divergence that cutting it costs, measured by cutting each linear alone; 1 is the median of
    /// the model.
    Sensitivity,
}

/// What a component of SoCo is worth in the end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Worth {
    /// Its score alone.
    #[default]
    Score,
    /// Its size after scoring.
    Energy,
}

/// How a free number θ becomes a score of SoCo. All are 1 at θ = 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ScoreMap {
    /// 2 sigmoid(θ), in (0, 2).
    #[default]
    Sigmoid,
    /// 1 + tanh(θ), in (0, 2).
    Tanh,
    /// exp(θ).
    Exp,
}

/// The constants of the learned methods, from the values of their options by key. Those that a method does not declare are
/// of no meaning to it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SpectralSettings {
    /// Where the components come from.
    pub basis: Basis,
    /// What sizes are measured in.
    pub unit: Unit,
    /// How the pressure of `soft` changes.
    pub pace: Pace,
    /// λ of `soft`, l1 of `soco`: the pressure, or where it starts; [`Spectral::usual_pressure`] without it.
    pub pressure: Option<f64>,
    /// s of `soft`.
    pub sharpness: f64,
    /// Whether `soft` trains the basis and ρ beside the thresholds.
    pub train_basis: bool,
    /// What decides in `soco` which components are kept.
    pub worth: Worth,
    /// Score function of `soco`.
    pub score_map: ScoreMap,
    /// τ of `soco`: a component counts as kept above this score.
    pub cut: f64,
    /// How `soco` ends.
    pub last_phase: LastPhase,
    /// l2 of `soco`: weight of the sparsity term in the last phase.
    pub sparsity: f64,
    /// Whether `soco` trains an output deviation for every linear.
    pub deviation: bool,
}

/// The phases of a training, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The size falls to the budget.
    Explore,
    /// The size oscillates around the budget: what was dropped too early comes back.
    Refine,
    /// What is going to be dropped is driven out.
    Sparsify,
}

/// One phase of a method's run.
pub struct PhaseSpec {
    /// Name in the paper, or what happens.
    pub name: &'static str,
    /// What the gates do in it.
    pub phase: Phase,
    /// How long it takes.
    pub share: Share,
    /// The gates, as a formula.
    pub gates: &'static str,
    /// What is minimised, as a formula.
    pub loss: &'static str,
}

pub(super) const fn phase(
    name: &'static str,
    phase: Phase,
    share: Share,
    gates: &'static str,
    loss: &'static str,
) -> PhaseSpec {
    PhaseSpec { name, phase, share, gates, loss }
}

/// How long a phase takes.
pub enum Share {
    /// The fraction of the steps that this option gives.
    Of(&'static MethodOption),
    /// What the phases before leave of the steps.
    Rest,
    /// The steps of `--heal`.
    Heal,
}

/// What is trained beside the controls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trains {
    /// B and A.
    pub basis: bool,
    /// ρ
    pub spectrum: bool,
    /// d, one number per output: y = W' x + bias + d.
    pub deviation: bool,
}

/// One linear as the pressure sees it.
pub struct Controlled {
    /// Parameters of one component, m + n, as a share of all linears' parameters.
    pub unit: f64,
    /// Parameters of the dense linear, m n, as a share of all linears' parameters.
    pub whole: f64,
    /// ρ σ now.
    pub sigma: Vec<f64>,
    /// The controls now.
    pub control: Vec<f64>,
}

/// What the pressure does at one step.
pub struct Pressure {
    /// Its part of the loss.
    pub loss: f64,
    /// Its gradient on the controls of every linear.
    pub gradients: Vec<Vec<f64>>,
}

/// A paper's way to learn which components matter.
pub trait Spectral: Sync {
    /// What is trained beside the controls.
    fn trains(&self, settings: &SpectralSettings) -> Trains;

    /// The phases of a run, in order.
    fn phases(&self) -> &'static [PhaseSpec];

    /// The phase when the fraction `done` of the steps, in [0, 1], is behind. `shares` are those of the phases that have an
    /// option for it, in order.
    fn phase_at(&self, shares: &[f64], done: f64) -> Phase {
        let (mut end, mut shares) = (0.0, shares.iter());
        let ends = self.phases().iter().filter(|spec| !matches!(spec.share, Share::Heal)).map(|spec| {
            match spec.share {
                Share::Of(_) => end += shares.next().copied().unwrap_or(0.0),
                _ => end = f64::INFINITY,
            }
            (spec.phase, end)
        });
        ends.into_iter().find(|(_, end)| done < *end).map_or(Phase::Explore, |(phase, _)| phase)
    }

    /// Whether the phases [`Phase::Refine`] and [`Phase::Sparsify`] exist.
    fn refines(&self) -> bool {
        self.phases().iter().any(|spec| spec.phase != Phase::Explore)
    }

    /// Whether the factors are trained on after the cut, as part of the method.
    fn heals(&self) -> bool {
        self.phases().iter().any(|spec| matches!(spec.share, Share::Heal))
    }

    /// Whether the phase [`Phase::Sparsify`] trains the components of a final cut, beginning anew with them, and no others.
    fn ends_on_a_cut(&self, settings: &SpectralSettings) -> bool;

    /// Whether the pressure changes from step to step; otherwise it is there as long as the size is above the budget.
    fn steers(&self, settings: &SpectralSettings) -> bool;

    /// The pressure if the recipe names none. `price` is what the budget costs a model that is not trained: held-out loss
    /// per share of the linears' parameters given up, when all are cut alike.
    fn usual_pressure(&self, price: &dyn Fn() -> Result<f64>) -> Result<f64>;

    /// The controls of a linear with `k` components at the start.
    fn start(&self, k: usize) -> Vec<f32>;

    /// The gates (k) for `sigma` (k) at the start, `rho` (k) and `control`, by operations that carry gradients.
    fn gates(
        &self,
        settings: &SpectralSettings,
        phase: Phase,
        sigma: &Tensor,
        rho: &Tensor,
        control: &Tensor,
    ) -> Result<Tensor>;

    /// What dropping each component of `linear` costs, comparable over all linears: what [`plan::global`] calls energy.
    ///
    /// [`plan::global`]: crate::plan::global
    fn worth(&self, settings: &SpectralSettings, linear: &Controlled) -> Vec<f64>;

    /// How many components of `linear` the training keeps at present.
    fn kept(&self, settings: &SpectralSettings, linear: &Controlled) -> usize;

    /// The gates of the components `kept` (ascending), which are all that is left of a linear, in units of σ at the
    /// start. `rho` is ρ now.
    fn final_gates(&self, settings: &SpectralSettings, linear: &Controlled, rho: &[f64], kept: &[usize]) -> Vec<f64>;

    /// The pressure of this `strength` on all `linears`.
    fn pressure(&self, settings: &SpectralSettings, phase: Phase, linears: &[Controlled], strength: f64) -> Pressure;
}

/// Share of all linears' parameters that these numbers of components need, a linear counting no more than its dense
/// form; and the same without that limit.
pub fn ratios(linears: &[Controlled], kept: &[usize]) -> (f64, f64) {
    linears.iter().zip(kept).fold((0.0, 0.0), |(bounded, free), (linear, &kept)| {
        let cost = kept as f64 * linear.unit;
        (bounded + cost.min(linear.whole), free + cost)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::by_name;

    #[test]
    fn phases_follow_each_other_by_their_shares() {
        let phases = |name: &str, shares: &[f64]| {
            let method = by_name(name).unwrap().learned().unwrap();
            [0.0, 0.2, 0.25, 0.49, 0.5, 0.99, 1.0].map(|done| method.phase_at(shares, done))
        };
        use Phase::{Explore, Refine, Sparsify};
        let thirds = [Explore, Explore, Refine, Refine, Sparsify, Sparsify, Sparsify];
        assert_eq!(phases("soco", &[0.25, 0.25]), thirds);
        assert_eq!(phases("soco", &[0.0, 0.25])[..3], [Refine, Refine, Sparsify]);
        assert_eq!(phases("soft", &[0.25, 0.0]), [Explore; 7]);
        let [soft, soco] = ["soft", "soco"].map(|name| by_name(name).unwrap().learned().unwrap());
        assert_eq!((soft.refines(), soft.heals(), soco.refines(), soco.heals()), (false, true, true, false));
    }
}

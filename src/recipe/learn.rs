//! What the learned methods are told: table `[learn]` of a recipe.

use super::size::parse_seconds;
use crate::learn::Objective;
use crate::method::{Basis, LastPhase, Method, Pace, ScoreMap, SpectralSettings, Unit, Worth};
use crate::user_bail;
use anyhow::Result;
use clap::Args;
use serde::{Deserialize, Serialize};

/// Options of `soft` and `soco`; the time limit and what is minimised also concern `--heal`.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LearnOptions {
    /// Steps in which soft and soco learn what to keep [default: 300]
    #[arg(long, env = "SOFTLM_STEPS", help_heading = "Learning")]
    pub steps: Option<usize>,

    /// Instead of --steps: as many as take this many tokens (needs --window)
    #[arg(long, env = "SOFTLM_TOKENS", conflicts_with = "steps", help_heading = "Learning")]
    pub tokens: Option<u64>,

    /// Calibration windows, or examples of --task, per step [default: 8, or 32 examples]
    #[arg(long, env = "SOFTLM_BATCH", help_heading = "Learning")]
    pub batch: Option<usize>,

    /// Time for learning and healing together, at most (`90s`, `20m`, `1.5h`)
    #[arg(long, env = "SOFTLM_MAX_TIME", help_heading = "Learning")]
    pub max_time: Option<String>,

    /// Share that the likelihood of the text itself has in what is minimised; the rest is the divergence from the original
    /// [default: 0]
    #[arg(long, env = "SOFTLM_LIKELIHOOD", help_heading = "Learning")]
    pub likelihood: Option<f64>,

    /// Temperature at which the original's predictions are compared while training [default: 1]
    #[arg(long, env = "SOFTLM_TEMPERATURE", help_heading = "Learning")]
    pub temperature: Option<f64>,

    /// Learning rate of thresholds (soft) and scores (soco) [default: soft 0.06, more if there are few steps;
    /// soco 0.1]
    #[arg(long, env = "SOFTLM_LR", help_heading = "Learning")]
    pub lr: Option<f64>,

    /// Components to choose from: those of the weight (as the papers have it) or of the outputs on the calibration text
    /// [default: whitened]
    #[arg(long, env = "SOFTLM_BASIS", help_heading = "Learning")]
    pub basis: Option<Basis>,

    /// Unit of the components' sizes: raw, median of each linear, or sensitivity [default: sensitivity]
    #[arg(long, env = "SOFTLM_UNIT", help_heading = "Learning")]
    pub unit: Option<Unit>,

    /// soft: how the pressure on the size changes: constant (as the paper has it) or so that the size falls evenly
    /// [default: even]
    #[arg(long, env = "SOFTLM_PACE", help_heading = "Learning")]
    pub pace: Option<Pace>,

    /// The pressure, or where it starts: λ of soft, l1 of soco [default: soft 0.1, soco three times what an even cut to the
    /// budget costs the model per share of its parameters]
    #[arg(long, env = "SOFTLM_PRESSURE", help_heading = "Learning")]
    pub pressure: Option<f64>,

    /// Share of the steps in which the size falls to the budget [default: soft 1, soco 0.25]
    #[arg(long, env = "SOFTLM_EXPLORE", help_heading = "Learning")]
    pub explore: Option<f64>,

    /// soft: sharpness s of the threshold [default: 50]
    #[arg(long, env = "SOFTLM_SHARPNESS", help_heading = "Learning")]
    pub sharpness: Option<f64>,

    /// soft: train the components themselves beside the thresholds [default: true]
    #[arg(long, env = "SOFTLM_TRAIN_BASIS", help_heading = "Learning")]
    pub train_basis: Option<bool>,

    /// soft: learning rate of the components, relative to their size
    /// [default: 0.01, with --task 0.0003]
    #[arg(long, env = "SOFTLM_BASIS_LR", help_heading = "Learning")]
    pub basis_lr: Option<f64>,

    /// soco: share of the steps in which the size oscillates around the budget [default: 0.25]
    #[arg(long, env = "SOFTLM_REFINE", help_heading = "Learning")]
    pub refine: Option<f64>,

    /// soco: what decides which components are kept: score, or energy after scoring [default: energy]
    #[arg(long, env = "SOFTLM_WORTH", help_heading = "Learning")]
    pub worth: Option<Worth>,

    /// soco: map from the trained number to the score [default: sigmoid]
    #[arg(long, env = "SOFTLM_SCORE_MAP", help_heading = "Learning")]
    pub score_map: Option<ScoreMap>,

    /// soco: score above which a component counts as kept [default: 0.3]
    #[arg(long, env = "SOFTLM_CUT", help_heading = "Learning")]
    pub cut: Option<f64>,

    /// soco: what the last phase trains: the survivors of a final cut, or everything (as published) [default: cut]
    #[arg(long, env = "SOFTLM_LAST_PHASE", help_heading = "Learning")]
    pub last_phase: Option<LastPhase>,

    /// soco: weight l2 of the sparsity term that --last-phase sparsity has [default: 0.1]
    #[arg(long, env = "SOFTLM_SPARSITY", help_heading = "Learning")]
    pub sparsity: Option<f64>,

    /// soco: train an output deviation per linear, stored as a bias and counted in the budget [default: true]
    #[arg(long, env = "SOFTLM_DEVIATION", help_heading = "Learning")]
    pub deviation: Option<bool>,

    /// soco: learning rate of the deviation [default: 0.001]
    #[arg(long, env = "SOFTLM_DEVIATION_LR", help_heading = "Learning")]
    pub deviation_lr: Option<f64>,
}

/// Windows or examples per step: an example is a sentence or two.
pub(super) fn usual_batch(labelled: bool) -> usize {
    if labelled { 32 } else { 8 }
}

/// Learning rate of scores, or of thresholds. These have some way to go, at most one rate per step, before they cut
/// anything: a short run needs longer steps. Scores must not jump in the last phase, which is what a short run is good for.
fn usual_lr(scores: bool, steps: usize) -> f64 {
    if scores { 0.1 } else { (4.0 / steps as f64).clamp(0.06, 0.4) }
}

/// The effective options of a learned method.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Learn {
    pub steps: usize,
    pub batch: usize,
    pub lr: f64,
    pub basis_lr: f64,
    pub deviation_lr: f64,
    pub explore: f64,
    pub refine: f64,
    #[serde(flatten)]
    pub settings: SpectralSettings,
}

impl LearnOptions {
    /// Fills what is missing from another source.
    pub(super) fn or(self, other: Self) -> Self {
        let steps = self.steps.is_some() || self.tokens.is_some();
        Self {
            steps: if steps { self.steps } else { other.steps },
            tokens: if steps { self.tokens } else { other.tokens },
            batch: self.batch.or(other.batch),
            max_time: self.max_time.or(other.max_time),
            likelihood: self.likelihood.or(other.likelihood),
            temperature: self.temperature.or(other.temperature),
            lr: self.lr.or(other.lr),
            basis: self.basis.or(other.basis),
            unit: self.unit.or(other.unit),
            pace: self.pace.or(other.pace),
            pressure: self.pressure.or(other.pressure),
            explore: self.explore.or(other.explore),
            sharpness: self.sharpness.or(other.sharpness),
            train_basis: self.train_basis.or(other.train_basis),
            basis_lr: self.basis_lr.or(other.basis_lr),
            refine: self.refine.or(other.refine),
            worth: self.worth.or(other.worth),
            score_map: self.score_map.or(other.score_map),
            cut: self.cut.or(other.cut),
            last_phase: self.last_phase.or(other.last_phase),
            sparsity: self.sparsity.or(other.sparsity),
            deviation: self.deviation.or(other.deviation),
            deviation_lr: self.deviation_lr.or(other.deviation_lr),
        }
    }

    /// Those that soco takes, or soft.
    fn of(self, soco: bool) -> Self {
        if soco {
            return Self { pace: None, sharpness: None, train_basis: None, basis_lr: None, ..self };
        }
        Self {
            refine: None,
            worth: None,
            score_map: None,
            cut: None,
            last_phase: None,
            sparsity: None,
            deviation: None,
            deviation_lr: None,
            ..self
        }
    }

    /// A flag that was given and is not among `taken`.
    fn beyond(&self, taken: &Self) -> Result<Option<String>> {
        let (given, taken) = (serde_json::to_value(self)?, serde_json::to_value(taken)?);
        let mut given = given.as_object().into_iter().flatten();
        Ok(given.find(|(key, value)| taken[key] != **value).map(|(key, _)| key.replace('_', "-")))
    }

    /// Seconds that training may take.
    pub(super) fn seconds(&self) -> Result<Option<f64>> {
        self.max_time.as_deref().map(|text| parse_seconds("--max-time", text)).transpose()
    }

    /// What is minimised where text is shown. `idle` says why nothing of it is.
    pub(super) fn objective(&self, idle: Option<&str>) -> Result<Objective> {
        for (flag, value) in [("--likelihood", self.likelihood), ("--temperature", self.temperature)] {
            if let (Some(value), Some(idle)) = (value, idle) {
                user_bail!("{flag} {value} says how to train on text, but {idle}"; "leave it out");
            }
        }
        let (share, temperature) = (self.likelihood.unwrap_or(0.0), self.temperature.unwrap_or(1.0));
        if !(0.0..=1.0).contains(&share) {
            user_bail!("--likelihood {share} is out of range"; "it is a share, from 0 to 1");
        }
        if !(temperature > 0.0 && temperature.is_finite()) {
            user_bail!("--temperature {temperature} is not a positive number"; "1 compares predictions as they are");
        }
        Ok(Objective::mean(share, temperature))
    }

    /// Fills in the defaults; `None` for a method that does not learn, which takes none of these options.
    pub(super) fn resolve(&self, method: &dyn Method, window: Option<usize>, labelled: bool) -> Result<Option<Learn>> {
        let name = method.card().name;
        let Some(learned) = method.learned() else {
            let Self { max_time, likelihood, temperature, .. } = self.clone();
            if let Some(flag) = self.beyond(&Self { max_time, likelihood, temperature, ..Self::default() })? {
                user_bail!("--{flag} belongs to the learned methods, but {name} does not learn"; "use --method soft or soco, or leave it out");
            }
            return Ok(None);
        };
        let refines = learned.refines();
        if let Some(flag) = self.beyond(&self.clone().of(refines))? {
            let other = if refines { "soft" } else { "soco" };
            user_bail!("--{flag} belongs to --method {other}, but this is {name}"; "leave it out");
        }
        for (flag, value, least, most) in [
            ("--lr", self.lr, 0.0, f64::MAX),
            ("--basis-lr", self.basis_lr, 0.0, f64::MAX),
            ("--deviation-lr", self.deviation_lr, 0.0, f64::MAX),
            ("--pressure", self.pressure, 0.0, f64::MAX),
            ("--sharpness", self.sharpness, 0.0, f64::MAX),
            ("--cut", self.cut, 0.0, 1.0),
        ] {
            if let Some(value) = value.filter(|value| !(*value > least && *value < most)) {
                user_bail!("{flag} {value} is out of range"; "use a positive number{}", if most == 1.0 { " below 1" } else { "" });
            }
        }
        for (flag, value) in [("--explore", self.explore), ("--refine", self.refine), ("--sparsity", self.sparsity)] {
            if let Some(value) = value.filter(|value| !(*value >= 0.0 && value.is_finite())) {
                user_bail!("{flag} {value} is out of range"; "use a number from 0");
            }
        }
        // What served best on small models (README, "How good").
        let (explore, refine) = if refines { (0.25, 0.25) } else { (1.0, 0.0) };
        let (explore, refine) = (self.explore.unwrap_or(explore), self.refine.unwrap_or(refine));
        if explore + refine > 1.0 {
            user_bail!("--explore {explore} and --refine {refine} are more than the whole run"; "they are shares of the steps");
        }
        for (flag, value) in [("--steps", self.steps), ("--batch", self.batch)] {
            if value == Some(0) {
                user_bail!("{flag} is 0"; "use at least 1");
            }
        }
        let batch = self.batch.unwrap_or(usual_batch(labelled));
        let steps = match (self.steps, self.tokens, window) {
            (_, Some(tokens), _) if labelled => {
                user_bail!("--tokens {tokens} counts tokens of text, but --task has examples"; "give --steps")
            }
            (Some(steps), _, _) => steps,
            (None, None, _) => 300,
            (None, Some(tokens), Some(window)) => (tokens / (batch * window).max(1) as u64).max(1) as usize,
            (None, Some(tokens), None) => {
                user_bail!("--tokens {tokens} needs --window"; "say how long a window is, or give --steps")
            }
        };
        Ok(Some(Learn {
            steps,
            batch,
            lr: self.lr.unwrap_or(usual_lr(refines, steps)),
            basis_lr: self.basis_lr.unwrap_or(if labelled { 0.0003 } else { 0.01 }),
            deviation_lr: self.deviation_lr.unwrap_or(0.001),
            explore,
            refine,
            settings: SpectralSettings {
                basis: self.basis.unwrap_or(Basis::Whitened),
                unit: self.unit.unwrap_or(Unit::Sensitivity),
                pace: self.pace.unwrap_or(Pace::Even),
                pressure: self.pressure,
                sharpness: self.sharpness.unwrap_or(50.0),
                train_basis: self.train_basis.unwrap_or(true),
                worth: self.worth.unwrap_or(Worth::Energy),
                score_map: self.score_map.unwrap_or(ScoreMap::Sigmoid),
                cut: self.cut.unwrap_or(0.3),
                last_phase: self.last_phase.unwrap_or(LastPhase::Cut),
                sparsity: self.sparsity.unwrap_or(0.1),
                deviation: self.deviation.unwrap_or(true),
            },
        }))
    }
}

impl Learn {
    /// The same as options of soco, if the method is that, or of soft.
    pub(super) fn to_options(&self, soco: bool) -> LearnOptions {
        let settings = &self.settings;
        let all = LearnOptions {
            steps: Some(self.steps),
            tokens: None,
            batch: Some(self.batch),
            max_time: None,
            likelihood: None,
            temperature: None,
            lr: Some(self.lr),
            basis: Some(settings.basis),
            unit: Some(settings.unit),
            pace: Some(settings.pace),
            pressure: settings.pressure,
            explore: Some(self.explore),
            sharpness: Some(settings.sharpness),
            train_basis: Some(settings.train_basis),
            basis_lr: Some(self.basis_lr),
            refine: Some(self.refine),
            worth: Some(settings.worth),
            score_map: Some(settings.score_map),
            cut: Some(settings.cut),
            last_phase: Some(settings.last_phase),
            sparsity: Some(settings.sparsity),
            deviation: Some(settings.deviation),
            deviation_lr: Some(self.deviation_lr),
        };
        all.of(soco)
    }
}

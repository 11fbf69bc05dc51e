//! What trainings are told: table `[learn]` of a recipe. What learned methods have beside it is declared in their files.

use super::size::parse_seconds;
use crate::backward::Objective;
use crate::method::{Method, OptionValues, Share, SpectralSettings};
use crate::user_bail;
use anyhow::{Context, Result};
use clap::Args;
use serde::{Deserialize, Serialize};

/// Options of every training: that of learned methods and `--heal`.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LearnOptions {
    /// Text to train on [default: that of --calib]
    #[arg(long, value_name = "TEXT", help_heading = "Training")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_text: Option<Vec<String>>,

    /// Windows of it [default: as many as --calib-windows]
    #[arg(long, value_name = "N", help_heading = "Training")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_windows: Option<usize>,

    /// All training together, at most (`90s`, `20m`, `1.5h`)
    #[arg(long, value_name = "TIME", help_heading = "Training")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_time: Option<String>,

    /// Share of the text's own likelihood in the loss; the rest is the divergence from the original [default: 0]
    #[arg(long, value_name = "F", help_heading = "Training")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub likelihood: Option<f64>,

    /// Temperature of what is compared [default: 1]
    #[arg(long, value_name = "F", help_heading = "Training")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
}

impl LearnOptions {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Seconds that training may take.
    pub(super) fn seconds(&self) -> Result<Option<f64>> {
        self.max_time.as_deref().map(|text| parse_seconds("--max-time", text)).transpose()
    }

    /// The text to train on, where it is not that of calibration: names and windows, of which there are `calib` and
    /// `calib_windows` for that. `idle` says why no text is trained on.
    pub(super) fn text(&self, calib: &[String], calib_windows: usize, idle: Option<&str>) -> Result<Option<TrainText>> {
        let given = [("--train-text", self.train_text.is_some()), ("--train-windows", self.train_windows.is_some())];
        let Some((flag, _)) = given.into_iter().find(|(_, given)| *given) else { return Ok(None) };
        if let Some(idle) = idle {
            user_bail!("{flag} says what text to train on, but {idle}"; "leave it out");
        }
        if self.train_windows == Some(0) {
            user_bail!("--train-windows is 0"; "use at least 1");
        }
        let specs = self.train_text.clone().unwrap_or_else(|| calib.to_vec());
        Ok(Some(TrainText { specs, windows: self.train_windows.unwrap_or(calib_windows) }))
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
}

/// Text that is trained on alone.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainText {
    /// Corpus names.
    pub specs: Vec<String>,
    /// Windows over all of them.
    pub windows: usize,
}

/// The effective options of a learned method. What it does not declare is 0.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Learn {
    /// Steps of training.
    pub steps: usize,
    /// Windows, or labelled examples, per step.
    pub batch: usize,
    /// Learning rate.
    pub lr: f64,
    /// Learning rate of the bases.
    pub basis_lr: f64,
    /// Learning rate of the deviations.
    pub deviation_lr: f64,
    /// Share of the steps that explore.
    pub explore: f64,
    /// Share of the steps that refine.
    pub refine: f64,
    /// What the method decides by.
    #[serde(flatten)]
    pub settings: SpectralSettings,
}

impl Learn {
    /// From the resolved options of `method`; `None` if it does not learn.
    pub(super) fn new(method: &dyn Method, options: &OptionValues) -> Result<Option<Self>> {
        let Some(learned) = method.learned() else { return Ok(None) };
        let mut shares = Vec::new();
        for spec in learned.phases() {
            if let Share::Of(option) = spec.share {
                shares.push((option.key, options.get::<f64>(option)?));
            }
        }
        if shares.iter().map(|(_, share)| share).sum::<f64>() > 1.0 {
            let shares: Vec<String> = shares.iter().map(|(key, share)| format!("{key} = {share}")).collect();
            user_bail!("{} is more than the whole run", shares.join(" and "); "they are shares of the steps");
        }
        Ok(Some(options.table().try_into().context("the options of a learned method")?))
    }
}

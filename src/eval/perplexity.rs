//! Perplexity and divergence, each with the protocol it was measured by.

use super::metrics::mean_and_error;
use super::score::{Base, WindowScore, score};
use crate::model::Model;
use crate::progress::Progress;
use crate::text::Windows;
use anyhow::Result;
use serde::{Deserialize, Serialize};

/// exp(mean negative log-likelihood per target), with its protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Perplexity {
    /// Name of the corpus.
    pub corpus: String,
    /// Tokens per window.
    pub window: usize,
    /// Tokens from one window's start to the next.
    pub stride: usize,
    /// Windows scored. A tail shorter than a window is dropped.
    pub windows: usize,
    /// Targets scored: the tokens whose likelihood is averaged.
    pub tokens: usize,
    /// Whether each window begins with the tokenizer's BOS.
    pub bos: bool,
    /// Whether it is a pseudo-perplexity: each target masked alone and guessed from both sides.
    #[serde(default, skip_serializing_if = "is_false")]
    pub masked: bool,
    /// Type the model computed in, and that of products where it is another.
    pub dtype: String,
    /// exp(nll).
    #[serde(with = "crate::number")]
    pub ppl: f64,
    /// Why `ppl` is not a finite number; absent when it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ppl_note: Option<String>,
    /// Standard error of `ppl`, from the spread of the windows' mean NLLs; absent for a single window.
    #[serde(default, with = "crate::number::optional", skip_serializing_if = "Option::is_none")]
    pub stderr: Option<f64>,
    /// Mean negative log-likelihood per target, nats.
    #[serde(with = "crate::number")]
    pub nll: f64,
}

/// How far a model's predictions are from those of the model it was made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// Name of the corpus.
    pub corpus: String,
    /// The reference model.
    pub base: String,
    /// Mean KL(base ‖ model) per target, nats.
    #[serde(with = "crate::number")]
    pub kl: f64,
    /// Standard error of `kl` over windows; absent for a single window.
    #[serde(default, with = "crate::number::optional", skip_serializing_if = "Option::is_none")]
    pub kl_stderr: Option<f64>,
    /// Fraction of targets where both models' most likely token is the same.
    #[serde(with = "crate::number")]
    pub top1: f64,
}

/// One model on one corpus.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The model's own perplexity.
    pub perplexity: Perplexity,
    /// Its distance from the base, if one was given.
    pub divergence: Option<Divergence>,
}

impl Evaluation {
    /// Stands for one that could not be made: the model's output on `windows` is not a number, and `why`.
    pub fn not_a_number(model: &Model, corpus: &str, windows: &Windows, why: &str) -> Self {
        let scores = vec![WindowScore::default(); windows.len()];
        let mut perplexity = perplexity(model, corpus, windows, &scores, |_| f64::NAN);
        perplexity.tokens = windows.targets();
        (perplexity.ppl_note, perplexity.stderr) = (Some(why.to_string()), None);
        Self { perplexity, divergence: None }
    }
}

/// Measures `model` on `windows` and, when there is a base, the base in the same pass by the same protocol.
pub fn evaluate(
    model: &Model,
    base: Option<Base>,
    corpus: &str,
    windows: &Windows,
    progress: &dyn Progress,
) -> Result<(Evaluation, Option<Evaluation>)> {
    let scores = score(model, base, windows, progress)?;
    Ok(summarise(model, base.map(|base| base.model), corpus, windows, &scores))
}

/// What the scores of a model's windows, and of its base's where there is one, come to.
pub(super) fn summarise(
    model: &Model,
    base: Option<&Model>,
    corpus: &str,
    windows: &Windows,
    scores: &[WindowScore],
) -> (Evaluation, Option<Evaluation>) {
    let targets: usize = scores.iter().map(|s| s.targets).sum();
    let divergence = base.map(|base| Divergence {
        corpus: corpus.to_string(),
        base: base.source().label().to_string(),
        kl: mean(scores, targets, |s| s.kl),
        kl_stderr: standard_error(scores, |s| s.kl),
        top1: scores.iter().map(|s| s.agree).sum::<usize>() as f64 / targets as f64,
    });
    let own = Evaluation { perplexity: perplexity(model, corpus, windows, scores, |s| s.nll), divergence };
    let other = base.map(|base| Evaluation {
        perplexity: perplexity(base, corpus, windows, scores, |s| s.base_nll),
        divergence: None,
    });
    (own, other)
}

fn perplexity(
    model: &Model,
    corpus: &str,
    windows: &Windows,
    scores: &[WindowScore],
    nll_of: impl Fn(&WindowScore) -> f64,
) -> Perplexity {
    let targets: usize = scores.iter().map(|s| s.targets).sum();
    let nll = mean(scores, targets, &nll_of);
    let ppl = nll.exp();
    Perplexity {
        corpus: corpus.to_string(),
        window: windows.window,
        stride: windows.stride,
        windows: scores.len(),
        tokens: targets,
        bos: windows.bos,
        masked: false,
        dtype: model.compute().describe_type(),
        ppl,
        ppl_note: note(ppl, nll),
        stderr: standard_error(scores, nll_of).map(|e| e * ppl),
        nll,
    }
}

/// Why a perplexity is no finite number.
fn note(ppl: f64, nll: f64) -> Option<String> {
    if ppl.is_finite() {
        return None;
    }
    Some(if nll.is_finite() {
        format!("exp({nll:.1} nats per token) is larger than any number, which ends at exp(709.8)")
    } else {
        "the probability of some token is zero or not a number".to_string()
    })
}

fn is_false(x: &bool) -> bool {
    !x
}

fn mean(scores: &[WindowScore], targets: usize, value: impl Fn(&WindowScore) -> f64) -> f64 {
    scores.iter().map(value).sum::<f64>() / targets as f64
}

/// Standard error of the mean over windows of a per-target mean: tokens of one window are not independent.
fn standard_error(scores: &[WindowScore], value: impl Fn(&WindowScore) -> f64) -> Option<f64> {
    mean_and_error(&scores.iter().map(|s| value(s) / s.targets.max(1) as f64).collect::<Vec<_>>()).1
}

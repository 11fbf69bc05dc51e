//! How far an encoder's embeddings are from those of the model it was made from: what is asked of an encoder that predicts
//! no tokens.

use super::encode::{embeddings, of_windows};
use super::metrics::mean_and_error;
use super::modules::{Modules, cosine};
use crate::model::Model;
use crate::progress::Progress;
use crate::text::Windows;
use crate::user_bail;
use anyhow::Result;
use serde::{Deserialize, Serialize};

/// The mean cosine between two models' embeddings of the same windows, with its protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fidelity {
    /// Name of the corpus.
    pub corpus: String,
    /// The reference model.
    pub base: String,
    /// Tokens per window, special ones included.
    pub window: usize,
    /// Windows embedded.
    pub windows: usize,
    /// How states become an embedding, such as `mean`; see [`Modules::name`].
    pub pooling: String,
    /// Type the models computed in.
    pub dtype: String,
    /// Mean cosine.
    #[serde(with = "crate::number")]
    pub cosine: f64,
    /// Standard error of the mean; absent for a single window.
    #[serde(default, with = "crate::number::optional", skip_serializing_if = "Option::is_none")]
    pub stderr: Option<f64>,
    /// The least cosine of a window.
    #[serde(with = "crate::number")]
    pub least: f64,
}

/// Embeds `windows` with `model` and with `base`.
pub fn fidelity(
    model: &Model,
    base: &Model,
    corpus: &str,
    windows: &Windows,
    modules: &Modules,
    progress: &dyn Progress,
) -> Result<Fidelity> {
    let sequences = of_windows(windows);
    if model.hidden() != base.hidden() {
        user_bail!(
            "{} has embeddings of {} numbers, {} of {}", model.source().label(), model.hidden(), base.source().label(), base.hidden();
            "--against must name the model that it was made from"
        );
    }
    let (ours, theirs) =
        (embeddings(model, &sequences, modules, progress)?, embeddings(base, &sequences, modules, progress)?);
    let cosines: Vec<f64> = ours.iter().zip(&theirs).map(|(a, b)| cosine(a, b)).collect();
    let (mean, stderr) = mean_and_error(&cosines);
    Ok(Fidelity {
        corpus: corpus.to_string(),
        base: base.source().label().to_string(),
        window: windows.window,
        windows: windows.len(),
        pooling: modules.name(),
        dtype: model.compute().describe_type(),
        cosine: mean,
        stderr,
        // Unlike `f64::min`, this does not pass over what is no number.
        least: cosines.iter().copied().min_by(|a, b| b.is_nan().cmp(&a.is_nan()).then(a.total_cmp(b))).unwrap_or(1.0),
    })
}

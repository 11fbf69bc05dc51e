//! Losses of encoders that predict no tokens, and their gradients on the final hidden states.

use super::loss::{Objective, score};
use crate::model::Classifier;
use anyhow::{Context, Result, ensure};
use candle_core::{D, Tensor, Var};

/// The summed loss of a classifier behind final `states` (sequences, t, hidden), and `scale` times its gradient on them.
///
/// With labels it is the cross-entropy of the class, or the squared error of the score if there is one logit. Without
/// them the classifier's answer to the original's states is what is right: KL(original ‖ student) as `distil` has it, or
/// the squared distance.
pub(super) fn classes(
    classifier: &Classifier,
    states: &Tensor,
    right: Option<&Tensor>,
    labels: Option<&[f64]>,
    distil: &Objective,
    scale: f64,
) -> Result<(f64, Tensor)> {
    let input = Var::from_tensor(states)?;
    let logits = classifier.logits(&input)?;
    let right = match right {
        Some(states) => Some(classifier.logits(states)?.flatten_all()?.to_vec1::<f32>()?),
        None => None,
    };
    let (loss, gradient) = match (classifier.classes(), labels, right) {
        (1, Some(labels), _) => squared(&logits, labels, scale)?,
        (1, None, Some(right)) => squared(&logits, &right.into_iter().map(f64::from).collect::<Vec<_>>(), scale)?,
        (_, Some(labels), _) => {
            let classes: Vec<u32> = labels.iter().map(|&label| label as u32).collect();
            score(&logits, None, &classes, &Objective::LABELS, scale)?
        }
        (_, None, Some(right)) => {
            let unused = vec![0; states.dim(0)?];
            score(&logits, Some(&right), &unused, distil, scale)?
        }
        (_, None, None) => anyhow::bail!("neither labels nor the original say what is right"),
    };
    let mut graph = (logits * gradient)?.sum_all()?.backward()?;
    Ok((loss, graph.remove(&input).context("the classifier passes no gradient on")?))
}

/// Σ (z − y)² of logits (sequences, 1), and `scale` times its gradient on them.
fn squared(logits: &Tensor, wanted: &[f64], scale: f64) -> Result<(f64, Tensor)> {
    let found = logits.flatten_all()?.to_vec1::<f32>()?;
    ensure!(found.len() == wanted.len(), "logits and labels do not fit");
    let off: Vec<f64> = found.iter().zip(wanted).map(|(&found, wanted)| f64::from(found) - wanted).collect();
    let gradient: Vec<f32> = off.iter().map(|off| (2.0 * scale * off) as f32).collect();
    let gradient = Tensor::from_vec(gradient, logits.dims(), logits.device())?;
    Ok((off.iter().map(|off| off * off).sum(), gradient))
}

/// Σ over tokens of 1 − the cosine between `states` and `right`, both (sequences, t, hidden) without padding, and `scale`
/// times its gradient on `states`.
pub(super) fn turned(states: &Tensor, right: &Tensor, scale: f64) -> Result<(f64, Tensor)> {
    let input = Var::from_tensor(states)?;
    let dot = (input.as_tensor() * right)?.sum(D::Minus1)?;
    let sizes = (input.sqr()?.sum(D::Minus1)?.sqrt()? * right.sqr()?.sum(D::Minus1)?.sqrt()?)?;
    let cosine = dot.div(&sizes)?;
    let cosines = cosine.flatten_all()?.to_vec1::<f32>()?;
    let loss = cosines.iter().map(|&cosine| 1.0 - f64::from(cosine)).sum();
    let mut graph = cosine.sum_all()?.backward()?;
    let gradient = graph.remove(&input).context("the cosine passes no gradient on")?;
    Ok((loss, (gradient * -scale)?))
}

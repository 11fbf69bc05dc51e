//! The loss of a classifier, and the gradient on the hidden states in front of it.

use super::token_loss::{Objective, logit_loss};
use crate::model::Classifier;
use anyhow::{Context, Result, ensure};
use candle_core::{Tensor, Var};

/// The summed loss of a classifier behind final `states` (sequences, t, hidden), and `scale` times its gradient on them.
///
/// With labels it is the cross-entropy of the class, or the squared error of the score if there is one logit. Without
/// them the classifier's answer to the `teacher`'s states is what is right: KL(teacher ‖ student) as `distil` has it, or
/// the squared distance.
pub fn class_loss_gradient(
    classifier: &Classifier,
    states: &Tensor,
    teacher: Option<&Tensor>,
    labels: Option<&[f64]>,
    distil: &Objective,
    scale: f64,
) -> Result<(f64, Tensor)> {
    let input = Var::from_tensor(states)?;
    let logits = classifier.logits(&input)?;
    let wanted = teacher.map(|states| classifier.logits(states)).transpose()?;
    let summed = |(loss, gradient): (Tensor, Tensor)| anyhow::Ok((loss.to_scalar::<f64>()?, gradient));
    let (loss, gradient) = match (classifier.classes(), labels, wanted) {
        (1, Some(labels), _) => squared(&logits, labels, scale)?,
        (1, None, Some(wanted)) => {
            let wanted = wanted.flatten_all()?.to_vec1::<f32>()?;
            squared(&logits, &wanted.into_iter().map(f64::from).collect::<Vec<_>>(), scale)?
        }
        (_, Some(labels), _) => {
            let classes: Vec<u32> = labels.iter().map(|&label| label as u32).collect();
            summed(logit_loss(&logits, None, &classes, &Objective::LABELS, scale)?)?
        }
        (_, None, Some(wanted)) => {
            let unused = vec![0; states.dim(0)?];
            summed(logit_loss(&logits, Some(&wanted), &unused, distil, scale)?)?
        }
        (_, None, None) => anyhow::bail!("neither labels nor a teacher say what is right"),
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

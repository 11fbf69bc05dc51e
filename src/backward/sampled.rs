//! Gradients of −log p(y) with y drawn from the model's own prediction.
//!
//! Their second moments are the Fisher information F: for a small change δ of what they are taken on,
//! KL(before ‖ after) ≈ ½ δᵀ F δ, whatever the text says. Martens, *New insights and perspectives on the natural gradient
//! method* (arXiv 1412.1193), §5 and §9.2: labels of the text itself give the empirical Fisher, which is something else.

use super::pass::gradients_of;
use super::token_loss::{Objective, logit_loss};
use crate::model::{Classifier, Head, Model, Output};
use crate::random::SplitMix64;
use anyhow::{Context, Result};
use candle_core::{Device, Tensor, Var};
use rayon::prelude::*;

/// What a model's final states become, as [`sampled_gradient`] needs it.
pub enum Prediction {
    /// A distribution over tokens at every position.
    Tokens(Box<Head>),
    /// A distribution over classes for every sequence.
    Classes(Classifier),
    /// The states are all there is.
    States,
}

/// The gradient on final `states` (sequences, t, hidden) of −Σ log p(y), one y drawn for each prediction.
///
/// A score, a single logit, is taken as the mean of a normal distribution of variance 1; so is every number of a state
/// where nothing is predicted, and divided by √hidden, so that the loss is about that of a unit vector.
pub fn sampled_gradient(prediction: &Prediction, states: &Tensor, random: &mut SplitMix64) -> Result<Tensor> {
    match prediction {
        Prediction::Tokens(head) => of_tokens(head, states, random),
        Prediction::Classes(classifier) => {
            let input = Var::from_tensor(states)?;
            let logits = classifier.logits(&input)?;
            let gradient = if classifier.classes() == 1 {
                normal(logits.dims(), 1.0, random)?.to_device(logits.device())?
            } else {
                of_logits(&logits.detach(), random)?
            };
            let mut graph = (logits * gradient)?.sum_all()?.backward()?;
            graph.remove(&input).context("the classifier passes no gradient on")
        }
        Prediction::States => {
            let scale = 1.0 / (states.dim(2)? as f32).sqrt();
            Ok(normal(states.dims(), scale, random)?.to_device(states.device())?)
        }
    }
}

impl Prediction {
    /// That of `model`.
    pub fn of(model: &Model) -> Result<Self> {
        Ok(match model.output() {
            Output::NextToken | Output::MaskedToken => Self::Tokens(Box::new(model.head()?)),
            Output::Classes(_) => Self::Classes(model.classifier()?.context("a classifier without a head")?),
            Output::States => Self::States,
        })
    }
}

fn of_tokens(head: &Head, states: &Tensor, random: &mut SplitMix64) -> Result<Tensor> {
    let (sequences, t, hidden) = states.dims3()?;
    let rows = states.contiguous()?.reshape((sequences * t, hidden))?;
    let mut gradients = Vec::new();
    let size = head.positions_at_once(3);
    for start in (0..sequences * t).step_by(size) {
        let input = Var::from_tensor(&rows.narrow(0, start, size.min(sequences * t - start))?.contiguous()?)?;
        let normalised = head.normalise(&input)?;
        let logits = head.project(&normalised.detach())?;
        let gradient = of_logits(&logits, random)?;
        let mut graph = gradients_of(&normalised, &head.project_back(&gradient, &logits)?)?;
        gradients.push(graph.remove(&input).context("the head passes no gradient on")?);
    }
    Ok(Tensor::cat(&gradients, 0)?.reshape((sequences, t, hidden))?)
}

/// softmax(z) − onehot(y) of logits z (rows, classes).
fn of_logits(logits: &Tensor, random: &mut SplitMix64) -> Result<Tensor> {
    let (rows, classes) = logits.dims2()?;
    // One number per row, drawn in order: the labels do not depend on the number of threads.
    let draws: Vec<f64> = (0..rows).map(|_| (random.draw() >> 11) as f64 / (1u64 << 53) as f64).collect();
    let numbers: Vec<f32> = logits.flatten_all()?.to_vec1()?;
    let labels: Vec<u32> = numbers.par_chunks_exact(classes).zip(draws).map(|(row, u)| draw(row, u)).collect();
    Ok(logit_loss(logits, None, &labels, &Objective::LABELS, 1.0)?.1)
}

/// The class at which the cumulated probabilities of `logits` pass `u`, in [0, 1).
fn draw(logits: &[f32], u: f64) -> u32 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |&z: &f32| f64::from(z - most).exp();
    let mut left = u * logits.iter().map(weight).sum::<f64>();
    for (class, z) in logits.iter().enumerate() {
        left -= weight(z);
        if left < 0.0 {
            return class as u32;
        }
    }
    // Rounding, or numbers that are none.
    logits.len().saturating_sub(1) as u32
}

/// Numbers of variance scale², those of each row drawn by themselves: they do not depend on how many rows there are at once.
fn normal(shape: &[usize], scale: f32, random: &mut SplitMix64) -> Result<Tensor> {
    let mut numbers = vec![0.0; shape.iter().product()];
    let row = shape.iter().skip(1).product::<usize>().max(1);
    numbers.chunks_exact_mut(row).for_each(|row| SplitMix64::fill_normal(random.draw(), 0, row));
    numbers.iter_mut().for_each(|x| *x *= scale);
    Ok(Tensor::from_vec(numbers, shape, &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_drawn_as_often_as_they_are_likely() {
        // p = 0.6, 0.1, 0.3.
        let logits = [0.6f32.ln() + 5.0, 0.1f32.ln() + 5.0, 0.3f32.ln() + 5.0];
        let at = |u| draw(&logits, u);
        assert_eq!([at(0.0), at(0.5999), at(0.6001), at(0.6999), at(0.7001), at(0.999_999)], [0, 0, 1, 1, 2, 2]);
    }

    #[test]
    fn second_moments_of_gradients_are_those_of_the_predicted_distribution() {
        // E[(p − e_y)(p − e_y)ᵀ] = diag(p) − p pᵀ.
        let p = [0.6, 0.1, 0.3];
        let rows = 20_000;
        let logits: Vec<f32> = (0..rows).flat_map(|_| p.map(|p: f64| p.ln() as f32)).collect();
        let logits = Tensor::from_vec(logits, (rows, 3), &Device::Cpu).unwrap();
        let gradient = of_logits(&logits, &mut SplitMix64::new(7)).unwrap();
        let moments = (gradient.t().unwrap().matmul(&gradient).unwrap() / rows as f64).unwrap();
        for (i, row) in moments.to_vec2::<f32>().unwrap().into_iter().enumerate() {
            for (j, found) in row.into_iter().enumerate() {
                let wanted = if i == j { p[i] - p[i] * p[i] } else { -p[i] * p[j] };
                assert!((f64::from(found) - wanted).abs() < 0.01, "({i}, {j}): {found} for {wanted}");
            }
        }
    }

    #[test]
    fn labels_do_not_depend_on_how_many_sequences_are_taken_at_once() {
        let states = Tensor::zeros((6, 5, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        let drawn = |size: usize| -> Vec<f32> {
            let mut random = SplitMix64::new(3);
            let parts: Vec<Tensor> = (0..6)
                .step_by(size)
                .map(|at| {
                    sampled_gradient(&Prediction::States, &states.narrow(0, at, size).unwrap(), &mut random).unwrap()
                })
                .collect();
            Tensor::cat(&parts, 0).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        assert_eq!(drawn(6), drawn(1));
        assert_eq!(drawn(6), drawn(2));
        // 1 / hidden each.
        let squares = 4.0 * drawn(6).iter().map(|x| x * x).sum::<f32>() / 120.0;
        assert!((squares - 1.0).abs() < 0.4, "{squares}");
    }
}

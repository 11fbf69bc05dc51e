//! Losses of hidden states that are compared with others.

use anyhow::{Context, Result};
use candle_core::{D, Tensor, Var};

/// Σ over tokens of 1 − the cosine between `states` and `wanted`, both (sequences, t, hidden) without padding, and `scale`
/// times its gradient on `states`.
pub fn cosine_loss_gradient(states: &Tensor, wanted: &Tensor, scale: f64) -> Result<(f64, Tensor)> {
    let input = Var::from_tensor(states)?;
    let dot = (input.as_tensor() * wanted)?.sum(D::Minus1)?;
    let sizes = (input.sqr()?.sum(D::Minus1)?.sqrt()? * wanted.sqr()?.sum(D::Minus1)?.sqrt()?)?;
    let cosine = dot.div(&sizes)?;
    let cosines = cosine.flatten_all()?.to_vec1::<f32>()?;
    let loss = cosines.iter().map(|&cosine| 1.0 - f64::from(cosine)).sum();
    let mut graph = cosine.sum_all()?.backward()?;
    let gradient = graph.remove(&input).context("the cosine passes no gradient on")?;
    Ok((loss, (gradient * -scale)?))
}

/// ‖`states` − `wanted`‖², both (sequences, t, hidden) without padding, and `scale` times its gradient on `states`.
pub fn squared_distance_gradient(states: &Tensor, wanted: &Tensor, scale: f64) -> Result<(f64, Tensor)> {
    let off = (states - wanted)?.detach();
    // Few numbers a sum: in f32 a single one over a whole batch would lose digits.
    let sums = off.sqr()?.sum(D::Minus1)?.flatten_all()?.to_vec1::<f32>()?;
    Ok((sums.iter().map(|&sum| f64::from(sum)).sum(), (off * (2.0 * scale))?))
}

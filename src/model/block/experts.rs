//! Several feed-forward layers of which each token passes through a few, as part of a block.
//!
//! ```text
//! p = softmax(R m)      E = the k experts with the largest p      w_e = p_e, or p_e / Σ_E p
//! y = Σ_{e in E} w_e Down_e · (act(Gate_e m) ∘ Up_e m)  [+ sigmoid(s · m) Down · (act(Gate m) ∘ Up m)]
//! ```
//! The second term is the shared expert, where there is one. R and s are the tensors `moe.router` and
//! `moe.shared_gate`; they are never compressed. Sites, in order: those of the shared expert (`feed_forward.rs`), then
//! `moe.e.in` of every expert, which sees the tokens routed to it, (tokens, hidden), then `moe.e.out` of every expert,
//! what enters Down_e.

use super::super::ids::{FfnPart, Role, Site};
use super::{Block, FeedForward, Pass, activate};
use crate::ops::{add, with_numbers};
use anyhow::{Context, Result};
use candle_core::{D, Tensor};

#[derive(Debug, Clone, Copy)]
pub(in crate::model) struct Experts {
    /// The activation, and with it the shared expert.
    pub each: FeedForward,
    pub count: u16,
    /// k
    pub chosen: usize,
    /// Whether the weights of a token's experts sum to 1.
    pub normalised: bool,
    /// Key of config.json that holds the width of the shared expert, if there is one.
    pub shared: Option<&'static str>,
}

/// Which tokens go to which experts.
struct Routes {
    /// Each token's experts, ascending, k per token.
    experts: Vec<u32>,
    /// Each expert's tokens, ascending.
    tokens: Vec<Vec<u32>>,
}

impl Routes {
    /// The `chosen` experts with the largest scores of each row; the first of equal ones.
    fn new(scores: &[f32], count: usize, chosen: usize) -> Self {
        let mut routes = Self { experts: Vec::new(), tokens: vec![Vec::new(); count] };
        for (token, scores) in scores.chunks_exact(count).enumerate() {
            let mut order: Vec<u32> = (0..count as u32).collect();
            order.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]));
            order.truncate(chosen);
            order.sort_unstable();
            order.iter().for_each(|&expert| routes.tokens[expert as usize].push(token as u32));
            routes.experts.extend(order);
        }
        routes
    }

    /// Where the output of each token's experts stands when the outputs of all experts follow one another.
    fn places(&self) -> Vec<u32> {
        let sizes = self.tokens.iter().map(|tokens| tokens.len() as u32);
        let mut next: Vec<u32> = sizes.scan(0, |sum, size| Some(std::mem::replace(sum, *sum + size))).collect();
        let place = |&expert: &u32| {
            let next = &mut next[expert as usize];
            *next += 1;
            *next - 1
        };
        self.experts.iter().map(place).collect()
    }
}

impl Experts {
    /// m (batch, t, hidden) to (batch, t, hidden); `None` when the tap stopped it.
    pub(super) fn forward(&self, block: &Block, m: &Tensor, pass: &mut Pass) -> Result<Option<Tensor>> {
        let (batch, t, hidden) = m.dims3()?;
        let rows = m.reshape((batch * t, hidden))?;
        let shared = match self.shared {
            None => None,
            Some(_) => {
                let Some(y) = self.each.forward(block, &rows, pass)? else { return Ok(None) };
                let gate = candle_nn::ops::sigmoid(&rows.matmul(&block.tensor("moe.shared_gate")?.t()?)?)?;
                Some(y.broadcast_mul(&gate)?)
            }
        };
        let scores = rows.matmul(&block.tensor("moe.router")?.t()?)?;
        let routes = with_numbers(&scores, |scores| Routes::new(scores, usize::from(self.count), self.chosen))?;
        let Some(y) = self.through_experts(block, &rows, &routes, pass)? else { return Ok(None) };
        let k = (batch * t, self.chosen);
        let experts = Tensor::from_vec(routes.experts.clone(), k, m.device())?;
        let mut weights = candle_nn::ops::softmax(&scores, D::Minus1)?.gather(&experts, 1)?;
        if self.normalised {
            weights = weights.broadcast_div(&weights.sum_keepdim(1)?)?;
        }
        let places = Tensor::new(routes.places(), m.device())?;
        let each = y.index_select(&places, 0)?.reshape((batch * t, self.chosen, hidden))?;
        let y = each.broadcast_mul(&weights.unsqueeze(2)?)?.sum(1)?;
        let y = match shared {
            Some(shared) => add(&y, &shared)?,
            None => y,
        };
        Ok(Some(y.reshape((batch, t, hidden))?))
    }

    /// What each expert makes of its tokens, one expert after the other: (tokens · k, hidden).
    fn through_experts(
        &self,
        block: &Block,
        rows: &Tensor,
        routes: &Routes,
        pass: &mut Pass,
    ) -> Result<Option<Tensor>> {
        let mut routed = Vec::new();
        for (expert, tokens) in (0..self.count).zip(&routes.tokens) {
            let x = match tokens.is_empty() {
                true => rows.narrow(0, 0, 0)?,
                false => rows.index_select(&Tensor::new(tokens.as_slice(), rows.device())?, 0)?,
            };
            let seen = if pass.tap.wants_every_token(expert) { rows } else { &x };
            if pass.stops_at(Site::ExpertIn(expert), seen)? {
                return Ok(None);
            }
            routed.push(x);
        }
        let mut inner = Vec::new();
        for (expert, x) in (0..self.count).zip(&routed) {
            let y = self.inner(block, expert, x)?;
            let every = if pass.tap.wants_every_token(expert) { Some(self.inner(block, expert, rows)?) } else { None };
            if pass.stops_at(Site::ExpertOut(expert), every.as_ref().unwrap_or(&y))? {
                return Ok(None);
            }
            inner.push(y);
        }
        let used = (0..self.count).zip(&inner).filter(|(_, inner)| inner.elem_count() > 0);
        let out = used.map(|(expert, inner)| block.apply(Role::Expert(expert, FfnPart::Down), inner));
        Ok(Some(Tensor::cat(&out.collect::<Result<Vec<_>>>()?, 0)?))
    }

    /// act(Gate x) ∘ Up x of one expert.
    fn inner(&self, block: &Block, expert: u16, x: &Tensor) -> Result<Tensor> {
        if x.elem_count() == 0 {
            let down = block.linear(Role::Expert(expert, FfnPart::Down)).context("an expert without its down")?;
            return Ok(Tensor::zeros((0, down.width()), x.dtype(), x.device())?);
        }
        let up = block.apply(Role::Expert(expert, FfnPart::Up), x)?;
        let gate = block.apply(Role::Expert(expert, FfnPart::Gate), x)?;
        activate(self.each.activation, Some(&gate), &up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_find_their_experts_and_the_way_back() {
        let scores = [0.1, 0.9, 0.5, 0.2, 0.7, 0.7, 0.7, 0.7, 0.0, 0.1, 0.2, 0.3];
        let routes = Routes::new(&scores, 4, 2);
        assert_eq!(routes.experts, [1, 2, 0, 1, 2, 3]);
        assert_eq!(routes.tokens, [vec![1], vec![0, 1], vec![0, 2], vec![2]]);
        // Outputs in order: expert 0 token 1; 1: 0, 1; 2: 0, 2; 3: 2.
        assert_eq!(routes.places(), [1, 3, 0, 2, 4, 5]);
    }
}

//! Log-likelihoods of continuations: log p(continuation | context) = Σ log p(token | all before it), in f64.
//!
//! What the texts of a group have in common goes through the model once, whatever its family (`forward/branches.rs`), and
//! logits are made of the positions that predict a continuation, of no others.

use crate::error::UserError;
use crate::forward::{Grouped, Tree, TreeState, TreeStates, grouped};
use crate::model::{Head, Model};
use crate::ops::target_scores;
use crate::progress::Progress;
use crate::text::Window;
use anyhow::Result;
use candle_core::Tensor;

/// What a model says of a continuation.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Likelihood {
    /// log p(continuation | context), nats.
    pub log_p: f64,
    /// Whether every token of it is the most likely one: the continuation is what the model would write.
    pub greedy: bool,
}

/// The log-likelihoods of the targets of each window, group by group. Windows of a group that begin alike share the work on
/// their beginning; the result does not depend on it but for rounding.
///
/// Steps `progress` once per group and block.
///
/// # Errors
/// A window without targets or longer than the model's context by more than its last id, which is only predicted; and a
/// [`UserError`] where an output is not finite.
pub fn likelihoods(model: &Model, groups: &[Vec<Window>], progress: &dyn Progress) -> Result<Vec<Vec<Likelihood>>> {
    let mut planned: Vec<Planned> = Vec::new();
    for (index, windows) in groups.iter().enumerate() {
        plan(model, index, windows, &mut planned);
    }
    let trees: Vec<Tree> = planned.iter().map(|planned| planned.tree.clone()).collect();
    let limits = model.compute().limits;
    let at_once = model.compute().room.tokens().map_or(limits.batch_tokens, |tokens| tokens.min(limits.batch_tokens));
    let tokens_in_memory = (limits.states / (4 * model.hidden()).max(1)).max(1);
    let head = model.head()?;
    let mut found: Vec<Vec<Likelihood>> = groups.iter().map(|g| vec![Likelihood::default(); g.len()]).collect();
    for wave in waves(&trees, grouped(&trees, at_once), tokens_in_memory) {
        let mut states = TreeStates::embed(model, &trees, &wave)?;
        states.finish(model, progress)?;
        let mut targets =
            Targets { head: &head, found: &mut found, states: Vec::new(), ids: Vec::new(), of: Vec::new() };
        for state in states.trees() {
            let planned = &planned[state.index()];
            for &(place, branch) in &planned.windows {
                targets.push(&state, branch, (planned.group, place), &groups[planned.group][place])?;
            }
        }
        targets.score()?;
    }
    match found.iter().flatten().find(|likelihood| !likelihood.log_p.is_finite()) {
        None => Ok(found),
        Some(_) => {
            let error = UserError::not_finite(format!("the output of {} is NaN or infinite", model.source().label()));
            Err(error.hint("no task can be scored; its weights are damaged or overflow f32").into())
        }
    }
}

/// A tree of a group's windows, and which are in it.
struct Planned {
    group: usize,
    tree: Tree,
    /// The place of each window in its group, and its branch.
    windows: Vec<(usize, Option<usize>)>,
}

/// One tree of all windows if they begin alike, otherwise a tree for each. Equal inputs are one branch.
fn plan(model: &Model, group: usize, windows: &[Window], planned: &mut Vec<Planned>) {
    // The last id is only predicted.
    let inputs: Vec<&[u32]> = windows.iter().map(|w| &w.ids[..w.ids.len().saturating_sub(1)]).collect();
    let common = |a: &[u32], b: &[u32]| a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let shared = inputs.iter().map(|input| common(input, inputs[0])).min().unwrap_or(0);
    // Longer sequences are rotated by their own length from the first position on.
    let turn = model.original_context().unwrap_or(usize::MAX);
    if shared == 0 || inputs.iter().any(|input| input.len() > turn) {
        for (place, input) in inputs.iter().enumerate() {
            let tree = Tree { prefix: input.to_vec(), branches: Vec::new() };
            planned.push(Planned { group, tree, windows: vec![(place, None)] });
        }
        return;
    }
    let mut tree = Tree { prefix: inputs[0][..shared].to_vec(), branches: Vec::new() };
    let mut of_windows = Vec::with_capacity(inputs.len());
    for (place, input) in inputs.iter().enumerate() {
        let rest = input[shared..].to_vec();
        let known = tree.branches.iter().position(|branch| *branch == rest);
        let branch = match known {
            _ if rest.is_empty() => None,
            Some(known) => Some(known),
            None => {
                tree.branches.push(rest);
                Some(tree.branches.len() - 1)
            }
        };
        of_windows.push((place, branch));
    }
    planned.push(Planned { group, tree, windows: of_windows });
}

/// Groups that are in memory together: weights are read once for each wave.
fn waves(trees: &[Tree], groups: Vec<Grouped>, tokens: usize) -> Vec<Vec<Grouped>> {
    let of_tree = |&i: &usize| trees[i].prefix.len() + trees[i].branches.iter().map(Vec::len).sum::<usize>();
    let (mut waves, mut used): (Vec<Vec<Grouped>>, usize) = (Vec::new(), 0);
    for group in groups {
        let size: usize = group.iter().map(of_tree).sum();
        match waves.last_mut().filter(|_| used + size <= tokens) {
            Some(wave) => wave.push(group),
            None => {
                waves.push(vec![group]);
                used = 0;
            }
        }
        used += size;
    }
    waves
}

/// States that predict targets, until there are as many as logits may be in memory at once.
struct Targets<'a> {
    head: &'a Head,
    found: &'a mut [Vec<Likelihood>],
    /// Each (targets, hidden).
    states: Vec<Tensor>,
    ids: Vec<u32>,
    /// Group and place of the window of each target.
    of: Vec<(usize, usize)>,
}

impl Targets<'_> {
    fn push(&mut self, state: &TreeState, branch: Option<usize>, of: (usize, usize), window: &Window) -> Result<()> {
        self.found[of.0][of.1].greedy = true;
        self.states.push(state.positions(branch, window.first_target - 1, window.targets())?);
        self.ids.extend_from_slice(&window.ids[window.first_target..]);
        self.of.resize(self.ids.len(), of);
        if self.ids.len() >= self.head.positions_at_once(1) { self.score() } else { Ok(()) }
    }

    /// Adds what the states say of their targets to the likelihoods of the windows.
    fn score(&mut self) -> Result<()> {
        if self.ids.is_empty() {
            return Ok(());
        }
        let states = Tensor::cat(&self.states, 0)?;
        let at_once = self.head.positions_at_once(1);
        let mut scores = Vec::new();
        for (i, ids) in self.ids.chunks(at_once).enumerate() {
            let logits = self.head.logits(&states.narrow(0, i * at_once, ids.len())?.contiguous()?)?;
            scores.push(target_scores(&logits, ids)?);
        }
        for (row, &(group, place)) in Tensor::cat(&scores, 0)?.to_vec2::<f64>()?.iter().zip(&self.of) {
            let likelihood = &mut self.found[group][place];
            likelihood.log_p += row[0];
            likelihood.greedy &= row[1] == 1.0;
        }
        (self.states, self.ids, self.of) = Default::default();
        Ok(())
    }
}

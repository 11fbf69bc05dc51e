//! The three steps of every method: decompose, plan, cut.

use super::{Run, allocate};
use crate::learn::SpectralReport;
use crate::machine::StageClock;
use crate::method::Inputs;
use crate::model::LinearSpec;
use crate::plan::{AllocationRule, Choice, Plan, largest_saving_rank};
use crate::report::Trial;
use anyhow::Result;

/// What became of the linears, and how that was decided.
pub(crate) struct Shrunk {
    pub plan: Plan,
    /// Cross-linear weights, where they were used.
    pub weights: Option<Vec<f64>>,
    /// What learning did, for a method that learns.
    pub learning: Option<SpectralReport>,
    /// Sizes that were tried.
    pub trials: Vec<Trial>,
}

impl Run<'_> {
    /// Compresses every linear: decomposes, plans and cuts. A learned method trains in between, and what calibrates behind
    /// compressed blocks does all three block by block.
    pub(super) fn shrink(&self, clock: &mut StageClock) -> Result<Shrunk> {
        let blocks = self.model.blocks() as u64;
        if let Some((learned, options)) = self.method.learned().zip(self.recipe.learn.as_ref()) {
            let (plan, report) = self.learn(learned, options, clock)?;
            return Ok(Shrunk { plan, weights: None, learning: Some(report), trials: Vec::new() });
        }
        if self.recipe.allocation == AllocationRule::Forms {
            return self.shrink_by_forms(clock);
        }
        let by_shape = match self.recipe.allocation {
            AllocationRule::Global => None,
            _ => Some(allocate::by_shape(self.recipe, self.method, &self.model)?),
        };
        // Channels are chosen by statistics, which no decomposition has.
        let narrows = |plan: &Plan| plan.choices.iter().any(|(_, choice)| matches!(choice, Choice::Width(_)));
        if let Some(plan) = &by_shape
            && (self.recipe.inputs != Inputs::Dense || narrows(plan))
        {
            clock.stage("compressing", blocks);
            self.compress_blocks(plan)?;
            return Ok(Shrunk { plan: plan.clone(), weights: None, learning: None, trials: Vec::new() });
        }
        clock.stage("decomposing", blocks);
        let pays = |spec: &LinearSpec| match by_shape.as_ref().and_then(|plan| plan.choice(spec.id)) {
            Some(Choice::Rank(rank)) => Some(rank),
            Some(_) => None,
            None => Some(largest_saving_rank(spec.out, spec.input)),
        };
        self.decompose(self.method, &pays)?;
        let Some(plan) = by_shape else {
            let energies = self.energies()?;
            let weights = self.weights(&energies, clock)?;
            let planned = |target| allocate::by_energy(self, &energies, &weights, target);
            let (plan, trials) = self.settle(&planned, &|plan| self.cut_all(plan), clock)?;
            return Ok(Shrunk { plan, weights: Some(weights), learning: None, trials });
        };
        clock.stage("compressing", blocks);
        self.cut_all(&plan)?;
        Ok(Shrunk { plan, weights: None, learning: None, trials: Vec::new() })
    }
}

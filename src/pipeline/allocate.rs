//! From the recipe's budget and rule to a plan.

use super::Run;
use crate::method::{Method, RHO};
use crate::model::Model;
use crate::plan::{self, AllocationRule, GlobalOptions, Item, LorapOptions, Plan, Target};
use crate::recipe::Recipe;
use crate::user_bail;
use anyhow::Result;

/// The plan of every rule that looks at shapes alone.
pub fn by_shape(recipe: &Recipe, method: &dyn Method, model: &Model) -> Result<Plan> {
    let items: Vec<Item> = model.linears().iter().map(Item::from).collect();
    let extra = extra(recipe, method, model);
    let target = without(target(recipe, model)?, extra, &items)?;
    let plan = match recipe.allocation {
        AllocationRule::Lorap => lorap(recipe, &items, target, false),
        AllocationRule::Uniform if method.prunes_channels() => lorap(recipe, &items, target, true),
        AllocationRule::Even => plan::even(&items, target, recipe.multiple_of),
        AllocationRule::Uniform => plan::uniform(&items, target, recipe.multiple_of),
        AllocationRule::LastBlocks => last_blocks(recipe, &items, target),
        // Without spectra or scores the best that can be said is that the budget is feasible.
        AllocationRule::Global | AllocationRule::Learned | AllocationRule::Forms => {
            plan::even(&items, target, recipe.multiple_of)
        }
    }?;
    Ok(with(plan, extra))
}

/// The plan of a learned method: what its components are worth decides, unless the recipe forces ranks.
pub fn by_worth(recipe: &Recipe, method: &dyn Method, model: &Model, worth: &[Vec<f64>]) -> Result<Plan> {
    if recipe.allocation != AllocationRule::Learned {
        return by_shape(recipe, method, model);
    }
    let sorted = |worth: &Vec<f64>| {
        let mut sorted = worth.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        sorted
    };
    let specs = model.linears().iter().zip(worth);
    let items: Vec<Item> = specs.map(|(spec, w)| Item { energy: Some(sorted(w)), ..Item::from(spec) }).collect();
    let extra = extra(recipe, method, model);
    let target = without(target(recipe, model)?, extra, &items)?;
    let options = GlobalOptions { multiple_of: recipe.multiple_of, ..GlobalOptions::default() };
    Ok(with(plan::global(&items, target, options)?, extra))
}

/// Numbers that the method stores beside the factors whatever the plan: biases that the original does not have.
fn extra(recipe: &Recipe, method: &dyn Method, model: &Model) -> usize {
    let trains = method.learned().zip(recipe.learn.as_ref()).map(|(learned, learn)| learned.trains(&learn.settings));
    if !trains.is_some_and(|trains| trains.deviation) {
        return 0;
    }
    model.linears().iter().filter(|spec| !spec.bias).map(|spec| spec.out).sum()
}

/// What of `target` is left for the linears once `extra` numbers are paid for.
fn without(target: Target, extra: usize, items: &[Item]) -> Result<Target> {
    if extra == 0 {
        return Ok(target);
    }
    let total = items.iter().map(Item::params).sum();
    let budget = target.budget(total)?;
    match budget.checked_sub(extra) {
        Some(left) if left > 0 => Ok(Target::Params(left)),
        _ => user_bail!(
            "the budget of {budget} parameters is less than the {extra} of the output deviations";
            "keep more, or add --deviation false"
        ),
    }
}

fn with(mut plan: Plan, extra: usize) -> Plan {
    plan.kept += extra;
    plan.budget += extra;
    plan
}

/// The plan of the rule that compares linears by weighted energy.
pub fn by_energy(run: &Run, energies: &[Vec<f64>], weights: &[f64], target: Target) -> Result<Plan> {
    let items: Vec<Item> = run
        .model
        .linears()
        .iter()
        .zip(energies)
        .zip(weights)
        .map(|((spec, energy), &weight)| Item { energy: Some(energy.clone()), weight, ..Item::from(spec) })
        .collect();
    let options = GlobalOptions { multiple_of: run.recipe.multiple_of, ..GlobalOptions::default() };
    plan::global(&items, target, options)
}

/// How many of the linears' parameters may stay.
pub fn target(recipe: &Recipe, model: &Model) -> Result<Target> {
    let linears: u64 = model.linears().iter().map(|spec| spec.params() as u64).sum();
    let source = model.source();
    let infos = || source.names().filter_map(|name| source.info(name));
    let others = infos().map(|info| info.elements() as u64).sum::<u64>() - linears;
    let (model_params, model_bytes) = super::sizes::checkpoint_sizes(source);
    let asked = (recipe.target_params, recipe.target_bytes);
    let nothing_to_do = match asked {
        (Some(asked), _) => (asked >= model_params).then_some(("--target-params", asked, model_params)),
        (None, Some(asked)) => (asked >= model_bytes).then_some(("--target-bytes", asked, model_bytes)),
        (None, None) => None,
    };
    if let Some((flag, asked, has)) = nothing_to_do {
        user_bail!("{flag} {asked} leaves nothing to compress: the model has {has}"; "ask for less");
    }
    Ok(match asked {
        (None, None) => Target::Keep(recipe.keep),
        (Some(asked), _) => match asked.checked_sub(others) {
            Some(left) if left > 0 => Target::Params(left as usize),
            _ => user_bail!(
                "--target-params {asked} is less than the {others} parameters outside the block linears";
                "embeddings, head and norms are not compressed; ask for more"
            ),
        },
        (None, Some(asked)) => {
            let (params, bytes) = super::sizes::linear_storage(recipe, model)?;
            let per_param = bytes as f64 / params as f64;
            let other_bytes = super::sizes::other_bytes(model)?;
            match asked.checked_sub(other_bytes) {
                Some(left) if left as f64 >= per_param => Target::Params((left as f64 / per_param) as usize),
                _ => user_bail!(
                    "--target-bytes {asked} is less than the {other_bytes} bytes outside the block linears";
                    "embeddings, head and norms are not compressed; ask for more"
                ),
            }
        }
    })
}

/// The budget as a fraction of the linears' parameters.
pub fn keep_fraction(recipe: &Recipe, model: &Model) -> Result<f64> {
    let total: usize = model.linears().iter().map(|spec| spec.params()).sum();
    Ok(match target(recipe, model)? {
        Target::Keep(keep) => keep,
        Target::Params(params) => (params as f64 / total as f64).min(1.0),
    })
}

fn lorap(recipe: &Recipe, items: &[Item], target: Target, exact: bool) -> Result<Plan> {
    let rho = recipe.options.get(&RHO)?;
    let options = LorapOptions { rho, exact, multiple_of: recipe.multiple_of, ..LorapOptions::default() };
    plan::lorap(items, target, options)
}

fn last_blocks(recipe: &Recipe, items: &[Item], target: Target) -> Result<Plan> {
    let last = recipe.last_blocks.unwrap_or(0);
    match recipe.block_keep {
        Some(keep) => plan::last_blocks(items, last, keep, recipe.multiple_of),
        None => plan::last_blocks_within(items, target, last, recipe.multiple_of),
    }
}

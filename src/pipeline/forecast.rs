//! What a run would do, from the headers of a checkpoint alone: nothing is read of its weights, and no text.

use super::estimate::{Compression, Rates, evaluated, stages};
use super::sizes::{linear_storage, other_bytes};
use super::tasks::EvalData;
use super::texts::usual_window;
use super::{Calibration, HELDOUT_TOKENS, allocate, heldout_tokens, open};
use crate::compute::Compute;
use crate::hub::HubOptions;
use crate::method::by_name;
use crate::plan::Choice;
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::report::{Forecast, Size, StageForecast, StaysDense};
use crate::text::{Window, Windows};
use anyhow::Result;
use std::collections::BTreeMap;

/// Windows that stand for text which nobody has read.
fn blank(count: usize, window: usize) -> Windows {
    let row = Window { ids: vec![0; window], first_target: 1 };
    Windows { rows: vec![row; count], window, stride: window, bos: false, text_tokens: count * window }
}

/// Sizes, memory and time of a run by `recipe`, with as much calibration text as it asks for.
///
/// # Errors
/// What a run would refuse before any work: a model, a budget, a limit of memory.
pub fn forecast(
    recipe: &Recipe,
    hub: &HubOptions,
    compute: impl Into<Compute>,
    progress: &dyn Progress,
) -> Result<Forecast> {
    let model = open::as_asked(recipe, open::open_dense(&recipe.model, hub)?, compute, progress)?;
    let method = by_name(&recipe.method)?;
    let plan = allocate::by_shape(recipe, method, &model)?;
    let window = recipe.window.unwrap_or(usual_window(&model)).min(model.context());
    let heldout = blank(heldout_tokens(recipe, &model).max(HELDOUT_TOKENS).div_ceil(window), window);
    let calibration = Calibration::new(blank(recipe.calib_windows, window), heldout, Vec::new(), recipe.sampling());
    let data = EvalData::default();
    let compression = Compression { recipe, method, model: &model, calibration: &calibration, data, plan: &plan };
    let (_, memory) = compression.fit()?;
    let rates = Rates::measure(model.device())?;
    let tokens = evaluated(&model, recipe.ppl.len(), recipe.max_windows, recipe.eval_window);
    let stage = |(name, seconds): (String, f64)| StageForecast { name, seconds };
    let stages: Vec<StageForecast> = stages(&compression, rates, tokens).into_iter().map(stage).collect();

    let (linears, linear_bytes) = linear_storage(recipe, &model)?;
    let other = other_bytes(&model)?;
    let (all, all_bytes) = super::checkpoint_sizes(model.source());
    // Where spectra decide about ranks, the sum is what was asked for all the same.
    let share = plan.kept as f64 / plan.total.max(1) as f64;
    let after = (share * linear_bytes as f64) as u64;
    let mut roles: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for spec in model.linears() {
        let role = roles.entry(spec.id.role.to_string()).or_default();
        role.0 += usize::from(plan.choice(spec.id) == Some(Choice::Dense));
        role.1 += 1;
    }
    let dense = roles.into_iter().filter(|(_, (dense, _))| *dense > 0);
    Ok(Forecast {
        schema: crate::report::SCHEMA,
        model: recipe.model.clone(),
        family: model.described_family(),
        method: method.card().name.to_string(),
        blocks: model.blocks(),
        linears: Size {
            params_before: linears,
            params_after: plan.kept as u64,
            bytes_before: linear_bytes,
            bytes_after: after,
        },
        whole: Size {
            params_before: all,
            params_after: all - linears + plan.kept as u64,
            bytes_before: all_bytes,
            bytes_after: other + after,
        },
        keep: plan.keep(),
        calibration_windows: recipe.calib_windows,
        window,
        dense: dense.map(|(role, (count, of))| StaysDense { role, count, of }).collect(),
        memory,
        machine: crate::machine::describe(&crate::device::describe(model.device())),
        product_rate: rates.products,
        seconds: stages.iter().map(|stage| stage.seconds).sum(),
        stages,
        evaluation_tokens: tokens as u64,
    })
}

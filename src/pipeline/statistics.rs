//! A folder of statistics (`--stats`), and what a run sees of the calibration text at all.

use super::texts::Calibration;
use crate::calibrate::{Origin, StatsStore};
use crate::method::{Inputs, Method, Needs};
use crate::model::Model;
use crate::plan::AllocationRule;
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::user_bail;
use anyhow::Result;
use std::path::Path;

/// Statistics in `dir`, checked against this run, or a new folder to fill.
pub(super) fn open_stats(
    dir: &Path,
    model: &Model,
    calibration: &Calibration,
    recipe: &Recipe,
    progress: &dyn Progress,
) -> Result<StatsStore> {
    if recipe.inputs != Inputs::Dense {
        user_bail!(
            "--stats holds activations of the original model, but {} calibrates behind compressed layers", recipe.method;
            "add --inputs dense, or leave --stats out"
        );
    }
    let (tokens, heldout) = (calibration.windows.tokens(), calibration.heldout.tokens());
    let origin = Origin::new(model.source(), model.blocks(), calibration.describe(), tokens, heldout)?;
    let origin = origin.computed(model.compute());
    let store = match StatsStore::open(dir)? {
        // Whatever they were made from, they are whole.
        Some(store) if store.is_finished() && store.missing().is_none() => {
            store.remove_stale_lock();
            store
        }
        _ => StatsStore::fill(dir, origin.clone(), progress)?,
    };
    store.check(model, &origin)?;
    Ok(store)
}

/// Whether the result depends on the calibration text. Held-out errors, which do in any case, are only reported.
pub(super) fn looks_at_text(recipe: &Recipe, method: &dyn Method) -> bool {
    let trains = recipe.task.is_none() && recipe.heal > 0;
    method.needs() != Needs::Nothing || recipe.allocation == AllocationRule::Global || trains
}

/// Whether what is seen of the inputs comes from this run's text, not all of it from statistics of another.
pub(super) fn shows_text(
    recipe: &Recipe,
    method: &dyn Method,
    calibration: &Calibration,
    stats: Option<&StatsStore>,
) -> bool {
    let of_another = stats.is_some_and(|store| of_another_text(store, calibration));
    let trains = recipe.task.is_none() && (recipe.heal > 0 || recipe.learn.is_some());
    looks_at_text(recipe, method) && (trains || !of_another)
}

pub(super) fn of_another_text(stats: &StatsStore, calibration: &Calibration) -> bool {
    stats.origin.texts != [calibration.describe()]
}

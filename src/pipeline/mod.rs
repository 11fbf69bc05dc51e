//! `compress`, stage by stage. No tensor arithmetic, no printing.
//!
//! ```text
//! model, text → decompose → plan ⇄ cut → (heal) → write, evaluate, verify → publish
//!                         ↘ train ↗
//! ```
//! Decompositions of the dense model lie on disk, so that a budget can be shared out over all of them; a learned method trains
//! on them first. Methods that calibrate behind compressed blocks decompose, and cut at once, block by block. Where a budget is
//! shared out over forms (`forms/`), what lies on disk is what every form of every part would lose. Several sizes are planned
//! and cut one after the other from the same decompositions where a size is searched for (`search`) or several are asked for;
//! of these the decompositions stay beside the output, for whoever cuts another one later (`elastic`), which is what several
//! outputs of one model are made with (`sweep`).

mod texts;
mod degenerate;
mod quality;
mod tasks;
mod original;
mod open;
mod statistics;
mod estimate;
mod fingerprint;
mod prepare;
mod stored;
mod block;
mod waves;
mod decompositions;
mod decompose;
mod weights;
mod allocate;
mod cut;
mod search;
mod forms;
mod blocks;
mod labels;
mod learn;
mod shrink;
mod heal;
mod licence;
mod sizes;
mod assemble;
mod elastic;
mod sweep;
mod forecast;

pub use degenerate::without_bos;
pub use elastic::{cut, recipe as cut_recipe};
pub use estimate::{Sequences, announce, fit_calibration, fit_evaluation, sequences};
pub use forecast::forecast;
pub use labels::{Labels, labels};
pub use open::{check_numbers, load_model, open_source, tokenizer};
pub use original::{Found, Original, refuse_base};
pub use quality::{Quality, glue_tasks, measure, steps};
pub use sizes::checkpoint_sizes;
pub use sweep::{SWEEP_SURVEY, Sweep};
pub use tasks::{EvalData, measure_tasks, task_items, task_sequences};
pub use texts::{
    Calibration, CalibrationWish, EvalProtocol, EvalText, HELDOUT_TOKENS, TrainingText, calibration, evaluation,
    training,
};

use crate::calibrate::StatsStore;
use crate::checkpoint::Source;
use crate::compute::Compute;
use crate::eval::{Base, EncodedItems};
use crate::hub::HubOptions;
use crate::job::{Copied, Job};
use crate::machine::StageClock;
use crate::method::Method;
use crate::model::{Model, Output, verify};
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::report::{Cost, Report};
use crate::text::Tokenizer;
use anyhow::Result;
use prepare::{Prepared, prepare};

/// Windows of 128 tokens to judge a classifier by: 64 of them.
const CLASSIFIER_HELDOUT_TOKENS: usize = 8192;

/// Tokens of text that a training is judged by, at most: of two states of one model the same tokens are asked, so that few will
/// do.
const TRAINING_HELDOUT_TOKENS: usize = 4096;
/// What a training sees is so many times what it is judged by, at each of its looks, or looking takes longer than learning.
const TRAINED_TO_HELDOUT: usize = 8;

/// The context of what went wrong while a finished result was measured.
#[derive(Debug, thiserror::Error)]
#[error("evaluating the result")]
pub struct ResultNotMeasured;

/// What the stages that make weights work with.
pub(crate) struct Run<'a> {
    recipe: &'a Recipe,
    method: &'static dyn Method,
    model: Model,
    calibration: Calibration,
    /// What is measured, before and after.
    texts: &'a [EvalText],
    stats: Option<StatsStore>,
    /// The files of the model that travel into the output.
    copied: Copied,
    job: Job,
    progress: &'a dyn Progress,
}

/// Compresses as `recipe` says and returns the report that was written beside the weights.
pub fn compress(
    recipe: &Recipe,
    force: bool,
    hub: &HubOptions,
    compute: impl Into<Compute>,
    progress: &dyn Progress,
) -> Result<Report> {
    let mut clock = StageClock::start(progress);
    let model = open::as_asked(recipe, open::open_dense(&recipe.model, hub)?, compute, progress)?;
    let tokenizer = tokenizer(model.source())?;
    let Data { calibration, texts, tasks } = read_data(recipe, &model, &tokenizer, hub, &mut clock)?;
    let data = EvalData { texts: &texts, tasks: &tasks, kept: None };
    compress_windows(recipe, force, model, calibration, data, clock, progress)
}

/// All text of a run, as token ids.
struct Data {
    calibration: Calibration,
    texts: Vec<EvalText>,
    tasks: Vec<EncodedItems>,
}

fn read_data(
    recipe: &Recipe,
    model: &Model,
    tokenizer: &Tokenizer,
    hub: &HubOptions,
    clock: &mut StageClock,
) -> Result<Data> {
    clock.stage("reading text", 1);
    let wish = CalibrationWish {
        specs: &recipe.calib,
        windows: recipe.calib_windows,
        window: recipe.window,
        sampling: recipe.sampling(),
        bos: recipe.bos,
        heldout: heldout_tokens(recipe, model),
    };
    let mut calibration = calibration(model, tokenizer, &wish, hub)?;
    if let Some(text) = &recipe.train_text {
        let wish = CalibrationWish {
            specs: &text.specs,
            windows: text.windows,
            window: Some(calibration.windows.window),
            heldout: training_heldout_tokens(recipe, model),
            ..wish
        };
        calibration.training = Some(training(model, tokenizer, &wish, hub)?);
    }
    if wish.heldout > HELDOUT_TOKENS {
        calibration.training = Some(calibration.judged_by_all(HELDOUT_TOKENS));
    }
    if let Some(task) = &recipe.task {
        calibration.labels = Some(labels(model, tokenizer, task, recipe.seed, hub)?);
    }
    let texts = texts::of_recipe(recipe, model, tokenizer, hub)?;
    let tasks = tasks::of_recipe(recipe, model, tokenizer, hub)?;
    Ok(Data { calibration, texts, tasks })
}

/// What [`compress`] does once text has become windows.
///
/// An interrupted run is continued when the recipe and the hashes of the model's files and of the corpora are the same:
/// equal hashes have to mean equal windows.
pub fn compress_windows<'d>(
    recipe: &Recipe,
    force: bool,
    model: Model,
    calibration: Calibration,
    eval_data: impl Into<EvalData<'d>>,
    mut clock: StageClock,
    progress: &dyn Progress,
) -> Result<Report> {
    let data: EvalData = eval_data.into();
    let (run, provenance) = match prepare(recipe, force, model, calibration, data, progress)? {
        Prepared::Finished(report) => return Ok(*report),
        Prepared::Run(run, provenance) => (*run, provenance),
    };
    let shrunk = run.shrink(&mut clock)?;
    let healing = run.heal(clock.seconds("learning"), &mut clock)?;

    clock.stage("writing", run.model.blocks() as u64);
    let dir = assemble::weights(&run, &shrunk.plan, &|index| run.final_block(index))?;
    let output = Source::open_unfinished(&dir)?.with_label(recipe.output.display().to_string());
    let compressed = Model::load(output, run.model.compute())?;
    let original = Base { model: &run.model, kept: data.kept };
    let (evaluation, fidelity) = quality::before_and_after(original, &compressed, data.texts, &mut clock, progress)?;
    let tasks = tasks::measure_stage(&run.model, &compressed, data.tasks, &mut clock, progress)?;
    let measured = assemble::Measured { evaluation, fidelity, tasks };
    clock.stage("verifying", 1);
    let verification = verify(compressed.source(), Some(run.model.source()), None)?;
    if let Some(problem) = verification.problems.first() {
        anyhow::bail!("the output is not whole, which is a bug in softlm: {problem}");
    }
    let cost = Cost { estimate: Some(provenance.estimate), ..clock.finish(run.job.resumed()) };
    assemble::side_files(&run, &dir)?;
    if recipe.elastic.is_some() {
        elastic::store(&run, &dir)?;
    }
    let report = assemble::report(&run, provenance, shrunk, healing, compressed.source(), measured, cost)?;
    assemble::documents(&run, &dir, &report)?;
    if let Some(note) = run.job.publish()?.note(&recipe.output) {
        progress.note(&note);
    }
    Ok(report)
}

/// Tokens of text to judge by. A window says of a classifier what a token says of other models: they need more of them.
fn heldout_tokens(recipe: &Recipe, model: &Model) -> usize {
    let trains = recipe.heal > 0 || recipe.learn.is_some();
    let classifies = matches!(model.output(), Output::Classes(_));
    match (trains && recipe.task.is_none() && recipe.train_text.is_none(), classifies) {
        (true, true) => CLASSIFIER_HELDOUT_TOKENS,
        (true, false) => training_heldout_tokens(recipe, model),
        (false, _) => HELDOUT_TOKENS,
    }
}

fn training_heldout_tokens(recipe: &Recipe, model: &Model) -> usize {
    let window = recipe.window.unwrap_or(model.context()).min(model.context());
    let learned = recipe.learn.as_ref().map_or(0, |learn| learn.steps.saturating_mul(learn.batch));
    let shown = recipe.heal.saturating_mul(recipe.heal_batch).max(learned).saturating_mul(window);
    (shown / TRAINED_TO_HELDOUT).clamp(HELDOUT_TOKENS, TRAINING_HELDOUT_TOKENS)
}

//! Elastic outputs: what a model of any size is cut from lies beside the weights, in the folder `survey`, with the windows
//! of text it was made from.

use super::decompositions::Decompositions;
use super::tasks::{self, EvalData};
use super::texts::{self, Calibration};
use super::{Found, Original, Run, compress_windows, open, tokenizer};
use crate::checkpoint::{Source, TensorFile, read_settings, sync_folder, write_file};
use crate::compute::Compute;
use crate::hub::HubOptions;
use crate::job::{Job, SURVEY, SURVEY_ORIGIN};
use crate::machine::StageClock;
use crate::method::GRADIENTS;
use crate::model::Model;
use crate::plan::AllocationRule;
use crate::progress::Progress;
use crate::recipe::{Options, Recipe};
use crate::report::{CorpusInfo, Report};
use crate::text::Windows;
use crate::user_bail;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What a survey was made from, beside the original.
#[derive(Serialize, Deserialize)]
struct Origin {
    windows: Windows,
    heldout: Windows,
    corpora: Vec<CorpusInfo>,
}

/// Puts what every size is cut from into the assembled output `dir`.
pub(super) fn store(run: &Run, dir: &Path) -> Result<()> {
    let survey = survey_of(dir);
    fs::create_dir(&survey).with_context(|| format!("creating {}", survey.display()))?;
    let timed: BTreeSet<PathBuf> = (0..run.model.blocks()).map(|index| run.job.decompositions_file(index)).collect();
    for name in files(run.recipe, run.model.blocks())? {
        let (from, to) = (run.job.dir().join(&name), survey.join(&name));
        if timed.contains(&from) {
            Decompositions::open(&from)?.write_without_times(&to)?;
        } else {
            fs::copy(from, to).with_context(|| format!("writing {name}"))?;
        }
    }
    let Calibration { windows, heldout, corpora, .. } = &run.calibration;
    let origin = Origin { windows: windows.clone(), heldout: heldout.clone(), corpora: corpora.clone() };
    write_file(&survey.join(SURVEY_ORIGIN), &serde_json::to_vec(&origin)?)?;
    sync_folder(&survey)
}

/// What a run by `recipe` leaves that serves every size.
fn files(recipe: &Recipe, blocks: usize) -> Result<Vec<String>> {
    let forms = recipe.allocation == AllocationRule::Forms;
    Ok(Job::shared_names(blocks, forms && recipe.options.get(&GRADIENTS)?, forms))
}

/// The recipe that cuts the elastic output `folder` to what `wanted` says: all else is as the output was made.
///
/// # Errors
/// A [`UserError`](crate::error::UserError) for what is no elastic output, and as [`Options::resolve`].
pub fn recipe(folder: &Path, wanted: Options) -> Result<Recipe> {
    let survey = survey_of(folder);
    if !survey.join(SURVEY_ORIGIN).is_file() {
        user_bail!(
            "{} is no elastic output: it has no {SURVEY}/{SURVEY_ORIGIN}", folder.display();
            "make one with softlm compress MODEL --elastic 0.9,0.8,0.6 -o DIR"
        );
    }
    let mut options = wanted.or_file(&folder.join("softlm.toml"))?;
    // Used when the survey was made, and not looked at again.
    options.stats = None;
    Ok(Recipe { survey: Some(survey), ..options.resolve()? })
}

/// Where the elastic output `folder` has what every size is cut from.
pub(super) fn survey_of(folder: &Path) -> PathBuf {
    folder.join(SURVEY)
}

/// Fails unless the elastic output that `recipe` makes has all that sizes of `model` are cut from.
pub(super) fn check_survey(recipe: &Recipe, model: &Model) -> Result<()> {
    let survey = survey_of(&recipe.output);
    check(&survey, &files(recipe, model.blocks())?, &read(&survey)?, model)
}

/// Cuts the elastic output `folder` as [`recipe`] says. Its original is looked for at `base`, or where it was.
pub fn cut(
    folder: &Path,
    base: Option<&str>,
    recipe: &Recipe,
    force: bool,
    hub: &HubOptions,
    compute: impl Into<Compute>,
    progress: &dyn Progress,
) -> Result<Report> {
    let clock = StageClock::start(progress);
    let survey = recipe.survey.as_deref().context("a recipe without a survey")?;
    let origin = read(survey)?;
    let output = Source::open(folder)?.with_label(folder.display().to_string());
    let original = Original::of(&output)?.context("an output with a survey says what it was made from")?;
    let source = match original.find(base, hub, progress)? {
        Found::Here(source) => *source,
        Found::Absent(error) => {
            let name = original.name();
            return Err(
                error.context(format!("{name} is needed: an elastic output holds all but the original's weights"))
            );
        }
    };
    let model = open::as_asked(recipe, source, compute, progress)?;
    check(survey, &files(recipe, model.blocks())?, &origin, &model)?;
    let tokenizer = tokenizer(model.source())?;
    let texts = texts::of_recipe(recipe, &model, &tokenizer, hub)?;
    let tasks = tasks::of_recipe(recipe, &model, &tokenizer, hub)?;
    let Origin { windows, heldout, corpora, .. } = origin;
    let calibration = Calibration::new(windows, heldout, corpora, recipe.sampling());
    compress_windows(
        recipe,
        force,
        model,
        calibration,
        EvalData { texts: &texts, tasks: &tasks, kept: None },
        clock,
        progress,
    )
}

fn read(survey: &Path) -> Result<Origin> {
    let path = survey.join(SURVEY_ORIGIN);
    let bytes = read_settings(&path).with_context(|| format!("reading {}", path.display()))?;
    match serde_json::from_slice(&bytes) {
        Ok(origin) => Ok(origin),
        Err(error) => user_bail!("{} is damaged: {error}", path.display(); "make the elastic output again"),
    }
}

/// Every file is there and as it was written, for what is missing would have to be made again, from text, and the windows are
/// windows for this model.
fn check(survey: &Path, files: &[String], origin: &Origin, model: &Model) -> Result<()> {
    let damaged = files.iter().map(|name| survey.join(name)).find(|path| TensorFile::open_sealed(path).is_err());
    if let Some(path) = damaged {
        user_bail!("{} is missing or damaged", path.display(); "make the elastic output again");
    }
    let fits = |windows: &Windows| {
        let known = |id: &u32| (*id as usize) < model.vocab();
        windows.rows.iter().all(|row| row.ids.len() == windows.window && row.ids.iter().all(known))
    };
    if origin.windows.rows.is_empty() || !fits(&origin.windows) || !fits(&origin.heldout) {
        user_bail!(
            "{} is damaged: its windows do not fit the model", survey.join(SURVEY_ORIGIN).display();
            "make the elastic output again"
        );
    }
    Ok(())
}

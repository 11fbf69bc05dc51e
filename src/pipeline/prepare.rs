//! All that can be known, and refused, before any weight moves.

use super::estimate::{Compression, announce};
use super::fingerprint::{fingerprint, finished, with_evaluation};
use super::statistics::{open_stats, shows_text};
use super::tasks::EvalData;
use super::texts::Calibration;
use super::{Run, allocate, assemble, check_numbers};
use crate::checkpoint::Identity;
use crate::job::{Copied, Job};
use crate::method;
use crate::model::Model;
use crate::plan::AllocationRule;
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::report::{MemoryEstimate, Report};
use crate::user_bail;
use anyhow::Result;
use std::path::Path;

/// Where a run comes from: what its report says beside what was done.
pub struct Provenance {
    /// Hashes of the model's files, as they were when the run began.
    pub identity: Identity,
    /// Of everything that decides the output and its report.
    pub fingerprint: String,
    /// What a user should know of the model, and what makes the calibration doubtful.
    pub remarks: Vec<String>,
    /// Memory that the run will take.
    pub estimate: MemoryEstimate,
}

/// What there is to do.
pub enum Prepared<'a> {
    /// Nothing: the same command has made the output already.
    Finished(Box<Report>),
    /// Everything, or what an interrupted run has left.
    Run(Box<Run<'a>>, Provenance),
}

/// Checks model, text, budget, space and output, and opens the work folder.
pub fn prepare<'a>(
    recipe: &'a Recipe,
    force: bool,
    model: Model,
    calibration: Calibration,
    data: EvalData<'a>,
    progress: &'a dyn Progress,
) -> Result<Prepared<'a>> {
    let eval_texts = data.texts;
    let method = method::by_name(&recipe.method)?;
    // Shapes alone show whether the budget can be met.
    let plan = allocate::by_shape(recipe, method, &model)?;
    for &keep in recipe.elastic.iter().flatten() {
        allocate::by_shape(&Recipe { keep, ..recipe.clone() }, method, &model)?;
    }
    let compression = Compression { recipe, method, model: &model, calibration: &calibration, data, plan: &plan };
    let (limits, estimate) = compression.fit()?;
    let model = model.with_limits(limits);
    let mut remarks = check_numbers(&model, &calibration, eval_texts, progress)?;
    let copied = Copied::of(model.source())?;
    let identity = model.source().identity()?;
    let stats =
        recipe.stats.as_deref().map(|dir| open_stats(dir, &model, &calibration, recipe, progress)).transpose()?;
    stats.as_ref().map_or(Ok(()), |stats| calibration.refuse_other_beginning(stats))?;
    let weights_fingerprint =
        fingerprint(recipe, &identity, &calibration, stats.as_ref(), eval_texts, model.compute())?;
    let fingerprint = with_evaluation(&weights_fingerprint, data);
    if !force && let Some(report) = finished(&recipe.output, &fingerprint) {
        Job::clean_up(&recipe.output, &weights_fingerprint)?;
        progress.note(&format!(
            "{} was already made by the same command: nothing was done (--force makes it again)",
            recipe.output.display()
        ));
        return Ok(Prepared::Finished(Box::new(report)));
    }
    announce(&estimate, progress);
    copied.announce_code(model.source(), progress);
    if shows_text(recipe, method, &calibration, stats.as_ref()) {
        let doubts = calibration.doubts(&model, recipe.calib_windows);
        doubts.iter().for_each(|doubt| progress.warn(doubt));
        remarks.extend(doubts);
    }
    if force {
        spare_inputs(recipe, &model, &calibration, data)?;
    }
    let mut job = Job::open(&recipe.output, &weights_fingerprint, force)?;
    let weights_are_shared = recipe.allocation == AllocationRule::Forms;
    recipe.survey.iter().for_each(|survey| job.share(survey.clone(), weights_are_shared));
    let run = Run { recipe, method, model, calibration, texts: eval_texts, stats, copied, job, progress };
    assemble::check_space(&run)?;
    run.check_healing()?;
    run.check_search()?;
    if run.job.resumed() {
        progress.note("continuing an interrupted run");
        if !run.job.damaged().is_empty() {
            progress.note(&format!("damaged work is done again: {}", run.job.damaged().join(", ")));
        }
    }
    Ok(Prepared::Run(Box::new(run), Provenance { identity, fingerprint, remarks, estimate }))
}

/// Replacing an output must not delete what the run reads.
fn spare_inputs(recipe: &Recipe, model: &Model, calibration: &Calibration, data: EvalData) -> Result<()> {
    let Ok(output) = recipe.output.canonicalize() else { return Ok(()) };
    let trained = calibration.training.iter().flat_map(|text| &text.corpora);
    let texts = calibration.corpora.iter().chain(trained).map(|corpus| Path::new(&corpus.origin));
    let labels = calibration.labels.iter().map(|labels| Path::new(&labels.info.origin));
    let labels = labels.chain(data.tasks.iter().map(|task| Path::new(&task.items.origin)));
    for input in model.source().dir().into_iter().chain(recipe.stats.as_deref()).chain(texts).chain(labels) {
        if input.canonicalize().is_ok_and(|path| path.starts_with(&output)) {
            user_bail!(
                "output {} holds {}, which this run reads: --force would delete it", recipe.output.display(), input.display();
                "choose another -o"
            );
        }
    }
    Ok(())
}

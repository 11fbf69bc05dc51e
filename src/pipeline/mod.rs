//! The order of the stages. No tensor arithmetic, no printing.
//!
//! ```text
//! model, text → plan → per block: calibrate, factorise, store → (heal) → assemble, evaluate, verify → publish
//!               learned methods: decompose → train → fold      ↗
//! ```
//! Allocation across linears needs every spectrum first: a survey of the dense model decomposes all linears, keeps what
//! lies below break-even on disk, and the plan is made from that.

mod texts;
mod degenerate;
mod encoders;
mod original;
mod stored;
mod block;
mod waves;
mod decompositions;
mod decompose;
mod cut;
mod blocks;
mod weights;
mod labels;
mod licence;
mod learn;
mod heal;
mod allocate;
mod assemble;
mod sizes;

pub use degenerate::without_bos;
pub use encoders::{Quality, glue_tasks, measure, steps};
pub use labels::{Labels, labels};
pub use original::{Found, Original, refuse_base};
pub use sizes::checkpoint_sizes;
pub use texts::{Calibration, CalibrationWish, EvalProtocol, EvalText, HELDOUT_TOKENS, calibration, evaluation};

use crate::calibrate::{Origin, StatsStore};
use crate::checkpoint::{Identity, Section, Source};
use crate::eval::Fidelity;
use crate::hash::Sha256;
use crate::hub::HubOptions;
use crate::job::{Copied, Job};
use crate::learn::SpectralReport;
use crate::machine::StageClock;
use crate::method::{self, Inputs, Method, Needs};
use crate::model::{LinearSpec, Model, Output, Touched};
use crate::plan::{AllocationRule, Choice, Plan, largest_saving_rank};
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::report::{BeforeAfter, Report, UnusedTensors};
use crate::text::Tokenizer;
use crate::user_bail;
use anyhow::{Context, Result};
use candle_core::Device;
use std::path::Path;

/// Windows of 128 tokens to judge a classifier by: 64 of them.
const CLASSIFIER_HELDOUT_TOKENS: usize = 8192;
/// Names of tensors in a note.
const NAMED: usize = 4;

/// The context of what went wrong while a finished result was measured.
#[derive(Debug, thiserror::Error)]
#[error("evaluating the result")]
pub struct ResultNotMeasured;

/// Everything a run works with.
pub(crate) struct Run<'a> {
    recipe: &'a Recipe,
    method: &'static dyn Method,
    model: Model,
    /// Hashes of the model's files, as they were when the run began.
    identity: Identity,
    /// The files of the model that travel into the output.
    copied: Copied,
    /// Of everything that decides the output and its report.
    fingerprint: String,
    /// What a user should know of the model, and what makes the calibration doubtful.
    remarks: Vec<String>,
    calibration: Calibration,
    stats: Option<StatsStore>,
    job: Job,
    progress: &'a dyn Progress,
}

/// What became of the linears, and how that was decided.
pub(crate) struct Shrunk {
    plan: Plan,
    /// Cross-linear weights, where they were used.
    weights: Option<Vec<f64>>,
    /// What learning did, for a method that learns.
    learning: Option<SpectralReport>,
}

/// Compresses as `recipe` says and returns the report that was written beside the weights.
pub fn compress(
    recipe: &Recipe,
    force: bool,
    hub: &HubOptions,
    device: &Device,
    progress: &dyn Progress,
) -> Result<Report> {
    let mut clock = StageClock::start(progress);
    let mut model = open_dense(&recipe.model, hub, device, progress)?;
    if recipe.small_linears {
        model = model.with_small_linears();
    }
    let tokenizer = tokenizer(model.source())?;
    clock.stage("reading text", 1);
    let wish = CalibrationWish {
        specs: &recipe.calib,
        windows: recipe.calib_windows,
        window: recipe.window,
        sampling: recipe.sampling(),
        bos: recipe.bos,
        heldout: heldout_tokens(recipe, &model),
    };
    let mut calibration = calibration(&model, &tokenizer, &wish, hub)?;
    if let Some(task) = &recipe.task {
        calibration.labels = Some(labels(&model, &tokenizer, task, recipe.seed, hub)?);
    }
    let (window, max_windows, bos) = (recipe.eval_window, recipe.max_windows, recipe.bos);
    let protocol = EvalProtocol { window, max_windows, bos, ..EvalProtocol::default() };
    let eval_texts = evaluation(&model, &tokenizer, &recipe.ppl, protocol, hub)?;
    compress_windows(recipe, force, model, calibration, &eval_texts, clock, progress)
}

/// What [`compress`] does once text has become windows.
///
/// An interrupted run is continued when the recipe and the hashes of the model's files and of the corpora are the same:
/// equal hashes have to mean equal windows.
pub fn compress_windows(
    recipe: &Recipe,
    force: bool,
    model: Model,
    calibration: Calibration,
    eval_texts: &[EvalText],
    mut clock: StageClock,
    progress: &dyn Progress,
) -> Result<Report> {
    let method = method::by_name(&recipe.method)?;
    // Shapes alone show whether the budget can be met: say so before any weight moves.
    allocate::by_shape(recipe, method, &model)?;
    let mut remarks = check_numbers(&model, &calibration, eval_texts, progress)?;
    let copied = Copied::of(model.source())?;
    let identity = model.source().identity()?;
    let stats =
        recipe.stats.as_deref().map(|dir| open_stats(dir, &model, &calibration, recipe, progress)).transpose()?;
    stats.as_ref().map_or(Ok(()), |stats| calibration.refuse_other_beginning(stats))?;
    let weights_fingerprint = fingerprint(recipe, &identity, &calibration, stats.as_ref())?;
    let fingerprint = with_evaluation(&weights_fingerprint, eval_texts);
    if !force && let Some(report) = finished(&recipe.output, &fingerprint) {
        Job::clean_up(&recipe.output, &weights_fingerprint)?;
        progress.note(&format!(
            "{} was already made by the same command: nothing was done (--force makes it again)",
            recipe.output.display()
        ));
        return Ok(report);
    }
    copied.announce_code(model.source(), progress);
    if shows_text(recipe, method, &calibration, stats.as_ref()) {
        let doubts = calibration.doubts(&model, recipe.calib_windows);
        doubts.iter().for_each(|doubt| progress.warn(doubt));
        remarks.extend(doubts);
    }
    if force {
        spare_inputs(recipe, &model, &calibration)?;
    }
    let job = Job::open(&recipe.output, &weights_fingerprint, force)?;
    let run = Run { recipe, method, model, identity, copied, fingerprint, remarks, calibration, stats, job, progress };
    assemble::check_space(&run)?;
    run.check_healing()?;
    if run.job.resumed() {
        progress.note("continuing an interrupted run");
        if !run.job.damaged().is_empty() {
            progress.note(&format!("damaged work is done again: {}", run.job.damaged().join(", ")));
        }
    }

    let shrunk = run.shrink(&mut clock)?;
    let healing = run.heal(clock.seconds("learning"), &mut clock)?;

    clock.stage("writing", run.model.blocks() as u64);
    let dir = assemble::weights(&run, &shrunk.plan)?;
    let output = Source::open_unfinished(&dir)?.with_label(recipe.output.display().to_string());
    let compressed = Model::load(output, run.model.device())?;
    let (evaluation, fidelity) = run.evaluate(&compressed, eval_texts, &mut clock)?;
    clock.stage("verifying", 1);
    let verification = crate::model::verify(compressed.source(), Some(run.model.source()), None)?;
    if let Some(problem) = verification.problems.first() {
        anyhow::bail!("the output is not whole, which is a bug in softlm: {problem}");
    }
    let resumed = run.job.resumed();
    let cost = clock.finish(resumed);
    assemble::side_files(&run, &dir)?;
    let report = assemble::report(&run, shrunk, healing, compressed.source(), (evaluation, fidelity), cost)?;
    assemble::documents(&run, &dir, &report)?;
    if let Some(note) = run.job.publish()?.note(&recipe.output) {
        progress.note(&note);
    }
    Ok(report)
}

/// The report of a finished output with this fingerprint, if `output` is one and as it was written.
fn finished(output: &Path, fingerprint: &str) -> Option<Report> {
    let source = Source::open(output).ok()?;
    let report: Report = serde_json::from_slice(&source.side_file("report.json").ok()??).ok()?;
    let same = report.fingerprint.as_deref() == Some(fingerprint);
    (same && source.identity().ok() == report.output).then_some(report)
}

/// Tokens of text to judge by. A window says of a classifier what a token says of other models: they need more of them.
fn heldout_tokens(recipe: &Recipe, model: &Model) -> usize {
    let trains = recipe.heal > 0 || recipe.learn.is_some();
    let classifies = matches!(model.output(), Output::Classes(_));
    if trains && classifies && recipe.task.is_none() { CLASSIFIER_HELDOUT_TOKENS } else { HELDOUT_TOKENS }
}

/// Opens what the user named: `demo`, a folder or a hub id.
pub fn open_source(name: &str, hub: &HubOptions) -> Result<Source> {
    if name == "demo" && !Path::new(name).exists() {
        return Ok(Source::demo());
    }
    let path = Path::new(name);
    if path.exists() {
        return Ok(Source::open(path)?.with_label(name));
    }
    if !crate::hub::is_id(name) {
        user_bail!("model {name} does not exist"; "name a folder with config.json, a hub id such as gpt2, or `demo`");
    }
    let snapshot = crate::hub::model(name, hub)?;
    Ok(Source::open(&snapshot.dir)?.with_label(name).with_revision(snapshot.revision))
}

/// The tokenizer that belongs to `source`.
pub fn tokenizer(source: &Source) -> Result<Tokenizer> {
    let file = |name: &str| Ok(source.side_file(name)?.map(|bytes| bytes.into_owned()));
    Tokenizer::load(source.label(), &file, source.config())
}

/// The model in `source`. Says which keys of its config.json nobody knows.
pub fn load_model(source: Source, device: &Device, progress: &dyn Progress) -> Result<Model> {
    let model = Model::load(source, device)?;
    let unknown = model.unknown_keys();
    if !unknown.is_empty() {
        let (label, family) = (model.source().label(), model.family());
        progress.note(&format!(
            "{label}: config.json has keys that {family} does not know, ignored: {}",
            unknown.join(", ")
        ));
    }
    if let Some(unused) = UnusedTensors::of(&model) {
        progress.note(&format!("{} has what softlm does not read, {}", model.source().label(), unused.describe(NAMED)));
    }
    Ok(model)
}

fn open_dense(name: &str, hub: &HubOptions, device: &Device, progress: &dyn Progress) -> Result<Model> {
    let source = open_source(name, hub)?;
    if Section::of(source.config()).is_some() {
        user_bail!("{name} is already compressed"; "compress the model it was made from; its README.md names it");
    }
    load_model(source, device, progress)
}

/// Proves that nothing a run computes with is NaN or infinite. What is, and does not matter, is returned and said.
pub fn check_numbers(
    model: &Model,
    calibration: &Calibration,
    eval_texts: &[EvalText],
    progress: &dyn Progress,
) -> Result<Vec<String>> {
    let mut touched = Touched::default();
    let windows = [&calibration.windows, &calibration.heldout].into_iter().chain(eval_texts.iter().map(|t| &t.windows));
    windows.flat_map(|windows| &windows.rows).for_each(|row| touched.add(&row.ids, &[]));
    touched.tokens.extend(eval_texts.iter().filter_map(|text| text.mask));
    let labelled = calibration.labels.iter().flat_map(|labels| labels.train.iter().chain(&labels.heldout));
    labelled.for_each(|example| touched.add(&example.sequence.ids, &example.sequence.types));
    let remarks = model.check_numbers(&touched)?;
    remarks.iter().for_each(|remark| progress.note(remark));
    Ok(remarks)
}

/// What has to be equal for two runs to produce the same weights: everything that is read.
fn fingerprint(
    recipe: &Recipe,
    identity: &Identity,
    calibration: &Calibration,
    stats: Option<&StatsStore>,
) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(env!("CARGO_PKG_VERSION"));
    hash.update(serde_json::to_string(recipe)?);
    hash.update(identity.fingerprint());
    for corpus in &calibration.corpora {
        hash.update(&corpus.sha256);
    }
    if let Some(labels) = &calibration.labels {
        hash.update(&labels.info.sha256);
    }
    if let Some(stats) = stats {
        // Those of another text are read alone, and told by their content. Those of this text may be filled by this very run,
        // and are what they are made from.
        hash.update(if of_another_text(stats, calibration) { stats.fingerprint()? } else { stats.origin.id()? });
    }
    Ok(hash.hex())
}

/// The fingerprint of an output with its evaluation, which the weights do not depend on.
fn with_evaluation(fingerprint: &str, texts: &[EvalText]) -> String {
    let mut hash = Sha256::new();
    hash.update(fingerprint);
    texts.iter().for_each(|text| hash.update(&text.corpus.sha256));
    hash.hex()
}

/// Statistics in `dir`, checked against this run, or a new folder to fill.
fn open_stats(
    dir: &Path,
    model: &Model,
    calibration: &Calibration,
    recipe: &Recipe,
    progress: &dyn Progress,
) -> Result<StatsStore> {
    if recipe.inputs != method::Inputs::Dense {
        user_bail!(
            "--stats holds activations of the original model, but {} calibrates behind compressed layers", recipe.method;
            "add --inputs dense, or leave --stats out"
        );
    }
    let (tokens, heldout) = (calibration.windows.tokens(), calibration.heldout.tokens());
    let origin = Origin::new(model.source(), model.blocks(), calibration.describe(), tokens, heldout)?;
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
fn looks_at_text(recipe: &Recipe, method: &dyn Method) -> bool {
    let trains = recipe.task.is_none() && recipe.heal > 0;
    method.needs() != Needs::Nothing || recipe.allocation == AllocationRule::Global || trains
}

/// Whether what is seen of the inputs comes from this run's text, not all of it from statistics of another.
fn shows_text(recipe: &Recipe, method: &dyn Method, calibration: &Calibration, stats: Option<&StatsStore>) -> bool {
    let of_another = stats.is_some_and(|store| of_another_text(store, calibration));
    let trains = recipe.task.is_none() && (recipe.heal > 0 || recipe.learn.is_some());
    looks_at_text(recipe, method) && (trains || !of_another)
}

fn of_another_text(stats: &StatsStore, calibration: &Calibration) -> bool {
    stats.origin.texts != [calibration.describe()]
}

/// Replacing an output must not delete what the run reads.
fn spare_inputs(recipe: &Recipe, model: &Model, calibration: &Calibration) -> Result<()> {
    let Ok(output) = recipe.output.canonicalize() else { return Ok(()) };
    let texts = calibration.corpora.iter().map(|corpus| Path::new(&corpus.origin));
    let labels = calibration.labels.iter().map(|labels| Path::new(&labels.info.origin));
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

impl Run<'_> {
    /// Compresses every linear: decomposes, plans and cuts. A learned method trains in between, and what calibrates behind
    /// compressed blocks does all three block by block.
    fn shrink(&self, clock: &mut StageClock) -> Result<Shrunk> {
        let blocks = self.model.blocks() as u64;
        if let Some((learned, options)) = self.method.learned().zip(self.recipe.learn.as_ref()) {
            let (plan, report) = self.learn(learned, options, clock)?;
            return Ok(Shrunk { plan, weights: None, learning: Some(report) });
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
            return Ok(Shrunk { plan: plan.clone(), weights: None, learning: None });
        }
        clock.stage("decomposing", blocks);
        let stays =
            |spec: &LinearSpec| by_shape.as_ref().is_some_and(|plan| plan.choice(spec.id) == Some(Choice::Dense));
        let pays = |spec: &LinearSpec| (!stays(spec)).then(|| largest_saving_rank(spec.out, spec.input));
        self.decompose(self.method, &pays)?;
        let (plan, weights) = match by_shape {
            Some(plan) => (plan, None),
            None => {
                let energies = self.energies()?;
                let weights = self.weights(&energies, clock)?;
                (allocate::by_energy(self, energies, &weights)?, Some(weights))
            }
        };
        clock.stage("compressing", blocks);
        self.cut_all(&plan)?;
        Ok(Shrunk { plan, weights, learning: None })
    }

    /// The compressed model and the original on every corpus, by the same protocol.
    fn evaluate(
        &self,
        compressed: &Model,
        texts: &[EvalText],
        clock: &mut StageClock,
    ) -> Result<(Vec<BeforeAfter>, Vec<Fidelity>)> {
        clock.stage("evaluating", texts.iter().map(|text| steps(compressed, Some(&self.model), text)).sum());
        let (mut pairs, mut fidelities) = (Vec::new(), Vec::new());
        for text in texts {
            let quality = measure(compressed, Some(&self.model), text, self.progress).context(ResultNotMeasured)?;
            match quality {
                Quality::Likelihood(after, before) => {
                    pairs.push(BeforeAfter { before: before.context("the original was not measured")?, after });
                }
                Quality::Embeddings(fidelity) => fidelities.push(fidelity),
            }
        }
        Ok((pairs, fidelities))
    }
}

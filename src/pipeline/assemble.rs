//! The output folder: weights, config, report and everything else a model folder has.

use super::block::FinishedBlock;
use super::licence::licence;
use super::prepare::Provenance;
use super::shrink::Shrunk;
use super::sizes::checkpoint_sizes;
use super::statistics::looks_at_text;
use super::{Run, TrainingText, allocate};
use crate::checkpoint::{
    Entry, FORMAT, Origin, Section, Source, TensorFile, UNFINISHED_CONFIG, free_space, sync_folder, write_checkpoint,
    write_file,
};
use crate::eval::{Fidelity, TaskResult};
use crate::export;
use crate::learn::HealReport;
use crate::method::Inputs;
use crate::model::LinearSpec;
use crate::plan::{AllocationRule, Choice, Plan};
use crate::report::{self, AllocationInfo, BeforeAfter, Cost, ModelInfo, Report, Size, Sizes, UnusedTensors};
use crate::user_bail;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Fails early when the disk cannot hold the work folder and the output.
pub fn check_space(run: &Run) -> Result<()> {
    let (_, model_bytes) = checkpoint_sizes(run.model.source());
    let linears: u64 = run.model.linears().iter().map(|spec| spec.params() as u64).sum();
    let decompositions = if run.recipe.inputs == Inputs::Dense { 4 * linears } else { 0 };
    let surveyed = if run.recipe.allocation == AllocationRule::Forms { super::forms::survey_bytes(run)? } else { 0 };
    // Healed blocks, and for every factor its value, the best one and two moments.
    let healing = if run.recipe.heal > 0 { model_bytes + 16 * linears } else { 0 };
    // All components take at most twice the linears in f32; what is trained has a value, the best one and two moments.
    let trains = run.method.learned().zip(run.recipe.learn.as_ref()).map(|(learned, l)| learned.trains(&l.settings));
    let learning = trains.map_or(0, |trains| if trains.basis { 40 * linears } else { 8 * linears });
    // Compressed blocks and final weights are each smaller than the original.
    let stored = if run.recipe.elastic.is_some() { decompositions + surveyed } else { 0 };
    let needed =
        (2 * model_bytes + stored + decompositions + surveyed + learning + healing).saturating_add(run.copied.bytes);
    let dir = run.job.dir().to_path_buf();
    let free = free_space(&dir)?;
    if free < needed {
        user_bail!(
            "{} has {free} bytes free, the run may need {needed}", dir.display();
            "make room, or choose another -o"
        );
    }
    Ok(())
}

/// Writes the weights, those of a block from the file that `block` names, and the configuration into a fresh folder and
/// returns it. It is no model yet: [`documents`] makes it one, when all else is there.
pub fn weights(run: &Run, plan: &Plan, block: &dyn Fn(usize) -> PathBuf) -> Result<PathBuf> {
    let dir = run.job.assembly()?;
    let source = run.model.source();
    let mut entries = Vec::new();
    let mut replaced: BTreeSet<String> = run
        .model
        .linears()
        .iter()
        .filter(|spec| plan.choice(spec.id).is_some_and(|choice| choice != Choice::Dense))
        .map(LinearSpec::weight_name)
        .collect();
    for index in 0..run.model.blocks() {
        let path = block(index);
        let file = TensorFile::open_unfinished(&path)?;
        for name in file.names() {
            let info = file.info(name).context("a listed tensor is missing")?;
            let from = Origin::File { path: path.clone(), name: name.to_string() };
            entries.push(Entry { name: name.to_string(), dtype: info.dtype, shape: info.shape.clone(), from });
            replaced.insert(name.to_string());
        }
        // A learned method also changes what stays dense: a part of a fused matrix stands on its own then.
        let own = |spec: &&LinearSpec| file.info(&format!("{}.weight", spec.name)).is_some();
        replaced.extend(run.model.block_linears(index).filter(own).map(LinearSpec::weight_name));
        run.progress.step(1)?;
    }
    // A tied tensor that stood under the head's name is written under the embedding's, where others look for it.
    let usual: BTreeMap<&str, &str> =
        source.aliases().iter().map(|(name, stored)| (stored.as_str(), name.as_str())).collect();
    for name in source.names().filter(|name| !replaced.contains(*name)) {
        let info = source.info(name).context("a listed tensor is missing")?;
        let written = usual.get(name).copied().unwrap_or(name);
        let from = Origin::Source(name.to_string());
        entries.push(Entry { name: written.to_string(), dtype: info.dtype, shape: info.shape.clone(), from });
    }
    let metadata = BTreeMap::from([("softlm_format".to_string(), FORMAT.to_string()), run.copied.mark()]);
    write_checkpoint(&dir, &entries, source, run.recipe.max_shard_bytes, &metadata, &mut |_| {})?;
    let config = export::output_config(&run.model, &entries, &widths(run, plan), section(run, plan));
    let config = serde_json::to_string_pretty(&config)?;
    write_file(&dir.join(UNFINISHED_CONFIG), (config + "\n").as_bytes())?;
    Ok(dir)
}

/// Feed-forward widths that `plan` changes, by their key in config.json.
fn widths<'a>(run: &'a Run, plan: &Plan) -> BTreeMap<&'a str, usize> {
    // Where every layer has a width of its own, the section says which.
    let shared = run.recipe.allocation != AllocationRule::Forms;
    let width = |spec: &LinearSpec| match plan.choice(spec.id).filter(|_| shared) {
        Some(Choice::Width(width)) => Some((run.model.width_key(spec.id), width)),
        _ => None,
    };
    run.model.linears().iter().filter_map(width).collect()
}

/// What config.json says about how the output was made.
fn section(run: &Run, plan: &Plan) -> Section {
    Section {
        version: env!("CARGO_PKG_VERSION").to_string(),
        method: run.recipe.method.clone(),
        keep: plan.keep(),
        base_model: Some(run.recipe.model.clone()),
        base_revision: run.model.source().revision().map(str::to_string),
        ..Section::default()
    }
}

/// How good the output turned out to be.
pub struct Measured {
    /// On corpora, before and after.
    pub evaluation: Vec<BeforeAfter>,
    /// The same of encoders that predict no tokens.
    pub fidelity: Vec<Fidelity>,
    /// On zero-shot tasks.
    pub tasks: Vec<TaskResult>,
}

/// Gathers the report.
pub fn report(
    run: &Run,
    provenance: Provenance,
    shrunk: Shrunk,
    healing: Option<HealReport>,
    output: &Source,
    measured: Measured,
    cost: Cost,
) -> Result<Report> {
    let Shrunk { plan, weights, learning, trials } = shrunk;
    let Measured { evaluation, fidelity, tasks } = measured;
    let source = run.model.source();
    let mut linears = Vec::new();
    for index in 0..run.model.blocks() {
        linears.extend(FinishedBlock::reports(&run.job.block_file(index))?);
    }
    if let Some(weights) = weights {
        linears.iter_mut().zip(weights).for_each(|(linear, weight)| linear.weight = Some(weight));
    }
    let card = run.method.card();
    Ok(Report {
        schema: report::SCHEMA,
        softlm: env!("CARGO_PKG_VERSION").to_string(),
        method: card.name.to_string(),
        paper: card.paper.to_string(),
        model: ModelInfo {
            name: run.recipe.model.clone(),
            family: run.model.described_family(),
            encoder: run.model.is_encoder().then(|| run.model.output()),
            revision: source.revision().map(str::to_string),
            kind: Some(source.kind()),
            identity: provenance.identity,
            licence: licence(source)?,
            sentence_transformers: source.side_file("modules.json")?.is_some(),
            unused_tensors: UnusedTensors::of(&run.model),
        },
        output: Some(output.identity()?),
        fingerprint: Some(provenance.fingerprint),
        calibration: looks_at_text(run.recipe, run.method).then(|| run.calibration.report(run.recipe)),
        labels: run.calibration.labels.as_ref().map(|labels| labels.info.clone()),
        training_text: run
            .calibration
            .training
            .as_ref()
            .filter(|text| !text.corpora.is_empty())
            .map(TrainingText::report),
        allocation: AllocationInfo {
            rule: plan.rule.clone(),
            // A share of the last blocks, or of quality, says nothing of the whole: what came out is what was asked for.
            keep_asked: if run.recipe.block_keep.is_some() || run.recipe.max_ppl_increase.is_some() {
                plan.keep()
            } else {
                allocate::keep_fraction(run.recipe, &run.model)?
            },
            keep_reached: plan.keep(),
            trials,
        },
        sizes: sizes(run, output)?,
        linears,
        learning,
        healing,
        evaluation,
        fidelity,
        tasks,
        machine: crate::machine::describe(&crate::device::describe(run.model.device())),
        cost,
        recipe: run.recipe.to_json()?,
        notes: notes(run, provenance.remarks),
    })
}

/// Counted from what is stored, before and after.
fn sizes(run: &Run, output: &Source) -> Result<Sizes> {
    let source = run.model.source();
    let before: BTreeSet<String> = run.model.linears().iter().map(LinearSpec::weight_name).collect();
    let (mut linears_before, mut linears_after) = ((0, 0), (0, 0));
    let add = |sum: &mut (u64, u64), info: &crate::checkpoint::TensorInfo| {
        sum.0 += info.elements() as u64;
        sum.1 += info.bytes() as u64;
    };
    for name in &before {
        add(&mut linears_before, source.info(name).with_context(|| format!("tensor `{name}` is missing"))?);
    }
    let mut after: BTreeSet<String> = before;
    for spec in run.model.linears() {
        for part in ["weight", "factor_a.weight", "factor_b.weight"] {
            after.insert(format!("{}.{part}", spec.name));
        }
        // A bias that the original does not have is part of what it is replaced by.
        if !spec.bias {
            after.insert(format!("{}.bias", spec.name));
        }
    }
    for info in after.iter().filter_map(|name| output.info(name)) {
        add(&mut linears_after, info);
    }
    let size = |before: (u64, u64), after: (u64, u64)| Size {
        params_before: before.0,
        params_after: after.0,
        bytes_before: before.1,
        bytes_after: after.1,
    };
    Ok(Sizes {
        linears: size(linears_before, linears_after),
        model: size(checkpoint_sizes(source), checkpoint_sizes(output)),
    })
}

fn notes(run: &Run, mut notes: Vec<String>) -> Vec<String> {
    let calibration = &run.calibration;
    if let (Some(dir), Some(store)) = (&run.recipe.stats, &run.stats) {
        let texts = store.origin.texts.join("; ");
        notes.push(format!("statistics were taken from {}: {texts}", dir.display()));
    }
    let wanted = run.recipe.calib_windows;
    // Of far fewer the doubts speak.
    if calibration.windows.len() < wanted && !calibration.is_short(wanted) {
        notes.push(format!(
            "the calibration text gave {} windows of {} tokens; {} were asked for",
            calibration.windows.len(),
            calibration.windows.window,
            wanted
        ));
    }
    if run.method.prunes_channels() && run.model.linears().iter().any(|spec| spec.id.role.is_state_space()) {
        notes.push(format!(
            "{} prunes the channels of feed-forward layers, which state-space blocks do not have: their linears were \
             factorised by its weighted SVD at the same keep instead",
            run.method.card().name
        ));
    }
    if run.recipe.heal > 0 {
        notes.push("energy kept and output errors of single linears are those before healing".to_string());
    }
    let trained = run.recipe.train_text.iter().flat_map(|text| &text.specs);
    let shown: Vec<&String> = run.recipe.calib.iter().chain(trained).collect();
    if run.recipe.ppl.iter().any(|corpus| shown.contains(&corpus) && corpus != "sample") {
        notes.push("calibrated and evaluated on corpora of the same name: expect other text to do worse".to_string());
    }
    notes
}

/// Copies the source's other files and adds the loading code.
pub fn side_files(run: &Run, dir: &Path) -> Result<()> {
    run.copied.copy(run.model.source(), dir)?;
    let (name, code) = export::LOADING_CODE;
    write_file(&dir.join(name), code.as_bytes())
}

/// Writes report, model card and recipe. The report comes behind everything that it has hashes of, and the configuration gets
/// its name behind everything else: without that the folder is no model.
pub fn documents(run: &Run, dir: &Path, report: &Report) -> Result<()> {
    let write = |name: &str, content: &[u8]| write_file(&dir.join(name), content);
    write("report.json", (serde_json::to_string_pretty(report)? + "\n").as_bytes())?;
    write("README.md", report::card(report).as_bytes())?;
    write("softlm.toml", run.recipe.to_toml()?.as_bytes())?;
    fs::rename(dir.join(UNFINISHED_CONFIG), dir.join("config.json")).context("naming config.json")?;
    sync_folder(dir)
}

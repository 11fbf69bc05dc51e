//! What the user named, opened: model, tokenizer, and whether their numbers are numbers.

use super::texts::{Calibration, EvalText};
use crate::checkpoint::{Section, Source};
use crate::compute::Compute;
use crate::device;
use crate::hub::{self, HubOptions};
use crate::model::{Model, Touched};
use crate::ops::{MatmulPrecision, ProductType};
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::report::UnusedTensors;
use crate::text::Tokenizer;
use crate::user_bail;
use anyhow::Result;
use std::path::Path;

/// Names of tensors in a note.
const NAMED: usize = 4;

/// Opens what the user named: `demo`, a folder or a hub id.
pub fn open_source(name: &str, hub: &HubOptions) -> Result<Source> {
    if name == "demo" && !Path::new(name).exists() {
        return Ok(Source::demo());
    }
    let path = Path::new(name);
    if path.exists() {
        return Ok(Source::open(path)?.with_label(name));
    }
    if !hub::is_id(name) {
        user_bail!("model {name} does not exist"; "name a folder with config.json, a hub id such as gpt2, or `demo`");
    }
    let snapshot = hub::model(name, hub)?;
    Ok(Source::open(&snapshot.dir)?.with_label(name).with_revision(snapshot.revision))
}

/// The tokenizer that belongs to `source`.
pub fn tokenizer(source: &Source) -> Result<Tokenizer> {
    let file = |name: &str| Ok(source.side_file(name)?.map(|bytes| bytes.into_owned()));
    Tokenizer::load(source.label(), &file, source.config())
}

/// The model in `source`. Says which keys of its config.json nobody knows.
pub fn load_model(source: Source, compute: impl Into<Compute>, progress: &dyn Progress) -> Result<Model> {
    let model = Model::load(source, compute)?;
    let compute = model.compute();
    match compute.products() {
        ProductType::Tf32 => device::use_tf32(),
        ProductType::F32 if compute.precision != MatmulPrecision::Highest => progress.note(
            "--matmul-precision changes nothing here: high takes a GPU, medium that or a processor with AVX512-BF16",
        ),
        _ => {}
    }
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

/// Opens the model called `name`, which must not be compressed already.
pub(super) fn open_dense(name: &str, hub: &HubOptions) -> Result<Source> {
    let source = open_source(name, hub)?;
    if Section::of(source.config()).is_some() {
        user_bail!("{name} is already compressed"; "compress the model it was made from; its README.md names it");
    }
    Ok(source)
}

/// The model in `source` with the linears and the precision that `recipe` asks for.
pub(super) fn as_asked(
    recipe: &Recipe,
    source: Source,
    compute: impl Into<Compute>,
    progress: &dyn Progress,
) -> Result<Model> {
    let compute = Compute { precision: recipe.matmul_precision, ..compute.into() };
    let model = load_model(source, compute, progress)?;
    Ok(if recipe.small_linears { model.with_small_linears() } else { model })
}

/// Proves that nothing a run computes with is NaN or infinite. What is, and does not matter, is returned and said.
pub fn check_numbers(
    model: &Model,
    calibration: &Calibration,
    eval_texts: &[EvalText],
    progress: &dyn Progress,
) -> Result<Vec<String>> {
    let mut touched = Touched::default();
    let (trained, judged) = calibration.trained_on();
    let windows = [&calibration.windows, &calibration.heldout, trained, judged];
    let windows = windows.into_iter().chain(eval_texts.iter().map(|t| &t.windows));
    windows.flat_map(|windows| &windows.rows).for_each(|row| touched.add(&row.ids, &[]));
    touched.tokens.extend(eval_texts.iter().filter_map(|text| text.mask));
    let labelled = calibration.labels.iter().flat_map(|labels| labels.train.iter().chain(&labels.heldout));
    labelled.for_each(|example| touched.add(&example.sequence.ids, &example.sequence.types));
    let remarks = model.check_numbers(&touched)?;
    remarks.iter().for_each(|remark| progress.note(remark));
    Ok(remarks)
}

//! What decides an output: an interrupted run is continued, and a finished output left alone, when it is the same.

use super::statistics::of_another_text;
use super::tasks::EvalData;
use super::texts::{Calibration, EvalText};
use crate::calibrate::StatsStore;
use crate::checkpoint::{Identity, Source};
use crate::compute::Compute;
use crate::hash::Sha256;
use crate::ops::ProductType;
use crate::recipe::Recipe;
use crate::report::Report;
use anyhow::Result;
use std::path::Path;

/// What has to be equal for two runs to produce the same weights: everything that is read.
pub(super) fn fingerprint(
    recipe: &Recipe,
    identity: &Identity,
    calibration: &Calibration,
    stats: Option<&StatsStore>,
    texts: &[EvalText],
    compute: &Compute,
) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(env!("CARGO_PKG_VERSION"));
    hash.update(serde_json::to_string(recipe)?);
    hash.update(identity.fingerprint());
    // The usual type goes without saying.
    if compute.products() != ProductType::F32 {
        hash.update(compute.products().name());
    }
    for corpus in calibration.corpora.iter().chain(calibration.training.iter().flat_map(|text| &text.corpora)) {
        hash.update(&corpus.sha256);
    }
    // Sizes are tried, and one is chosen, by how good they are on these.
    if recipe.max_ppl_increase.is_some() || recipe.elastic.is_some() {
        texts.iter().for_each(|text| hash.update(&text.corpus.sha256));
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

/// The fingerprint of an output with its evaluation, which the weights do not depend on where the size is given.
pub(super) fn with_evaluation(fingerprint: &str, data: EvalData) -> String {
    let mut hash = Sha256::new();
    hash.update(fingerprint);
    data.texts.iter().for_each(|text| hash.update(&text.corpus.sha256));
    data.tasks.iter().for_each(|task| hash.update(&task.items.sha256));
    hash.hex()
}

/// The report of a finished output with this fingerprint, if `output` is one and as it was written.
pub(super) fn finished(output: &Path, fingerprint: &str) -> Option<Report> {
    let source = Source::open(output).ok()?;
    let report: Report = serde_json::from_slice(&source.side_file("report.json").ok()??).ok()?;
    let same = report.fingerprint.as_deref() == Some(fingerprint);
    (same && source.identity().ok() == report.output).then_some(report)
}

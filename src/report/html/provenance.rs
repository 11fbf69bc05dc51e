//! Where everything comes from: hashes, versions, time and memory, and the recipe that repeats it.

use super::escape::{escape, table};
use crate::report::card::recipe;
use crate::report::format::{bytes, seconds};
use crate::report::table::{machine, training_text};
use crate::report::{CorpusInfo, FileHash, Report};

pub(super) fn section(report: &Report) -> String {
    let model = &report.model;
    let revision = model.revision.as_ref().map(|revision| format!(", revision {revision}")).unwrap_or_default();
    let mut facts = vec![
        format!("Model: {} (model_type {}{revision}).", model.name, model.family),
        format!("Made by {}.", machine(report)),
    ];
    facts.extend(report.training_text.as_ref().map(|info| format!("Trained on {}.", training_text(info))));
    facts
        .extend(report.fingerprint.as_ref().map(|hash| format!("Fingerprint of all that decides the output: {hash}.")));
    facts.extend(report.notes.iter().map(|note| format!("Note: {note}.")));
    let facts: String = facts.iter().map(|fact| format!("<li>{}</li>\n", escape(fact))).collect();
    let mut hashes = vec![["file", "SHA-256"].map(String::from).to_vec()];
    let row = |of: &str, hash: &FileHash| vec![format!("{of}: {}", hash.file), hash.sha256.clone()];
    hashes.extend(model.identity.weights.iter().chain(&model.identity.files).map(|hash| row("original", hash)));
    if let Some(output) = &report.output {
        hashes.extend(output.weights.iter().chain(&output.files).map(|hash| row("output", hash)));
    }
    let corpora = report.calibration.iter().flat_map(|info| &info.corpora);
    let corpora = corpora.chain(report.training_text.iter().flat_map(|info| &info.corpora));
    let text = |text: &CorpusInfo| vec![format!("text: {} ({})", text.name, text.origin), text.sha256.clone()];
    hashes.extend(corpora.map(text));
    hashes.extend(
        report.labels.iter().map(|info| vec![format!("labels: {} ({})", info.task, info.origin), info.sha256.clone()]),
    );
    let (_, written) = recipe(report);
    format!(
        "<h2>Time and memory</h2>\n<div class=\"panel\">{}</div>\n<h2>How it was made</h2>\n<div class=\"panel\"><ul>{facts}</ul>\n\
         <p>The same again, with this recipe as <code>softlm.toml</code>:</p>\n\
         <pre>softlm compress --config softlm.toml -o NEW-FOLDER</pre>\n<pre>{}</pre>\n\
         <details><summary>Hashes</summary>{}</details></div>\n",
        cost(report),
        written.lines().map(escape).collect::<Vec<_>>().join("\n"),
        table(&hashes, "text", "")
    )
}

fn cost(report: &Report) -> String {
    let peak = |peak: Option<u64>| peak.map_or("-".to_string(), bytes);
    let cost = &report.cost;
    let mut rows = vec![["stage", "time", "peak memory"].map(String::from).to_vec()];
    rows.extend(
        cost.stages.iter().map(|stage| vec![stage.name.clone(), seconds(stage.seconds), peak(stage.peak_rss_bytes)]),
    );
    rows.push(vec!["total".into(), seconds(cost.seconds), peak(cost.peak_rss_bytes)]);
    let mut out = table(&rows, "", "");
    if let Some(estimate) = &cost.estimate {
        out += &format!("<p class=\"dim\">Memory was expected to be {}.</p>", escape(&estimate.describe()));
    }
    if cost.resumed {
        out += "<p class=\"dim\">An interrupted run was continued: times are those of its last part.</p>";
    }
    out
}

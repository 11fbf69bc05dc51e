//! The output's README.md: a model card for people and for the hub.

mod markdown;
mod usage;

use super::encoders::{self, cosine};
use super::evaluation::{Pair, Sides, comparable, ppl, protocol, why_not_finite};
use super::format::{change, fixed, fraction, percent, seconds, with_error};
use super::grid::{Grid, shapes};
use super::table::{calibration, healing, labels, learning, machine, names, pairs, size_cells, training_text};
use super::tasks;
use super::{CorpusInfo, MemoryEstimate, Report, format};
use crate::model::Output;
use crate::visible::visible;
use markdown::{code, escape, fence, is_hub_id, markdown, yaml};
use std::fmt::Write;
use usage::{citation, licence, licence_entries, upload, usage};

/// What the table of perplexities shows.
const PERPLEXITY: &str = "Perplexity ± standard error, lower is better; the dense model was measured the same way. KL is the mean \
     divergence of the next-token distribution from the dense model's, in nats per token; *same top* is how often both \
     models' most likely token is the same.\n\n";

/// The model card, Markdown with YAML front matter.
pub fn card(report: &Report) -> String {
    let sections = [
        front_matter(report),
        summary(report),
        quality(report),
        zero_shot(report),
        sizes(report),
        usage(report),
        ranks(report),
        provenance(report),
        limits(report),
        licence(report),
        citation(report),
        upload(),
    ];
    sections
        .iter()
        .filter(|section| !section.is_empty())
        .map(|section| section.trim_end())
        .collect::<Vec<_>>()
        .join("\n\n")
        + "\n"
}

fn front_matter(report: &Report) -> String {
    let mut out = String::from("---\n");
    // The hub takes nothing but its own ids here, and only what came from there has a revision.
    if report.model.revision.is_some() && is_hub_id(&report.model.name) {
        let _ = writeln!(out, "base_model: {}", yaml(&report.model.name));
    }
    for (key, value) in licence_entries(report) {
        let _ = writeln!(out, "{key}: {}", yaml(&value));
    }
    out.push_str("library_name: transformers\n");
    let _ = writeln!(out, "pipeline_tag: {}\ntags:", pipeline_tag(report));
    let sentences = report.model.sentence_transformers.then_some("sentence-transformers");
    let tags = ["softlm", "custom_code", "low-rank", "compressed", &report.method, &report.model.family];
    for tag in tags.into_iter().chain(sentences) {
        let _ = writeln!(out, "- {}", yaml(tag));
    }
    out + "---\n"
}

/// What the hub calls such models.
fn pipeline_tag(report: &Report) -> &'static str {
    match report.model.encoder {
        None | Some(Output::NextToken) => "text-generation",
        Some(Output::MaskedToken) => "fill-mask",
        Some(Output::Classes(_)) => "text-classification",
        Some(Output::States) => "sentence-similarity",
    }
}

fn summary(report: &Report) -> String {
    let (model, sizes) = (&report.model, &report.sizes);
    let name = escape(&model.name);
    let base = if model.revision.is_some() && is_hub_id(&model.name) {
        format!("[{name}](https://huggingface.co/{})", model.name)
    } else {
        format!("**{name}**")
    };
    let linears = &sizes.linears;
    let mut out = format!(
        "# {name}, {}, keep {}\n\n{base} with {} of its block linears' parameters ({} of {}), made by softlm's `{}` method ({}). \
         The whole model went from {} to {} parameters and from {} to {} of weights.\n",
        visible(&report.method),
        fraction(report.allocation.keep_asked),
        percent(linears.params_after as f64 / linears.params_before.max(1) as f64),
        format::count(linears.params_after),
        format::count(linears.params_before),
        visible(&report.method),
        escape(&report.paper),
        format::count(sizes.model.params_before),
        format::count(sizes.model.params_after),
        format::bytes(sizes.model.bytes_before),
        format::bytes(sizes.model.bytes_after),
    );
    let _ = write!(out, "\nHow the budget was shared out: {}.", escape(report.allocation.rule.trim_end_matches('.')));
    out
}

/// `sample`, or what to write where nothing was used.
fn calibration_names(report: &Report) -> String {
    let calibrated =
        report.calibration.as_ref().map_or_else(|| "nothing".to_string(), |info| escape(&names(&info.corpora)));
    match &report.training_text {
        None => calibrated,
        Some(info) => format!("{calibrated}, then trained on {}", escape(&names(&info.corpora))),
    }
}

/// A line for each corpus.
fn origins(corpora: &[CorpusInfo]) -> String {
    let line = |corpus: &CorpusInfo| {
        format!("  - {}: {}, sha256 {}\n", escape(&corpus.name), code(&corpus.origin), code(&corpus.sha256))
    };
    corpora.iter().map(line).collect()
}

fn quality(report: &Report) -> String {
    let mut out = String::from("## Quality\n\n");
    if !report.fidelity.is_empty() {
        return out + &embeddings(report);
    }
    if report.evaluation.is_empty() {
        return out + "Not measured. `softlm eval DIR --ppl sample` does it.\n";
    }
    let calibrated = calibration_names(report);
    if report.model.encoder.is_some() {
        out.push_str(
            "Pseudo-perplexity ± standard error, lower is better: each token is masked alone and guessed from both sides; the \
             dense model was measured the same way. KL is the mean divergence of that guess from the dense model's, in nats \
             per token; *same top* is how often both models' first guess is the same.\n\n",
        );
    } else {
        out.push_str(PERPLEXITY);
    }
    let title = ["corpus", "dense", "this model", "change", "KL", "same top", "calibrated on", "protocol"];
    let mut rows = vec![title.map(String::from).to_vec()];
    for pair in pairs(report) {
        rows.push(quality_row(&pair, &calibrated));
    }
    out.push_str(&markdown(&rows, &[0, 6, 7]));
    for pair in pairs(report) {
        for why in why_not_finite(&pair, &Sides { base: "the dense model", model: "this model" }) {
            let _ = write!(out, "\n{}: {}.\n", escape(&pair.model.perplexity.corpus), escape(&why));
        }
    }
    if pairs(report).iter().any(|pair| pair.calibrated) {
        out.push_str(
            "\nThe calibration saw a corpus of the same name (its training part, if it has one): expect a larger loss on \
             other kinds of text.\n",
        );
    }
    out
}

/// Accuracy on zero-shot tasks.
fn zero_shot(report: &Report) -> String {
    if report.tasks.is_empty() {
        return String::new();
    }
    let rows = tasks::rows(&report.tasks, &Sides { base: "dense", model: "this model" });
    let mut out = format!(
        "## Zero-shot tasks\n\nAccuracy ± standard error, scored as lm-evaluation-harness scores it. The difference is taken item \
         by item, in points.\n\n{}\n",
        markdown(&rows, &[0, 1])
    );
    for result in &report.tasks {
        let _ = writeln!(out, "- {}: {}", escape(&result.task), escape(&tasks::protocol(result)));
    }
    out
}

/// Of an encoder that predicts no tokens.
fn embeddings(report: &Report) -> String {
    let mut rows = vec![["corpus", "cosine", "least", "calibrated on", "protocol"].map(String::from).to_vec()];
    for f in &report.fidelity {
        let (how, least) = (escape(&encoders::protocol(f)), fixed(f.least, 4));
        rows.push(vec![escape(&f.corpus), cosine(f), least, calibration_names(report), how]);
    }
    format!(
        "Mean cosine ± standard error between this model's embeddings and the dense model's, 1 is best, and the least of any \
         window. How well it does its task is for `softlm eval DIR --glue` to say.\n\n{}",
        markdown(&rows, &[0, 3, 4])
    )
}

fn quality_row(pair: &Pair, calibrated: &str) -> Vec<String> {
    let p = &pair.model.perplexity;
    let base = pair.base.map(|base| &base.perplexity);
    let mut how = protocol(p);
    if let Some(base) = base.filter(|base| !comparable(base, p)) {
        how = format!("{how}; dense measured differently: {}", protocol(base));
    }
    let (kl, top) = match &pair.model.divergence {
        Some(d) => (with_error(d.kl, d.kl_stderr, 3), percent(d.top1)),
        None => ("-".into(), "-".into()),
    };
    vec![
        escape(&p.corpus),
        base.map_or("-".into(), ppl),
        ppl(p),
        base.filter(|base| comparable(base, p)).map_or("-".into(), |base| change(base.ppl, p.ppl)),
        kl,
        top,
        calibrated.to_string(),
        escape(&how),
    ]
}

fn sizes(report: &Report) -> String {
    let title = ["", "parameters", "after", "kept", "bytes", "after", "kept"];
    let mut rows = vec![title.map(String::from).to_vec()];
    for (name, size) in [("block linears", &report.sizes.linears), ("whole model", &report.sizes.model)] {
        rows.push([vec![name.to_string()], size_cells(size).to_vec()].concat());
    }
    let allocation = &report.allocation;
    format!(
        "## Size\n\n{}\nAsked for {} of the block linears' parameters, reached {}.\n",
        markdown(&rows, &[0]),
        fraction(allocation.keep_asked),
        fraction(allocation.keep_reached)
    )
}

fn ranks(report: &Report) -> String {
    let grid = Grid::new(&report.linears);
    if grid.rows.is_empty() {
        return String::new();
    }
    let legend = escape(&grid.legend());
    let shapes = shapes(report).map(|shapes| format!(" Shapes (out×in): {}.", escape(&shapes))).unwrap_or_default();
    format!("## Ranks\n\n{}\n{legend}.{shapes}\n", markdown(&grid.cells(), &[]))
}

fn provenance(report: &Report) -> String {
    let model = &report.model;
    let mut out = format!("## How it was made\n\n- Model: {}, `model_type` {}", code(&model.name), code(&model.family));
    if let Some(revision) = &model.revision {
        let _ = write!(out, ", revision {}", code(revision));
    }
    out.push('\n');
    match &report.calibration {
        None => out.push_str("- Calibration: none, the method needs no text.\n"),
        Some(info) => {
            let _ = writeln!(out, "- Calibration: {}.", escape(&calibration(info)));
            out.push_str(&origins(&info.corpora));
        }
    }
    if let Some(info) = &report.training_text {
        let _ = writeln!(out, "- Trained on: {}.\n{}", escape(&training_text(info)), origins(&info.corpora).trim_end());
    }
    let by = if report.labels.is_some() { "on labelled examples" } else { "by distillation to the original" };
    if let Some(info) = &report.labels {
        let (text, origin) = (escape(&labels(info)), code(&info.origin));
        let _ = writeln!(out, "- Task: {text}.\n  - {origin}, sha256 {}", code(&info.sha256));
    }
    if let Some(info) = &report.learning {
        let text = escape(&learning(info, report.labels.as_ref()));
        let _ = writeln!(out, "- Learning (which components to keep, {by}): {text}.");
    }
    if let Some(info) = &report.healing {
        let text = escape(&healing(info, report.labels.as_ref()));
        let _ = writeln!(out, "- Healing (factors trained {by}): {text}.");
    }
    let expected = |estimate: &MemoryEstimate| format!(" (expected: {})", estimate.describe());
    let expected = report.cost.estimate.as_ref().map(expected).unwrap_or_default();
    let peak = |peak| format!(", peak memory {}{expected}", format::bytes(peak));
    let peak = report.cost.peak_rss_bytes.map(peak).unwrap_or_default();
    let resumed = if report.cost.resumed { " (last part of a continued run)" } else { "" };
    let _ =
        writeln!(out, "- Made in {}{resumed}{peak}, by {}.", seconds(report.cost.seconds), escape(&machine(report)));
    for note in &report.notes {
        let _ = writeln!(out, "- Note: {}", escape(note));
    }
    out.push_str("\n<details><summary>Recipe (softlm.toml) and hashes of the source</summary>\n\n");
    let (language, recipe) = recipe(report);
    let _ = writeln!(out, "{}\n", fence(language, &recipe));
    for file in &model.identity.weights {
        let _ = writeln!(out, "- {}: sha256 {}", code(&file.file), code(&file.sha256));
    }
    out + "\n</details>\n"
}

/// The effective recipe as TOML, which people write; as JSON if it does not fit.
pub(super) fn recipe(report: &Report) -> (&'static str, String) {
    let mut recipe = report.recipe.clone();
    if let Some(map) = recipe.as_object_mut() {
        map.retain(|_, value| !value.is_null());
    }
    match toml::to_string(&recipe) {
        Ok(text) => ("toml", text),
        Err(_) => ("json", serde_json::to_string_pretty(&report.recipe).unwrap_or_default()),
    }
}

fn limits(report: &Report) -> String {
    let mut points: Vec<String> = vec![if report.fidelity.is_empty() {
        "Perplexities compare only with others of the same protocol and tokenizer. They say little about reasoning, facts \
         or safety: test what you need before you rely on it."
            .into()
    } else {
        "Embeddings close to the dense model's on one kind of text may be further from it on another: measure the task that \
         you need before you rely on it."
            .into()
    }];
    if report.calibration.is_some() {
        let names = calibration_names(report);
        points.push(format!(
            "What to keep was decided by looking at {names}. Text unlike it (other languages, code, other styles) may have \
             lost more than the table shows."
        ));
    }
    points.push(
        "Loaders that neither run the code in this folder nor know factorised linears cannot read it as it is: export it \
         first (see *Use*)."
            .into(),
    );
    points.push("The limits of the original model apply.".into());
    format!("## Limits\n\n{}\n", points.iter().map(|point| format!("- {point}")).collect::<Vec<_>>().join("\n"))
}

//! What a reader does with the folder: load it, measure it again, cite, give it on.

use super::super::Report;
use super::markdown::{code, escape, fence, shell};
use crate::eval::Perplexity;
use crate::model::Output;
use std::fmt::Write;

/// Corpora whose names mean the same everywhere; others are files of whoever made the output.
const KNOWN_CORPORA: [&str; 4] = ["sample", "wikitext2", "ptb", "c4"];

/// The class of transformers that loads it.
fn auto_class(report: &Report) -> &'static str {
    match report.model.encoder {
        None | Some(Output::NextToken) => "AutoModelForCausalLM",
        Some(Output::MaskedToken) => "AutoModelForMaskedLM",
        Some(Output::Classes(_)) => "AutoModelForSequenceClassification",
        Some(Output::States) => "AutoModel",
    }
}

pub(super) fn usage(report: &Report) -> String {
    let class = auto_class(report);
    let mut out = format!(
        "## Use\n\n`DIR` stands for this folder, or for its name on the hub.\n\nIn transformers, which runs the loading code in \
         this folder:\n\n```python\nfrom transformers import {class}, AutoTokenizer\n\
         tokenizer = AutoTokenizer.from_pretrained(\"DIR\", trust_remote_code=True)\n\
         model = {class}.from_pretrained(\"DIR\", trust_remote_code=True)\n```\n\n"
    );
    if report.model.sentence_transformers {
        out.push_str(
            "In sentence-transformers:\n\n```python\nfrom sentence_transformers import SentenceTransformer\n\
             model = SentenceTransformer(\"DIR\", trust_remote_code=True)\n```\n\n",
        );
    }
    out.push_str("In softlm:\n\n```sh\nsoftlm inspect DIR\n");
    if report.model.encoder.is_none() {
        out.push_str("softlm generate DIR --prompt 'Once upon a time'\n");
    }
    let mut done: Vec<(usize, usize, bool)> = Vec::new();
    for e in &report.evaluation {
        let key = |p: &Perplexity| (p.window, p.stride, p.bos);
        let of = key(&e.after.perplexity);
        if !done.contains(&of) {
            done.push(of);
            let same = report.evaluation.iter().map(|e| &e.after.perplexity).filter(|p| key(p) == of);
            out.push_str(&eval_command(report, &same.collect::<Vec<_>>()));
        }
    }
    for f in &report.fidelity {
        let corpus =
            if KNOWN_CORPORA.contains(&f.corpus.as_str()) { f.corpus.clone() } else { format!("{}=FILE", f.corpus) };
        let _ = writeln!(
            out,
            "softlm eval DIR --ppl {} --window {} --max-windows {} --against {}",
            shell(&corpus),
            f.window,
            f.windows,
            shell(&report.model.name)
        );
    }
    if report.evaluation.is_empty() && report.fidelity.is_empty() {
        out.push_str("softlm eval DIR --ppl sample\n");
    }
    out.push_str("```\n\n");
    out.push_str(
        "Everywhere else, once it is a plain checkpoint of the original's kind, every product computed (which gives up the \
         saving):\n\n```sh\nsoftlm export DIR --to dense -o DENSE\n```\n\n\
         `softlm compress --config softlm.toml -o NEW-FOLDER` repeats the compression.\n\n\
         The weights are plain safetensors. A factorised linear `NAME` is stored as `NAME.factor_a.weight` (rank, in) and \
         `NAME.factor_b.weight` (out, rank) and computes `y = B (A x) + bias`; everything else keeps its name and layout. \
         `report.json` holds all numbers of this page and one entry per linear.\n",
    );
    out
}

/// The command that repeats the evaluations `of` one window, stride and BOS.
fn eval_command(report: &Report, of: &[&Perplexity]) -> String {
    let corpora: Vec<String> =
        of.iter()
            .map(|p| {
                if KNOWN_CORPORA.contains(&p.corpus.as_str()) { p.corpus.clone() } else { format!("{}=FILE", p.corpus) }
            })
            .collect();
    let first = of[0];
    let windows = of.iter().map(|p| p.windows).max().unwrap_or(0);
    let mut command = format!("softlm eval DIR --ppl {} --window {}", shell(&corpora.join(",")), first.window);
    if first.stride != first.window {
        let _ = write!(command, " --stride {}", first.stride);
    }
    if first.bos && !first.masked {
        command.push_str(" --bos");
    } else if report.recipe["bos"] == false {
        command.push_str(" --bos=false");
    }
    let _ = writeln!(command, " --max-windows {windows} --against {}", shell(&report.model.name));
    command
}

/// The licence as entries of the front matter; none where it is not known. What the hub has no name for is called `other`.
pub(super) fn licence_entries(report: &Report) -> Vec<(&'static str, String)> {
    let Some(licence) = &report.model.licence else { return Vec::new() };
    let id = licence.id.clone().unwrap_or("other".into());
    let mut entries = vec![("license", id.clone())];
    if id == "other" {
        entries.push(("license_name", licence.name.clone().unwrap_or("that-of-the-base-model".into())));
    }
    let file = licence.files.first().cloned().filter(|_| id == "other");
    entries.extend(licence.link.clone().or(file).map(|link| ("license_link", link)));
    entries
}

pub(super) fn licence(report: &Report) -> String {
    let base = code(&report.model.name);
    let Some(licence) = &report.model.licence else {
        return format!(
            "## Licence\n\nThat of the original model, {base}, of which these weights are made. Its folder does not say which \
             one: see the base model.\n"
        );
    };
    let mut out = format!("## Licence\n\nThat of the original model, {base}, of which these weights are made");
    let called = [licence.id.as_ref().filter(|id| *id != "other"), licence.name.as_ref(), licence.link.as_ref()];
    let called: Vec<String> = called.into_iter().flatten().map(|text| code(text)).collect();
    if !called.is_empty() {
        let _ = write!(out, ": {}", called.join(", "));
    }
    out.push('.');
    if !licence.files.is_empty() {
        let files: Vec<String> = licence.files.iter().map(|file| code(file)).collect();
        let _ = write!(out, " Its text is in {}, copied from there.", files.join(", "));
    }
    out + "\n"
}

/// Of the method's paper.
pub(super) fn citation(report: &Report) -> String {
    let Ok(method) = crate::method::by_name(&report.method) else { return String::new() };
    format!("## Citation\n\nThe method ({}):\n\n{}\n", escape(&report.paper), fence("bibtex", method.card().citation))
}

/// The last lines: how to give it to others.
pub(super) fn upload() -> String {
    "## Upload\n\nTo a repository of your own on the hub:\n\n    hf upload USER/NAME DIR\n".into()
}

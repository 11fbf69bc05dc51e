//! How good a model is: which measure fits it, and what its folder says about how its states are used.

use super::ResultNotMeasured;
use super::texts::EvalText;
use crate::checkpoint::{SENTENCE_SETTINGS, Source};
use crate::eval::{
    Base, Evaluation, Fidelity, GlueProtocol, GlueResult, Modules, evaluate, evaluate_masked, fidelity, glue,
};
use crate::hub::HubOptions;
use crate::machine::StageClock;
use crate::model::{Model, Output};
use crate::progress::Progress;
use crate::report::BeforeAfter;
use crate::text::{self, Split};
use crate::user_bail;
use anyhow::{Context, Result};
use serde_json::Value;

/// Tokens of a text or pair where the model's folder does not say how many it takes.
const MAX_LENGTH: usize = 128;

/// What a corpus says of a model.
#[allow(clippy::large_enum_variant, reason = "there is one per corpus")]
pub enum Quality {
    /// Of a model that predicts tokens, and of the original if there is one.
    Likelihood(Evaluation, Option<Evaluation>),
    /// Of an encoder that predicts none, compared with the original.
    Embeddings(Fidelity),
}

/// Measures `model` on one corpus: perplexity of decoders, pseudo-perplexity of encoders that guess masked tokens, and of
/// other encoders how close their embeddings are to the original's.
pub fn measure(model: &Model, base: Option<&Model>, text: &EvalText, progress: &dyn Progress) -> Result<Quality> {
    measure_beside(model, base.map(Base::from), text, progress)
}

fn measure_beside(model: &Model, base: Option<Base>, text: &EvalText, progress: &dyn Progress) -> Result<Quality> {
    let (windows, name) = (&text.windows, &text.corpus.name);
    match (model.output(), base) {
        (Output::NextToken, _) => {
            let (own, other) = evaluate(model, base, name, windows, progress)?;
            Ok(Quality::Likelihood(own, other))
        }
        (Output::MaskedToken, _) => {
            let mask = text.mask.context("a model that guesses masked tokens needs the mask's id")?;
            let (own, other) = evaluate_masked(model, base.map(|base| base.model), name, windows, mask, progress)?;
            Ok(Quality::Likelihood(own, other))
        }
        (Output::Classes(_) | Output::States, Some(base)) => {
            Ok(Quality::Embeddings(fidelity(model, base.model, name, windows, &text.modules, progress)?))
        }
        (Output::Classes(_) | Output::States, None) => user_bail!(
            "{} predicts no tokens: a text alone says nothing of its quality", model.source().label();
            "compare its embeddings with --against MODEL, or measure a task with --glue"
        ),
    }
}

/// A compressed model and its original on every corpus, by the same protocol.
pub(super) fn before_and_after(
    original: Base,
    compressed: &Model,
    texts: &[EvalText],
    clock: &mut StageClock,
    progress: &dyn Progress,
) -> Result<(Vec<BeforeAfter>, Vec<Fidelity>)> {
    clock.stage("evaluating", texts.iter().map(|text| steps(compressed, Some(original.model), text)).sum());
    let (mut pairs, mut fidelities) = (Vec::new(), Vec::new());
    for text in texts {
        match measure_beside(compressed, Some(original), text, progress).context(ResultNotMeasured)? {
            Quality::Likelihood(after, before) => {
                pairs.push(BeforeAfter { before: before.context("the original was not measured")?, after });
            }
            Quality::Embeddings(fidelity) => fidelities.push(fidelity),
        }
    }
    Ok((pairs, fidelities))
}

/// Steps of progress that [`measure`] takes.
pub fn steps(model: &Model, base: Option<&Model>, text: &EvalText) -> u64 {
    let passes = match model.output() {
        // Every token between the special ones is masked once.
        Output::MaskedToken => text.windows.targets() - text.windows.len(),
        _ => text.windows.len(),
    };
    ((1 + usize::from(base.is_some())) * passes * model.blocks()) as u64
}

/// Measures `model`, and the base if there is one, on labelled tasks: `sst2`, `mrpc`, `stsb`, or TASK=PATH.
pub fn glue_tasks(
    model: &Model,
    base: Option<&Model>,
    specs: &[String],
    max_length: Option<usize>,
    hub: &HubOptions,
    progress: &dyn Progress,
) -> Result<Vec<GlueResult>> {
    if !model.is_encoder() {
        user_bail!("{} is a decoder, which --glue does not measure", model.source().label(); "use --ppl for decoders");
    }
    let source = model.source();
    let max_length = match max_length {
        Some(length) if length > model.context() => user_bail!(
            "--max-length {length} is longer than the model's context of {}", model.context();
            "use {} or less", model.context()
        ),
        Some(length) => length,
        None => usual_length(model)?,
    };
    let encoder = super::tokenizer(source)?.encoder(max_length)?;
    let modules = modules(model)?;
    let protocol = GlueProtocol { encoder: &encoder, max_length, modules: &modules };
    let mut results = Vec::new();
    for spec in specs {
        let examples = text::examples(spec, Split::Evaluation, hub)?;
        let name = examples.task.name();
        let texts = if examples.task.has_classes() || model.output() == Output::Classes(1) { 1 } else { 2 };
        let passes = texts * (1 + usize::from(base.is_some())) * examples.rows.len();
        progress.stage(&format!("evaluating {name}"), (passes * model.blocks()) as u64);
        results.extend(glue(model, base, &examples, &protocol, progress)?);
    }
    Ok(results)
}

/// What stands behind an encoder; nothing that counts behind a decoder.
pub(super) fn modules(model: &Model) -> Result<Modules> {
    if model.is_encoder() { Modules::read(model.source()) } else { Ok(Modules::default()) }
}

/// Tokens of a text or pair at most, as the folder says: a folder of sentence-transformers that gives no number means all
/// that the model and its tokenizer allow.
pub(super) fn usual_length(model: &Model) -> Result<usize> {
    let source = model.source();
    for name in SENTENCE_SETTINGS {
        let Some(settings) = json(source, name)? else { continue };
        return match &settings["max_seq_length"] {
            Value::Null => longest(model),
            length => match length.as_u64().filter(|&length| length > 0) {
                Some(length) => Ok(model.context().min(length as usize)),
                None => user_bail!(
                    "{name} of {}: `max_seq_length` is {length}, expected a positive integer", source.label();
                    "correct the file, or say how many tokens a text may have with --max-length"
                ),
            },
        };
    }
    if source.side_file("modules.json")?.is_some() { longest(model) } else { Ok(model.context().min(MAX_LENGTH)) }
}

/// As many tokens as the model has positions and its tokenizer was made for.
fn longest(model: &Model) -> Result<usize> {
    let settings = json(model.source(), "tokenizer_config.json")?;
    // No limit is written as 1e30.
    let limit = settings.and_then(|settings| settings["model_max_length"].as_f64()).filter(|limit| *limit >= 1.0);
    Ok(limit.map_or(model.context(), |limit| model.context().min(limit as usize)))
}

fn json(source: &Source, name: &str) -> Result<Option<Value>> {
    let Some(bytes) = source.side_file(name)? else { return Ok(None) };
    match serde_json::from_slice(&bytes) {
        Ok(settings) => Ok(Some(settings)),
        Err(error) => {
            user_bail!("{name} of {} is damaged: {error}", source.label(); "get the model's original {name}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use std::path::Path;

    #[test]
    fn folders_say_how_long_a_text_may_be() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/encoders/bert-tiny-bare");
        let length = |files: &[(&str, &str)]| {
            let place = tempfile::tempdir().unwrap();
            for name in ["config.json", "model.safetensors"] {
                std::fs::copy(golden.join(name), place.path().join(name)).unwrap();
            }
            files.iter().for_each(|(name, text)| std::fs::write(place.path().join(name), text).unwrap());
            let model = Model::load(Source::open(place.path()).unwrap(), &Device::Cpu).unwrap();
            usual_length(&model).map(|length| (length, model.context())).map_err(|e| e.to_string())
        };
        let (bare, context) = length(&[]).unwrap();
        assert!(context < MAX_LENGTH && bare == context);
        let modules = ("modules.json", "[]");
        for (files, expected) in [
            (vec![("sentence_bert_config.json", r#"{"max_seq_length": 9}"#), modules], 9),
            (vec![("sentence_distilbert_config.json", r#"{"max_seq_length": 7}"#), modules], 7),
            (vec![("sentence_bert_config.json", r#"{"max_seq_length": null}"#), modules], context),
            (vec![("tokenizer_config.json", r#"{"model_max_length": 11}"#), modules], 11),
            (vec![("tokenizer_config.json", r#"{"model_max_length": 1e30}"#), modules], context),
            (vec![("sentence_bert_config.json", r#"{"max_seq_length": 100000}"#)], context),
        ] {
            assert_eq!(length(&files).unwrap().0, expected, "{files:?}");
        }
        let odd = length(&[("sentence_bert_config.json", r#"{"max_seq_length": "8"}"#)]).unwrap_err();
        assert!(odd.contains("max_seq_length") && odd.contains("\"8\""), "{odd}");
    }
}

//! Labelled tasks: what an encoder is used for.
//!
//! Classes come from the classifier head; their names in config.json say which is which. Scores of pairs come from a head with
//! one output where there is one, otherwise from how alike the embeddings of the two texts are.

use super::classes::Classes;
use super::encode::{each_batch, embeddings};
use super::metrics::{accuracy, f1, first_largest, pearson, spearman};
use super::modules::Modules;
use crate::model::{Model, Output};
use crate::progress::Progress;
use crate::text::{Encoder, Examples, Sequence};
use crate::user_bail;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Predictions and labels to a number.
type Metric = fn(&[f64], &[f64]) -> f64;

/// One number on one task, with its protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GlueResult {
    /// `sst2`, `mrpc` or `stsb`.
    pub task: String,
    /// Examples.
    pub n: usize,
    /// `accuracy`, `f1` (of class 1), `spearman` or `pearson`.
    pub metric: String,
    /// The model's.
    #[serde(with = "crate::number")]
    pub value: f64,
    /// The same of the model it is compared with; absent without one.
    #[serde(default, with = "crate::number::optional")]
    pub baseline: Option<f64>,
    /// Path, or data set, commit and file.
    pub data: String,
    /// SHA-256 of that file.
    pub sha256: String,
    /// Tokens per text or pair at most, special ones included.
    pub max_length: usize,
    /// What the predictions are: `classifier head`, `regression head`, `cosine of mean-pooled states`.
    pub predictions: String,
    /// Type the model computed in.
    pub dtype: String,
}

/// How texts go in.
pub struct GlueProtocol<'a> {
    /// Makes sequences of at most `max_length` tokens.
    pub encoder: &'a Encoder,
    /// See `encoder`.
    pub max_length: usize,
    /// How states become embeddings and these are compared, where they are.
    pub modules: &'a Modules,
}

/// Measures `model`, and the base if there is one, on `examples`.
///
/// # Errors
/// A [`UserError`](crate::error::UserError) for a model that cannot do the task.
pub fn glue(
    model: &Model,
    base: Option<&Model>,
    examples: &Examples,
    protocol: &GlueProtocol,
    progress: &dyn Progress,
) -> Result<Vec<GlueResult>> {
    let (predictions, found) = predict(model, examples, protocol, progress)?;
    let base = base.map(|base| predict(base, examples, protocol, progress)).transpose()?;
    if let Some((other, _)) = base.as_ref().filter(|(other, _)| *other != predictions) {
        user_bail!(
            "{} predicts by {predictions}, the model it is compared with by {other}", model.source().label();
            "--against must name the model that it was made from"
        );
    }
    let labels: Vec<f64> = examples.rows.iter().map(|example| example.label).collect();
    let metrics: &[(&str, Metric)] = match examples.task.name() {
        "sst2" => &[("accuracy", accuracy)],
        "mrpc" => &[("accuracy", accuracy), ("f1", f1)],
        _ => &[("spearman", spearman), ("pearson", pearson)],
    };
    let result = |&(metric, of): &(&str, Metric)| GlueResult {
        task: examples.task.name().into(),
        n: labels.len(),
        metric: metric.into(),
        value: of(&found, &labels),
        baseline: base.as_ref().map(|(_, found)| of(found, &labels)),
        data: examples.origin.clone(),
        sha256: examples.sha256.clone(),
        max_length: protocol.max_length,
        predictions: predictions.clone(),
        dtype: model.compute().describe_type(),
    };
    Ok(metrics.iter().map(result).collect())
}

/// How the model predicts, and a class or score for each example.
fn predict(
    model: &Model,
    examples: &Examples,
    protocol: &GlueProtocol,
    progress: &dyn Progress,
) -> Result<(String, Vec<f64>)> {
    let (task, name) = (examples.task, model.source().label());
    match model.output() {
        Output::NextToken => {
            user_bail!("{name} is a decoder, which {} is not measured of", task.name(); "use --ppl for decoders")
        }
        Output::Classes(1) if !task.has_classes() => Ok((
            "regression head".into(),
            classified(model, examples, protocol, progress, |logits| f64::from(logits[0]))?,
        )),
        Output::Classes(classes) if task.has_classes() => {
            let known = Classes::read(model, task, classes)?;
            let beyond = examples.rows.iter().find(|example| known.class(example.label).is_none());
            if let Some(example) = beyond {
                user_bail!(
                    "{} has the label {}, but {name} knows {classes} classes", examples.origin, example.label;
                    "measure it on the task that it was trained for"
                );
            }
            let label = |logits: &[f32]| known.label(first_largest(logits));
            Ok(("classifier head".into(), classified(model, examples, protocol, progress, label)?))
        }
        _ if task.has_classes() => user_bail!(
            "{name} has no classifier, which {} needs", task.name();
            "stsb compares embeddings and needs none"
        ),
        _ => Ok((protocol.modules.comparison(), cosines(model, examples, protocol, progress)?)),
    }
}

fn classified(
    model: &Model,
    examples: &Examples,
    protocol: &GlueProtocol,
    progress: &dyn Progress,
    of: impl Fn(&[f32]) -> f64,
) -> Result<Vec<f64>> {
    let classifier = model.classifier()?.context("a model with classes has a classifier")?;
    let encode = |example: &crate::text::Example| protocol.encoder.encode(&example.first, example.second.as_deref());
    let sequences: Vec<Sequence> = examples.rows.iter().map(encode).collect::<Result<_>>()?;
    let mut found = vec![0.0; sequences.len()];
    each_batch(model, &sequences, progress, &mut |batch| {
        let logits: Vec<Vec<f32>> = classifier.logits(batch.states)?.to_vec2()?;
        for (&index, logits) in batch.indices.iter().zip(&logits) {
            found[index] = of(logits);
        }
        Ok(())
    })?;
    Ok(found)
}

fn cosines(model: &Model, examples: &Examples, protocol: &GlueProtocol, progress: &dyn Progress) -> Result<Vec<f64>> {
    let modules = protocol.modules;
    let encode = |text: &str| protocol.encoder.encode(&modules.prompted(text), None);
    let mut sequences = Vec::with_capacity(2 * examples.rows.len());
    for example in &examples.rows {
        sequences.push(encode(&example.first)?);
        sequences.push(encode(example.second.as_deref().context("a pair has two texts")?)?);
    }
    let embeddings = embeddings(model, &sequences, modules, progress)?;
    Ok(embeddings.chunks_exact(2).map(|pair| modules.similarity(&pair[0], &pair[1])).collect())
}

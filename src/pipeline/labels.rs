//! Labelled examples to train on.

use super::quality::usual_length;
use crate::eval::Classes;
use crate::hub::HubOptions;
use crate::learn::Labelled;
use crate::model::{Model, Output};
use crate::report::LabelsInfo;
use crate::text::{self, Split, Task, Tokenizer, shuffle};
use crate::user_bail;
use anyhow::Result;

/// One of so many examples is kept apart to judge by, and at most so many are.
const HELDOUT: (usize, usize) = (10, 512);

/// Labelled examples, and those kept apart to judge by.
#[derive(Clone)]
pub struct Labels {
    /// Where they came from.
    pub info: LabelsInfo,
    /// To train on, in file order.
    pub train: Vec<Labelled>,
    /// To judge by.
    pub heldout: Vec<Labelled>,
}

/// Loads the examples that `spec` names and tokenises them for `model`. Which are kept apart depends on their number and the
/// seed alone.
///
/// # Errors
/// A [`UserError`](crate::error::UserError) for a model that cannot do the task, and what
/// [`examples`](crate::text::examples()) says.
pub fn labels(model: &Model, tokenizer: &Tokenizer, spec: &str, seed: u64, hub: &HubOptions) -> Result<Labels> {
    let examples = text::examples(spec, Split::Calibration, hub)?;
    fits(model, examples.task)?;
    let known = match model.output() {
        Output::Classes(classes) if examples.task.has_classes() => {
            Some((Classes::read(model, examples.task, classes)?, classes))
        }
        _ => None,
    };
    // Training takes the classes in the model's own order.
    let class = |label: f64| known.as_ref().map_or(Some(label), |(known, _)| Some(known.class(label)? as f64));
    if let Some((_, classes)) = &known
        && let Some(beyond) = examples.rows.iter().find(|row| class(row.label).is_none())
    {
        user_bail!(
            "{} has the label {}, but {} knows {classes} classes", examples.origin, beyond.label, model.source().label();
            "train on the task that the classifier is for"
        );
    }
    let count = examples.rows.len();
    if count < 2 {
        user_bail!("{} has a single example, and some must be kept apart to judge by", examples.origin; "give more");
    }
    let max_length = usual_length(model)?;
    let encoder = tokenizer.encoder(max_length)?;
    let mut order: Vec<usize> = (0..count).collect();
    shuffle(&mut order, seed);
    let apart = (count / HELDOUT.0).clamp(1, HELDOUT.1);
    order[..apart].sort_unstable();
    order[apart..].sort_unstable();
    let encode = |&index: &usize| -> Result<Labelled> {
        let example = &examples.rows[index];
        let sequence = encoder.encode(&example.first, example.second.as_deref())?;
        Ok(Labelled { sequence, label: class(example.label).unwrap_or(example.label) })
    };
    let (heldout, train) = order.split_at(apart);
    let info = LabelsInfo {
        task: examples.task.name().into(),
        origin: examples.origin.clone(),
        sha256: examples.sha256.clone(),
        train: train.len(),
        heldout: heldout.len(),
        max_length,
    };
    let encode_all = |part: &[usize]| part.iter().map(encode).collect::<Result<Vec<_>>>();
    Ok(Labels { info, train: encode_all(train)?, heldout: encode_all(heldout)? })
}

/// Fails for a model whose classifier cannot answer the task.
fn fits(model: &Model, task: Task) -> Result<()> {
    let (name, task_name) = (model.source().label(), task.name());
    match (model.output(), task.has_classes()) {
        (Output::Classes(1), false) => Ok(()),
        (Output::Classes(classes), true) if classes > 1 => Ok(()),
        (Output::Classes(classes), _) => user_bail!(
            "{name} has a classifier of {classes} outputs, which does not fit {task_name}";
            "train on the task that the classifier is for"
        ),
        _ => user_bail!(
            "{name} has no classifier that {task_name} could be trained with";
            "leave --task out: training then follows the original model on --calib text"
        ),
    }
}

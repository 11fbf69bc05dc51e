//! Which class of a model is which label of a task, by their names in `config.json`.

use crate::model::Model;
use crate::text::Task;
use crate::user_bail;
use anyhow::Result;
use serde_json::{Map, Value};

/// What the classes of a task with names are called, in the order of its labels. Case, spaces and signs do not matter.
const NAMES: &[(&str, &[&[&str]])] = &[
    ("sst2", &[&["negative", "neg", "bad"], &["positive", "pos", "good"]]),
    (
        "mrpc",
        &[
            &[
                "notequivalent",
                "unequivalent",
                "different",
                "notparaphrase",
                "noparaphrase",
                "notduplicate",
                "notentailment",
                "notsimilar",
                "dissimilar",
                "no",
                "false",
            ],
            &["equivalent", "same", "paraphrase", "isparaphrase", "duplicate", "entailment", "similar", "yes", "true"],
        ],
    ),
];

/// The classes of a model as labels of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classes {
    /// The class of each label; `None` for numbers that are their own.
    of_label: Option<Vec<usize>>,
    count: usize,
}

impl Classes {
    /// Of a model with a classifier of `count` outputs. Numbered classes (`LABEL_0`) are their own labels, those with a
    /// meaning are found by it, wherever they stand.
    ///
    /// # Errors
    /// A [`UserError`](crate::error::UserError) where `id2label` and `label2id` contradict each other, or the names do not
    /// say which class is which label.
    pub fn read(model: &Model, task: Task, count: usize) -> Result<Self> {
        let source = model.source();
        Self::of(source.label(), source.config(), task, count)
    }

    fn of(label: &str, config: &Map<String, Value>, task: Task, count: usize) -> Result<Self> {
        let own = Self { of_label: None, count };
        let Some(names) = names(label, config, count)? else { return Ok(own) };
        if let Some(numbers) = names.iter().map(|name| number(name)).collect::<Option<Vec<usize>>>() {
            let mut order = vec![usize::MAX; count];
            for (class, number) in numbers.into_iter().enumerate() {
                match order.get_mut(number) {
                    Some(place) if *place == usize::MAX => *place = class,
                    _ => user_bail!(
                        "id2label of {label} calls its {count} classes {}: they are not numbered from 0 to {}",
                        names.join(", "), count - 1;
                        "correct id2label in its config.json"
                    ),
                }
            }
            return Ok(Self { of_label: Some(order), count });
        }
        let Some((_, wanted)) = NAMES.iter().find(|(known, _)| *known == task.name()) else { return Ok(own) };
        let mut of_label = Vec::new();
        for (label_number, meanings) in wanted.iter().enumerate() {
            let mut found = (0..count).filter(|&class| meanings.contains(&plain(&names[class]).as_str()));
            match (found.next(), found.next()) {
                (Some(class), None) => of_label.push(class),
                (other, _) => user_bail!(
                    "id2label of {label} calls its classes {}: {} of them means {} (label {label_number} of {})",
                    names.join(", "), if other.is_some() { "more than one" } else { "none" }, meanings[0], task.name();
                    "measure it on the task that it was trained for, or correct id2label in its config.json: LABEL_0, \
                     LABEL_1, … stand for the labels themselves"
                ),
            }
        }
        Ok(Self { of_label: Some(of_label), count })
    }

    /// The class of a label of the task, if there is one.
    pub fn class(&self, label: f64) -> Option<usize> {
        let label = label as usize;
        match &self.of_label {
            Some(classes) => classes.get(label).copied(),
            None => (label < self.count).then_some(label),
        }
    }

    /// The label of a class; -1 for a class that is none of the task's.
    pub fn label(&self, class: usize) -> f64 {
        match &self.of_label {
            Some(classes) => classes.iter().position(|&of| of == class).map_or(-1.0, |label| label as f64),
            None => class as f64,
        }
    }
}

/// The name of each class, if the configuration has names.
fn names(label: &str, config: &Map<String, Value>, count: usize) -> Result<Option<Vec<String>>> {
    let map = |key: &str| config.get(key).and_then(Value::as_object);
    let (by_class, by_name) = (map("id2label"), map("label2id"));
    let index = |value: &Value| value.as_u64().or_else(|| value.as_str()?.trim().parse().ok());
    let mut names: Vec<Option<String>> = vec![None; count];
    let mut put = |class: Option<u64>, name: &str, key: &str| -> Result<()> {
        let place = class.and_then(|class| names.get_mut(usize::try_from(class).ok()?));
        match place {
            None => user_bail!(
                "{key} of {label} has the class {name:?} in place {}, but the classifier has {count} outputs",
                class.map_or("?".into(), |class| class.to_string());
                "correct {key} in its config.json"
            ),
            Some(Some(other)) if other != name => user_bail!(
                "id2label of {label} calls class {} {other:?}, label2id calls it {name:?}", class.unwrap_or_default();
                "correct one of them in its config.json: they must say the same"
            ),
            Some(place) => *place = Some(name.to_string()),
        }
        Ok(())
    };
    for (class, name) in by_class.into_iter().flatten() {
        let name = name.as_str().map_or_else(|| name.to_string(), str::to_string);
        put(class.trim().parse().ok(), &name, "id2label")?;
    }
    for (name, class) in by_name.into_iter().flatten() {
        put(index(class), name, "label2id")?;
    }
    match names.iter().flatten().count() {
        0 => Ok(None),
        named if named < count => user_bail!(
            "id2label of {label} names {named} classes, but the classifier has {count} outputs";
            "correct id2label in its config.json"
        ),
        _ => Ok(Some(names.into_iter().flatten().collect())),
    }
}

/// The number that a name without a meaning carries: `LABEL_1`, `1`, `class 1`.
fn number(name: &str) -> Option<usize> {
    let name = plain(name);
    let digits = ["label", "class"].iter().find_map(|word| name.strip_prefix(word)).unwrap_or(&name);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) { None } else { digits.parse().ok() }
}

/// Letters and digits alone, small.
fn plain(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(config: Value, task: Task, count: usize) -> Result<Vec<Option<usize>>> {
        let classes = Classes::of("m", config.as_object().unwrap(), task, count)?;
        for label in 0..count {
            if let Some(class) = classes.class(label as f64) {
                assert_eq!(classes.label(class), label as f64);
            }
        }
        Ok((0..count).map(|label| classes.class(label as f64)).collect())
    }

    #[test]
    fn classes_are_found_by_their_names() {
        let own = vec![Some(0), Some(1)];
        let turned = vec![Some(1), Some(0)];
        for (config, task, expected) in [
            (json!({}), Task::Sst2, &own),
            (json!({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}), Task::Mrpc, &own),
            (json!({"id2label": {"0": "1", "1": "0"}}), Task::Sst2, &turned),
            (json!({"id2label": {"0": "NEGATIVE", "1": "POSITIVE"}}), Task::Sst2, &own),
            (json!({"id2label": {"0": "Positive", "1": "neg"}}), Task::Sst2, &turned),
            (json!({"label2id": {"positive": 0, "negative": "1"}}), Task::Sst2, &turned),
            (json!({"id2label": {"0": "not_equivalent", "1": "equivalent"}}), Task::Mrpc, &own),
            (json!({"id2label": {"0": "entailment", "1": "not entailment"}}), Task::Mrpc, &turned),
            (json!({"id2label": {"1": "a", "0": "b"}, "label2id": null}), Task::Stsb, &own),
        ] {
            assert_eq!(&of(config.clone(), task, 2).unwrap(), expected, "{config}");
        }
        let three = json!({"id2label": {"0": "positive", "1": "neutral", "2": "negative"}});
        let classes = Classes::of("m", three.as_object().unwrap(), Task::Sst2, 3).unwrap();
        assert_eq!([0.0, 1.0, 2.0].map(|label| classes.class(label)), [Some(2), Some(0), None]);
        assert_eq!([0, 1, 2].map(|class| classes.label(class)), [1.0, -1.0, 0.0]);
    }

    #[test]
    fn names_that_say_nothing_are_refused() {
        for (config, naming) in [
            (json!({"id2label": {"0": "sad", "1": "joyful"}}), "sad, joyful"),
            (json!({"id2label": {"0": "positive", "1": "pos"}}), "none of them means negative"),
            (json!({"id2label": {"0": "negative", "1": "positive"}, "label2id": {"positive": 0}}), "label2id calls it"),
            (json!({"id2label": {"0": "negative"}}), "names 1 classes"),
            (json!({"id2label": {"0": "negative", "1": "positive", "2": "neutral"}}), "\"neutral\" in place 2"),
            (json!({"id2label": {"0": "LABEL_1", "1": "LABEL_2"}}), "not numbered"),
            (json!({"label2id": {"negative": "first", "positive": 1}}), "place ?"),
        ] {
            let error = of(config.clone(), Task::Sst2, 2).unwrap_err().to_string();
            assert!(error.contains(naming), "{config}: {error}");
        }
    }
}

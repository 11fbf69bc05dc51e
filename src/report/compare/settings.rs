//! What was asked for and what it was made of: which of it is equal, and which is not.

use super::Entry;
use crate::report::{CorpusInfo, Report};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// What every output has its own of, or what is said elsewhere.
const LEFT_OUT: [&str; 2] = ["model", "output"];
/// Characters of a hash that tell two texts apart.
const SHOWN: usize = 12;

/// Settings by whether all reports have the same.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Settings {
    /// Those that differ.
    pub different: Vec<Setting>,
    /// Those that do not.
    pub equal: Map<String, Value>,
}

/// A setting and its value in every report; null where it does not apply.
#[derive(Debug, Clone, Serialize)]
pub struct Setting {
    /// `method`, `learn.steps`.
    pub key: String,
    /// One per report.
    pub values: Vec<Value>,
}

impl Settings {
    /// Those of all reports: their recipes, what they were calibrated on, and the program that made them.
    pub(super) fn of(entries: &[Entry]) -> Self {
        let all: Vec<Map<String, Value>> = entries.iter().map(|entry| settings(&entry.report)).collect();
        let mut settings = Self::default();
        settings.add("", &all);
        settings
    }

    /// Sorts every key of `all` in, and what is below a key that all of them have.
    fn add(&mut self, prefix: &str, all: &[Map<String, Value>]) {
        let mut keys: Vec<&String> = Vec::new();
        for key in all.iter().flat_map(Map::keys) {
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        for key in keys {
            let values: Vec<Value> = all.iter().map(|map| map.get(key).cloned().unwrap_or_default()).collect();
            let name = format!("{prefix}{key}");
            let inner: Option<Vec<Map<String, Value>>> =
                values.iter().map(|value| value.as_object().cloned()).collect();
            match inner {
                Some(inner) => self.add(&format!("{name}."), &inner),
                None if values.windows(2).any(|pair| pair[0] != pair[1]) => {
                    self.different.push(Setting { key: name, values });
                }
                None => drop(self.equal.insert(name, values.into_iter().next().unwrap_or_default())),
            }
        }
    }
}

/// The recipe, and what became of it where that depends on texts and models.
fn settings(report: &Report) -> Map<String, Value> {
    let mut all = Map::new();
    for (key, value) in report.recipe.as_object().into_iter().flatten() {
        if !LEFT_OUT.contains(&key.as_str()) {
            all.insert(key.clone(), value.clone());
        }
    }
    if let Some(info) = &report.calibration {
        all.insert("calibration text".into(), texts(&info.corpora));
        all.insert("calibration windows".into(), json!(format!("{} of {} tokens", info.windows, info.window)));
        all.insert("calibration BOS".into(), json!(info.bos));
    }
    if let Some(info) = &report.training_text {
        all.insert("training text".into(), texts(&info.corpora));
        all.insert("training windows".into(), json!(format!("{} of {} tokens", info.windows, info.window)));
    }
    if let Some(info) = &report.labels {
        all.insert("labelled examples".into(), json!(format!("{} {:.SHOWN$}", info.train, info.sha256)));
    }
    all.insert("softlm".into(), json!(report.softlm));
    all.insert("device".into(), json!(report.machine.device));
    all
}

/// Texts by name and the beginning of their hashes: two of one name may differ.
fn texts(corpora: &[CorpusInfo]) -> Value {
    json!(corpora.iter().map(|text| format!("{} {:.SHOWN$}", text.name, text.sha256)).collect::<Vec<_>>())
}

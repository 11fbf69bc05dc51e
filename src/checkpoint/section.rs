//! The `softlm` section of an output's config.json.
//!
//! | key | |
//! |---|---|
//! | `format` | version of this section and of the tensors' names |
//! | `version`, `method`, `keep` | what made the output, and which fraction of the block linears' parameters it kept |
//! | `base_model`, `base_revision` | what it was made from |
//! | `base_model_type`, `base_architectures` | those keys of the base's config.json; null where it had none |
//! | `base_config` | other keys of the base's config.json that the output changed, null for one that the base lacks or has as null; `a.b` is key b of object a |
//! | `linears` | how each linear that differs from the base's is stored, see `export::StoredLinear` |
//!
//! A program that knows nothing of factors would take an output for a damaged checkpoint of the base family and run it with
//! random layers. So from format 2 on `model_type` and `architectures` name nothing that exists without the loading code,
//! and two keys hold [`GUARD`] in place of a value: transformers' own classes for the base, which do not ask what type a
//! folder is of, refuse the one when they make a configuration (4.x) and the other when they open the weights (4.x and 5.x),
//! and print the sentence. Format 1 left the base's keys as they were.

use crate::user_bail;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Version of the section and of the factor names.
pub const FORMAT: u32 = 2;

/// `model_type` of an output.
pub const MODEL_TYPE: &str = "softlm";

/// What somebody reads who loads an output as if it were its base. The loading code takes it out and puts it back.
pub const GUARD: &str = "these weights are softlm's factors: load them with an Auto class and trust_remote_code=True, or \
     make a plain checkpoint with `softlm export --to dense`";

/// Keys of an output's config.json that are not the base's, beside `model_type` and `architectures`.
const MARKS: [&str; 3] = ["auto_map", "problem_type", "transformers_weights"];

const KEY: &str = "softlm";

/// The section, as far as reading an output needs it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Section {
    /// Version of the section.
    pub format: u32,
    /// Version of softlm that wrote it.
    pub version: String,
    /// Name of the method.
    pub method: String,
    /// Fraction of the block linears' parameters that was kept.
    pub keep: f64,
    /// The model it was made from, as the user named it.
    pub base_model: Option<String>,
    /// Its revision on the hub.
    pub base_revision: Option<String>,
    /// Its `model_type`; absent in format 1.
    pub base_model_type: Option<String>,
    /// Its `architectures`.
    pub base_architectures: Option<Value>,
    /// Its other keys of config.json that have another value here.
    pub base_config: Map<String, Value>,
}

impl Section {
    /// The section of `config`; `None` if softlm did not write it.
    pub fn of(config: &Map<String, Value>) -> Option<Section> {
        let section = config.get(KEY)?;
        Some(Self::deserialize(section).unwrap_or_default())
    }

    /// Fails if `config`, which errors call `name`, is that of an output but does not say how its tensors are stored, or
    /// says so in a way that came later.
    pub(super) fn check(name: &str, config: &Map<String, Value>) -> Result<()> {
        let claims = config.get("model_type").and_then(Value::as_str) == Some(MODEL_TYPE);
        let Some(section) = config.get(KEY) else {
            if claims {
                user_bail!(
                    "{name} is of `model_type` {MODEL_TYPE}, but has no `{KEY}` section";
                    "get or make the output again: the section says what its tensors are"
                );
            }
            return Ok(());
        };
        match Self::deserialize(section) {
            Ok(section) if section.format > FORMAT => user_bail!(
                "{name} has format {} of the `{KEY}` section, this version of softlm reads {FORMAT} at most", section.format;
                "use the softlm that wrote it ({}) or a newer one", section.version
            ),
            Ok(section) if claims && section.base_model_type.is_none() => user_bail!(
                "{name}: the `{KEY}` section has no `base_model_type`"; "get or make the output again"
            ),
            Ok(_) => Ok(()),
            Err(error) => {
                user_bail!("{name}: the `{KEY}` section cannot be read: {error}"; "get or make the output again")
            }
        }
    }
}

/// Makes `config`, that of a base, the config of an output: adds `section` and `linears` to it and takes away what would make
/// other programs load it as the base. `architecture` and `auto_map` name the classes of the loading code.
pub fn wrap(
    mut config: Map<String, Value>,
    mut section: Section,
    linears: Value,
    architecture: &str,
    auto_map: Value,
) -> Map<String, Value> {
    section.base_model_type = config.get("model_type").and_then(Value::as_str).map(str::to_string);
    section.base_architectures = config.get("architectures").cloned();
    let marks = [
        ("model_type", json!(MODEL_TYPE)),
        ("architectures", json!([architecture])),
        ("auto_map", auto_map),
        ("problem_type", json!(GUARD)),
        ("transformers_weights", json!(GUARD)),
    ];
    for (key, value) in marks {
        let before = config.insert(key.to_string(), value);
        if MARKS.contains(&key) {
            section.base_config.insert(key.to_string(), before.unwrap_or(Value::Null));
        }
    }
    let mut section = json!(section);
    section["linears"] = linears;
    config.insert(KEY.to_string(), section);
    config
}

/// `config` in the terms of its family: that of an output without what [`wrap`] added, but with the widths of what is
/// stored; any other as it is.
pub fn family_config(config: &Map<String, Value>) -> Map<String, Value> {
    let mut family = config.clone();
    let Some(section) = Section::of(config) else { return family };
    family.shift_remove(KEY);
    if section.format < FORMAT {
        return family;
    }
    let mut restore = |key: &str, value: Option<&Value>| match value.filter(|value| !value.is_null()) {
        Some(value) => drop(family.insert(key.to_string(), value.clone())),
        None => drop(family.shift_remove(key)),
    };
    restore("model_type", section.base_model_type.map(Value::String).as_ref());
    restore("architectures", section.base_architectures.as_ref());
    for key in MARKS {
        restore(key, section.base_config.get(key));
    }
    family
}

/// The config.json of the base that an output was made from. In format 1 widths of pruned feed-forward layers stay those of
/// the output, which did not record the base's.
pub fn base_config(config: &Map<String, Value>) -> Map<String, Value> {
    let mut base = family_config(config);
    for (key, value) in Section::of(config).map(|section| section.base_config).unwrap_or_default() {
        // `text_config.intermediate_size` lies in the config of the text model inside.
        let (object, key) = match key.split_once('.') {
            None => (Some(&mut base), key.as_str()),
            Some((outer, inner)) => (base.get_mut(outer).and_then(Value::as_object_mut), inner),
        };
        let Some(object) = object else { continue };
        match value {
            Value::Null => drop(object.shift_remove(key)),
            value => drop(object.insert(key.to_string(), value)),
        }
    }
    base
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn an_output_does_not_claim_to_be_its_base_and_gives_it_back() {
        let base = object(json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 24,
            "auto_map": {"AutoConfig": "own.Config"}, "problem_type": "regression",
        }));
        let mut narrower = base.clone();
        narrower.insert("intermediate_size".into(), json!(16));
        let changed = object(json!({"intermediate_size": 24}));
        let section = Section { format: FORMAT, base_config: changed, ..Section::default() };
        let linears = json!({"a": {"rank": 3}});
        let output = wrap(narrower.clone(), section, linears, "SoftlmForCausalLM", json!({"AutoModel": "x.Y"}));
        assert_eq!(output["model_type"], MODEL_TYPE);
        assert_eq!((&output["problem_type"], &output["transformers_weights"]), (&json!(GUARD), &json!(GUARD)));
        assert_eq!(output["architectures"], json!(["SoftlmForCausalLM"]));
        assert_eq!(output["softlm"]["linears"]["a"]["rank"], 3);
        assert_eq!(family_config(&output), narrower);
        assert_eq!(base_config(&output), base);
    }

    #[test]
    fn keys_that_the_base_lacks_are_lacking_again() {
        let base = object(json!({"model_type": "gpt2", "n_embd": 8}));
        let changed = object(json!({"n_inner": null}));
        let mut narrower = base.clone();
        narrower.insert("n_inner".into(), json!(7));
        let section = Section { format: FORMAT, base_config: changed, ..Section::default() };
        let output = wrap(narrower, section, json!({}), "SoftlmForCausalLM", json!({}));
        assert_eq!(base_config(&output), base);
        assert_eq!(family_config(&output).get("n_inner"), Some(&json!(7)));
    }

    #[test]
    fn widths_inside_the_text_model_come_back() {
        let base = object(json!({"model_type": "llava", "text_config": {"intermediate_size": 24}}));
        let mut narrower = base.clone();
        narrower["text_config"]["intermediate_size"] = json!(16);
        let changed = object(json!({"text_config.intermediate_size": 24}));
        let section = Section { format: FORMAT, base_config: changed, ..Section::default() };
        let output = wrap(narrower, section, json!({}), "SoftlmModel", json!({}));
        assert_eq!(family_config(&output)["text_config"]["intermediate_size"], 16);
        assert_eq!(base_config(&output), base);
    }

    #[test]
    fn sections_that_say_nothing_or_come_from_later_are_refused() {
        let check = |config: Value| Section::check("config.json", &object(config)).map_err(|e| e.to_string());
        let later = check(
            json!({"model_type": "softlm", "softlm": {"format": 3, "version": "9.1", "base_model_type": "llama"}}),
        );
        assert!(later.is_err_and(|e| e.contains("format 3") && e.contains("reads 2")));
        assert!(check(json!({"model_type": "softlm"})).is_err_and(|e| e.contains("no `softlm` section")));
        assert!(
            check(json!({"model_type": "softlm", "softlm": {"format": 2}}))
                .is_err_and(|e| e.contains("base_model_type"))
        );
        for section in [json!("x"), json!(7), json!({"format": -1}), json!({"base_config": []})] {
            assert!(
                check(json!({"softlm": section.clone()})).is_err_and(|e| e.contains("cannot be read")),
                "{section}"
            );
        }
        check(json!({"model_type": "llama"})).unwrap();
        check(json!({"model_type": "llama", "softlm": {}})).unwrap();
        check(json!({"model_type": "softlm", "softlm": {"format": 2, "base_model_type": "llama"}})).unwrap();
    }

    #[test]
    fn the_first_format_and_other_models_stay_as_they_are() {
        let base = object(json!({"model_type": "llama", "hidden_size": 8}));
        assert_eq!(family_config(&base), base);
        assert_eq!(Section::of(&base), None);
        let mut first = base.clone();
        first.insert("softlm".into(), json!({"format": 1, "base_model": "demo", "linears": {"a": {"rank": 2}}}));
        assert_eq!(family_config(&first), base);
        assert_eq!(Section::of(&first).unwrap().base_model.as_deref(), Some("demo"));
    }
}

//! Multimodal models whose text model is a decoder of a known family: what they compute of text alone is what that
//! decoder computes. Their `config.json` has its config under `text_config`; images and sounds are not touched.

use super::super::config::Config;
use super::{Family, TIED, family};
use crate::user_bail;
use anyhow::Result;
use serde_json::{Map, Value};
use std::borrow::Cow;

const TEXT_CONFIG: &str = "text_config";

/// `model_type` of a multimodal model, and that of its text model where its `text_config` does not say.
const WRAPPERS: [(&str, &str); 9] = [
    ("gemma3", "gemma3_text"),
    ("llava", "llama"),
    ("llava_next", "llama"),
    ("llava_onevision", "qwen2"),
    ("vipllava", "llama"),
    ("mistral3", "mistral"),
    ("internvl", "qwen2"),
    ("idefics3", "llama"),
    ("smolvlm", "llama"),
];

/// The text model that a config describes.
pub(in crate::model) struct TextModel {
    pub family: &'static Family,
    /// `model_type` of the multimodal model around it, if there is one.
    pub inside: Option<&'static str>,
    /// Where in `config.json` its own config lies.
    pub path: &'static [&'static str],
    /// Its config with everything that the configuration class fills in.
    pub config: Map<String, Value>,
    /// Whether the config of the multimodal model ties the head, which counts where the checkpoint stores none.
    pub tied_outside: bool,
}

impl TextModel {
    /// The object of a copy of config.json that holds the text model's own config.
    pub fn config_in<'c>(&self, whole: &'c mut Map<String, Value>) -> &'c mut Map<String, Value> {
        let mut config = whole;
        for key in self.path {
            let inner = config.entry(*key).or_insert_with(|| Value::Object(Map::new()));
            if !inner.is_object() {
                *inner = Value::Object(Map::new());
            }
            config = inner.as_object_mut().expect("it is one now");
        }
        config
    }
}

/// Whether a config names a family, or a model around one, that softlm runs.
pub(in crate::model) fn is_known(whole: &Map<String, Value>) -> bool {
    let config = Config(whole);
    let named = config.str_or("model_type", "").unwrap_or_default();
    WRAPPERS.iter().any(|(wrapper, _)| *wrapper == named) || family(&config).is_ok()
}

/// Finds the text model in a config.
pub(in crate::model) fn text_model(whole: &Map<String, Value>) -> Result<TextModel> {
    let config = Config(whole);
    let named = config.str_or("model_type", "")?;
    let Some((inside, usual)) = WRAPPERS.into_iter().find(|(wrapper, _)| *wrapper == named) else {
        if let Some(Value::Object(_)) = config.get(TEXT_CONFIG) {
            let known = WRAPPERS.map(|(wrapper, _)| wrapper).join(", ");
            user_bail!(
                "multimodal model \"{named}\" is not supported"; "softlm runs the text models of: {known}"
            );
        }
        let family = family(&config)?;
        let config = one_name_each(whole, family)?.into_owned();
        return Ok(TextModel { family, inside: None, path: &[], config, tied_outside: false });
    };
    let mut text = match config.get(TEXT_CONFIG) {
        None => Map::new(),
        Some(Value::Object(text)) => text.clone(),
        Some(other) => {
            user_bail!("config.json: `{TEXT_CONFIG}` is {other}, expected an object"; "get the model's original config.json")
        }
    };
    text.entry("model_type").or_insert_with(|| usual.into());
    let family = match family(&Config(&text)) {
        Ok(family) if !family.sizes.is_empty() => family,
        _ => user_bail!(
            "the text model of this {inside} model is of family {}, which softlm does not run there", text["model_type"];
            "use a model whose text model is a decoder such as llama, mistral, qwen2 or gemma3_text"
        ),
    };
    if let Some(cap) = Config(&text).get("final_logit_softcapping") {
        user_bail!(
            "config.json: `final_logit_softcapping` = {cap} is not supported for {inside}";
            "transformers caps the logits of the text model alone, but not those of the whole"
        );
    }
    // What such a config leaves out is as its class has it.
    for &(key, size) in family.sizes {
        text.entry(key).or_insert_with(|| size.into());
    }
    let tied_outside = config.bool_or(TIED, false)?;
    let config = one_name_each(&text, family)?.into_owned();
    Ok(TextModel { family, inside: Some(inside), path: &[TEXT_CONFIG], config, tied_outside })
}

/// The config with each value under the first of the names that its class knows for it.
fn one_name_each<'c>(config: &'c Map<String, Value>, family: &Family) -> Result<Cow<'c, Map<String, Value>>> {
    let mut renamed = Cow::Borrowed(config);
    for &(synonym, name) in family.synonyms {
        let Some(value) = config.get(synonym) else { continue };
        match config.get(name) {
            Some(other) if other != value => user_bail!(
                "config.json: `{synonym}` is {value}, but `{name}`, which means the same, is {other}";
                "remove the one that is wrong"
            ),
            Some(_) => {}
            None => {
                renamed.to_mut().insert(name.into(), value.clone());
            }
        }
    }
    Ok(renamed)
}

//! What lies beside the vocabulary: `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json`.

use super::SideFile;
use super::class::Class;
use crate::user_bail;
use anyhow::Result;
use serde_json::{Map, Value};
use tokenizers::AddedToken;

/// Special tokens that have a name.
pub(super) const SPECIAL: [&str; 7] = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"];
const NAMED: &str = "tokenizer_config.json";
const BARE: &str = "added_tokens.json";

/// The settings of one tokenizer.
pub(super) struct Settings {
    /// What the class does.
    pub class: Class,
    /// The class as the files name it, if they do.
    pub name: Option<String>,
    values: Map<String, Value>,
    /// Tokens beside the vocabulary, in the order of their ids.
    pub added: Vec<(u32, AddedToken)>,
    /// Whether they are but named, in `added_tokens.json`.
    pub bare: bool,
}

impl Settings {
    /// Reads them. A class that no file names follows from `config`, the model's `config.json`, where there is nothing but a
    /// vocabulary, and for encoders, whose texts have frames. (4.57 does that for all: Llama's class would then begin texts
    /// with a BOS that no file asks for. 5.x does not.)
    pub fn read(label: &str, file: SideFile, config: &Map<String, Value>, whole: bool) -> Result<Self> {
        let read = |name: &str| -> Result<Option<Map<String, Value>>> {
            let Some(bytes) = file(name)? else { return Ok(None) };
            super::object(&bytes).map(Some).map_err(|error| super::damaged(label, name, error))
        };
        let mut values = read(NAMED)?.unwrap_or_default();
        let (mut added, mut bare) = (Vec::new(), false);
        match values.get("added_tokens_decoder") {
            Some(Value::Object(tokens)) => {
                for (id, token) in tokens {
                    added.push((id_of(label, NAMED, token_text(token).unwrap_or(id), id.parse().ok())?, token.clone()));
                }
            }
            // As transformers 2 to 4.33 wrote it; where both are there the list above counts alone.
            _ => {
                for (key, value) in read("special_tokens_map.json")?.unwrap_or_default() {
                    values.insert(key, value);
                }
                bare = true;
                for (token, id) in read(BARE)?.unwrap_or_default() {
                    let id = id_of(label, BARE, &token, id.as_u64().and_then(|id| u32::try_from(id).ok()))?;
                    added.push((id, Value::String(token)));
                }
            }
        }
        added.sort_by_key(|(id, _)| *id);
        let text = |map: &Map<String, Value>, key: &str| map.get(key).and_then(Value::as_str).map(str::to_string);
        let name = text(&values, "tokenizer_class").or_else(|| text(config, "tokenizer_class"));
        let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let class = match &name {
            Some(name) => Class::named(name),
            None if whole => Class::of_model(model_type).filter(|&class| class == Class::Bert),
            None => match Class::of_model(model_type) {
                Some(class) => Some(class),
                None if file("vocab.json")?.is_some() => Some(Class::Gpt2),
                None => file("vocab.txt")?.map(|_| Class::Bert),
            },
        };
        let class = class.unwrap_or(Class::Plain);
        let mut settings = Self { class, name, values, added: Vec::new(), bare };
        let special = settings.all_special();
        for (id, token) in added {
            let Some(text) = token_text(&token) else {
                user_bail!("{label}: {NAMED} has no text for the token {id}"; "save the tokenizer again with transformers");
            };
            let is_special = special.iter().any(|special| special.content == text);
            settings.added.push((id, added_token(&token, text, is_special)));
        }
        Ok(settings)
    }

    /// The file that lists the added tokens.
    pub fn list(&self) -> &'static str {
        if self.bare { BARE } else { NAMED }
    }

    /// A value that is not null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// A switch.
    ///
    /// # Errors
    /// A [`UserError`](crate::error::UserError) for anything but true, false and null.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(other) => {
                user_bail!("{NAMED} has {key}: {other}, which is neither true nor false"; "correct it, or take it out")
            }
        }
    }

    /// The text of a special token: as the files name it, otherwise as the class does.
    pub fn special(&self, name: &str) -> Option<&str> {
        match self.values.get(&format!("{name}_token")) {
            Some(token) => token_text(token),
            None => self.class.special(name),
        }
    }

    /// Every special token that the files name.
    pub fn all_special(&self) -> Vec<AddedToken> {
        let named = SPECIAL.iter().filter_map(|name| self.values.get(&format!("{name}_token")));
        let more = ["additional_special_tokens", "extra_special_tokens"].into_iter().filter_map(|key| self.get(key));
        let more = more.flat_map(|tokens| match tokens {
            Value::Array(tokens) => tokens.iter().collect(),
            Value::Object(tokens) => tokens.values().collect(),
            _ => Vec::new(),
        });
        named.chain(more).filter_map(|token| Some(added_token(token, token_text(token)?, true))).collect()
    }
}

fn id_of(label: &str, list: &str, token: &str, id: Option<u32>) -> Result<u32> {
    match id {
        Some(id) => Ok(id),
        None => user_bail!("{label}: {list} has no id for the token {token:?}"; "ids are whole numbers from 0 on"),
    }
}

/// The text of a token that is written as a string or as an object.
fn token_text(token: &Value) -> Option<&str> {
    let text = token.as_str().or_else(|| token.get("content")?.as_str());
    text.filter(|text| !text.is_empty())
}

/// A token with the properties that it is written with.
fn added_token(token: &Value, text: &str, special: bool) -> AddedToken {
    let on = |key: &str| token.get(key).and_then(Value::as_bool);
    let special = special || on("special").unwrap_or(false);
    AddedToken::from(text, special)
        .single_word(on("single_word").unwrap_or(false))
        .lstrip(on("lstrip").unwrap_or(false))
        .rstrip(on("rstrip").unwrap_or(false))
        .normalized(on("normalized").unwrap_or(!special))
}

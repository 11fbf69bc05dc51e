//! Recipes as text: TOML, and JSON in the report.

use super::Options;
use crate::method::{Method, MethodOption, OptionValues, all_options};
use anyhow::Result;
use serde::Deserialize;
use serde_json::{Value, json};
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer, ValueDeserializer};

/// What is wrong with a recipe file, and where.
pub(super) struct FileError {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

impl Options {
    /// The options that a recipe file holds.
    pub(super) fn from_toml(text: &str) -> Result<Self, FileError> {
        let at = |span: Option<Range<usize>>, what: String| FileError {
            line: span.map_or(1, |span| 1 + text[..span.start].matches('\n').count()),
            what,
        };
        let wrong = |error: toml::de::Error| at(error.span(), error.message().to_string());
        let mut table = DeTable::parse(text).map_err(wrong)?;
        let mut method_options = OptionValues::default();
        for option in all_options() {
            let Some(value) = take(table.get_mut(), option) else { continue };
            let span = value.span();
            let value = toml::Value::deserialize(ValueDeserializer::from(value)).map_err(wrong)?;
            let value = option.read(&value).map_err(|error| at(Some(span), error.to_string()))?;
            method_options.set(option.key, value);
        }
        let general = Self::deserialize(Deserializer::from(table)).map_err(wrong)?;
        Ok(Self { method_options, ..general })
    }

    /// The same as JSON: the keys of a recipe file, `null` for what is not set, the options of `method` in its order.
    pub(super) fn to_json(&self, method: &dyn Method) -> Result<Value> {
        let mut json = serde_json::to_value(self)?;
        for option in method.options() {
            let Some(value) = self.method_options.value(option) else { continue };
            let table = match option.table {
                Some(name) => &mut json[name],
                None => &mut json,
            };
            table[option.key] = json!(value);
        }
        Ok(json)
    }
}

/// Takes the value of an option out of a recipe's table.
fn take<'a>(table: &mut DeTable<'a>, option: &MethodOption) -> Option<Spanned<DeValue<'a>>> {
    let Some(name) = option.table else { return table.remove(option.key) };
    match table.get_mut(name)?.get_mut() {
        DeValue::Table(inner) => inner.remove(option.key),
        _ => None,
    }
}

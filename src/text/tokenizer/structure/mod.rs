//! What a `tokenizer.json` must be like before the tokenizers library reads it.
//!
//! The library believes its file: it indexes by what the file says, allocates what the file claims, and descends as deep as
//! the file goes. Panics can be caught (see `boundary`), but neither an overflowing stack nor memory that runs out. So
//! sizes and references are checked here first. What is kept: every tokenizer that the library can use. Each rule says what
//! it guards.

mod charsmap;
mod growth;
mod vocabulary;

use std::fmt;

use anyhow::Result;
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer};

use super::AGAIN;
use crate::user_bail;

pub(super) use vocabulary::{check_merge, check_piece, check_unigram};

/// Sequences within sequences: every level costs the library's reader tens of kilobytes of stack.
const DEEPEST: usize = 8;
/// Steps of one part: each goes through all of a text.
const MOST_STEPS: usize = 256;
/// Bytes of a regular expression, and of all of them: their programs are many times as large.
const LONGEST_PATTERN: usize = 8 << 10;
const ALL_PATTERNS: usize = 32 << 10;
/// What the counts of their repetitions (`{2,5}`) add up to: a program holds that many copies.
const ALL_REPEATS: u64 = 500;
/// Bytes of a string that is put into texts or pieces, such as a prefix.
const LONGEST_STRING: usize = 1 << 10;
/// Bytes of an added token, which may be normalised when it is added.
const LONGEST_TOKEN: usize = 4 << 10;
/// Bytes of all added tokens together, as far as normalising may make them grow: they become an automaton.
const ALL_TOKENS: u64 = 64 << 20;
/// Special tokens that a template puts around a text.
const MOST_SPECIAL: usize = 1 << 10;
/// Bytes that a byte of text may become before it is cut into tokens: a text is read in pieces that fit this.
pub(super) const MOST_GROWTH: u64 = 4096;

/// Keys under which a step holds others.
const SEQUENCES: [&str; 4] = ["normalizers", "pretokenizers", "processors", "decoders"];

/// Checks the bytes of a `tokenizer.json`.
///
/// # Errors
/// A [`UserError`](crate::error::UserError) that names the key.
pub(super) fn check(label: &str, definition: &[u8]) -> Result<()> {
    match parts(definition) {
        Ok(()) => Ok(()),
        Err(fault) => user_bail!("the tokenizer of {label} cannot be read: {fault}"; "{AGAIN}"),
    }
}

/// Checks tokens that files beside the tokenizer add to it.
pub(super) fn check_added(label: &str, tokenizer: &Tokenizer, tokens: &[AddedToken]) -> Result<()> {
    let texts = tokens.iter().map(|token| token.content.as_str());
    match growth_of(tokenizer).map_err(|error| error.to_string()).and_then(|growth| added(texts, growth)) {
        Ok(()) => Ok(()),
        Err(fault) => {
            user_bail!("the tokens that are added to the tokenizer of {label} cannot be used: {fault}"; "{AGAIN}")
        }
    }
}

/// How many bytes a byte of text may become in this tokenizer before it is cut into tokens.
pub(super) fn growth_of(tokenizer: &Tokenizer) -> Result<u64> {
    let normalizer = serde_json::to_value(tokenizer.get_normalizer())?;
    let pre_tokenizer = serde_json::to_value(tokenizer.get_pre_tokenizer())?;
    let of = |name, part| growth::growth(&steps(name, part)?);
    let growth = of("normalizer", &normalizer).and_then(|a| Ok(a.saturating_mul(of("pre_tokenizer", &pre_tokenizer)?)));
    growth.map_err(anyhow::Error::msg)
}

/// A part of the file's text processing: an object, and where it is.
pub(super) struct Step<'v> {
    place: String,
    fields: &'v Map<String, Value>,
}

impl Step<'_> {
    fn text(&self, key: &str) -> Option<&str> {
        self.fields.get(key)?.as_str()
    }

    /// The `String` and the `Regex` of a pattern.
    fn pattern(&self) -> (Option<&str>, Option<&str>) {
        let of = |kind: &str| self.fields.get("pattern")?.get(kind)?.as_str();
        (of("String"), of("Regex"))
    }
}

/// A JSON object that has no key twice: of two the library may read the other one.
struct Unique(Map<String, Value>);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Unique;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Unique, M::Error> {
                let mut parts = Map::new();
                while let Some((key, value)) = map.next_entry::<String, Value>()? {
                    if parts.contains_key(&key) {
                        return Err(M::Error::custom(format_args!("it has {key:?} twice")));
                    }
                    parts.insert(key, value);
                }
                Ok(Unique(parts))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

fn parts(definition: &[u8]) -> Result<(), String> {
    // (The parser itself refuses to go deeper than 128 levels.)
    let Unique(parts) = serde_json::from_slice(definition).map_err(|error| error.to_string())?;
    let none = Value::Null;
    let part = |name: &str| parts.get(name).unwrap_or(&none);
    let mut all: Vec<Step> = Vec::new();
    let mut grow = |name: &str| -> Result<u64, String> {
        let steps = steps(name, part(name))?;
        steps.iter().try_for_each(step)?;
        let growth = growth::growth(&steps)?;
        all.extend(steps);
        Ok(growth)
    };
    let normalized = grow("normalizer")?;
    let growth = normalized.saturating_mul(grow("pre_tokenizer")?);
    // Replacements of nothing by something, one after the other, double a text each time.
    if growth > MOST_GROWTH {
        return Err(format!("its normalizer and pre_tokenizer may make a text {growth} times as long"));
    }
    let growth = grow("decoder")?;
    if growth > MOST_GROWTH {
        return Err(format!("its decoder may make a text {growth} times as long"));
    }
    grow("post_processor")?;
    let patterns: Vec<&str> = all.iter().filter_map(|step| step.pattern().1).collect();
    let bytes: usize = patterns.iter().map(|pattern| pattern.len()).sum();
    let repeats = patterns.iter().fold(0u64, |sum, pattern| sum.saturating_add(repeats(pattern)));
    if bytes > ALL_PATTERNS || repeats > ALL_REPEATS {
        return Err(format!(
            "its regular expressions have {bytes} bytes and {repeats} repetitions counted out, together"
        ));
    }
    let tokens = part("added_tokens").as_array().map(Vec::as_slice).unwrap_or_default();
    added(tokens.iter().filter_map(|token| token.get("content")?.as_str()), normalized)?;
    vocabulary::check(part("model"))
}

/// All steps of a part, those that hold others included.
fn steps<'v>(name: &str, part: &'v Value) -> Result<Vec<Step<'v>>, String> {
    fn collect<'v>(place: String, value: &'v Value, depth: usize, steps: &mut Vec<Step<'v>>) -> Result<(), String> {
        let fields = match value {
            Value::Object(fields) => fields,
            Value::Null if depth == 0 => return Ok(()),
            _ => return Err(format!("{place} is no object")),
        };
        if steps.len() == MOST_STEPS {
            return Err(format!("{place} is one of more than {MOST_STEPS} steps"));
        }
        steps.push(Step { place: place.clone(), fields });
        for name in SEQUENCES {
            let Some(Value::Array(inner)) = fields.get(name) else { continue };
            if depth == DEEPEST {
                return Err(format!("{place}.{name} lies more than {DEEPEST} sequences deep"));
            }
            for (index, value) in inner.iter().enumerate() {
                collect(format!("{place}.{name}[{index}]"), value, depth + 1, steps)?;
            }
        }
        Ok(())
    }
    let mut steps = Vec::new();
    collect(name.to_string(), part, 0, &mut steps)?;
    Ok(steps)
}

/// What a step may hold. Steps are told by their keys, not by their type alone: the library does the same where it does not
/// know the type.
fn step(step: &Step) -> Result<(), String> {
    let Step { place, fields } = step;
    for (key, value) in fields.iter() {
        let length = value.as_str().map_or(0, str::len);
        if key != "precompiled_charsmap" && length > LONGEST_STRING {
            return Err(format!("{place}.{key} has {length} bytes, more than {LONGEST_STRING}"));
        }
    }
    let (literal, regex) = step.pattern();
    let length = literal.or(regex).map_or(0, str::len);
    if length > LONGEST_PATTERN {
        return Err(format!("{place}.pattern has {length} bytes, more than {LONGEST_PATTERN}"));
    }
    // FixedLength divides a text into parts of this many characters.
    if fields.get("length").is_some_and(|length| length.as_u64() == Some(0)) {
        return Err(format!("{place}.length is 0"));
    }
    if fields.contains_key("single") {
        template(step)?;
    }
    Ok(())
}

/// What the counts in a regular expression add up to.
fn repeats(pattern: &str) -> u64 {
    let counts = pattern.split('{').skip(1).filter_map(|rest| Some(rest.split_once('}')?.0));
    let most = |count: &str| count.split(',').filter_map(|number| number.trim().parse::<u64>().ok()).max();
    counts.filter_map(most).fold(0, u64::saturating_add)
}

/// A template's special tokens are looked up when a text is framed, and its sequences are copied.
fn template(step: &Step) -> Result<(), String> {
    let Step { place, fields } = step;
    let known = fields.get("special_tokens").and_then(Value::as_object);
    for (name, most) in [("single", [1, 0]), ("pair", [1, 1])] {
        let pieces = fields.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let (mut sequences, mut special) = ([0; 2], 0);
        for (index, piece) in pieces.iter().enumerate() {
            let id = |kind: &str| piece.get(kind)?.get("id")?.as_str();
            if let Some(id) = id("Sequence") {
                sequences[usize::from(id != "A")] += 1;
            }
            let Some(id) = id("SpecialToken") else { continue };
            let Some(token) = known.and_then(|known| known.get(id)) else {
                return Err(format!("{place}.{name}[{index}] is {id:?}, which special_tokens has not"));
            };
            let count = |key: &str| token.get(key).and_then(Value::as_array).map_or(0, Vec::len);
            if count("ids") != count("tokens") {
                return Err(format!(
                    "{place}.special_tokens gives {id:?} as many ids as tokens: {} and {}",
                    count("ids"),
                    count("tokens")
                ));
            }
            special += count("ids");
        }
        if sequences.iter().zip(most).any(|(&found, most)| found > most) || special > MOST_SPECIAL {
            return Err(format!(
                "{place}.{name} has the first text {} times, the second {} times and {special} special tokens",
                sequences[0], sequences[1]
            ));
        }
    }
    Ok(())
}

/// Added tokens: they are normalised one by one and looked for all at once.
fn added<'a>(texts: impl Iterator<Item = &'a str>, growth: u64) -> Result<(), String> {
    let mut all = 0u64;
    for text in texts {
        if text.len() > LONGEST_TOKEN {
            let begins: String = text.chars().take(20).collect();
            return Err(format!("the added token {begins:?}… has {} bytes, more than {LONGEST_TOKEN}", text.len()));
        }
        all = all.saturating_add((text.len() as u64).saturating_mul(growth));
    }
    if all > ALL_TOKENS {
        return Err(format!("added tokens may have {all} bytes when they are normalised, more than {ALL_TOKENS}"));
    }
    Ok(())
}

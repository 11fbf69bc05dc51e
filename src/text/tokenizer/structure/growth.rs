//! How much longer a text may become on its way through normalisers, pre-tokenisers and decoders.

use std::collections::HashSet;

use super::{Step, charsmap};

/// How many bytes a byte may become in these steps at most, one after the other.
pub(super) fn growth(steps: &[Step]) -> Result<u64, String> {
    let mut total = 1u64;
    // Literal replacements in a row of which none finds what one before it has put in replace each byte once at most: of
    // such a row the largest counts, not the product.
    let (mut row, mut made) = (1u64, HashSet::new());
    for step in steps {
        match (step.pattern().0.filter(|pattern| !pattern.is_empty()), step.text("content")) {
            (Some(pattern), Some(content)) => {
                let factor = times(content, pattern.len());
                if pattern.chars().any(|c| made.contains(&c)) {
                    total = total.saturating_mul(row);
                    row = factor;
                    made.clear();
                }
                row = row.max(factor);
                made.extend(content.chars());
            }
            _ => {
                total = total.saturating_mul(row).saturating_mul(factor(step)?);
                row = 1;
                made.clear();
            }
        }
    }
    Ok(total.saturating_mul(row))
}

/// How many bytes a byte becomes where each `replaced` of them become `content`.
fn times(content: &str, replaced: usize) -> u64 {
    (content.len().div_ceil(replaced) as u64).max(1)
}

/// How many bytes a byte may become in a step of any kind but a literal replacement.
fn factor(step: &Step) -> Result<u64, String> {
    // Of Unicode's normal forms in UTF-8, and of lower case.
    let by_type = match step.text("type") {
        Some("NFC" | "NFD") => 3,
        Some("NFKC" | "NFKD") => 11,
        Some("Lowercase") => 3,
        // Every byte is a character of up to two bytes, and a space may be put in front of it.
        Some("ByteLevel") => 4,
        // Decoders: spaces between what was one.
        Some("WordPiece" | "BPEDecoder" | "CTC") => 2,
        _ => 1,
    };
    // Spaces around characters, accents apart, lower case.
    let bert = if step.fields.contains_key("handle_chinese_chars") { 2 * 3 * 3 } else { 1 };
    // Metaspace: it stands for a space, and in front of every word.
    let space = step.text("replacement").map_or(1, |space| space.len() as u64 + 1);
    // Between two added tokens there may be as little as one byte.
    let prepended = step.text("prepend").map_or(1, |text| text.len() as u64 + 1);
    let mapped = step.text("precompiled_charsmap").map_or(Ok(1), |map| {
        charsmap::growth(map).map_err(|fault| format!("{}.precompiled_charsmap {fault}", step.place))
    })?;
    let replaced = match (step.pattern(), step.text("content")) {
        ((None, None), _) | (_, None) => 1,
        ((_, Some(regex)), Some(content)) => match shortest(regex) {
            0 => content.len() as u64 + 1,
            bytes => times(content, bytes),
        },
        // Nothing is found between any two characters.
        ((Some(_), None), Some(content)) => content.len() as u64 + 1,
    };
    Ok([by_type, bert, space, prepended, mapped, replaced].into_iter().fold(1, u64::saturating_mul))
}

/// Bytes that a regular expression matches at least; 0 for one with extensions, of which this is not known.
fn shortest(regex: &str) -> usize {
    regex_syntax::parse(regex).ok().and_then(|parsed| parsed.properties().minimum_len()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::steps;
    use super::*;
    use serde_json::{Value, json};

    fn of(part: Value) -> u64 {
        growth(&steps("normalizer", &part).unwrap()).unwrap()
    }

    fn replace(kind: &str, pattern: &str, content: &str) -> Value {
        json!({"type": "Replace", "pattern": {kind: pattern}, "content": content})
    }

    fn sequence(steps: Vec<Value>) -> Value {
        json!({"type": "Sequence", "normalizers": steps})
    }

    #[test]
    fn growth_is_that_of_the_worst_text() {
        assert_eq!(of(Value::Null), 1);
        assert_eq!(of(replace("String", " ", "▁")), 3);
        assert_eq!(of(replace("String", "``", "\"")), 1);
        assert_eq!(of(replace("String", "", "ab")), 3);
        assert_eq!(of(replace("Regex", " {2,}", "▁▁")), 3);
        assert_eq!(of(replace("Regex", " *", "▁")), 4);
        assert_eq!(of(replace("Regex", "(?=a)", "▁")), 4);
        assert_eq!(of(json!({"type": "Prepend", "prepend": "▁"})), 4);
        assert_eq!(of(json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"})), 4);
        // Without a type, or with one that nobody knows, the keys decide.
        assert_eq!(of(json!({"type": "?", "pattern": {"String": "a"}, "content": "bcd"})), 3);
    }

    #[test]
    fn steps_that_feed_each_other_multiply() {
        let feeding = sequence(vec![replace("String", "a", "aa"); 5]);
        assert_eq!(of(feeding), 32);
        assert_eq!(of(sequence(vec![replace("String", "", "a"); 5])), 32);
        let apart = (0..26u8).map(|i| replace("String", &char::from(b'a' + i).to_string(), "吗吗")).collect();
        assert_eq!(of(sequence(apart)), 6);
        let broken = vec![replace("String", "a", "xy"), json!({"type": "NFC"}), replace("String", "b", "xy")];
        assert_eq!(of(sequence(broken)), 12);
        assert_eq!(of(sequence(vec![replace("String", "", "a"); 200])), u64::MAX);
    }
}

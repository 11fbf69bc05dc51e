//! From ids to text.

use super::failed;
use anyhow::{Context, Result};
use tokenizers::{Decoder, DecoderWrapper, Model, Tokenizer};

/// Stands for bytes that are no character, or not yet.
pub(super) const REPLACEMENT: &str = "\u{fffd}";
/// What `clean_up_tokenization_spaces` replaces, in this order.
const CLEANED: [(&str, &str); 10] = [
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
];

/// The text of ids. Bytes that stand for themselves become characters as far as they are any; the decoder alone would take
/// the characters beside a byte that is none for broken too, and a text could change behind what was read of it.
pub(super) fn decode(tokenizer: &Tokenizer, ids: &[u32]) -> Result<String> {
    let Some(decoder) = tokenizer.get_decoder().filter(|decoder| joins_bytes(decoder)) else {
        return tokenizer.decode(ids, false).map_err(failed).context("cannot decode token ids");
    };
    let (added, model) = (tokenizer.get_added_vocabulary(), tokenizer.get_model());
    let token = |&id: &u32| added.simple_id_to_token(id).or_else(|| model.id_to_token(id));
    let mut tokens: Vec<String> = ids.iter().filter_map(token).collect();
    for run in tokens.chunk_by_mut(|a, b| byte(a).is_some() && byte(b).is_some()) {
        let bytes: Vec<u8> = run.iter().filter_map(|token| byte(token)).collect();
        let mut at = 0;
        for chunk in bytes.utf8_chunks() {
            at += chunk.valid().len();
            for _ in chunk.invalid() {
                run[at] = REPLACEMENT.into();
                at += 1;
            }
        }
    }
    decoder.decode(tokens).map_err(failed).context("cannot decode token ids")
}

fn joins_bytes(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteFallback(_) => true,
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().any(joins_bytes),
        _ => false,
    }
}

/// The byte that a token such as `<0x0A>` stands for.
fn byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// Takes out the spaces that tokenisation put in front of punctuation and contractions.
pub(super) fn clean_up(text: &str) -> String {
    CLEANED.iter().fold(text.to_string(), |text, (from, to)| text.replace(from, to))
}

/// How much of a text no further ids can change: what may be the beginning of a character is not certain, nor, where the text
/// is cleaned up, what may be the beginning of something that is replaced.
pub(super) fn certain(text: &str, cleaned: bool) -> usize {
    let whole = text.trim_end_matches(REPLACEMENT);
    let begins = |end: &str| CLEANED.iter().any(|(from, _)| from.len() > end.len() && from.starts_with(end));
    let longest = CLEANED.iter().map(|(from, _)| from.len()).max().unwrap_or(0);
    let held = (1..longest).rev().filter_map(|count| whole.get(whole.len().checked_sub(count)?..));
    let held = held.filter(|_| cleaned).find(|end| begins(end)).map_or(0, str::len);
    whole.len() - held
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_change_is_not_certain() {
        for (text, cleaned, known) in [
            ("ab", true, "ab"),
            ("ab ", false, "ab "),
            ("ab ", true, "ab"),
            ("ab n'", true, "ab"),
            ("ab '", true, "ab"),
            ("ab '9", true, "ab '9"),
            ("ab\u{fffd}\u{fffd}", false, "ab"),
            ("\u{fffd}b", true, "\u{fffd}b"),
            ("吗 ", true, "吗"),
            ("", true, ""),
        ] {
            assert_eq!(&text[..certain(text, cleaned)], known, "{text:?}");
        }
    }

    #[test]
    fn spaces_are_cleaned_up_as_in_transformers() {
        let text = "He is n't here , is he ? I 'm . x ' y do not";
        assert_eq!(clean_up(text), "He isn't here, is he? I'm. x'y do not");
    }
}

//! What a model's vocabulary may be.

use serde_json::Value;

/// Bytes of a piece: each token that stands for it is a copy of it.
const LONGEST_PIECE: usize = 4 << 10;
/// Bytes of a piece of a Unigram model, which becomes a trie that is copied and dropped node by node, each on top of the
/// others' stack. SentencePiece makes pieces of up to 512 characters.
const LONGEST_UNIGRAM: usize = 1 << 10;
/// Bytes of all pieces of a Unigram model: each may be a node of the trie, of some hundred bytes.
const ALL_UNIGRAM: usize = 16 << 20;
/// Bytes of what is put around every piece or stands for every unknown one.
const LONGEST_AFFIX: usize = 256;

/// Checks the part `model` of a `tokenizer.json`.
pub(super) fn check(model: &Value) -> Result<(), String> {
    let Value::Object(fields) = model else { return Err("it has no model".into()) };
    for key in ["unk_token", "continuing_subword_prefix", "end_of_word_suffix"] {
        let length = fields.get(key).and_then(Value::as_str).map_or(0, str::len);
        if length > LONGEST_AFFIX {
            return Err(format!("model.{key} has {length} bytes, more than {LONGEST_AFFIX}"));
        }
    }
    let vocab = fields.get("vocab").unwrap_or(&Value::Null);
    match vocab {
        Value::Object(vocab) => vocab.keys().try_for_each(|piece| check_piece(piece)).map_err(in_vocab)?,
        Value::Array(pieces) => unigram(pieces, fields.get("unk_id"))?,
        _ => return Err("model.vocab is neither an object nor a list".into()),
    }
    let merging = !matches!(fields.get("type").and_then(Value::as_str), Some("WordPiece" | "WordLevel" | "Unigram"));
    let (Some(Value::Array(merges)), Value::Object(vocab), true) = (fields.get("merges"), vocab, merging) else {
        return Ok(());
    };
    let prefix = fields.get("continuing_subword_prefix").and_then(Value::as_str).unwrap_or_default();
    let mut whole = String::new();
    for (index, merge) in merges.iter().enumerate() {
        let fault = |fault: String| format!("model.merges[{index}] {fault}");
        // A comment of old files.
        if merge.as_str().is_some_and(|line| line.starts_with("#version")) {
            continue;
        }
        let (left, right) = pair(merge).map_err(fault)?;
        check_merge(|piece| vocab.contains_key(piece), (left, right), prefix, &mut whole).map_err(fault)?;
    }
    Ok(())
}

fn in_vocab(fault: String) -> String {
    format!("model.vocab {fault}")
}

/// Checks a piece's length.
pub(in super::super) fn check_piece(piece: &str) -> Result<(), String> {
    short(piece, LONGEST_PIECE)
}

fn short(piece: &str, most: usize) -> Result<(), String> {
    match piece.len() {
        length if length > most => {
            let begins: String = piece.chars().take(20).collect();
            Err(format!("has the piece {begins:?}… of {length} bytes, more than {most}"))
        }
        _ => Ok(()),
    }
}

/// Checks the pieces of a Unigram model, or of one of SentencePiece's, whose merges are found by trying all ways to divide
/// a piece.
pub(in super::super) fn check_unigram<'a>(pieces: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let mut all = 0;
    for piece in pieces {
        short(piece, LONGEST_UNIGRAM)?;
        all += piece.len();
    }
    if all > ALL_UNIGRAM {
        return Err(format!("has pieces of {all} bytes together, more than {ALL_UNIGRAM}"));
    }
    Ok(())
}

/// A Unigram model's pieces, each with its score.
fn unigram(pieces: &[Value], unknown: Option<&Value>) -> Result<(), String> {
    check_unigram(pieces.iter().filter_map(|piece| piece.get(0)?.as_str())).map_err(in_vocab)?;
    match unknown.and_then(Value::as_u64) {
        Some(id) if id >= pieces.len() as u64 => {
            Err(format!("model.unk_id is {id}, but model.vocab has {} pieces", pieces.len()))
        }
        _ => Ok(()),
    }
}

/// The two pieces of a merge, written as `"a b"` or as `["a", "b"]`.
fn pair(merge: &Value) -> Result<(&str, &str), String> {
    let pair = match merge {
        Value::String(line) => line.split_once(' ').filter(|(_, right)| !right.contains(' ')),
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(left), Value::String(right)] => Some((left.as_str(), right.as_str())),
            _ => None,
        },
        _ => None,
    };
    pair.ok_or_else(|| format!("is {}, not two pieces", shown(&merge.to_string())))
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Checks that a merge joins pieces to a piece. The library cuts `prefix` off the second one without looking, and copies
/// both into a buffer of the longest piece's size. `whole` is room for the result.
pub(in super::super) fn check_merge(
    has: impl Fn(&str) -> bool,
    (left, right): (&str, &str),
    prefix: &str,
    whole: &mut String,
) -> Result<(), String> {
    if let Some(missing) = [left, right].into_iter().find(|piece| !has(piece)) {
        return Err(format!(
            "joins {:?} and {:?}, but the vocabulary has no {:?}",
            shown(left),
            shown(right),
            shown(missing)
        ));
    }
    whole.clear();
    whole.push_str(left);
    match right.get(prefix.len()..) {
        Some(rest) => whole.push_str(rest),
        None => return Err(format!("has {:?}, which does not begin with the prefix {prefix:?}", shown(right))),
    }
    if !has(whole) {
        return Err(format!(
            "joins {:?} and {:?}, but the vocabulary has no {:?}",
            shown(left),
            shown(right),
            shown(whole)
        ));
    }
    Ok(())
}

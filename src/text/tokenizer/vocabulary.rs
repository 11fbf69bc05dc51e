//! Tokenizers from their vocabulary alone, as transformers makes them: `vocab.json` and `merges.txt`, `vocab.txt`,
//! `tokenizer.model`.

use super::SideFile;
use super::class::Class;
use super::failed;
use super::sentencepiece;
use super::settings::Settings;
use super::structure::{check_merge, check_piece};
use crate::user_bail;
use anyhow::{Context, Result};
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::normalizers::{BertNormalizer, NormalizerWrapper};
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::tokenizer::normalizer::SplitDelimiterBehavior;
use tokenizers::{Tokenizer, decoders};

const SAVE: &str = "write a tokenizer.json with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)";
/// Where Qwen2's tokenizer splits a text.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The tokenizer of a folder without `tokenizer.json`.
///
/// # Errors
/// A [`UserError`](crate::error::UserError) naming the class that cannot be made from the files that are there.
pub(super) fn build(label: &str, file: SideFile, settings: &Settings) -> Result<Tokenizer> {
    let (byte_level, words) = (file("vocab.json")?.zip(file("merges.txt")?), file("vocab.txt")?);
    let pieces = file("tokenizer.model")?;
    let class = settings.class;
    let made = match class {
        Class::Gpt2 | Class::GptNeoX | Class::Qwen2 => byte_level.map(|files| bpe(label, class, files, settings)),
        Class::Bert => words.map(|words| bert(label, &words, settings)),
        Class::Llama | Class::Gemma => pieces.map(|pieces| sentencepiece::build(label, class, &pieces, settings)),
        Class::Plain => None,
    };
    match made {
        Some(tokenizer) => tokenizer,
        None => Err(refuse(label, file, settings)?),
    }
}

/// Why there is no tokenizer.
fn refuse(label: &str, file: SideFile, settings: &Settings) -> Result<anyhow::Error> {
    for other in ["vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "tekken.json"] {
        if file(other)?.is_none() {
            continue;
        }
        match &settings.name {
            Some(class) => user_bail!(
                "{label} has a {other}, but no tokenizer.json, and its tokenizer class {class} cannot be made from that";
                "{SAVE}"
            ),
            None if settings.class == Class::Plain => {
                user_bail!("{label} has a {other}, but no tokenizer.json"; "{SAVE}")
            }
            None => user_bail!(
                "{label} has a {other}, but no tokenizer.json, and the tokenizer of its kind of model ({:?}) is not made \
                 from that", settings.class;
                "{SAVE}; or name another tokenizer_class in tokenizer_config.json"
            ),
        }
    }
    user_bail!(
        "{label} has no tokenizer";
        "put the tokenizer.json, or the vocab.json and merges.txt, of the model that it was made from beside its weights"
    )
}

/// Byte-level BPE.
fn bpe(label: &str, class: Class, (vocab, merges): (Vec<u8>, Vec<u8>), settings: &Settings) -> Result<Tokenizer> {
    let vocab = super::object(&vocab).map_err(|error| super::damaged(label, "vocab.json", error))?;
    if let Some(byte) = ByteLevel::alphabet().into_iter().find(|byte| !vocab.contains_key(&byte.to_string())) {
        user_bail!("the vocab.json of {label} is not a byte-level vocabulary: it lacks the piece {byte:?}"; "{SAVE}");
    }
    let mut ids = Vocab::default();
    for (piece, id) in vocab {
        let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else {
            user_bail!("{label}: vocab.json gives {piece:?} the id {id}"; "get the model's original vocab.json");
        };
        if let Err(fault) = check_piece(&piece) {
            user_bail!("{label}: vocab.json {fault}"; "get the model's original vocab.json");
        }
        ids.insert(piece, id);
    }
    let merges = String::from_utf8(merges).map_err(|error| super::damaged(label, "merges.txt", error))?;
    let lines = merges.lines().filter(|line| !line.trim().is_empty() && !line.starts_with("#version"));
    let (mut pairs, mut whole) = (Merges::new(), String::new());
    for line in lines {
        let Some((left, right)) = line.trim().split_once(' ') else {
            user_bail!("{label}: {line:?} in merges.txt is not a pair of pieces"; "get the model's original merges.txt");
        };
        if let Err(fault) = check_merge(|piece| ids.contains_key(piece), (left, right), "", &mut whole) {
            user_bail!(
                "the vocab.json and merges.txt of {label} do not fit: {line:?} {fault}";
                "get both files of the model that it was made from"
            );
        }
        pairs.push((left.to_string(), right.to_string()));
    }
    let model = BPE::builder()
        .vocab_and_merges(ids, pairs)
        .continuing_subword_prefix(String::new())
        .end_of_word_suffix(String::new())
        .build();
    let model = match model {
        Ok(model) => model,
        Err(error) => user_bail!(
            "the vocab.json and merges.txt of {label} do not fit: {error}";
            "get both files of the model that it was made from"
        ),
    };
    let mut tokenizer = Tokenizer::new(model);
    let prefix = settings.flag("add_prefix_space")?.unwrap_or(false);
    if class == Class::Qwen2 {
        let split = Split::new(SplitPattern::Regex(QWEN2.into()), SplitDelimiterBehavior::Isolated, false);
        let split = split.map_err(failed)?;
        let bytes = ByteLevel::new(prefix, true, false);
        tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![split.into(), bytes.into()])));
    } else {
        tokenizer.with_pre_tokenizer(Some(ByteLevel::new(prefix, true, true)));
    }
    if class != Class::Gpt2 {
        tokenizer.with_normalizer(Some(NFC)).map_err(failed)?;
    }
    tokenizer.with_decoder(Some(ByteLevel::default()));
    Ok(tokenizer)
}

/// WordPiece, framed by its special tokens.
fn bert(label: &str, words: &[u8], settings: &Settings) -> Result<Tokenizer> {
    let words = std::str::from_utf8(words).map_err(|error| super::damaged(label, "vocab.txt", error))?;
    let mut vocab = Vocab::default();
    for (id, word) in words.lines().enumerate() {
        if let Err(fault) = check_piece(word) {
            user_bail!("the vocab.txt of {label} {fault}"; "get the model's original vocab.txt");
        }
        vocab.insert(word.to_string(), id as u32);
    }
    let unknown = settings.special("unk").unwrap_or("[UNK]").to_string();
    let id = |name: &str| -> Result<(String, u32)> {
        let text = settings.special(name).or(Class::Bert.special(name)).unwrap_or_default();
        match vocab.get(text).copied().or_else(|| Some(settings.added.iter().find(|(_, t)| t.content == text)?.0)) {
            Some(id) => Ok((text.to_string(), id)),
            None => user_bail!("the vocab.txt of {label} has no {text:?}"; "get the model's original vocab.txt"),
        }
    };
    let (unk, cls, sep) = (id("unk")?, id("cls")?, id("sep")?);
    debug_assert_eq!(unk.0, unknown);
    let model = WordPiece::builder().vocab(vocab).unk_token(unknown).build().map_err(failed)?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_normalizer(Some(bert_normalizer(settings)?)).map_err(failed)?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    let frame = template(
        &[&cls.0, "$A:0", &sep.0],
        &[&cls.0, "$A:0", &sep.0, "$B:1", &format!("{}:1", sep.0)],
        vec![cls.clone(), sep.clone()],
    )?;
    tokenizer.with_post_processor(Some(frame));
    tokenizer.with_decoder(Some(decoders::wordpiece::WordPiece::new("##".into(), true)));
    Ok(tokenizer)
}

/// BERT's normalizer as the settings have it; its class lowers case unless they say otherwise.
pub(super) fn bert_normalizer(settings: &Settings) -> Result<NormalizerWrapper> {
    let lower = settings.flag("do_lower_case")?.unwrap_or(true);
    let chinese = settings.flag("tokenize_chinese_chars")?.unwrap_or(true);
    Ok(BertNormalizer::new(true, chinese, settings.flag("strip_accents")?, lower).into())
}

/// A post-processor that puts special tokens around a text and around two.
pub(super) fn template(single: &[&str], pair: &[&str], tokens: Vec<(String, u32)>) -> Result<TemplateProcessing> {
    let mut builder = TemplateProcessing::builder();
    builder
        .try_single(single.to_vec())
        .and_then(|builder| builder.try_pair(pair.to_vec()))
        .map_err(anyhow::Error::msg)?;
    builder.special_tokens(tokens);
    builder.build().context("cannot frame texts by their special tokens")
}

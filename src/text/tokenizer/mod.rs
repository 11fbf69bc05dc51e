//! A model's own tokenizer, from the files that lie beside its weights.
//!
//! `tokenizer.json` is read; without it the vocabulary makes the tokenizer by the rules of its class. What
//! `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json` say beside it acts as in transformers. Texts are
//! encoded without special tokens, without truncation, without padding and without chance, whatever those files ask for:
//! which ids a window begins with is the protocol's business, not the tokenizer's.

mod structure;
mod class;
mod settings;
mod sentencepiece;
mod vocabulary;
mod overrides;
mod decode;
mod pieces;

use anyhow::{Context, Result};
use serde_json::{Map, Value};
use tokenizers::normalizers::utils::{Lowercase, Sequence as Normalizers};
use tokenizers::{EncodeInput, Encoding, TruncationParams};

use self::class::Class;
use self::pieces::Pieces;
use self::settings::Settings;
use super::boundary;
use crate::checkpoint::SENTENCE_SETTINGS;
use crate::error::UserError;
use crate::user_bail;

/// What helps against files that are damaged.
const AGAIN: &str = "get the model's original tokenizer files, or save them again with a recent version of transformers: \
                     AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)";

/// Reads a side file of a model by name: `None` if the model has no such file.
pub type SideFile<'a> = &'a dyn Fn(&str) -> Result<Option<Vec<u8>>>;

/// Text to token ids and back.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: Option<u32>,
    eos: Option<u32>,
    frame: Option<(u32, u32)>,
    mask: Option<u32>,
    /// Whether the settings ask for BOS in front of every text.
    adds_bos: bool,
    /// Whether decoded text is rid of spaces in front of punctuation.
    cleans_up: bool,
    vocab_size: usize,
    /// How long texts are taken apart.
    pieces: Pieces,
}

/// A text or a pair of texts as an encoder takes it: special tokens in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Token ids.
    pub ids: Vec<u32>,
    /// 0 in the first text, 1 in the second, as far as the tokenizer tells them apart.
    pub types: Vec<u32>,
}

/// Makes [`Sequence`]s of at most some length.
pub struct Encoder(tokenizers::Tokenizer, Pieces);

impl Encoder {
    /// Of a text, or of a pair: the longer one loses tokens at its end until both fit.
    pub fn encode(&self, first: &str, second: Option<&str>) -> Result<Sequence> {
        [Some(first), second].into_iter().flatten().try_for_each(|text| self.1.check(text))?;
        let input = match second {
            Some(second) => EncodeInput::from((first, second)),
            None => EncodeInput::from(first),
        };
        let encoding = encode(&self.0, input, true)?;
        Ok(Sequence { ids: encoding.get_ids().to_vec(), types: encoding.get_type_ids().to_vec() })
    }
}

impl Tokenizer {
    /// Loads the tokenizer of the model called `label` in error messages. `config` is the model's `config.json`; its
    /// `bos_token_id` and `eos_token_id` count where `tokenizer_config.json` names no such token.
    ///
    /// # Errors
    /// A [`UserError`](crate::error::UserError) if the model has no tokenizer that can be read.
    pub fn load(label: &str, file: SideFile, config: &Map<String, Value>) -> Result<Self> {
        let definition = file("tokenizer.json")?;
        let settings = Settings::read(label, file, config, definition.is_some())?;
        if let Some(definition) = &definition {
            structure::check(label, definition)?;
        }
        let lower = lowers_case(label, file)?;
        let inner = guarded(&format!("the tokenizer of {label} cannot be read"), || {
            let mut inner = match &definition {
                None => vocabulary::build(label, file, &settings)?,
                Some(definition) => match tokenizers::Tokenizer::from_bytes(definition) {
                    Ok(inner) => inner,
                    Err(error) => user_bail!("the tokenizer of {label} cannot be read: {error}"; "{AGAIN}"),
                },
            };
            overrides::apply(label, &mut inner, &settings, definition.is_some())?;
            if lower {
                let mut normalizers = vec![Lowercase.into()];
                normalizers.extend(inner.get_normalizer().cloned());
                inner.with_normalizer(Some(Normalizers::new(normalizers))).map_err(failed)?;
            }
            Ok(inner)
        })?;
        let special = |name: &str| {
            let id = settings.special(name).and_then(|text| inner.token_to_id(text));
            id.or_else(|| configured_id(config, &format!("{name}_token_id")))
        };
        let (bos, eos) = (special("bos"), special("eos"));
        let (frame, mask) = (special("cls").zip(special("sep")), special("mask"));
        let vocab_size = inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
        // Some classes of transformers do not listen to this setting; whoever wrote it wants it to act.
        let adds_bos = settings.flag("add_bos_token")?.unwrap_or(false);
        // (5.x cleans up after WordPiece alone.)
        let words = definition.is_none() && settings.class == Class::Bert;
        let cleans_up = settings.flag("clean_up_tokenization_spaces")?.unwrap_or(words);
        let pieces = Pieces::new(&inner, structure::growth_of(&inner)?);
        Ok(Self { inner, bos, eos, frame, mask, adds_bos, cleans_up, vocab_size, pieces })
    }

    /// The ids of a text as a whole, no special tokens added. Special tokens spelt out in the text become their ids.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_some(text, usize::MAX)
    }

    /// The ids of a text, of which the first `enough` are wanted: there may be more, and fewer if it has no more.
    pub fn encode_some(&self, text: &str, enough: usize) -> Result<Vec<u32>> {
        pieces::encode(&self.inner, text, enough, &self.pieces)
    }

    /// [`Self::encode`] in pieces of about `size` bytes that overlap by `2 * reach`, to show that these do not matter.
    #[doc(hidden)]
    pub fn encode_in_pieces(&self, text: &str, size: usize, reach: usize) -> Result<Vec<u32>> {
        pieces::encode(&self.inner, text, usize::MAX, &self.pieces.small(&self.inner, size, reach))
    }

    /// The ids of a text to be continued: begun as the tokenizer's files say, and with BOS where there is nothing else.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        self.pieces.check(text)?;
        let mut ids = encode(&self.inner, text, true)?.get_ids().to_vec();
        let Some(bos) = self.bos else { return Ok(ids) };
        if ids.is_empty() || self.adds_bos && ids[0] != bos {
            ids.insert(0, bos);
        }
        // Spelt out in a text that gets one anyway.
        if ids.starts_with(&[bos, bos]) {
            ids.remove(0);
        }
        Ok(ids)
    }

    /// The text of ids, special tokens included.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let text = guarded("cannot decode token ids", || decode::decode(&self.inner, ids))?;
        Ok(if self.cleans_up { decode::clean_up(&text) } else { text })
    }

    /// How many bytes of decoded text no further ids can change.
    pub(super) fn certain(&self, text: &str) -> usize {
        decode::certain(text, self.cleans_up)
    }

    /// Whether an id is a special token, such as BOS.
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        added.get(&id).is_some_and(|token| token.special)
    }

    /// The id that begins a text, if the model has one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The id that ends a text, if the model has one. Of several the first.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The ids that stand in front of and behind a text in an encoder, if it is the tokenizer of one.
    pub fn frame(&self) -> Option<(u32, u32)> {
        self.frame
    }

    /// The id that stands in for a token that is to be guessed, if the model has one.
    pub fn mask(&self) -> Option<u32> {
        self.mask
    }

    /// Makes sequences of at most `length` tokens, special tokens included, as the model was trained to take them.
    ///
    /// # Errors
    /// If so few tokens leave no room for text.
    pub fn encoder(&self, length: usize) -> Result<Encoder> {
        let mut inner = self.inner.clone();
        let truncation = TruncationParams { max_length: length, ..TruncationParams::default() };
        let framed = encode(&inner, ("", ""), true)?.len();
        if length <= framed || inner.with_truncation(Some(truncation)).is_err() {
            user_bail!("a length of {length} tokens leaves no room for text"; "use --max-length {} or more", framed + 1);
        }
        Ok(Encoder(inner, self.pieces))
    }

    /// One more than the largest id this tokenizer can produce: an embedding with fewer rows does not fit it.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }
}

/// Tokenises a text or a pair as a whole. (The fast variant leaves out the offsets into the text, nothing else.)
fn encode<'t>(inner: &tokenizers::Tokenizer, input: impl Into<EncodeInput<'t>>, framed: bool) -> Result<Encoding> {
    guarded("cannot tokenise", || inner.encode_fast(input, framed).map_err(failed).context("cannot tokenise"))
}

/// Calls into the tokenizers library: it fails on some of what a tokenizer's files may say.
fn guarded<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    boundary::guarded(what, AGAIN, work)
}

/// An error of that library.
fn failed(error: tokenizers::Error) -> anyhow::Error {
    anyhow::anyhow!(error)
}

fn object(bytes: &[u8]) -> Result<Map<String, Value>> {
    Ok(serde_json::from_slice(bytes)?)
}

/// A file of the model `label` that is not what its name says.
fn damaged(label: &str, name: &str, error: impl std::fmt::Display) -> anyhow::Error {
    UserError::new(format!("{label}: {name} is damaged: {error}"))
        .hint(format!("get the model's original {name}"))
        .into()
}

/// An id of `config.json`, which may be a number, a list of numbers, or null.
fn configured_id(config: &Map<String, Value>, key: &str) -> Option<u32> {
    let value = config.get(key)?;
    let value = value.as_array().map_or(Some(value), |list| list.first())?;
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// Whether sentence-transformers lowers the case of texts before they are tokenised.
fn lowers_case(label: &str, file: SideFile) -> Result<bool> {
    for name in SENTENCE_SETTINGS {
        let Some(bytes) = file(name)? else { continue };
        let settings = object(&bytes).map_err(|error| damaged(label, name, error))?;
        return Ok(settings.get("do_lower_case").and_then(Value::as_bool).unwrap_or(false));
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::json;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    use super::*;

    /// A byte-level vocabulary with two merges: `t h` and `th e`.
    fn small_gpt2() -> HashMap<&'static str, Vec<u8>> {
        let mut pieces: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
        pieces.sort_unstable();
        pieces.extend(["th", "the", "<|endoftext|>"].map(String::from));
        let vocab: Map<String, Value> = pieces.into_iter().enumerate().map(|(id, piece)| (piece, json!(id))).collect();
        HashMap::from([
            ("vocab.json", serde_json::to_vec(&vocab).unwrap()),
            ("merges.txt", b"#version: 0.2\nt h\nth e\n".to_vec()),
        ])
    }

    fn load(files: &HashMap<&'static str, Vec<u8>>, config: Value) -> Result<Tokenizer> {
        Tokenizer::load("some-model", &|name| Ok(files.get(name).cloned()), config.as_object().unwrap())
    }

    fn demo() -> HashMap<&'static str, Vec<u8>> {
        HashMap::from([
            ("tokenizer.json", include_bytes!("../../demo/tokenizer.json").to_vec()),
            ("tokenizer_config.json", include_bytes!("../../demo/tokenizer_config.json").to_vec()),
        ])
    }

    #[test]
    fn vocabulary_and_merges_make_a_byte_level_bpe() {
        let tokenizer = load(&small_gpt2(), json!({"bos_token_id": 258, "eos_token_id": [258, 7]})).unwrap();
        let ids = tokenizer.encode("the thé<|endoftext|>the").unwrap();
        assert_eq!(ids.len(), 7, "{ids:?}");
        assert_eq!((ids[0], ids[2], ids[5], ids[6]), (257, 256, 258, 257));
        assert_eq!(tokenizer.decode(&ids).unwrap(), "the thé<|endoftext|>the");
        assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.vocab_size()), (Some(258), Some(258), 259));
    }

    #[test]
    fn begin_and_end_are_found_wherever_they_are_named() {
        let tokenizer = load(&demo(), json!({})).unwrap();
        assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.vocab_size()), (Some(0), Some(1), 1024));

        let mut files = demo();
        let settings = json!({"bos_token": {"content": "</s>", "special": true}, "eos_token": null});
        files.insert("tokenizer_config.json", settings.to_string().into_bytes());
        let tokenizer = load(&files, json!({"eos_token_id": 5, "bos_token_id": 9})).unwrap();
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(5)));

        files.remove("tokenizer_config.json");
        let tokenizer = load(&files, json!({"eos_token_id": [], "bos_token_id": null})).unwrap();
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (None, None));
    }

    #[test]
    fn a_prompt_begins_as_the_files_say() {
        let mut files = demo();
        let plain = load(&files, json!({})).unwrap();
        let ids = plain.encode("One two").unwrap();
        assert_eq!(plain.encode_prompt("One two").unwrap(), ids);
        assert_eq!(plain.encode_prompt("").unwrap(), [0]);
        let begun = [&[0], &ids[..]].concat();
        assert_eq!(plain.encode_prompt("<s>One two").unwrap(), begun);

        let mut settings: Value = serde_json::from_slice(&files["tokenizer_config.json"]).unwrap();
        settings["add_bos_token"] = json!(true);
        files.insert("tokenizer_config.json", settings.to_string().into_bytes());
        let asks = load(&files, json!({})).unwrap();
        assert_eq!(asks.encode_prompt("One two").unwrap(), begun);
        assert_eq!(asks.encode_prompt("<s>One two").unwrap(), begun);

        let mut definition: Value = serde_json::from_slice(&files["tokenizer.json"]).unwrap();
        definition["post_processor"] = json!({"type": "TemplateProcessing", "pair": [],
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}});
        files.insert("tokenizer.json", serde_json::to_vec(&definition).unwrap());
        let both = load(&files, json!({})).unwrap();
        assert_eq!(both.encode_prompt("One two").unwrap(), begun);
        assert_eq!(both.encode_prompt("<s>One two").unwrap(), begun);
        assert_eq!(both.encode("One two").unwrap(), ids);

        // GPT-2's class has a token that begins a text, but puts it in front of none.
        let byte_level = load(&small_gpt2(), json!({})).unwrap();
        assert_eq!(
            (byte_level.encode_prompt("").unwrap(), byte_level.encode_prompt("the").unwrap()),
            (vec![258], vec![257])
        );
        let mut nameless = demo();
        nameless.remove("tokenizer_config.json");
        assert!(load(&nameless, json!({})).unwrap().encode_prompt("").unwrap().is_empty());
    }

    #[test]
    fn nothing_is_added_truncated_or_padded() {
        let mut files = demo();
        let mut definition: Value = serde_json::from_slice(&files["tokenizer.json"]).unwrap();
        let plain = load(&files, json!({})).unwrap().encode("One two three four five six.").unwrap();
        definition["truncation"] =
            json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
        definition["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"});
        files.insert("tokenizer.json", serde_json::to_vec(&definition).unwrap());
        let tokenizer = load(&files, json!({})).unwrap();
        assert_eq!(tokenizer.encode("One two three four five six.").unwrap(), plain);
        assert!(plain.len() > 4 && plain.len() < 64 && !plain.contains(&0));
        assert!(tokenizer.encode("").unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_a_tokenizer_is_said() {
        let message = |files: &HashMap<&'static str, Vec<u8>>| {
            let error = load(files, json!({})).err().expect("no tokenizer");
            let user = error.downcast_ref::<UserError>().expect("a user error");
            format!("{user} / {}", user.hint_text().expect("a hint"))
        };
        assert!(message(&HashMap::new()).contains("some-model has no tokenizer"));
        let sentencepiece = HashMap::from([("tokenizer.model", vec![1, 2, 3])]);
        assert!(
            message(&sentencepiece).contains("tokenizer.model") && message(&sentencepiece).contains("save_pretrained")
        );
        let mut lone = small_gpt2();
        lone.remove("merges.txt");
        assert!(message(&lone).contains("vocab.json"));
        let damaged = HashMap::from([("tokenizer.json", b"{\"model\": 3}".to_vec())]);
        assert!(message(&damaged).contains("cannot be read"));
        let mut words = small_gpt2();
        words.insert("vocab.json", br#"{"hello</w>": 0}"#.to_vec());
        assert!(message(&words).contains("not a byte-level"));
    }
}

//! SentencePiece's `tokenizer.model`, as transformers converts it for the classes of Llama and Gemma.

use super::class::Class;
use super::failed;
use super::settings::Settings;
use super::structure::check_unigram;
use crate::user_bail;
use anyhow::Result;
use std::collections::HashSet;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::utils::Sequence as Normalizers;
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Replace};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::normalizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, ModelWrapper, Tokenizer};

/// Stands for a space.
const SPACE: &str = "▁";

/// Kinds of pieces, by their numbers in the file.
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
/// Kinds of models.
const UNIGRAM: u64 = 1;
const PAIRS: u64 = 2;

/// The tokenizer that a `tokenizer.model` holds.
pub(super) fn build(label: &str, class: Class, bytes: &[u8], settings: &Settings) -> Result<Tokenizer> {
    let Some(file) = File::read(bytes) else {
        user_bail!("the tokenizer.model of {label} is not one of SentencePiece"; "download or copy it again");
    };
    let mut tokenizer = Tokenizer::new(model(label, class, &file, settings)?);
    rules(&mut tokenizer, class, settings)?;
    let special = |piece: &Piece| {
        piece.kind == CONTROL || class == Class::Gemma && ["<start_of_turn>", "<end_of_turn>"].contains(&&*piece.text)
    };
    let added = file.pieces.iter().filter(|piece| [CONTROL, USER_DEFINED].contains(&piece.kind));
    let added = added.map(|piece| AddedToken::from(&*piece.text, special(piece)).normalized(false));
    tokenizer.add_tokens(added.collect::<Vec<_>>()).map_err(failed)?;
    Ok(tokenizer)
}

fn model(label: &str, class: Class, file: &File, settings: &Settings) -> Result<ModelWrapper> {
    let mut scored: Vec<(String, f64)> = file.pieces.iter().map(|piece| (piece.text.clone(), piece.score)).collect();
    if class == Class::Gemma {
        for (id, name) in ["pad", "eos", "bos"].into_iter().enumerate() {
            if let (Some(piece), Some(text)) = (scored.get_mut(id), settings.special(name)) {
                *piece = (text.to_string(), 0.0);
            }
        }
        // The byte of a tab is the tab itself.
        if !scored.iter().any(|(text, _)| text == "\t")
            && let Some(tab) = scored.iter_mut().find(|(text, _)| text == "<0x09>")
        {
            *tab = ("\t".into(), 0.0);
        }
    }
    if let Err(fault) = check_unigram(scored.iter().map(|(text, _)| text.as_str())) {
        user_bail!("the tokenizer.model of {label} {fault}"; "download or copy it again");
    }
    match file.model_type {
        UNIGRAM => {
            let unknown = if class == Class::Gemma { 3 } else { 0 };
            let model = Unigram::from(scored, Some(unknown), true).map_err(failed)?;
            Ok(model.into())
        }
        PAIRS => {
            let vocab: Vocab = scored.iter().enumerate().map(|(id, (text, _))| (text.clone(), id as u32)).collect();
            let merges = merges(&vocab, &scored);
            let model = BPE::builder()
                .vocab_and_merges(vocab, merges)
                .unk_token(file.unknown.clone())
                .fuse_unk(true)
                .byte_fallback(true)
                .build();
            Ok(model.map_err(failed)?.into())
        }
        other => user_bail!(
            "the tokenizer.model of {label} is of type {other}, neither Unigram (1) nor BPE (2)";
            "write a tokenizer.json with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        ),
    }
}

/// Which pieces merge, in order: SentencePiece merges whichever pair makes the piece of the best score.
fn merges(vocab: &Vocab, scored: &[(String, f64)]) -> Merges {
    let mut found: Vec<(f64, usize, usize, &str, &str)> = Vec::new();
    let mut seen = HashSet::new();
    for (piece, score) in scored.iter().filter(|(piece, _)| seen.insert(piece)) {
        let first = found.len();
        for (index, (at, _)) in piece.char_indices().enumerate().skip(1) {
            let (left, right) = piece.split_at(at);
            if vocab.contains_key(left) && vocab.contains_key(right) {
                found.push((*score, index, piece.chars().count() - index, left, right));
            }
        }
        found[first..].sort_by_key(|(_, _, _, left, right)| (vocab[*left], vocab[*right]));
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then((b.1, b.2).cmp(&(a.1, a.2))));
    found.into_iter().map(|(_, _, _, left, right)| (left.to_string(), right.to_string())).collect()
}

/// Normalizer, pre-tokenizer and decoder of the class: how spaces become pieces and back.
pub(super) fn rules(tokenizer: &mut Tokenizer, class: Class, settings: &Settings) -> Result<()> {
    let prefix = settings.flag("add_prefix_space")?.unwrap_or(class == Class::Llama);
    let legacy = settings.flag("legacy")?.unwrap_or(true);
    let replace = |pattern: &str, content: &str| Replace::new(pattern, content).map_err(failed);
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    let mut strip = false;
    if class == Class::Gemma {
        normalizers.push(replace(" ", SPACE)?.into());
        let split = Split::new(SplitPattern::String(" ".into()), SplitDelimiterBehavior::MergedWithPrevious, false);
        tokenizer.with_pre_tokenizer(Some(split.map_err(failed)?));
    } else {
        strip = prefix;
        if legacy {
            if prefix {
                normalizers.push(Prepend::new(SPACE.into()).into());
            }
            normalizers.push(replace(" ", SPACE)?.into());
            tokenizer.with_pre_tokenizer(None::<Metaspace>);
        } else {
            let scheme = if prefix { PrependScheme::First } else { PrependScheme::Never };
            tokenizer.with_pre_tokenizer(Some(Metaspace::new('▁', scheme, false)));
        }
    }
    let normalizers = (!normalizers.is_empty()).then(|| Normalizers::new(normalizers));
    tokenizer.with_normalizer(normalizers).map_err(failed)?;
    let mut decoders = vec![replace(SPACE, " ")?.into(), ByteFallback::new().into(), Fuse::new().into()];
    if strip {
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    tokenizer.with_decoder(Some(Decoders::new(decoders)));
    Ok(())
}

/// What is read of the file.
struct File {
    pieces: Vec<Piece>,
    model_type: u64,
    unknown: String,
}

struct Piece {
    text: String,
    score: f64,
    kind: u64,
}

impl File {
    /// Of a `ModelProto`: its pieces, and of its trainer's settings the type of the model and the unknown piece. `None` if it
    /// is none.
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut file = Self { pieces: Vec::new(), model_type: UNIGRAM, unknown: "<unk>".into() };
        for field in Fields(bytes) {
            match field? {
                (1, Field::Bytes(piece)) => file.pieces.push(Piece::read(piece)?),
                (2, Field::Bytes(trainer)) => {
                    for field in Fields(trainer) {
                        match field? {
                            (3, Field::Number(kind)) => file.model_type = kind,
                            (45, Field::Bytes(text)) => file.unknown = std::str::from_utf8(text).ok()?.into(),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        (!file.pieces.is_empty()).then_some(file)
    }
}

impl Piece {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut piece = Self { text: String::new(), score: 0.0, kind: 1 };
        for field in Fields(bytes) {
            match field? {
                (1, Field::Bytes(text)) => piece.text = std::str::from_utf8(text).ok()?.into(),
                (2, Field::Word(score)) => piece.score = f64::from(f32::from_bits(score)),
                (3, Field::Number(kind)) => piece.kind = kind,
                _ => {}
            }
        }
        Some(piece)
    }
}

/// The fields of a protocol buffer, by their numbers. `None` where it is damaged.
struct Fields<'a>(&'a [u8]);

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Word(u32),
}

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let key = self.number()?;
        let value = match key & 7 {
            0 => Field::Number(self.number()?),
            1 => Field::Bytes(self.take(8)?),
            2 => {
                let length = usize::try_from(self.number()?).ok()?;
                Field::Bytes(self.take(length)?)
            }
            5 => Field::Word(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((key >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u64, Field<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

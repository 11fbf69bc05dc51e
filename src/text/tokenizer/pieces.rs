//! Long texts are tokenised in pieces, and only ids are kept: the tokenizers library needs more than a hundred bytes of
//! memory for each byte of a text that it is given.
//!
//! The ids are those of the whole text. How a text is taken apart nobody knows beforehand: a normaliser may act on its
//! beginning alone, a pre-tokeniser may look ahead, a model may have no pre-tokeniser at all. So two pieces that follow each
//! other overlap, and they are joined in a stretch in the middle of the overlap where both have the same tokens at the same
//! places, although the one knows nothing of what is behind and the other nothing of what is in front. Where they differ,
//! more context is tried, in another place, and at last the whole text.

use anyhow::{Context, Result};
use tokenizers::{ModelWrapper, Tokenizer};

use super::{failed, guarded};
use crate::user_bail;

/// Bytes of a piece where the text does not grow on its way: large enough that overlaps cost little, small enough for a
/// processor's cache to be of use.
const PIECE: usize = 256 << 10;
/// Bytes from the middle of an overlap to its ends: half of them is compared, the other half is context for that.
const REACH: usize = 4 << 10;
/// Bytes that a piece may have after it was normalised.
const NORMALISED: u64 = 16 << 20;
/// Bytes that a text may have after it was normalised which cannot be taken apart.
const UNDIVIDED: u64 = 256 << 20;
/// Bytes of the longest such text.
const LONGEST: u64 = 64 << 20;
/// Tokens that two pieces must have in common.
const COMMON: usize = 8;

/// How texts are taken apart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pieces {
    /// Bytes of a piece without what it shares with its neighbours.
    size: usize,
    /// Bytes from the middle of an overlap to its ends.
    reach: usize,
    /// Bytes of a text that is tokenised as a whole, at most.
    longest: usize,
}

impl Pieces {
    /// For a tokenizer in which a byte becomes `growth` bytes at most.
    pub fn new(tokenizer: &Tokenizer, growth: u64) -> Self {
        let growth = growth.max(1);
        let longest = (UNDIVIDED / growth).min(LONGEST) as usize;
        Self::of_size(tokenizer, (NORMALISED / growth) as usize, REACH, longest)
    }

    /// With pieces of about `size` bytes that overlap by `2 * reach`.
    fn of_size(tokenizer: &Tokenizer, size: usize, reach: usize, longest: usize) -> Self {
        // A word of WordPiece is one unknown token if it is too long, and a cut must not make it shorter.
        let word = match tokenizer.get_model() {
            ModelWrapper::WordPiece(model) => model.max_input_chars_per_word.saturating_mul(4),
            _ => 0,
        };
        let reach = reach.max(word.saturating_mul(2));
        Self { size: size.min(PIECE).max(reach.saturating_mul(4)), reach, longest }
    }

    /// The same with sizes that are not efficient, for tests.
    pub fn small(self, tokenizer: &Tokenizer, size: usize, reach: usize) -> Self {
        Self::of_size(tokenizer, size, reach, self.longest)
    }

    /// Refuses a text that has to be tokenised as a whole and is longer than any memory is for.
    pub fn check(&self, text: &str) -> Result<()> {
        if text.len() > self.longest {
            user_bail!(
                "a text of {} bytes is too long to be tokenised as a whole, which takes more than a hundred bytes of memory \
                 for each", text.len();
                "give at most {} bytes", self.longest
            );
        }
        Ok(())
    }
}

/// The ids of a text, or at least the first `enough` of them. No special tokens are added.
pub(super) fn encode(tokenizer: &Tokenizer, text: &str, enough: usize, pieces: &Pieces) -> Result<Vec<u32>> {
    let Pieces { size, reach, .. } = *pieces;
    if text.len() <= size.saturating_mul(2) {
        return whole(tokenizer, text);
    }
    let mut ids = Vec::new();
    // A piece, and how many of its tokens belong to those before it.
    let mut left = Piece::read(tokenizer, text, 0, size + reach)?;
    let mut known = 0;
    while left.end < text.len() && ids.len() < enough {
        let mut reach = reach;
        loop {
            let cut = left.end - reach;
            // (What fails at this beginning may not at another. If it does, it does below.)
            if let Ok(right) = Piece::read(tokenizer, text, cut - reach, cut + size + reach)
                && let Some((last, first)) = agree(&left, &right, cut, reach)
                && last >= known
            {
                ids.extend(left.tokens[known..last].iter().map(|token| token.id));
                (left, known) = (right, first);
                break;
            }
            let length = 2 * (left.end - left.start);
            if length > pieces.longest {
                user_bail!(
                    "the text cannot be tokenised in parts: in the {} bytes from byte {} on the tokens of a part depend on all \
                     of it", left.end - left.start, left.start;
                    "give a text with spaces or lines in it"
                );
            }
            let longer = Piece::read(tokenizer, text, left.start, left.start + length)?;
            let settled = known.saturating_sub(COMMON)..known;
            if longer.tokens.get(settled.clone()) != left.tokens.get(settled) {
                // What is behind has changed what was settled.
                pieces.check(text)?;
                return whole(tokenizer, text);
            }
            left = longer;
            reach = (4 * reach).min(length / 8);
            if left.end == text.len() {
                break;
            }
        }
    }
    ids.extend(left.tokens[known..].iter().map(|token| token.id));
    Ok(ids)
}

fn whole(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    Ok(super::encode(tokenizer, text, false)?.get_ids().to_vec())
}

/// A token and where it is in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Token {
    id: u32,
    start: usize,
    end: usize,
}

/// The tokens of a part of the text.
struct Piece {
    start: usize,
    end: usize,
    tokens: Vec<Token>,
}

impl Piece {
    /// Of the bytes from `start` to `end`, or a little more, since characters stay whole.
    fn read(tokenizer: &Tokenizer, text: &str, start: usize, end: usize) -> Result<Self> {
        let start = (0..=start).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        let end = (end..text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len());
        let encoding = guarded("cannot tokenise", || {
            tokenizer.encode(&text[start..end], false).map_err(failed).context("cannot tokenise")
        })?;
        let places = encoding.get_ids().iter().zip(encoding.get_offsets());
        let token = |(&id, &(from, to)): (&u32, &(usize, usize))| Token { id, start: start + from, end: start + to };
        Ok(Self { start, end, tokens: places.map(token).collect() })
    }

    /// The tokens that lie between two places.
    fn between(&self, from: usize, to: usize) -> std::ops::Range<usize> {
        let first = self.tokens.partition_point(|token| token.start < from);
        first..self.tokens.partition_point(|token| token.end <= to).max(first)
    }
}

/// Where two pieces can be joined: how many tokens of the left one come before, and of the right one. All tokens around
/// `cut` must be the same in both, as far as both have as much context again on either side.
fn agree(left: &Piece, right: &Piece, cut: usize, reach: usize) -> Option<(usize, usize)> {
    let (from, to) = (cut - reach / 2, cut + reach / 2);
    let (ours, theirs) = (left.between(from, to), right.between(from, to));
    let same = left.tokens[ours.clone()] == right.tokens[theirs.clone()];
    let half = ours.len() / 2;
    (same && ours.len() >= COMMON).then_some((ours.start + half, theirs.start + half))
}

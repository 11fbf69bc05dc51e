//! Ids that become text one by one.
//!
//! The text of new ids is that of all ids without that of the ids in front of them, because what an id means depends on its
//! neighbours: the first word of a text loses its space, bytes become characters together. It is handed out as soon as nothing
//! that follows can change it.

use super::Tokenizer;
use anyhow::Result;

/// Ids in front of the new ones that are decoded with them.
const CONTEXT: usize = 8;

/// The text of ids that follow a prompt.
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    /// Those of the prompt that are text, and the new ones.
    ids: Vec<u32>,
    /// Ids from here on are decoded.
    from: usize,
    /// Ids up to here are the text `before`.
    known: usize,
    before: String,
    /// Bytes behind `before` that were handed out.
    handed: usize,
}

impl<'t> TextStream<'t> {
    /// Begins behind `prompt`, whose special tokens are no text.
    pub fn new(tokenizer: &'t Tokenizer, prompt: &[u32]) -> Result<Self> {
        let ids: Vec<u32> = prompt.iter().copied().filter(|&id| !tokenizer.is_special(id)).collect();
        let (from, known) = (ids.len().saturating_sub(CONTEXT), ids.len());
        let before = tokenizer.decode(&ids[from..])?;
        Ok(Self { tokenizer, ids, from, known, before, handed: 0 })
    }

    /// Adds an id; the text that is certain now.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids[self.from..])?;
        let certain = self.tokenizer.certain(&text);
        let new = self.hand_out(&text[..certain]);
        if certain == text.len() {
            (self.from, self.known) = (self.known, self.ids.len());
            (self.before, self.handed) = (self.tokenizer.decode(&self.ids[self.from..])?, 0);
        }
        Ok(new)
    }

    /// What was held back.
    pub fn finish(&mut self) -> Result<String> {
        let text = self.tokenizer.decode(&self.ids[self.from..])?;
        Ok(self.hand_out(&text))
    }

    /// What of `text` is new. A character that began in front belongs to the new text as a whole.
    fn hand_out(&mut self, text: &str) -> String {
        let same = self.before.chars().zip(text.chars()).take_while(|(a, b)| a == b);
        let start = same.map(|(c, _)| c.len_utf8()).sum::<usize>() + self.handed;
        let new = text.get(start..).unwrap_or_default();
        self.handed += new.len();
        new.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Map, Value, json};

    /// A tokenizer of these pieces, in the order of their ids, with this decoder. The first is a special token.
    fn tokenizer(pieces: &[&str], decoder: Value, settings: Value) -> Tokenizer {
        let vocab: Map<String, Value> =
            pieces.iter().enumerate().map(|(id, piece)| (piece.to_string(), json!(id))).collect();
        let definition = json!({"version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "added_tokens": [{"id": 0, "content": pieces[0], "single_word": false, "lstrip": false, "rstrip": false,
                              "normalized": false, "special": true}],
            "pre_tokenizer": null, "post_processor": null, "decoder": decoder,
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": pieces[0]}});
        let file = |name: &str| {
            Ok(match name {
                "tokenizer.json" => Some(definition.to_string().into_bytes()),
                "tokenizer_config.json" => Some(settings.to_string().into_bytes()),
                _ => None,
            })
        };
        Tokenizer::load("test", &file, &Map::new()).unwrap()
    }

    fn llama() -> Tokenizer {
        let decoder = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        tokenizer(&["<s>", "<0xE5>", "<0x90>", "<0x97>", "▁a", "b", "▁", "<0x41>"], decoder, json!({}))
    }

    /// Pieces as they come, and what is held back at the end.
    fn pieces(tokenizer: &Tokenizer, prompt: &[u32], ids: &[u32]) -> Vec<String> {
        let mut stream = TextStream::new(tokenizer, prompt).unwrap();
        let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        pieces.push(stream.finish().unwrap());
        pieces
    }

    #[test]
    fn bytes_of_the_prompt_stay_there() {
        let tokenizer = llama();
        let character = [1, 2, 3];
        for count in 1..6 {
            let prompt = [&[0, 6][..], &character.repeat(count)].concat();
            let found = pieces(&tokenizer, &prompt, &character.repeat(3));
            assert_eq!(found, ["", "", "吗", "", "", "吗", "", "", "吗", ""], "{count}");
        }
    }

    #[test]
    fn what_is_no_character_is_shown_at_the_end_alone() {
        let tokenizer = llama();
        assert_eq!(pieces(&tokenizer, &[0, 4], &[1, 2, 3, 1, 2]), ["", "", "吗", "", "", "\u{fffd}\u{fffd}"]);
        // A byte that no character can begin with does not take the others with it.
        assert_eq!(pieces(&tokenizer, &[0, 4], &[2, 7, 1, 2, 3]).concat(), "\u{fffd}A吗");
        assert_eq!(pieces(&tokenizer, &[0, 4], &[1, 5]).concat(), "\u{fffd}b");
    }

    #[test]
    fn a_character_that_began_in_the_prompt_is_new() {
        let tokenizer = llama();
        assert_eq!(pieces(&tokenizer, &[0, 4, 1, 2], &[3, 5]), ["吗", "b", ""]);
        assert_eq!(pieces(&tokenizer, &[0, 4, 1], &[5]).concat(), "b");
        assert_eq!(pieces(&tokenizer, &[0, 4, 1], &[2]).concat(), "\u{fffd}");
    }

    #[test]
    fn the_first_word_alone_loses_its_space() {
        let tokenizer = llama();
        assert_eq!(pieces(&tokenizer, &[0], &[4, 5, 4, 0, 4]), ["a", "b", " a", "<s>", " a", ""]);
        assert_eq!(pieces(&tokenizer, &[0, 4], &[4, 4]), [" a", " a", ""]);
        assert_eq!(pieces(&tokenizer, &[0], &[6, 4]).concat(), " a");
        let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
        let tokenizer = super::tests::tokenizer(&["<s>", "▁a", "b"], metaspace, json!({}));
        assert_eq!(pieces(&tokenizer, &[0], &[1, 2, 1]), ["a", "b", " a", ""]);
    }

    #[test]
    fn word_pieces_are_joined() {
        let decoder = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
        let tokenizer = tokenizer(&["[UNK]", "play", "##ing", "now", "."], decoder, json!({}));
        assert_eq!(pieces(&tokenizer, &[1], &[2, 3, 4, 1]), ["ing", " now", ".", " play", ""]);
    }

    #[test]
    fn spaces_that_are_cleaned_up_are_held_back() {
        let decoder = json!({"type": "Fuse"});
        let vocabulary = ["<s>", "He", " is", " n", "'t", " ", ",", " here", " ?"];
        let ids = [1, 2, 3, 4, 7, 5, 6, 7, 8, 5];
        let plain = tokenizer(&vocabulary, decoder.clone(), json!({"clean_up_tokenization_spaces": false}));
        assert_eq!(pieces(&plain, &[0], &ids).concat(), "He is n't here , here ? ");
        let cleans = tokenizer(&vocabulary, decoder, json!({"clean_up_tokenization_spaces": true}));
        let found = pieces(&cleans, &[0], &ids);
        assert_eq!(found.concat(), "He isn't here, here? ");
        assert_eq!(found.concat(), cleans.decode(&ids).unwrap());
        assert!(found[1] == " is" && found[2].is_empty(), "{found:?}");
    }
}

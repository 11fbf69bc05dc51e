//! A checkpoint's tensors under the names that the family's class with a head gives them.
//!
//! The same model is stored under several names: that of the class with a head (`model.layers.0…`, `lm_head.weight`), that
//! of the model without one (`layers.0…`), and that of a text model inside a multimodal one
//! (`language_model.model.layers.0…`, `model.language_model.layers.0…`). Families speak of the first; where a tensor lies
//! is decided here, once for all of them.

use super::config::Config;
use super::family::Family;
use super::layout::Layout;
use crate::checkpoint::Source;
use crate::user_bail;
use anyhow::Result;
use std::collections::BTreeSet;

/// Bases of the text model inside a multimodal one, and what stands in front of its head. In those of the first kind a
/// whole model with head lies inside, and its own prefix follows.
const INSIDE: [(&str, bool, &str); 5] = [
    ("language_model.", true, "language_model."),
    ("model.language_model.", false, ""),
    ("language_model.", false, ""),
    ("model.text_model.", false, ""),
    ("text_model.", false, ""),
];

/// Blocks that a model may have; those of today have some hundred. A block takes far more memory than the one tensor by which
/// it is counted.
const MOST_BLOCKS: usize = 10_000;

/// Where the tensors of a family lie.
struct Prefixes {
    /// What the family's class with a head has in front of all but the head: `model.`
    usual: &'static str,
    /// What the checkpoint has there.
    body: String,
    /// What it has in front of everything else.
    head: String,
}

impl Prefixes {
    /// The first place at which there is an embedding or a first layer; the usual one if there is none.
    fn find(source: &Source, family: &Family) -> Self {
        let usual = family.prefix;
        let inside = INSIDE.iter().map(|&(base, whole, head)| {
            let body = if whole { format!("{base}{usual}") } else { base.to_string() };
            (body, head)
        });
        let places = [(usual.to_string(), ""), (String::new(), "")].into_iter().chain(inside);
        let is_there = |body: &str| {
            source.info(&format!("{body}{}", family.embedding)).is_some()
                || source.has_prefix(&format!("{body}{}.0.", family.layers))
        };
        let found = places.into_iter().find(|(body, _)| is_there(body));
        let (body, head) = found.unwrap_or((usual.to_string(), ""));
        // A head may stand beside the model that it belongs to.
        let head = if source.info(&format!("{head}{}", family.head)).is_some() { head } else { "" };
        Self { usual, body, head: head.to_string() }
    }

    fn stored(&self, name: &str) -> String {
        match name.strip_prefix(self.usual) {
            Some(rest) => format!("{}{rest}", self.body),
            None => format!("{}{name}", self.head),
        }
    }
}

/// The tensors of one checkpoint, by the family's own names. Of one that is yet to be written everything is as expected.
pub(super) struct Tensors<'s> {
    source: &'s mut Source,
    family: &'static Family,
    prefixes: Prefixes,
}

impl<'s> Tensors<'s> {
    pub fn new(source: &'s mut Source, family: &'static Family) -> Self {
        let prefixes = Prefixes::find(source, family);
        Self { source, family, prefixes }
    }

    /// Name under which the checkpoint has this tensor, or would have it.
    pub fn stored_name(&self, name: &str) -> String {
        self.prefixes.stored(name)
    }

    /// Shape of a tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.source.info(&self.stored_name(name)).map(|info| info.shape.as_slice())
    }

    pub fn is_there(&self, name: &str) -> bool {
        self.shape(name).is_some()
    }

    /// Whether there is a configuration alone.
    pub fn are_to_come(&self) -> bool {
        !self.source.has_weights()
    }

    /// Makes `missing` another name of `stored`.
    pub fn alias(&mut self, missing: &str, stored: &str) {
        let (missing, stored) = (self.stored_name(missing), self.stored_name(stored));
        self.source.alias(&missing, &stored);
    }

    /// Fails unless the tensor is there in this shape.
    pub fn expect(&self, name: &str, shape: &[usize]) -> Result<()> {
        if self.are_to_come() {
            return Ok(());
        }
        let sizes: Vec<_> = shape.iter().copied().map(Some).collect();
        super::check::expect(self.source, &self.stored_name(name), &sizes).map(|_| ())
    }

    /// Width of the hidden state and size of the vocabulary, under these keys of the config and as the embedding has them.
    /// Every other size follows from these or is compared with a tensor, so that nothing is made for sizes that cannot be.
    pub fn embedding_sizes(&self, config: &Config, hidden: &str, vocab: &str) -> Result<(usize, usize)> {
        let (hidden, vocab) = (config.usize(hidden)?, config.usize(vocab)?);
        let embedding = format!("{}{}", self.family.prefix, self.family.embedding);
        let name =
            if self.is_there(&embedding) || !self.is_there(self.family.head) { &embedding } else { self.family.head };
        self.expect(name, &[vocab, hidden])?;
        Ok((hidden, vocab))
    }

    /// Number of layers under this key of the config, each of which has tensors.
    pub fn layers(&self, config: &Config, key: &str) -> Result<usize> {
        let count = config.usize(key)?;
        self.expect_numbered(&format!("{}{}", self.family.prefix, self.family.layers), count, key)?;
        if count > MOST_BLOCKS {
            user_bail!(
                "config.json: `{key}` = {count}, more than the {MOST_BLOCKS} blocks that are supported";
                "get the model's original config.json"
            );
        }
        Ok(count)
    }

    /// Fails unless there are tensors `<stem>.<i>.…` for each i below `count`, which `key` of the config gives.
    pub fn expect_numbered(&self, stem: &str, count: usize, key: &str) -> Result<()> {
        if self.are_to_come() {
            return Ok(());
        }
        let stem = self.stored_name(stem);
        let stored: BTreeSet<usize> = self.source.numbers_behind(&format!("{stem}.")).collect();
        let missing = (0..stored.len() + 1).find(|i| !stored.contains(i)).unwrap_or(0);
        if missing < count {
            user_bail!(
                "config.json: `{key}` = {count}, but `{stem}.{missing}.…` is missing: the checkpoint has {}", stored.len();
                "the checkpoint is incomplete, or config.json belongs to another model"
            );
        }
        Ok(())
    }

    /// Fails if a size is larger than any side of any tensor.
    pub fn expect_possible(&self, key: &str, size: usize) -> Result<()> {
        if self.are_to_come() {
            return Ok(());
        }
        let infos = self.source.names().filter_map(|name| self.source.info(name));
        let sides = infos.filter(|info| info.bytes() > 0).flat_map(|info| &info.shape);
        let longest = sides.copied().max().unwrap_or(0);
        if size > longest {
            user_bail!(
                "config.json: `{key}` is {size}, but no tensor of the checkpoint has a side longer than {longest}";
                "config and weights do not belong together"
            );
        }
        Ok(())
    }

    /// Gives every name of a layout in the family's terms the one that the checkpoint has.
    pub fn rename(&self, layout: &mut Layout) {
        for name in layout.names_mut() {
            *name = self.stored_name(name);
        }
    }
}

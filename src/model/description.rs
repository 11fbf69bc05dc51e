//! A model as its config alone describes it.

use super::family::{TextModel, text_model};
use super::ids::LinearId;
use super::layout::Layout;
use super::narrow::Heads;
use super::opened::Output;
use super::spec::LinearSpec;
use crate::checkpoint::Source;
use anyhow::Result;
use serde_json::{Map, Value};

/// Names and shapes that a config.json promises, compared with no tensor: what an output would be under another config than
/// its own, such as the base's. The tensors only say how the family's names begin and which head there is.
pub struct Description {
    layout: Layout,
    text: TextModel,
}

impl Description {
    /// What `config`, in the terms of its family, describes over the tensors of `source`.
    pub fn new(source: &mut Source, config: &Map<String, Value>) -> Result<Self> {
        let text = text_model(config)?;
        Ok(Self { layout: super::family::layout(source, &text)?, text })
    }

    /// See [`Model::config_in`](super::Model::config_in).
    pub fn config_in<'c>(&self, whole: &'c mut Map<String, Value>) -> &'c mut Map<String, Value> {
        self.text.config_in(whole)
    }

    /// Every linear of every block, small ones included, in block order.
    pub fn linears(&self) -> &[LinearSpec] {
        &self.layout.linears
    }

    /// See [`Model::width_key`](super::Model::width_key).
    pub fn width_key(&self, id: LinearId) -> &'static str {
        self.layout.width_key(id)
    }

    /// See [`Model::heads`](super::Model::heads).
    pub fn heads(&self, index: usize) -> Option<Heads> {
        self.layout.blocks.get(index).and_then(Heads::of)
    }

    /// Name of the family, as `model_type` has it.
    pub fn family(&self) -> &'static str {
        self.layout.family
    }

    /// See [`Model::output`](super::Model::output).
    pub fn output(&self) -> Output {
        self.layout.output()
    }
}

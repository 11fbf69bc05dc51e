//! Which files a model consists of.

use crate::model::Model;
use serde::{Deserialize, Serialize};

/// Names listed at most.
const LISTED: usize = 64;

/// Tensors of the original that no forward pass reads. They are copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnusedTensors {
    /// How many there are.
    pub count: usize,
    /// Their names, sorted; the first ones of many.
    pub names: Vec<String>,
}

impl UnusedTensors {
    /// Those of `model`, if it has any.
    pub fn of(model: &Model) -> Option<Self> {
        let names = model.unused_tensors();
        let count = names.len();
        (count > 0).then(|| Self { count, names: names.into_iter().take(LISTED).map(str::to_string).collect() })
    }

    /// `2 tensors: a, b`, with at most `most` names.
    pub fn describe(&self, most: usize) -> String {
        let shown = &self.names[..self.names.len().min(most)];
        let rest = match self.count.saturating_sub(shown.len()) {
            0 => String::new(),
            rest => format!(" and {rest} more"),
        };
        let tensors = if self.count == 1 { "tensor" } else { "tensors" };
        format!("{} {tensors}: {}{rest}", self.count, shown.join(", "))
    }
}

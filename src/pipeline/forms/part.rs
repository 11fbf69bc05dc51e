//! What of a block takes a form together.

use crate::form::value_output;
use crate::model::{FeedForwardLinears, Heads, LinearId, LinearSpec, Model, Role};
use crate::plan::{Choice, FormOption, Part, largest_saving_rank};

/// Linears of one block that take a form together.
#[derive(Debug, Clone)]
pub enum BlockPart<'m> {
    /// A linear by itself: two factors.
    Linear(&'m LinearSpec),
    /// A feed-forward layer: fewer channels.
    Channels(FeedForwardLinears<'m>),
    /// The values of an attention layer: fewer dimensions per head.
    Values { v: &'m LinearSpec, o: &'m LinearSpec, heads: Heads },
}

impl<'m> BlockPart<'m> {
    /// All linears, in the order of the block.
    pub fn linears(&self) -> Vec<&'m LinearSpec> {
        match self {
            Self::Linear(spec) => vec![spec],
            Self::Channels(layer) => layer.gate.into_iter().chain([layer.up, layer.down]).collect(),
            Self::Values { v, o, .. } => vec![v, o],
        }
    }

    /// The last of them.
    pub fn output(&self) -> &'m LinearSpec {
        match self {
            Self::Linear(spec) => spec,
            Self::Channels(layer) => layer.down,
            Self::Values { o, .. } => o,
        }
    }

    /// Whether both are linears with the same input.
    pub fn shares_input(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Linear(a), Self::Linear(b)) if (a.id.block, a.site) == (b.id.block, b.site))
    }

    /// The whole size of what gets fewer: components, channels, dimensions of a head.
    fn size(&self) -> usize {
        match self {
            Self::Linear(spec) => spec.out.min(spec.input),
            Self::Channels(layer) => layer.down.input,
            Self::Values { heads, .. } => heads.head_dim,
        }
    }

    /// The sizes that are offered: multiples of 2 to 16, as hardware likes them, where that is about a hundredth.
    fn sizes(&self, multiple_of: usize) -> impl Iterator<Item = usize> {
        let size = self.size();
        let most = match self {
            Self::Linear(spec) => largest_saving_rank(spec.out, spec.input),
            _ => size - 1,
        };
        let step = match self {
            // Every head has them.
            Self::Values { .. } => (size / 16).max(1),
            _ => (size / 64).next_power_of_two().clamp(1, 16),
        };
        let step = if multiple_of > 1 { multiple_of } else { step };
        (step..=most).step_by(step)
    }

    /// The size that leaves about half of the part; `None` if it can only stay as it is.
    pub fn reference_size(&self, multiple_of: usize) -> Option<usize> {
        let half = match self {
            Self::Linear(spec) => largest_saving_rank(spec.out, spec.input) / 2,
            _ => self.size() / 2,
        };
        self.sizes(multiple_of).min_by_key(|size| size.abs_diff(half))
    }

    /// The form of this size.
    pub fn choice(&self, kept: usize) -> Choice {
        match self {
            Self::Linear(_) => Choice::Rank(kept),
            Self::Channels(_) => Choice::Width(kept),
            Self::Values { heads, .. } => Choice::HeadDim { kept, of: heads.head_dim },
        }
    }

    /// The options of the part, `loss` being predicted for each size, times `scale`.
    pub fn ladder(&self, loss: &[f64], scale: f64, multiple_of: usize) -> Part {
        let linears: Vec<LinearId> = self.linears().iter().map(|spec| spec.id).collect();
        let option = |choice, loss| FormOption { choices: vec![choice; linears.len()], loss };
        let sizes = self.sizes(multiple_of);
        let narrowed = sizes.map(|kept| option(self.choice(kept), scale * loss.get(kept).copied().unwrap_or(0.0)));
        let options = narrowed.chain([option(Choice::Dense, 0.0)]).collect();
        Part { linears, options }
    }
}

/// The parts of block `index`; every linear belongs to one.
pub fn block_parts<'m>(model: &'m Model, index: usize) -> Vec<BlockPart<'m>> {
    let layers = model.feed_forwards(index);
    let attention = model.heads(index).and_then(|heads| {
        let find = |role| model.block_linears(index).find(|spec| spec.id.role == role);
        Some((heads, find(Role::V)?, find(Role::O)?))
    });
    let part = |spec: &'m LinearSpec| match layers.iter().find(|layer| layer.down == spec) {
        Some(&layer) => BlockPart::Channels(layer),
        None => match attention {
            Some((heads, v, o)) if o == spec => BlockPart::Values { v, o, heads },
            _ => BlockPart::Linear(spec),
        },
    };
    // A part stands where its last linear does.
    let of_another = |spec: &LinearSpec| {
        layers.iter().any(|layer| layer.up == spec || layer.gate == Some(spec))
            || attention.is_some_and(|(_, v, _)| v == spec)
    };
    model.block_linears(index).filter(|spec| !of_another(spec)).map(part).collect()
}

/// The heads as the mathematics of values has them.
pub fn value_heads(heads: Heads) -> value_output::Heads {
    value_output::Heads { heads: heads.heads, groups: heads.kv_heads, dim: heads.head_dim }
}

//! What a family says about itself: sizes, kinds and tensor names. Families fill these in (`family/`), the rest of this
//! module runs what they describe.

use super::block::Shape;
use super::ids::LinearId;
use super::opened::Output;
use super::spec::{LinearSpec, Stored};
use crate::checkpoint::Source;
use crate::ops::Activation;

/// The context of a model that has no longest sequence.
pub const UNBOUNDED: usize = usize::MAX;

/// A whole model.
#[derive(Debug)]
pub(super) struct Layout {
    pub family: &'static str,
    pub hidden: usize,
    pub vocab: usize,
    /// Longest sequence; [`UNBOUNDED`] where there is no such thing.
    pub context: usize,
    /// Every linear of every block: in block order, and within a block in the order in which activations reach them.
    pub linears: Vec<LinearSpec>,
    pub blocks: Vec<BlockLayout>,
    pub embedding: Embedding,
    pub head: Readout,
    pub width_keys: WidthKeys,
}

/// Keys of config.json that hold feed-forward widths.
#[derive(Debug, Clone, Copy)]
pub(super) struct WidthKeys {
    /// That of a block's only feed-forward layer.
    pub dense: &'static str,
    /// That of one expert among several.
    pub expert: &'static str,
}

/// Everything of one block but its linears.
#[derive(Debug)]
pub(super) struct BlockLayout {
    /// Its equations.
    pub shape: Shape,
    /// Its norms, in order of use.
    pub norms: Vec<NormSpec>,
    /// Everything else with weights.
    pub tensors: Vec<TensorSpec>,
}

/// A norm.
#[derive(Debug, Clone)]
pub(super) struct NormSpec {
    /// What the block calls it: `attn_norm`.
    pub key: &'static str,
    /// Base of its tensor names.
    pub name: String,
    pub width: usize,
    pub kind: NormKind,
}

impl NormSpec {
    /// Names of its weight and its bias. The oldest checkpoints have other ones.
    pub fn parts(&self, source: &Source) -> [String; 2] {
        let name = |part: &str| format!("{}.{part}", self.name);
        let old = source.info(&name("weight")).is_none() && source.info(&name("gamma")).is_some();
        if old { [name("gamma"), name("beta")] } else { [name("weight"), name("bias")] }
    }
}

/// Kind of normalisation, with its ε.
#[derive(Debug, Clone, Copy)]
pub(super) enum NormKind {
    /// x / rms(x) · weight
    Rms(f64),
    /// x / rms(x) · (1 + weight)
    RmsPlusOne(f64),
    /// (x − mean) / std · weight + bias
    Layer(f64),
}

/// A tensor that is neither a linear's nor a norm's.
#[derive(Debug, Clone)]
pub(super) struct TensorSpec {
    /// What the block calls it.
    pub key: &'static str,
    /// Its full name.
    pub name: String,
    pub shape: Vec<usize>,
}

/// From ids to what enters block 0: x = norm(tokens[id] · scale + types[type] + positions[offset + i]).
#[derive(Debug, Default)]
pub(super) struct Embedding {
    /// (vocab, hidden)
    pub tokens: String,
    pub scale: Option<f64>,
    pub positions: Option<Positions>,
    pub types: Option<TokenTypes>,
    pub norm: Option<NormSpec>,
    /// Whether predictions are worth nothing unless a sequence begins with BOS: every head was trained to find it there.
    pub needs_bos: bool,
}

/// A table of what is added to tell the texts of a pair apart, (count, hidden).
#[derive(Debug)]
pub(super) struct TokenTypes {
    pub name: String,
    pub count: usize,
}

/// A table of learned positions, (context + offset, hidden).
#[derive(Debug)]
pub(super) struct Positions {
    pub name: String,
    /// Row of position 0.
    pub offset: usize,
}

/// What is made of that which leaves the last block.
#[derive(Debug)]
pub(super) enum Readout {
    /// At each position logits of the next token.
    Next(HeadLayout),
    /// At each position logits of the token that belongs there, for those that are masked.
    Masked(HeadLayout),
    /// Logits of a few classes for the sequence as a whole.
    Classes(ClassLayout),
    /// Nothing: the states are the result.
    States,
}

/// From what leaves the last block to logits: z = cap(norm(act(D h + d)) Wᵀ + bias), cap(z) = c tanh(z / c).
#[derive(Debug, Default)]
pub(super) struct HeadLayout {
    /// D; most families have none.
    pub dense: Option<DenseLayout>,
    pub norm: Option<NormSpec>,
    /// W (vocab, hidden)
    pub weight: HeadWeight,
    /// (vocab)
    pub bias: Option<String>,
    /// c
    pub soft_cap: Option<f64>,
}

/// The matrix of a head.
#[derive(Debug, Default)]
pub(super) struct HeadWeight {
    /// Where it is read; the embedding's name when tied.
    pub name: String,
    /// What it is called where it is stored although it is tied.
    pub tied: Option<String>,
}

/// A square layer outside the blocks, with a bias: act(D h + d).
#[derive(Debug)]
pub(super) struct DenseLayout {
    /// Base of its tensor names.
    pub name: String,
    pub activation: Activation,
}

/// From the state at the first position to the logits of classes: z = C act(P h + p) + c.
#[derive(Debug)]
pub(super) struct ClassLayout {
    /// P
    pub pooler: DenseLayout,
    /// Base of the names of C (classes, hidden) and c.
    pub name: String,
    pub classes: usize,
}

impl Layout {
    /// Every name of a tensor, and every base of such names.
    pub fn names_mut(&mut self) -> impl Iterator<Item = &mut String> {
        let Self { linears, blocks, embedding, head, .. } = self;
        let linears = linears.iter_mut().flat_map(|spec| {
            let matrix = match &mut spec.stored {
                Stored::Part { matrix, .. } => Some(matrix),
                Stored::Plain => None,
            };
            std::iter::once(&mut spec.name).chain(matrix)
        });
        let blocks = blocks.iter_mut().flat_map(|block| {
            let norms = block.norms.iter_mut().map(|norm| &mut norm.name);
            norms.chain(block.tensors.iter_mut().map(|tensor| &mut tensor.name))
        });
        let Embedding { tokens, positions, types, norm, .. } = embedding;
        let embedding = std::iter::once(tokens)
            .chain(positions.as_mut().map(|positions| &mut positions.name))
            .chain(types.as_mut().map(|types| &mut types.name))
            .chain(norm.as_mut().map(|norm| &mut norm.name));
        let head: Vec<&mut String> = match head {
            Readout::Next(head) | Readout::Masked(head) => {
                let dense = head.dense.as_mut().map(|dense| &mut dense.name);
                let norm = head.norm.as_mut().map(|norm| &mut norm.name);
                let HeadWeight { name, tied } = &mut head.weight;
                dense.into_iter().chain(norm).chain([name]).chain(tied).chain(head.bias.as_mut()).collect()
            }
            Readout::Classes(head) => vec![&mut head.pooler.name, &mut head.name],
            Readout::States => Vec::new(),
        };
        linears.chain(blocks).chain(embedding).chain(head)
    }

    /// What makes logits of tokens, if anything does.
    pub fn token_head(&self) -> Option<&HeadLayout> {
        match &self.head {
            Readout::Next(head) | Readout::Masked(head) => Some(head),
            Readout::Classes(_) | Readout::States => None,
        }
    }

    /// What the model says about a text.
    pub fn output(&self) -> Output {
        match &self.head {
            Readout::Next(_) => Output::NextToken,
            Readout::Masked(_) => Output::MaskedToken,
            Readout::Classes(head) => Output::Classes(head.classes),
            Readout::States => Output::States,
        }
    }

    /// Key of config.json that holds the width of the feed-forward layer that a linear belongs to.
    pub fn width_key(&self, id: LinearId) -> &'static str {
        if id.role.expert().is_some() {
            return self.width_keys.expert;
        }
        let shared = self.blocks.get(id.block).and_then(|block| block.shape.shared_width_key());
        shared.unwrap_or(self.width_keys.dense)
    }
}

//! Every tensor that a model has, as its layout names them: what must be in a checkpoint, how it may be stored there, and
//! what is left over.

use super::layout::{DenseLayout, Layout, NormKind, NormSpec, Readout};
use super::spec::{LinearSpec, Stored};
use crate::checkpoint::Source;
use std::collections::BTreeSet;

/// Something that a layout asks a checkpoint for.
pub(super) enum Needed<'l> {
    /// One tensor of one shape.
    Tensor(Single),
    /// A linear of a block, which may be stored in several ways.
    Linear(&'l LinearSpec),
}

/// A tensor that is stored in one way only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Single {
    pub name: String,
    pub shape: Vec<usize>,
    pub reach: Reach,
}

/// How much of a tensor a text touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// All of it.
    Whole,
    /// A row per token of the text.
    Tokens,
    /// A row per type of token.
    Types,
    /// A row per position, the first of them this one.
    Positions(usize),
}

/// How a checkpoint stores the weight of a linear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As two factors, of which one may be missing.
    Factors,
    /// As `<name>.weight`, (out, in).
    Own,
    /// In the matrix that the spec names.
    Matrix,
}

impl LinearSpec {
    /// Names of A (rank, in) and B (out, rank).
    pub(super) fn factor_names(&self) -> [String; 2] {
        ["factor_a", "factor_b"].map(|factor| format!("{}.{factor}.weight", self.name))
    }

    /// Name of the weight when it stands on its own.
    pub(super) fn own_weight_name(&self) -> String {
        format!("{}.weight", self.name)
    }

    /// How `source` stores the weight, or would have to.
    pub(super) fn form(&self, source: &Source) -> Form {
        if self.factor_names().iter().any(|name| source.info(name).is_some()) {
            return Form::Factors;
        }
        match &self.stored {
            // A part of a fused matrix that was split when another part was factorised has its own plain tensor.
            Stored::Part { .. } if self.fused().is_none() || source.info(&self.own_weight_name()).is_none() => {
                Form::Matrix
            }
            _ => Form::Own,
        }
    }

    /// Name of the tensor that `source` has the bias in: its own, or that of the matrix.
    pub(super) fn bias_name(&self, source: &Source) -> String {
        let own = format!("{}.bias", self.name);
        match &self.stored {
            Stored::Part { matrix, .. } if source.info(&own).is_none() => format!("{matrix}.bias"),
            _ => own,
        }
    }

    /// Every tensor that the linear is read from.
    pub(super) fn tensor_names(&self, source: &Source) -> Vec<String> {
        let mut names = match self.form(source) {
            Form::Factors => self.factor_names().into(),
            Form::Own => vec![self.own_weight_name()],
            Form::Matrix => vec![self.weight_name()],
        };
        names.extend(self.bias.then(|| self.bias_name(source)));
        names
    }
}

impl Layout {
    /// Everything that a checkpoint of this layout holds, in the order in which a text meets it, the head before the
    /// blocks.
    pub fn needed(&self, source: &Source) -> Vec<Needed<'_>> {
        let mut singles = Singles { source, list: Vec::new() };
        let (hidden, embedding) = (self.hidden, &self.embedding);
        let head = self.token_head();
        // A head that is tied takes every row.
        let tied = head.is_some_and(|head| head.weight.name == embedding.tokens);
        let reach = if tied { Reach::Whole } else { Reach::Tokens };
        singles.add(&embedding.tokens, &[self.vocab, hidden], reach);
        if let Some(head) = head {
            if !tied {
                singles.whole(&head.weight.name, &[self.vocab, hidden]);
            }
            if let Some(bias) = &head.bias {
                singles.whole(bias, &[self.vocab]);
            }
            if let Some(dense) = &head.dense {
                singles.dense(dense, hidden, hidden);
            }
            singles.norms(&head.norm);
        }
        if let Readout::Classes(head) = &self.head {
            singles.dense(&head.pooler, hidden, hidden);
            singles.whole(&format!("{}.weight", head.name), &[head.classes, hidden]);
            singles.whole(&format!("{}.bias", head.name), &[head.classes]);
        }
        if let Some(types) = &embedding.types {
            singles.add(&types.name, &[types.count, hidden], Reach::Types);
        }
        if let Some(positions) = &embedding.positions {
            let rows = self.context.saturating_add(positions.offset);
            singles.add(&positions.name, &[rows, hidden], Reach::Positions(positions.offset));
        }
        singles.norms(&embedding.norm);
        for block in &self.blocks {
            singles.norms(&block.norms);
            block.tensors.iter().for_each(|tensor| singles.whole(&tensor.name, &tensor.shape));
        }
        let linears = self.linears.iter().map(Needed::Linear);
        singles.list.into_iter().map(Needed::Tensor).chain(linears).collect()
    }

    /// Stored tensors that no forward pass reads: buffers, heads that are not run, other models of the same checkpoint.
    pub fn unused<'s>(&self, source: &'s Source) -> Vec<&'s str> {
        let mut used = BTreeSet::new();
        for needed in self.needed(source) {
            match needed {
                Needed::Tensor(tensor) => drop(used.insert(tensor.name)),
                Needed::Linear(spec) => {
                    used.extend(spec.tensor_names(source));
                    // Parts that learned a bias each leave that of their matrix behind.
                    used.extend(spec.fused().map(|matrix| format!("{matrix}.bias")));
                }
            }
        }
        let aliased: Vec<&String> =
            source.aliases().iter().filter(|(name, _)| used.contains(*name)).map(|(_, stored)| stored).collect();
        source.names().filter(|name| !used.contains(*name) && !aliased.iter().any(|stored| stored == name)).collect()
    }
}

/// Tensors that are stored in one way, being listed.
struct Singles<'s> {
    source: &'s Source,
    list: Vec<Single>,
}

impl Singles<'_> {
    fn add(&mut self, name: &str, shape: &[usize], reach: Reach) {
        self.list.push(Single { name: name.to_string(), shape: shape.to_vec(), reach });
    }

    fn whole(&mut self, name: &str, shape: &[usize]) {
        self.add(name, shape, Reach::Whole);
    }

    fn dense(&mut self, layer: &DenseLayout, out: usize, input: usize) {
        self.whole(&format!("{}.weight", layer.name), &[out, input]);
        self.whole(&format!("{}.bias", layer.name), &[out]);
    }

    fn norms<'n>(&mut self, norms: impl IntoIterator<Item = &'n NormSpec>) {
        for norm in norms {
            let [weight, bias] = norm.parts(self.source);
            self.whole(&weight, &[norm.width]);
            if matches!(norm.kind, NormKind::Layer(_)) {
                self.whole(&bias, &[norm.width]);
            }
        }
    }
}

//! Proof that a checkpoint is whole: everything its layout asks for is there, and everything its base has.
//!
//! A factorised linear of shape (out, in) is stored as `<name>.factor_a.weight` (rank, in) and `<name>.factor_b.weight`
//! (out, rank), its bias as `<name>.bias`. Linears that share a matrix, such as q, k and v, may be stored apart, each dense
//! (out, in) or as factors, and the matrix is gone.

mod base;
mod linears;

use super::family;
use super::layout::Layout;
use super::needed::{Needed, Reach, Single};
use super::opened::describe;
use super::sound::{Unsound, unread_note, unsound};
use crate::checkpoint::{NotFinite, Section, Source, family_config};
use anyhow::Result;
use std::collections::BTreeSet;

/// What [`verify`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verification {
    /// Stored tensors.
    pub tensors: usize,
    /// Linears stored as two factors.
    pub factorised: usize,
    /// Matrices stored dense, embeddings among them.
    pub dense: usize,
    /// Names of stored tensors that nothing reads.
    pub unused: Vec<String>,
    /// One sentence for each thing that is wrong, with names and values; empty for a whole checkpoint.
    pub problems: Vec<String>,
    /// One sentence for each thing that is unusual and does no harm.
    pub notes: Vec<String>,
}

/// A checkpoint and what its config.json makes of it.
struct Described {
    source: Source,
    layout: Layout,
}

impl Described {
    fn new(source: &Source) -> Result<Self> {
        let mut source = source.clone();
        let (layout, _) = describe(&mut source)?;
        Ok(Self { source, layout })
    }

    fn is_softlm(&self) -> bool {
        Section::of(self.source.config()).is_some()
    }
}

/// Checks a checkpoint completely and collects everything that is wrong with it.
///
/// Alone: every tensor that config.json asks for is there in its shape, linears dense or as factors; factors come in pairs
/// of fitting shapes, with a rank below break-even and no dense twin; a shared matrix is split completely or not at all; the
/// index lists every tensor where it is and sums up to its `total_size`; no weight that is computed with is NaN or
/// infinite. With the `base` it was made from also: both have the same tensors in the same shapes (a feed-forward layer may
/// have fewer channels, the values of a head fewer dimensions, and a linear a bias of its own, if `config.json` has a `softlm`
/// section), and nothing is there that the base does not explain. `tokens` is one more than the largest id of the tokenizer,
/// where that is known: what an embedding holds beyond that does not matter.
///
/// Of a family that softlm does not know, only files and numbers are checked.
///
/// # Errors
/// Only if a file cannot be read; findings are in [`Verification::problems`].
pub fn verify(output: &Source, base: Option<&Source>, tokens: Option<usize>) -> Result<Verification> {
    let is_matrix = |name: &&str| output.info(name).is_some_and(|info| info.shape.len() == 2);
    let mut found = Verification {
        tensors: output.names().count(),
        dense: output.names().filter(is_matrix).count(),
        problems: output.index_problems(),
        ..Verification::default()
    };
    if !family::is_known(&family_config(output.config())) {
        found.notes.push("softlm does not know this family: only files and numbers were checked".to_string());
        for name in output.names() {
            let bad = output.not_finite(name, 1)?;
            found.problems.extend(bad.iter().map(|bad| format!("{name} holds {bad}.")));
        }
        return Ok(found);
    }
    let own = match Described::new(output) {
        Ok(own) => own,
        Err(error) => {
            found.problems.push(format!("{error:#}."));
            return Ok(found);
        }
    };
    own.check(&mut found);
    let base = match base.map(Described::new) {
        Some(Err(error)) => {
            found.problems.push(format!("The base cannot be compared: {error:#}."));
            None
        }
        base => base.transpose()?,
    };
    own.check_numbers(base.as_ref(), tokens, &mut found)?;
    if let Some(base) = &base {
        base::compare(&own, base, &mut found);
    }
    found.unused = own.layout.unused(&own.source).into_iter().map(str::to_string).collect();
    Ok(found)
}

impl Described {
    /// Everything that the layout asks for.
    fn check(&self, found: &mut Verification) {
        let mut matrices = BTreeSet::new();
        for needed in self.layout.needed(&self.source) {
            match needed {
                Needed::Tensor(tensor) => found.problems.extend(self.check_single(&tensor)),
                Needed::Linear(spec) => {
                    // A matrix that is whole is looked at once, for all its parts.
                    if let Some(matrix) = spec.fused().filter(|matrix| !self.is_split(matrix)) {
                        if matrices.insert(matrix) {
                            self.check_matrix(spec, found);
                        }
                        continue;
                    }
                    if let Some(matrix) = spec.fused().filter(|matrix| matrices.insert(matrix)) {
                        self.check_split(matrix, found);
                    }
                    self.check_linear(spec, found);
                }
            }
        }
    }

    fn check_single(&self, tensor: &Single) -> Option<String> {
        let name = &tensor.name;
        match self.source.info(name) {
            None => Some(format!("{name} is missing.")),
            Some(info) if info.shape != tensor.shape => {
                Some(format!("{name} has shape {:?}, but config.json asks for {:?}.", info.shape, tensor.shape))
            }
            Some(info) if !info.is_float() => {
                Some(format!("{name} has dtype {}, which is none of weights.", info.dtype))
            }
            Some(_) => None,
        }
    }

    /// NaN and infinity: a problem in what is computed with, a note elsewhere.
    fn check_numbers(&self, base: Option<&Described>, tokens: Option<usize>, found: &mut Verification) -> Result<()> {
        let all = unsound(&self.source, &self.layout)?;
        for Unsound { name, reach, places } in &all {
            let Some(reach) = reach else { continue };
            if *reach == Reach::Whole {
                found.problems.extend(places.first().map(|bad| format!("{name} holds {bad}.")));
                continue;
            }
            let before = match base.filter(|base| base.source.info(name).is_some()) {
                Some(base) => base.source.not_finite(name, usize::MAX)?,
                None => Vec::new(),
            };
            let copied = |bad: &NotFinite| before.iter().any(|before| before.place == bad.place);
            let beyond = |bad: &NotFinite| *reach == Reach::Tokens && tokens.is_some_and(|tokens| bad.row() >= tokens);
            match places.iter().find(|bad| !copied(bad) && !beyond(bad)) {
                Some(bad) => found.problems.push(format!("{name} holds {bad}.")),
                None => {
                    let first = places.first().map_or(0, NotFinite::row);
                    let why = if places.iter().all(beyond) { "no token is looked up there" } else { "so has the base" };
                    found
                        .notes
                        .push(format!("{name} holds NaN or infinity in {} rows, {first} for one: {why}", places.len()));
                }
            }
        }
        found.notes.extend(unread_note(&all.iter().filter(|tensor| tensor.reach.is_none()).collect::<Vec<_>>()));
        Ok(())
    }
}

//! Weights that are no numbers: where that matters, and where it does not.
//!
//! A NaN spreads to everything computed from it. A row of a table that no text looks up is not computed with, nor is a
//! tensor that the layout does not know: there it is left alone.

use super::layout::Layout;
use super::needed::{Needed, Reach};
use super::opened::Model;
use crate::checkpoint::{NotFinite, Source};
use crate::user_bail;
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};

/// What a run looks up in a model's tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    /// Token ids.
    pub tokens: BTreeSet<u32>,
    /// Types of tokens.
    pub types: BTreeSet<u32>,
    /// Length of the longest sequence.
    pub positions: usize,
}

impl Touched {
    /// Adds a sequence; without types its tokens have type 0.
    pub fn add(&mut self, ids: &[u32], types: &[u32]) {
        self.tokens.extend(ids);
        self.types.extend(types);
        self.types.insert(0);
        self.positions = self.positions.max(ids.len());
    }

    fn has(&self, reach: Reach, row: usize) -> bool {
        let among = |set: &BTreeSet<u32>| u32::try_from(row).is_ok_and(|row| set.contains(&row));
        match reach {
            Reach::Whole => true,
            Reach::Tokens => among(&self.tokens),
            Reach::Types => among(&self.types),
            Reach::Positions(first) => (first..first + self.positions).contains(&row),
        }
    }
}

/// A tensor that holds what is no finite number.
pub(super) struct Unsound {
    pub name: String,
    /// How much of it is read; `None` if nothing is.
    pub reach: Option<Reach>,
    /// The first place, or where rows count, the first of each row.
    pub places: Vec<NotFinite>,
}

/// Reads every stored tensor once.
pub(super) fn unsound(source: &Source, layout: &Layout) -> Result<Vec<Unsound>> {
    let mut reaches: BTreeMap<String, Option<Reach>> = BTreeMap::new();
    for needed in layout.needed(source) {
        match needed {
            Needed::Tensor(tensor) => drop(reaches.insert(tensor.name, Some(tensor.reach))),
            Needed::Linear(spec) => {
                reaches.extend(spec.tensor_names(source).into_iter().map(|name| (name, Some(Reach::Whole))));
            }
        }
    }
    reaches.extend(layout.unused(source).into_iter().map(|name| (name.to_string(), None)));
    let mut found = Vec::new();
    for (name, reach) in reaches.into_iter().filter(|(name, _)| source.info(name).is_some()) {
        let most = if matches!(reach, None | Some(Reach::Whole)) { 1 } else { usize::MAX };
        let places = source.not_finite(&name, most)?;
        if !places.is_empty() {
            found.push(Unsound { name, reach, places });
        }
    }
    Ok(found)
}

/// One sentence about tensors that nothing reads, if there are such.
pub(super) fn unread_note(unread: &[&Unsound]) -> Option<String> {
    let first = unread.first()?;
    let what = match unread.len() {
        1 => format!("{} holds {}", first.name, first.places.first()?),
        n => format!("{n} tensors hold NaN or infinity ({} holds {})", first.name, first.places.first()?),
    };
    Some(format!("{what}: nothing reads it"))
}

impl Model {
    /// Proves that everything that is computed with when a run looks up `touched` is a finite number. Returns one
    /// sentence for each thing that is none where that does not matter. Reads all weights.
    ///
    /// # Errors
    /// A [`UserError`](crate::error::UserError) naming the tensor and the place.
    pub fn check_numbers(&self, touched: &Touched) -> Result<Vec<String>> {
        let all = unsound(self.source(), self.layout())?;
        let mut notes = Vec::new();
        for Unsound { name, reach, places } in &all {
            let Some(reach) = reach else { continue };
            if let Some(bad) = places.iter().find(|bad| touched.has(*reach, bad.row())) {
                let row = match reach {
                    Reach::Tokens => format!(", the row of token {}, which occurs in the text", bad.row()),
                    _ => String::new(),
                };
                user_bail!(
                    "tensor {name} holds {bad}{row}";
                    "the checkpoint is damaged or its training diverged: get a sound copy of the weights"
                );
            }
            let (rows, first) = (places.len(), places.first().map_or(0, NotFinite::row));
            let what = if rows == 1 { format!("row {first}") } else { format!("{rows} rows from row {first} on") };
            notes.push(format!("{name} holds NaN or infinity in {what}: no text of this run looks that up"));
        }
        notes.extend(unread_note(&all.iter().filter(|tensor| tensor.reach.is_none()).collect::<Vec<_>>()));
        Ok(notes)
    }
}

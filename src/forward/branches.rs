//! Sequences that begin alike go through the blocks together: what they share is computed once.
//!
//! ```text
//! prefix (trees, p, hidden) ──block──▶ prefix'        what the block keeps of it (keys and values, or a state) …
//!                               │
//! branches (rows, b, hidden) ──block──▶ branches'     … is what every branch continues: row r belongs to tree parents[r]
//! ```
//! Trees whose prefixes are equally long form a group, so that no prefix is padded; branches are padded at their ends, where
//! no position of a causal block looks.

use super::each_block;
use crate::model::{Block, Cache, Model};
use crate::progress::Progress;
use anyhow::{Result, ensure};
use candle_core::Tensor;
use std::ops::Range;

/// What some sequences begin with, and what follows in each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// Ids that all have in common, at least one.
    pub prefix: Vec<u32>,
    /// The other ids of each sequence, at least one. Sequences that end with the prefix need none.
    pub branches: Vec<Vec<u32>>,
}

impl Tree {
    /// Tokens of the longest branch.
    fn longest(&self) -> usize {
        self.branches.iter().map(Vec::len).max().unwrap_or(0)
    }
}

/// Which trees go through a block together, by their numbers.
pub type Grouped = Vec<usize>;

/// Groups of trees with equally long prefixes, of at most `tokens` tokens, padding included; a larger tree is alone.
pub fn grouped(trees: &[Tree], tokens: usize) -> Vec<Grouped> {
    let mut order: Vec<usize> = (0..trees.len()).collect();
    order.sort_by_key(|&i| (trees[i].prefix.len(), trees[i].longest()));
    let mut groups: Vec<Grouped> = Vec::new();
    // Branches and tokens of prefixes of the last group.
    let (mut rows, mut prefixes) = (0, 0);
    for i in order {
        let (p, b, n) = (trees[i].prefix.len(), trees[i].longest(), trees[i].branches.len());
        let fits = |last: &Grouped| trees[last[0]].prefix.len() == p && prefixes + p + (rows + n) * b <= tokens;
        match groups.last_mut().filter(|last| fits(last)) {
            Some(last) => {
                last.push(i);
                (rows, prefixes) = (rows + n, prefixes + p);
            }
            None => {
                groups.push(vec![i]);
                (rows, prefixes) = (n, p);
            }
        }
    }
    groups
}

/// The states of some trees on their way through the blocks.
pub struct TreeStates {
    groups: Vec<Group>,
}

struct Group {
    trees: Grouped,
    /// (trees, p, hidden)
    prefix: Tensor,
    branches: Option<Branches>,
}

struct Branches {
    /// (rows, b, hidden)
    states: Tensor,
    /// The tree of each row, by its place in the group; u32.
    parents: Tensor,
    /// The rows of each tree.
    rows: Vec<Range<usize>>,
}

impl TreeStates {
    /// Embeds the trees of every group.
    ///
    /// # Errors
    /// A tree with an empty prefix or branch, a sequence that is longer than the model's context, and an id outside its
    /// vocabulary.
    pub fn embed(model: &Model, trees: &[Tree], groups: &[Grouped]) -> Result<Self> {
        let groups = groups.iter().map(|group| Group::embed(model, trees, group)).collect::<Result<_>>()?;
        Ok(Self { groups })
    }

    /// Takes the states through all blocks. Steps `progress` once per block and tree.
    pub fn finish(&mut self, model: &Model, progress: &dyn Progress) -> Result<()> {
        let trees: usize = self.groups.iter().map(|group| group.trees.len()).sum();
        each_block(model, |_, block| {
            self.groups.iter_mut().try_for_each(|group| group.advance(&block))?;
            progress.step(trees as u64)
        })
    }

    /// The trees, group by group.
    pub fn trees(&self) -> impl Iterator<Item = TreeState<'_>> {
        self.groups.iter().flat_map(|group| (0..group.trees.len()).map(move |place| TreeState { group, place }))
    }
}

/// The states of one tree.
pub struct TreeState<'s> {
    group: &'s Group,
    place: usize,
}

impl TreeState<'_> {
    /// Its number.
    pub fn index(&self) -> usize {
        self.group.trees[self.place]
    }

    /// States of positions `start..start + len` of a sequence, (len, hidden): of branch `branch` behind the prefix, or of the
    /// prefix alone, which every sequence begins with.
    pub fn positions(&self, branch: Option<usize>, start: usize, len: usize) -> Result<Tensor> {
        let prefix = self.group.prefix.get(self.place)?;
        let p = prefix.dim(0)?;
        let within = len.min(p.saturating_sub(start));
        let mut parts = Vec::new();
        if within > 0 {
            parts.push(prefix.narrow(0, start, within)?);
        }
        if within < len {
            let (Some(branch), Some(branches)) = (branch, &self.group.branches) else {
                anyhow::bail!("positions {start}..{} of a prefix of {p}", start + len)
            };
            let row = branches.rows[self.place].start + branch;
            parts.push(branches.states.get(row)?.narrow(0, (start + within) - p, len - within)?);
        }
        Ok(Tensor::cat(&parts, 0)?)
    }
}

impl Group {
    fn embed(model: &Model, trees: &[Tree], group: &[usize]) -> Result<Self> {
        let prefixes: Vec<&[u32]> = group.iter().map(|&i| trees[i].prefix.as_slice()).collect();
        let p = prefixes.first().map_or(0, |prefix| prefix.len());
        let of = |&i: &usize| trees[i].branches.iter();
        let fits = prefixes.iter().all(|prefix| prefix.len() == p) && group.iter().flat_map(of).all(|b| !b.is_empty());
        ensure!(p > 0 && fits, "prefixes of a group are equally long, and nothing is empty");
        let longest = group.iter().flat_map(of).map(Vec::len).max().unwrap_or(0);
        // Any id will do as padding: nobody looks at it.
        let padded: Vec<Vec<u32>> =
            group.iter().flat_map(of).map(|b| [b.as_slice(), &vec![0; longest - b.len()]].concat()).collect();
        let branches = if padded.is_empty() {
            None
        } else {
            let rows: Vec<&[u32]> = padded.iter().map(Vec::as_slice).collect();
            let (mut parents, mut ranges) = (Vec::with_capacity(rows.len()), Vec::with_capacity(group.len()));
            for (place, &i) in group.iter().enumerate() {
                ranges.push(parents.len()..parents.len() + trees[i].branches.len());
                parents.resize(ranges[place].end, place as u32);
            }
            let parents = Tensor::new(parents, model.device())?;
            Some(Branches { states: model.embed_from(&rows, p)?, parents, rows: ranges })
        };
        Ok(Self { trees: group.to_vec(), prefix: model.embed(&prefixes)?, branches })
    }

    fn advance(&mut self, block: &Block) -> Result<()> {
        let p = self.prefix.dim(1)?;
        let mut cache = Cache::with_room(p);
        let longest = self.branches.as_ref().map_or(Ok(0), |branches| branches.states.dim(1))?;
        cache.expect(p + longest);
        self.prefix = block.forward_cached(&self.prefix, &mut cache)?;
        if let Some(branches) = &mut self.branches {
            let mut cache = cache.branch(&branches.parents, longest)?;
            branches.states = block.forward_cached(&branches.states, &mut cache)?;
        }
        Ok(())
    }
}

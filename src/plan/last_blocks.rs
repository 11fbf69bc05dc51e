//! LLM-ROM's scheme (arXiv 2312.07046, section 2.1): only the last blocks are compressed, all of them alike, because
//! errors made early grow on their way through the model.

use super::budget::{self, Target};
use super::uniform::{even_ranks, floor_ranks, ranks, short};
use super::{Choice, Item, Plan};
use crate::user_bail;
use anyhow::Result;

/// The last `blocks` blocks keep rank floor(`block_keep` · m n / (m + n)) in every linear, the blocks before them stay
/// dense. The budget of the plan is what that fraction allows over all items.
///
/// Errors: `blocks` is 0 or more than there are; `block_keep` outside (0, 1] or so small that some rank would be 0.
pub fn last_blocks(items: &[Item], blocks: usize, block_keep: f64, multiple_of: usize) -> Result<Plan> {
    budget::check_items(items, multiple_of)?;
    budget::check_fraction("the keep of the last blocks,", block_keep)?;
    let cut = Cut::new(items, blocks)?;
    if block_keep == 1.0 {
        return Ok(Plan::dense(items));
    }
    let chosen = floor_ranks(&cut.last, block_keep, multiple_of, &format!("keep {block_keep} in the last blocks"))?;
    let budget = cut.untouched + Target::Keep(block_keep).budget(budget::total(&cut.last))?;
    let plan = Plan::new(items, cut.spread(items, chosen), budget, cut.rule(block_keep, multiple_of));
    budget::check_feasible(Target::Params(budget), plan.kept, budget, plan.total)?;
    Ok(plan)
}

/// The last `blocks` blocks are compressed just enough to meet a budget over all blocks: with P the parameters of all
/// items and P_last those of the last blocks, they keep the fraction 1 - (1 - keep) P / P_last, shared as by
/// [`super::even`].
///
/// Errors: `blocks` is 0 or more than there are; a budget that these blocks cannot meet alone.
pub fn last_blocks_within(items: &[Item], target: Target, blocks: usize, multiple_of: usize) -> Result<Plan> {
    budget::check_items(items, multiple_of)?;
    let cut = Cut::new(items, blocks)?;
    let total = budget::total(items);
    let budget = target.budget(total)?;
    if budget == total {
        return Ok(Plan::dense(items));
    }
    let last_total = budget::total(&cut.last);
    let share = Target::Params(budget.saturating_sub(cut.untouched));
    let Ok(chosen) = even_ranks(&cut.last, share, budget.saturating_sub(cut.untouched), multiple_of) else {
        let least = even_floor(&cut.last, multiple_of);
        let smallest = budget::round_up((cut.untouched + least) as f64 / total as f64);
        let (what, of) = (target.describe(), cut.of);
        user_bail!(
            "{what} cannot be met by the last {blocks} of {of} blocks alone";
            "with {blocks} blocks the smallest possible keep is {smallest}; take more blocks to go lower"
        );
    };
    let block_keep = share.fraction(last_total);
    Ok(Plan::new(items, cut.spread(items, chosen), budget, cut.rule(block_keep, multiple_of)))
}

/// Weights of the smallest forms that the rounding allows.
fn even_floor(items: &[Item], multiple_of: usize) -> usize {
    items.iter().map(|item| budget::Ladder::new(item, multiple_of, 1).cost(0)).sum()
}

/// The items, cut in front of the last blocks.
struct Cut {
    /// Index of the first block that is compressed.
    from: usize,
    blocks: usize,
    of: usize,
    last: Vec<Item>,
    /// Weights in the blocks before.
    untouched: usize,
}

impl Cut {
    fn new(items: &[Item], blocks: usize) -> Result<Self> {
        let mut present: Vec<usize> = items.iter().map(|item| item.id.block).collect();
        present.sort_unstable();
        present.dedup();
        let of = present.len();
        if blocks == 0 || blocks > of {
            user_bail!(
                "cannot compress the last {blocks} blocks of a model that has {of}";
                "give a number from 1 to {of}"
            );
        }
        let from = present[of - blocks];
        let last: Vec<Item> = items
            .iter()
            .filter(|item| item.id.block >= from)
            .map(|item| Item::new(item.id, item.out, item.input))
            .collect();
        let untouched = budget::total(items) - budget::total(&last);
        Ok(Self { from, blocks, of, last, untouched })
    }

    /// The choices of the last blocks among dense ones, in the order of all items.
    fn spread(&self, items: &[Item], chosen: Vec<Choice>) -> Vec<Choice> {
        let mut chosen = chosen.into_iter();
        let pick = |item: &Item| if item.id.block >= self.from { chosen.next() } else { None };
        items.iter().map(pick).map(|choice| choice.unwrap_or(Choice::Dense)).collect()
    }

    fn rule(&self, block_keep: f64, multiple_of: usize) -> String {
        let (blocks, of, keep, ranks) = (self.blocks, self.of, short(block_keep), ranks(multiple_of));
        format!("the last {blocks} of {of} blocks keep {keep} of their parameters ({ranks}), the others stay dense")
    }
}

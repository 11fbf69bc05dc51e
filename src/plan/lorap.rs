//! LoRAP's allocation (arXiv 2404.09695): attention by rank, with `rho` times as many parameters for v, o as for q, k;
//! feed-forward layers by width, the same fraction everywhere.
//!
//! The paper knows square attention matrices only: with h the hidden size and break-even h/2,
//! k_att = int(keep h/2), k_vo = int(2 ρ k_att/(1+ρ)), k_qk = int(2 k_att/(1+ρ)); where k_vo reaches h/2, v and o stay
//! dense and q, k take the whole cut, k_qk = int(keep h) - int(h/2). For any shapes the same is said in fractions of
//! break-even, P being parameter counts: f_qk P_qk + f_vo P_vo = keep (P_qk + P_vo) with f_vo P_vo = ρ f_qk P_qk; where
//! one of the two reaches 1, the other takes the rest; rank = floor(f m n / (m + n)).
//!
//! What is neither attention nor a feed-forward layer, as in a state-space block, the paper does not know: it keeps the
//! rank floor(keep m n / (m + n)), as every other rule would have it.
//!
//! Width of a feed-forward layer of N channels: N - (int((s + q) N) - int(q N)) with s = 1 - keep removed and q N the
//! least important channels that are kept all the same.

use super::budget::{self, Ladder, Target, floor};
use super::uniform::{ranks, short};
use super::{Choice, Item, Plan, break_even};
use crate::model::{FfnPart, Role};
use crate::user_bail;
use anyhow::{Result, ensure};

/// Parameters of [`lorap`]; the defaults are the paper's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LorapOptions {
    /// ρ, parameters kept in v, o per parameter kept in q, k. Positive. Default 3.
    pub rho: f64,
    /// q, the fraction of the least important channels that survives, in [0, 1). Default 0.01.
    pub protect: f64,
    /// The paper's integers, nothing topped up, and the rounding may exceed the budget by a channel. Attention matrices
    /// that are not square take the general fractions, rounded down. Default false.
    pub exact: bool,
    /// Ranks and widths are multiples of this. Default 1.
    pub multiple_of: usize,
}

impl Default for LorapOptions {
    fn default() -> Self {
        Self { rho: 3.0, protect: 0.01, exact: false, multiple_of: 1 }
    }
}

/// LoRAP's ranks and widths. Unless `exact`, the budget is never exceeded and what the rounding leaves over goes to
/// attention ranks, one step each, those that lost most by rounding first; with nothing left to raise there, to the
/// width, which stays the same in all blocks that had the same.
///
/// Errors: a keep outside (0, 1]; `rho` or `protect` out of range; a budget too small for one component per linear and
/// one channel per feed-forward layer; a feed-forward layer without its up or down part.
pub fn lorap(items: &[Item], target: Target, options: LorapOptions) -> Result<Plan> {
    budget::check_items(items, options.multiple_of)?;
    let LorapOptions { rho, protect, multiple_of, .. } = options;
    if !(rho > 0.0 && rho.is_finite()) {
        user_bail!(
            "rho {rho} is not a positive number";
            "3, the paper's choice, gives v and o three times the parameters of q and k"
        );
    }
    if !(0.0..1.0).contains(&protect) {
        user_bail!("the protected fraction of channels, {protect}, is not in [0, 1)"; "the paper protects 0.01");
    }
    let total = budget::total(items);
    let budget = target.budget(total)?;
    let widths = Widths::new(items, multiple_of)?;
    if budget == total {
        return Ok(Plan::dense(items));
    }
    let keep = target.fraction(total);
    let ranked: Vec<Item> = items.iter().filter(|item| item.id.role.ffn_part().is_none()).cloned().collect();
    let shares = Shares::new(&ranked, keep, rho);

    let choices = if options.exact {
        let choices = exact(items, &ranked, &widths, keep, &options);
        // Below `protect` the paper's width no longer falls.
        if let Some(i) = choices.iter().position(is_empty).or((keep < protect).then_some(0)) {
            let whole = |keep| keep >= protect && !exact(items, &ranked, &widths, keep, &options).iter().any(is_empty);
            let keeps = (1..=10_000).map(|i| i as f64 / 1e4);
            let smallest = keeps.filter(|other| *other > keep).find(|other| whole(*other)).unwrap_or(1.0);
            let (what, id) = (target.describe(), items[i].id);
            user_bail!(
                "{what} is too small for the paper's rounding, at {id} for one";
                "the smallest possible keep of this rule is {smallest}; without the exact rounding it is smaller"
            );
        }
        choices
    } else {
        let (ranks, extra) = fit(&ranked, &widths, target, budget, total, &options, &shares)?;
        join(items, ranks, |item| widths.choice(item, keep, protect, Some(extra)))
    };
    let vo = if shares.vo >= 1.0 {
        "v and o stay dense".into()
    } else {
        format!("v and o keep {} of theirs", short(shares.vo))
    };
    let mut rule = Vec::new();
    if ranked.iter().any(|item| item.id.role.is_attention()) {
        rule.push(format!("q and k keep {} of their parameters, {vo} ({})", short(shares.qk), ranks(multiple_of)));
    }
    if !widths.items.is_empty() {
        rule.push(format!("feed-forward layers keep about {} of their channels", short(keep)));
    }
    if ranked.iter().any(|item| !item.id.role.is_attention()) {
        let what = "state-space layers have no channels to prune: they keep";
        rule.push(format!("{what} {} of their parameters ({})", short(keep), ranks(multiple_of)));
    }
    Ok(Plan::new(items, choices, budget, rule.join("; ")))
}

fn is_empty(choice: &Choice) -> bool {
    matches!(choice, Choice::Rank(0) | Choice::Width(0))
}

/// The choices of rank and those of width in the order of all items.
fn join(items: &[Item], ranks: Vec<Choice>, width: impl Fn(&Item) -> Choice) -> Vec<Choice> {
    let mut ranks = ranks.into_iter();
    let rank = |item: &Item| if item.id.role.ffn_part().is_none() { ranks.next() } else { None };
    items.iter().map(rank).zip(items).map(|(rank, item)| rank.unwrap_or_else(|| width(item))).collect()
}

/// Fractions of break-even for the two halves of attention, and for what is no attention.
struct Shares {
    qk: f64,
    vo: f64,
    other: f64,
}

impl Shares {
    fn new(ranked: &[Item], keep: f64, rho: f64) -> Self {
        let attention = || ranked.iter().filter(|item| item.id.role.is_attention());
        let params =
            |qk| -> f64 { attention().filter(|item| is_qk(item) == qk).map(|item| item.params() as f64).sum() };
        let (qk, vo, other) = (params(true), params(false), keep);
        let whole = keep * (qk + vo);
        let (f_qk, f_vo) = (whole / ((1.0 + rho) * qk), rho * whole / ((1.0 + rho) * vo));
        // The rounding of the products must not decide whether a half is full.
        let full = 1.0 - 1e-12;
        if qk == 0.0 || vo == 0.0 {
            Self { qk: keep, vo: keep, other }
        } else if f_vo >= full {
            Self { qk: ((whole - vo) / qk).max(0.0), vo: 1.0, other }
        } else if f_qk >= full {
            Self { qk: 1.0, vo: ((whole - qk) / vo).max(0.0), other }
        } else {
            Self { qk: f_qk, vo: f_vo, other }
        }
    }

    fn of(&self, item: &Item) -> f64 {
        match item.id.role {
            Role::Q | Role::K => self.qk,
            Role::V | Role::O => self.vo,
            _ => self.other,
        }
    }
}

fn is_qk(item: &Item) -> bool {
    matches!(item.id.role, Role::Q | Role::K)
}

/// The paper's integers. `int` truncates.
fn exact(items: &[Item], ranked: &[Item], widths: &Widths, keep: f64, options: &LorapOptions) -> Vec<Choice> {
    let LorapOptions { rho, protect, multiple_of, .. } = *options;
    let shares = Shares::new(ranked, keep, rho);
    let side = ranked.first().map_or(0, |item| item.input);
    let paper = |item: &Item| item.id.role.is_attention() && item.out == side && item.input == side;
    let square = ranked.iter().all(paper);
    let rank = |item: &Item| {
        if !square {
            let share = shares.of(item);
            return if share >= 1.0 { item.input } else { floor(share * break_even(item.out, item.input)) };
        }
        let half = side / 2;
        let k_att = floor(keep * side as f64 / 2.0) as f64;
        let k_vo = floor(k_att * 2.0 * rho / (1.0 + rho));
        match (is_qk(item), k_vo >= half) {
            (true, true) => floor(keep * side as f64).saturating_sub(half),
            (true, false) => floor(k_att * 2.0 / (1.0 + rho)),
            (false, true) => side,
            (false, false) => k_vo,
        }
    };
    let choice = |item: &Item| match Choice::of_rank(rank(item), item.out, item.input) {
        Choice::Rank(rank) => Choice::Rank(rank / multiple_of * multiple_of),
        other => other,
    };
    join(items, ranked.iter().map(choice).collect(), |item| widths.choice(item, keep, protect, None))
}

/// Ranks and the change of the paper's width that meet the budget.
fn fit(
    ranked: &[Item],
    widths: &Widths,
    target: Target,
    budget: usize,
    total: usize,
    options: &LorapOptions,
    shares: &Shares,
) -> Result<(Vec<Choice>, isize)> {
    let ladders: Vec<Ladder> = ranked.iter().map(|item| Ladder::new(item, options.multiple_of, 1)).collect();
    let (keep, protect) = (target.fraction(total), options.protect);
    let narrowest = widths.params(keep, protect, Some(isize::MIN));
    let least = budget::cost(&ladders, &vec![0; ladders.len()]) + narrowest;
    budget::check_feasible(target, least, budget, total)?;

    let fractions: Vec<f64> = ranked.iter().map(|item| shares.of(item)).collect();
    let scale = budget::common_scale(&ladders, &fractions, 1.0, budget - narrowest);
    let mut levels = budget::levels_at(&ladders, &fractions, scale);
    let spent = budget::cost(&ladders, &levels);

    // The paper's width may be a channel too much after its rounding; more when attention could not shrink enough.
    let extra = widths.widest(keep, protect, budget - spent, 0);
    let left = budget - spent - widths.params(keep, protect, Some(extra));
    let left = budget::hand_out(&ladders, &mut levels, &fractions, left);
    let spent = budget::cost(&ladders, &levels);
    let saturated = ladders.iter().zip(&levels).all(|(ladder, &level)| ladder.raise(level).is_none());
    let extra = if saturated && left > 0 { widths.widest(keep, protect, budget - spent, isize::MAX) } else { extra };
    Ok((ladders.iter().zip(levels).map(|(ladder, level)| ladder.choice(level)).collect(), extra))
}

/// The feed-forward layers of the model.
struct Widths<'a> {
    items: Vec<&'a Item>,
    multiple_of: usize,
}

impl<'a> Widths<'a> {
    fn new(items: &'a [Item], multiple_of: usize) -> Result<Self> {
        let items: Vec<&Item> = items.iter().filter(|item| item.id.role.ffn_part().is_some()).collect();
        for item in &items {
            let n = channels(item);
            let find = |role| items.iter().find(|other| other.id.block == item.id.block && other.id.role == role);
            for part in [FfnPart::Up, FfnPart::Down] {
                let (block, role) = (item.id.block, item.id.role.sibling(part));
                let Some(other) = find(role) else {
                    user_bail!(
                        "block {block}: channels leave up and down together, but {role} is not in the budget";
                        "include the whole feed-forward layer or none of it"
                    );
                };
                ensure!(
                    channels(other) == n,
                    "block {block}: {} has {n} channels, {role} {}",
                    item.id,
                    channels(other)
                );
            }
        }
        Ok(Self { items, multiple_of })
    }

    /// The paper's width, rounded down to a whole step; with `extra`, that many steps more, between one step and N.
    fn width(&self, n: usize, keep: f64, protect: f64, extra: Option<isize>) -> usize {
        let removed = floor((1.0 - keep + protect) * n as f64).min(n) - floor(protect * n as f64);
        let step = self.multiple_of.min(n);
        let steps = (n - removed) / step;
        extra.map_or(steps * step, |extra| (steps.saturating_add_signed(extra)).saturating_mul(step).clamp(step, n))
    }

    fn choice(&self, item: &Item, keep: f64, protect: f64, extra: Option<isize>) -> Choice {
        let n = channels(item);
        let width = self.width(n, keep, protect, extra);
        if width >= n { Choice::Dense } else { Choice::Width(width) }
    }

    fn params(&self, keep: f64, protect: f64, extra: Option<isize>) -> usize {
        self.items.iter().map(|item| item.cost(self.choice(item, keep, protect, extra))).sum()
    }

    /// The largest change ≤ `most` of the paper's widths that costs at most `budget`.
    fn widest(&self, keep: f64, protect: f64, budget: usize, most: isize) -> isize {
        let n = self.items.iter().map(|item| channels(item)).max().unwrap_or(0) as isize;
        let (mut low, mut high) = (-n, most.min(n));
        while low < high {
            let middle = low + (high - low + 1) / 2;
            if self.params(keep, protect, Some(middle)) <= budget { low = middle } else { high = middle - 1 }
        }
        low
    }
}

/// N: the side of the matrix that lies inside the feed-forward layer.
fn channels(item: &Item) -> usize {
    if item.id.role.ffn_part() == Some(FfnPart::Down) { item.input } else { item.out }
}

//! Sums of statistics: those of different texts of the same model add up.

use super::collect::BlockStats;
use super::origin::{FORMAT, Origin};
use super::stats::SiteStats;
use super::store::StatsStore;
use crate::progress::Progress;
use crate::user_bail;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// Adds the statistics of several folders of the same model into the folder `out`, which a merge of the same folders that was
/// cut short is continued in.
///
/// # Errors
/// If a folder is unfinished or damaged, if two are of different models or of the same text, or if `out` holds anything else.
pub fn merge(folders: &[PathBuf], out: &Path, progress: &dyn Progress) -> Result<StatsStore> {
    let mut parts = Vec::new();
    for dir in folders {
        let Some(store) = StatsStore::open(dir)? else {
            user_bail!("{} holds no statistics", dir.display(); "make them with `softlm calibrate`")
        };
        if let Some(index) = store.missing() {
            user_bail!("{} lacks the statistics of block {index}", dir.display(); "finish it with the command that began it");
        }
        if !store.is_finished() {
            user_bail!("{} was not finished", dir.display(); "finish it with the command that began it");
        }
        parts.push(store);
    }
    let origin = added(&parts)?;
    for index in 0..origin.blocks {
        check_sizes(&parts, index)?;
    }
    let target = StatsStore::fill(out, origin, progress)?;
    if target.is_finished() {
        return Ok(target);
    }
    progress.stage("merging", target.origin.blocks as u64);
    for index in 0..target.origin.blocks {
        if !target.has(index) {
            target.put(index, &sum(&parts, index)?)?;
        }
        progress.step(1)?;
    }
    Ok(target)
}

/// What the sum of `parts` is made from.
fn added(parts: &[StatsStore]) -> Result<Origin> {
    let Some((first, others)) = parts.split_first() else { user_bail!("nothing to merge"; "name at least one folder") };
    let mut origin = first.origin.clone();
    (origin.format, origin.softlm) = (FORMAT, env!("CARGO_PKG_VERSION").to_string());
    origin.parts = parts.iter().map(StatsStore::fingerprint).collect::<Result<_>>()?;
    for (place, other) in others.iter().enumerate() {
        let (a, b) = (first.dir().display(), other.dir().display());
        if let Some(difference) = origin.differences(&other.origin).first() {
            user_bail!(
                "{a} was made from {}, {b} from {}: {difference}", origin.model, other.origin.model;
                "only statistics of the same model, with the same config.json and tokenizer, add up"
            );
        }
        for text in &other.origin.texts {
            if let Some(earlier) = parts[..=place].iter().find(|part| part.origin.texts.contains(text)) {
                let earlier = earlier.dir().display();
                user_bail!("{earlier} and {b} hold the same text, which would count twice: {text}"; "merge each text once");
            }
        }
        origin.texts.extend(other.origin.texts.iter().cloned());
        let counts = (origin.tokens.checked_add(other.origin.tokens), origin.heldout.checked_add(other.origin.heldout));
        let (Some(tokens), Some(heldout)) = counts else {
            user_bail!("{b} says that it is of {} tokens, which is more than can be", other.origin.tokens; "collect it again");
        };
        (origin.tokens, origin.heldout) = (tokens, heldout);
    }
    Ok(origin)
}

/// Fails unless block `index` has the same sites and widths everywhere.
fn check_sizes(parts: &[StatsStore], index: usize) -> Result<()> {
    let Some((first, others)) = parts.split_first() else { return Ok(()) };
    let mine = first.block(index)?.sites()?;
    for other in others {
        let theirs = other.block(index)?.sites()?;
        let (a, b) = (first.dir().display(), other.dir().display());
        for site in mine.keys().chain(theirs.keys()) {
            match (mine.get(site), theirs.get(site)) {
                (Some(one), Some(two)) if one.width == two.width => {}
                (Some(one), Some(two)) => user_bail!(
                    "block {index}: {site} has {} inputs in {a} and {} in {b}", one.width, two.width;
                    "only statistics of the same model add up: collect them again"
                ),
                (here, _) => {
                    let (with, without) = if here.is_some() { (a, b) } else { (b, a) };
                    user_bail!(
                        "block {index}: {with} has {site}, {without} has not";
                        "collect both with or without --small-linears"
                    );
                }
            }
        }
    }
    Ok(())
}

/// The sum of block `index`.
fn sum(parts: &[StatsStore], index: usize) -> Result<BlockStats> {
    let mut sum = BlockStats::new();
    for part in parts {
        for (site, stats) in part.get(index)? {
            let Some(mine) = sum.get_mut(&site) else {
                sum.insert(site, stats);
                continue;
            };
            mine.merge(&stats).with_context(|| format!("block {index} of {}: {site}", part.dir().display()))?;
        }
    }
    Ok(sum)
}

impl SiteStats {
    /// Adds the sums of another run over the same site.
    ///
    /// # Errors
    /// If the other has another width, or more tokens than can be counted.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let (n, width) = (self.width(), other.width());
        let Some(tokens) = self.tokens.checked_add(other.tokens).filter(|_| n == width) else {
            user_bail!("sums over {} tokens of {n} inputs and {} of {width} do not add up", self.tokens, other.tokens);
        };
        self.tokens = tokens;
        self.gram.add_assign(&other.gram);
        self.sum.iter_mut().zip(&other.sum).for_each(|(a, b)| *a += b);
        self.heldout.extend_from_slice(&other.heldout);
        Ok(())
    }
}

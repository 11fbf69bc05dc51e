//! Sends states through a block and sums what enters its sites.

use super::states::States;
use super::stats::SiteStats;
use crate::linalg::{Mat, gram_add};
use crate::model::{Block, Flow, Site, Tap, with_numbers};
use crate::user_bail;
use anyhow::Result;
use candle_core::Tensor;
use std::collections::BTreeMap;

/// Statistics of one block.
pub type BlockStats = BTreeMap<Site, SiteStats>;

/// Sums the inputs of `sites` over `states`, and keeps the inputs of `heldout`.
///
/// The forward pass stops behind the last of the sites, so early sites are cheap. `heldout` states never enter the
/// sums.
///
/// An expert to which fewer tokens were routed than a site of it has channels has too little to be calibrated with: that
/// site then sees every token of the block, as if all of them had been routed there.
pub fn collect(block: &Block, states: &States, heldout: &States, sites: &[Site]) -> Result<BlockStats> {
    let mut stats = gather(block, states, heldout, sites, false)?;
    let few = |site: &Site| {
        let starved = |stats: &SiteStats| stats.tokens < stats.width() as u64;
        expert(*site).is_some() && stats.get(site).is_some_and(starved)
    };
    let starved: Vec<Site> = sites.iter().copied().filter(few).collect();
    if !starved.is_empty() {
        stats.extend(gather(block, states, heldout, &starved, true)?);
    }
    for (site, stats) in &mut stats {
        stats.gram.mirror_lower();
        if !(stats.sum.iter().all(|x| x.is_finite()) && stats.heldout.iter().all(|x| x.is_finite())) {
            user_bail!(
                "NaN or infinite activations at site {site}";
                "the checkpoint is damaged, or its weights overflow f32"
            );
        }
    }
    Ok(stats)
}

/// The expert that a site belongs to.
pub(super) fn expert(site: Site) -> Option<u16> {
    match site {
        Site::ExpertIn(expert) | Site::ExpertOut(expert) => Some(expert),
        _ => None,
    }
}

/// One pass over both kinds of states; with `every_token`, the experts among `sites` see what is routed to others too.
fn gather(block: &Block, states: &States, heldout: &States, sites: &[Site], every_token: bool) -> Result<BlockStats> {
    let mut collector = Collector { sites, every_token, keep: false, stats: BTreeMap::new() };
    for batch in states.batches() {
        block.forward(batch, &mut collector)?;
    }
    collector.keep = true;
    for batch in heldout.batches() {
        block.forward(batch, &mut collector)?;
    }
    Ok(collector.stats)
}

struct Collector<'a> {
    sites: &'a [Site],
    every_token: bool,
    /// Keep rows as held-out inputs instead of adding them to the sums.
    keep: bool,
    stats: BlockStats,
}

impl Tap for Collector<'_> {
    fn see(&mut self, site: Site, x: &Tensor) -> Result<Flow> {
        if self.sites.contains(&site) {
            let width = x.dims().last().copied().unwrap_or(0);
            let stats = self.stats.entry(site).or_insert_with(|| SiteStats::empty(width));
            let keep = self.keep;
            with_numbers(x, |rows| if keep { stats.heldout.extend_from_slice(rows) } else { stats.add(rows) })?;
        }
        Ok(if self.sites.last() == Some(&site) { Flow::Stop } else { Flow::Continue })
    }

    fn wants_every_token(&self, expert: u16) -> bool {
        self.every_token && self.sites.iter().any(|site| self::expert(*site) == Some(expert))
    }
}

impl SiteStats {
    /// Nothing seen yet, for inputs of width `n`.
    pub fn empty(n: usize) -> Self {
        Self { tokens: 0, gram: Mat::zeros(n, n), sum: vec![0.0; n], heldout: Vec::new() }
    }

    /// Adds `rows`, row-major (tokens, n). The Gram matrix is complete only after `gram.mirror_lower()`.
    pub fn add(&mut self, rows: &[f32]) {
        let n = self.width();
        gram_add(&mut self.gram, rows);
        for row in rows.chunks_exact(n) {
            self.sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
        }
        self.tokens += (rows.len() / n) as u64;
    }
}

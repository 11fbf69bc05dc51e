//! Sends states through a block and sums what enters its sites.

use super::stats::SiteStats;
use crate::forward::States;
use crate::linalg::{GramSums, Mat, gram_add};
use crate::memory;
use crate::model::{Block, Flow, Site, Tap};
use crate::ops::{MatmulPrecision, ProductType, with_numbers};
use crate::user_bail;
use anyhow::Result;
use candle_core::{D, DType, Tensor};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// Statistics of one block.
pub type BlockStats = BTreeMap<Site, SiteStats>;

/// Sums the inputs of `sites` over `states`, and keeps the inputs of `heldout`, which never enter the sums. Without
/// `states` nothing is summed.
///
/// The forward pass stops behind the last of the sites, so early sites are cheap.
///
/// An expert to which fewer tokens were routed than a site of it has channels has too little to be calibrated with: that
/// site then sees every token of the block, as if all of them had been routed there.
pub fn collect(block: &Block, states: &States, heldout: &States, sites: &[Site]) -> Result<BlockStats> {
    let mut collector = Collector::new(block, sites, states, true);
    states.show(block, &mut collector)?;
    collector.keep = true;
    heldout.show(block, &mut collector)?;
    finish(collector, block, states, heldout)
}

/// [`collect`] of all sites of a block in the pass that also takes the states through it.
pub fn collect_and_advance(
    block: &Block,
    states: &mut States,
    heldout: &mut States,
    sites: &[Site],
) -> Result<BlockStats> {
    let mut collector = Collector::new(block, sites, states, false);
    // Experts that saw too little have to see what entered the block.
    let experts = sites.iter().any(|site| expert(*site).is_some());
    let before = if experts { Some((states.copy()?, heldout.copy()?)) } else { None };
    states.advance_showing(block, &mut collector)?;
    collector.keep = true;
    heldout.advance_showing(block, &mut collector)?;
    match &before {
        Some((states, heldout)) => finish(collector, block, states, heldout),
        None => finish(collector, block, states, heldout),
    }
}

fn finish(collector: Collector, block: &Block, states: &States, heldout: &States) -> Result<BlockStats> {
    let (sites, sums) = (collector.sites, collector.sums);
    let mut stats = collector.into_stats()?;
    let few = |site: &Site| {
        let starved = |stats: &SiteStats| stats.tokens < stats.width() as u64;
        sums && expert(*site).is_some() && stats.get(site).is_some_and(starved)
    };
    let starved: Vec<Site> = sites.iter().copied().filter(few).collect();
    if !starved.is_empty() {
        let mut collector = Collector { every_token: true, ..Collector::new(block, &starved, states, true) };
        states.show(block, &mut collector)?;
        collector.keep = true;
        heldout.show(block, &mut collector)?;
        stats.extend(collector.into_stats()?);
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
    memory::trim();
    Ok(stats)
}

/// The expert that a site belongs to.
pub(super) fn expert(site: Site) -> Option<u16> {
    match site {
        Site::ExpertIn(expert) | Site::ExpertOut(expert) => Some(expert),
        _ => None,
    }
}

struct Collector<'a> {
    /// What is lost of inputs on their way into a linear.
    precision: MatmulPrecision,
    sites: &'a [Site],
    /// Whether anything is summed.
    sums: bool,
    /// Number of tokens that go through the block.
    tokens: usize,
    /// Whether the pass ends behind the last site.
    stops: bool,
    /// Whether the experts among the sites see what is routed to others too.
    every_token: bool,
    /// Keep rows as held-out inputs instead of adding them to the sums.
    keep: bool,
    stats: BlockStats,
    /// Sums that have not left the device yet.
    on_device: BTreeMap<Site, DeviceSums>,
    /// Those of the pass that is going on.
    of_pass: BTreeMap<Site, DeviceSums>,
    /// Held-out numbers of every site in front of that pass.
    heldout_before: BTreeMap<Site, usize>,
    /// Whether that pass has left something that cannot be forgotten.
    summed_here: bool,
}

impl<'a> Collector<'a> {
    fn new(block: &Block, sites: &'a [Site], states: &States, stops: bool) -> Self {
        Self {
            precision: block.precision(),
            sites,
            sums: !states.is_empty(),
            tokens: states.tokens(),
            stops,
            every_token: false,
            keep: false,
            stats: BTreeMap::new(),
            on_device: BTreeMap::new(),
            of_pass: BTreeMap::new(),
            heldout_before: BTreeMap::new(),
            summed_here: false,
        }
    }

    /// Keeps what the last pass has left.
    fn commit(&mut self) -> Result<()> {
        for (site, sums) in std::mem::take(&mut self.of_pass) {
            match self.on_device.entry(site) {
                Entry::Vacant(entry) => drop(entry.insert(sums)),
                Entry::Occupied(mut entry) => entry.get_mut().add(sums)?,
            }
        }
        Ok(())
    }

    /// All sums, in this machine's memory.
    fn into_stats(mut self) -> Result<BlockStats> {
        self.commit()?;
        for (site, sums) in self.on_device {
            if let Some(stats) = self.stats.get_mut(&site) {
                sums.move_into(stats)?;
            }
        }
        Ok(self.stats)
    }
}

impl Tap for Collector<'_> {
    fn see(&mut self, site: Site, x: &Tensor) -> Result<Flow> {
        if self.sites.contains(&site) {
            let width = x.dims().last().copied().unwrap_or(0);
            let stats = self.stats.entry(site).or_insert_with(|| SiteStats::empty(width, self.sums));
            match (self.keep, x.device().is_cpu()) {
                (true, _) => with_numbers(x, |rows| stats.heldout.extend_from_slice(rows))?,
                (false, true) => {
                    self.summed_here = true;
                    let sums =
                        GramSums::suiting(width, self.tokens, self.precision.on(x.device()) == ProductType::Bf16);
                    with_numbers(x, |rows| stats.add(rows, sums))?;
                }
                (false, false) => drop(self.of_pass.insert(site, DeviceSums::of(x)?)),
            }
        }
        Ok(if self.stops && self.sites.last() == Some(&site) { Flow::Stop } else { Flow::Continue })
    }

    fn begin(&mut self) -> Result<()> {
        self.summed_here = false;
        self.heldout_before = self.stats.iter().map(|(site, stats)| (*site, stats.heldout.len())).collect();
        self.commit()
    }

    fn forget(&mut self) -> bool {
        self.of_pass.clear();
        for (site, stats) in &mut self.stats {
            stats.heldout.truncate(self.heldout_before.get(site).copied().unwrap_or(0));
        }
        !self.summed_here
    }

    fn wants_every_token(&self, expert: u16) -> bool {
        self.every_token && self.sites.iter().any(|site| self::expert(*site) == Some(expert))
    }
}

/// The sums of a site where the activations are: only n² numbers leave the device, not every token.
struct DeviceSums {
    tokens: u64,
    /// Σ x xᵀ in f64, (n, n).
    gram: Tensor,
    /// Σ x in f64, (n).
    sum: Tensor,
}

impl DeviceSums {
    /// Of activations (…, n).
    fn of(x: &Tensor) -> Result<Self> {
        let width = x.dim(D::Minus1)?;
        let x = x.reshape(((), width))?.to_dtype(DType::F64)?;
        Ok(Self { tokens: x.dim(0)? as u64, gram: x.t()?.matmul(&x)?, sum: x.sum(0)? })
    }

    fn add(&mut self, other: Self) -> Result<()> {
        self.tokens += other.tokens;
        self.gram = (&self.gram + other.gram)?;
        self.sum = (&self.sum + other.sum)?;
        Ok(())
    }

    fn move_into(self, stats: &mut SiteStats) -> Result<()> {
        let n = stats.width();
        stats.tokens += self.tokens;
        // Symmetric up to rounding, of which only the lower triangle is kept: rows can pass for columns.
        let gram: Vec<f64> = self.gram.flatten_all()?.to_vec1()?;
        for (j, column) in gram.chunks_exact(n).enumerate() {
            stats.gram.col_mut(j)[j..].iter_mut().zip(&column[j..]).for_each(|(sum, x)| *sum += x);
        }
        stats.sum.iter_mut().zip(self.sum.to_vec1::<f64>()?).for_each(|(sum, x)| *sum += x);
        Ok(())
    }
}

impl SiteStats {
    /// Nothing seen yet, for inputs of width `n`; without room for `sums`, only held-out inputs can be kept.
    pub fn empty(n: usize, sums: bool) -> Self {
        let side = if sums { n } else { 0 };
        Self { tokens: 0, gram: Mat::zeros(side, side), sum: vec![0.0; n], heldout: Vec::new() }
    }

    /// Adds `rows`, row-major (tokens, n), with products summed as `sums` says. The Gram matrix is complete only after
    /// `gram.mirror_lower()`.
    pub fn add(&mut self, rows: &[f32], sums: GramSums) {
        let n = self.width();
        gram_add(&mut self.gram, rows, sums);
        for row in rows.chunks_exact(n) {
            self.sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
        }
        self.tokens += (rows.len() / n) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn sums_on_a_device_are_those_of_the_processor() {
        let values: Vec<f32> = (0..2 * 37 * 11).map(|i| (i as f32 * 1.7).sin()).collect();
        let x = Tensor::from_vec(values.clone(), (2, 37, 11), &Device::Cpu).unwrap();
        let mut here = SiteStats::empty(11, true);
        (0..2).for_each(|_| here.add(&values, GramSums::F64));
        here.gram.mirror_lower();
        let mut sums = DeviceSums::of(&x).unwrap();
        sums.add(DeviceSums::of(&x).unwrap()).unwrap();
        let mut there = SiteStats::empty(11, true);
        sums.move_into(&mut there).unwrap();
        there.gram.mirror_lower();
        assert_eq!((there.tokens, there.width()), (here.tokens, 11));
        assert!(there.gram.sub(&here.gram).frobenius() < 1e-12 * here.gram.frobenius());
        assert!(there.sum.iter().zip(&here.sum).all(|(a, b)| (a - b).abs() < 1e-11));
    }

    #[test]
    fn what_a_failed_pass_has_left_is_forgotten() {
        let x = Tensor::from_vec(vec![1f32, 2.0, 3.0, 4.0], (1, 2, 2), &Device::Cpu).unwrap();
        let sites = [Site::MlpIn];
        let empty = BTreeMap::from([(Site::MlpIn, SiteStats::empty(2, true))]);
        let collector = |keep| Collector {
            precision: MatmulPrecision::Highest,
            sites: &sites,
            sums: true,
            tokens: 2,
            stops: false,
            every_token: false,
            keep,
            stats: empty.clone(),
            on_device: BTreeMap::new(),
            of_pass: BTreeMap::new(),
            heldout_before: BTreeMap::new(),
            summed_here: false,
        };
        // As a pass on a device leaves them.
        let mut sums = collector(false);
        for failed in [false, true, false] {
            sums.begin().unwrap();
            sums.of_pass.insert(Site::MlpIn, DeviceSums::of(&x).unwrap());
            assert!(!failed || sums.forget());
        }
        let stats = &sums.into_stats().unwrap()[&Site::MlpIn];
        assert_eq!((stats.tokens, stats.sum.as_slice(), stats.gram.get(1, 0)), (4, &[8.0, 12.0][..], 28.0));
        let mut heldout = collector(true);
        for failed in [false, true, false] {
            heldout.begin().unwrap();
            heldout.see(Site::MlpIn, &x).unwrap();
            assert!(!failed || heldout.forget());
        }
        assert_eq!(heldout.stats[&Site::MlpIn].heldout, [1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0]);
        // On the processor a pass adds to the sums at once.
        let mut here = collector(false);
        here.begin().unwrap();
        here.see(Site::MlpIn, &x).unwrap();
        assert!(!here.forget());
    }
}

//! Several sizes of one set of decompositions: `--elastic` measures those that were named, `--max-ppl-increase` looks for the
//! smallest whose perplexity rises by no more than that.
//!
//! A trial cuts the model to a size and measures it as the result will be, before healing. With x = 1 − keep and
//! ρ = ln(perplexity / the original's), the worst over all corpora, the next size comes from ρ ~ xᵖ through the trials that
//! are nearest, and lies between the largest x that was good enough and the smallest that was not.

use super::quality::{self, Quality};
use super::{Run, allocate, assemble};
use crate::checkpoint::{NamedTensor, Source, TensorFile, write_sealed};
use crate::error::is_not_finite;
use crate::machine::StageClock;
use crate::model::{Model, Output};
use crate::plan::{Plan, Target};
use crate::report::Trial;
use crate::user_bail;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs;

/// Sizes tried, at most.
const TRIALS: usize = 7;
/// The first of them.
const FIRST: f64 = 0.1;
/// The largest x there is.
const MOST: f64 = 0.9;
/// Sizes this close to each other are the same.
const RESOLUTION: f64 = 0.005;
/// The exponent p where a single trial says nothing of it, and between what it lies.
const EXPONENT: f64 = 1.5;
const EXPONENTS: (f64, f64) = (0.7, 4.0);
/// What of the allowed ρ is aimed at, and what is enough.
const AIM: f64 = 0.96;
const ENOUGH: f64 = 0.9;
/// A ρ below this share of it is noise.
const NOTHING: f64 = 0.02;
/// How much larger than any good x the next one is, at most.
const STRIDE: f64 = 3.0;

/// The tensor with a row for every trial: keep, and the perplexity on every corpus. The first row is the original's.
const ROWS: &str = "trials";

/// What makes a plan for a budget, and what cuts every block as it says.
pub(super) type Planned<'f> = dyn Fn(Target) -> Result<Plan> + 'f;
pub(super) type CutAll<'f> = dyn Fn(&Plan) -> Result<()> + 'f;

impl Run<'_> {
    /// Cuts to the recipe's size, which may have to be found first, or is the largest of several that are measured.
    pub(super) fn settle(&self, planned: &Planned, cut: &CutAll, clock: &mut StageClock) -> Result<(Plan, Vec<Trial>)> {
        let mut target = allocate::target(self.recipe, &self.model)?;
        let mut trials = Vec::new();
        if self.recipe.max_ppl_increase.is_some() || self.recipe.elastic.is_some() && !self.texts.is_empty() {
            let mut tried = Tried::open(self, planned, cut)?;
            if let Some(limit) = self.recipe.max_ppl_increase {
                target = Target::Keep(tried.search(limit, clock)?);
            }
            for &keep in self.recipe.elastic.iter().flatten() {
                tried.measure(keep, clock)?;
            }
            trials = tried.trials();
            self.job.discard_assembly()?;
            self.forget_blocks()?;
        }
        let plan = planned(target)?;
        clock.stage("compressing", self.model.blocks() as u64);
        cut(&plan)?;
        Ok((plan, trials))
    }

    /// Refuses what has no perplexity.
    pub(super) fn check_search(&self) -> Result<()> {
        let flag = self.recipe.max_ppl_increase.map(|_| "--max-ppl-increase");
        let flag = flag.or(self.recipe.elastic.as_ref().filter(|_| !self.texts.is_empty()).map(|_| "--elastic"));
        if let Some(flag) = flag.filter(|_| matches!(self.model.output(), Output::Classes(_) | Output::States)) {
            user_bail!(
                "{flag} measures a perplexity, and {} predicts no tokens", self.model.source().label();
                "use --keep, or --elastic with --ppl none"
            );
        }
        Ok(())
    }

    /// The perplexity of `model` on every corpus.
    fn perplexities(&self, model: &Model) -> Result<Vec<f64>> {
        let of = |text| match quality::measure(model, None, text, self.progress)? {
            Quality::Likelihood(own, _) => Ok(own.perplexity.ppl),
            Quality::Embeddings(_) => bail!("a model without tokens was to be refused before any work"),
        };
        self.texts.iter().map(of).collect()
    }

    /// Blocks of another size.
    fn forget_blocks(&self) -> Result<()> {
        for index in 0..self.model.blocks() {
            let path = self.job.block_file(index);
            if path.exists() {
                fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            }
        }
        Ok(())
    }
}

/// Sizes that were tried, by this run or by one that was interrupted.
struct Tried<'r, 'a> {
    run: &'r Run<'a>,
    planned: &'r Planned<'r>,
    cut: &'r CutAll<'r>,
    /// Keep, and the perplexity on every corpus; the first is the original's.
    rows: Vec<(f64, Vec<f64>)>,
}

impl<'r, 'a> Tried<'r, 'a> {
    fn open(run: &'r Run<'a>, planned: &'r Planned<'r>, cut: &'r CutAll<'r>) -> Result<Self> {
        let path = run.job.trials_file();
        let numbers = if path.exists() { TensorFile::open_unfinished(&path)?.f64s(ROWS)? } else { Vec::new() };
        let rows = numbers.chunks_exact(1 + run.texts.len()).map(|row| (row[0], row[1..].to_vec())).collect();
        Ok(Self { run, planned, cut, rows })
    }

    /// The original's perplexities.
    fn original(&mut self, clock: &mut StageClock) -> Result<()> {
        if !self.rows.is_empty() {
            return Ok(());
        }
        let Run { model, texts, .. } = self.run;
        clock.stage("searching", texts.iter().map(|text| quality::steps(model, None, text)).sum());
        let ppl = self.run.perplexities(model)?;
        if let Some((text, _)) = texts.iter().zip(&ppl).find(|(_, ppl)| !ppl.is_finite()) {
            user_bail!(
                "the original's perplexity on {} is not finite: there is nothing to compare with", text.corpus.name;
                "evaluate on another --ppl corpus"
            );
        }
        self.record(1.0, ppl)
    }

    /// Cuts to `keep` and measures, unless that was done before.
    fn measure(&mut self, keep: f64, clock: &mut StageClock) -> Result<()> {
        self.original(clock)?;
        if self.rows.iter().any(|(other, _)| *other == keep) {
            return Ok(());
        }
        let Run { model, texts, progress, .. } = self.run;
        let evaluating: u64 = texts.iter().map(|text| quality::steps(model, None, text)).sum();
        clock.stage("searching", 2 * model.blocks() as u64 + evaluating);
        self.run.forget_blocks()?;
        let plan = (self.planned)(Target::Keep(keep))?;
        (self.cut)(&plan)?;
        let dir = assemble::weights(self.run, &plan, &|index| self.run.job.block_file(index))?;
        let source = Source::open_unfinished(&dir)?.with_label(format!("the model at keep {keep}"));
        let ppl = match self.run.perplexities(&Model::load(source, model.compute())?) {
            Err(error) if is_not_finite(&error) => vec![f64::INFINITY; texts.len()],
            found => found?,
        };
        progress.note(&format!("keep {keep}: perplexity {:+.2} %", 100.0 * worst(&ppl, &self.rows[0].1)));
        self.record(keep, ppl)
    }

    /// The least keep whose perplexity rises by no more than `limit`.
    fn search(&mut self, limit: f64, clock: &mut StageClock) -> Result<f64> {
        while let Some(x) = next(&points(&self.trials()), limit.ln_1p()) {
            self.measure((1e3 * (1.0 - x)).round() / 1e3, clock)?;
        }
        let trials = self.trials();
        let good = trials.iter().filter(|trial| trial.increase <= limit).map(|trial| trial.keep);
        let Some(keep) = good.min_by(f64::total_cmp) else {
            let shown = trials.iter().map(|t| format!("{} {:+.2} %", t.keep, 100.0 * t.increase));
            user_bail!(
                "no size is good enough for --max-ppl-increase {}: perplexity at keep {}",
                self.run.recipe.written.max_ppl_increase.as_deref().unwrap_or_default(),
                shown.collect::<Vec<_>>().join(", ");
                "allow more"
            )
        };
        Ok(keep)
    }

    fn trials(&self) -> Vec<Trial> {
        let Some(((_, original), rows)) = self.rows.split_first() else { return Vec::new() };
        rows.iter().map(|(keep, ppl)| Trial { keep: *keep, increase: worst(ppl, original) }).collect()
    }

    fn record(&mut self, keep: f64, ppl: Vec<f64>) -> Result<()> {
        self.rows.push((keep, ppl));
        let numbers: Vec<f64> = self.rows.iter().flat_map(|(keep, ppl)| [&[*keep], ppl.as_slice()].concat()).collect();
        let tensor = NamedTensor::f64(ROWS, [self.rows.len(), 1 + self.run.texts.len()], &numbers);
        write_sealed(&self.run.job.trials_file(), &[tensor], &BTreeMap::new())
    }
}

/// By how much of it perplexity rose where it rose most.
fn worst(ppl: &[f64], original: &[f64]) -> f64 {
    let increase = |(after, before): (&f64, &f64)| if after.is_finite() { after / before - 1.0 } else { f64::INFINITY };
    ppl.iter().zip(original).map(increase).fold(f64::NEG_INFINITY, f64::max)
}

/// (x, ρ) of every trial.
fn points(trials: &[Trial]) -> Vec<(f64, f64)> {
    trials.iter().map(|trial| (1.0 - trial.keep, trial.increase.ln_1p())).collect()
}

/// The x to try next for a ρ of at most `allowed`; nothing when a good one is known well enough, or none is to be found.
fn next(tried: &[(f64, f64)], allowed: f64) -> Option<f64> {
    if tried.is_empty() {
        return Some(FIRST);
    }
    let bad = tried.iter().filter(|(_, rho)| *rho > allowed).min_by(|a, b| a.0.total_cmp(&b.0)).copied();
    let limit = bad.map_or(f64::INFINITY, |(x, _)| x);
    let good =
        tried.iter().filter(|(x, rho)| *rho <= allowed && *x < limit).max_by(|a, b| a.0.total_cmp(&b.0)).copied();
    let (least, most) = (good.map_or(0.0, |(x, _)| x), limit.min(MOST));
    let found = good.is_some_and(|(_, rho)| rho >= ENOUGH * allowed);
    if found || tried.len() >= TRIALS || most - least <= RESOLUTION {
        return None;
    }
    let usable = |point: Option<(f64, f64)>| point.filter(|(_, rho)| *rho > NOTHING * allowed && rho.is_finite());
    let power = |(x, rho): (f64, f64), p: f64| x * (AIM * allowed / rho).powf(1.0 / p);
    let guess = match (usable(good), usable(bad)) {
        (Some(low), Some(high)) => {
            let p = (high.1 / low.1).ln() / (high.0 / low.0).ln();
            power(low, p.clamp(EXPONENTS.0, EXPONENTS.1))
        }
        // Between a good one and a bad one, of which one says nothing of the other.
        _ if good.is_some() && bad.is_some() => 0.5 * (least + most),
        (Some(point), None) | (None, Some(point)) => {
            let other = tried.iter().copied().rfind(|other| *other != point && usable(Some(*other)).is_some());
            let p = other.map_or(EXPONENT, |other| (point.1 / other.1).ln() / (point.0 / other.0).ln());
            power(point, p.clamp(EXPONENTS.0, EXPONENTS.1))
        }
        // Nothing but infinite perplexities, or none that rose.
        (None, None) => good.map_or(most / STRIDE, |(x, _)| STRIDE * x),
    };
    let margin = if good.is_some() && bad.is_some() { 0.1 * (most - least) } else { 0.0 };
    let reached = if bad.is_none() { least * STRIDE } else { most };
    let x = guess.min(reached).clamp(least + margin, most - margin);
    // As far as it went already, or as good as nothing.
    let known = tried.iter().any(|(other, _)| (other - x).abs() < RESOLUTION / 5.0);
    (!known && x >= RESOLUTION / 2.0).then_some(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Trials until nothing is left to try, for ρ as a function of x.
    fn searched(rho: impl Fn(f64) -> f64, allowed: f64) -> Vec<(f64, f64)> {
        let mut tried = Vec::new();
        while let Some(x) = next(&tried, allowed) {
            assert!(x > 0.0 && x <= MOST && tried.len() < TRIALS, "{tried:?}");
            tried.push((x, rho(x)));
        }
        tried
    }

    fn best(tried: &[(f64, f64)], allowed: f64) -> Option<f64> {
        tried.iter().filter(|(_, rho)| *rho <= allowed).map(|(x, _)| *x).max_by(f64::total_cmp)
    }

    #[test]
    fn few_trials_find_the_size() {
        for exponent in [1.0, 1.5, 2.2, 3.0] {
            for scale in [0.3, 2.0, 10.0] {
                for allowed in [0.01, 0.05, 0.2, 0.7] {
                    let tried = searched(|x: f64| scale * x.powf(exponent), allowed);
                    let wanted = f64::powf(allowed / scale, 1.0 / exponent).min(MOST);
                    let Some(found) = best(&tried, allowed) else {
                        assert!(wanted < RESOLUTION, "{exponent} {scale} {allowed}: {tried:?}");
                        continue;
                    };
                    assert!(found <= wanted + 1e-9);
                    let close = found > 0.89 * wanted || wanted - found < 1.5 * RESOLUTION;
                    assert!(close && tried.len() <= 5, "{exponent} {scale} {allowed}, {wanted}: {tried:?}");
                }
            }
        }
    }

    #[test]
    fn curves_that_are_no_powers_are_searched_too() {
        // Nothing is lost, then all.
        let tried = searched(|x| if x < 0.33 { 0.0 } else { f64::INFINITY }, 0.05);
        let found = best(&tried, 0.05).unwrap();
        assert!(found > 0.2 && found < 0.33, "{tried:?}");
        // Better than the original at first.
        let tried = searched(|x| 2.0 * x * x - 0.02, 0.05);
        assert!(best(&tried, 0.05).unwrap() > 0.17, "{tried:?}");
        // Never good enough, and always.
        assert_eq!(best(&searched(|_| 1.0, 0.05), 0.05), None);
        assert_eq!(best(&searched(|_| 0.0, 0.05), 0.05), Some(MOST));
        assert_eq!(best(&searched(|_| f64::INFINITY, 0.05), 0.05), None);
    }
}

//! What evaluating and calibrating take.

use super::super::texts::{Calibration, EvalText};
use super::fit::fit;
use super::terms::{Bytes, FORWARD, Setting, Terms, host};
use crate::compute::Limits;
use crate::model::Model;
use crate::report::MemoryEstimate;
use anyhow::Result;

/// Sequences that are evaluated.
pub struct Sequences {
    /// How many go through a model before any is scored, if there is room.
    pub count: usize,
    /// Tokens of each.
    pub length: usize,
}

/// Those of some texts. A pseudo-perplexity masks every token of a window in turn.
pub fn sequences(texts: &[EvalText]) -> Vec<Sequences> {
    let of = |text: &EvalText| {
        let (count, length) = (text.windows.len(), text.windows.window);
        Sequences { count: if text.mask.is_some() { length } else { count }, length }
    };
    texts.iter().map(of).collect()
}

/// `model` on sequences, beside `base`.
pub(super) fn evaluating(setting: Setting, model: &Model, base: Option<&Model>, sequences: &[Sequences]) -> Bytes {
    let models: Vec<Terms> =
        [Some(model), base].into_iter().flatten().map(|model| Terms::new(model, setting)).collect();
    let of = |&Sequences { count, length }: &Sequences| {
        let (mut fixed, mut running, mut logits) = (Bytes::default(), Bytes::default(), Bytes::default());
        for terms in &models {
            let of_one = 4.0 * (length * terms.model.hidden()) as f64;
            let group = (terms.limits.states as f64).max(of_one).min(count as f64 * of_one);
            fixed = fixed + terms.head() + terms.tensors(group / 4.0);
            let activations = |index| terms.activations(index, terms.batch(count, length), FORWARD);
            running = running.max(terms.largest(|index| terms.blocks(index) + activations(index)));
            if terms.head() != Bytes::default() {
                logits = logits + terms.logits(length, 1.0);
            }
        }
        fixed + running.max(logits)
    };
    sequences.iter().map(of).fold(Bytes::default(), Bytes::max)
}

/// The limits that keep an evaluation within what is allowed, and what it takes under them.
pub fn fit_evaluation(
    model: &Model,
    base: Option<&Model>,
    sequences: &[Sequences],
) -> Result<(Limits, MemoryEstimate)> {
    fit(model, "evaluating", |setting| evaluating(setting, model, base, sequences))
}

/// The same of collecting the statistics of `calibration`.
pub fn fit_calibration(model: &Model, calibration: &Calibration) -> Result<(Limits, MemoryEstimate)> {
    let (windows, heldout) = (&calibration.windows, &calibration.heldout);
    fit(model, "calibrating", |setting| {
        let terms = Terms::new(model, setting);
        let states = terms.states(windows.len(), windows.window) + terms.states(heldout.len(), heldout.window);
        terms.largest(|index| {
            let statistics = terms.statistics(&terms.widths(index), true, heldout.tokens());
            let collecting = terms.collecting(index, terms.batch(windows.len(), windows.window));
            // Triangles as bytes, and one of them as numbers.
            let writing = host(statistics.host);
            terms.blocks(index) + states + statistics + collecting.max(writing)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Source;
    use candle_core::Device;

    #[test]
    fn tensors_count_where_they_lie() {
        let model = Model::load(Source::demo(), &Device::Cpu).unwrap();
        let limits = Limits::default();
        let sequences = [Sequences { count: 4, length: 128 }];
        let of = |on_gpu| evaluating(Setting { limits: &limits, on_gpu }, &model, Some(&model), &sequences);
        let (here, there) = (of(false), of(true));
        assert_eq!((here.device, here.host), (0.0, there.device));
        // A block passes through on its way.
        assert!(there.host > 0.0 && there.host < 0.5 * here.host, "{there:?} {here:?}");
        let twice = evaluating(Setting { limits: &limits, on_gpu: false }, &model, None, &sequences);
        assert!(twice.host < here.host);
    }
}

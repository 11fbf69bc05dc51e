//! Checks of quality that a user asks for. A value that is not a number, or that was not measured, fails all of them.

use crate::eval::{Evaluation, TaskResult};
use crate::number::in_words;
use crate::report::{protocol, significant};

/// What was asked for.
#[derive(Debug, Clone, Default)]
pub struct Gates {
    /// The largest perplexity.
    pub max_ppl: Option<f64>,
    /// By how much of the original's perplexity the model's may be above it.
    pub max_ppl_increase: Option<f64>,
    /// How often the most likely token must be the original's, at least.
    pub min_top1: Option<f64>,
    /// Tasks and their smallest accuracies.
    pub min_acc: Vec<(String, f64)>,
    /// By how much of 1 the accuracy on a task may be below the original's.
    pub max_acc_drop: Option<f64>,
}

impl Gates {
    /// Whether anything was asked for of tasks.
    pub fn any_of_tasks(&self) -> bool {
        !self.min_acc.is_empty() || self.max_acc_drop.is_some()
    }

    /// What does not hold of a task: a sentence each.
    pub fn task_failures(&self, result: &TaskResult) -> Vec<String> {
        let (task, acc) = (&result.task, result.scores.acc);
        let mut failed = Vec::new();
        for (_, limit) in self.min_acc.iter().filter(|(name, limit)| name == task && acc < *limit) {
            failed.push(format!("accuracy on {task} is {acc:.4} ({} items), below --min-acc {task}={limit}", result.n));
        }
        if let Some(limit) = self.max_acc_drop {
            match result.baseline.as_ref().map(|baseline| baseline.acc) {
                // Accuracies are counts over n: one that differs from the limit by rounding alone meets it.
                Some(base) if base - acc <= limit + 1e-12 => {}
                Some(base) => failed.push(format!(
                    "accuracy on {task} is {acc:.4}, the original's {base:.4}: a drop of {:.4}, more than --max-acc-drop {limit}",
                    base - acc
                )),
                None => failed.push(format!(
                    "the original's accuracy on {task} was not measured, and --max-acc-drop {limit} compares with it"
                )),
            }
        }
        failed
    }

    /// Whether anything was asked for of perplexities.
    pub fn any(&self) -> bool {
        self.max_ppl.is_some() || self.max_ppl_increase.is_some() || self.min_top1.is_some()
    }

    /// What does not hold of `model` on one corpus, beside the original's evaluation if there is one: a sentence each.
    pub fn failures(&self, model: &Evaluation, base: Option<&Evaluation>) -> Vec<String> {
        let ppl = &model.perplexity;
        let corpus = &ppl.corpus;
        let why = ppl.ppl_note.as_ref().map(|note| format!(" ({note})")).unwrap_or_default();
        let mut failed = Vec::new();
        if let Some(limit) = self.max_ppl {
            match in_words(ppl.ppl) {
                Some(words) => failed
                    .push(format!("perplexity on {corpus} is {words}{why}, which --max-ppl {limit} does not allow")),
                None if ppl.ppl <= limit => {}
                None => failed.push(format!(
                    "perplexity {:.4} on {corpus} ({}) is above --max-ppl {limit}",
                    ppl.ppl,
                    protocol(ppl)
                )),
            }
        }
        if let Some(limit) = self.max_ppl_increase {
            let percent = 100.0 * limit;
            // Any number above an infinite perplexity is no increase at all: that says nothing.
            let increase =
                |base: f64| Some(100.0 * (ppl.ppl / base - 1.0)).filter(|x| base.is_finite() && x.is_finite());
            match base.map(|base| (base.perplexity.ppl, increase(base.perplexity.ppl))) {
                Some((_, Some(increase))) if increase <= percent => {}
                Some((_, Some(increase))) => failed.push(format!(
                    "perplexity on {corpus} is {increase:.2} % above the original's, more than --max-ppl-increase {percent}%"
                )),
                Some((base, None)) => failed.push(format!(
                    "perplexity on {corpus} is {}{why}, the original's {}: nothing that --max-ppl-increase {percent}% could \
                     hold for",
                    significant(ppl.ppl, 4),
                    significant(base, 4)
                )),
                None => failed.push(format!(
                    "the original's perplexity on {corpus} was not measured{why}, and --max-ppl-increase {percent}% compares \
                     with it"
                )),
            }
        }
        if let Some(limit) = self.min_top1 {
            match model.divergence.as_ref().map(|divergence| divergence.top1) {
                Some(top1) if top1 >= limit => {}
                Some(top1) => failed.push(format!(
                    "top-1 agreement on {corpus} is {}, below --min-top1 {limit}",
                    in_words(top1).map_or(format!("{top1:.4}"), String::from)
                )),
                None => failed.push(format!(
                    "top-1 agreement on {corpus} was not measured{why}, and --min-top1 {limit} needs it"
                )),
            }
        }
        failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::{Divergence, Perplexity, TaskScores};

    const ALL: Gates = Gates {
        max_ppl: Some(30.0),
        max_ppl_increase: Some(0.05),
        min_top1: Some(0.9),
        min_acc: Vec::new(),
        max_acc_drop: None,
    };

    fn evaluation(ppl: f64, top1: Option<f64>) -> Evaluation {
        let perplexity = Perplexity {
            corpus: "mine".into(),
            window: 8,
            stride: 8,
            windows: 2,
            tokens: 14,
            bos: false,
            masked: false,
            dtype: "f32".into(),
            ppl,
            ppl_note: None,
            stderr: None,
            nll: ppl.ln(),
        };
        let divergence =
            top1.map(|top1| Divergence { corpus: "mine".into(), base: "base".into(), kl: 0.1, kl_stderr: None, top1 });
        Evaluation { perplexity, divergence }
    }

    fn failed(ppl: f64, top1: Option<f64>, base: Option<f64>) -> [bool; 3] {
        let said = ALL.failures(&evaluation(ppl, top1), base.map(|base| evaluation(base, None)).as_ref());
        assert!(said.iter().all(|text| text.contains("mine")), "{said:?}");
        ["--max-ppl 30", "--max-ppl-increase 5%", "--min-top1 0.9"]
            .map(|flag| said.iter().any(|text| text.contains(flag)))
    }

    #[test]
    fn accuracies_are_checked_task_by_task() {
        let scores = |acc| TaskScores { acc, ..TaskScores::default() };
        let failed = |acc: f64, base: Option<f64>| {
            let gates = Gates { min_acc: vec![("piqa".into(), 0.6)], max_acc_drop: Some(0.02), ..Gates::default() };
            assert!(gates.any_of_tasks() && !gates.any());
            let result = TaskResult {
                task: "piqa".into(),
                n: 50,
                scores: scores(acc),
                baseline: base.map(scores),
                difference: None,
                data: "f".into(),
                sha256: "0".into(),
                prompts: "file".into(),
                shots: 0,
                bos: false,
                truncated: 0,
                dtype: "f32".into(),
            };
            let said = gates.task_failures(&result);
            let other = TaskResult { task: "boolq".into(), ..result };
            assert!(gates.task_failures(&other).iter().all(|text| !text.contains("--min-acc")));
            ["--min-acc piqa=0.6", "--max-acc-drop 0.02"].map(|flag| said.iter().any(|text| text.contains(flag)))
        };
        assert_eq!(failed(0.6, Some(0.62)), [false, false]);
        assert_eq!(failed(0.58, Some(0.62)), [true, true]);
        assert_eq!(failed(0.7, None), [false, true]);
        assert!(!Gates::default().any_of_tasks());
    }

    #[test]
    fn numbers_within_the_limits_pass_and_others_fail() {
        assert_eq!(failed(30.0, Some(0.9), Some(29.0)), [false; 3]);
        assert_eq!(failed(20.0, Some(1.0), Some(29.0)), [false; 3], "better than the original");
        assert_eq!(failed(30.5, Some(0.89), Some(29.0)), [true; 3]);
        assert!(Gates::default().failures(&evaluation(f64::NAN, None), None).is_empty() && !Gates::default().any());
    }

    #[test]
    fn what_is_no_number_or_absent_fails_every_check() {
        let (nan, infinite) = (f64::NAN, f64::INFINITY);
        for ppl in [nan, infinite, -infinite] {
            for base in [nan, infinite, 29.0] {
                assert_eq!(failed(ppl, Some(nan), Some(base)), [true; 3], "{ppl} {base}");
            }
            assert_eq!(failed(ppl, None, None), [true; 3], "{ppl}");
        }
        for base in [Some(nan), Some(infinite), Some(0.0), None] {
            assert_eq!(failed(20.0, None, base), [false, true, true], "{base:?}");
        }
    }
}

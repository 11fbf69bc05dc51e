//! Zero-shot tasks as text: each number beside the original's, never without its protocol.

use super::evaluation::Sides;
use super::format::{grouped, with_error};
use super::layout::{Style, wrap};
use super::table::titled;
use crate::eval::{TaskResult, TaskScores};
use crate::visible::visible;

/// How a task was measured: `500 items of piqa.jsonl (sha256 …), 0-shot, lm-evaluation-harness prompts, no BOS, f32`.
pub(super) fn protocol(result: &TaskResult) -> String {
    let truncated = match result.truncated {
        0 => String::new(),
        texts => format!(", {} texts cut at their beginning", grouped(texts as u64)),
    };
    format!(
        "{} item{} of {} (sha256 {:.12}), {}-shot, {}, {}{truncated}, {}",
        grouped(result.n as u64),
        if result.n == 1 { "" } else { "s" },
        visible(&result.data),
        result.sha256,
        result.shots,
        if result.prompts == "harness" { "lm-evaluation-harness prompts" } else { "prompts of the file" },
        if result.bos { "BOS" } else { "no BOS" },
        visible(&result.dtype)
    )
}

/// Title and rows: a line per number.
pub(super) fn rows(results: &[TaskResult], sides: &Sides) -> Vec<Vec<String>> {
    let compared = results.iter().any(|result| result.baseline.is_some());
    let of_compared = |cell: &str| compared.then(|| cell.to_string());
    let mut rows = vec![[
        Some("task".into()),
        Some("metric".into()),
        of_compared(sides.base),
        Some(sides.model.into()),
        of_compared("difference"),
    ]];
    for result in results {
        for &(metric, of) in METRICS {
            let Some(own) = of(&result.scores) else { continue };
            let base = result.baseline.as_ref().and_then(of).map_or("-".into(), |value| shown(metric, value));
            let difference = result.difference.as_ref().and_then(of).filter(|_| metric != PERPLEXITY);
            let difference = difference.map_or("-".into(), |(x, error)| format!("{:+}", Points(x, error)));
            rows.push([
                Some(visible(&result.task)),
                Some(metric.into()),
                of_compared(&base),
                Some(shown(metric, own)),
                of_compared(&difference),
            ]);
        }
    }
    rows.into_iter().map(|row| row.into_iter().flatten().collect()).collect()
}

/// A number and its standard error.
type Measured = (f64, Option<f64>);
/// One of a task's numbers, where it has it.
type Metric = fn(&TaskScores) -> Option<Measured>;

const PERPLEXITY: &str = "perplexity";
const METRICS: &[(&str, Metric)] = &[
    ("acc", |scores| Some((scores.acc, scores.acc_stderr))),
    ("acc_norm", |scores| Some((scores.acc_norm?, scores.acc_norm_stderr))),
    (PERPLEXITY, |scores| Some((scores.perplexity?, scores.perplexity_stderr))),
];

fn shown(metric: &str, (x, error): Measured) -> String {
    if metric == PERPLEXITY { with_error(x, error, 4) } else { format!("{} %", Points(x, error)) }
}

/// A share in hundredths, and its error: `61.50 ± 3.45`.
struct Points(f64, Option<f64>);

impl std::fmt::Display for Points {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let x = 100.0 * self.0;
        if f.sign_plus() {
            write!(f, "{x:+.2}")?
        } else {
            write!(f, "{x:.2}")?
        }
        self.1.map_or(Ok(()), |error| write!(f, " ± {:.2}", 100.0 * error))
    }
}

/// Title and rows of one task for several models: the original where the rows before have not shown it, then what each of
/// `named` scores and by how much that is more than its original does.
pub(super) fn task_cells(task: &str, named: &[(String, &TaskResult)]) -> Vec<Vec<String>> {
    let has = |of: &Metric| named.iter().any(|(_, result)| of(&result.scores).is_some());
    let metrics: Vec<&(&str, Metric)> = METRICS.iter().filter(|(_, of)| has(of)).collect();
    let mut rows = vec![vec![visible(task)]];
    for (metric, _) in &metrics {
        rows[0].push((*metric).into());
        rows[0].extend((*metric != PERPLEXITY).then(|| "to dense".to_string()));
    }
    let mut dense: Vec<&TaskScores> = Vec::new();
    for (name, result) in named {
        let mut row = |name: &str, scores: &TaskScores, difference: Option<&TaskScores>| {
            let mut cells = vec![name.to_string()];
            for (metric, of) in metrics.iter().copied() {
                cells.push(of(scores).map_or("-".into(), |value| shown(metric, value)));
                let by = difference.and_then(of).map(|(x, error)| format!("{:+}", Points(x, error)));
                cells.extend((*metric != PERPLEXITY).then(|| by.unwrap_or_default()));
            }
            rows.push(cells);
        };
        if let Some(scores) = result.baseline.as_ref().filter(|scores| !dense.contains(scores)) {
            row("dense", scores, None);
            dense.push(scores);
        }
        row(name, &result.scores, result.difference.as_ref());
    }
    rows
}

/// The table: numbers first, protocols below.
pub(super) fn task_lines(results: &[TaskResult], sides: &Sides, limit: usize, style: Style) -> Vec<String> {
    let mut out = titled(&rows(results, sides), style);
    for result in results {
        let text = format!("{}: {}", visible(&result.task), protocol(result));
        out.extend(wrap("  ", &text, limit).iter().map(|line| style.dim(line)));
    }
    out
}

/// The table of `softlm eval --tasks`.
pub fn task_table(results: &[TaskResult], limit: usize, color: bool) -> String {
    task_lines(results, &Sides { base: "base", model: "model" }, limit, Style { color }).join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_beside_those_of_the_original() {
        let scores = |acc| TaskScores { acc, acc_stderr: Some(0.0345), ..TaskScores::default() };
        let result = TaskResult {
            task: "lambada".into(),
            n: 1200,
            scores: TaskScores { perplexity: Some(20.5), perplexity_stderr: Some(1.25), ..scores(0.615) },
            baseline: Some(scores(0.63)),
            difference: Some(TaskScores { acc_stderr: Some(0.008), ..scores(-0.015) }),
            data: "items.jsonl".into(),
            sha256: "0123456789abcdef".into(),
            prompts: "file".into(),
            shots: 0,
            bos: false,
            truncated: 2,
            dtype: "f32".into(),
        };
        let page = task_table(std::slice::from_ref(&result), 80, false);
        for part in [
            "task         metric            base",
            "63.00 ± 3.45 %",
            "61.50 ± 3.45 %",
            "-1.50 ± 0.80\n",
            "20.50 ± 1.25",
            "1,200 items of items.jsonl (sha256 0123456789ab), 0-shot, prompts of",
            "2 texts cut",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        let alone = TaskResult { baseline: None, difference: None, ..result.clone() };
        let page = task_table(&[alone], 80, false);
        assert!(!page.contains("difference") && page.contains("61.50"), "{page}");
        let json = serde_json::to_value(&result).unwrap();
        assert_eq!(
            (&json["acc"], &json["acc_norm"], &json["n"]),
            (&0.615.into(), &serde_json::Value::Null, &1200.into())
        );
        assert_eq!(serde_json::from_value::<TaskResult>(json).unwrap(), result);
    }
}

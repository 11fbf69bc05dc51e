//! Perplexity and divergence as text and JSON, never without their protocol.

use super::SCHEMA;
use super::format::{change, fixed, grouped, percent, with_error};
use super::layout::{Style, columns, fit, width, wrap};
use crate::eval::{Divergence, Evaluation, Perplexity};
use crate::number::{self, in_words};
use crate::visible::visible;
use serde_json::{Value, json};

/// Significant digits of a perplexity.
const PPL_DIGITS: usize = 4;
/// A corpus name is shortened to this before the table is split.
const NAME: usize = 12;

/// How a perplexity was measured: `window 256, stride 256, 200 windows, 51,000 targets, no BOS, f32`.
pub fn protocol(p: &Perplexity) -> String {
    format!(
        "window {}, stride {}, {} window{}, {} targets, {}, {}",
        p.window,
        p.stride,
        grouped(p.windows as u64),
        if p.windows == 1 { "" } else { "s" },
        grouped(p.tokens as u64),
        match (p.masked, p.bos) {
            (true, true) => "each masked alone between special tokens",
            (true, false) => "each masked alone",
            (false, true) => "BOS",
            (false, false) => "no BOS",
        },
        visible(&p.dtype)
    )
}

/// `50.53 ± 0.62`.
pub(super) fn ppl(p: &Perplexity) -> String {
    with_error(p.ppl, p.stderr, PPL_DIGITS)
}

/// Whether two perplexities may be compared.
pub(super) fn comparable(a: &Perplexity, b: &Perplexity) -> bool {
    let key = |p: &Perplexity| (p.corpus.clone(), p.window, p.stride, p.windows, p.tokens, p.bos, p.masked);
    key(a) == key(b)
}

/// One corpus: a model and perhaps the one it is compared with.
pub(super) struct Pair<'a> {
    pub model: &'a Evaluation,
    pub base: Option<&'a Evaluation>,
    /// Whether the calibration saw this corpus.
    pub calibrated: bool,
}

/// What the two sides of a comparison are called in column heads.
pub(super) struct Sides<'a> {
    pub base: &'a str,
    pub model: &'a str,
}

/// The lines of an evaluation: numbers first, protocols below.
pub(super) fn lines(pairs: &[Pair], sides: &Sides, limit: usize, style: Style) -> Vec<String> {
    let has_base = pairs.iter().any(|pair| pair.base.is_some());
    let divergence: Vec<Vec<String>> = divergence_cells(pairs);
    let perplexity: Vec<Vec<String>> = if has_base { comparison_cells(pairs, sides) } else { single_cells(pairs) };
    let mut tables = vec![perplexity];
    if divergence.len() > 1 {
        let joined: Vec<Vec<String>> =
            tables[0].iter().zip(&divergence).map(|(a, b)| a.iter().chain(&b[1..]).cloned().collect()).collect();
        if columns(&shorten(&joined, NAME)).iter().all(|line| width(line) <= limit) {
            tables = vec![joined];
        } else {
            tables.push(divergence);
        }
    }
    let mut out = Vec::new();
    for table in tables {
        let longest = table.iter().map(|row| width(&row[0])).max().unwrap_or(0);
        let widest = columns(&table).iter().map(|line| width(line)).max().unwrap_or(0);
        let room = longest.saturating_sub(widest.saturating_sub(limit)).max(NAME.min(longest));
        let mut lines = columns(&shorten(&table, room)).into_iter();
        out.extend(lines.next().map(|title| style.bold(&title)));
        out.extend(lines);
    }
    out.extend(protocols(pairs, sides, limit).iter().map(|line| style.dim(line)));
    out
}

fn shorten(table: &[Vec<String>], room: usize) -> Vec<Vec<String>> {
    let short = |row: &Vec<String>| {
        let mut row = row.clone();
        row[0] = fit(&row[0], room);
        row
    };
    table.iter().map(short).collect()
}

fn name(pair: &Pair) -> String {
    format!("{}{}", visible(&pair.model.perplexity.corpus), if pair.calibrated { " *" } else { "" })
}

/// What the numbers are.
pub(super) fn measure(pairs: &[Pair]) -> &'static str {
    let masked = |pair: &Pair| pair.model.perplexity.masked;
    if pairs.iter().any(masked) { "pseudo-perplexity" } else { "perplexity" }
}

fn single_cells(pairs: &[Pair]) -> Vec<Vec<String>> {
    let mut rows = vec![["corpus", measure(pairs), "nats/token"].map(String::from).to_vec()];
    for pair in pairs {
        let p = &pair.model.perplexity;
        rows.push(vec![name(pair), ppl(p), fixed(p.nll, 4)]);
    }
    rows
}

fn comparison_cells(pairs: &[Pair], sides: &Sides) -> Vec<Vec<String>> {
    let mut rows = vec![[measure(pairs), sides.base, sides.model, "change"].map(String::from).to_vec()];
    for pair in pairs {
        let p = &pair.model.perplexity;
        let base = pair.base.map(|base| &base.perplexity);
        let change = base.filter(|base| comparable(base, p)).map(|base| change(base.ppl, p.ppl));
        rows.push(vec![name(pair), base.map_or("-".into(), ppl), ppl(p), change.unwrap_or("-".into())]);
    }
    rows
}

/// A title alone when nothing was compared.
fn divergence_cells(pairs: &[Pair]) -> Vec<Vec<String>> {
    let mut rows = vec![["divergence", "KL, nats", "same top"].map(String::from).to_vec()];
    if pairs.iter().all(|pair| pair.model.divergence.is_none()) {
        return rows;
    }
    for pair in pairs {
        let cells = match &pair.model.divergence {
            Some(d) => [with_error(d.kl, d.kl_stderr, 3), percent(d.top1)],
            None => ["-".to_string(), "-".to_string()],
        };
        rows.push([vec![name(pair)], cells.to_vec()].concat());
    }
    rows
}

/// Why the perplexities of one corpus are no finite numbers, where they are none.
pub(super) fn why_not_finite(pair: &Pair, sides: &Sides) -> Vec<String> {
    let of = |side: &str, evaluation: &Evaluation| {
        let p = &evaluation.perplexity;
        let why = p.ppl_note.as_ref().map(|why| format!(": {}", visible(why))).unwrap_or_default();
        in_words(p.ppl).map(|words| format!("perplexity of {side} is {words}{why}"))
    };
    pair.base.and_then(|base| of(sides.base, base)).into_iter().chain(of(sides.model, pair.model)).collect()
}

fn protocols(pairs: &[Pair], sides: &Sides, limit: usize) -> Vec<String> {
    let mut out = Vec::new();
    for pair in pairs {
        let p = &pair.model.perplexity;
        out.extend(wrap("  ", &format!("{}: {}", visible(&p.corpus), protocol(p)), limit));
        for note in why_not_finite(pair, sides) {
            out.extend(wrap("  ", &format!("{}: {note}", visible(&p.corpus)), limit));
        }
        if let Some(base) = pair.base.map(|base| &base.perplexity).filter(|base| !comparable(base, p)) {
            let text = format!("{} measured differently, not comparable: {}", sides.base, protocol(base));
            out.extend(wrap("  ", &text, limit));
        }
    }
    if pairs.iter().any(|pair| pair.calibrated) {
        out.push("  * the calibration saw this corpus (its training part, if it has one)".to_string());
    }
    out
}

/// The table of `softlm eval`: each perplexity with its protocol, beside that of `base` (name and evaluations) when
/// one was given, and the divergence from it.
pub fn evaluation_table(
    model: &str,
    evaluations: &[Evaluation],
    base: Option<(&str, &[Evaluation])>,
    limit: usize,
    color: bool,
) -> String {
    let style = Style { color };
    let of_corpus = |corpus: &str| {
        base.and_then(|(_, evaluations)| evaluations.iter().find(|base| base.perplexity.corpus == corpus))
    };
    let pairs: Vec<Pair> = evaluations
        .iter()
        .map(|model| Pair { model, base: of_corpus(&model.perplexity.corpus), calibrated: false })
        .collect();
    let mut out = wrap("model    ", &visible(model), limit);
    if let Some((base, _)) = base {
        out.extend(wrap("against  ", &visible(base), limit));
    }
    out.push(String::new());
    if pairs.is_empty() {
        return out.join("\n") + "\n";
    }
    out.extend(lines(&pairs, &Sides { base: "base", model: "model" }, limit, style));
    out.join("\n") + "\n"
}

/// The object `softlm eval --json` prints: `perplexity` and `baseline` (the original, by the same protocol) have one
/// entry per corpus; `divergence` speaks of all targets of all corpora, and of each corpus under `corpora`. `baseline`
/// and `divergence` are null when there was nothing to compare with. A perplexity that is no finite number is `"Infinity"`
/// or `"NaN"`, and `ppl_note` beside it says why.
pub fn eval_json(model: &str, evaluations: &[Evaluation], baselines: &[Evaluation]) -> Value {
    let perplexities = |list: &[Evaluation]| list.iter().map(|e| json!(e.perplexity)).collect::<Vec<Value>>();
    json!({
        "schema": SCHEMA,
        "model": model,
        "perplexity": perplexities(evaluations),
        "baseline": if baselines.is_empty() { Value::Null } else { json!(perplexities(baselines)) },
        "divergence": divergence_json(evaluations),
    })
}

fn divergence_json(evaluations: &[Evaluation]) -> Value {
    let measured: Vec<_> =
        evaluations.iter().filter_map(|e| Some((e.perplexity.tokens as f64, e.divergence.as_ref()?))).collect();
    let Some((_, first)) = measured.first() else { return Value::Null };
    let targets: f64 = measured.iter().map(|(targets, _)| targets).sum();
    let mean = |value: fn(&Divergence) -> f64| measured.iter().map(|(n, d)| n * value(d)).sum::<f64>() / targets;
    json!({
        "base": first.base,
        "kl": number::value(mean(|d| d.kl)),
        "top1": number::value(mean(|d| d.top1)),
        "corpora": measured.iter().map(|(_, d)| d).collect::<Vec<_>>(),
    })
}

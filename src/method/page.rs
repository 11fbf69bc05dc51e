//! What `softlm methods NAME` prints: the method's own text, and what follows from its declarations.

use super::option::{Domain, MethodOption, words};
use super::spectral::{PhaseSpec, Share};
use super::{Inputs, Method};
use crate::plan::AllocationRule;
use clap::ValueEnum;
use std::fmt::Write;

/// The page of a method, Markdown.
pub fn page(method: &dyn Method) -> String {
    let card = method.card();
    let mut page = card.doc.to_string();
    if let Some(learned) = method.learned() {
        page += "\n## Phases\n\n";
        page += &table(&["phase", "share of steps", "gates", "loss"], learned.phases().iter().map(phase_row));
    }
    page += "\n## Defaults\n\n";
    let _ = writeln!(page, "    --inputs {}", meant(&method.inputs(), words::<Inputs>()));
    let _ = writeln!(page, "    --allocation {}", meant(&method.allocation(), words::<AllocationRule>()));
    page += "\n## Options\n\n";
    page += &options(method.options());
    let _ = write!(page, "\n## Citation\n\n{}\n", card.citation);
    page
}

fn options(options: &[&MethodOption]) -> String {
    let Some(first) = options.first() else {
        return "None beside those of every run (`softlm compress --help`).\n".into();
    };
    let table_name =
        first.table.map_or("at the top level of a recipe".into(), |name| format!("in table `[{name}]` of a recipe"));
    let mut text = format!("Set by `--set KEY=VALUE`, `SOFTLM_KEY` in the environment, or {table_name}.\n\n");
    text += &table(&["key", "symbol", "default", "meaning"], options.iter().map(option_row));
    for option in options {
        let Domain::OneOf(words) = option.domain else { continue };
        let _ = writeln!(text, "\n`{}`:", option.key);
        for (word, meaning) in words() {
            let _ = writeln!(text, "- `{word}`: {meaning}");
        }
    }
    text
}

fn option_row(option: &&MethodOption) -> [String; 4] {
    let takes = match option.domain {
        Domain::OneOf(_) => String::new(),
        domain => format!("; {}", domain.describe()),
    };
    [option.key.into(), option.symbol.into(), option.default.describe(), format!("{}{takes}", option.help)]
}

fn phase_row(spec: &PhaseSpec) -> [String; 4] {
    let steps = match &spec.share {
        Share::Of(option) => format!("{} = {}", option.key, option.default.describe()),
        Share::Rest => "the rest".into(),
        Share::Heal => "`--heal`, by default as many again".into(),
    };
    [spec.name.into(), steps, spec.gates.into(), spec.loss.into()]
}

/// A word of a type and what it means.
fn meant<T: ValueEnum>(value: &T, words: Vec<(String, String)>) -> String {
    let name = value.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default();
    let meaning = words.into_iter().find(|(word, _)| *word == name).map(|(_, meaning)| meaning).unwrap_or_default();
    format!("{name}: {meaning}")
}

/// A Markdown table whose columns line up.
fn table<const N: usize>(head: &[&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let mut lines: Vec<[String; N]> = vec![head.map(String::from)];
    lines.extend(rows);
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    lines.insert(1, std::array::from_fn(|column| "-".repeat(widths[column])));
    let cell = |(text, width): (&String, &usize)| format!("| {text:width$} ");
    lines.iter().map(|line| line.iter().zip(&widths).map(cell).collect::<String>() + "|\n").collect()
}

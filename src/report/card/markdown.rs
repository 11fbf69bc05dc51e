//! Text that stays what it is in Markdown, YAML and a shell.

use crate::visible::visible;

/// A Markdown table; columns in `left` are left-aligned, the others right.
pub(super) fn markdown(rows: &[Vec<String>], left: &[usize]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut out = String::new();
    for (i, row) in rows.iter().enumerate() {
        out.push_str(&line(row));
        if i == 0 {
            let rule = |c: usize| if left.contains(&c) { "---" } else { "---:" }.to_string();
            out.push_str(&line(&(0..row.len()).map(rule).collect::<Vec<_>>()));
        }
    }
    out
}

/// Text that Markdown leaves alone.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in visible(text).chars() {
        if "\\`*_[]<>|#$~&".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// Inline code, whatever it contains.
pub(super) fn code(text: &str) -> String {
    let text = visible(text);
    let ticks = "`".repeat(longest_run(&text) + 1);
    let space = if text.starts_with('`') || text.ends_with('`') { " " } else { "" };
    format!("{ticks}{space}{text}{space}{ticks}")
}

/// A code block, whatever it contains.
pub(super) fn fence(language: &str, text: &str) -> String {
    let ticks = "`".repeat((longest_run(text) + 1).max(3));
    format!("{ticks}{language}\n{}\n{ticks}", text.trim_end())
}

fn longest_run(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}

/// A YAML scalar: plain where that is safe, else a double-quoted string, for which JSON's form is legal YAML.
pub(super) fn yaml(text: &str) -> String {
    let safe = text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
    let wordlike = text.chars().next().is_some_and(|c| c.is_ascii_alphabetic());
    let reserved = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    if safe && wordlike && !reserved.contains(&text.to_ascii_lowercase().as_str()) {
        text.to_string()
    } else {
        serde_json::Value::from(visible(text)).to_string()
    }
}

/// A word of a shell command.
pub(super) fn shell(text: &str) -> String {
    let text = visible(text);
    if !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || "-_./=,:@+".contains(c)) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// `gpt2`, `org/name`.
pub(super) fn is_hub_id(name: &str) -> bool {
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    name.split('/').count() <= 2 && name.split('/').all(part)
}

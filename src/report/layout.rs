//! Text in columns: widths, alignment, wrapping, emphasis.

use std::borrow::Cow;
use textwrap::{Options, WordSeparator, WordSplitter, WrapAlgorithm};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Columns that are left for the text beside a wide label.
const NARROWEST: usize = 16;

/// Columns a text takes on a terminal. East Asian wide characters and pictographs take two.
pub fn width(text: &str) -> usize {
    text.width()
}

/// `text` in at most `limit` columns: the middle gives way to `…`, since names differ at both ends.
pub fn fit(text: &str, limit: usize) -> String {
    if width(text) <= limit {
        return text.to_string();
    }
    let room = limit.saturating_sub(1);
    let take = |chars: &mut dyn Iterator<Item = char>, room: usize| {
        let mut used = 0;
        chars
            .take_while(|&c| {
                used += c.width().unwrap_or(0);
                used <= room
            })
            .collect::<Vec<char>>()
    };
    let head = take(&mut text.chars(), room - room / 2);
    let tail = take(&mut text.chars().rev(), room / 2);
    head.into_iter().chain(['…']).chain(tail.into_iter().rev()).collect()
}

/// Lines of at most `limit` columns, the first after `first`, the others indented to the same column. Words longer
/// than a line are cut.
pub fn wrap(first: &str, text: &str, limit: usize) -> Vec<String> {
    let indent = " ".repeat(width(first));
    let options = Options::new(limit.max(indent.len() + NARROWEST))
        .initial_indent(first)
        .subsequent_indent(&indent)
        .wrap_algorithm(WrapAlgorithm::FirstFit)
        .word_separator(WordSeparator::AsciiSpace)
        .word_splitter(WordSplitter::NoHyphenation);
    let words: Vec<&str> = text.split_whitespace().collect();
    if words.is_empty() {
        return vec![first.to_string()];
    }
    textwrap::wrap(&words.join(" "), options).into_iter().map(Cow::into_owned).collect()
}

/// Columns are no wider: a cell that is pushes what stands behind it aside, in its own row alone.
const WIDEST: usize = 100;

/// Rows as aligned lines: the first column to the left, all others to the right, two spaces between.
pub fn columns(rows: &[Vec<String>]) -> Vec<String> {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count)
        .map(|i| rows.iter().filter_map(|row| row.get(i)).map(|cell| width(cell)).max().unwrap_or(0).min(WIDEST))
        .collect();
    let line = |row: &Vec<String>| {
        let mut line = String::new();
        for (i, cell) in row.iter().enumerate() {
            let pad = " ".repeat(widths[i].saturating_sub(width(cell)));
            let cell = if i == 0 { format!("{cell}{pad}") } else { format!("  {pad}{cell}") };
            line.push_str(&cell);
        }
        line.truncate(line.trim_end().len());
        line
    };
    rows.iter().map(line).collect()
}

/// Emphasis, if the reader can show it.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// Whether ANSI escapes are wanted.
    pub color: bool,
}

impl Style {
    /// For headings.
    pub fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    /// For what is there to be looked up, not to be read.
    pub fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.color && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_lose_their_middle() {
        assert_eq!(fit("short", 8), "short");
        assert_eq!(fit("abcdefghij", 7), "abc…hij");
        assert_eq!(width(&fit("静夜思静夜思静夜思", 8)), 7);
    }

    #[test]
    fn wrapping_keeps_every_word_and_the_limit() {
        let text = "a rule with several words and one_word_that_is_much_longer_than_any_line_may_be end";
        let lines = wrap("  rule  ", text, 30);
        assert!(lines.iter().all(|line| width(line) <= 30), "{lines:?}");
        let joined: String = lines.iter().map(|l| l.trim().trim_start_matches("rule")).collect();
        assert_eq!(joined.replace(' ', ""), text.replace(' ', ""));
        assert_eq!(wrap("x ", "", 30), ["x "]);
    }

    #[test]
    fn a_huge_cell_or_word_costs_what_it_is() {
        let huge = "x".repeat(1 << 20);
        let rows: Vec<Vec<String>> =
            (0..1000).map(|i| vec![if i == 7 { huge.clone() } else { i.to_string() }, "1".into()]).collect();
        let lines = columns(&rows);
        assert_eq!((width(&lines[0]), width(&lines[7])), (WIDEST + 3, huge.len() + 3));
        let wrapped = wrap("", &huge, 64);
        assert_eq!((wrapped.len(), width(&wrapped[0])), (huge.len() / 64, 64));
    }

    #[test]
    fn numbers_are_right_aligned_by_columns_not_bytes() {
        let rows = [["a", "± 1"], ["bcd", "22"]].map(|r| r.map(String::from).to_vec());
        assert_eq!(columns(&rows), ["a    ± 1", "bcd   22"]);
    }
}

//! Text in columns: widths, alignment, wrapping, emphasis.

/// Columns a text takes on a terminal. East Asian wide characters and pictographs take two.
pub fn width(text: &str) -> usize {
    text.chars().map(char_width).sum()
}

fn char_width(c: char) -> usize {
    match u32::from(c) {
        0x0300..=0x036F | 0x200B..=0x200F | 0xFE00..=0xFE0F => 0,
        0x1100..=0x115F | 0x2E80..=0xA4CF | 0xAC00..=0xD7A3 | 0xF900..=0xFAFF | 0xFE30..=0xFE6F | 0xFF00..=0xFF60 => 2,
        0x1F300..=0x1FAFF | 0x20000..=0x3FFFD => 2,
        _ => 1,
    }
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
                used += char_width(c);
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
    let indent = width(first);
    let room = limit.saturating_sub(indent).max(16);
    let mut lines = vec![first.to_string()];
    let mut used = 0;
    for word in text.split_whitespace() {
        let mut rest = word;
        while !rest.is_empty() {
            let space = usize::from(used > 0);
            if let Some(width) = width_within(rest, room.saturating_sub(used + space)) {
                push(&mut lines, space, rest);
                used += space + width;
                break;
            }
            if used > 0 {
                lines.push(" ".repeat(indent));
                used = 0;
                continue;
            }
            let cut = cut_at(rest, room);
            push(&mut lines, 0, &rest[..cut]);
            rest = &rest[cut..];
            used = room;
        }
    }
    lines
}

fn push(lines: &mut [String], space: usize, word: &str) {
    if let Some(line) = lines.last_mut() {
        line.push_str(&" ".repeat(space));
        line.push_str(word);
    }
}

/// The width of a text, unless it is more than `room`: a long one is looked at no further.
fn width_within(text: &str, room: usize) -> Option<usize> {
    let mut used = 0;
    for c in text.chars() {
        used += char_width(c);
        if used > room {
            return None;
        }
    }
    Some(used)
}

/// Byte index of the first character that no longer fits into `room` columns; at least one character fits.
fn cut_at(text: &str, room: usize) -> usize {
    let mut used = 0;
    for (at, c) in text.char_indices() {
        used += char_width(c);
        if used > room && at > 0 {
            return at;
        }
    }
    text.len()
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

//! Text from files and servers as it may be shown: it cannot move the cursor, begin a line or turn round what follows.

/// `text` with every character that a terminal would act on written as Rust writes it in a string: `\n`, `\u{1b}`.
///
/// These are the control characters, C1 with its one-byte escapes included, line and paragraph separators, and the marks
/// that change the direction of writing.
pub fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if acts(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// [`visible`] of a text that may have lines and tabs of its own.
pub fn visible_lines(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if acts(c) && !matches!(c, '\n' | '\t') { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

fn acts(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_acts_on_is_written_out() {
        for (text, shown) in [
            ("model.weight é 静", "model.weight é 静"),
            ("a\nerror: b", "a\\nerror: b"),
            ("\x1b[2J\u{9b}31m\r\0\x7f", "\\u{1b}[2J\\u{9b}31m\\r\\u{0}\\u{7f}"),
            ("a\u{202e}b\u{2028}c\u{2066}", "a\\u{202e}b\\u{2028}c\\u{2066}"),
        ] {
            assert_eq!(visible(text), shown);
            assert_eq!(visible(&visible(text)), shown, "nothing is written out twice");
        }
        assert_eq!(visible_lines("a\tb\n\x1bc"), "a\tb\n\\u{1b}c");
    }
}

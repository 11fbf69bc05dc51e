//! The result on stdout.

use super::ui::colors_wanted;
use crate::visible::{visible, visible_lines};
use anyhow::{Context, Result};
use std::io::{ErrorKind, IsTerminal, Write, stdout};

/// Whether a result on stdout may be coloured.
pub fn stdout_color() -> bool {
    stdout().is_terminal() && colors_wanted()
}

/// Columns for a result on stdout: `COLUMNS` if it is set, else 80.
pub fn page_width() -> usize {
    std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).unwrap_or(80)
}

/// Writes a result for people and, if it lacks one, a line end to stdout. A reader that has seen enough (`| head`) is no
/// error.
///
/// Names and other text in it are [`visible`](crate::visible::visible) already, so that they begin no line; whatever else a
/// terminal would act on is written out here, but for the report's emphasis.
pub fn print_result(text: &str) -> Result<()> {
    print_ended(&harmless(text))
}

/// Writes a result for programs: JSON, with everything escaped that a terminal would act on.
pub fn print_json(text: &str) -> Result<()> {
    print_ended(&escaped(text))
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\n' || visible(c.encode_utf8(&mut [0; 4])).len() == c.len_utf8() {
            escaped.push(c);
        } else {
            escaped.push_str(&format!("\\u{:04x}", u32::from(c)));
        }
    }
    escaped
}

/// A result that grows with what was read, such as a list of tensors: it goes out in pieces, each as a whole result would.
pub struct Pieces {
    shown: fn(&str) -> String,
    waiting: String,
    /// Whether its reader has not seen enough.
    wanted: bool,
}

impl Pieces {
    /// Text that waits until it is worth writing.
    const WAITING: usize = 1 << 16;

    /// For people, as [`print_result`].
    pub fn text() -> Self {
        Self { shown: harmless, waiting: String::new(), wanted: true }
    }

    /// For programs, as [`print_json`].
    pub fn json() -> Self {
        Self { shown: escaped, waiting: String::new(), wanted: true }
    }

    /// Adds something whole: a line, or a value and what stands between it and the next.
    pub fn push(&mut self, piece: &str) -> Result<()> {
        self.waiting.push_str(piece);
        if self.waiting.len() >= Self::WAITING { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<()> {
        if self.wanted {
            self.wanted = print_part(&(self.shown)(&self.waiting))?;
        }
        self.waiting.clear();
        Ok(())
    }

    /// Writes the rest.
    pub fn end(mut self) -> Result<()> {
        self.write()
    }
}

fn print_ended(text: &str) -> Result<()> {
    let mut out = stdout().lock();
    let end = if text.ends_with('\n') { "" } else { "\n" };
    match out.write_all(text.as_bytes()).and_then(|()| out.write_all(end.as_bytes())).and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other.context("writing to stdout"),
    }
}

/// Lines with nothing in them that a terminal acts on but bold, dim and their end.
fn harmless(text: &str) -> String {
    const ESCAPE: char = '\x1b';
    let mut shown = String::with_capacity(text.len());
    for (i, part) in text.split(ESCAPE).enumerate() {
        let emphasis = ["[0m", "[1m", "[2m"].iter().any(|code| part.starts_with(code));
        match (i, emphasis) {
            (0, _) => {}
            (_, true) => shown.push(ESCAPE),
            (_, false) => shown.push_str(&visible(&ESCAPE.to_string())),
        }
        shown.push_str(&visible_lines(part));
    }
    shown
}

/// Writes a part of a result at once, as it is; `false` when its reader has seen enough.
pub fn print_part(text: &str) -> Result<bool> {
    let mut out = stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(e).context("writing to stdout"),
    }
}

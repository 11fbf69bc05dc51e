//! The result on stdout.

use super::ui::colors_wanted;
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

/// Writes a result and, if it lacks one, a line end to stdout. A reader that has seen enough (`| head`) is no error.
pub fn print_result(text: &str) -> Result<()> {
    let mut out = stdout().lock();
    let end = if text.ends_with('\n') { "" } else { "\n" };
    match out.write_all(text.as_bytes()).and_then(|()| out.write_all(end.as_bytes())).and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other.context("writing to stdout"),
    }
}

/// Writes a part of a result at once; `false` when its reader has seen enough.
pub fn print_part(text: &str) -> Result<bool> {
    let mut out = stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(e).context("writing to stdout"),
    }
}

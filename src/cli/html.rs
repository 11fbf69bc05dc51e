//! `--html FILE`: reports as a page.

use crate::checkpoint::{check_place, open_file, write_file};
use crate::report::{Entry, PAGE_MARK, page};
use crate::user_bail;
use anyhow::{Context, Result};
use clap::Args;
use std::io::Read;
use std::path::{Path, PathBuf, absolute};

/// Where a page is wanted.
#[derive(Args)]
pub struct Html {
    /// Write a page with plots, all in one file
    #[arg(long, env = "SOFTLM_HTML", value_name = "FILE", help_heading = "Output")]
    html: Option<PathBuf>,
}

impl Html {
    /// Fails, before any work, if the page could not be written at its end: it would lie in the `output` of the run, which
    /// appears as a whole, its folder may not be written to, or something is in its place that is no page of softlm's and is
    /// not to be replaced by `force`.
    pub fn check(&self, output: Option<&Path>, force: bool) -> Result<()> {
        let Some(path) = &self.html else { return Ok(()) };
        let shown = path.display();
        if let Some(output) = output
            && absolute(path)?.starts_with(absolute(output)?)
        {
            user_bail!(
                "--html {shown} lies in the output {}, which appears as a whole at the end", output.display();
                "name a place beside it, for example {}.html", output.display()
            );
        }
        if let Ok(found) = path.metadata() {
            if !found.is_file() {
                user_bail!("--html {shown} is not a file but a folder or a device"; "name a file");
            }
            if !force && !is_page(path)? {
                user_bail!(
                    "--html {shown} already exists and is no page of softlm's";
                    "choose another name, or add --force to replace it"
                );
            }
        }
        check_place(path)
    }

    /// Writes the page, if one is wanted.
    pub fn write(&self, entries: &[Entry]) -> Result<()> {
        let Some(path) = &self.html else { return Ok(()) };
        write_file(path, page(entries)?.as_bytes()).with_context(|| format!("writing the page {}", path.display()))
    }
}

/// Whether a file begins as pages do.
fn is_page(path: &Path) -> Result<bool> {
    let mut head = Vec::new();
    open_file(path)?.take(PAGE_MARK.len() as u64).read_to_end(&mut head)?;
    Ok(head == PAGE_MARK.as_bytes())
}

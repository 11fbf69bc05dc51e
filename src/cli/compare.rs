//! `softlm compare`

use super::html::Html;
use super::page::{page_width, print_json, print_result, stdout_color};
use super::values::switch;
use super::{Context, Outcome};
use crate::report::{Comparison, Entry, Report, compare_table};
use crate::user_bail;
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
pub struct Compare {
    /// Outputs of compress (folders), or report.json files; the others are compared with the first
    #[arg(required = true, num_args = 1.., value_name = "OUTPUT")]
    outputs: Vec<PathBuf>,
    #[command(flatten)]
    html: Html,
    /// Replace whatever file is in the place of --html
    #[arg(long, env = "SOFTLM_FORCE", value_parser = switch(), help_heading = "Output")]
    force: bool,
    /// Print one JSON object
    #[arg(long, env = "SOFTLM_JSON", value_parser = switch())]
    json: bool,
}

impl Compare {
    pub fn run(self, _: &Context) -> Result<Outcome> {
        self.html.check(None, self.force)?;
        let entries = self.read()?;
        self.html.write(&entries)?;
        if self.json {
            print_json(&serde_json::to_string_pretty(&Comparison::new(&entries))?)?;
        } else {
            print_result(&compare_table(&entries, page_width(), stdout_color()))?;
        }
        Ok(Outcome::Fine)
    }

    /// The reports, no file twice.
    fn read(&self) -> Result<Vec<Entry>> {
        if let [one] = self.outputs.as_slice() {
            user_bail!(
                "{} alone cannot be compared", one.display();
                "name two outputs or more; `softlm inspect {}` shows one", one.display()
            );
        }
        let mut files: Vec<PathBuf> = Vec::new();
        for output in &self.outputs {
            let file = Report::file(output)?;
            let file = file.canonicalize().unwrap_or(file);
            if let Some(i) = files.iter().position(|known| *known == file) {
                user_bail!(
                    "{} and {} are the same report", self.outputs[i].display(), output.display();
                    "name each output once"
                );
            }
            files.push(file);
        }
        let read = |output: &PathBuf| Ok(Entry { name: output.display().to_string(), report: Report::read(output)? });
        self.outputs.iter().map(read).collect()
    }
}

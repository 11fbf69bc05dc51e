//! `softlm doctor`

use super::page::{page_width, print_json, print_result};
use super::values::switch;
use super::{Context, Outcome};
use crate::doctor::{State, examine};
use crate::visible::visible;
use anyhow::Result;
use clap::Args;
use serde_json::json;

#[derive(Args)]
pub struct Doctor {
    /// Print what was found as JSON
    #[arg(long, value_parser = switch())]
    json: bool,
}

impl Doctor {
    pub fn run(self, context: &Context) -> Result<Outcome> {
        let findings = examine(&context.hub);
        if self.json {
            print_json(&serde_json::to_string_pretty(&json!({ "findings": findings }))?)?;
        } else {
            let mut page = String::new();
            for finding in &findings {
                let state = match finding.state {
                    State::Fine => "ok",
                    State::Note => "note",
                    State::Problem => "PROBLEM",
                };
                let head = format!("{:<17}{state:<9}", finding.subject);
                let below = " ".repeat(head.len());
                let mut paragraph = |start: &str, text: &str| {
                    let options = textwrap::Options::new(page_width()).initial_indent(start).subsequent_indent(&below);
                    page.push_str(&textwrap::fill(&visible(text), options));
                    page.push('\n');
                };
                paragraph(&head, &finding.found);
                if let Some(advice) = &finding.advice {
                    paragraph(&below, &format!("-> {advice}"));
                }
            }
            print_result(&page)?;
        }
        let problems = || findings.iter().filter(|finding| finding.state == State::Problem);
        problems().for_each(|finding| context.ui.check_failed(&format!("{}: {}", finding.subject, finding.found)));
        Ok(if problems().next().is_some() { Outcome::CheckFailed } else { Outcome::Fine })
    }
}

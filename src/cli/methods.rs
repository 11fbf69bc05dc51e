//! `softlm methods`

use super::Outcome;
use super::page::print_result;
use crate::method;
use anyhow::Result;
use clap::Args;

#[derive(Args)]
pub struct Methods {
    /// Explain this method
    name: Option<String>,
}

impl Methods {
    pub fn run(self) -> Result<Outcome> {
        match self.name {
            Some(name) => {
                print_result(&method::page(method::by_name(&name)?))?;
            }
            None => {
                let rows = method::METHODS.iter().map(|m| {
                    let card = m.card();
                    format!("{:<8} {}\n{:9}{}\n", card.name, card.summary, "", card.paper)
                });
                print_result(&rows.collect::<String>())?;
            }
        }
        Ok(Outcome::Fine)
    }
}

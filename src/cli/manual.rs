//! `softlm completions` and `softlm man`: what shells and man read, generated from the command line itself.

use super::Outcome;
use super::page::print_result;
use crate::checkpoint::write_file;
use crate::user_bail;
use anyhow::Result;
use clap::Args;
use clap_complete::Shell;
use std::fs;
use std::io::{Write, stdout};
use std::path::PathBuf;

#[derive(Args)]
pub struct Completions {
    /// bash, zsh, fish, elvish or powershell
    shell: Shell,
}

impl Completions {
    pub fn run(self, mut program: clap::Command) -> Result<Outcome> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut program, "softlm", &mut script);
        print_result(&String::from_utf8(script)?)?;
        Ok(Outcome::Fine)
    }
}

#[derive(Args)]
pub struct Man {
    /// Write a page for every command into this folder instead, softlm.1, softlm-compress.1, …
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

impl Man {
    pub fn run(self, program: clap::Command) -> Result<Outcome> {
        let Some(folder) = self.folder else {
            let mut page = Vec::new();
            clap_mangen::Man::new(program).render(&mut page)?;
            // As it is: man reads it, no terminal.
            stdout().write_all(&page)?;
            return Ok(Outcome::Fine);
        };
        if let Err(error) = fs::create_dir_all(&folder) {
            user_bail!("the folder {} cannot be made: {error}", folder.display(); "give another folder");
        }
        let mut program = program.disable_help_subcommand(true);
        program.build();
        let commands = program.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
        let pages: Vec<clap::Command> = commands.collect();
        for command in pages.into_iter().chain([program]) {
            let name = command.get_display_name().unwrap_or(command.get_name()).to_string();
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page)?;
            write_file(&folder.join(format!("{name}.1")), &page)?;
        }
        Ok(Outcome::Fine)
    }
}

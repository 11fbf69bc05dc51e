//! What is fuzzed: one target for each kind of file that others make.
//!
//! A target takes any bytes, reads them as the program reads files of its kind, and uses what was accepted as the program
//! does. It panics if something that was promised does not hold; that reading panics, hangs or takes too much memory is
//! found by whoever calls it: the ordinary test (`../main.rs`) and the programs of libFuzzer (`../fuzz_targets/`).

#![allow(dead_code, reason = "each program that includes this uses a part of it")]

mod config;
mod labels;
pub mod golden;
mod header;
mod index;
mod outputs;
pub mod memory;
pub mod mutate;
mod parts;
pub mod place;
mod report;
mod sentence;
mod statistics;
mod text;
mod tokenizer;
#[path = "../../it/tokenizer_cases.rs"]
mod tokenizer_cases;

use self::mutate::Random;
use self::place::Place;
use softlm::error::UserError;

/// One kind of file.
pub struct Target {
    /// Its name, also that of the program.
    pub name: &'static str,
    /// Inputs that are accepted, to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Changes an input a little.
    pub mutate: fn(&mut Vec<u8>, &mut Random, &[Vec<u8>]),
    /// Reads an input; whether it was accepted.
    pub run: fn(&[u8], &Place) -> bool,
}

/// All of them.
pub const ALL: [Target; 9] = [
    header::TARGET,
    index::TARGET,
    config::TARGET,
    tokenizer::TARGET,
    statistics::TARGET,
    report::TARGET,
    text::TARGET,
    labels::TARGET,
    sentence::TARGET,
];

impl Target {
    /// The target of a name.
    pub fn named(name: &str) -> &'static Target {
        const TARGETS: &[Target] = &ALL;
        TARGETS.iter().find(|target| target.name == name).unwrap_or_else(|| panic!("there is no target {name}"))
    }

    /// Reads an input and measures what that takes; whether it was accepted.
    pub fn check(&self, input: &[u8], place: &Place) -> bool {
        let (accepted, peak) = memory::measured(|| (self.run)(input, place));
        let limit = memory::limit(input.len());
        assert!(peak <= limit, "{} bytes of input took {peak} bytes of memory, more than {limit}", input.len());
        accepted
    }
}

/// What cannot be read is answered by an error that says what to do.
#[track_caller]
fn refused(error: &anyhow::Error) -> bool {
    let user = error.downcast_ref::<UserError>().or_else(|| error.chain().find_map(|cause| cause.downcast_ref()));
    let Some(user) = user else { panic!("an error without a hint: {error:?}") };
    assert!(user.hint_text().is_some_and(|hint| hint.len() > 10), "an error without a hint: {error:?}");
    if std::env::var_os("SOFTLM_FUZZ_INPUT").is_some() {
        println!("refused: {error:#}");
    }
    false
}

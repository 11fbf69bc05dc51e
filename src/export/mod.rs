//! What makes an output usable elsewhere.
//!
//! Every output carries loading code for transformers. [`export`] writes it in another form: `dense`, a plain checkpoint of
//! the base with every product multiplied out; `plain`, the same with feed-forward layers as narrow as pruning left them;
//! `factors`, the stored tensors with a description for programs that run factors themselves.
//!
//! A plain checkpoint consists of linears as the base's family has them, so each linear exists twice here: as the output
//! holds it, and as the wanted config describes it. No product is in memory longer than it takes to write it.

mod remote_code;
mod linears;
mod plan;
mod target;
mod description;
mod card;
mod run;

pub use description::{FACTORS_FILE, FACTORS_SCHEMA};
pub use remote_code::{LOADING_CODE, StoredLinear, output_config};
pub use run::{ExportOptions, Exported, export};

use clap::ValueEnum;
use serde::Serialize;

/// What an output is exported as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// A plain checkpoint of the base family: every product multiplied out, every shape the base's.
    Dense,
    /// A plain checkpoint with feed-forward layers as narrow as pruning left them, the same in every layer.
    Plain,
    /// The stored tensors and a JSON description of them.
    Factors,
}

impl Form {
    /// As it is written on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Form::Dense => "dense",
            Form::Plain => "plain",
            Form::Factors => "factors",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Form::Dense => "multiplied out",
            Form::Plain => "as a plain, smaller model",
            Form::Factors => "as raw factors",
        }
    }
}

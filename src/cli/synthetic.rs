//! `softlm synthetic`, for benchmarks

use super::{Context, Outcome};
use crate::checkpoint::Dtype;
use crate::synthetic::{SyntheticOptions, write_synthetic};
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
pub struct Synthetic {
    /// config.json of the model whose shapes are wanted; the tokenizer beside it is copied, without one the demo's
    config: PathBuf,
    /// New folder to write
    #[arg(short, long)]
    output: PathBuf,
    /// Blocks [default: as many as the configuration says]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=4096))]
    blocks: Option<u64>,
    /// What the numbers follow from
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Type of the weights: bf16, f16, f32
    #[arg(long, default_value = "bf16", value_name = "TYPE", value_parser = ["bf16", "f16", "f32"])]
    dtype: String,
}

impl Synthetic {
    pub fn run(self, context: &Context) -> Result<Outcome> {
        let dtype = match self.dtype.as_str() {
            "f16" => Dtype::F16,
            "f32" => Dtype::F32,
            _ => Dtype::BF16,
        };
        let options = SyntheticOptions { blocks: self.blocks.map(|blocks| blocks as usize), seed: self.seed, dtype };
        write_synthetic(&self.config, &self.output, &options, context.ui)?;
        context.ui.finish();
        context.ui.done(&format!("the checkpoint is {}", self.output.display()));
        Ok(Outcome::Fine)
    }
}

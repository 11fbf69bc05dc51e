//! Options that are one of a few words.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What makes the energies of different linears comparable under `--allocation global`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum WeightRule {
    /// 1: energies as they are.
    Unit,
    /// 1 / ‖WX‖²: relative output error.
    Energy,
    /// The KL divergence measured when that linear alone is cut; of an encoder that predicts no tokens, 1 − the cosine of
    /// its final states.
    Kl,
}

/// Type the factors are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum StoredType {
    /// That of the weight they replace.
    Auto,
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// 16-bit brain floats.
    Bf16,
}

/// Which windows of the calibration text are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum SamplingRule {
    /// A seeded random choice.
    Random,
    /// The first ones.
    First,
}

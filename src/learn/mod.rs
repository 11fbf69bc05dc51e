//! Learning: a student distilled from the original model or taught by the labels of a task.
//!
//! [`Distillation`] says what the student is shown and compared with. One loop, in `trainer.rs`, serves both kinds of
//! training: [`heal`] trains the factors that a closed form has made, [`learn_spectra`] is that of the methods which learn
//! what to keep. [`AdamW`] steps; its state survives a kill.

mod adamw;
mod deadline;
mod distillation;
mod heal;
mod schedule;
mod spectral;
mod trainer;

pub use adamw::{AdamW, AdamWOptions, Group};
pub use distillation::{Aim, Dataset, Distillation, Labelled};
pub use heal::{HealJob, HealOptions, HealReport, Healed, TrainedMatrices, TrainedMatrix, heal};
pub use schedule::Schedule;
pub use spectral::{
    Learned, LearnedLinear, SpectralJob, SpectralOptions, SpectralPoint, SpectralRates, SpectralReport, learn_spectra,
};
pub use trainer::{LossPoint, RateTrial};

use anyhow::Result;
use candle_core::Tensor;

/// √ mean x² of a parameter: what its learning rate is relative to.
fn root_mean_square(tensor: &Tensor) -> Result<f64> {
    Ok(f64::from(tensor.sqr()?.mean_all()?.to_scalar::<f32>()?).sqrt())
}

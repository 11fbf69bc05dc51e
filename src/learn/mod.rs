//! Learning: gradients through the whole model in the memory of one block, an optimiser whose state survives a kill, and
//! distillation to the original model or the loss of a labelled task.
//!
//! [`loss_gradient`] turns final hidden states into a loss and the gradient on them, [`forward`] and [`backward`] take
//! both through the blocks of a [`Student`], [`AdamW`] steps. [`heal`] is the whole road for factors that a closed form
//! has made, [`learn_spectra`] that of the methods which learn what to keep.

mod adamw;
mod backward;
mod batch;
mod course;
mod ends;
mod heal;
mod loss;
mod patient;
mod schedule;
mod spectra;
mod spectral_job;
mod spectrum;
mod watch;

pub use adamw::{AdamW, AdamWOptions, Group};
pub use backward::{Forward, Gradients, Student, backward, forward};
pub use batch::Labelled;
pub use course::{Aim, Lesson, Material};
pub use heal::{HealOptions, HealPoint, HealReport, Healed, Healing, heal};
pub use loss::{Objective, Teacher, loss_alone, loss_gradient};
pub use schedule::{Decay, Schedule};
pub use spectra::learn_spectra;
pub use spectral_job::{Learned, LearnedLinear, SpectralJob, SpectralOptions, SpectralPoint, SpectralReport};
pub use spectrum::{Components, SpectralRates};

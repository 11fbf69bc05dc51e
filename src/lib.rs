//! softlm makes language models smaller by low-rank methods and proves how good they still are.
//!
//! The modules stand in the order in which work flows through them; each may use those before it.

pub mod visible;
pub mod error;
pub mod number;
pub mod hash;
pub mod random;
pub mod progress;
pub mod lock;
pub mod memory;
pub mod hub;
pub mod linalg;
pub mod ops;
pub mod checkpoint;
pub mod compute;
pub mod model;
pub mod backward;
pub mod text;
pub mod forward;
pub mod calibrate;
pub mod form;
pub mod plan;
pub mod method;
pub mod learn;
pub mod eval;
pub mod generate;
pub mod report;
pub mod machine;
#[cfg(feature = "cuda")]
#[allow(unsafe_code, reason = "kernels and libraries of the GPU")]
mod cuda;
pub mod device;
pub mod doctor;
pub mod bench;
pub mod synthetic;
pub mod recipe;
pub mod job;
pub mod export;
pub mod pipeline;
pub mod cli;

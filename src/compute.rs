//! Where a model computes, in which type and in how much memory: one value, handed down from the command line.

use crate::checkpoint::{Dtype, Source};
use crate::ops::{MatmulPrecision, ProductType};
use crate::progress::Progress;
use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Device, type and limits.
#[derive(Debug, Clone)]
pub struct Compute {
    /// Where tensors live.
    pub device: Device,
    /// What weights are read as and activations computed in.
    pub dtype: DType,
    /// What products of weights and activations may lose.
    pub precision: MatmulPrecision,
    /// Whether matrices in bf16 or f16 stay so in memory; products are what they are otherwise. For models that write: nothing
    /// else takes such matrices.
    pub holds_half: bool,
    /// What may be in memory at once.
    pub limits: Limits,
    /// What the device turned out to have room for. All clones share it.
    pub room: Arc<Room>,
    /// What the user allows.
    pub allowed: Allowance,
}

/// What a device turned out to have room for.
#[derive(Debug, Default)]
pub struct Room {
    /// Tokens that fit at once; 0 as long as that is not known.
    tokens: AtomicUsize,
    untold: AtomicBool,
}

impl Room {
    /// Tokens that fit at once, if there ever were too many.
    pub fn tokens(&self) -> Option<usize> {
        Some(self.tokens.load(Ordering::Relaxed)).filter(|tokens| *tokens > 0)
    }

    /// From here on at most `tokens`.
    pub fn shrink(&self, tokens: usize) {
        self.tokens.store(tokens, Ordering::Relaxed);
        self.untold.store(true, Ordering::Relaxed);
    }

    /// Tells once what changed since the last time.
    pub fn tell(&self, progress: &dyn Progress) {
        if let Some(tokens) = self.tokens().filter(|_| self.untold.swap(false, Ordering::Relaxed)) {
            progress.warn(&format!(
                "the memory of the GPU ran out: from here on at most {tokens} tokens go through a block at once"
            ));
        }
    }
}

/// Whether a device had no memory left.
pub fn is_out_of_memory(error: &anyhow::Error) -> bool {
    let text = format!("{error:#}");
    ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED"].iter().any(|code| text.contains(code))
}

/// Bytes that a run may take, if there is a limit: `--max-memory` and `--max-device-memory`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allowance {
    /// Resident memory of the process.
    pub host: Option<u64>,
    /// Memory of a GPU.
    pub device: Option<u64>,
}

/// Sizes by which work is cut into parts. Sums over parts are taken in order, so that results depend on these alone, not on
/// the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Tokens that go through a block at once.
    pub batch_tokens: usize,
    /// Whether the next block is read while one computes, and a block's file written while the next one does.
    pub read_ahead: bool,
    /// Bytes of the states of calibration windows that lie in memory; those beyond it, and beyond a part of what is free, lie
    /// on the disk.
    pub resident_states: usize,
    /// Bytes of the hidden states of windows that are evaluated together.
    pub states: usize,
    /// Bytes of the logits of one model.
    pub logits: usize,
    /// Bytes that the decompositions of several linears may take together. One that needs more is decomposed alone.
    pub decompositions: usize,
    /// Bytes that the linears of a model may take for all blocks to stay in memory while it trains.
    pub trained_blocks: usize,
    /// Bytes of the original's final states that are kept while another model learns from them.
    pub teacher_states: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            batch_tokens: 2048,
            read_ahead: true,
            resident_states: usize::MAX,
            states: 256 << 20,
            logits: 64 << 20,
            decompositions: 1 << 30,
            trained_blocks: 4 << 30,
            teacher_states: 1 << 30,
        }
    }
}

/// f32 on a device, with the usual limits.
impl From<&Device> for Compute {
    fn from(device: &Device) -> Self {
        Self {
            device: device.clone(),
            dtype: DType::F32,
            precision: MatmulPrecision::default(),
            holds_half: false,
            limits: Limits::default(),
            room: Arc::default(),
            allowed: Allowance::default(),
        }
    }
}

impl From<&Compute> for Compute {
    fn from(compute: &Compute) -> Self {
        compute.clone()
    }
}

impl Compute {
    /// The type of activations, and that of the factors of products where it is another.
    pub fn describe_type(&self) -> String {
        match (self.dtype.as_str(), self.products()) {
            (dtype, ProductType::F32) => dtype.to_string(),
            (dtype, other) => format!("{dtype} with {} products", other.name()),
        }
    }

    /// What the factors of f32 products are rounded to.
    pub fn products(&self) -> ProductType {
        self.precision.on(&self.device)
    }

    /// The tensor `name`, which must have this shape, as it is computed with.
    pub fn read(&self, source: &Source, name: &str, shape: &[usize]) -> Result<Tensor> {
        source.tensor(name, shape, self.dtype, &self.device)
    }

    /// The rows with these numbers of the table `name`, `width` wide.
    pub fn rows(&self, source: &Source, name: &str, rows: &[u32], width: usize) -> Result<Tensor> {
        source.rows(name, rows, width, self.dtype, &self.device)
    }

    /// The matrix `name`, which must have this shape, for products.
    pub fn matrix(&self, source: &Source, name: &str, shape: &[usize]) -> Result<Tensor> {
        source.tensor(name, shape, self.matrix_dtype(source, name), &self.device)
    }

    /// The rows with these numbers of the matrix `name`, `width` wide, for products.
    pub fn matrix_rows(&self, source: &Source, name: &str, rows: &[u32], width: usize) -> Result<Tensor> {
        source.rows(name, rows, width, self.matrix_dtype(source, name), &self.device)
    }

    fn matrix_dtype(&self, source: &Source, name: &str) -> DType {
        match source.info(name).map(|info| info.dtype) {
            Some(Dtype::BF16) if self.holds_half && self.device.is_cpu() => DType::BF16,
            Some(Dtype::F16) if self.holds_half && self.device.is_cpu() => DType::F16,
            _ => self.dtype,
        }
    }
}

//! Gradients on what leaves the linears of a block. Backpropagation keeps none but those of variables: these are caught on
//! their way.

use super::super::ids::Role;
use anyhow::Result;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Error, Layout, MetalStorage, Shape, Tensor};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Filled while a graph is taken back through a block that [watches](super::Block::watch_outputs) its linears. A clone
/// shares what was found.
#[derive(Debug, Clone, Default)]
pub struct OutputGradients(Arc<Mutex<BTreeMap<Role, Tensor>>>);

impl OutputGradients {
    /// What was found since the last time: the gradient on the output (…, out) of every linear that took part.
    pub fn take(&self) -> BTreeMap<Role, Tensor> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// `y`, the output of the linear `role`, as what is watched.
    pub(super) fn watch(&self, role: Role, y: &Tensor) -> Result<Tensor> {
        Ok(y.contiguous()?.apply_op1(Watched { role, found: self.clone() })?)
    }
}

/// The identity, which shows the gradient on its output to someone.
struct Watched {
    role: Role,
    found: OutputGradients,
}

/// A copy of all of `storage`, which `layout` must fill.
fn copy<S: BackendStorage>(storage: &S, layout: &Layout) -> candle_core::Result<(S, Shape)> {
    match layout.contiguous_offsets() {
        Some((0, _)) => Ok((storage.try_clone(layout)?, layout.shape().clone())),
        _ => Err(Error::msg("an output of a linear begins where its storage does")),
    }
}

impl CustomOp1 for Watched {
    fn name(&self) -> &'static str {
        "watched-output"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        copy(storage, layout)
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        copy(storage, layout)
    }

    fn metal_fwd(&self, storage: &MetalStorage, layout: &Layout) -> candle_core::Result<(MetalStorage, Shape)> {
        copy(storage, layout)
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let mut found = self.found.0.lock().unwrap_or_else(PoisonError::into_inner);
        if found.insert(self.role, gradient.detach()).is_some() {
            return Err(Error::msg(format!("{} has two outputs in one pass", self.role)));
        }
        Ok(Some(gradient.clone()))
    }
}

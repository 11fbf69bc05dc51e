//! NVIDIA GPUs, found at run time: the program is linked without CUDA's libraries and starts where there are none.
//!
//! candle calls CUDA's functions by name. [`forward`] defines these names; [`libraries`] opens the real libraries, if
//! there are any, and tells where the names lead to; [`kernels`] saves the first start from compiling. [`solver`] decomposes.

mod forward;
mod kernels;
mod libraries;
mod solver;

use crate::linalg::CheckedSolver;
use crate::user_bail;
use anyhow::Result;
use candle_core::Device;
use candle_core::cuda_backend::cudarc::driver::result::{self as driver, DriverError};
use candle_core::cuda_backend::cudarc::driver::sys;
use std::sync::{Mutex, PoisonError};

/// What the kernels are compiled for: this compute capability and all above.
const CAPABILITY: (i32, i32) = (8, 0);
/// The driver must know this version of CUDA, in CUDA's notation.
const CUDA_VERSION: i32 = 13_000;

/// Whether a driver is installed, so that somebody may expect a GPU to be used.
pub fn driver_is_there() -> bool {
    libraries::driver_is_there()
}

/// A GPU, by its number in the order of CUDA.
///
/// All threads share one stream, so that one may use what another has computed.
///
/// # Errors
/// Says what is missing: the driver, a library, a GPU of this number, or what this GPU is too old for.
pub fn open(ordinal: usize) -> Result<Device> {
    libraries::load()?;
    let gpu = match find(ordinal) {
        Ok(gpu) => gpu,
        Err(e) => {
            user_bail!("no GPU can be used: the driver says: {}", text(&e); "see what nvidia-smi says, or use --device cpu")
        }
    };
    gpu.check(ordinal)?;
    match start(ordinal) {
        Ok(device) => Ok(device),
        Err(e) => user_bail!("GPU {ordinal} cannot be used: {e}"; "see what nvidia-smi says, or use --device cpu"),
    }
}

fn start(ordinal: usize) -> candle_core::Result<Device> {
    let device = Device::new_cuda_with_stream(ordinal)?;
    let gpu = device.as_cuda_device()?;
    // SAFETY: there is one stream, on which everything happens in turn.
    unsafe { gpu.disable_event_tracking() };
    keep_memory(gpu.cuda_stream().context().cu_device()).map_err(candle_core::Error::wrap)?;
    Ok(device)
}

/// Keeps memory that is freed for the tensors to come. By default the driver gives it back whenever the processor waits for
/// the GPU, and getting it anew takes longer than most kernels run.
fn keep_memory(gpu: sys::CUdevice) -> Result<(), DriverError> {
    // SAFETY: the GPU is one that the driver has named, and the attribute is a u64.
    unsafe {
        let pools = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED;
        if driver::device::get_attribute(gpu, pools)? > 0 {
            let pool = driver::device::get_default_mem_pool(gpu)?;
            let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            let mut all = u64::MAX;
            driver::mem_pool::set_attribute(pool, threshold, (&raw mut all).cast())?;
        }
    }
    Ok(())
}

/// What decomposes on the GPU of this number; opened at the first call. `Ok(None)`: that it cannot be was said before.
///
/// # Errors
/// Says what is missing.
pub fn solver(device: &Device) -> Result<Option<&'static CheckedSolver>> {
    static OPENED: Mutex<Vec<(usize, Option<&'static CheckedSolver>)>> = Mutex::new(Vec::new());
    let gpu = device.as_cuda_device()?;
    let ordinal = gpu.cuda_stream().context().ordinal();
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, solver)) = opened.iter().find(|(known, _)| *known == ordinal) {
        return Ok(*solver);
    }
    let found = solver::CuSolver::open(gpu);
    let solver = found.map(|solver| &*Box::leak(Box::new(CheckedSolver::new(Box::new(solver)))));
    opened.push((ordinal, solver.as_ref().ok().copied()));
    solver.map(Some)
}

/// Products of f32 tensors in tf32, summed in f32.
pub fn use_tf32() {
    candle_core::cuda_backend::set_gemm_reduced_precision_f32(true);
}

/// What the maker calls the GPU of this number.
pub fn name(ordinal: usize) -> Option<String> {
    let gpu = driver::device::get(i32::try_from(ordinal).ok()?).ok()?;
    driver::device::get_name(gpu).ok()
}

/// What the driver says before anything is opened.
struct Found {
    /// In CUDA's notation: 13000 for 13.0.
    driver: i32,
    gpus: usize,
    /// Of the GPU asked for; absent if there is none of its number.
    capability: Option<(i32, i32)>,
}

impl Found {
    fn check(&self, ordinal: usize) -> Result<()> {
        if self.driver < CUDA_VERSION {
            let [version, needed] = [self.driver, CUDA_VERSION].map(|v| format!("{}.{}", v / 1000, v % 1000 / 10));
            user_bail!("the driver is for CUDA {version}, {needed} is needed"; "update the driver to 580 or later, or use --device cpu");
        }
        let Some(capability) = self.capability else {
            user_bail!("there is no GPU {ordinal}: this machine has {}, counted from 0", self.gpus; "use --device auto to take the first")
        };
        if capability < CAPABILITY {
            user_bail!("GPU {ordinal} is of compute capability {}.{}, {}.{} is needed", capability.0, capability.1, CAPABILITY.0, CAPABILITY.1;
                "use --device cpu");
        }
        Ok(())
    }
}

fn find(ordinal: usize) -> Result<Found, DriverError> {
    use sys::CUdevice_attribute as Attribute;
    let mut version = 0;
    // SAFETY: the version is written where the reference points.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    driver::init()?;
    let gpus = driver::device::get_count()? as usize;
    let capability = if ordinal < gpus {
        let gpu = driver::device::get(ordinal as i32)?;
        // SAFETY: the driver has just named this GPU.
        let attribute = |attribute| unsafe { driver::device::get_attribute(gpu, attribute) };
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        Some((major, attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?))
    } else {
        None
    };
    Ok(Found { driver: version, gpus, capability })
}

fn text(error: &DriverError) -> String {
    error.error_string().map_or_else(|_| format!("{:?}", error.0), |text| text.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_old_or_absent_is_named() {
        let fine = Found { driver: 13_010, gpus: 2, capability: Some((9, 0)) };
        assert!(fine.check(1).is_ok());
        let refused = |found: Found, ordinal| found.check(ordinal).unwrap_err().to_string();
        let old_driver = refused(Found { driver: 12_040, ..fine }, 0);
        assert_eq!(old_driver, "the driver is for CUDA 12.4, 13.0 is needed");
        let absent = refused(Found { driver: 13_000, gpus: 1, capability: None }, 3);
        assert_eq!(absent, "there is no GPU 3: this machine has 1, counted from 0");
        let old = refused(Found { driver: 13_000, gpus: 1, capability: Some((7, 5)) }, 0);
        assert!(old.contains("7.5, 8.0 is needed"), "{old}");
    }
}

//! Which device computes: the processor, or a GPU.

use crate::linalg::CheckedSolver;
use crate::progress::Progress;
use crate::user_bail;
use anyhow::Result;
use candle_core::{Device, DeviceLocation};

/// What was asked for: `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The first GPU if it works, or else the processor.
    Auto,
    /// The processor.
    Cpu,
    /// The GPU of this number, counted from 0.
    Cuda(usize),
}

impl Choice {
    /// Reads a name.
    ///
    /// # Errors
    /// Refuses every other name.
    pub fn parse(name: &str) -> Result<Self> {
        let ordinal = match name {
            "auto" => return Ok(Self::Auto),
            "cpu" => return Ok(Self::Cpu),
            "cuda" => Some(0),
            _ => name.strip_prefix("cuda:").and_then(|n| n.parse().ok()),
        };
        match ordinal {
            Some(ordinal) => Ok(Self::Cuda(ordinal)),
            None => user_bail!("--device {name} is not known"; "use auto, cpu, cuda or cuda:N"),
        }
    }

    /// Opens the device. `note` is told why `auto` passes over a GPU whose driver is installed.
    ///
    /// # Errors
    /// Says what is missing for a GPU that was asked for.
    pub fn open(self, note: impl Fn(&str)) -> Result<Device> {
        match self {
            Self::Cuda(ordinal) => gpu::open(ordinal),
            Self::Auto if gpu::driver_is_there() => Ok(gpu::open(0).unwrap_or_else(|e| {
                note(&format!("the processor computes: {e}"));
                Device::Cpu
            })),
            Self::Auto | Self::Cpu => Ok(Device::Cpu),
        }
    }
}

/// What decomposes large matrices on `device`, if it does. `progress` is told once why a GPU does not.
pub fn solver(device: &Device, progress: &dyn Progress) -> Option<&'static CheckedSolver> {
    if !device.is_cuda() {
        return None;
    }
    gpu::solver(device).unwrap_or_else(|e| {
        progress.note(&format!(
            "matrices are decomposed by the processor: {e:#} (`pip install nvidia-cusolver`, or CUDA 13 with CUDA_HOME)"
        ));
        None
    })
}

/// From here on products of f32 tensors on GPUs are computed in tf32, and summed in f32.
pub fn use_tf32() {
    gpu::use_tf32();
}

/// The device as reports name it: `cpu`, or `cuda:0` with what the maker calls it.
pub fn describe(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".to_string(),
        DeviceLocation::Cuda { gpu_id } => match gpu::name(gpu_id) {
            Some(name) => format!("cuda:{gpu_id} ({name})"),
            None => format!("cuda:{gpu_id}"),
        },
        DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

#[cfg(feature = "cuda")]
use crate::cuda as gpu;

/// A build without GPUs.
#[cfg(not(feature = "cuda"))]
mod gpu {
    use crate::linalg::CheckedSolver;
    use crate::user_bail;
    use anyhow::Result;
    use candle_core::Device;

    pub fn driver_is_there() -> bool {
        false
    }

    pub fn open(_ordinal: usize) -> Result<Device> {
        user_bail!("no GPU can be used: this softlm was built without CUDA";
            "use --device cpu, or a build with --features cuda")
    }

    pub fn name(_ordinal: usize) -> Option<String> {
        None
    }

    pub fn use_tf32() {}

    pub fn solver(_device: &Device) -> Result<Option<&'static CheckedSolver>> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read() {
        let names =
            [("auto", Choice::Auto), ("cpu", Choice::Cpu), ("cuda", Choice::Cuda(0)), ("cuda:3", Choice::Cuda(3))];
        for (name, choice) in names {
            assert_eq!(Choice::parse(name).unwrap(), choice);
        }
        for name in ["", "CPU", "cuda:", "cuda:-1", "cuda:x", "cuda:0:1", "gpu", "cpu:0"] {
            assert!(Choice::parse(name).unwrap_err().to_string().contains("is not known"), "{name}");
        }
    }

    #[test]
    fn the_processor_is_always_there() {
        let device = Choice::Cpu.open(|why| panic!("{why}")).unwrap();
        assert_eq!(describe(&device), "cpu");
    }
}

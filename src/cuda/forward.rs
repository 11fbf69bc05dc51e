//! CUDA's functions under their own names, as jumps to addresses that are filled in at run time.
//!
//! Before that, and for ever where there is no CUDA, each answers with its library's code for "not initialised".

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

/// One function of a library: its name, and where its address goes.
pub type Slot = (&'static str, &'static AtomicPtr<c_void>);

/// `forward! { library, code; jumps… ; kept… }` defines `library::slots()`, the slots of all functions named, and each of
/// the jumps as a function that the linker finds. `code` is what they answer before their address is known. Those kept get
/// a slot only: softlm defines them itself and calls the library's.
macro_rules! forward {
    ($library:ident, $code:literal; $($jump:ident)*; $($kept:ident)*) => {
        pub mod $library {
            use super::*;

            #[allow(non_camel_case_types, clippy::upper_case_acronyms, clippy::enum_variant_names)]
            #[derive(Clone, Copy)]
            enum Function { $($jump,)* $($kept,)* }

            const NAMES: &[&str] = &[$(stringify!($jump),)* $(stringify!($kept),)*];
            static ADDRESSES: [AtomicPtr<c_void>; NAMES.len()] =
                [const { AtomicPtr::new(not_initialised as *mut c_void) }; NAMES.len()];

            extern "C" fn not_initialised() -> c_int {
                $code
            }

            /// All functions of the library.
            pub fn slots() -> impl Iterator<Item = Slot> {
                NAMES.iter().copied().zip(&ADDRESSES)
            }

            $(
                #[unsafe(naked)]
                #[unsafe(no_mangle)]
                extern "C" fn $jump() {
                    jump!(ADDRESSES, Function::$jump)
                }
            )*

            $(
                /// The library's own function.
                #[allow(non_snake_case)]
                pub fn $kept() -> *mut c_void {
                    ADDRESSES[Function::$kept as usize].load(Ordering::Relaxed)
                }
            )*
        }
    };
}

/// Jumps to the address at an index of a table; arguments and results stay where they are. Only registers that belong
/// to no one between caller and callee are touched.
#[cfg(target_arch = "x86_64")]
macro_rules! jump {
    ($addresses:path, $function:path) => {
        core::arch::naked_asm!(
            "jmp qword ptr [rip + {addresses} + {offset}]",
            addresses = sym $addresses,
            offset = const $function as usize * size_of::<AtomicPtr<c_void>>(),
        )
    };
}

#[cfg(target_arch = "aarch64")]
macro_rules! jump {
    ($addresses:path, $function:path) => {
        core::arch::naked_asm!(
            "adrp x16, {addresses} + {offset}",
            "add x16, x16, :lo12:{addresses} + {offset}",
            "ldr x16, [x16]",
            "br x16",
            addresses = sym $addresses,
            offset = const $function as usize * size_of::<AtomicPtr<c_void>>(),
        )
    };
}

// What the linker asks for: the functions that candle, softlm and its tests call. One that is missing here is a link error
// that names it.

forward! { driver, 3; // CUDA_ERROR_NOT_INITIALIZED
    cuCtxDestroy_v2 cuCtxGetCurrent cuCtxSetCurrent cuCtxSynchronize cuDeviceGet cuDeviceGetAttribute
    cuDeviceGetCount cuDeviceGetDefaultMemPool cuDeviceGetName cuDevicePrimaryCtxRelease_v2 cuDevicePrimaryCtxRetain
    cuDriverGetVersion cuEventCreate cuEventDestroy_v2 cuEventRecord cuGetErrorString cuInit cuLaunchKernel
    cuMemAllocAsync cuMemAlloc_v2 cuMemFreeAsync cuMemFree_v2 cuMemPoolSetAttribute cuMemcpyDtoDAsync_v2
    cuMemcpyDtoHAsync_v2 cuMemcpyHtoDAsync_v2 cuMemcpyPeerAsync cuMemsetD8Async cuModuleGetFunction cuModuleLoad
    cuModuleUnload cuStreamCreate cuStreamDestroy_v2 cuStreamIsCapturing cuStreamSynchronize cuStreamWaitEvent;
    cuModuleLoadData
}

forward! { cublas, 1; // CUBLAS_STATUS_NOT_INITIALIZED
    cublasCreate_v2 cublasDestroy_v2 cublasDgemmStridedBatched cublasGemmStridedBatchedEx cublasSetStream_v2;
}

forward! { curand, 101; // CURAND_STATUS_NOT_INITIALIZED
    curandCreateGenerator curandDestroyGenerator curandGenerateNormal curandGenerateNormalDouble
    curandGenerateUniform curandGenerateUniformDouble curandSetPseudoRandomGeneratorSeed curandSetStream;
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::cuda_backend::cudarc;
    use cudarc::curand::sys::curandStatus;
    use cudarc::driver::sys::CUresult;
    use std::sync::atomic::AtomicI32;

    static SEEN: AtomicI32 = AtomicI32::new(0);

    extern "C" fn count(place: *mut c_int) -> CUresult {
        SEEN.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the test passes the address of a number.
        unsafe { *place = 7 };
        CUresult::CUDA_SUCCESS
    }

    #[test]
    fn a_name_answers_before_its_address_is_known_and_leads_there_after() {
        // SAFETY: no library is opened by this test; a generator that does not exist is not looked at.
        let answer = unsafe { cudarc::curand::sys::curandDestroyGenerator(std::ptr::null_mut()) };
        assert_eq!(answer, curandStatus::CURAND_STATUS_NOT_INITIALIZED);
        let (_, slot) = driver::slots().find(|(name, _)| *name == "cuDeviceGetCount").unwrap();
        let before = slot.swap(count as *mut c_void, Ordering::Relaxed);
        let counted = cudarc::driver::result::device::get_count();
        slot.store(before, Ordering::Relaxed);
        assert_eq!((counted.unwrap(), SEEN.load(Ordering::Relaxed)), (7, 1));
    }
}

//! candle's kernels as machine code. candle hands them to the driver as text (PTX), which the driver compiles for about
//! 17 s the first time a machine sees it. A program built by `.github/cuda/build.sh` also holds them compiled for all
//! generations of GPUs since 2020, and gives the driver these.

use super::forward::driver;
use candle_core::cuda_backend::cudarc::driver::sys::{CUmodule, CUresult};
use candle_core::cuda_backend::kernels::Module;
use std::ffi::{CStr, c_char, c_void};

/// Machine code of one module, where the driver wants it: at a multiple of its words.
#[repr(C, align(16))]
struct Aligned<T: ?Sized>(T);

type Image = (&'static Module, &'static Aligned<[u8]>);

/// Written by `build.rs`; empty if the build brought no machine code.
const IMAGES: &[Image] = &include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Loads a module, as the driver's function of this name. In the place of a text of candle's that is known as machine code
/// this is loaded; a GPU that it does not fit gets the text.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoadData(module: *mut CUmodule, image: *const c_void) -> CUresult {
    // SAFETY: this is the signature of both values that the address can have.
    let load: unsafe extern "C" fn(*mut CUmodule, *const c_void) -> CUresult =
        unsafe { std::mem::transmute(driver::cuModuleLoadData()) };
    // SAFETY: the caller's image is text that ends in a NUL or binary, whose header holds one.
    let text = unsafe { CStr::from_ptr(image.cast::<c_char>()) }.to_bytes();
    if let Some(code) = machine_code(text, IMAGES) {
        // SAFETY: the image is whole, and the caller's module may be written to.
        match unsafe { load(module, code.as_ptr().cast()) } {
            CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => {}
            result => return result,
        }
    }
    // SAFETY: as the caller was asked for.
    unsafe { load(module, image) }
}

fn machine_code(text: &[u8], images: &[Image]) -> Option<&'static [u8]> {
    images.iter().find(|(module, _)| module.ptx().as_bytes() == text).map(|(_, code)| &code.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::cuda_backend::kernels;

    #[test]
    fn a_text_is_known_by_every_letter() {
        static IMAGES: [Image; 2] = [(&kernels::FILL, &Aligned(*b"fill")), (&kernels::UNARY, &Aligned(*b"unary"))];
        let text = kernels::UNARY.ptx();
        assert_eq!(machine_code(text.as_bytes(), &IMAGES), Some(&b"unary"[..]));
        assert_eq!(machine_code(&text.as_bytes()[1..], &IMAGES), None);
        assert_eq!(machine_code(kernels::SORT.ptx().as_bytes(), &IMAGES), None);
    }

    #[test]
    fn machine_code_is_of_the_kind_the_driver_knows() {
        for (module, code) in IMAGES {
            assert!(code.0.starts_with(&0xba55_ed50u32.to_le_bytes()), "{}", module.index());
            assert!(code.0.as_ptr().addr().is_multiple_of(16));
        }
    }
}

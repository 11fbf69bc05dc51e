//! Feature `cuda`: lets the program be linked where no CUDA is installed.
//!
//! candle asks the linker for the libraries below. `src/cuda/` defines every function that is called in them and finds
//! the real ones at run time, so empty archives are all the linker has to find. `moe` is candle's own: products of
//! quantised matrices, which softlm never calls, and half of the program's size.

use std::path::Path;

const LIBRARIES: [&str; 7] = ["cuda", "cudart", "cublas", "cublasLt", "curand", "nvrtc", "moe"];
/// The magic bytes of an archive, and no member.
const EMPTY_ARCHIVE: &[u8] = b"!<arch>\n";

fn main() -> std::io::Result<()> {
    println!("cargo:rerun-if-changed=src/cuda/build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        let out = std::env::var_os("OUT_DIR").ok_or_else(|| std::io::Error::other("cargo sets OUT_DIR"))?;
        let out = Path::new(&out);
        for library in LIBRARIES {
            std::fs::write(out.join(format!("lib{library}.a")), EMPTY_ARCHIVE)?;
        }
        println!("cargo:rustc-link-search=native={}", out.display());
        std::fs::write(out.join("kernels.rs"), kernels()?)?;
    }
    Ok(())
}

/// A Rust array of candle's modules and their machine code: what `.github/cuda/build.sh` has compiled, or nothing.
fn kernels() -> std::io::Result<String> {
    const FOLDER: &str = "SOFTLM_CUDA_KERNELS";
    println!("cargo:rerun-if-env-changed={FOLDER}");
    let mut images = Vec::new();
    if let Some(folder) = std::env::var_os(FOLDER) {
        println!("cargo:rerun-if-changed={}", Path::new(&folder).display());
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            let module = path.file_stem().unwrap_or_default().to_string_lossy().to_uppercase();
            images
                .push(format!("(&candle_core::cuda_backend::kernels::{module}, &Aligned(*include_bytes!({path:?})))"));
        }
    }
    images.sort_unstable();
    Ok(format!("[{}]", images.join(",\n")))
}

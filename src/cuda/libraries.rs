//! Where CUDA's libraries are: with the system, in CUDA's own folder, or in the wheels that PyTorch brings along.

use super::forward::{Slot, cublas, curand, driver};
use crate::user_bail;
use anyhow::{Context, Result};
use libloading::Library;
use libloading::os::unix;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

/// The driver, whose version decides what else can run.
const DRIVER: &str = "libcuda.so.1";
/// Where the driver is in containers and under WSL, of which the loader may not know.
const DRIVER_FOLDERS: [&str; 2] = ["/usr/local/nvidia/lib64", "/usr/lib/wsl/lib"];

/// Whether the driver can be opened.
pub fn driver_is_there() -> bool {
    matches!(open(DRIVER, &driver_folders()), Ok(Some(_)))
}

/// Opens the libraries and fills in the addresses of all that is called in them. A second call finds them open.
///
/// # Errors
/// Says which library or function is missing and how to get it.
pub fn load() -> Result<()> {
    static LOADED: Mutex<bool> = Mutex::new(false);
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if *loaded {
        return Ok(());
    }
    let Some(library) = open(DRIVER, &driver_folders())? else {
        user_bail!("no CUDA found: {DRIVER}, NVIDIA's driver, is not on this machine"; "install it, or use --device cpu")
    };
    fill(DRIVER, library, driver::slots())?;
    let folders = library_folders();
    let find = |file: &str| match open(file, &folders)? {
        Some(library) => Ok(library),
        None => user_bail!("no CUDA found: the driver is there, {file} is not";
            "`pip install nvidia-cublas==13.* nvidia-curand` (PyTorch for CUDA 13 brings both), or set CUDA_HOME to the folder of CUDA 13"),
    };
    // cuBLAS is linked to the first of these and would not find it in a folder that the loader does not know.
    std::mem::forget(find("libcublasLt.so.13")?);
    fill("libcublas.so.13", find("libcublas.so.13")?, cublas::slots())?;
    fill("libcurand.so.10", find("libcurand.so.10")?, curand::slots())?;
    *loaded = true;
    Ok(())
}

/// Opens cuSOLVER, which a GPU can be used without. [`load`] comes first.
///
/// # Errors
/// Says which library is missing.
pub fn solver() -> Result<Library> {
    let folders = library_folders();
    let find = |file: &str| open(file, &folders)?.with_context(|| format!("{file} is not there"));
    // It is linked to these and would not find them in a folder that the loader does not know.
    for file in ["libnvJitLink.so.13", "libcusparse.so.12"] {
        std::mem::forget(find(file)?);
    }
    find("libcusolver.so.12")
}

fn driver_folders() -> [PathBuf; 2] {
    DRIVER_FOLDERS.map(PathBuf::from)
}

/// The library of this file name: the one the loader finds, or else the first in the folders. `None` if there is none.
fn open(file: &str, folders: &[PathBuf]) -> Result<Option<Library>> {
    if let Ok(library) = whole(file.as_ref()) {
        return Ok(Some(library));
    }
    let Some(path) = folders.iter().map(|folder| folder.join(file)).find(|path| path.exists()) else {
        return Ok(None);
    };
    match whole(&path) {
        Ok(library) => Ok(Some(library)),
        Err(e) => {
            user_bail!("no CUDA found: {} cannot be opened: {e}", path.display(); "use --device cpu, or another CUDA by CUDA_HOME")
        }
    }
}

/// A library all of whose functions are there. Otherwise one that is missing in another library that it is linked to, as of
/// another version, would end the process when it is called.
fn whole(file: &Path) -> Result<Library, libloading::Error> {
    // SAFETY: what NVIDIA's libraries do when they are opened may be done at any time.
    unsafe { unix::Library::open(Some(file), unix::RTLD_NOW | unix::RTLD_LOCAL) }.map(Library::from)
}

/// Stores the addresses of the functions. The library stays open as long as the process lives.
fn fill(file: &str, library: Library, slots: impl Iterator<Item = Slot>) -> Result<()> {
    let library: &'static Library = Box::leak(Box::new(library));
    for (name, slot) in slots {
        // SAFETY: only the address is taken; candle calls the function by the signature it has in CUDA 13.
        match unsafe { library.get::<*mut std::ffi::c_void>(name) } {
            Ok(address) => slot.store(*address, Ordering::Relaxed),
            Err(_) => {
                user_bail!("no CUDA found that can be used: {file} has no function {name}"; "CUDA 13 is needed; or use --device cpu")
            }
        }
    }
    Ok(())
}

/// Folders that may hold CUDA's libraries, the user's choice first.
fn library_folders() -> Vec<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let mut toolkits: Vec<PathBuf> = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"].into_iter().filter_map(set).collect();
    toolkits.extend(children("/usr/local".as_ref(), "cuda"));
    toolkits.push("/opt/cuda".into());
    let mut prefixes: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(set).collect();
    let path = std::env::var_os("PATH").unwrap_or_default();
    prefixes.extend(
        std::env::split_paths(&path)
            .filter(|bin| bin.join("python3").exists())
            .filter_map(|bin| bin.parent().map(Path::to_path_buf)),
    );
    prefixes.extend(set("HOME").map(|home| home.join(".local")));
    prefixes.extend(["/usr/local", "/usr"].map(PathBuf::from));
    let mut folders: Vec<PathBuf> = toolkits.iter().flat_map(|root| in_toolkit(root)).collect();
    folders.extend(prefixes.iter().flat_map(|prefix| in_python(prefix)));
    folders
}

/// Folders of libraries in CUDA's own folder, or in a wheel's.
fn in_toolkit(root: &Path) -> [PathBuf; 3] {
    let target = if cfg!(target_arch = "aarch64") { "sbsa-linux" } else { "x86_64-linux" };
    [root.join("lib64"), root.join("lib"), root.join("targets").join(target).join("lib")]
}

/// Folders of libraries in the wheels of the Python that lives under `prefix`.
fn in_python(prefix: &Path) -> Vec<PathBuf> {
    let pythons = children(&prefix.join("lib"), "python3");
    let packages = pythons.iter().flat_map(|python| ["site-packages", "dist-packages"].map(|name| python.join(name)));
    packages.map(|packages| packages.join("nvidia/cu13/lib")).collect()
}

/// What lies in a folder under names that begin like this, in descending order: newer versions first.
fn children(folder: &Path, beginning: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(beginning)).map(|e| e.path()).collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wheels_and_toolkits_are_found() {
        let root = tempfile::tempdir().unwrap();
        for python in ["python3.9", "python3.12", "perl"] {
            std::fs::create_dir_all(root.path().join("lib").join(python)).unwrap();
        }
        let found = in_python(root.path());
        assert!(found.contains(&root.path().join("lib/python3.12/site-packages/nvidia/cu13/lib")), "{found:?}");
        assert!(found.len() == 4 && found.iter().all(|path| !path.to_string_lossy().contains("perl")), "{found:?}");
        assert!(in_toolkit(root.path()).contains(&root.path().join("lib64")));
        assert!(children(&root.path().join("absent"), "").is_empty());
    }

    #[test]
    fn a_missing_library_is_none_and_a_broken_one_an_error() {
        let root = tempfile::tempdir().unwrap();
        let folders = [root.path().join("absent"), root.path().to_path_buf()];
        let file = "libsoftlm-has-no-such-library.so.1";
        assert!(open(file, &folders).unwrap().is_none());
        std::fs::write(root.path().join(file), "not a library").unwrap();
        let error = open(file, &folders).unwrap_err().to_string();
        assert!(error.contains("no CUDA found") && error.contains(file), "{error}");
    }

    #[test]
    fn a_library_without_a_function_is_refused() {
        // SAFETY: the C library is open already.
        let libc = unsafe { Library::new("libc.so.6") }.unwrap();
        let error = fill("libc.so.6", libc, driver::slots().take(1)).unwrap_err().to_string();
        assert!(error.contains("libc.so.6 has no function cu"), "{error}");
    }
}

//! Memory of this process: how much there is, and when the allocator gives it back.

#![allow(unsafe_code, reason = "calls of the system's allocator")]

use anyhow::{Context, Result};
use std::fs::File;
use std::path::PathBuf;

/// Bytes that could be used without swapping, as far as the system tells.
pub fn available() -> Option<u64> {
    let all = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = all.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Resident memory of this process now, in bytes. `None` where the system does not tell.
pub fn rss_bytes() -> Option<u64> {
    of_process("VmRSS:")
}

/// Largest resident memory of this process so far, in bytes. `None` where the system does not tell.
pub fn peak_rss_bytes() -> Option<u64> {
    of_process("VmHWM:")
}

/// Lets [`peak_rss_bytes`] begin anew with what is resident now. Whether the system does that.
pub fn reset_peak() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

fn of_process(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Asks the system's allocator to keep what is freed: a block, or a training step, allocates the same tensors as the one
/// before, and getting them from the system anew costs a fifth of its time. What one thread has freed serves the others, so
/// this comes before there are any. Does nothing where the allocator cannot be told.
pub fn keep() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt may be called at any time; an unknown parameter is ignored.
    unsafe {
        // Versions that refuse the larger size take this one at most.
        if libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30) == 0 {
            libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        }
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives what is free back to the system: behind each kind of work on a block, whose holes fit no other, and behind each
/// block, so that the peak does not creep up with depth.
pub fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// A file without a name, for what does not fit into memory: in `TMPDIR`, otherwise where large files belong, since /tmp
/// is often memory itself.
pub fn scratch_file() -> Result<File> {
    let large = PathBuf::from("/var/tmp");
    let dir = match std::env::var_os("TMPDIR") {
        None if large.is_dir() => large,
        _ => std::env::temp_dir(),
    };
    tempfile::tempfile_in(&dir).with_context(|| format!("making a temporary file in {}", dir.display()))
}

//! Where the real models and texts are that some tests measure against.

use std::path::PathBuf;

/// A file or folder of the test data, or `None` with a note on stdout where there is none. The data lies beside the
/// project in `../shared/data`, or where the environment variable `SOFTLM_TEST_DATA` points.
pub fn data(relative: &str) -> Option<PathBuf> {
    let beside = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data"));
    let path = std::env::var_os("SOFTLM_TEST_DATA").map_or_else(beside, PathBuf::from).join(relative);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: no test data {relative}");
    None
}

//! Git-LFS pointers: what a clone without `git lfs` has in place of its large files.

use crate::user_bail;
use anyhow::Result;

/// How every pointer begins. The second name is that of the first releases.
const BEGINNINGS: [&[u8]; 2] =
    [b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/"];
/// No pointer is larger, says the specification.
pub(super) const LARGEST: usize = 1024;

/// Whether these bytes are not a file but say where Git LFS has it.
pub(crate) fn is_pointer(bytes: &[u8]) -> bool {
    bytes.len() < LARGEST && BEGINNINGS.iter().any(|beginning| bytes.starts_with(beginning))
}

/// Fails if the file that errors call `file` was never fetched.
pub(crate) fn refuse_pointer(file: &str, bytes: &[u8]) -> Result<()> {
    if is_pointer(bytes) {
        user_bail!(
            "{file} is a Git LFS pointer, not the file itself";
            "run `git lfs pull` in its folder to fetch it, or download the file again"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_are_told_from_files() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
        let error = refuse_pointer("tokenizer.json", pointer).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json") && error.contains("Git LFS"), "{error}");
        let essay = [b"version https://git-lfs.github.com/spec/v1 is how a pointer begins. ", [b' '; 1024].as_slice()];
        for file in [&b"{}"[..], b"", b"version 2", &essay.concat()] {
            refuse_pointer("x", file).unwrap();
        }
    }
}

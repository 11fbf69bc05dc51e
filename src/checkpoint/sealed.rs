//! Files of tensors that a program keeps for itself and must be able to trust later: sealed by a hash of all they hold.
//!
//! A damaged weight of a published checkpoint is found by the hashes of its report; work that is half done has none, and a
//! flipped bit in it would become a slightly different model. The seal lies in the header's free-form strings, so that the
//! file stays an ordinary safetensors file.

use super::atomic::write_tensors;
use super::file::TensorFile;
use super::{Dtype, TensorData};
use crate::hash::Sha256;
use crate::user_bail;
use anyhow::Result;
use std::collections::BTreeMap;
use std::path::Path;

/// Key of the seal in the header.
const SEAL: &str = "sha256";
/// Bytes hashed before their pages are given back.
const STRIDE: usize = 4 << 20;

/// [`write_tensors`] with a seal.
///
/// # Errors
/// As [`write_tensors`].
pub fn write_sealed<T: TensorData>(path: &Path, tensors: &[T], metadata: &BTreeMap<String, String>) -> Result<()> {
    let mut sealed = metadata.clone();
    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_by(|a, b| a.name().cmp(b.name()));
    let mut hash = Hash::new(metadata);
    for tensor in order {
        hash.tensor(tensor.name(), tensor.dtype(), tensor.shape(), tensor.size());
        hash.0.update(&tensor.data()?);
    }
    sealed.insert(SEAL.to_string(), hash.finish());
    write_tensors(path, tensors, &sealed)
}

impl TensorFile {
    /// The hash that a file written by [`write_sealed`] claims.
    pub fn seal(&self) -> Option<&str> {
        self.metadata().get(SEAL).map(String::as_str)
    }

    /// Opens a file written by [`write_sealed`] and reads it once to see that it holds what was written.
    ///
    /// # Errors
    /// As [`open`](Self::open); also if anything in it was changed since, or if it has no seal.
    pub fn open_sealed(path: &Path) -> Result<TensorFile> {
        let file = Self::open(path)?;
        let mut metadata = file.metadata().clone();
        let Some(sealed) = metadata.remove(SEAL) else {
            user_bail!("{} has no checksum: it was written by an earlier version or another program", path.display());
        };
        let mut hash = Hash::new(&metadata);
        for (name, info) in file.tensors.iter() {
            hash.tensor(name, info.dtype, &info.shape, info.bytes());
            for start in info.range.clone().step_by(STRIDE) {
                let range = start..info.range.end.min(start + STRIDE);
                hash.0.update(file.at(range.clone()));
                file.release(range);
            }
        }
        if hash.finish() != sealed {
            user_bail!("{} was changed after it was written: its checksum does not fit", path.display());
        }
        Ok(file)
    }
}

/// Of names, types, shapes and free-form strings, each with its length, and of the data.
struct Hash(Sha256);

impl Hash {
    fn new(metadata: &BTreeMap<String, String>) -> Self {
        let mut hash = Self(Sha256::new());
        metadata.iter().for_each(|(key, value)| {
            hash.text(key);
            hash.text(value);
        });
        hash
    }

    fn text(&mut self, text: &str) {
        self.0.update((text.len() as u64).to_le_bytes());
        self.0.update(text);
    }

    fn tensor(&mut self, name: &str, dtype: Dtype, shape: &[usize], bytes: usize) {
        self.text(name);
        self.text(&format!("{dtype} {shape:?} {bytes}"));
    }

    fn finish(self) -> String {
        self.0.hex()
    }
}

#[cfg(test)]
mod tests {
    use super::super::NamedTensor;
    use super::*;
    use std::fs;

    #[test]
    fn whatever_is_changed_breaks_the_seal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("block.safetensors");
        let tensors =
            [NamedTensor::new("b", Dtype::F32, [2], vec![1; 8]), NamedTensor::new("a", Dtype::U8, [3], vec![1, 2, 3])];
        let metadata = BTreeMap::from([("linears".to_string(), "[0.5]".to_string())]);
        write_sealed(&path, &tensors, &metadata).unwrap();
        let file = TensorFile::open_sealed(&path).unwrap();
        assert_eq!((file.bytes("a").unwrap(), file.metadata()["linears"].as_str()), (&[1u8, 2, 3][..], "[0.5]"));

        let whole = fs::read(&path).unwrap();
        let mut harmless = Vec::new();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            fs::write(&path, flipped).unwrap();
            if TensorFile::open_sealed(&path).is_ok() {
                harmless.push(at);
            }
        }
        assert_eq!(harmless, Vec::<usize>::new(), "a flipped bit was not noticed");
        write_tensors(&path, &tensors, &metadata).unwrap();
        assert!(TensorFile::open_sealed(&path).err().unwrap().to_string().contains("no checksum"));
    }
}

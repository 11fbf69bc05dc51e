//! One opened safetensors file.

#![allow(unsafe_code, reason = "files are mapped")]

use super::convert;
use super::header::{self, Header};
use super::names::NameTable;
use super::read::{open_file, unreadable};
use crate::error::UserError;
use crate::hash::Sha256;
use anyhow::{Context, Result};
use memmap2::{Advice, Mmap, UncheckedAdvice};
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What the header says about one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type as stored.
    pub dtype: Dtype,
    /// Shape as stored; empty for a scalar.
    pub shape: Vec<usize>,
    /// Which of the checkpoint's files holds it.
    pub(super) file: u32,
    /// Where in that file, counted from its first byte.
    pub(super) range: Range<usize>,
}

impl TensorInfo {
    /// Length of the stored data in bytes.
    pub fn bytes(&self) -> usize {
        self.range.len()
    }

    /// Whether its elements are numbers of a type that weights can have.
    pub fn is_float(&self) -> bool {
        convert::float_size(self.dtype).is_some()
    }

    /// Number of elements; 1 for a scalar.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Headers from this size on do not stay in memory once they were read.
const LARGE_HEADER: usize = 1 << 20;

enum Data {
    Map(Mmap),
    BuiltIn(&'static [u8]),
}

/// One safetensors file, opened by its header: a shard, or a file written by [`write_tensors`](super::write_tensors).
pub struct TensorFile {
    pub(super) name: String,
    path: Option<PathBuf>,
    data: Data,
    pub(super) tensors: NameTable<TensorInfo>,
    metadata: BTreeMap<String, String>,
}

impl TensorFile {
    /// Maps the file and checks its header; no weight is read. Changing the file while it is open is undefined: replace
    /// it by renaming instead.
    ///
    /// # Errors
    /// A [`UserError`] that names the file if it cannot be opened, is truncated or contradicts itself.
    pub fn open(path: &Path) -> Result<TensorFile> {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let file = open_file(path)?;
        // SAFETY: the map is read-only; the documentation above makes its stability the caller's promise, as every
        // reader of mapped weights has to.
        let map = unsafe { Mmap::map(&file) }.map_err(|error| unreadable(path, &error))?;
        let Header { tensors, metadata, end } = header::parse(&path.display().to_string(), &map)?;
        let file = Self { name, path: Some(path.into()), data: Data::Map(map), tensors, metadata };
        if end > LARGE_HEADER {
            file.release(0..end);
        }
        Ok(file)
    }

    /// [`open`](Self::open) of a file that an unfinished run keeps for itself.
    ///
    /// # Errors
    /// A [`UserError`] that says how to get on without it.
    pub fn open_unfinished(path: &Path) -> Result<TensorFile> {
        Self::open(path).map_err(|error| {
            UserError::new(format!("the unfinished run is damaged: {error:#}"))
                .hint("give the same command again: what is damaged is then made again")
                .into()
        })
    }

    /// A file that is part of the program.
    pub(super) fn built_in(name: &str, bytes: &'static [u8]) -> Result<TensorFile> {
        let Header { tensors, metadata, .. } = header::parse(name, bytes)?;
        Ok(Self { name: name.into(), path: None, data: Data::BuiltIn(bytes), tensors, metadata })
    }

    /// File name without its folder.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|(name, _)| name)
    }

    /// What the header says about a tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// The header's free-form strings.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The raw little-endian data of a tensor, as mapped. There is no promise of alignment.
    pub fn bytes(&self, name: &str) -> Result<&[u8]> {
        let info = self.info(name).with_context(|| format!("{} has no tensor {name}", self.name))?;
        Ok(self.at(info.range.clone()))
    }

    /// Bytes of the file; the range comes from a checked header.
    pub(super) fn at(&self, range: Range<usize>) -> &[u8] {
        &self.all()[range]
    }

    /// Size of the file in bytes.
    pub fn size(&self) -> usize {
        self.all().len()
    }

    fn all(&self) -> &[u8] {
        match &self.data {
            Data::Map(map) => map,
            Data::BuiltIn(bytes) => bytes,
        }
    }

    /// Gives the memory of these bytes back; reading them again fetches them from the file.
    pub(super) fn release(&self, range: Range<usize>) {
        let Data::Map(map) = &self.data else { return };
        if range.is_empty() {
            return;
        }
        // SAFETY: the map is shared with the file and never written, so a dropped page comes back with the same bytes.
        // Rounding to pages may drop a neighbour's too, for the same reason without harm. Failure only costs memory.
        let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
    }

    /// Tells the system whether these bytes will be picked here and there, so that a page read does not bring megabytes
    /// of neighbours along, or once from start to end.
    pub(super) fn expect_picking(&self, range: Range<usize>, picking: bool) {
        if let (Data::Map(map), false) = (&self.data, range.is_empty()) {
            let advice = if picking { Advice::Random } else { Advice::Normal };
            // Failure only costs time.
            let _ = map.advise_range(advice, range.start, range.len());
        }
    }

    /// SHA-256 of the whole file in lower-case hex, read through a buffer so that the map stays untouched.
    pub fn sha256(&self) -> Result<String> {
        let mut hash = Sha256::new();
        match &self.path {
            None => hash.update(self.all()),
            Some(path) => {
                let mut file = open_file(path)?;
                let mut buffer = vec![0; 1 << 20];
                loop {
                    match file.read(&mut buffer).map_err(|error| unreadable(path, &error))? {
                        0 => break,
                        n => hash.update(&buffer[..n]),
                    }
                }
            }
        }
        Ok(hash.hex())
    }
}

//! An opened checkpoint.

use super::convert::{self, Number};
use super::file::{TensorFile, TensorInfo};
use super::folder::{self, CONFIG, SINGLE, UNFINISHED_CONFIG};
use super::index::Index;
use super::read::read_settings;
use crate::error::UserError;
use crate::user_bail;
use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Stored bytes converted before their pages are given back.
const STRIDE: usize = 4 << 20;
const MISFIT: &str = "the weights do not fit config.json: they belong to another model or version";
/// Rows gathered before their pages are given back: the kernel maps up to 64 KiB around each.
const ROWS: usize = 256;

/// The built-in model's files.
pub(super) const DEMO: &[(&str, &[u8])] = &[
    ("config.json", include_bytes!("../demo/config.json")),
    ("generation_config.json", include_bytes!("../demo/generation_config.json")),
    ("model.safetensors", include_bytes!("../demo/model.safetensors")),
    ("tokenizer.json", include_bytes!("../demo/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../demo/tokenizer_config.json")),
];

/// A file that holds weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightFile {
    /// Name relative to the folder.
    pub name: String,
    /// Size in bytes, header included.
    pub bytes: u64,
}

/// Where a tensor is listed: in which file, and as which of its tensors.
#[derive(Clone, Copy)]
struct Place {
    file: u32,
    tensor: u32,
}

impl Place {
    fn of(self, files: &[TensorFile]) -> (&str, &TensorInfo) {
        files[self.file as usize].tensors.at(self.tensor as usize)
    }
}

/// An opened checkpoint: headers and configuration are read and checked, no weight is. A clone shares the open files.
///
/// The files must not change while they are open; replace them by renaming.
#[derive(Clone)]
pub struct Source {
    label: String,
    revision: Option<String>,
    dir: Option<PathBuf>,
    config: Map<String, Value>,
    files: Arc<[TensorFile]>,
    /// Every tensor of every file, by name.
    tensors: Arc<[Place]>,
    aliases: BTreeMap<String, String>,
    hashes: Arc<OnceLock<Vec<(String, String)>>>,
    unfinished: bool,
    pub(super) index: Option<Arc<Index>>,
}

impl Source {
    /// Opens a folder with `config.json` and `model.safetensors`, or `model.safetensors.index.json` and its shards.
    ///
    /// # Errors
    /// A [`UserError`] naming the file and the value for anything missing, damaged or contradictory, for pickled
    /// weights (which are never opened) and for a tensor stored twice.
    pub fn open(dir: &Path) -> Result<Source> {
        let config = folder::read_config(dir)?;
        let (files, index) = folder::open_weights(dir)?;
        Self::assemble(dir.display().to_string(), Some(dir.into()), config, files, index)
    }

    /// [`open`](Self::open) of a folder that is still being made: its configuration is [`UNFINISHED_CONFIG`], a name that
    /// nothing loads a model by.
    pub fn open_unfinished(dir: &Path) -> Result<Source> {
        let path = dir.join(UNFINISHED_CONFIG);
        let config = folder::parse_config(&path.display().to_string(), &read_settings(&path)?)?;
        let (files, index) = folder::open_weights(dir)?;
        let source = Self::assemble(dir.display().to_string(), Some(dir.into()), config, files, index)?;
        Ok(Self { unfinished: true, ..source })
    }

    /// The model built into the program: a small trained Llama in bf16 with its tokenizer. Needs no disk.
    pub fn demo() -> Source {
        let file = |wanted| DEMO.iter().find(|(name, _)| *name == wanted).map_or(&[][..], |(_, bytes)| bytes);
        let open = || {
            let config = folder::parse_config(CONFIG, file(CONFIG))?;
            Self::assemble("demo".into(), None, config, vec![TensorFile::built_in(SINGLE, file(SINGLE))?], None)
        };
        open().expect("the built-in model is part of the program and tested with it")
    }

    /// A configuration alone: what a checkpoint that is yet to be written will have.
    pub fn without_weights(label: &str, config: Map<String, Value>) -> Result<Source> {
        Self::assemble(label.into(), None, config, Vec::new(), None)
    }

    /// Whether there are files of weights: not so of a configuration alone.
    pub fn has_weights(&self) -> bool {
        !self.files.is_empty()
    }

    fn assemble(
        label: String,
        dir: Option<PathBuf>,
        config: Map<String, Value>,
        mut files: Vec<TensorFile>,
        index: Option<Arc<Index>>,
    ) -> Result<Source> {
        let mut tensors = Vec::with_capacity(files.iter().map(|file| file.tensors.len()).sum());
        for (file, number) in files.iter_mut().zip(0..) {
            file.tensors.values_mut().for_each(|info| info.file = number);
            tensors.extend((0..file.tensors.len() as u32).map(|tensor| Place { file: number, tensor }));
        }
        let name = |place: &Place| place.of(&files).0;
        tensors.sort_by(|a, b| name(a).cmp(name(b)));
        if let Some(pair) = tensors.windows(2).find(|pair| name(&pair[0]) == name(&pair[1])) {
            let [first, second] = [pair[0], pair[1]].map(|place| files[place.file as usize].name());
            user_bail!(
                "tensor {} is stored twice, in {first} and in {second}", name(&pair[0]);
                "remove shards that belong to another checkpoint, or download it again"
            );
        }
        let (files, tensors, aliases, hashes) = (files.into(), tensors.into(), BTreeMap::new(), Arc::default());
        Ok(Self { label, revision: None, dir, config, files, tensors, aliases, hashes, unfinished: false, index })
    }

    /// Replaces the label by what the user typed.
    pub fn with_label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// How the checkpoint is called in messages and reports; the folder unless [`with_label`](Self::with_label) said.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Records the revision that was fetched.
    pub fn with_revision(mut self, revision: Option<String>) -> Self {
        self.revision = revision;
        self
    }

    /// The recorded revision.
    pub fn revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// The folder; `None` for the built-in model.
    pub fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// Name of the file that is the folder's `config.json`.
    pub(super) fn config_name(&self) -> &'static str {
        if self.unfinished { UNFINISHED_CONFIG } else { CONFIG }
    }

    /// `config.json`, keys in file order.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// Names of the stored tensors, sorted. Aliases are not among them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|place| place.of(&self.files).0)
    }

    /// Whether a tensor of exactly this name is stored.
    pub fn is_stored(&self, name: &str) -> bool {
        self.stored(name).is_some()
    }

    /// Whether any stored tensor's name begins like this.
    pub fn has_prefix(&self, prefix: &str) -> bool {
        self.names_behind(prefix).next().is_some()
    }

    /// The numbers that follow `prefix` in the names of stored tensors and end at a dot: those of layers.
    pub fn numbers_behind(&self, prefix: &str) -> impl Iterator<Item = usize> {
        let number = |rest: &str| rest.split_once('.').and_then(|(number, _)| number.parse().ok());
        self.names_behind(prefix).filter_map(number)
    }

    /// What follows `prefix` in the names that begin with it.
    fn names_behind(&self, prefix: &str) -> impl Iterator<Item = &str> {
        let first = self.tensors.partition_point(|place| place.of(&self.files).0 < prefix);
        self.tensors[first..].iter().map_while(move |place| place.of(&self.files).0.strip_prefix(prefix))
    }

    /// Makes `missing` another name of the stored tensor `stored`, as tied embeddings need it: from now on every
    /// look-up of `missing` that finds no such tensor finds `stored`.
    pub fn alias(&mut self, missing: &str, stored: &str) {
        self.aliases.insert(missing.into(), stored.into());
    }

    /// The aliases, missing name to stored name.
    pub fn aliases(&self) -> &BTreeMap<String, String> {
        &self.aliases
    }

    /// Dtype and shape of a tensor or of what its alias stands for.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.stored(name).or_else(|| self.stored(self.aliases.get(name)?))
    }

    fn stored(&self, name: &str) -> Option<&TensorInfo> {
        let found = self.tensors.binary_search_by(|place| place.of(&self.files).0.cmp(name)).ok()?;
        Some(self.tensors[found].of(&self.files).1)
    }

    /// File and place of a tensor.
    pub(super) fn locate(&self, name: &str) -> Result<(&TensorFile, &TensorInfo)> {
        let Some(info) = self.info(name) else {
            let label = &self.label;
            user_bail!(
                "{label} has no tensor {name}";
                "the weights are incomplete or of another architecture than {CONFIG} says; `softlm inspect {label}` lists them"
            );
        };
        Ok((self.file_of(info), info))
    }

    /// The raw little-endian bytes of a tensor as mapped from the file, at any alignment and unchecked. Call
    /// [`release`](Self::release) when done.
    pub fn bytes(&self, name: &str) -> Result<&[u8]> {
        let (file, info) = self.locate(name)?;
        Ok(file.at(info.range.clone()))
    }

    /// Gives the memory of a tensor's mapped pages back to the system; reading them again is always possible.
    pub fn release(&self, name: &str) {
        if let Ok((file, info)) = self.locate(name) {
            file.release(info.range.clone());
        }
    }

    /// Loads a tensor of the given shape as `dtype` (f32, f64, f16 or bf16). Takes the memory of the result and a few
    /// MiB more.
    ///
    /// # Errors
    /// A [`UserError`] if the tensor is missing, has another shape, is not stored as bf16, f16, f32 or f64, or holds a
    /// NaN, an infinity or a value outside the range of `dtype`.
    pub fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let (_, info) = self.locate(name)?;
        let found = &info.shape;
        if found != shape {
            user_bail!(
                "tensor {name} has shape {found:?}, but {shape:?} is expected";
                "{MISFIT}"
            );
        }
        match dtype {
            DType::F32 => self.load::<f32>(name, device),
            DType::F64 => self.load::<f64>(name, device),
            DType::F16 => self.load::<f16>(name, device),
            DType::BF16 => self.load::<bf16>(name, device),
            other => anyhow::bail!("weights cannot be loaded as {other:?}"),
        }
    }

    fn load<T: Number>(&self, name: &str, device: &Device) -> Result<Tensor> {
        let (file, info) = self.locate(name)?;
        let size = float_size(name, info)?;
        let mut values = vec![T::default(); info.elements()];
        for (i, out) in values.chunks_mut(STRIDE / size).enumerate() {
            let start = info.range.start + i * STRIDE;
            let range = start..start + out.len() * size;
            let converted = convert::convert(info.dtype, file.at(range.clone()), out);
            file.release(range);
            converted.map_err(|bad| not_finite(name, &info.shape, i * (STRIDE / size) + bad.index, bad.stored))?;
        }
        Ok(Tensor::from_vec(values, info.shape.as_slice(), device)?)
    }

    /// Gathers rows of a matrix of shape (any, `width`) into (`ids.len()`, `width`) without loading the rest.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor), and a [`UserError`] for an id that the matrix has no row for.
    pub fn rows(&self, name: &str, ids: &[u32], width: usize, dtype: DType, device: &Device) -> Result<Tensor> {
        let (_, info) = self.locate(name)?;
        let found = &info.shape;
        let &[rows, found_width] = found.as_slice() else {
            user_bail!(
                "tensor {name} has shape {found:?}, but a matrix is expected";
                "{MISFIT}"
            );
        };
        if found_width != width {
            user_bail!(
                "tensor {name} has shape {found:?}, but rows of {width} are expected";
                "{MISFIT}"
            );
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
            user_bail!(
                "token id {id} is outside {name}, which has {rows} rows";
                "the tokenizer has more tokens than the model: use the tokenizer that came with the weights"
            );
        }
        match dtype {
            DType::F32 => self.gather::<f32>(name, ids, width, device),
            DType::F64 => self.gather::<f64>(name, ids, width, device),
            DType::F16 => self.gather::<f16>(name, ids, width, device),
            DType::BF16 => self.gather::<bf16>(name, ids, width, device),
            other => anyhow::bail!("weights cannot be loaded as {other:?}"),
        }
    }

    fn gather<T: Number>(&self, name: &str, ids: &[u32], width: usize, device: &Device) -> Result<Tensor> {
        let (file, info) = self.locate(name)?;
        let size = float_size(name, info)?;
        let mut values = vec![T::default(); ids.len() * width];
        file.expect_picking(info.range.clone(), true);
        let picked = values.chunks_mut(width.max(1)).zip(ids).enumerate().try_for_each(|(i, (out, &id))| {
            let first = id as usize * width;
            let start = info.range.start + first * size;
            let bytes = file.at(start..start + width * size);
            let converted = convert::convert(info.dtype, bytes, out);
            if (i + 1) % ROWS == 0 {
                file.release(info.range.clone());
            }
            converted.map_err(|bad| not_finite(name, &info.shape, first + bad.index, bad.stored))
        });
        file.expect_picking(info.range.clone(), false);
        file.release(info.range.clone());
        picked?;
        Ok(Tensor::from_vec(values, (ids.len(), width), device)?)
    }

    /// The files that hold the weights, in name order.
    pub fn files(&self) -> Vec<WeightFile> {
        let of = |file: &TensorFile| WeightFile { name: file.name().into(), bytes: file.size() as u64 };
        self.files.iter().map(of).collect()
    }

    /// File name and SHA-256 of every weight file. Reads them completely the first time, in constant memory.
    pub fn sha256(&self) -> Result<&[(String, String)]> {
        if let Some(hashes) = self.hashes.get() {
            return Ok(hashes);
        }
        let hash = |file: &TensorFile| Ok((file.name().into(), file.sha256().context("hashing the weights")?));
        let hashes = self.files.iter().map(hash).collect::<Result<_>>()?;
        Ok(self.hashes.get_or_init(|| hashes))
    }

    /// The free-form strings in the header of the first weight file.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        self.files.first().map(|file| file.metadata().clone()).unwrap_or_default()
    }

    /// The file that holds a stored tensor.
    pub(super) fn file_of(&self, info: &TensorInfo) -> &TensorFile {
        &self.files[info.file as usize]
    }
}

fn float_size(name: &str, info: &TensorInfo) -> Result<usize> {
    let dtype = info.dtype;
    match convert::float_size(dtype) {
        Some(size) => Ok(size),
        None => {
            user_bail!(
                "tensor {name} is stored as {dtype}, not as BF16, F16, F32 or F64";
                "convert the checkpoint to BF16 with the tool that quantised it"
            )
        }
    }
}

/// Where the element `index` of a tensor is.
pub(super) fn place(shape: &[usize], index: usize) -> Vec<usize> {
    let mut place = Vec::new();
    let mut rest = index;
    for &dim in shape.iter().rev() {
        place.push(rest % dim.max(1));
        rest /= dim.max(1);
    }
    place.reverse();
    place
}

/// The element that is no number, by its place in the tensor.
fn not_finite(name: &str, shape: &[usize], index: usize, stored: f64) -> UserError {
    let place = place(shape, index);
    if stored.is_finite() {
        return UserError::new(format!(
            "tensor {name} holds {stored:e} at {place:?}, too large for the requested dtype"
        ))
        .hint("ask for f32 or bf16, which reach further than f16");
    }
    UserError::new(format!("tensor {name} holds {stored} at {place:?}"))
        .hint("the checkpoint is damaged or its training diverged: get a sound copy of the weights")
}

//! The streaming writer: tensors go from mapped files into new shards a few MiB at a time.

use super::atomic::{Pending, file_order, free_space, sync_folder, unwritable};
use super::file::{TensorFile, TensorInfo};
use super::folder::{INDEX, SINGLE};
use super::source::{Source, WeightFile};
use super::{Dtype, header};
use crate::user_bail;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Bytes copied before their pages are given back.
const STRIDE: usize = 4 << 20;

/// A tensor to be written.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its name in the new checkpoint.
    pub name: String,
    /// Element type; the data there has it already.
    pub dtype: Dtype,
    /// Shape; the data there has it already.
    pub shape: Vec<usize>,
    /// Where its data is.
    pub from: Origin,
}

/// Where the final bytes of a tensor lie.
#[derive(Debug, Clone)]
pub enum Origin {
    /// In the source checkpoint, under this name or alias.
    Source(String),
    /// In a file written by [`write_tensors`](super::write_tensors).
    File {
        /// The file.
        path: PathBuf,
        /// The tensor's name there.
        name: String,
    },
    /// Nowhere yet: it is made when its turn comes, see [`write_computed`].
    Computed,
}

/// Makes the data of the [`Origin::Computed`] tensor of a name: passes its bytes on in order, in as many pieces as it likes.
pub type Compute<'a> = &'a dyn Fn(&str, &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The weight files in order, without the index.
    pub files: Vec<WeightFile>,
    /// Bytes of all tensors, headers not counted: `metadata.total_size` of the index.
    pub total_bytes: u64,
}

/// A tensor, with its data if that exists.
struct Found<'a> {
    entry: &'a Entry,
    stored: Option<(&'a TensorFile, &'a TensorInfo)>,
}

impl Found<'_> {
    fn bytes(&self) -> usize {
        self.entry.shape.iter().product::<usize>() * self.entry.dtype.bitsize() / 8
    }
}

/// Writes tensors into the existing folder `dir` as `model.safetensors`, or as `model-0000i-of-0000N.safetensors` and
/// `model.safetensors.index.json` if their data exceeds `max_shard_bytes`; a larger tensor gets a shard of its own.
///
/// Tensors fill the shards in name order, so the result depends on the arguments alone. `metadata` goes into every
/// header, with `format: pt` added. `progress` is told the number of bytes each time some more are written. Memory
/// stays at a few MiB. All files are complete on the disk before the first gets its final name, and the index comes
/// last; an earlier checkpoint in the folder is replaced.
///
/// # Errors
/// A [`UserError`](crate::error::UserError) naming the file and the bytes it needs if the disk is too small or the
/// folder cannot be written; nothing of the new checkpoint then exists. Also if an origin does not have the tensor.
pub fn write_checkpoint(
    dir: &Path,
    entries: &[Entry],
    source: &Source,
    max_shard_bytes: u64,
    metadata: &BTreeMap<String, String>,
    progress: &mut dyn FnMut(u64),
) -> Result<Written> {
    let compute = |name: &str, _: &mut dyn FnMut(&[u8]) -> Result<()>| anyhow::bail!("nothing computes tensor {name}");
    write_computed(dir, entries, source, max_shard_bytes, metadata, progress, &compute)
}

/// [`write_checkpoint`] of tensors of which some are made only now, by `compute`, one after another and none in memory
/// longer than it takes to write it.
pub fn write_computed(
    dir: &Path,
    entries: &[Entry],
    source: &Source,
    max_shard_bytes: u64,
    metadata: &BTreeMap<String, String>,
    progress: &mut dyn FnMut(u64),
    compute: Compute,
) -> Result<Written> {
    ensure!(!entries.is_empty(), "a checkpoint needs at least one tensor");
    refuse_own_folder(dir, source)?;
    let files = open_origins(entries)?;
    let mut found = entries.iter().map(|entry| find(entry, source, &files)).collect::<Result<Vec<_>>>()?;
    found.sort_by(|a, b| a.entry.name.cmp(&b.entry.name));
    if let Some(pair) = found.windows(2).find(|pair| pair[0].entry.name == pair[1].entry.name) {
        anyhow::bail!("tensor {} is to be written twice", pair[0].entry.name);
    }
    let total_bytes: u64 = found.iter().map(|tensor| tensor.bytes() as u64).sum();
    let mut metadata = metadata.clone();
    metadata.insert("format".into(), "pt".into());

    let mut plan = Vec::new();
    for mut shard in divide(found, max_shard_bytes) {
        shard.sort_by(|a, b| file_order((a.entry.dtype, &a.entry.name), (b.entry.dtype, &b.entry.name)));
        let listed = shard.iter().map(|t| (t.entry.name.as_str(), t.entry.dtype, &t.entry.shape[..], t.bytes()));
        let header = header::build(&metadata, listed);
        plan.push((header, shard));
    }
    let count = plan.len();
    let name = |i: usize| match count {
        1 => SINGLE.to_string(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
    };
    let needed = total_bytes + plan.iter().map(|(header, _)| header.len() as u64).sum::<u64>();
    let free = free_space(dir).unwrap_or(u64::MAX);
    if needed > free {
        let shown = dir.join(name(0)).display().to_string();
        user_bail!(
            "cannot write {shown}: the checkpoint needs {needed} bytes, but only {free} are free";
            "free some space, or choose an output on another disk"
        );
    }

    let mut pending = Vec::new();
    let mut written = Vec::new();
    for (i, (header, shard)) in plan.iter().enumerate() {
        let bytes = (header.len() + shard.iter().map(Found::bytes).sum::<usize>()) as u64;
        let mut file = Pending::create(&dir.join(name(i)), bytes)?;
        file.write(header)?;
        for tensor in shard {
            match tensor.stored {
                Some(stored) => copy(stored, &mut file, progress)?,
                None => made(tensor, &mut file, progress, compute)?,
            }
        }
        file.finish()?;
        pending.push(file);
        written.push(WeightFile { name: name(i), bytes });
    }
    let index = (count > 1).then(|| index_json(&plan, name, total_bytes)).transpose()?;
    let index = index.map(|json| finished(&dir.join(INDEX), &json)).transpose()?;

    remove_earlier(dir)?;
    for file in pending {
        file.publish()?;
    }
    // The shards' names must be on the disk before the index that speaks of them.
    sync_folder(dir)?;
    if let Some(index) = index {
        index.publish()?;
        sync_folder(dir)?;
    }
    Ok(Written { files: written, total_bytes })
}

/// Writing over the files being read would destroy the only copy if anything failed.
fn refuse_own_folder(dir: &Path, source: &Source) -> Result<()> {
    let Some(from) = source.dir() else { return Ok(()) };
    if let (Ok(a), Ok(b)) = (dir.canonicalize(), from.canonicalize())
        && a == b
    {
        let shown = dir.display();
        user_bail!("{shown} is the folder of the source model"; "choose another output folder");
    }
    Ok(())
}

/// Opens every file that an entry comes from once.
fn open_origins(entries: &[Entry]) -> Result<BTreeMap<&Path, TensorFile>> {
    let mut files = BTreeMap::new();
    for entry in entries {
        if let Origin::File { path, .. } = &entry.from
            && !files.contains_key(path.as_path())
        {
            files.insert(path.as_path(), TensorFile::open(path)?);
        }
    }
    Ok(files)
}

fn find<'a>(entry: &'a Entry, source: &'a Source, files: &'a BTreeMap<&Path, TensorFile>) -> Result<Found<'a>> {
    let (file, info) = match &entry.from {
        Origin::Source(name) => source.locate(name)?,
        Origin::File { path, name } => {
            let file = &files[path.as_path()];
            (file, file.info(name).with_context(|| format!("{} has no tensor {name}", path.display()))?)
        }
        Origin::Computed => return Ok(Found { entry, stored: None }),
    };
    ensure!(
        info.dtype == entry.dtype && info.shape == entry.shape,
        "{} is to be written as {} {:?}, but {} holds {} {:?}",
        entry.name,
        entry.dtype,
        entry.shape,
        file.name(),
        info.dtype,
        info.shape
    );
    Ok(Found { entry, stored: Some((file, info)) })
}

/// Fills shards in order, each up to the limit; a tensor beyond it stands alone.
fn divide(tensors: Vec<Found<'_>>, max_shard_bytes: u64) -> Vec<Vec<Found<'_>>> {
    let mut shards: Vec<Vec<Found>> = Vec::new();
    let mut filled = 0;
    for tensor in tensors {
        let bytes = tensor.bytes() as u64;
        match shards.last_mut() {
            Some(shard) if filled + bytes <= max_shard_bytes => {
                filled += bytes;
                shard.push(tensor);
            }
            _ => {
                filled = bytes;
                shards.push(vec![tensor]);
            }
        }
    }
    shards
}

fn copy((file, info): (&TensorFile, &TensorInfo), out: &mut Pending, progress: &mut dyn FnMut(u64)) -> Result<()> {
    let range = info.range.clone();
    for start in range.clone().step_by(STRIDE) {
        let piece = start..range.end.min(start + STRIDE);
        out.write(file.at(piece.clone()))?;
        progress(piece.len() as u64);
        file.release(piece);
    }
    Ok(())
}

fn made(tensor: &Found, out: &mut Pending, progress: &mut dyn FnMut(u64), compute: Compute) -> Result<()> {
    let (name, mut written) = (&tensor.entry.name, 0);
    compute(name, &mut |bytes| {
        written += bytes.len();
        progress(bytes.len() as u64);
        out.write(bytes)
    })?;
    ensure!(written == tensor.bytes(), "tensor {name} has {} bytes, but {written} were made", tensor.bytes());
    Ok(())
}

/// The index: keys sorted, so that equal checkpoints have equal bytes.
fn index_json(plan: &[(Vec<u8>, Vec<Found>)], name: impl Fn(usize) -> String, total: u64) -> Result<Vec<u8>> {
    let mut weight_map = BTreeMap::new();
    for (i, (_, shard)) in plan.iter().enumerate() {
        weight_map.extend(shard.iter().map(|tensor| (tensor.entry.name.as_str(), name(i))));
    }
    let index = serde_json::json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    let mut json = serde_json::to_vec_pretty(&index)?;
    json.push(b'\n');
    Ok(json)
}

fn finished(path: &Path, bytes: &[u8]) -> Result<Pending> {
    let mut file = Pending::create(path, bytes.len() as u64)?;
    file.write(bytes)?;
    file.finish()?;
    Ok(file)
}

/// Removes the weights that an earlier run left in the folder, the index first: shards of two runs must not mix.
fn remove_earlier(dir: &Path) -> Result<()> {
    let ours = |name: &str| {
        name == SINGLE || (name.starts_with("model-") && name.contains("-of-") && name.ends_with(".safetensors"))
    };
    let read = |error| unwritable(dir, 0, &error);
    let mut stale = vec![dir.join(INDEX)];
    for entry in fs::read_dir(dir).map_err(read)? {
        let entry = entry.map_err(read)?;
        if entry.file_name().to_str().is_some_and(ours) {
            stale.push(entry.path());
        }
    }
    for path in stale.iter().filter(|path| path.exists()) {
        fs::remove_file(path).map_err(|error| unwritable(path, 0, &error))?;
    }
    Ok(())
}

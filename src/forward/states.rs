//! The hidden states of some sequences in front of one block.

use super::each_block;
use crate::compute::{Limits, Room, is_out_of_memory};
use crate::memory;
use crate::model::{Block, Model, Tap};
use crate::ops::with_numbers;
use crate::progress::Progress;
use crate::text::Padded;
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Share of the memory that is free which states may take: one part in so many.
const SHARE: u64 = 4;

/// Batches of (sequences, t, hidden), f32. Those that find no room in memory lie on the disk.
pub struct States {
    batches: Vec<Batch>,
    /// Bytes of states that may lie in memory.
    room: usize,
    disk: Option<File>,
    /// What the device has room for at once.
    at_once: Arc<Room>,
}

struct Batch {
    place: Place,
    /// Tokens of each sequence, where they do not fill the batch.
    lengths: Option<Vec<usize>>,
}

enum Place {
    Memory(Tensor),
    Disk { offset: u64, shape: Vec<usize>, device: Device },
}

impl States {
    /// Embeds windows, all of the same length. No windows give no states.
    pub fn embed<W: AsRef<[u32]>>(model: &Model, windows: &[W]) -> Result<Self> {
        let room = resident_states(&model.compute().limits);
        Self::embed_within(model, windows, room)
    }

    /// [`embed`](Self::embed) with so many bytes of states in memory.
    pub fn embed_within<W: AsRef<[u32]>>(model: &Model, windows: &[W], room: usize) -> Result<Self> {
        let length = windows.first().map_or(1, |w| w.as_ref().len()).max(1);
        let mut states = Self { batches: Vec::new(), room, disk: None, at_once: model.compute().room.clone() };
        let limit = model.compute().limits.batch_tokens;
        let tokens = states.at_once.tokens().map_or(limit, |tokens| tokens.min(limit));
        for rows in windows.chunks((tokens / length).max(1)) {
            let rows: Vec<&[u32]> = rows.iter().map(AsRef::as_ref).collect();
            states.push(model.embed(&rows)?, None)?;
        }
        Ok(states)
    }

    /// Embeds sequences that are padded to one length in every batch.
    pub fn embed_padded<'p>(model: &Model, batches: impl IntoIterator<Item = &'p Padded>) -> Result<Self> {
        let at_once = model.compute().room.clone();
        let mut states = Self { batches: Vec::new(), room: usize::MAX, disk: None, at_once };
        for padded in batches {
            let slices = |rows: &'p [Vec<u32>]| rows.iter().map(Vec::as_slice).collect::<Vec<_>>();
            let x = model.embed_typed(&slices(&padded.ids), Some(&slices(&padded.types)))?;
            states.push(x, Some(padded.lengths.clone()))?;
        }
        Ok(states)
    }

    fn push(&mut self, x: Tensor, lengths: Option<Vec<usize>>) -> Result<()> {
        let bytes = 4 * x.elem_count();
        let used: usize = self.batches.iter().map(Batch::bytes_in_memory).sum();
        let place = if used + bytes <= self.room { Place::Memory(x) } else { self.spill(&x)? };
        self.batches.push(Batch { place, lengths });
        Ok(())
    }

    /// Writes a new batch behind those that are on the disk.
    fn spill(&mut self, x: &Tensor) -> Result<Place> {
        let file = match &self.disk {
            Some(file) => file,
            None => self.disk.insert(memory::scratch_file()?),
        };
        let offset = file.metadata()?.len();
        write(file, offset, x)?;
        Ok(Place::Disk { offset, shape: x.dims().to_vec(), device: x.device().clone() })
    }

    /// Number of batches.
    pub fn len(&self) -> usize {
        self.batches.len()
    }

    /// Whether there are no sequences.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Number of tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.batches.iter().map(Batch::tokens).sum()
    }

    /// Batch `index`, (sequences, t, hidden).
    pub fn batch(&self, index: usize) -> Result<Tensor> {
        match &self.batches[index].place {
            Place::Memory(x) => Ok(x.clone()),
            Place::Disk { offset, shape, device } => {
                read(self.disk.as_ref().context("spilled states without a file")?, *offset, shape, device)
            }
        }
    }

    /// The batches, in the order of their sequences.
    pub fn batches(&self) -> impl Iterator<Item = Result<Tensor>> {
        (0..self.len()).map(|index| self.batch(index))
    }

    /// The same states again, all in memory.
    pub fn copy(&self) -> Result<Self> {
        let copy = |index: usize| {
            let place = Place::Memory(self.batch(index)?);
            Ok(Batch { place, lengths: self.batches[index].lengths.clone() })
        };
        let batches = (0..self.len()).map(copy).collect::<Result<_>>()?;
        Ok(Self { batches, room: self.room, disk: None, at_once: self.at_once.clone() })
    }

    /// Shows what enters the sites of `block` to `tap`, which may stop each pass.
    pub fn show(&self, block: &Block, tap: &mut dyn Tap) -> Result<()> {
        let mut magnitudes = Vec::new();
        for (x, batch) in self.batches().zip(&self.batches) {
            forward(block, &x?, batch.lengths.as_deref(), tap, &mut magnitudes, &self.at_once)?;
        }
        block.settle(&magnitudes)
    }

    /// Takes the states through `block`.
    pub fn advance(&mut self, block: &Block) -> Result<()> {
        self.advance_showing(block, &mut ())
    }

    /// Takes the states through `block` and shows what enters its sites to `tap`, which must not stop a pass.
    pub fn advance_showing(&mut self, block: &Block, tap: &mut dyn Tap) -> Result<()> {
        let mut magnitudes = Vec::with_capacity(self.len());
        for index in 0..self.len() {
            let x = self.batch(index)?;
            let batch = &mut self.batches[index];
            let y = forward(block, &x, batch.lengths.as_deref(), tap, &mut magnitudes, &self.at_once)?;
            let y = y.context("a forward pass was stopped although its result is needed")?;
            match &mut batch.place {
                Place::Memory(x) => *x = y,
                Place::Disk { offset, .. } => {
                    write(self.disk.as_ref().context("spilled states without a file")?, *offset, &y)?;
                }
            }
        }
        block.settle(&magnitudes)
    }

    /// Takes the states through all blocks. Steps `progress` by `steps` once per block.
    pub fn finish(&mut self, model: &Model, steps: u64, progress: &dyn Progress) -> Result<()> {
        each_block(model, |_, block| {
            self.advance(&block)?;
            self.at_once.tell(progress);
            progress.step(steps)
        })
    }
}

/// [`Block::forward_unsettled`], in parts if the device has no room for all of `x` at once.
fn forward(
    block: &Block,
    x: &Tensor,
    lengths: Option<&[usize]>,
    tap: &mut dyn Tap,
    magnitudes: &mut Vec<Tensor>,
    at_once: &Room,
) -> Result<Option<Tensor>> {
    let (rows, t, _) = x.dims3()?;
    let fitting = at_once.tokens().map_or(rows, |tokens| (tokens / t.max(1)).max(1));
    if rows <= fitting {
        let passes = magnitudes.len();
        tap.begin()?;
        match block.forward_unsettled(x, lengths, tap, magnitudes) {
            Err(error) if rows > 1 && is_out_of_memory(&error) && tap.forget() => {
                magnitudes.truncate(passes);
                at_once.shrink(rows / 2 * t);
            }
            result => return result,
        }
    }
    let fitting = at_once.tokens().map_or(rows, |tokens| (tokens / t.max(1)).max(1));
    let mut parts = Vec::new();
    for start in (0..rows).step_by(fitting) {
        let len = fitting.min(rows - start);
        let part = x.narrow(0, start, len)?.contiguous()?;
        let lengths = lengths.map(|lengths| &lengths[start..start + len]);
        parts.extend(forward(block, &part, lengths, tap, magnitudes, at_once)?);
    }
    Ok(if parts.is_empty() { None } else { Some(Tensor::cat(&parts, 0)?) })
}

/// Bytes of states that lie in memory: what `limits` say, or a part of what is free.
pub fn resident_states(limits: &Limits) -> usize {
    memory::available().map_or(usize::MAX, |free| (free / SHARE) as usize).min(limits.resident_states)
}

impl Batch {
    fn tokens(&self) -> usize {
        let shape = match &self.place {
            Place::Memory(x) => x.dims(),
            Place::Disk { shape, .. } => shape,
        };
        match &self.lengths {
            Some(lengths) => lengths.iter().sum(),
            None => shape[0] * shape[1],
        }
    }

    fn bytes_in_memory(&self) -> usize {
        match &self.place {
            Place::Memory(x) => 4 * x.elem_count(),
            Place::Disk { .. } => 0,
        }
    }
}

pub(super) fn write(file: &File, offset: u64, x: &Tensor) -> Result<()> {
    let bytes: Vec<u8> = with_numbers(x, |numbers| numbers.iter().flat_map(|x| x.to_le_bytes()).collect())?;
    file.write_all_at(&bytes, offset).context("writing hidden states to a temporary file (TMPDIR says where)")
}

pub(super) fn read(file: &File, offset: u64, shape: &[usize], device: &Device) -> Result<Tensor> {
    let mut bytes = vec![0; 4 * shape.iter().product::<usize>()];
    file.read_exact_at(&mut bytes, offset).context("reading hidden states back from a temporary file")?;
    let numbers: Vec<f32> = bytes.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
    Ok(Tensor::from_vec(numbers, shape, device)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Source;
    use crate::model::{Flow, Site};

    #[test]
    fn states_on_the_disk_are_those_in_memory() {
        let model = Model::load(Source::demo(), &Device::Cpu).unwrap();
        let windows: Vec<Vec<u32>> = (0..10).map(|w| (0..500).map(|i| (i * 7 + w) % 100).collect()).collect();
        let final_states = |room| {
            let mut states = States::embed_within(&model, &windows, room).unwrap();
            let on_disk = states.disk.is_some();
            states.finish(&model, 1, &()).unwrap();
            let all: Vec<Vec<f32>> =
                states.batches().map(|x| x.unwrap().flatten_all().unwrap().to_vec1().unwrap()).collect();
            (on_disk, all)
        };
        let (memory, part) = (final_states(usize::MAX), final_states(4 * 4 * 500 * model.hidden()));
        assert_eq!((memory.0, part.0), (false, true));
        assert_eq!(memory.1.len(), 3);
        assert!(memory.1 == part.1 && memory.1 == final_states(0).1);
    }

    /// A device with room for so many sequences at once: more of them fail in the middle of a block.
    struct Small {
        sequences: usize,
        /// What was seen, by pass.
        seen: Vec<Vec<(Site, Vec<f32>)>>,
        forgets: bool,
        failures: usize,
    }

    impl Tap for Small {
        fn see(&mut self, site: Site, x: &Tensor) -> Result<Flow> {
            if site == Site::MlpIn && x.dim(0)? > self.sequences {
                self.failures += 1;
                anyhow::bail!("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")");
            }
            self.seen.last_mut().unwrap().push((site, x.flatten_all()?.to_vec1()?));
            Ok(Flow::Continue)
        }

        fn begin(&mut self) -> Result<()> {
            self.seen.push(Vec::new());
            Ok(())
        }

        fn forget(&mut self) -> bool {
            self.seen.pop();
            self.forgets
        }
    }

    #[test]
    fn without_memory_batches_shrink_and_nothing_is_seen_twice() {
        let windows: Vec<Vec<u32>> = (0..10).map(|w| (0..200).map(|i| (i * 7 + w) % 100).collect()).collect();
        let run = |sequences, forgets| {
            let model = Model::load(Source::demo(), &Device::Cpu).unwrap();
            let mut states = States::embed_within(&model, &windows, usize::MAX).unwrap();
            let mut tap = Small { sequences, seen: Vec::new(), forgets, failures: 0 };
            let block = model.block(0).unwrap();
            states.advance_showing(&block, &mut tap)?;
            let mut all = std::collections::BTreeMap::<Site, Vec<f32>>::new();
            for (site, numbers) in tap.seen.into_iter().flatten() {
                all.entry(site).or_default().extend(numbers);
            }
            let y: Vec<f32> =
                states.batches().flat_map(|x| x.unwrap().flatten_all().unwrap().to_vec1().unwrap()).collect();
            Ok::<_, anyhow::Error>((y, all, tap.failures, model.compute().room.tokens()))
        };
        let whole = run(usize::MAX, true).unwrap();
        assert_eq!((whole.2, whole.3), (0, None));
        // Ten sequences fit into a batch; five and two do not fit either.
        let parts = run(1, true).unwrap();
        assert_eq!((parts.2, parts.3), (3, Some(200)));
        assert!(whole.0 == parts.0 && whole.1 == parts.1);
        assert_eq!(run(5, true).unwrap().3, Some(1000));
        let error = run(5, false).unwrap_err();
        assert!(is_out_of_memory(&error), "{error:#}");
        let error = run(0, true).unwrap_err();
        assert!(is_out_of_memory(&error), "not even one sequence: {error:#}");
    }
}

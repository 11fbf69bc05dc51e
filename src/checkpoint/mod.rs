//! Checkpoints on disk: Hugging Face folders of safetensors files, read by memory map and written by streaming.
//!
//! [`Source`] opens a folder by its headers; a weight is touched only when it is asked for, and its pages are given
//! back afterwards, so a model of any size can be walked in the memory of its largest tensor. [`write_checkpoint`]
//! copies tensors into new shards the same way. [`Identity`] says which model a folder holds. Pickle files are never
//! opened.
//!
//! ```
//! use candle_core::{DType, Device};
//! let source = softlm::checkpoint::Source::demo();
//! let norm = source.tensor("model.norm.weight", &[128], DType::F32, &Device::Cpu)?;
//! assert_eq!(norm.dims(), [128]);
//! # Ok::<(), anyhow::Error>(())
//! ```

mod atomic;
mod convert;
mod file;
mod folder;
mod names;
mod header;
mod section;
mod identity;
mod index;
mod numbers;
mod lfs;
mod read;
mod sealed;
mod side;
mod source;
mod tensor;
mod writer;

pub use atomic::{check_place, free_space, sync_folder, write_file, write_tensors};
pub use convert::{decode, encode, is_float};
pub use file::{TensorFile, TensorInfo};
pub use folder::UNFINISHED_CONFIG;
pub use identity::{FileHash, Identity, Kind, SENTENCE_SETTINGS, differences};
pub(crate) use lfs::refuse_pointer;
pub use numbers::NotFinite;
pub use read::{LARGEST_SETTINGS, open_file, read_settings};
pub use safetensors::Dtype;
pub use sealed::write_sealed;
pub use section::{FORMAT, GUARD, MODEL_TYPE, Section, base_config, family_config, wrap as wrap_config};
pub use source::{Source, WeightFile};
pub use tensor::{NamedTensor, TensorData, Unwritten};
pub use writer::{Compute, Entry, Origin, Written, write_checkpoint, write_computed};

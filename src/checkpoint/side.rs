//! The files beside the weights: tokenizer, settings, licence, code.
//!
//! They are read as a folder has them, through links. Into an output they are copied, and an output is uploaded: a link that
//! leads out of the model's folder, to a file that nobody meant to publish, is refused there.

use super::atomic::Pending;
use super::folder::{self, CONFIG, SINGLE};
use super::lfs::{LARGEST as LARGEST_POINTER, refuse_pointer};
use super::read::{open_file, read_settings, unreadable};
use super::source::{DEMO, Source};
use super::sync_folder;
use crate::hash::Sha256;
use crate::user_bail;
use anyhow::{Context, Result};
use std::borrow::Cow;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Bytes copied at once.
const STRIDE: usize = 1 << 20;
/// Permissions of the files of the built-in model.
const MODE: u32 = 0o644;

impl Source {
    /// Contents of another file of the folder by its relative name, such as `tokenizer.json`; `None` if there is none.
    ///
    /// # Errors
    /// A [`UserError`](crate::error::UserError) for a name outside the folder, for what is no file, cannot be read or is
    /// larger than settings are, and for a file that Git LFS has yet to fetch.
    pub fn side_file(&self, name: &str) -> Result<Option<Cow<'_, [u8]>>> {
        let found = self.stored_file(name)?;
        if let Some(bytes) = &found {
            refuse_pointer(&format!("{name} of {}", self.label()), bytes)?;
        }
        // JSON begins with no byte order mark, but editors put one there.
        Ok(found.map(|bytes| match bytes.strip_prefix(folder::BOM) {
            Some(rest) if name.ends_with(".json") => Cow::Owned(rest.to_vec()),
            _ => bytes,
        }))
    }

    /// [`side_file`](Self::side_file) as it lies there, unfetched or not.
    pub(super) fn stored_file(&self, name: &str) -> Result<Option<Cow<'_, [u8]>>> {
        let Some(path) = self.path_of(name)? else { return Ok(built_in(name).map(Cow::Borrowed)) };
        match path.symlink_metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            _ => Ok(Some(read_settings(&path)?.into())),
        }
    }

    /// Where a file of the folder is; `None` in the built-in model, which is in none.
    pub(super) fn path_of(&self, name: &str) -> Result<Option<PathBuf>> {
        let Some(dir) = self.dir() else { return Ok(None) };
        if !crate::hub::is_inside(name) {
            let shown = dir.display();
            user_bail!("{name:?} is not a name inside {shown}"; "name a file of the model folder");
        }
        Ok(Some(dir.join(if name == CONFIG { self.config_name() } else { name })))
    }

    /// Relative names of all files that are neither weights nor the top `config.json`, sorted, subfolders included
    /// (two levels). Hidden files and other runtimes' copies (`onnx`, `openvino`, `coreml`) are left out.
    pub fn side_files(&self) -> Result<Vec<String>> {
        match self.dir() {
            Some(dir) => folder::side_files(dir),
            None => {
                let names = DEMO.iter().map(|(name, _)| *name);
                Ok(names.filter(|name| *name != CONFIG && *name != SINGLE).map(Into::into).collect())
            }
        }
    }

    /// The size of a side file in bytes. Fails if it must not be copied into an output: what is no file, a link out of the
    /// folder, and settings and vocabularies that were never fetched (what is made of this checkpoint would carry Git LFS
    /// pointers that nothing can read).
    pub fn size_to_copy(&self, name: &str) -> Result<u64> {
        let Some(path) = self.path_of(name)? else { return Ok(built_in(name).map_or(0, |bytes| bytes.len() as u64)) };
        self.stay_inside(name)?;
        let (mut file, mut begins) = (open_file(&path)?, Vec::new());
        let size = file.metadata().map_err(|error| unreadable(&path, &error))?.len();
        if [".json", ".txt", ".model", ".jinja"].iter().any(|end| name.ends_with(end)) {
            let begin = (&mut file).take(LARGEST_POINTER as u64).read_to_end(&mut begins);
            begin.map_err(|error| unreadable(&path, &error))?;
            refuse_pointer(&format!("{name} of {}", self.label()), &begins)?;
        }
        Ok(size)
    }

    /// Whether there is a file of this relative name.
    pub fn has_file(&self, name: &str) -> Result<bool> {
        Ok(match self.path_of(name)? {
            Some(path) => path.exists(),
            None => built_in(name).is_some(),
        })
    }

    /// SHA-256 of a side file or `config.json` as it lies there, in lower-case hex, read in a stream.
    pub(super) fn hash_of(&self, name: &str) -> Result<String> {
        let mut hash = Sha256::new();
        match self.path_of(name)? {
            None => hash.update(built_in(name).with_context(|| format!("the built-in model has no {name}"))?),
            Some(path) => each_piece(&path, &mut open_file(&path)?, &mut |piece| {
                hash.update(piece);
                Ok(())
            })?,
        }
        Ok(hash.hex())
    }

    /// Copies a side file to `path`, in a stream, with its permissions.
    ///
    /// # Errors
    /// A [`UserError`](crate::error::UserError) for what [`size_to_copy`](Self::size_to_copy) refuses by its place,
    /// and where it cannot be written.
    pub fn copy_side_file(&self, name: &str, path: &Path) -> Result<()> {
        self.stay_inside(name)?;
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        }
        let mut out;
        match self.path_of(name)? {
            None => {
                let bytes = built_in(name).with_context(|| format!("the built-in model has no {name}"))?;
                out = Pending::with_mode(path, bytes.len() as u64, MODE)?;
                out.write(bytes)?;
            }
            Some(from) => {
                let mut file = open_file(&from)?;
                let found = file.metadata().map_err(|error| unreadable(&from, &error))?;
                out = Pending::with_mode(path, found.len(), found.permissions().mode() & 0o777)?;
                each_piece(&from, &mut file, &mut |piece| out.write(piece))?;
            }
        }
        out.publish()?;
        path.parent().map_or(Ok(()), sync_folder)
    }

    /// Fails if `name` leads out of the folder. A snapshot of the hub's cache is made of links to `blobs` beside it.
    fn stay_inside(&self, name: &str) -> Result<()> {
        let (Some(dir), Some(path)) = (self.dir(), self.path_of(name)?) else { return Ok(()) };
        let real = |path: &Path| path.canonicalize().map_err(|error| unreadable(path, &error));
        let (target, inside) = (real(&path)?, real(dir)?);
        let blobs = inside.parent().filter(|parent| parent.file_name().is_some_and(|name| name == "snapshots"));
        let blobs = blobs.and_then(Path::parent).map(|repository| repository.join("blobs"));
        if target.starts_with(&inside) || blobs.is_some_and(|blobs| target.starts_with(blobs)) {
            return Ok(());
        }
        user_bail!(
            "{} is a link to {}, outside the model's folder, and would be copied into the output",
            path.display(), target.display();
            "put the file itself there if it belongs to the model, or remove the link"
        )
    }
}

fn each_piece(path: &Path, file: &mut File, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut buffer = vec![0; STRIDE];
    loop {
        match file.read(&mut buffer).map_err(|error| unreadable(path, &error))? {
            0 => return Ok(()),
            n => take(&buffer[..n])?,
        }
    }
}

fn built_in(name: &str) -> Option<&'static [u8]> {
    DEMO.iter().find(|(file, _)| *file == name).map(|(_, bytes)| *bytes)
}

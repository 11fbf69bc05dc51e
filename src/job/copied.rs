//! The files of a model that travel into what is made of it.

use super::output::WRITTEN;
use crate::checkpoint::Source;
use crate::progress::Progress;
use anyhow::Result;
use std::path::Path;

/// Key in the header of the weight files of an output or export: a JSON list of the files that were copied from the model.
pub(super) const COPIED: &str = "softlm_copied";

/// Files beside the weights of a model, by relative name, that are copied into an output or export.
pub struct Copied {
    names: Vec<String>,
    /// What they take, in bytes.
    pub bytes: u64,
}

impl Copied {
    /// Those of `source`: all that softlm does not write itself.
    ///
    /// # Errors
    /// A [`UserError`](crate::error::UserError) for what is no file or a link out of the model's folder, and for a file that
    /// was never fetched.
    pub fn of(source: &Source) -> Result<Self> {
        let mut names = source.side_files()?;
        names.retain(|name| !WRITTEN.contains(&name.as_str()));
        let sizes = names.iter().map(|name| source.size_to_copy(name));
        let bytes = sizes.collect::<Result<Vec<_>>>()?.into_iter().fold(0, u64::saturating_add);
        Ok(Self { names, bytes })
    }

    /// What the header of the weights says of them.
    pub fn mark(&self) -> (String, String) {
        (COPIED.to_string(), serde_json::json!(self.names).to_string())
    }

    /// Says which programs are among them: others may run what softlm only copies.
    pub fn announce_code(&self, source: &Source, progress: &dyn Progress) {
        let code: Vec<&str> = self.names.iter().filter(|name| name.ends_with(".py")).map(String::as_str).collect();
        if !code.is_empty() {
            progress.note(&format!(
                "{} has Python code of its own, which is copied and never run: {}",
                source.label(),
                code.join(", ")
            ));
        }
    }

    /// Copies them into `dir`.
    pub fn copy(&self, source: &Source, dir: &Path) -> Result<()> {
        self.names.iter().try_for_each(|name| source.copy_side_file(name, &dir.join(name)))
    }
}

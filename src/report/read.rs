//! Reports as they are found: the `report.json` of an output, or such a file by itself.

use super::{Report, SCHEMA};
use crate::checkpoint::read_settings;
use crate::user_bail;
use anyhow::Result;
use serde::Deserialize;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The report of every output.
const FILE: &str = "report.json";

/// What tells a report from other JSON, and reports of one format from those of another.
#[derive(Deserialize)]
struct Head {
    schema: Option<Value>,
    softlm: Option<String>,
    method: Option<Value>,
}

impl Report {
    /// The report of an output's folder, or in a file.
    ///
    /// # Errors
    /// A [`UserError`](crate::error::UserError) naming `place` for what is not there, for a folder without a report, and for
    /// what [`parse`](Self::parse) refuses.
    pub fn read(place: &Path) -> Result<Self> {
        let file = Self::file(place)?;
        Self::parse(&read_settings(&file)?, &file.display().to_string())
    }

    /// The file that [`read`](Self::read) reads.
    ///
    /// # Errors
    /// As there.
    pub fn file(place: &Path) -> Result<PathBuf> {
        let shown = place.display();
        if place.symlink_metadata().is_err() {
            user_bail!(
                "there is no {shown}";
                "name the folder of an output that `softlm compress` wrote, or its {FILE}"
            );
        }
        let file = if place.is_dir() { place.join(FILE) } else { place.to_path_buf() };
        if file.symlink_metadata().is_err() {
            user_bail!(
                "{shown} has no {FILE}: it is no output that `softlm compress` finished";
                "name an output or its {FILE}; `softlm eval` measures any model"
            );
        }
        Ok(file)
    }

    /// A report in the bytes of a file called `name`.
    ///
    /// # Errors
    /// A [`UserError`](crate::error::UserError) naming the file for what is no JSON, JSON of something else, a report of
    /// another format version, and a report that lacks something.
    pub fn parse(bytes: &[u8], name: &str) -> Result<Self> {
        const AGAIN: &str =
            "get or make the output again; `softlm inspect OUTPUT --tensors` shows what its weights say";
        let head: Head = match serde_json::from_slice(bytes) {
            Ok(head) => head,
            Err(error) if error.is_data() => user_bail!(
                "{name} is no report of softlm's: {error}"; "name an output that `softlm compress` wrote, or its {FILE}"
            ),
            Err(error) => user_bail!("{name} is damaged: {error}"; "{AGAIN}"),
        };
        let (Some(schema), Some(softlm), Some(_)) = (head.schema, head.softlm, head.method) else {
            user_bail!(
                "{name} is JSON, but no report of softlm's: it names no format, program or method";
                "name an output that `softlm compress` wrote, or its {FILE}"
            );
        };
        if schema != SCHEMA {
            user_bail!(
                "{name} has format version {schema} and was written by softlm {softlm}; this softlm {} reads version {SCHEMA}",
                env!("CARGO_PKG_VERSION");
                "take the softlm that wrote it, or make the output again"
            );
        }
        match serde_json::from_slice(bytes) {
            Ok(report) => Ok(report),
            Err(error) => user_bail!("{name} is damaged: {error}"; "{AGAIN}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_report_of_this_format_is_named() {
        let refused = |text: &str| format!("{:#}", Report::parse(text.as_bytes(), "x.json").unwrap_err());
        for (text, naming) in [
            ("{\"schema\": 1", "damaged"),
            ("[1, 2]", "no report of softlm's"),
            ("{\"model_type\": \"llama\"}", "no report of softlm's"),
            (r#"{"schema": 7, "softlm": "9.1", "method": "rom"}"#, "format version 7 and was written by softlm 9.1"),
            (r#"{"schema": 1, "softlm": "0.4.0", "method": "rom"}"#, "missing field"),
        ] {
            let said = refused(text);
            assert!(said.contains("x.json") && said.contains(naming), "{text}: {said}");
        }
    }
}

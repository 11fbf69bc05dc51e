//! Files of labelled data: records with named fields, or text that a task reads its own way.

use super::file::{self, Content};
use super::parquet::parquet_rows;
use crate::hash::{self, Sha256};
use crate::user_bail;
use anyhow::{Context, Result};
use serde_json::{Map, Value};
use std::fs::File;
use std::io;
use std::path::Path;

/// What such a file holds.
pub(super) enum Records {
    /// The objects of JSON Lines or of one JSON array, or the rows of a parquet file, and where each is.
    Rows(Vec<(String, Map<String, Value>)>),
    /// Text of any other kind.
    Text(String),
}

/// The records of a file and its SHA-256 in hexadecimal. It is read once: it may be a pipe. `origin` is what errors call a
/// parquet file.
pub(super) fn records(path: &Path, origin: &str) -> Result<(Records, String)> {
    let bytes = file::bytes(path)?;
    let sha256 = hash::sha256(&bytes);
    match file::content(&path.display().to_string(), path, bytes)? {
        Content::Text(text) => Ok((Records::Text(text), sha256)),
        Content::Json(rows) => {
            let object = |(place, value): (String, Value)| match value {
                Value::Object(object) => Ok((place, object)),
                _ => {
                    user_bail!("{place} is no JSON object"; "each line, or each item of one array, must be an object")
                }
            };
            Ok((Records::Rows(rows.into_iter().map(object).collect::<Result<_>>()?), sha256))
        }
        Content::Parquet => {
            let context = || format!("cannot read {}", path.display());
            let rows = parquet_rows(path)?.into_iter().enumerate();
            let mut hash = Sha256::new();
            io::copy(&mut File::open(path).with_context(context)?, &mut hash).with_context(context)?;
            Ok((Records::Rows(rows.map(|(i, row)| (format!("{origin}, row {i}"), row)).collect()), hash.hex()))
        }
    }
}

//! What lies in a checkpoint folder: the configuration, the weight files, and everything else.

use super::file::TensorFile;
use super::index::Index;
use super::lfs::refuse_pointer;
use super::read::{read_at_most, unreadable};
use super::section::Section;
use crate::hub::is_module_file;
use crate::user_bail;
use anyhow::Result;
use serde_json::{Map, Value};
use std::path::Path;
use std::sync::Arc;

pub(super) const CONFIG: &str = "config.json";
/// The name of `config.json` while an output is being made: without that name no folder is a model.
pub const UNFINISHED_CONFIG: &str = "config.json.unfinished";
pub(super) const SINGLE: &str = "model.safetensors";
/// Largest `config.json`: as JSON values it takes many times its size.
const LARGEST_CONFIG: u64 = 4 << 20;
/// Settings of an adapter that peft wrote.
const ADAPTER: &str = "adapter_config.json";
/// What some editors put in front of UTF-8.
pub(super) const BOM: &[u8] = "\u{feff}".as_bytes();
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Weight formats of any runtime, this program's included: never copied as side files.
const WEIGHTS: &[&str] = &[
    "safetensors",
    "bin",
    "pt",
    "pth",
    "ckpt",
    "gguf",
    "ggml",
    "h5",
    "msgpack",
    "onnx",
    "onnx_data",
    "tflite",
    "npz",
    "npy",
    "pkl",
    "pickle",
    "ot",
    "mlmodel",
];
/// Other runtimes' copies of a model that the hub keeps in subfolders.
const OTHER_RUNTIMES: &[&str] = &["onnx", "openvino", "coreml"];

/// Reads `config.json`.
pub(super) fn read_config(dir: &Path) -> Result<Map<String, Value>> {
    let shown = dir.display();
    if !dir.exists() {
        user_bail!("there is no folder {shown}"; "give a folder with {CONFIG} and {SINGLE}, or a model id of the hub");
    }
    if !dir.is_dir() {
        user_bail!("{shown} is a file, not a model folder"; "give the folder that holds {CONFIG} and the weights");
    }
    let path = dir.join(CONFIG);
    if !path.exists() && dir.join(ADAPTER).exists() {
        user_bail!(
            "{shown} holds a LoRA adapter ({ADAPTER}), not a model";
            "merge it into its base model first with peft: `model.merge_and_unload()`, then `save_pretrained(folder)`"
        );
    }
    if !path.exists() {
        user_bail!("{shown} has no {CONFIG}"; "a model folder needs the {CONFIG} that came with the weights");
    }
    parse_config(&path.display().to_string(), &read_at_most(&path, LARGEST_CONFIG)?)
}

/// Parses a configuration that errors call `name`.
pub(super) fn parse_config(name: &str, bytes: &[u8]) -> Result<Map<String, Value>> {
    refuse_pointer(name, bytes)?;
    let bytes = bytes.strip_prefix(BOM).unwrap_or(bytes);
    let finite = without_infinity(bytes);
    match serde_json::from_slice(finite.as_deref().unwrap_or(bytes)) {
        Ok(config) => {
            Section::check(name, &config)?;
            Ok(config)
        }
        Err(error) => user_bail!("{name} is not a JSON object: {error}"; "get the model's original {CONFIG}"),
    }
}

/// Python writes an infinite number as `Infinity`, which is no JSON: the largest f32 in its place means the same to
/// every model. `None` where there is nothing to replace.
fn without_infinity(bytes: &[u8]) -> Option<Vec<u8>> {
    const WORD: &[u8] = b"Infinity";
    let mut finite = Vec::new();
    let (mut quoted, mut escaped, mut found, mut i) = (false, false, false, 0);
    while i < bytes.len() {
        if !quoted && bytes[i..].starts_with(WORD) {
            finite.extend_from_slice(b"3.4028234663852886e38");
            (found, i) = (true, i + WORD.len());
            continue;
        }
        quoted ^= bytes[i] == b'"' && !escaped;
        escaped = quoted && bytes[i] == b'\\' && !escaped;
        finite.push(bytes[i]);
        i += 1;
    }
    found.then_some(finite)
}

/// Opens the single weight file, or the index and every shard it names. As in transformers, a single file wins.
pub(super) fn open_weights(dir: &Path) -> Result<(Vec<TensorFile>, Option<Arc<Index>>)> {
    if dir.join(SINGLE).exists() {
        return Ok((vec![TensorFile::open(&dir.join(SINGLE))?], None));
    }
    if !dir.join(INDEX).exists() {
        return refuse(dir);
    }
    let index = Index::read(&dir.join(INDEX))?;
    let shown = dir.display();
    let mut files = Vec::with_capacity(index.shards().len());
    for shard in index.shards() {
        let path = dir.join(shard);
        if !path.exists() {
            user_bail!(
                "{INDEX} names the shard {shard}, which is not in {shown}";
                "download or copy the missing file; a checkpoint needs all its shards"
            );
        }
        let mut file = TensorFile::open(&path)?;
        file.name.clone_from(shard);
        files.push(file);
    }
    index.check(&files)?;
    Ok((files, Some(index)))
}

/// Says why a folder without safetensors weights cannot be opened.
fn refuse<T>(dir: &Path) -> Result<T> {
    let shown = dir.display();
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .map_err(|error| unreadable(dir, &error))?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    names.sort();
    let with = |wanted: &[&str]| names.iter().find(|name| wanted.contains(&extension(name))).cloned();
    if let Some(name) = with(&["bin", "pt", "pth", "ckpt", "pkl", "pickle"]) {
        user_bail!(
            "{shown} has its weights as a pickle ({name}), which can run code when read; it was not opened";
            "convert it where you trust it, with transformers: `model.save_pretrained(folder, safe_serialization=True)`"
        );
    }
    if let Some(name) = with(&["gguf", "ggml"]) {
        user_bail!(
            "{shown} has its weights as {name}, a format for inference that softlm does not read";
            "use the original Hugging Face checkpoint, or save it with transformers: \
             `from_pretrained(…, gguf_file=…)`, then `save_pretrained(folder, safe_serialization=True)`"
        );
    }
    if dir.join(ADAPTER).exists() {
        user_bail!(
            "{shown} holds a LoRA adapter ({ADAPTER}), not the weights of a model";
            "merge it into its base model first with peft: `model.merge_and_unload()`, then `save_pretrained(folder)`"
        );
    }
    if let Some(name) = with(&["safetensors"]) {
        user_bail!(
            "{shown} has {name}, but neither {SINGLE} nor {INDEX}";
            "rename the file to {SINGLE} if it is the whole model, or add the index"
        );
    }
    user_bail!("{shown} has no weights"; "a model folder needs {SINGLE}, or {INDEX} and the shards it names")
}

fn extension(name: &str) -> &str {
    Path::new(name).extension().and_then(|extension| extension.to_str()).unwrap_or_default()
}

/// Everything but folders that is neither weights nor their index nor the top `config.json`, as sorted relative names with
/// `/`. Hidden files, work folders, the copies of other runtimes and links to folders are left out. What is no file (a device,
/// a pipe, a link to nothing) is not: whoever reads it says so.
pub(super) fn side_files(dir: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    walk(dir, "", 0, &mut found)?;
    found.sort();
    Ok(found)
}

fn walk(dir: &Path, prefix: &str, depth: usize, found: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(dir).map_err(|error| unreadable(dir, &error))? {
        let entry = entry.map_err(|error| unreadable(dir, &error))?;
        // A name that is no UTF-8 is not part of any checkpoint.
        let Ok(name) = entry.file_name().into_string() else { continue };
        let Ok(kind) = entry.file_type() else { continue };
        let relative = format!("{prefix}{name}");
        if name.starts_with('.') || name.ends_with(".softlm-work") {
            continue;
        }
        if kind.is_dir() {
            // Deeper folders hold no model's files. Links to folders are not followed: they can form a circle.
            if depth < 2 && !OTHER_RUNTIMES.contains(&name.as_str()) {
                walk(&entry.path(), &format!("{relative}/"), depth + 1, found)?;
            }
        } else if !entry.path().is_dir()
            && ![CONFIG, UNFINISHED_CONFIG].contains(&relative.as_str())
            && (!is_weights(&name) || is_module_file(&relative))
        {
            found.push(relative);
        }
    }
    Ok(())
}

fn is_weights(name: &str) -> bool {
    WEIGHTS.contains(&extension(name)) || name.ends_with(".index.json")
}

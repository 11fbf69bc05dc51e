//! The small models of the project's references, to begin with.

use super::header;
use std::fs;
use std::path::{Path, PathBuf};

/// The folder `tests/golden`, from this package and from the main one.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tests = if here.ends_with("tests/fuzz") { here.join("..") } else { here.join("tests") };
    tests.join("golden")
}

pub fn read(name: &str) -> Vec<u8> {
    let path = root().join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Folders of models, in the order of their names.
pub fn models() -> Vec<PathBuf> {
    let below =
        |name: &str| fs::read_dir(root().join(name)).expect("models").map(|entry| entry.expect("an entry").path());
    let mut all: Vec<PathBuf> = below("models").chain(below("encoders")).filter(|path| path.is_dir()).collect();
    all.sort();
    all
}

/// `config.json` and the JSON of the header of a model.
pub fn described(folder: &Path) -> (Vec<u8>, Vec<u8>) {
    let weights = fs::read(folder.join("model.safetensors")).expect("weights");
    (fs::read(folder.join("config.json")).expect("a config"), header::json_of(&weights).to_vec())
}

//! A folder of statistics. What is accepted has finite, symmetric sums over as many tokens as it says, is stored again as it
//! was read, and adds up with others.

use super::place::Place;
use super::{Target, golden, mutate, parts, refused};
use candle_core::Device;
use serde_json::Value;
use softlm::calibrate::{BlockStats, Origin, SiteStats, StatsStore, merge};
use softlm::checkpoint::{Source, TensorFile, write_sealed};
use softlm::linalg::Mat;
use softlm::model::{Model, Site};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub const TARGET: Target = Target { name: "statistics", seeds, mutate: mutate::files, run };

const FINISHED: &str = "stats.json";
const DESCRIPTIONS: [&str; 2] = [FINISHED, "unfinished.json"];
const BLOCKS: [&str; 2] = ["block-00000.safetensors", "block-00001.safetensors"];
/// Present where checksums and marks are put right before reading, so that what they protect is read too.
const SEALED: &str = "sealed";
/// The folders that a run makes beside the one that it reads.
const MADE: [&str; 3] = ["stats", "again", "sum"];

fn model() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| {
        let source = Source::open(&golden::root().join("models/llama-tiny-bias")).expect("a model");
        Model::load(source, &Device::Cpu).expect("a model")
    })
}

fn origin(text: &str) -> Origin {
    Origin::new(model().source(), BLOCKS.len(), text.into(), 5, 2).expect("an origin")
}

fn stats(index: usize) -> BlockStats {
    let site = |width: usize, tokens: u64, heldout: usize| {
        let x = |i: usize| (1 + i + index) as f64 * 0.5;
        SiteStats {
            tokens,
            gram: Mat::from_fn(width, width, |i, j| tokens as f64 * x(i) * x(j)),
            sum: (0..width).map(|i| tokens as f64 * x(i)).collect(),
            heldout: vec![0.25; heldout * width],
        }
    };
    BlockStats::from([(Site::AttnIn, site(3, 5, 2)), (Site::MlpOut, site(2, 5, 2)), (Site::ExpertIn(1), site(1, 3, 0))])
}

/// A finished folder of statistics over `text`.
fn folder(dir: &Path, text: &str) {
    let store = StatsStore::fill(dir, origin(text), &()).expect("a folder");
    (0..BLOCKS.len()).for_each(|index| store.put(index, &stats(index)).expect("stored"));
    assert!(store.is_finished());
}

/// One of another text, to add to; made once in a place.
fn other(place: &Place) -> PathBuf {
    let dir = place.path().join("other");
    if !dir.exists() {
        folder(&dir, "another text");
    }
    dir
}

fn seeds() -> Vec<Vec<u8>> {
    let place = tempfile::tempdir().expect("a folder");
    let dir = place.path().join("stats");
    folder(&dir, "a text");
    let read = |name: &str| (name.to_string(), fs::read(dir.join(name)).expect("stored"));
    let whole = [FINISHED, BLOCKS[0], BLOCKS[1]].map(read);
    let mut sealed = whole.to_vec();
    sealed.push((SEALED.to_string(), Vec::new()));
    let mut begun = sealed.clone();
    begun.remove(1);
    let mut description: Value = serde_json::from_slice(&begun[0].1).expect("JSON");
    description.as_object_mut().expect("an object").remove("checksums");
    begun[0] = (DESCRIPTIONS[1].to_string(), description.to_string().into_bytes());
    vec![parts::join(&whole), parts::join(&sealed), parts::join(&sealed), parts::join(&begun)]
}

fn run(input: &[u8], place: &Place) -> bool {
    place.clear(&MADE);
    let parts = parts::split(input);
    for name in DESCRIPTIONS.iter().chain(&BLOCKS) {
        if let Some(content) = parts::find(&parts, name) {
            place.file(&format!("stats/{name}"), content);
        }
    }
    let dir = place.path().join("stats");
    if !dir.is_dir() {
        return false;
    }
    if parts::find(&parts, SEALED).is_some() {
        seal(&dir);
    }
    let store = match StatsStore::open(&dir) {
        Ok(Some(store)) => store,
        Ok(None) => return false,
        Err(error) => return refused(&error),
    };
    let mut readable = true;
    for index in store.present().expect("a folder") {
        assert!(index < store.origin.blocks);
        match store.get(index) {
            Ok(read) => check(&read, &store.origin),
            Err(error) => readable = refused(&error),
        }
    }
    let whole = readable && store.missing().is_none();
    if let Err(error) = store.check(model(), &origin("a text")) {
        refused(&error);
    }
    if whole && store.origin.blocks <= BLOCKS.len() {
        again(&store, place);
    }
    match merge(&[dir, other(place)], &place.path().join("sum"), &()) {
        Ok(sum) => {
            assert!(whole && sum.is_finished());
            for index in 0..sum.origin.blocks {
                check(&sum.get(index).expect("what was merged is read"), &sum.origin);
            }
        }
        Err(error) => drop(refused(&error)),
    }
    readable
}

/// What every sum over tokens is.
fn check(stats: &BlockStats, origin: &Origin) {
    assert!(!stats.is_empty());
    for (site, s) in stats {
        let n = s.width();
        assert!(n > 0 && (s.gram.rows(), s.gram.cols()) == (n, n), "{site}");
        assert!(0 < s.tokens && s.tokens <= origin.tokens, "{site}");
        assert!(s.heldout.len() == s.heldout_tokens() * n && s.heldout_tokens() as u64 <= origin.heldout, "{site}");
        assert!(s.sum.iter().all(|x| x.is_finite()) && s.heldout.iter().all(|x| x.is_finite()), "{site}");
        assert!(s.gram.is_finite() && s.squares().iter().all(|x| *x >= 0.0), "{site}");
    }
}

/// Stores what was read; it has to come back.
fn again(store: &StatsStore, place: &Place) {
    let copy = StatsStore::fill(&place.path().join("again"), store.origin.clone(), &()).expect("a folder");
    for index in 0..store.origin.blocks {
        let read = store.get(index).expect("once more");
        copy.put(index, &read).expect("what can be read can be stored");
        let back = copy.get(index).expect("stored");
        for ((a, one), (b, two)) in read.iter().zip(&back) {
            assert_eq!((a, one.tokens, &one.sum, &one.heldout), (b, two.tokens, &two.sum, &two.heldout));
            assert_eq!(one.gram.to_rows(), two.gram.to_rows());
        }
    }
    assert!(copy.is_finished());
}

/// Puts the marks and checksums of the blocks right, as far as they can be.
fn seal(dir: &Path) {
    let description = DESCRIPTIONS.iter().map(|name| dir.join(name)).find(|path| path.exists());
    let Some(path) = description else { return };
    let Ok(mut described) = serde_json::from_slice::<Value>(&fs::read(&path).expect("written")) else { return };
    let Some(id) = serde_json::from_value::<Origin>(described.clone()).ok().and_then(|origin| origin.id().ok()) else {
        return;
    };
    for (index, name) in BLOCKS.iter().enumerate() {
        let block = dir.join(name);
        let Ok(file) = TensorFile::open(&block) else { continue };
        let tensors: Vec<_> = file.names().map(|name| file.read(name).expect("listed")).collect();
        let mut marks = file.metadata().clone();
        marks.remove("sha256");
        marks.extend([("statistics".to_string(), id.clone()), ("block".to_string(), index.to_string())]);
        write_sealed(&block, &tensors, &marks).expect("written");
        let sum = TensorFile::open(&block).expect("written").metadata().get("sha256").cloned();
        let sums = described.get_mut("checksums").and_then(Value::as_array_mut);
        if let (Some(sum), Some(entry)) = (sum, sums.and_then(|sums| sums.get_mut(index))) {
            *entry = sum.into();
        }
    }
    fs::write(&path, described.to_string()).expect("written");
}

//! `report.json`. What is accepted is shown, and written again says the same.

use super::outputs::outputs;
use super::place::Place;
use super::{Target, mutate, parts, refused};
use softlm::checkpoint::Source;
use softlm::pipeline::Original;
use softlm::report::{Report, card, details, table};

pub const TARGET: Target = Target { name: "report", seeds, mutate: mutate::files, run };

const REPORT: &str = "report.json";
const CONFIG: &str = "config.json";

fn seeds() -> Vec<Vec<u8>> {
    let own = outputs().iter().map(|output| parts::join(&[(CONFIG, &output.config), (REPORT, &output.report)]));
    own.chain(outputs().iter().map(|output| parts::join(&[(REPORT, &output.report)]))).collect()
}

fn run(input: &[u8], place: &Place) -> bool {
    place.clear(&[]);
    let parts = parts::split(input);
    let Some(text) = parts::find(&parts, REPORT) else { return false };
    place.file(CONFIG, parts::find(&parts, CONFIG).unwrap_or(b"{}"));
    place.file(REPORT, text);
    place.file("model.safetensors", &super::header::file(b"{}", b""));
    match Source::open(place.path()).and_then(|source| Original::of(&source)) {
        Ok(Some(original)) => drop(original.name().len()),
        Ok(None) => {}
        Err(error) => drop(refused(&error)),
    }
    let Ok(report) = serde_json::from_slice::<Report>(text) else { return false };
    if let Some(unused) = &report.model.unused_tensors {
        unused.describe(8);
    }
    let shown = [table(&report, 80, false), table(&report, 20, true), details(&report), card(&report)].concat();
    // The most that a number or a word may be padded or wrapped to.
    assert!(shown.len() <= 64 * text.len() + (64 << 10), "{} bytes shown of {}", shown.len(), text.len());
    let written = serde_json::to_string(&report).expect("what was read is written");
    let again: Report = serde_json::from_str(&written).expect("what was written is read");
    assert_eq!(serde_json::to_string(&again).expect("written"), written);
    true
}

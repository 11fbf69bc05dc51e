//! Files of labelled examples. What is accepted has labels that the task has, and texts.

use super::place::Place;
use super::text::{NAMES, parquet};
use super::{Target, mutate, parts, refused};
use softlm::hub::HubOptions;
use softlm::text::{Split, examples};

pub const TARGET: Target = Target { name: "labels", seeds, mutate: mutate::files, run };

fn seeds() -> Vec<Vec<u8>> {
    let texts = [
        ("sst2 a.tsv", "sentence\tlabel\nso good \t1\nx\t0\n"),
        ("sst2 a.jsonl", "{\"text\": \"so\", \"label\": 1}\n{\"sentence\": \"x\", \"label\": \"0\"}"),
        ("mrpc a.txt", "\u{feff}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tE\tf\n"),
        ("stsb a.csv", "main\tMSR\t2012\t1\t3.200\tA \"b\".\tC, d\tlicence\nmain\tMSR\t2012\t2\t0\tE\tf\n"),
        ("stsb a.tsv", "index\tsentence1\tsentence2\tscore\r\n0\tA\tC\t3.2\r\n1\tE\tf\t0\r\n"),
        ("stsb a.json", "[{\"sentence1\": \"A\", \"sentence2\": \"C\", \"label\": 3.2}]"),
    ];
    let mut seeds: Vec<Vec<u8>> = texts.iter().map(|text| parts::join(&[*text])).collect();
    let columns: [(&str, &[&str]); 2] = [("sentence", &["so good", "x"]), ("label", &["1", "0"])];
    seeds.push(parts::join(&[("sst2 a.parquet", parquet(&columns))]));
    seeds
}

fn run(input: &[u8], place: &Place) -> bool {
    place.clear(&[]);
    let parts = parts::split(input);
    let named = parts.iter().find_map(|(name, content)| Some((name.split_once(' ')?, content)));
    let Some(((task, name), content)) = named.filter(|((_, name), _)| NAMES.contains(name)) else { return false };
    let path = place.file(name, content);
    // Without a file it would be a data set of the hub.
    let spec = format!("{}={}", if task.is_empty() { "-" } else { task }, path.display());
    let found = match examples(&spec, Split::Evaluation, &HubOptions { offline: true, ..HubOptions::default() }) {
        Ok(found) => found,
        Err(error) => return refused(&error),
    };
    assert!(!found.rows.is_empty());
    for row in &found.rows {
        assert_eq!(row.second.is_some(), found.task.is_pair());
        assert!(row.label.is_finite());
        if found.task.has_classes() {
            assert!(row.label >= 0.0 && row.label.fract() == 0.0, "{}", row.label);
        }
    }
    true
}

//! Folders of statistics: damaged, hostile, half full, of something else; what is summed and what is not.

use crate::program::{Place, Said, copy_folder, tensors};
use crate::state_space::with_tokenizer;
use serde_json::{Value, json};
use softlm::checkpoint::{Dtype, NamedTensor, TensorFile, write_sealed};
use softlm::lock::Lock;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;

const TEXT: &str = "--calib-windows 3 --window 64";
const COLLECT: &str = "calibrate demo --calib-windows 3 --window 64 -o stats";
const USE: &str = "compress demo --method whiten --weight unit --keep 0.6 --ppl none --calib-windows 3 --window 64";

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn block(index: usize) -> String {
    format!("stats/block-{index:05}.safetensors")
}

/// Statistics in `stats`, made once and copied.
fn collected() -> Place {
    let place = Place::new();
    place.run(COLLECT).fine();
    place
}

/// Names and contents of all files in a folder.
fn everything(place: &Place, folder: &str) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(place.path(folder)).expect("a folder").map(|entry| entry.expect("an entry"));
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).expect("a file"))).collect()
}

fn restore(place: &Place, folder: &str, files: &BTreeMap<String, Vec<u8>>) {
    let _ = fs::remove_dir_all(place.path(folder));
    fs::create_dir(place.path(folder)).unwrap();
    files.iter().for_each(|(name, content)| drop(place.write(&format!("{folder}/{name}"), content)));
}

fn change_json(place: &Place, file: &str, change: impl Fn(&mut Value)) {
    let mut json: Value = serde_json::from_slice(&place.read(file)).expect("JSON");
    change(&mut json);
    place.write(file, json.to_string());
}

/// Writes a block's file again after `change`, with a seal that fits, and its checksum into the description: what somebody
/// with bad intentions could do.
fn forge(place: &Place, folder: &str, index: usize, change: impl Fn(&mut Tensors)) {
    let path = place.path(&format!("{folder}/block-{index:05}.safetensors"));
    let mut metadata = TensorFile::open(&path).expect("a file").metadata().clone();
    metadata.remove("sha256");
    let mut all = tensors(&path);
    change(&mut all);
    let all: Vec<NamedTensor> =
        all.into_iter().map(|(name, (dtype, shape, data))| NamedTensor::new(name, dtype, shape, data)).collect();
    write_sealed(&path, &all, &metadata).expect("written");
    let seal = TensorFile::open(&path).expect("a file").metadata()["sha256"].clone();
    change_json(place, &format!("{folder}/stats.json"), |json| json["checksums"][index] = json!(seal));
}

fn set_f64(all: &mut Tensors, name: &str, at: usize, value: f64) {
    all.get_mut(name).unwrap().2[at * 8..][..8].copy_from_slice(&value.to_le_bytes());
}

/// `--stats stats` is refused before any work, or with it, and nothing is left.
#[track_caller]
fn unusable(place: &Place, naming: &[&str]) -> Said {
    let said = place.run(&format!("{USE} --stats stats -o out")).refused(naming);
    assert!(!place.path("out").exists());
    said
}

#[test]
fn the_same_command_gives_the_same_bytes_and_knows_them() {
    let place = collected();
    let first = everything(&place, "stats");
    assert_eq!(first.keys().filter(|name| name.starts_with("block-")).count() + 1, first.len(), "{:?}", first.keys());
    let said = place.run(COLLECT).fine();
    assert!(said.stderr.contains("already holds these statistics"), "{}", said.stderr);
    place.run(&format!("calibrate demo {TEXT} -o again")).fine();
    place.run(&format!("{USE} --stats filled -o out")).fine();
    for folder in ["stats", "again", "filled"] {
        assert!(everything(&place, folder) == first, "{folder}");
    }
    let said = place.run("inspect stats --json").fine();
    let seen: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!((&seen["finished"], &seen["origin"]["tokens"]), (&json!(true), &json!(192)));
}

#[test]
fn a_flipped_byte_is_found_and_the_same_command_repairs_it() {
    let place = collected();
    let before = everything(&place, "stats");
    let size = before["block-00001.safetensors"].len();
    for at in [0, 30, 200, size / 3, size / 2, size - 1] {
        let mut bytes = before["block-00001.safetensors"].clone();
        bytes[at] ^= 4;
        place.write(&block(1), bytes);
        unusable(&place, &["block-00001.safetensors", "softlm calibrate"]);
        place.run("inspect stats").refused(&["block-00001.safetensors"]);
        let _ = fs::remove_dir_all(place.path("out.softlm-work"));
    }
    let said = place.run(COLLECT).fine();
    assert!(said.stderr.contains("made again: block-00001.safetensors"), "{}", said.stderr);
    assert!(everything(&place, "stats") == before);
    // Cut short, or gone.
    for length in [Some(0), Some(100), Some(size as u64 - 1), None] {
        match length {
            Some(length) => {
                fs::OpenOptions::new().write(true).open(place.path(&block(3))).unwrap().set_len(length).unwrap();
                unusable(&place, &["block-00003.safetensors", "softlm calibrate"]);
                assert!(!place.path("out.softlm-work").exists(), "found before any work");
            }
            None => fs::remove_file(place.path(&block(3))).unwrap(),
        }
        place.run(COLLECT).fine();
        assert!(everything(&place, "stats") == before);
    }
}

#[test]
fn files_that_changed_places_are_found() {
    let place = collected();
    let before = everything(&place, "stats");
    place.write(&block(0), &before["block-00001.safetensors"]);
    unusable(&place, &["block-00000.safetensors", "another block"]);
    // Sound, but of other text.
    restore(&place, "stats", &before);
    place.run("calibrate demo --calib-windows 3 --window 64 --seed 1 -o other").fine();
    place.write(&block(2), place.read("other/block-00002.safetensors"));
    unusable(&place, &["block-00002.safetensors", "other statistics"]);
    // Sound and of the same text, but not what the description was written for.
    restore(&place, "stats", &before);
    let description = place.read("stats/stats.json");
    forge(&place, "stats", 2, |all| set_f64(all, "attn_in.sum", 0, 0.0));
    place.write("stats/stats.json", description);
    unusable(&place, &["block-00002.safetensors", "when the statistics were finished"]);
}

#[test]
fn numbers_that_no_text_gives_are_refused() {
    let place = collected();
    let before = everything(&place, "stats");
    type Change = &'static dyn Fn(&mut Tensors);
    let values: [(Change, &str); 10] = [
        (&|all| set_f64(all, "attn_in.gram", 0, -1.0), "attn_in: Σ x² of channel 0 is -1"),
        (&|all| set_f64(all, "attn_in.gram", 2, f64::NAN), "attn_in: Σ x² of channel 1 is NaN"),
        (&|all| set_f64(all, "mlp_in.gram", 1, 1e9), "mlp_in: Σ x_1 x_0 is 1000000000"),
        (&|all| set_f64(all, "mlp_in.gram", 1, f64::NAN), "mlp_in: Σ x_1 x_0 is NaN"),
        (&|all| set_f64(all, "mlp_out.sum", 5, 1e9), "mlp_out: Σ x of channel 5 is 1000000000"),
        (&|all| set_f64(all, "mlp_out.sum", 5, f64::INFINITY), "mlp_out: Σ x of channel 5 is inf"),
        (&|all| all.get_mut("attn_out.tokens").unwrap().2.fill(0), "attn_out: it says that no token"),
        (
            &|all| all.get_mut("attn_out.tokens").unwrap().2.fill(255),
            "attn_out: it says that 18446744073709551615 tokens",
        ),
        (&|all| all.get_mut("attn_out.tokens").unwrap().2[0] -= 1, "attn_out: it says that 191 tokens"),
        (&|all| all.get_mut("attn_in.heldout").unwrap().2[..4].fill(255), "attn_in: NaN among the held-out"),
    ];
    for (change, says) in values {
        forge(&place, "stats", 1, change);
        unusable(&place, &["block-00001.safetensors", says, "softlm calibrate"]);
        restore(&place, "stats", &before);
        let _ = fs::remove_dir_all(place.path("out.softlm-work"));
    }
    let sizes: [(Change, &str); 8] = [
        (&|all| all.retain(|name, _| !name.starts_with("mlp_out.")), "nothing of mlp_out"),
        (&|all| drop(all.remove("mlp_out.gram")), "mlp_out has no gram"),
        (&|all| drop(all.insert("ssm_in.note".into(), (Dtype::U8, vec![1], vec![0]))), "ssm_in.note"),
        (&|all| all.get_mut("attn_in.sum").unwrap().1 = vec![], "attn_in"),
        (&|all| narrow(all, "attn_in", 3), "attn_in has 3 inputs"),
        (&|all| rename(all, "attn_in", "ssm_in"), "attn_in"),
        (&|all| all.get_mut("attn_in.gram").unwrap().1.push(1), "sizes of attn_in"),
        (
            &|all| *all.get_mut("mlp_in.heldout").unwrap() = (Dtype::F32, vec![0, 128], vec![]),
            "0 tokens are held out at mlp_in",
        ),
    ];
    for (change, says) in sizes {
        // A list without a dimension holds one number.
        let one = |all: &mut Tensors| {
            change(all);
            all.values_mut().filter(|t| t.1.is_empty()).for_each(|t| t.2.truncate(8));
        };
        forge(&place, "stats", 1, one);
        unusable(&place, &["block-00001.safetensors", says]);
        assert!(!place.path("out.softlm-work").exists(), "{says}: found before any work");
        restore(&place, "stats", &before);
    }
    place.run(&format!("{USE} --stats stats -o out")).fine();
}

/// Makes a site consistent with fewer channels.
fn narrow(all: &mut Tensors, site: &str, n: usize) {
    let heldout = all[&format!("{site}.heldout")].1[0];
    let mut put = |part: &str, dtype: Dtype, shape: Vec<usize>, value: &[u8]| {
        let count = shape.iter().product();
        all.insert(format!("{site}.{part}"), (dtype, shape, value.repeat(count)));
    };
    put("gram", Dtype::F64, vec![n * (n + 1) / 2], &1e-9f64.to_le_bytes());
    put("sum", Dtype::F64, vec![n], &0f64.to_le_bytes());
    put("heldout", Dtype::F32, vec![heldout, n], &0f32.to_le_bytes());
}

fn rename(all: &mut Tensors, from: &str, to: &str) {
    for part in ["gram", "sum", "tokens", "heldout"] {
        let tensor = all.remove(&format!("{from}.{part}")).unwrap();
        all.insert(format!("{to}.{part}"), tensor);
    }
}

#[test]
fn a_description_is_not_trusted() {
    let place = collected();
    let before = everything(&place, "stats");
    let stats = "stats/stats.json";
    for blocks in [json!(3), json!(1_000_000_000_000u64), json!(-1), json!("four")] {
        change_json(&place, stats, |json| json["blocks"] = blocks.clone());
        unusable(&place, &[stats]);
        place.run(COLLECT).refused(&[stats]);
        place.run("inspect stats").refused(&[stats]);
        place.run("calibrate --merge stats -o sum").refused(&[stats]);
        restore(&place, "stats", &before);
    }
    // As many checksums as it claims blocks, and an unfinished folder, which has none.
    change_json(&place, stats, |json| {
        json["blocks"] = json!(5);
        json["checksums"].as_array_mut().unwrap().push(json!("00"));
    });
    place.run(COLLECT).refused(&["stats", "number of blocks is 4, not 5"]);
    unusable(&place, &["stats", "number of blocks is 4, not 5"]);
    restore(&place, "stats", &before);
    fs::rename(place.path(stats), place.path("stats/unfinished.json")).unwrap();
    change_json(&place, "stats/unfinished.json", |json| json["blocks"] = json!(1_000_000_000_000u64));
    place.run(COLLECT).refused(&["stats", "number of blocks"]);
    unusable(&place, &["stats", "number of blocks"]);
    place.run("calibrate --merge stats -o sum").refused(&["stats", "block 4"]);
    // The blocks say that they are of another description.
    place.run("inspect stats").refused(&["block-00000.safetensors", "other statistics"]);
    restore(&place, "stats", &before);
    for content in ["", "[]", "{", "{\"format\": 3}", "{\"format\": 3e9}", "\u{0}"] {
        place.write(stats, content);
        unusable(&place, &["stats"]);
        place.run("inspect stats").refused(&[stats]);
    }
    place.write(stats, "[".repeat(3 << 20));
    place.run("inspect stats").refused(&[stats, "more than"]);
    fs::remove_file(place.path(stats)).unwrap();
    fs::create_dir(place.path(stats)).unwrap();
    place.run("inspect stats").refused(&[stats, "not a file"]);
    unusable(&place, &[stats]);
}

#[test]
fn work_goes_on_with_the_statistics_it_began_with() {
    let place = collected();
    let line = format!("compress demo --method soco --steps 400 --ppl none {TEXT} --seed 1 --stats stats -o out");
    let mut child = place.command(&line).spawn().expect("the program starts");
    place.wait_for("out.softlm-work/decompositions-00000.safetensors");
    child.kill().expect("killed");
    child.wait().expect("a child");
    // Of the same text, but with other numbers.
    forge(&place, "stats", 3, |all| set_f64(all, "attn_in.sum", 0, 0.0));
    place.run(&line).refused(&["out.softlm-work", "--force"]);
}

/// A folder as a process leaves it that dies when so many blocks are there.
fn half(place: &Place, whole: &str, folder: &str, blocks: usize) {
    let mut files = everything(place, whole);
    let mut description: Value = serde_json::from_slice(&files.remove("stats.json").unwrap()).unwrap();
    description.as_object_mut().unwrap().remove("checksums");
    files.retain(|name, _| (0..blocks).any(|index| *name == format!("block-{index:05}.safetensors")));
    files.insert("unfinished.json".into(), description.to_string().into_bytes());
    files.insert(format!("block-{:05}.safetensors.tmp", blocks.min(3)), b"half".to_vec());
    files.insert("lock".into(), Vec::new());
    restore(place, folder, &files);
}

#[test]
fn an_unfinished_folder_never_looks_finished_and_is_continued() {
    let place = collected();
    let before = everything(&place, "stats");
    for blocks in 0..=4 {
        half(&place, "stats", "half", blocks);
        assert!(!place.path("half/stats.json").exists());
        place.run("calibrate --merge half -o sum").refused(&["half", "finish it with the command"]);
        place.run(&format!("calibrate demo {TEXT} --seed 1 -o half")).refused(&[
            "half",
            "seed 0",
            "seed 1",
            "new folder",
        ]);
        if blocks < 4 {
            place.run(&format!("{USE} --seed 1 --stats half -o out")).refused(&["half", "only some blocks"]);
        }
        let seen = place.run("inspect half").fine().stdout;
        assert!(seen.contains(&format!("{blocks} of 4 blocks")), "{seen}");
        place.run(&format!("calibrate demo {TEXT} -o half")).fine();
        assert!(everything(&place, "half") == before, "{blocks}");

        half(&place, "stats", "half", blocks);
        place.run(&format!("{USE} --stats half -o out")).fine();
        assert!(everything(&place, "half") == before, "{blocks}");
        fs::remove_dir_all(place.path("out")).unwrap();
    }
    // Work of the dead one that was damaged since.
    half(&place, "stats", "half", 3);
    place.write("half/block-00001.safetensors", "");
    let said = place.run(&format!("{USE} --stats half -o out")).fine();
    assert!(said.stderr.contains("made again: block-00001.safetensors"), "{}", said.stderr);
    assert!(everything(&place, "half") == before);
    // It died just behind the end.
    place.write("stats/lock", "");
    fs::remove_dir_all(place.path("out")).unwrap();
    place.run(&format!("{USE} --stats stats -o out")).fine();
    assert!(everything(&place, "stats") == before);
    place.write("stats/lock", "");
    place.run(COLLECT).fine();
    assert!(everything(&place, "stats") == before);
}

#[test]
fn a_run_that_stores_nothing_leaves_nothing() {
    let place = Place::new();
    fs::create_dir(place.path("out")).unwrap();
    place.write("out/thesis.txt", "mine");
    place.run(&format!("{USE} --stats stats -o out")).refused(&["out"]);
    assert!(!place.path("stats").exists());
    fs::create_dir(place.path("stats")).unwrap();
    place.run(&format!("{USE} --stats stats -o out")).refused(&["out"]);
    assert!(everything(&place, "stats").is_empty());
}

#[test]
fn sums_are_continued_and_known() {
    let place = collected();
    place.run(&format!("calibrate demo {TEXT} --seed 1 -o more")).fine();
    place.run("calibrate --merge stats,more -o sum").fine();
    let before = everything(&place, "sum");
    let said = place.run("calibrate --merge stats,more -o sum").fine();
    assert!(said.stderr.contains("already holds these statistics"), "{}", said.stderr);
    for blocks in 0..=4 {
        half(&place, "sum", "again", blocks);
        place.run("calibrate --merge stats,more -o again").fine();
        assert!(everything(&place, "again") == before, "{blocks}");
    }
    // What is damaged is added up again.
    let mut bytes = before["block-00002.safetensors"].clone();
    bytes[1000] ^= 1;
    place.write("sum/block-00002.safetensors", bytes);
    place.run("calibrate --merge stats,more -o sum").fine();
    assert!(everything(&place, "sum") == before);

    // Not the same sum.
    place.run("calibrate --merge more,stats -o sum").refused(&["sum", "new folder"]);
    place.run("calibrate --merge stats -o sum").refused(&["sum", "new folder"]);
    place.run(COLLECT).fine();
    place.run(&format!("calibrate demo {TEXT} -o sum")).refused(&["sum", "new folder"]);
    place.run("calibrate --merge stats,more -o more").refused(&["more", "new folder"]);
    // A part that is no longer the one that was added: its numbers differ, whatever its description says.
    forge(&place, "more", 0, |all| set_f64(all, "attn_in.sum", 0, 0.0));
    place.run("calibrate --merge stats,more -o sum").refused(&["sum", "new folder"]);
}

#[test]
fn a_text_counts_once() {
    let place = collected();
    place.run("calibrate --merge stats,stats -o sum").refused(&["stats", "same text", "seed 0"]);
    symlink(place.path("stats"), place.path("link")).unwrap();
    place.run("calibrate --merge stats,link -o sum").refused(&["stats", "link", "same text"]);
    copy_folder(&place.path("stats"), &place.path("copy"));
    place.run("calibrate --merge stats,copy -o sum").refused(&["stats", "copy", "same text"]);
    place.run(&format!("calibrate demo {TEXT} --seed 1 -o more")).fine();
    place.run("calibrate --merge stats,more -o sum").fine();
    place.run("calibrate --merge more,sum -o twice").refused(&["more", "sum", "same text", "seed 1"]);
    assert!(!place.path("twice").exists());
}

#[test]
fn what_does_not_fit_is_not_added_up() {
    let place = collected();
    place.run(&format!("calibrate demo {TEXT} --seed 1 -o more")).fine();
    let more = everything(&place, "more");
    let refused = |naming: &[&str]| {
        place.run("calibrate --merge stats,more -o sum").refused(naming);
        // Of blocks that were sound a part of the sum may be there.
        assert!(!place.path("sum/stats.json").exists());
        let _ = fs::remove_dir_all(place.path("sum"));
        restore(&place, "more", &more);
    };
    forge(&place, "more", 2, |all| narrow(all, "mlp_in", 3));
    refused(&["block 2", "mlp_in has", "3 in more"]);
    forge(&place, "more", 3, |all| all.retain(|name, _| !name.starts_with("mlp_out.")));
    refused(&["block 3", "stats has mlp_out, more has not"]);
    forge(&place, "more", 3, |all| rename(all, "mlp_out", "ssm_conv"));
    refused(&["block 3", "mlp_out"]);
    forge(&place, "more", 1, |all| *all.get_mut("attn_in.heldout").unwrap() = (Dtype::F32, vec![1, 2], vec![0; 8]));
    refused(&["more/block-00001.safetensors", "attn_in"]);
    forge(&place, "more", 1, |all| all.get_mut("attn_in.tokens").unwrap().2.fill(255));
    refused(&["more/block-00001.safetensors", "attn_in"]);
    change_json(&place, "more/stats.json", |json| json["tokens"] = json!(u64::MAX));
    // More than can be counted is found first; that no block was made for that many tokens would be next.
    refused(&["more", "18446744073709551615"]);
    let mut bytes = more["block-00000.safetensors"].clone();
    bytes[5000] ^= 1;
    place.write("more/block-00000.safetensors", bytes);
    refused(&["more/block-00000.safetensors", "checksum"]);
    fs::remove_file(place.path("more/block-00000.safetensors")).unwrap();
    refused(&["more", "block 0"]);
    place.run("calibrate --merge stats,nothing -o sum").refused(&["nothing", "no statistics"]);
}

#[test]
fn nothing_of_somebody_else_is_followed_or_removed() {
    let place = Place::new();
    let thesis = place.write("thesis.txt", "mine");
    for name in [
        "stats.json",
        "unfinished.json",
        "unfinished.json.tmp",
        "lock",
        "block-00000.safetensors",
        "block-00001.safetensors.tmp",
    ] {
        fs::create_dir(place.path("stats")).unwrap();
        symlink(&thesis, place.path(&format!("stats/{name}"))).unwrap();
        for line in [COLLECT.to_string(), format!("{USE} --stats stats -o out")] {
            place.run(&line).refused(&["stats"]);
            assert_eq!(place.read("thesis.txt"), b"mine", "{name}");
            assert!(place.path(&format!("stats/{name}")).is_symlink(), "{name}");
            assert_eq!(fs::read_dir(place.path("stats")).unwrap().count(), 1, "{name}");
        }
        fs::remove_dir_all(place.path("stats")).unwrap();
    }
    for name in ["diary.txt", "block-1.safetensors", "block-00004.safetensors", ".hidden"] {
        fs::create_dir(place.path("stats")).unwrap();
        place.write(&format!("stats/{name}"), "mine");
        place.run(COLLECT).refused(&["stats", name, "not statistics"]);
        place.run(&format!("{USE} --stats stats -o out")).refused(&["stats", name]);
        assert_eq!(everything(&place, "stats").len(), 1, "{name}");
        fs::remove_dir_all(place.path("stats")).unwrap();
    }
    place.run("calibrate demo --calib-windows 3 --window 64 -o thesis.txt").refused(&["thesis.txt is a file"]);
    place.run(&format!("{USE} --stats thesis.txt -o out")).refused(&["thesis.txt is a file"]);
    symlink("nowhere", place.path("dangling")).unwrap();
    place.run(&format!("{USE} --stats dangling -o out")).refused(&["dangling is a link that leads nowhere"]);
    assert!(!place.path("nowhere").exists() && !place.path("out").exists());
    // A fresh file system, and a link to a folder, are as good as a new one.
    fs::create_dir_all(place.path("disk/lost+found")).unwrap();
    symlink("disk", place.path("stats")).unwrap();
    place.run(COLLECT).fine();
    assert!(place.path("disk/stats.json").exists() && place.path("stats").is_symlink());
}

#[test]
fn two_do_not_fill_the_same_folder() {
    let place = Place::new();
    fs::create_dir(place.path("stats")).unwrap();
    let lock = Lock::take(&place.path("stats/lock")).unwrap().expect("free");
    place.run(COLLECT).refused(&["another softlm is filling stats"]);
    place.run(&format!("{USE} --stats stats -o out")).refused(&["another softlm is filling stats"]);
    drop(lock);
    place.run(COLLECT).fine();
}

#[test]
fn small_linears_are_in_statistics_when_they_were_asked_for() {
    let place = Place::new();
    with_tokenizer(&place, "mamba-tiny");
    let line = format!("compress mamba-tiny --method whiten --weight unit --keep 0.6 --ppl none {TEXT}");
    place.run(&format!("calibrate mamba-tiny {TEXT} -o without")).fine();
    place.run(&format!("{line} --stats without --small-linears -o out")).refused(&["without", "ssm_", "small linears"]);
    // Who has more can do with less.
    place.run(&format!("{line} --stats with --small-linears -o out")).fine();
    place.run(&format!("{line} --stats with -o fewer")).fine();
    place.run(&format!("{line} --stats without -o the-same")).fine();
    assert!(place.read("fewer/model.safetensors") == place.read("the-same/model.safetensors"));
    place.run(&format!("calibrate mamba-tiny {TEXT} --seed 1 -o more")).fine();
    place.run("calibrate --merge with,more -o sum").refused(&["block 0", "with has ssm_", "more has not"]);
}

//! Input that cannot work: every case is refused with exit status 2, what is wrong with its value, and a way out.

use crate::data::data;
use crate::program::{FAST, Place, change_config, change_weights, copy_folder, finish};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn compress(model: &str) -> String {
    format!("-q compress {model} --method rom --keep 0.6 {FAST} -o out")
}

/// What is refused leaves nothing behind.
fn nothing_left(place: &Place) {
    for name in ["out", "out.softlm-work"] {
        assert!(!place.path(name).exists(), "{name}");
    }
}

#[test]
fn truncated_weights() {
    let place = Place::new();
    let weights = place.demo_folder("m").join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    for length in [0, 5, 8, 1000, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&weights, &bytes[..length]).unwrap();
        let said = place.run(&compress("m")).refused(&["model.safetensors"]);
        assert!(said.stderr.starts_with("error: "), "{}", said.stderr);
        place.run("eval m").refused(&["model.safetensors"]);
        nothing_left(&place);
    }
}

/// Sets every bf16 element of a tensor, or the first.
fn set(folder: &Path, tensor: &str, value: u16, all: bool) {
    change_weights(folder, |tensors| {
        let data = &mut tensors.get_mut(tensor).expect("a tensor of the model").2;
        let end = if all { data.len() } else { 2 };
        data[..end].as_chunks_mut::<2>().0.iter_mut().for_each(|x| *x = value.to_le_bytes());
    });
}

#[test]
fn weights_that_are_no_numbers() {
    let place = Place::new();
    let folder = place.demo_folder("m");
    set(&folder, "model.layers.2.mlp.up_proj.weight", 0x7fc0, false);
    for method in crate::program::METHODS {
        let command = compress("m").replace("rom", method);
        place.run(&command).refused(&["model.layers.2.mlp.up_proj.weight", "NaN"]);
        assert!(!place.path("out").exists());
        let _ = fs::remove_dir_all(place.path("out.softlm-work"));
    }
    place.run("eval m").refused(&["model.layers.2.mlp.up_proj.weight"]);
    let said = place.run("verify m");
    assert!(said.code == 1 && said.stdout.contains("model.layers.2.mlp.up_proj.weight"), "{}", said.stdout);
}

#[test]
fn a_run_that_fails_before_its_first_block_leaves_nothing_behind() {
    let place = Place::new();
    set(&place.demo_folder("m"), "model.layers.0.self_attn.q_proj.weight", 0x7f80, false);
    place.run(&compress("m")).refused(&["model.layers.0.self_attn.q_proj.weight"]);
    nothing_left(&place);
}

#[test]
fn activations_that_overflow() {
    let place = Place::new();
    let folder = place.demo_folder("m");
    set(&folder, "model.layers.1.mlp.down_proj.weight", 0x7f61, true); // 3e38
    place.run(&compress("m")).refused(&["block 1", "overflow"]);
    place.run("eval m").refused(&["block 1", "infinite"]);
    let folder = place.demo_folder("n");
    set(&folder, "model.layers.2.input_layernorm.weight", 0x7f61, true);
    for method in ["rom", "whiten", "lorap"] {
        place.run(&compress("n").replace("rom", method).replace("out", method)).refused(&["block 2", "infinite"]);
        assert!(!place.path("out").exists() && !place.path(method).exists());
    }
}

#[test]
fn a_vocabulary_larger_than_the_embedding() {
    let place = Place::new();
    let folder = place.demo_folder("m");
    change_config(&folder, "vocab_size", json!(2048));
    place.run(&compress("m")).refused(&["model.embed_tokens.weight", "1024", "2048"]);
    change_config(&folder, "vocab_size", json!(512));
    change_weights(&folder, |tensors| {
        let (_, shape, data) = tensors.get_mut("model.embed_tokens.weight").expect("the embedding");
        shape[0] = 512;
        data.truncate(512 * 128 * 2);
    });
    place.run(&compress("m")).refused(&["token id", "512 rows"]);
    place.run("eval m").refused(&["token id", "512 rows"]);
    nothing_left(&place);
}

#[test]
fn weights_of_another_shape_are_noticed_before_any_work() {
    let place = Place::new();
    let folder = place.demo_folder("m");
    change_weights(&folder, |tensors| {
        let (_, shape, _) = tensors.get_mut("model.layers.3.mlp.down_proj.weight").expect("the last linear");
        shape.reverse();
    });
    let said =
        place.run(&compress("m").replace("-q", "")).refused(&["model.layers.3.mlp.down_proj.weight", "[352, 128]"]);
    assert!(!said.stderr.contains("compressing"), "{}", said.stderr);
    change_weights(&folder, |tensors| drop(tensors.remove("model.layers.3.mlp.down_proj.weight")));
    place.run(&compress("m")).refused(&["model.layers.3.mlp.down_proj.weight", "is missing"]);
    nothing_left(&place);
}

#[test]
fn texts_with_nothing_or_too_little_in_them() {
    let place = Place::new();
    for (name, text) in [("empty.txt", ""), ("blank.txt", " \n\n \n"), ("empty.jsonl", "\n"), ("bom.txt", "\u{feff}")] {
        place.write(name, text);
        place.run(&format!("{} --calib {name}", compress("demo"))).refused(&[name]);
        place.run(&format!("eval demo --ppl {name}")).refused(&[name]);
    }
    place.write("short.txt", "Only a few words.");
    place.run(&format!("{} --calib short.txt", compress("demo"))).refused(&["short.txt", "window of 64", "--window"]);
    place.run(&format!("{} --ppl short.txt", compress("demo"))).refused(&["short.txt", "window of 64"]);
    place.run("eval demo --ppl short.txt").refused(&["short.txt", "window of 512"]);
    place.run("eval demo --ppl -").refused(&["stdin", "empty"]);
    place.run(&format!("{} --calib nofile.txt", compress("demo"))).refused(&["nofile.txt"]);
    place.run(&format!("{} --ppl nocorpus", compress("demo"))).refused(&["nocorpus", "sample, wikitext2, ptb, c4"]);
    nothing_left(&place);
}

#[test]
fn an_output_that_cannot_be_written() {
    let place = Place::new();
    place.write("file", "not a folder");
    place.run(&compress("demo").replace("-o out", "-o file/out")).refused(&["file/out", "folder"]);
    place.run(&compress("demo").replace("-o out", "-o file")).refused(&["file", "exists"]);
    place.run(&compress("demo").replace("-o out", "-o file --force")).refused(&["file", "not written by softlm"]);
    place.run(&compress("demo").replace("-o out", "-o ..")).refused(&[".."]);
    assert_eq!(place.read("file"), b"not a folder");
    if cfg!(target_os = "linux") {
        place.run(&compress("demo").replace("-o out", "-o /proc/softlm-out")).refused(&["/proc/softlm-out"]);
    }
}

/// A small disk of its own, or `None` where one may not be mounted.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(place: &Place, size: &str) -> Option<Self> {
        let path = place.path("disk");
        fs::create_dir_all(&path).unwrap();
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"]).arg(&path).output();
        if mount.is_ok_and(|output| output.status.success()) {
            return Some(Self(path));
        }
        println!("skipped: no right to mount a small disk");
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).output();
    }
}

#[test]
fn a_disk_that_is_too_small_is_noticed_first() {
    let place = Place::new();
    let Some(disk) = SmallDisk::mount(&place, "1m") else { return };
    place.run(&compress("demo").replace("-o out", "-o disk/out")).refused(&["disk/out", "bytes free"]);
    assert_eq!(fs::read_dir(&disk.0).unwrap().count(), 0, "nothing is left on it");
    // Statistics are not part of that estimate: the disk fills up while they are written.
    place.run("calibrate demo --calib-windows 3 --window 64 -o disk/stats").refused(&["disk/stats", "No space left"]);
}

#[test]
fn a_disk_that_fills_up_during_the_run() {
    let place = Place::new();
    let Some(disk) = SmallDisk::mount(&place, "6m") else { return };
    let line = "compress demo --method rom --keep 0.6 --calib-windows 8 --window 256 --ppl none -o disk/out";
    let child = place.command(line).spawn().expect("the program starts");
    place.wait_for("disk/out.softlm-work/block-00000.safetensors");
    let filler = disk.0.join("filler");
    // Writes what fits.
    let _ = fs::write(&filler, vec![1; 8 << 20]);
    finish(child).refused(&["disk/out", "No space left", "hint: free some space"]);
    assert!(!disk.0.join("out").exists(), "no folder that looks finished");
    fs::remove_file(&filler).unwrap();
    place.run(line).fine();
    place.run("verify disk/out").fine();
}

#[test]
fn a_mount_point_can_be_the_output() {
    let place = Place::new();
    let Some(disk) = SmallDisk::mount(&place, "20m") else { return };
    let names = || {
        let names = fs::read_dir(&disk.0).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect::<Vec<_>>()
    };
    let line = compress("demo").replace("-o out", "-o disk").replace("-q ", "");
    place.run(&line).fine();
    place.run("verify disk").fine();
    let first = place.read("disk/model.safetensors");
    assert!(!place.path("disk.softlm-work").exists() && names().iter().all(|name| !name.contains("softlm-work")));
    let other = line.replace("0.6", "0.5");
    place.run(&other).refused(&["disk", "already exists"]);
    // Nor is it a rename that replaces what is on it, and only what is the output's is replaced.
    place.write("disk/old-notes.txt", "mine");
    let said = place.run(&format!("{other} --force")).fine();
    assert!(
        said.stderr.contains("disk also holds what softlm did not put there") && said.stderr.contains("old-notes.txt")
    );
    place.run("verify disk").fine();
    assert!(place.read("disk/model.safetensors") != first && names().contains(&"old-notes.txt".to_string()));
}

#[test]
fn a_mount_point_that_cannot_be_written_to_is_refused_first() {
    let place = Place::new();
    let Some(_disk) = SmallDisk::mount(&place, "20m,ro") else { return };
    place.run(&compress("demo").replace("-o out", "-o disk")).refused(&["cannot write to disk", "Read-only", "hint"]);
    assert!(!place.path("disk.softlm-work").exists());
}

#[test]
fn an_interrupted_run_goes_on_inside_a_mount_point() {
    let place = Place::new();
    let Some(disk) = SmallDisk::mount(&place, "20m") else { return };
    let line = "compress demo --method rom --keep 0.6 --calib-windows 8 --window 256 --ppl none -o disk";
    let mut child = place.command(line).spawn().expect("the program starts");
    place.wait_for("disk/.softlm-work/block-00000.safetensors");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!disk.0.join("config.json").exists(), "nothing that looks finished");
    let said = place.run(line).fine();
    assert!(said.stderr.contains("continuing an interrupted run"), "{}", said.stderr);
    place.run("verify disk").fine();
}

#[test]
fn the_folder_one_stands_in_can_be_the_output() {
    let place = Place::new();
    fs::create_dir(place.path("here")).unwrap();
    let mut command = place.command(&compress("demo").replace("-o out", "-o ."));
    finish(command.current_dir(place.path("here")).spawn().expect("the program starts")).fine();
    place.run("verify here").fine();
}

/// A final norm of such weights gives finite logits that no probability can be made of, or infinite ones.
const LOUD: u16 = 0x7149; // 1e30
const TOO_LOUD: u16 = 0x7f61; // 3e38

#[test]
fn checks_do_not_pass_by_what_is_no_number() {
    let place = Place::new();
    set(&place.demo_folder("loud"), "model.norm.weight", LOUD, true);
    set(&place.demo_folder("overflowing"), "model.norm.weight", TOO_LOUD, true);
    let eval = |model: &str, rest: &str| place.run(&format!("eval {model} --window 64 --max-windows 2 {rest}"));

    // Infinite: a result all the same, with a word why.
    let said = eval("loud", "").fine();
    assert!(said.stdout.contains("infinite") && said.stdout.contains("larger than any number"), "{}", said.stdout);
    let said = eval("loud", "--against loud --json").fine();
    let json: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    for side in ["perplexity", "baseline"] {
        let entry = &json[side][0];
        assert_eq!(entry["ppl"], "Infinity", "{json}");
        assert!(entry["ppl_note"].as_str().unwrap().contains("nats per token") && entry["nll"].is_f64(), "{json}");
    }
    assert!(!said.stdout.contains("null"), "{json}");
    eval("loud", "--max-ppl 1e300").check_failed(&["--max-ppl", "infinite"]);
    eval("loud", "--against loud --max-ppl-increase 999999%").check_failed(&["--max-ppl-increase", "infinite"]);
    eval("loud", "--against loud --min-top1 1").fine();
    eval("loud", "--against demo --max-ppl-increase 999999%").check_failed(&["--max-ppl-increase"]);
    eval("demo", "--against loud --max-ppl-increase 5%").check_failed(&["--max-ppl-increase", "infinite"]);

    // Not a number: an error, or a check that failed when one was asked for.
    eval("overflowing", "").refused(&["NaN or infinite"]);
    let said = eval("overflowing", "--max-ppl 1e300").check_failed(&["--max-ppl", "not a number", "NaN or infinite"]);
    assert!(said.stdout.contains("not a number"), "{}", said.stdout);
    let all = "--against demo --max-ppl 9 --max-ppl-increase 5% --min-top1 0";
    let said = eval("overflowing", &format!("{all} --json")).check_failed(&[
        "--max-ppl 9",
        "--max-ppl-increase 5%",
        "--min-top1 0",
    ]);
    let json: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(json["perplexity"][0]["ppl"], "NaN", "{json}");
    assert!(json["perplexity"][0]["ppl_note"].is_string(), "{json}");
    // It is said which of the two it is.
    eval("overflowing", "--against demo").refused(&["the model's output is NaN or infinite"]);
    eval("demo", "--against overflowing").refused(&["the original's output is NaN or infinite"]);
    eval("demo", "--against overflowing --max-ppl-increase 5%").check_failed(&["--max-ppl-increase", "the original's"]);
}

#[test]
fn reports_of_what_is_no_number_can_be_read() {
    let place = Place::new();
    set(&place.demo_folder("loud"), "model.norm.weight", LOUD, true);
    let svd = |model: &str, rest: &str| place.run(&format!("compress {model} --method svd --keep 0.6 {FAST} {rest}"));
    svd("loud", "-o out --max-ppl 1e300").check_failed(&["--max-ppl", "infinite"]);
    let said = place.run("inspect out").fine();
    assert!(said.stdout.contains("infinite"), "{}", said.stdout);
    let card = String::from_utf8(place.read("out/README.md")).unwrap();
    assert!(card.contains("| infinite |") && card.contains("larger than any number"), "{card}");
    let report: serde_json::Value = serde_json::from_slice(&place.read("out/report.json")).unwrap();
    assert_eq!(report["evaluation"][0]["after"]["perplexity"]["ppl"], "Infinity");
    // As softlm 0.1 wrote it.
    let mut old = report.clone();
    old["evaluation"][0]["after"]["perplexity"]["ppl"] = serde_json::Value::Null;
    place.write("out/report.json", old.to_string());
    assert!(place.run("inspect out").fine().stdout.contains("not a number"));

    set(&place.demo_folder("overflowing"), "model.norm.weight", TOO_LOUD, true);
    svd("overflowing", "-o none").refused(&["evaluating the result", "NaN or infinite"]);
    svd("overflowing", "-o none --max-ppl 9").check_failed(&["--max-ppl 9", "NaN or infinite"]);
    assert!(!place.path("none").exists());
}

#[test]
fn a_calibration_that_says_little_is_warned_of() {
    let place = Place::new();
    place.write("same.txt", "the cat sat on the mat. ".repeat(800));
    let line = "compress demo --method whiten --weight unit --keep 0.6 --ppl none";
    let warnings = |said: &crate::program::Said| -> Vec<String> {
        said.stderr.lines().filter(|line| line.starts_with("warning: ")).map(String::from).collect()
    };
    let said = place.run(&format!("{line} --calib same.txt --window 64 -o out")).fine();
    let told = warnings(&said);
    for part in ["distinct tokens", "repeat others word for word", "held-out windows are also calibration windows"] {
        assert!(told.iter().any(|line| line.contains(part)), "{part}: {told:?}");
    }
    let report: serde_json::Value = serde_json::from_slice(&place.read("out/report.json")).unwrap();
    let notes: Vec<&str> = report["notes"].as_array().unwrap().iter().filter_map(|note| note.as_str()).collect();
    assert!(told.iter().all(|line| notes.contains(&&line["warning: ".len()..])), "{notes:?}");

    place.write("short.txt", String::from_utf8(place.read("same.txt")).unwrap().split_at(1200).0);
    let said = place.run(&format!("{line} --calib short.txt --window 64 --calib-windows 32 -o short")).fine();
    assert!(warnings(&said).iter().any(|line| line.contains("is short")), "{}", said.stderr);
    // 192 tokens and 352 inputs.
    let said = place.run(&format!("{line} --calib-windows 3 --window 64 -o few")).fine();
    assert!(
        warnings(&said).iter().any(|line| line.contains("3.mlp.down") && line.contains("160 directions")),
        "{}",
        said.stderr
    );
    let said = place.run("calibrate demo --calib same.txt --window 64 --calib-windows 32 -o stats").fine();
    assert!(warnings(&said).iter().any(|line| line.contains("distinct tokens")), "{}", said.stderr);
    let said = place.run(&format!("{line} -q --calib same.txt --window 64 -o quiet")).fine();
    assert!(said.stderr.is_empty(), "{}", said.stderr);

    // Nothing to say of the built-in text, nor where a method looks at none.
    let said = place.run(&format!("{line} -o plenty")).fine();
    assert!(warnings(&said).is_empty(), "{}", said.stderr);
    let said = place.run("compress demo --method svd --calib same.txt --window 64 --ppl none -o blind").fine();
    assert!(warnings(&said).is_empty(), "{}", said.stderr);
}

#[test]
fn a_gpu_that_is_not_there() {
    let place = Place::new();
    let reasons: &[&str] =
        if cfg!(feature = "cuda") { &["no CUDA found", "there is no GPU 99"] } else { &["built without CUDA"] };
    for command in ["compress demo -o out", "eval demo", "generate demo", "calibrate demo -o out"] {
        let said = place.run(&format!("{command} --device cuda:99")).refused(&[]);
        assert!(reasons.iter().any(|reason| said.stderr.contains(reason)), "{}", said.stderr);
        nothing_left(&place);
    }
    place.run("methods whiten --device cuda:99").fine();
}

#[test]
fn sizes_that_mean_nothing() {
    let place = Place::new();
    let cases = [
        ("--keep 0", "--keep 0"),
        ("--keep 1", "--keep 1"),
        ("--keep 1.2", "1.2"),
        ("--keep nan", "NaN"),
        ("--keep -1", "-1"),
        ("--keep inf", "inf"),
        ("--keep 1e-9", "smallest possible keep"),
        ("--target-params 1", "--target-params 1"),
        ("--target-params 99999999", "99999999"),
        ("--target-bytes 1KB", "1000"),
        ("--target-bytes 5GB", "5000000000"),
        ("--target-bytes 5parsec", "5parsec"),
        ("--keep 0.5 --multiple-of 0", "--multiple-of is 0"),
        ("--keep 0.5 --calib-windows 0", "--calib-windows is 0"),
        ("--keep 0.5 --last-blocks 9", "9 blocks"),
        ("--last-blocks 2 --block-keep 1.5", "1.5"),
        ("--keep 0.5 --max-shard-size 0", "--max-shard-size 0"),
        ("--keep 0.5 --threads 0", "--threads 0"),
        ("--keep 0.5 --threads 99999", "--threads 99999"),
        ("--keep 0.5 --device abacus", "abacus"),
        ("--keep 0.5 --device cuda:-1", "cuda:-1"),
        ("--keep 0.5 --window 0", "window of 0"),
        ("--keep 0.5 --window 1", "window of 1"),
        ("--keep 0.5 --window 4096", "4096 tokens is longer than the model's context of 512"),
        ("--keep 0.5 --eval-window 4096", "4096 tokens is longer than the model's context of 512"),
        ("--keep 0.5 --max-windows 0", "--max-windows is 0"),
        ("--keep 0.5 --rho nan --allocation lorap", "lorap"),
    ];
    for (flags, naming) in cases {
        place.run(&format!("-q compress demo --method rom {flags} -o out")).refused(&[naming]);
        nothing_left(&place);
    }
    for (flags, naming) in [
        ("--window 4096", "4096"),
        ("--window 0", "window of 0"),
        ("--stride 0", "stride of 0"),
        ("--window 64 --stride 65", "stride of 65"),
        ("--max-windows 0", "--max-windows is 0"),
    ] {
        place.run(&format!("eval demo {flags}")).refused(&[naming]);
    }
    place.run("calibrate demo --calib-windows 0 -o stats").refused(&["--calib-windows is 0"]);
}

#[test]
fn an_existing_output_is_replaced_only_when_asked_and_only_if_it_is_one() {
    let place = Place::new();
    fs::create_dir(place.path("out")).unwrap();
    place.write("out/precious.txt", "diary");
    place.run(&compress("demo")).refused(&["out", "already exists", "--force"]);
    place.run(&format!("{} --force", compress("demo"))).refused(&["out", "not written by softlm"]);
    assert_eq!(place.read("out/precious.txt"), b"diary");
    assert_eq!(fs::read_dir(place.path("out")).unwrap().count(), 1);
    assert!(!place.path("out.softlm-work").exists());

    fs::remove_file(place.path("out/precious.txt")).unwrap();
    place.run(&compress("demo")).fine();
    let first = place.read("out/model.safetensors");
    place.run(&compress("demo").replace("0.6", "0.5")).refused(&["already exists"]);
    assert!(place.read("out/model.safetensors") == first);
    // The same command has nothing left to do; a damaged output is none of its own.
    let said = place.run(&compress("demo").replace("-q ", "")).fine();
    assert!(said.stderr.contains("already made by the same command") && said.stdout.contains("rom"), "{}", said.stderr);
    place.write("out/tokenizer_config.json", "{ }");
    place.run(&compress("demo")).refused(&["already exists"]);
    place.write("out/old-notes.txt", "mine");
    let said = place.run(&compress("demo").replace("0.6", "0.5 --force").replace("-q ", "")).fine();
    assert!(said.stderr.contains("also holds") && said.stderr.contains("old-notes.txt"), "{}", said.stderr);
    assert!(place.read("out/model.safetensors") != first && place.read("out/old-notes.txt") == b"mine");
    assert!(!place.path("out.softlm-work").exists());

    // What the run reads must not be deleted by it.
    place.demo_folder("out/base");
    place.run(&format!("{} --force", compress("out/base"))).refused(&["out", "--force would delete it"]);
    assert!(place.path("out/base/model.safetensors").exists());
}

#[test]
fn models_that_are_not_there_or_not_readable() {
    let place = Place::new();
    place.run(&compress("./nomodel")).refused(&["./nomodel"]);
    place.run(&compress("nobody/nothing")).refused(&["nobody/nothing", "HF_HUB_OFFLINE"]);
    place.run(&compress("a/b/c/d")).refused(&["a/b/c/d"]);
    let folder = place.demo_folder("m");
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    place.run(&compress("m")).refused(&["m has no weights"]);
    place.write("m/model.gguf", "GGUF");
    place.run(&compress("m")).refused(&["model.gguf", "original"]);
    place.write("m/pytorch_model.bin", "pickle");
    place.run(&compress("m")).refused(&["pytorch_model.bin", "pickle", "was not opened"]);

    let other = place.demo_folder("other");
    change_config(&other, "model_type", json!("rwkv"));
    place.run(&compress("other")).refused(&["rwkv", "llama, gpt2"]);
    place.run("eval other").refused(&["rwkv", "llama, gpt2"]);
    change_config(&other, "model_type", json!("llama"));
    change_config(&other, "hidden_size", json!(-3));
    place.run(&compress("other")).refused(&["hidden_size", "-3"]);
    let bare = place.demo_folder("bare");
    fs::remove_file(bare.join("tokenizer.json")).unwrap();
    place.run(&compress("bare")).refused(&["bare", "tokenizer"]);
    nothing_left(&place);
}

#[test]
fn statistics_of_another_model_or_half_of_them() {
    let place = Place::new();
    place.run("calibrate demo --calib-windows 3 --window 64 -o stats").fine();
    let folder = place.demo_folder("m");
    set(&folder, "model.norm.weight", 0x3f80, false);
    let whiten = |model: &str| compress(model).replace("rom", "whiten --weight unit --stats stats");
    place.run(&whiten("m")).refused(&["stats", "demo", "m"]);
    place.run("calibrate m --calib-windows 3 --window 64 -o stats").refused(&["stats"]);
    fs::remove_file(place.path("stats/block-00002.safetensors")).unwrap();
    place.run(&whiten("demo").replace("--window 64", "--window 32")).refused(&["stats", "only some blocks"]);
    place.run("calibrate --merge stats,stats -o sum").refused(&["stats", "block 2"]);
    assert!(!place.path("sum").exists());
    place.run(&whiten("demo")).fine();
    place.write("stats/stats.json", "{");
    place.run(&whiten("demo").replace("-o out", "-o out2")).refused(&["stats/stats.json"]);
    place.run(&whiten("demo").replace("--stats stats", "--stats m").replace("-o out", "-o out2")).refused(&["m"]);
}

#[test]
fn models_with_other_vocabularies_are_not_compared() {
    let Some(stories) = data("models/stories260k") else { return };
    let place = Place::new();
    copy_folder(&stories, &place.path("stories"));
    for (model, against) in [("stories", "demo"), ("demo", "stories")] {
        place.run(&format!("eval {model} --against {against} --window 64")).refused(&["512", "1024"]);
    }
}

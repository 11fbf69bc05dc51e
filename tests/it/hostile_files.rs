//! What a model folder can hold beside its weights, and what of it travels into an output.

use crate::program::{FAST, Place};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

fn compress(model: &str) -> String {
    format!("compress {model} --method svd --keep 0.6 --ppl none {FAST} -o out")
}

#[test]
fn a_link_out_of_the_folder_is_not_copied() {
    let place = Place::new();
    let model = place.demo_folder("model");
    let secret = place.write("secret.txt", "root:x:0");
    for name in ["LICENSE", "notes.txt", "vocab.model"] {
        symlink(&secret, model.join(name)).unwrap();
        let shown = secret.canonicalize().unwrap().display().to_string();
        place.run(&compress("model")).refused(&[name, &shown, "outside the model's folder"]);
        assert!(!place.path("out").exists() && !place.path("out.softlm-work").exists());
        fs::remove_file(model.join(name)).unwrap();
    }
    // Where nothing is copied, links are what they always were.
    fs::rename(model.join("tokenizer.json"), place.path("tokenizer.json")).unwrap();
    symlink(place.path("tokenizer.json"), model.join("tokenizer.json")).unwrap();
    place.run("eval model --ppl sample --window 64 --max-windows 1").fine();
    place.run(&compress("model")).refused(&["tokenizer.json", "outside"]);
    // The same with what an export would take along.
    place.run(&compress("demo")).fine();
    symlink(&secret, place.path("out/LICENSE")).unwrap();
    place.run("export out --to dense -o dense").refused(&["LICENSE", "outside"]);
    assert!(!place.path("dense").exists());
}

#[test]
fn links_inside_the_folder_and_into_the_hubs_cache_are_files() {
    let place = Place::new();
    let model = place.demo_folder("model");
    fs::write(model.join("terms.txt"), "terms").unwrap();
    symlink("terms.txt", model.join("LICENSE")).unwrap();
    place.run(&compress("model")).fine();
    assert_eq!(place.read("out/LICENSE"), b"terms");
    assert!(!place.path("out/LICENSE").is_symlink());

    // As the hub's cache has it: snapshots/COMMIT/name -> ../../blobs/hash.
    let snapshot = place.path("models--a--b/snapshots/0123");
    fs::create_dir_all(place.path("models--a--b/blobs")).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    for entry in fs::read_dir(&model).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        fs::copy(entry.path(), place.path("models--a--b/blobs").join(&name)).unwrap();
        symlink(format!("../../blobs/{name}"), snapshot.join(&name)).unwrap();
    }
    place.run(&compress("models--a--b/snapshots/0123").replace("-o out", "-o cached")).fine();
    assert_eq!(place.read("cached/tokenizer.json"), place.read("model/tokenizer.json"));
    symlink("../../../secret.txt", snapshot.join("NOTICE")).unwrap();
    place.write("secret.txt", "x");
    place.run(&compress("models--a--b/snapshots/0123").replace("-o out", "-o again")).refused(&["NOTICE", "outside"]);
}

#[test]
fn permissions_are_kept_and_code_is_said() {
    let place = Place::new();
    let model = place.demo_folder("model");
    for (name, mode) in [("LICENSE", 0o600), ("run.sh", 0o755), ("modeling_own.py", 0o644)] {
        fs::write(model.join(name), "x").unwrap();
        fs::set_permissions(model.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    // What softlm writes itself is not taken from the model.
    fs::write(model.join("modeling_softlm.py"), "raise SystemExit").unwrap();
    fs::write(model.join("factors.json"), "{}").unwrap();
    let said = place.run(&compress("model")).fine();
    let note = said.stderr.lines().find(|line| line.contains("Python code of its own")).expect("said");
    assert!(note.ends_with("modeling_own.py"), "{note}");
    assert!(!place.read("out/modeling_softlm.py").starts_with(b"raise") && !place.path("out/factors.json").exists());
    let mode = |name: &str| fs::metadata(place.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("out/LICENSE"), mode("out/run.sh"), mode("out/modeling_own.py")), (0o600, 0o755, 0o644));
    place.run("verify out").fine();
}

#[test]
fn what_is_no_file_or_too_large_is_refused_at_once() {
    let place = Place::new();
    let pipe = |path: &Path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    for name in
        ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "generation_config.json"]
    {
        for kind in ["device", "pipe", "huge"] {
            let folder = format!("{}-{kind}", name.split('.').next().unwrap());
            let path = place.demo_folder(&folder).join(name);
            fs::remove_file(&path).unwrap();
            match kind {
                "device" => symlink("/dev/zero", &path).unwrap(),
                "pipe" => pipe(&path),
                // What is only copied is copied in a stream, however large.
                _ if name == "generation_config.json" => continue,
                _ => fs::File::create(&path).unwrap().set_len(1 << 34).unwrap(),
            }
            place.run(&compress(&folder)).refused(&[name]);
        }
    }
    assert!(!place.path("out").exists());
}

#[test]
fn side_files_cost_no_memory() {
    let place = Place::new();
    const SIZE: u64 = 300 << 20;
    let model = place.demo_folder("model");
    for name in ["large.dat", "large.txt"] {
        fs::File::create(model.join(name)).unwrap().set_len(SIZE).unwrap();
    }
    place.run(&format!("{} -q", compress("model"))).fine();
    let report: serde_json::Value = serde_json::from_slice(&place.read("out/report.json")).unwrap();
    let peaks =
        report["cost"]["stages"].as_array().unwrap().iter().filter_map(|stage| stage["peak_rss_bytes"].as_u64());
    let peak = peaks.max().expect("measured");
    assert!(peak < SIZE / 2, "{peak}");
    assert_eq!(fs::metadata(place.path("out/large.txt")).unwrap().len(), SIZE);
    // What the disk cannot hold is known before.
    fs::File::create(model.join("large.dat")).unwrap().set_len(1 << 42).unwrap();
    place.run(&compress("model").replace("-o out", "-o other")).refused(&["bytes free"]);
    assert!(!place.path("other").exists());
}

#[test]
fn nothing_of_the_users_is_lost_by_a_name() {
    let place = Place::new();
    fs::create_dir(place.path("private")).unwrap();
    place.write("private/thesis.txt", "mine");
    symlink(place.path("private"), place.path("out.softlm-work")).unwrap();
    for force in ["", " --force"] {
        place.run(&format!("{}{force}", compress("demo"))).refused(&["out.softlm-work", "a link"]);
    }
    fs::remove_file(place.path("out.softlm-work")).unwrap();
    fs::rename(place.path("private"), place.path("out.softlm-work")).unwrap();
    for force in ["", " --force"] {
        place.run(&format!("{}{force}", compress("demo"))).refused(&["out.softlm-work", "thesis.txt"]);
    }
    assert_eq!(place.read("out.softlm-work/thesis.txt"), b"mine");
    assert!(!place.path("out").exists());
}

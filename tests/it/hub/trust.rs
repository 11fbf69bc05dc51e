//! A hub or a mirror that names files elsewhere or sends other bytes, and what is in the cache.

use std::fs;
use std::path::Path;

use serde_json::json;
use softlm::hub::{HubOptions, dataset_file, model};

use super::server::{COMMIT, Fault, Hub, demo, entry, hash, logged};
use super::{assert_demo, message};

/// All that is in a folder, sorted, links included.
fn contents(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).into_iter().flatten().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                found.push(entry.path().strip_prefix(folder).unwrap().to_string_lossy().replace('\\', "/"));
            }
        }
    }
    found.sort();
    found
}

/// No file was asked for, and none was written.
fn assert_untouched(hub: &Hub) {
    assert!(!hub.state.lock().unwrap().seen.iter().any(|seen| seen.path.contains("/resolve/")));
    assert_eq!(contents(hub.cache()), [""; 0]);
}

#[test]
fn names_in_a_listing_stay_inside() {
    for (names, words) in [
        (&["../../../evil.json"][..], "outside the repository"),
        (&["/tmp/evil.json"], "outside the repository"),
        (&["1_Pooling/../../../config.json"], "outside the repository"),
        (&[""], "outside the repository"),
        (&["config.json", "config.json/x"], "both a file and a folder"),
        (&["config.json", "config.json"], "twice"),
    ] {
        let hub = Hub::with_demo();
        let items = [&["model.safetensors"], names].concat();
        let listing = items.iter().map(|name| entry(name, b"x")).collect();
        hub.always("GET", COMMIT, Fault::json(listing));
        let said = message(model("ours/demo", &hub.options()));
        assert!(said.contains(words) && said.contains("HF_ENDPOINT"), "{said}");
        assert_untouched(&hub);
    }
    // What another system takes for a path, or a terminal for a command, is left out.
    let hub = Hub::with_demo();
    for name in ["..\\evil.json", "\x1b[2Jevil.json", "a\nerror: evil.json", "a//evil.json"] {
        hub.put("ours/demo", name, b"{}");
    }
    let (options, lines) = logged(hub.options());
    assert_demo(&model("ours/demo", &options).unwrap().dir);
    assert!(!contents(hub.cache()).iter().any(|name| name.contains("evil")));
    let lines = lines.lock().unwrap();
    assert!(lines.iter().any(|line| line.contains("4 with unusable names")), "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains(char::is_control)), "{lines:?}");
}

#[test]
fn names_in_an_index_stay_inside() {
    for name in ["../../../../evil.safetensors", "/etc/hostname", "a\\b", "", "x/../../y", "\x1b[2J"] {
        let hub = Hub::with_demo();
        hub.state.lock().unwrap().files.get_mut("ours/demo").unwrap().remove("model.safetensors");
        let index = json!({"weight_map": {"a": "model-1.safetensors", "b": name}});
        hub.put("ours/demo", "model.safetensors.index.json", index.to_string().as_bytes());
        let error = model("ours/demo", &hub.options()).unwrap_err();
        let said = format!("{error:#}");
        assert!(said.contains("is damaged, or no index") && !said.contains('\x1b'), "{said}");
        assert_eq!(hub.count("GET", ".safetensors"), 0);
        // Nor does such an index in the cache lead anywhere.
        let refs = hub.demo_cache().join("refs");
        fs::create_dir_all(&refs).unwrap();
        fs::write(refs.join("main"), COMMIT).unwrap();
        assert!(
            message(model("ours/demo", &HubOptions { offline: true, ..hub.options() })).contains("not in the cache")
        );
    }
}

#[test]
fn a_commit_is_forty_hex_digits() {
    for sha in ["../../../../../../../../../../../../evilx", "main", "", "0123456789abcdef0123456789abcdef0123456", "/"]
    {
        let hub = Hub::with_demo();
        hub.always("GET", "/revision/main", Fault::json(json!({"sha": sha})));
        assert!(message(model("ours/demo", &hub.options())).contains("40 hexadecimal digits"), "{sha}");
        assert_untouched(&hub);
    }
    let hub = Hub::with_demo();
    hub.always("GET", "/revision/main", Fault::json(json!({"sha": COMMIT.to_uppercase()})));
    assert_eq!(model("ours/demo", &hub.options()).unwrap().revision.as_deref(), Some(COMMIT));
    let pinned = HubOptions { revision: Some(COMMIT.to_uppercase()), offline: true, ..hub.options() };
    assert_eq!(model("ours/demo", &pinned).unwrap().revision.as_deref(), Some(COMMIT));

    let hub = Hub::with_demo();
    hub.always("GET", COMMIT, Fault::json(json!({"sha": COMMIT.replace('0', "1")})));
    let pinned = HubOptions { revision: Some(COMMIT.into()), ..hub.options() };
    assert!(message(model("ours/demo", &pinned)).contains("another commit"));
    assert_untouched(&hub);
}

#[test]
fn what_the_user_names_stays_inside_too() {
    let hub = Hub::with_demo();
    for offline in [false, true] {
        for revision in ["../../x", "/etc/hostname", "", "a\\b", "a/../b", ".", "x\n"] {
            let options = HubOptions { revision: Some(revision.into()), offline, ..hub.options() };
            assert!(message(model("ours/demo", &options)).contains("no revision"), "{revision:?}");
            assert!(message(dataset_file("ours/set", "x", revision, &options)).contains("no revision"), "{revision:?}");
        }
        let options = HubOptions { offline, ..hub.options() };
        for (id, path) in [("ours/set", "../x"), ("ours/set", "/x"), ("../ours", "x"), ("ours/set", "")] {
            assert!(message(dataset_file(id, path, "main", &options)).contains("no file of a data set"));
        }
    }
    assert_eq!(hub.requests(), 0);
}

#[test]
fn data_sets_are_not_trusted_either() {
    let hub = Hub::start();
    hub.put("datasets/ours/set", "x.parquet", b"rows");
    hub.fault("POST", "/paths-info/0123456789abcdef0123456789abcdef01234567", Fault::json(json!([entry("../x", b"")])));
    assert!(message(dataset_file("ours/set", "x.parquet", "main", &hub.options())).contains("outside"));
    hub.fault("POST", COMMIT, Fault::json(json!([entry("y.parquet", b"")])));
    assert!(message(dataset_file("ours/set", "x.parquet", "main", &hub.options())).contains("has no file x.parquet"));
    hub.fault("GET", "/revision/main", Fault::json(json!({"sha": "../x"})));
    assert!(message(dataset_file("ours/set", "x.parquet", "main", &hub.options())).contains("40 hexadecimal"));
    assert_untouched(&hub);
    hub.fault("GET", "/x.parquet", Fault::Flip);
    let file = dataset_file("ours/set", "x.parquet", "main", &hub.options()).unwrap();
    assert_eq!(fs::read(file.path).unwrap(), b"rows");
}

#[test]
fn blobs_are_named_by_their_hashes_as_in_python() {
    let hub = Hub::with_demo();
    hub.put("ours/demo", "1_Pooling/config.json", b"{}");
    // The server's ETags are paths that lead out.
    let first = model("ours/demo", &hub.options()).unwrap();
    let mut files: Vec<_> = demo().into();
    files.push(("1_Pooling/config.json", b"{}"));
    let mut expected: Vec<String> = vec!["refs/main".into()];
    for (path, content) in &files {
        let blob = hash(path, content);
        expected.extend([format!("blobs/{blob}"), format!("snapshots/{COMMIT}/{path}")]);
        if cfg!(unix) {
            let up = if path.contains('/') { "../../../" } else { "../../" };
            let link = fs::read_link(first.dir.join(path)).unwrap();
            assert_eq!(link.to_str().unwrap(), format!("{up}blobs/{blob}"));
        }
    }
    expected.sort();
    assert_eq!(contents(&hub.demo_cache()), expected);
    assert_eq!(fs::read_to_string(hub.demo_cache().join("refs/main")).unwrap(), COMMIT);
    let locks = contents(&hub.cache().join(".locks/models--ours--demo"));
    assert_eq!(locks.len(), files.len(), "{locks:?}");

    // And what Python's library has put there is used as it is.
    let other = Hub::with_demo();
    copy(&hub.demo_cache(), &other.demo_cache());
    assert_demo(&model("ours/demo", &other.options()).unwrap().dir);
    assert!(!other.state.lock().unwrap().seen.iter().any(|seen| seen.path.contains("/resolve/")));
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().unwrap().is_dir() {
            copy(&source, &target);
        } else {
            #[cfg(unix)]
            if let Ok(link) = fs::read_link(&source) {
                std::os::unix::fs::symlink(link, target).unwrap();
                continue;
            }
            fs::copy(source, target).unwrap();
        }
    }
}

#[test]
fn wrong_bytes_of_the_right_length_are_not_kept() {
    // One file in Git LFS, one that is not.
    for path in ["model.safetensors", "config.json"] {
        let asked = format!("/{path}");
        let hub = Hub::with_demo();
        hub.fault("GET", &asked, Fault::Flip);
        let (options, lines) = logged(hub.options());
        assert_demo(&model("ours/demo", &options).unwrap().dir);
        let lines = lines.lock().unwrap();
        assert!(lines.iter().any(|line| line.contains("other bytes") && line.contains(path)), "{lines:?}");
        assert_eq!(hub.count("GET", &asked), 2);

        let hub = Hub::with_demo();
        hub.always("GET", &asked, Fault::Flip);
        let said = message(model("ours/demo", &hub.options()));
        assert!(said.contains("damaged") && said.contains("mirror"), "{said}");
        assert_eq!(hub.count("GET", &asked), 3, "as often as asked");
        let wrong = hash(path, demo().iter().find(|(name, _)| *name == path).unwrap().1);
        let left = contents(&hub.demo_cache());
        assert!(!left.iter().any(|name| name.ends_with(&wrong) || name.ends_with(&asked)), "{left:?}");
        assert!(!hub.demo_cache().join("refs/main").exists(), "an unfinished copy has no name");
        hub.heal();
        assert_demo(&model("ours/demo", &hub.options()).unwrap().dir);
    }
    // Another length is told before a byte arrives.
    for content in [&b"short"[..], &[b' '; 100_000]] {
        let hub = Hub::with_demo();
        hub.fault("GET", "/config.json", Fault::Reply(200, vec![], content.to_vec()));
        assert_demo(&model("ours/demo", &hub.options()).unwrap().dir);
    }
}

#[test]
fn damage_in_the_cache_is_found_and_mended() {
    let hub = Hub::with_demo();
    let large = vec![7; 17 << 20];
    hub.put("ours/demo", "model.safetensors", &large);
    let dir = model("ours/demo", &hub.options()).unwrap().dir;
    let blob = |path: &str| dir.join(path).canonicalize().unwrap();
    fs::write(blob("tokenizer.json"), "x").unwrap();
    let mut wrong = fs::read(blob("config.json")).unwrap();
    wrong[1] ^= 1;
    fs::write(blob("config.json"), wrong).unwrap();
    let (options, lines) = logged(hub.options());
    model("ours/demo", &options).unwrap();
    for (path, content) in demo().into_iter().filter(|(path, _)| *path != "model.safetensors") {
        assert!(fs::read(dir.join(path)).unwrap() == content, "{path}");
    }
    let said = lines.lock().unwrap().iter().filter(|line| line.contains("in the cache is not the file")).count();
    assert_eq!((said, hub.count("GET", "/model.safetensors")), (2, 1));

    // The length of a large one is looked at, and its name is trusted; one of another name is not.
    fs::File::options().write(true).open(blob("model.safetensors")).unwrap().set_len(1 << 20).unwrap();
    model("ours/demo", &hub.options()).unwrap();
    assert!(fs::read(dir.join("model.safetensors")).unwrap() == large);
    assert_eq!(hub.count("GET", "/model.safetensors"), 2);
    let other = dir.join("../../blobs/0123456789abcdef");
    let mut wrong = large.clone();
    wrong[0] = 0;
    fs::write(&other, &wrong).unwrap();
    #[cfg(unix)]
    {
        fs::remove_file(blob("model.safetensors")).unwrap();
        fs::remove_file(dir.join("model.safetensors")).unwrap();
        std::os::unix::fs::symlink("../../blobs/0123456789abcdef", dir.join("model.safetensors")).unwrap();
        model("ours/demo", &hub.options()).unwrap();
        assert!(fs::read(dir.join("model.safetensors")).unwrap() == large);
    }
}

#[test]
fn copies_instead_of_links_count() {
    let hub = Hub::with_demo();
    let dir = model("ours/demo", &hub.options()).unwrap().dir;
    for (path, content) in demo() {
        fs::remove_file(dir.join(path)).unwrap();
        fs::write(dir.join(path), content).unwrap();
    }
    fs::remove_dir_all(hub.demo_cache().join("blobs")).unwrap();
    assert_demo(&model("ours/demo", &hub.options()).unwrap().dir);
    assert_eq!(hub.count("GET", "/model.safetensors"), 1);
    fs::write(dir.join("config.json"), "{}").unwrap();
    assert_demo(&model("ours/demo", &hub.options()).unwrap().dir);
    assert_eq!((hub.count("GET", "/model.safetensors"), hub.count("GET", "/config.json")), (1, 2));
}

#[cfg(unix)]
#[test]
fn links_in_the_cache_harm_nothing_outside() {
    let hub = Hub::with_demo();
    let dir = model("ours/demo", &hub.options()).unwrap().dir;
    let outside = tempfile::tempdir().unwrap();
    let precious = outside.path().join("thesis.txt");
    fs::write(&precious, "years").unwrap();
    fs::remove_file(dir.join("config.json")).unwrap();
    std::os::unix::fs::symlink(&precious, dir.join("config.json")).unwrap();
    let content = demo()[0].1;
    let blob = hub.demo_cache().join("blobs").join(hash("config.json", content));
    fs::remove_file(&blob).unwrap();
    std::os::unix::fs::symlink(&precious, blob.with_extension("incomplete")).unwrap();
    assert_demo(&model("ours/demo", &hub.options()).unwrap().dir);
    assert_eq!(fs::read_to_string(&precious).unwrap(), "years");
}

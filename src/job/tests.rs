//! What an output can be: new, an empty folder, one that no rename replaces; and what a death in between leaves.

use super::output::COMPLETE;
use super::publish::{Moves, Rename};
use super::*;
use crate::checkpoint::{Dtype, NamedTensor, write_sealed};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;

/// A fingerprint.
const THE_SAME: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Publishes by another rename, where nothing can be exchanged.
fn publish_by(job: Job, rename: Rename) -> Result<Kept> {
    job.publish_by(&Moves { rename, exchange: &|_, _| Err(io::ErrorKind::InvalidInput.into()) })
}

/// Opens the job of `out` and assembles a small output.
fn assembled(out: &Path, force: bool) -> Job {
    let job = Job::open(out, THE_SAME, force).expect("a work folder");
    let dir = job.assembly().expect("a folder");
    for (name, content) in [("model.safetensors", "new"), ("config.json", r#"{"softlm": {}}"#), ("a.json", "new")] {
        fs::write(dir.join(name), content).unwrap();
    }
    fs::create_dir(dir.join("1_Pooling")).unwrap();
    fs::write(dir.join("1_Pooling/config.json"), "new").unwrap();
    job
}

/// Finished work.
fn write_work(dir: &Path) {
    let tensor = NamedTensor::new("a", Dtype::U8, [1], vec![0]);
    write_sealed(&dir.join("block-00000.safetensors"), &[tensor], &BTreeMap::new()).unwrap();
}

/// Everything in a folder, sorted.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[track_caller]
fn is_published(out: &Path) {
    assert_eq!(names(out), ["1_Pooling", "a.json", "config.json", "model.safetensors"]);
    for file in ["model.safetensors", "a.json", "1_Pooling/config.json"] {
        assert_eq!(fs::read_to_string(out.join(file)).unwrap(), "new", "{file}");
    }
    assert!(!out.with_file_name("out.softlm-work").exists());
}

/// A rename that the system refuses to replace `whole` by, and that knows no other file system if it `crosses`.
fn refusing(whole: &Path, kind: io::ErrorKind) -> impl Fn(&Path, &Path) -> io::Result<()> {
    move |from, to| if from == whole || to == whole { Err(kind.into()) } else { fs::rename(from, to) }
}

#[test]
fn a_new_output_appears_at_once() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("out");
    let job = assembled(&out, false);
    assert!(!out.exists() && place.path().join("out.softlm-work").exists());
    job.publish().unwrap();
    is_published(&out);
}

#[test]
fn an_empty_folder_is_filled_and_stays_the_same_folder() {
    use std::os::unix::fs::MetadataExt;
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("out");
    // What a fresh file system has does not count.
    fs::create_dir_all(out.join("lost+found")).unwrap();
    let inode = fs::metadata(&out).unwrap().ino();
    let job = assembled(&out, false);
    assert_eq!(names(&out), [".softlm-work", "lost+found"]);
    job.publish().unwrap();
    assert_eq!(fs::metadata(&out).unwrap().ino(), inode);
    fs::remove_dir(out.join("lost+found")).unwrap();
    is_published(&out);
}

#[test]
fn a_link_to_an_empty_folder_stays_a_link() {
    let place = tempfile::tempdir().unwrap();
    let (out, link) = (place.path().join("out"), place.path().join("link"));
    fs::create_dir(&out).unwrap();
    std::os::unix::fs::symlink(&out, &link).unwrap();
    assembled(&link, false).publish().unwrap();
    assert!(link.is_symlink());
    is_published(&out);
    assert_eq!(names(place.path()), ["link", "out"]);
}

#[test]
fn an_output_that_no_rename_replaces_is_filled() {
    for kind in [io::ErrorKind::ResourceBusy, io::ErrorKind::CrossesDevices, io::ErrorKind::PermissionDenied] {
        let place = tempfile::tempdir().unwrap();
        let out = place.path().join("out");
        publish_by(assembled(&out, false), &refusing(&out, kind)).unwrap();
        is_published(&out);
        // The same where one is replaced.
        fs::write(out.join("model-00001-of-00002.safetensors"), "old").unwrap();
        fs::write(out.join("model.safetensors"), "old").unwrap();
        publish_by(assembled(&out, true), &refusing(&out, kind)).unwrap();
        is_published(&out);
    }
    // An error that says nothing of the kind is one, and costs no work.
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("out");
    let job = assembled(&out, false);
    assert!(publish_by(job, &refusing(&out, io::ErrorKind::StorageFull)).is_err());
    assert!(!out.exists() && place.path().join("out.softlm-work/out/config.json").exists());
}

#[test]
fn another_file_system_is_copied_to() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("out");
    publish_by(assembled(&out, false), &|_, _| Err(io::ErrorKind::CrossesDevices.into())).unwrap();
    is_published(&out);
}

/// Dies after so many renames.
fn dying(after: usize, inner: Rename) -> impl Fn(&Path, &Path) -> io::Result<()> {
    let left = Cell::new(after);
    move |from, to| {
        if left.get() == 0 {
            return Err(io::Error::other("died"));
        }
        inner(from, to)?;
        left.set(left.get() - 1);
        Ok(())
    }
}

#[test]
fn a_death_in_between_leaves_no_model_and_no_work_undone() {
    for (inside, replaces) in [(true, false), (false, false), (false, true)] {
        // Beside its work, an output is filled only after the first rename was refused.
        for moves in usize::from(!inside)..4 {
            let place = tempfile::tempdir().unwrap();
            let out = place.path().join("out");
            if replaces {
                assembled(&out, false).publish().unwrap();
                fs::write(out.join("factors.json"), "old").unwrap();
            } else if inside {
                fs::create_dir(&out).unwrap();
            }
            let busy = refusing(&out, io::ErrorKind::ResourceBusy);
            let job = assembled(&out, replaces);
            let work = job.dir.clone();
            write_work(&work);
            publish_by(job, &dying(moves, &busy)).unwrap_err();
            let case = format!("inside {inside}, replaces {replaces}, {moves} moves");
            assert!(!out.join("config.json").exists(), "{case}");
            assert!(work.join("block-00000.safetensors").exists(), "{case}");

            // What somebody else puts there meanwhile is not touched.
            fs::write(out.join("diary.txt"), "mine").unwrap();
            let refused = Job::open(&out, THE_SAME, false).err().expect("refused");
            assert!(refused.to_string().contains("already exists"), "{case}: {refused:#}");
            fs::remove_file(out.join("diary.txt")).unwrap();

            let job = assembled(&out, replaces);
            assert!(job.resumed(), "{case}");
            assert!(names(&out).iter().all(|name| name == WORK), "{case}: {:?}", names(&out));
            publish_by(job, &busy).unwrap();
            is_published(&out);
        }
    }
}

#[test]
fn work_goes_on_where_it_began() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("out");
    let job = assembled(&out, false);
    let dir = job.dir.clone();
    drop(job);
    // Made after the first run began: the work beside it is not forgotten.
    fs::create_dir(&out).unwrap();
    let job = assembled(&out, false);
    assert!(job.resumed() && job.dir == dir);
    job.publish().unwrap();
    is_published(&out);
}

#[test]
fn a_run_that_did_nothing_leaves_an_empty_folder_empty() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("out");
    fs::create_dir(&out).unwrap();
    drop(Job::open(&out, THE_SAME, false).unwrap());
    assert_eq!(names(&out), Vec::<String>::new());
}

#[test]
fn an_export_is_known_by_its_weights_once_it_is_complete() {
    for complete in COMPLETE {
        let place = tempfile::tempdir().unwrap();
        let marked = BTreeMap::from([(EXPORT_MARK.to_string(), "dense".to_string())]);
        let tensor = NamedTensor::new("a", Dtype::U8, [1], vec![0]);
        for (file, marks, expected) in [
            ("model.safetensors", &marked, true),
            ("model-00001-of-00002.safetensors", &marked, true),
            ("model.safetensors", &BTreeMap::new(), false),
        ] {
            let folder = place.path().join(format!("{file}-{expected}"));
            fs::create_dir(&folder).unwrap();
            crate::checkpoint::write_tensors(&folder.join(file), std::slice::from_ref(&tensor), marks).unwrap();
            assert!(!is_output(&folder), "{file} alone is a part of something");
            fs::write(folder.join(complete), "{}").unwrap();
            assert_eq!(is_output(&folder), expected, "{file} {complete}");
        }
    }
}

#[test]
fn what_is_not_ours_is_neither_removed_nor_followed() {
    use std::os::unix::fs::symlink;
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let out = at("out");
    let work = at("out.softlm-work");
    fs::create_dir(at("private")).unwrap();
    fs::write(at("private/thesis.txt"), "mine").unwrap();
    fs::write(at("victim"), "mine").unwrap();
    type Lay<'a> = &'a dyn Fn();
    let inside = |lay: Lay| {
        fs::create_dir(&work).unwrap();
        lay();
    };
    let stamped = |name: &str| {
        fs::write(work.join("fingerprint"), THE_SAME).unwrap();
        symlink(at("victim"), work.join(name)).unwrap();
    };
    let cases: [(&str, Lay); 9] = [
        ("a link", &|| symlink(at("private"), &work).unwrap()),
        ("a link", &|| symlink(at("nowhere"), &work).unwrap()),
        ("not a folder", &|| fs::write(&work, "mine").unwrap()),
        ("thesis.txt", &|| inside(&|| fs::write(work.join("thesis.txt"), "mine").unwrap())),
        // Without a fingerprint no run has come so far.
        ("block-00000.safetensors", &|| inside(&|| write_work(&work))),
        ("lock", &|| inside(&|| symlink(at("victim"), work.join("lock")).unwrap())),
        ("fingerprint", &|| inside(&|| symlink(at("victim"), work.join("fingerprint")).unwrap())),
        ("fingerprint.tmp", &|| inside(&|| symlink(at("victim"), work.join("fingerprint.tmp")).unwrap())),
        ("out", &|| inside(&|| stamped("out"))),
    ];
    for (naming, lay) in cases {
        lay();
        let before = tree(place.path());
        for force in [false, true] {
            let refused = Job::open(&out, THE_SAME, force).err().expect(naming).to_string();
            assert!(refused.contains("out.softlm-work") && refused.contains(naming), "{naming}: {refused}");
            assert!(tree(place.path()) == before, "{naming}");
        }
        let gone =
            if work.symlink_metadata().unwrap().is_dir() { fs::remove_dir_all(&work) } else { fs::remove_file(&work) };
        gone.unwrap();
    }
    // What a run leaves that dies at once is no obstacle.
    inside(&|| {
        fs::write(work.join("lock"), "").unwrap();
        fs::write(work.join("fingerprint.tmp"), "0123").unwrap();
    });
    assembled(&out, false).publish().unwrap();
    is_published(&out);
}

/// Every file below a folder with its content, and every link with what it names.
fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_symlink() {
            all.insert(path.clone(), fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes());
        } else if path.is_dir() {
            all.insert(path.clone(), Vec::new());
            all.extend(tree(&path));
        } else {
            all.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    all
}

#[test]
fn a_lock_that_is_another_file_too_keeps_its_content() {
    let place = tempfile::tempdir().unwrap();
    let (out, work) = (place.path().join("out"), place.path().join("out.softlm-work"));
    fs::create_dir(&work).unwrap();
    fs::write(place.path().join("thesis.txt"), "mine").unwrap();
    fs::hard_link(place.path().join("thesis.txt"), work.join("lock")).unwrap();
    assembled(&out, false).publish().unwrap();
    assert_eq!(fs::read(place.path().join("thesis.txt")).unwrap(), b"mine");
}

#[test]
fn beside_an_output_that_is_replaced_everything_else_stays() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("out");
    // Whether it is replaced at once or by parts.
    for kind in [None, Some(io::ErrorKind::ResourceBusy)] {
        assembled(&out, false).publish().unwrap();
        fs::write(out.join("old.json"), "mine").unwrap();
        fs::write(out.join("1_Pooling/old.txt"), "mine").unwrap();
        fs::create_dir_all(out.join(".git/objects")).unwrap();
        fs::write(out.join(".git/objects/config.json"), "mine").unwrap();
        fs::write(out.join("model.safetensors"), "old").unwrap();
        let job = assembled(&out, true);
        let Kept(kept) = match kind {
            None => job.publish().unwrap(),
            Some(kind) => publish_by(job, &refusing(&out, kind)).unwrap(),
        };
        assert_eq!(kept, [".git/", "1_Pooling/old.txt", "old.json"]);
        for name in [".git/objects/config.json", "1_Pooling/old.txt", "old.json"] {
            assert_eq!(fs::read(out.join(name)).unwrap(), b"mine", "{name}");
            fs::remove_file(out.join(name)).unwrap();
        }
        fs::remove_dir_all(out.join(".git")).unwrap();
        is_published(&out);
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn an_output_that_cannot_be_replaced_is_back_in_its_place() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("out");
    assembled(&out, false).publish().unwrap();
    let job = assembled(&out, true);
    let new = job.assembled();
    let full = |from: &Path, to: &Path| {
        if from == new { Err(io::ErrorKind::StorageFull.into()) } else { fs::rename(from, to) }
    };
    assert!(publish_by(job, &full).is_err());
    assert_eq!(fs::read_to_string(out.join("a.json")).unwrap(), "new");
    assert!(place.path().join("out.softlm-work/out/config.json").exists());
}

#[test]
fn what_appears_in_the_outputs_place_meanwhile_stays() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("out");
    let job = assembled(&out, false);
    fs::create_dir(&out).unwrap();
    fs::write(out.join("config.json"), "mine").unwrap();
    assert!(job.publish().unwrap_err().to_string().contains("was not there"));
    assert_eq!(
        (names(&out), fs::read_to_string(out.join("config.json")).unwrap()),
        (vec!["config.json".into()], "mine".into())
    );
}

#[test]
fn damaged_work_is_made_again_and_a_damaged_list_removes_nothing() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("out");
    let job = assembled(&out, false);
    let work = job.dir().to_path_buf();
    write_work(&work);
    drop(job);
    let mut bytes = fs::read(work.join("block-00000.safetensors")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(work.join("block-00000.safetensors"), bytes).unwrap();
    let job = assembled(&out, false);
    assert_eq!(job.damaged(), ["block-00000.safetensors"]);
    assert!(!work.join("block-00000.safetensors").exists());
    drop(job);

    fs::create_dir(&out).unwrap();
    fs::write(out.join("thesis.txt"), "mine").unwrap();
    fs::write(work.join("moving"), r#"{"own": ["thesis.txt"], "others": []}"#).unwrap();
    let refused = Job::open(&out, THE_SAME, false).err().unwrap().to_string();
    assert!(refused.contains("moving is damaged"), "{refused}");
    assert!(out.join("thesis.txt").exists());
}

#[test]
fn what_a_finished_run_left_when_it_died_is_cleaned_up() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("out");
    let work = place.path().join("out.softlm-work");
    let stages: [&[&str]; 4] =
        [&[], &["lock"], &["lock", "fingerprint"], &["lock", "fingerprint", "block-00001.safetensors"]];
    for left in stages {
        assembled(&out, false).publish().unwrap();
        fs::create_dir(&work).unwrap();
        left.iter().for_each(|name| fs::write(work.join(name), if *name == "lock" { "" } else { THE_SAME }).unwrap());
        Job::clean_up(&out, THE_SAME).unwrap();
        is_published(&out);
        fs::remove_dir_all(&out).unwrap();
    }
    // Another's work is left alone.
    assembled(&out, false).publish().unwrap();
    fs::create_dir(&work).unwrap();
    fs::write(work.join("fingerprint"), THE_SAME.replace('0', "f")).unwrap();
    Job::clean_up(&out, THE_SAME).unwrap();
    assert!(work.join("fingerprint").exists());
}

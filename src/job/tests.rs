//! What an output can be: new, an empty folder, one that no rename replaces; and what a death in between leaves.

use super::publish::Rename;
use super::*;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;

/// Opens the job of `out` and assembles a small output.
fn assembled(out: &Path, force: bool) -> Job {
    let job = Job::open(out, "the same", force).expect("a work folder");
    let dir = job.assembly().expect("a folder");
    for (name, content) in [("model.safetensors", "new"), ("config.json", r#"{"softlm": {}}"#), ("a.json", "new")] {
        fs::write(dir.join(name), content).unwrap();
    }
    fs::create_dir(dir.join("1_Pooling")).unwrap();
    fs::write(dir.join("1_Pooling/config.json"), "new").unwrap();
    job
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
        assembled(&out, false).publish_by(&refusing(&out, kind)).unwrap();
        is_published(&out);
        // The same where one is replaced.
        fs::write(out.join("old-notes.txt"), "of the first output").unwrap();
        fs::write(out.join("model.safetensors"), "old").unwrap();
        assembled(&out, true).publish_by(&refusing(&out, kind)).unwrap();
        is_published(&out);
    }
    // An error that says nothing of the kind is one, and costs no work.
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("out");
    let job = assembled(&out, false);
    assert!(job.publish_by(&refusing(&out, io::ErrorKind::StorageFull)).is_err());
    assert!(!out.exists() && place.path().join("out.softlm-work/out/config.json").exists());
}

#[test]
fn another_file_system_is_copied_to() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("out");
    assembled(&out, false).publish_by(&|_, _| Err(io::ErrorKind::CrossesDevices.into())).unwrap();
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
                fs::write(out.join("old.json"), "old").unwrap();
            } else if inside {
                fs::create_dir(&out).unwrap();
            }
            let busy = refusing(&out, io::ErrorKind::ResourceBusy);
            let job = assembled(&out, replaces);
            let work = job.dir.clone();
            fs::write(work.join("block-00000.safetensors"), "work").unwrap();
            job.publish_by(&dying(moves, &busy)).unwrap_err();
            let case = format!("inside {inside}, replaces {replaces}, {moves} moves");
            assert!(!out.join("config.json").exists(), "{case}");
            assert!(work.join("block-00000.safetensors").exists(), "{case}");

            // What somebody else puts there meanwhile is not touched.
            fs::write(out.join("diary.txt"), "mine").unwrap();
            let refused = Job::open(&out, "the same", false).err().expect("refused");
            assert!(refused.to_string().contains("already exists"), "{case}: {refused:#}");
            fs::remove_file(out.join("diary.txt")).unwrap();

            let job = assembled(&out, replaces);
            assert!(job.resumed(), "{case}");
            assert!(names(&out).iter().all(|name| name == WORK), "{case}: {:?}", names(&out));
            job.publish_by(&busy).unwrap();
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
    drop(Job::open(&out, "f", false).unwrap());
    assert_eq!(names(&out), Vec::<String>::new());
}

#[test]
fn an_export_is_known_by_its_weights_once_it_is_complete() {
    for complete in COMPLETE {
        let place = tempfile::tempdir().unwrap();
        let marked = BTreeMap::from([(EXPORT_MARK.to_string(), "dense".to_string())]);
        let tensor = ("a".to_string(), crate::checkpoint::Dtype::U8, vec![1], vec![0]);
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

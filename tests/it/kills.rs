//! Runs killed anywhere: the same command always ends in the same bytes and leaves nothing else.
//!
//! These take long and are left out of an ordinary run; they are for Linux. All of them, with what they saw:
//!
//! ```text
//! cargo test --release --test it kills:: -- --ignored --nocapture
//! ```
//!
//! `random_kills_*` kills a command 200 times (`SOFTLM_KILLS`) with SIGKILL at moments spread evenly over an undisturbed run,
//! sometimes the runs behind it too, then gives it again. `every_call_*` kills it before each call that changes something
//! below its folder, and in the middle of each write: `kills/preload.c` counts the calls.

use crate::program::{Place, finish, quickly};
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Little text and no evaluation.
const FAST: &str = "--keep 0.6 --calib-windows 3 --window 64 --ppl none";

/// The same where a size is asked for in another way, with a little evaluation.
const SIZES: &str = "--calib-windows 3 --window 64 --eval-window 64 --max-windows 2";

const COLLECT: &str = "calibrate demo --calib-windows 3 --window 64";
/// What is merged.
const PARTS: [&str; 2] =
    ["calibrate demo --calib-windows 3 --window 64 -o a", "calibrate demo --calib-windows 3 --window 64 --seed 1 -o b"];

/// A command, and what has to be there before it.
struct Scene {
    /// Commands that are run once.
    before: &'static [&'static str],
    line: String,
    /// What is put in place of what the command makes, before each round.
    start: Start,
}

#[derive(Clone, Copy)]
enum Start {
    Nothing,
    /// The output is an empty folder.
    EmptyFolder,
    /// The output is a copy of the folder `old`.
    Old,
}

fn compress(options: &str, start: Start) -> Scene {
    let before: &[&str] = match start {
        Start::Old => &["compress demo --method svd --keep 0.8 --ppl none -o old"],
        _ => &[],
    };
    Scene { before, line: format!("compress demo {options} {FAST} -o out"), start }
}

fn scene(name: &str) -> Scene {
    match name {
        "heal" => compress("--method svd --heal 4 --heal-batch 2", Start::Nothing),
        "elastic" => Scene {
            before: &[],
            line: format!("compress demo --elastic 0.8,0.6 {SIZES} -o out"),
            start: Start::Nothing,
        },
        "search" => Scene {
            before: &[],
            line: format!("compress demo --max-ppl-increase 10% {SIZES} -o out"),
            start: Start::Nothing,
        },
        "cut" => Scene {
            before: &["compress demo --elastic 0.8,0.6 --calib-windows 3 --window 64 --ppl none -o sizes"],
            line: "cut sizes --keep 0.5 -o out".into(),
            start: Start::Nothing,
        },
        "calibrate" => Scene { before: &[], line: format!("{COLLECT} -o out"), start: Start::Nothing },
        "merge" => Scene { before: &PARTS, line: "calibrate --merge a,b -o out".into(), start: Start::Nothing },
        "export" => Scene {
            before: &["compress demo --method svd --keep 0.6 --ppl none -o small"],
            line: "export small --to dense -o out".into(),
            start: Start::Nothing,
        },
        "statistics" => compress("--method whiten --weight unit --stats stats", Start::Nothing),
        "empty folder" => compress("--method rom", Start::EmptyFolder),
        "force" => compress("--method rom --force --max-shard-size 300kB", Start::Old),
        name => {
            let method = ["auto", "whiten", "rom", "lorap", "soft", "soco"].into_iter().find(|method| *method == name);
            let method = method.expect("a method");
            compress(&quickly(method), Start::Nothing)
        }
    }
}

/// What is found in a folder: files by their content, without what depends on the clock.
#[derive(PartialEq)]
enum Found {
    Folder,
    File(Vec<u8>),
    Link(PathBuf),
}

type Tree = BTreeMap<PathBuf, Found>;

fn tree(folder: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut left = vec![folder.to_path_buf()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).expect("a folder") {
            let path = entry.expect("an entry").path();
            let kind = path.symlink_metadata().expect("an entry").file_type();
            let found = if kind.is_dir() {
                left.push(path.clone());
                Found::Folder
            } else if kind.is_symlink() {
                Found::Link(fs::read_link(&path).expect("a link"))
            } else {
                Found::File(timeless(&path, fs::read(&path).expect("a file")))
            };
            tree.insert(path.strip_prefix(folder).expect("below it").to_path_buf(), found);
        }
    }
    tree
}

/// The content of a file without how long it took to make.
fn timeless(path: &Path, content: Vec<u8>) -> Vec<u8> {
    match path.file_name().and_then(|name| name.to_str()) {
        Some("report.json") => {
            let mut report: Value = serde_json::from_slice(&content).expect("a report");
            without_times(&mut report);
            report.to_string().into_bytes()
        }
        Some("README.md") => {
            let text = String::from_utf8(content).expect("UTF-8");
            let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("- Made in ")).collect();
            lines.join("\n").into_bytes()
        }
        _ => content,
    }
}

fn without_times(json: &mut Value) {
    match json {
        Value::Object(map) => {
            map.retain(|key, _| !["cost", "seconds"].contains(&key.as_str()));
            map.values_mut().for_each(without_times);
        }
        Value::Array(list) => list.iter_mut().for_each(without_times),
        _ => {}
    }
}

/// How two folders differ, if they do.
fn difference(found: &Tree, wanted: &Tree) -> Option<String> {
    let mut all: Vec<String> = Vec::new();
    for path in found.keys().chain(wanted.keys().filter(|path| !found.contains_key(*path))) {
        match (found.get(path), wanted.get(path)) {
            (Some(a), Some(b)) if a == b => {}
            (Some(_), Some(_)) => all.push(format!("{} differs", path.display())),
            (Some(_), None) => all.push(format!("{} is left over", path.display())),
            (None, _) => all.push(format!("{} is missing", path.display())),
        }
    }
    (!all.is_empty()).then(|| all.join(", "))
}

/// A place where a scene is played again and again.
struct Stage {
    scene: Scene,
    place: Place,
    /// Names that are there whatever the command does.
    fixed: Vec<String>,
    wanted: Tree,
    seconds: f64,
}

impl Stage {
    fn new(name: &str) -> Self {
        let (scene, place) = (scene(name), Place::new());
        for line in scene.before {
            place.run(line).fine();
        }
        let names = fs::read_dir(place.path(".")).expect("a folder");
        let fixed = names.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
        let mut stage = Self { scene, place, fixed, wanted: Tree::new(), seconds: f64::INFINITY };
        for round in 0..3 {
            stage.clear();
            let started = Instant::now();
            stage.place.run(&stage.scene.line).fine();
            stage.seconds = stage.seconds.min(started.elapsed().as_secs_f64());
            let found = tree(&stage.place.path("."));
            if round > 0 {
                assert_eq!(difference(&found, &stage.wanted), None, "{name}: two undisturbed runs differ");
            }
            stage.wanted = found;
        }
        stage
    }

    /// Makes the place what it was before the command.
    fn clear(&self) {
        for entry in fs::read_dir(self.place.path(".")).expect("a folder") {
            let entry = entry.expect("an entry");
            if self.fixed.iter().any(|name| entry.file_name().to_str() == Some(name)) {
                continue;
            }
            let folder = entry.file_type().expect("an entry").is_dir();
            let removed = if folder { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
            removed.expect("removed");
        }
        match self.scene.start {
            Start::Nothing => {}
            Start::EmptyFolder => fs::create_dir(self.place.path("out")).expect("a folder"),
            Start::Old => crate::program::copy_folder(&self.place.path("old"), &self.place.path("out")),
        }
    }

    /// Gives the command again, undisturbed. What is wrong then, if anything.
    fn complete(&self) -> Option<String> {
        let said = finish(self.place.command(&self.scene.line).spawn().expect("the program starts"));
        if said.code != 0 {
            return Some(format!("status {}: {}", said.code, said.stderr.replace('\n', " | ")));
        }
        difference(&tree(&self.place.path(".")), &self.wanted)
    }
}

/// Numbers that look random and are the same every time.
struct Scattered(u64);

impl Scattered {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f64 / (1u64 << 24) as f64
    }
}

/// All that went wrong, said at the end: one kind of fault may hide another.
fn judge(name: &str, what: &str, tried: usize, faults: &[String]) {
    println!("{name}: {tried} {what}, {} faults", faults.len());
    let shown: Vec<&str> = faults.iter().take(20).map(String::as_str).collect();
    assert!(faults.is_empty(), "{name}: {} of {tried} {what} ended badly:\n{}", faults.len(), shown.join("\n"));
}

fn random_kills(name: &str) {
    let wanted: usize = std::env::var("SOFTLM_KILLS").map_or(200, |kills| kills.parse().expect("a number of kills"));
    let stage = Stage::new(name);
    let mut scattered = Scattered(name.bytes().map(u64::from).sum());
    let (mut met, mut faults) = (0, Vec::new());
    while met < wanted {
        stage.clear();
        let mut moments = Vec::new();
        // The first is always killed; each further run with half the probability of the one before.
        let mut likely = 1.0;
        while scattered.next() < likely && met < wanted {
            likely *= 0.5;
            let mut child = stage.place.command(&stage.scene.line).spawn().expect("the program starts");
            let moment = 1.02 * stage.seconds * scattered.next();
            std::thread::sleep(Duration::from_secs_f64(moment));
            child.kill().expect("killed");
            let killed = child.wait().expect("a child").signal() == Some(Signal::KILL.as_raw());
            met += usize::from(killed);
            moments.push(format!("{moment:.3} s{}", if killed { "" } else { " (it was over)" }));
        }
        if let Some(fault) = stage.complete() {
            faults.push(format!("killed at {}: {fault}", moments.join(", ")));
        }
    }
    judge(name, &format!("random kills in runs of {:.2} s", stage.seconds), met, &faults);
}

/// The library that kills, compiled once.
fn preload() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("kill-{}.so", std::process::id()));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/kills/preload.c");
        let mut cc = Command::new(std::env::var_os("CC").unwrap_or("cc".into()));
        let done = cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl").status();
        assert!(done.expect("a C compiler").success(), "the library does not compile");
        library
    })
}

fn every_call(name: &str) {
    let stage = Stage::new(name);
    let root = stage.place.path(".").canonicalize().expect("a folder");
    let log =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("calls-{}-{}", std::process::id(), name.replace(' ', "-")));
    let run = |at: usize, torn: bool, log: Option<&Path>| {
        let mut command = stage.place.command(&stage.scene.line);
        command.env("LD_PRELOAD", preload()).env("KILL_BELOW", &root).env("KILL_AT", at.to_string());
        if torn {
            command.env("KILL_TORN", "1");
        }
        if let Some(log) = log {
            command.env("KILL_LOG", log);
        }
        let output = command.output().expect("the program starts");
        let killed = output.status.signal() == Some(Signal::KILL.as_raw());
        assert!(killed || output.status.success(), "{name}, call {at}: {}", String::from_utf8_lossy(&output.stderr));
        killed
    };
    // What a whole run calls, to know what is a write. Nothing may depend on the library.
    stage.clear();
    let _ = fs::remove_file(&log);
    assert!(!run(0, false, Some(&log)));
    assert_eq!(difference(&tree(&stage.place.path(".")), &stage.wanted), None, "{name}: the library changed something");
    let calls = fs::read_to_string(&log).expect("a log");
    let calls: Vec<&str> = calls.lines().collect();
    fs::remove_file(&log).expect("removed");
    assert!(calls.len() > 10, "{name}: the library saw {} calls", calls.len());

    let (mut tried, mut faults) = (0, Vec::new());
    let mut kill = |at: usize, torn: bool| {
        stage.clear();
        let killed = run(at, torn, None);
        if let Some(fault) = stage.complete() {
            let call = calls.get(at - 1).copied().unwrap_or("behind the last");
            let how = if torn { "in the middle of" } else { "before" };
            faults.push(format!("{how} call {call}: {fault}"));
        }
        tried += usize::from(killed);
        killed
    };
    let mut at = 1;
    while kill(at, false) {
        at += 1;
    }
    for (i, _) in calls.iter().enumerate().filter(|(_, call)| call.contains("write")) {
        kill(i + 1, true);
    }
    judge(name, "kills at system calls", tried, &faults);
}

macro_rules! scenes {
    ($($random:ident, $every:ident, $name:literal;)*) => { $(
        #[test]
        #[ignore = "takes minutes"]
        fn $random() {
            random_kills($name);
        }

        #[test]
        #[ignore = "takes minutes"]
        fn $every() {
            every_call($name);
        }
    )* };
}

scenes! {
    random_kills_auto, every_call_auto, "auto";
    random_kills_whiten, every_call_whiten, "whiten";
    random_kills_rom, every_call_rom, "rom";
    random_kills_lorap, every_call_lorap, "lorap";
    random_kills_soft, every_call_soft, "soft";
    random_kills_soco, every_call_soco, "soco";
    random_kills_heal, every_call_heal, "heal";
    random_kills_elastic, every_call_elastic, "elastic";
    random_kills_search, every_call_search, "search";
    random_kills_cut, every_call_cut, "cut";
    random_kills_calibrate, every_call_calibrate, "calibrate";
    random_kills_merge, every_call_merge, "merge";
    random_kills_export, every_call_export, "export";
    random_kills_statistics, every_call_statistics, "statistics";
    random_kills_empty_folder, every_call_empty_folder, "empty folder";
    random_kills_force, every_call_force, "force";
}

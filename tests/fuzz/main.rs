//! A short fuzzing of everything that others may have made: so many inputs of each kind, the same every time.
//!
//! No input may panic, take longer than [`LONGEST`] or more memory than `targets::memory::limit` says. What fails is kept in
//! `target/tmp/fuzz/NAME`, and its path is in the message; after an abort it is what the file `current-PID` there holds.
//! `SOFTLM_FUZZ_INPUT=FILE cargo test --release --test fuzz NAME` runs one input again, `SOFTLM_FUZZ_RUNS=N` more or fewer.
//! The long runs are those of libFuzzer: see `README.md`.

mod large;
mod targets;

use std::any::Any;
use std::env;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use targets::Target;
use targets::memory::Counting;
use targets::mutate::Random;
use targets::place::Place;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How long one input may take. None takes a hundredth of it on an idle machine.
const LONGEST: Duration = Duration::from_secs(120);
/// Changes of an input that was made of a seed, at most.
const CHANGES: usize = 4;

/// Ends the program if one input takes too long.
struct Watchdog(Arc<AtomicU64>);

impl Watchdog {
    fn start(current: PathBuf) -> Self {
        let count = Arc::new(AtomicU64::new(1));
        let watched = Arc::clone(&count);
        thread::spawn(move || {
            let (mut seen, mut since) = (0, Instant::now());
            loop {
                thread::sleep(Duration::from_millis(200));
                match watched.load(Ordering::Relaxed) {
                    0 => return,
                    now if now != seen => (seen, since) = (now, Instant::now()),
                    _ if since.elapsed() > LONGEST => {
                        eprintln!("an input takes longer than {LONGEST:?}: {}", current.display());
                        std::process::abort();
                    }
                    _ => {}
                }
            }
        });
        Self(count)
    }

    fn next(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// Runs an input that is kept in `current` meanwhile; whether it was accepted.
fn check(target: &Target, input: &[u8], place: &Place, current: &Path) -> bool {
    fs::write(current, input).expect("written");
    match catch_unwind(AssertUnwindSafe(|| target.check(input, place))) {
        Ok(accepted) => accepted,
        Err(panic) => {
            let kept = current.with_file_name(format!("failed-{}", std::process::id()));
            fs::rename(current, &kept).expect("kept");
            panic!("the input {} fails: {}", kept.display(), message(&*panic));
        }
    }
}

fn message(panic: &dyn Any) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// Runs the seeds, which must be accepted, then `runs` inputs made of them.
fn fuzz(name: &str, runs: usize) {
    let target = Target::named(name);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz").join(name);
    fs::create_dir_all(&folder).expect("a folder");
    let (current, place) = (folder.join(format!("current-{}", std::process::id())), Place::new());
    if let Ok(path) = env::var("SOFTLM_FUZZ_INPUT") {
        let input = fs::read(path).expect("the input");
        let accepted = check(target, &input, &place, &current);
        return println!("{name}: {}", if accepted { "accepted" } else { "refused" });
    }
    let runs = env::var("SOFTLM_FUZZ_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(runs);
    let seeds = (target.seeds)();
    let watchdog = Watchdog::start(current.clone());
    for (i, seed) in seeds.iter().enumerate() {
        watchdog.next();
        assert!(check(target, seed, &place, &current), "seed {i} of {name} is refused: {}", current.display());
    }
    let (mut accepted, start) = (0, Instant::now());
    for run in 0..runs {
        let mut random = Random(run as u64);
        let mut input = seeds[random.below(seeds.len())].clone();
        for _ in 0..1 + random.below(CHANGES) {
            (target.mutate)(&mut input, &mut random, &seeds);
        }
        watchdog.next();
        accepted += usize::from(check(target, &input, &place, &current));
    }
    println!("{name}: {} seeds, {runs} inputs, {accepted} accepted, {:.1?}", seeds.len(), start.elapsed());
    // Inputs that are all refused at the door test nothing behind it.
    assert!(accepted * 100 >= runs, "{accepted} of {runs} were accepted");
    fs::remove_file(&current).expect("removed");
}

#[test]
fn header() {
    fuzz("header", 80_000);
}

#[test]
fn index() {
    fuzz("index", 60_000);
}

#[test]
fn config() {
    fuzz("config", 24_000);
}

#[test]
fn tokenizer() {
    fuzz("tokenizer", 24_000);
}

#[test]
fn statistics() {
    fuzz("statistics", 24_000);
}

#[test]
fn report() {
    fuzz("report", 20_000);
}

#[test]
fn text() {
    fuzz("text", 80_000);
}

#[test]
fn labels() {
    fuzz("labels", 80_000);
}

#[test]
fn sentence() {
    fuzz("sentence", 50_000);
}

//! What was fetched of a file is kept for the next request, run or program, and no byte is fetched twice without need.

use std::fs::{self, File};
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use softlm::hub::{HubOptions, Log, model};
use softlm::progress::Interrupted;

use super::server::{Fault, Hub, demo, hash, logged};
use super::{assert_demo, message};
use crate::program::{Place, finish};

/// Bytes that do not repeat.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_le_bytes()[7]
    };
    (0..length).map(|_| next()).collect()
}

fn weights() -> &'static [u8] {
    demo().iter().find(|(path, _)| *path == "model.safetensors").unwrap().1
}

/// Where what was fetched of the weights so far is.
fn partial(hub: &Hub) -> std::path::PathBuf {
    hub.demo_cache().join("blobs").join(format!("{}.incomplete", hash("model.safetensors", weights())))
}

/// The program, which loads the built-in model from the hub.
fn inspect(hub: &Hub, place: &Place) -> Child {
    let mut command = place.command("inspect ours/demo --progress plain");
    command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", &hub.endpoint).env("HF_HUB_CACHE", hub.cache());
    command.spawn().unwrap()
}

#[test]
fn cuts_cost_no_byte_twice() {
    let hub = Hub::with_demo();
    let content = noise(50_000_000);
    hub.put("ours/demo", "model.safetensors", &content);
    for _ in 0..20 {
        hub.fault("GET", "/model.safetensors", Fault::Cut(2_400_000));
    }
    let (options, lines) = logged(hub.options());
    let dir = model("ours/demo", &options).unwrap().dir;
    assert!(fs::read(dir.join("model.safetensors")).unwrap() == content);
    assert!(hub.state.lock().unwrap().faults.is_empty());
    let sent = hub.sent("/model.safetensors");
    assert!(sent < 55_000_000, "{sent} bytes for 50000000");
    assert_eq!(hub.count("GET", "/model.safetensors"), 21);
    let said = lines.lock().unwrap().iter().filter(|line| line.contains("trying again")).count();
    assert_eq!(said, 20, "a line for each");
}

#[test]
fn a_server_that_never_gets_further_is_given_up() {
    // It has no ranges, and breaks off each time.
    let hub = Hub::with_demo();
    hub.put("ours/demo", "model.safetensors", &noise(3_000_000));
    hub.fault("GET", "/model.safetensors", Fault::Cut(1_000_000));
    for _ in 0..9 {
        hub.fault("GET", "/model.safetensors", Fault::Whole);
    }
    model("ours/demo", &hub.options()).unwrap();
    assert_eq!(hub.sent("/model.safetensors"), 4_000_000, "it starts anew");

    let hub = Hub::with_demo();
    hub.always("GET", "/model.safetensors", Fault::Cut(100));
    assert!(message(model("ours/demo", &hub.options())).contains("cannot reach"));
    assert_eq!(hub.count("GET", "/model.safetensors"), 3);
    assert_eq!(fs::read(partial(&hub)).unwrap(), weights()[..300]);
}

#[test]
fn odd_answers_to_a_range_start_anew() {
    let content = weights();
    let wrong = |range: &str| Fault::Reply(206, vec![("Content-Range", range.to_owned())], content[1000..].to_vec());
    let size = content.len();
    for odd in [
        Fault::Status(416),
        Fault::Reply(206, vec![], content[1000..].to_vec()),
        wrong(&format!("bytes 0-{}/{size}", size - 1)),
        wrong(&format!("bytes 1000-{}/{size}", size)),
        wrong(&format!("bytes 1000-{}/{}", size - 1, size + 1)),
        wrong("bytes 1000"),
        Fault::Whole,
    ] {
        let hub = Hub::with_demo();
        fs::create_dir_all(partial(&hub).parent().unwrap()).unwrap();
        fs::write(partial(&hub), &content[..1000]).unwrap();
        hub.fault("GET", "/model.safetensors", odd);
        assert_demo(&model("ours/demo", &hub.options()).unwrap().dir);
        let state = hub.state.lock().unwrap();
        let ranges: Vec<_> = state.seen.iter().filter(|seen| seen.path.ends_with("/model.safetensors")).collect();
        assert_eq!(ranges[0].range.as_deref(), Some("bytes=1000-"));
        assert!(ranges.get(1).is_none_or(|again| again.range.is_none()) && ranges.len() <= 2);
    }
}

#[test]
fn what_an_earlier_run_left_is_checked() {
    let content = weights();
    let mut damaged = content[..500_000].to_vec();
    damaged[7] ^= 1;
    // What was there, and how many bytes it costs.
    for (left, cost) in [
        (content[..500_000].to_vec(), content.len() - 500_000),
        (content.to_vec(), 0),
        (damaged, 2 * content.len() - 500_000),
        (vec![0; content.len()], content.len()),
        (vec![0; content.len() + 1], content.len()),
        (vec![], content.len()),
    ] {
        let hub = Hub::with_demo();
        fs::create_dir_all(partial(&hub).parent().unwrap()).unwrap();
        fs::write(partial(&hub), left).unwrap();
        assert_demo(&model("ours/demo", &hub.options()).unwrap().dir);
        assert_eq!(hub.sent("/model.safetensors"), cost);
        assert!(!partial(&hub).exists());
    }
}

#[test]
fn a_killed_run_leaves_its_bytes_and_no_lock() {
    let hub = Hub::with_demo();
    let place = Place::new();
    let size = weights().len();
    hub.fault("GET", "/model.safetensors", Fault::StallAfter(size / 2));
    let mut child = inspect(&hub, &place);
    wait_until(|| fs::metadata(partial(&hub)).is_ok_and(|metadata| metadata.len() == size as u64 / 2));
    child.kill().unwrap();
    child.wait().unwrap();
    let said = finish(inspect(&hub, &place)).fine();
    assert!(said.stderr.contains("are there") && !said.stderr.contains("waiting"), "{}", said.stderr);
    assert_eq!(hub.sent("/model.safetensors"), size, "each byte once");
    assert_demo(&model("ours/demo", &HubOptions { offline: true, ..hub.options() }).unwrap().dir);
}

fn wait_until(done: impl Fn() -> bool) {
    let since = Instant::now();
    while !done() {
        assert!(since.elapsed() < Duration::from_secs(120), "it never happened");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn three_processes_fetch_each_file_once() {
    let hub = Hub::with_demo();
    let places = [(); 3].map(|()| Place::new());
    // Nobody gets a file before all have come.
    for (path, _) in demo() {
        hub.always("GET", path, Fault::Hold(3));
    }
    let runs: Vec<Child> = places.iter().map(|place| inspect(&hub, place)).collect();
    for run in runs {
        finish(run).fine();
    }
    for (path, _) in demo() {
        assert_eq!(hub.count("GET", &format!("/{path}")), 1, "{path}");
    }
    assert_demo(&model("ours/demo", &HubOptions { offline: true, ..hub.options() }).unwrap().dir);
}

#[test]
fn a_lock_is_waited_for_said_and_left_on_request() {
    let hub = Hub::with_demo();
    let locks = hub.cache().join(".locks/models--ours--demo");
    fs::create_dir_all(&locks).unwrap();
    let lock = || {
        let file = File::create(locks.join(format!("{}.lock", hash("model.safetensors", weights())))).unwrap();
        file.lock().unwrap();
        Mutex::new(Some(file))
    };
    let stop = Arc::new(AtomicBool::new(false));
    let (held, wish) = (lock(), stop.clone());
    let log: Log = Arc::new(move |line: &str| {
        if line.contains("waiting for another program that fetches model.safetensors") {
            assert!(held.lock().unwrap().is_some());
            wish.store(true, Ordering::SeqCst);
        }
    });
    let options = HubOptions { log: Some(log), stop: Some(stop), ..hub.options() };
    assert!(model("ours/demo", &options).unwrap_err().is::<Interrupted>());
    drop(options);

    let held = lock();
    let log: Log = Arc::new(move |line: &str| {
        if line.contains("waiting for another program") {
            // The other program is done.
            assert!(held.lock().unwrap().take().is_some(), "said once");
        }
    });
    assert_demo(&model("ours/demo", &HubOptions { log: Some(log), ..hub.options() }).unwrap().dir);
}

#[cfg(unix)]
#[test]
fn a_full_disk_is_named_and_the_bytes_are_kept() {
    let hub = Hub::with_demo();
    let place = Place::new();
    // Files may grow to 1024 blocks of 512 or 1024 bytes.
    let mut command = std::process::Command::new("sh");
    let script = "trap '' XFSZ; ulimit -f 1024; exec \"$0\" inspect ours/demo --progress plain";
    command.args(["-c", script, env!("CARGO_BIN_EXE_softlm")]).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HF_ENDPOINT", &hub.endpoint);
    command.env("HF_HUB_CACHE", hub.cache()).env("HF_HOME", place.path("home"));
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let said = finish(command.spawn().unwrap()).refused(&["no room for model.safetensors", "more bytes are needed"]);
    let kept = fs::metadata(partial(&hub)).unwrap().len();
    let missing = weights().len() as u64 - kept;
    assert!(kept > 100_000 && said.stderr.contains("HF_HUB_CACHE"), "{}", said.stderr);
    assert_eq!(hub.count("GET", "/model.safetensors"), 1, "no other attempt has more room");
    let before = hub.sent("/model.safetensors") as u64;
    assert_demo(&model("ours/demo", &hub.options()).unwrap().dir);
    assert_eq!(hub.sent("/model.safetensors") as u64, before + missing);
}

#[test]
fn a_proxy_of_the_environment_is_used() {
    let (hub, proxy) = (Hub::with_demo(), Hub::start());
    let place = Place::new();
    let run = |endpoint: &str, variables: &[(&str, &str)]| {
        let mut command = place.command("inspect ours/demo --progress plain");
        command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", endpoint);
        command.envs(variables.iter().copied()).spawn().unwrap()
    };
    let mut child = run("https://hub.invalid", &[("HTTPS_PROXY", &proxy.endpoint)]);
    wait_until(|| proxy.count("CONNECT", "hub.invalid:443") > 0);
    child.kill().unwrap();
    child.wait().unwrap();
    let before = proxy.requests();
    finish(run(&hub.endpoint, &[("ALL_PROXY", &proxy.endpoint), ("NO_PROXY", "127.0.0.0/8")])).fine();
    assert_eq!(proxy.requests(), before);
    let said = finish(run(&hub.endpoint, &[("HTTP_PROXY", "nonsense://me:hunter2@x")])).refused(&["HTTP_PROXY"]);
    assert!(!said.stderr.contains("hunter2"), "{}", said.stderr);
}

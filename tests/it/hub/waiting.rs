//! No wait is endless, none is silent, and each ends when the user wants it.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use softlm::hub::{HubOptions, Log, Timeouts, dataset_file, model};
use softlm::progress::Interrupted;

use super::server::{COMMIT, Fault, Hub, logged};
use super::{assert_demo, message};

/// Options that give up soon.
fn hasty(hub: &Hub) -> HubOptions {
    let [connect, response, idle] = [300; 3].map(Duration::from_millis);
    HubOptions { timeouts: Timeouts { connect, response, idle, notice: Duration::from_millis(10) }, ..hub.options() }
}

#[test]
fn a_stall_is_said_and_outlived() {
    for (path, fault, why) in [
        ("/revision/main", Fault::Stall, "no answer within"),
        ("/revision/main", Fault::StallAfter(10), "nothing more arrived within"),
        (COMMIT, Fault::Stall, "no answer within"),
        ("/model.safetensors", Fault::Stall, "no answer within"),
        ("/model.safetensors", Fault::StallAfter(100_000), "nothing more arrived within"),
        ("/config.json", Fault::StallAfter(1), "nothing more arrived within"),
        ("/tokenizer.json", Fault::Drip, "nothing more arrived within"),
    ] {
        let hub = Hub::with_demo();
        hub.fault("GET", path, fault);
        // Many attempts: on a busy machine what does not stall may take its time, too.
        let (options, lines) = logged(HubOptions { attempts: 50, ..hasty(&hub) });
        assert_demo(&model("ours/demo", &options).unwrap().dir);
        let lines = lines.lock().unwrap();
        let again = lines.iter().any(|line| line.contains(why) && line.contains("trying again"));
        assert!(again, "{path}: {lines:?}");
    }
    let hub = Hub::with_demo();
    hub.always("GET", "/revision/main", Fault::Stall);
    let timeouts = Timeouts { response: Duration::from_secs(1), ..hasty(&hub).timeouts };
    let (options, lines) = logged(HubOptions { timeouts, ..hasty(&hub) });
    assert!(message(model("ours/demo", &options)).contains("cannot reach"));
    assert_eq!(hub.requests(), 3);
    let lines = lines.lock().unwrap();
    let waits = lines.iter().filter(|line| line.starts_with("waiting for 127.0.0.1:")).count();
    assert!((1..=3).contains(&waits) && lines.len() == waits + 2, "a line per wait and one per retry: {lines:?}");
}

#[test]
fn a_connection_that_is_never_made_has_an_end() {
    // It answers a TLS handshake with nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("https://{}", silent.local_addr().unwrap());
    let hub = Hub::start();
    let error = model("ours/demo", &HubOptions { endpoint: Some(endpoint), attempts: 1, ..hasty(&hub) }).unwrap_err();
    assert!(format!("{error:#}").contains("no connection within 0.3 s"), "{error:#}");
}

#[test]
fn a_connection_that_cannot_be_trusted_is_refused_at_once() {
    // It speaks plain HTTP where TLS is expected.
    let plain = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("https://{}", plain.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in plain.incoming().flatten() {
            let _ =
                stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").and_then(|()| stream.read(&mut [0]).map(drop));
        }
    });
    let hub = Hub::start();
    let (options, lines) = logged(HubOptions { endpoint: Some(endpoint), ..hub.options() });
    let said = message(model("ours/demo", &options));
    assert!(said.contains("can be trusted") && said.contains("SSL_CERT_FILE"), "{said}");
    assert!(lines.lock().unwrap().is_empty());
}

#[test]
fn every_wait_ends_when_the_user_wants_it() {
    for (path, fault) in [
        ("/revision/main", Fault::Stall),
        ("/revision/main", Fault::StallAfter(3)),
        (COMMIT, Fault::Stall),
        ("/model.safetensors", Fault::Stall),
        ("/model.safetensors", Fault::StallAfter(1000)),
        ("/revision/main", Fault::Status(503)),
        ("/model.safetensors", Fault::page(429, &[("Retry-After", "100")], "")),
    ] {
        let hub = Hub::with_demo();
        hub.always("GET", path, fault);
        let stop = Arc::new(AtomicBool::new(false));
        let wish = stop.clone();
        let log: Log = Arc::new(move |line: &str| {
            if line.starts_with("waiting for") || line.contains("trying again in 100.0 s") {
                wish.store(true, Ordering::SeqCst);
            }
        });
        // Without the wish this test would take minutes or hours.
        let timeouts = Timeouts { notice: Duration::ZERO, ..Timeouts::default() };
        let backoff = Duration::from_secs(100);
        let options = HubOptions { timeouts, backoff, log: Some(log), stop: Some(stop), ..hub.options() };
        assert!(model("ours/demo", &options).unwrap_err().is::<Interrupted>(), "{path}");
    }
}

#[cfg(unix)]
#[test]
fn a_signal_ends_the_program_while_it_waits() {
    use crate::program::{Place, finish};
    use rustix::process::{Pid, Signal, kill_process};
    let hub = Hub::with_demo();
    let place = Place::new();
    hub.always("GET", "/model.safetensors", Fault::Stall);
    let mut command = place.command("inspect ours/demo --progress plain");
    command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", &hub.endpoint);
    let child = command.spawn().unwrap();
    while hub.count("GET", "/model.safetensors") == 0 {
        std::thread::sleep(Duration::from_millis(2));
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let said = finish(child);
    assert_eq!(said.code, 130, "{}", said.stderr);
    assert!(said.stderr.contains("fetching ours/demo/model.safetensors"), "{}", said.stderr);
}

#[test]
fn a_hub_that_asks_for_patience_gets_it_everywhere() {
    let limited = |after: &str| Fault::page(429, &[("Retry-After", after)], "slow down");
    let elsewhere = Hub::with_demo();
    elsewhere.fault("GET", "/elsewhere/ours/demo/tokenizer.json", limited("0"));
    let hub = Hub::with_demo();
    hub.put("datasets/ours/set", "x.parquet", b"rows");
    hub.always(
        "GET",
        "/tokenizer.json",
        Fault::redirect(&format!("{}/elsewhere/ours/demo/tokenizer.json", elsewhere.endpoint)),
    );
    for (method, path, after) in [
        ("GET", "/revision/main", "1"),
        ("GET", COMMIT, "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("GET", "/model.safetensors", "0"),
        ("POST", COMMIT, "0"),
    ] {
        hub.fault(method, path, limited(after));
    }
    let (options, lines) = logged(hub.options());
    assert_demo(&model("ours/demo", &options).unwrap().dir);
    dataset_file("ours/set", "x.parquet", "main", &options).unwrap();
    let lines = lines.lock().unwrap();
    let said = lines.iter().filter(|line| line.contains("429, too many requests, and asks for")).count();
    assert_eq!(said, 5, "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("trying again in 1.0 s")), "{lines:?}");

    // With a copy at hand, too; and if it does not end, the copy will do.
    hub.fault("GET", "/revision/main", limited("0"));
    assert_demo(&model("ours/demo", &hub.options()).unwrap().dir);
    hub.always("GET", "/revision/main", limited("0"));
    let before = hub.count("GET", "/revision/main");
    assert_demo(&model("ours/demo", &hub.options()).unwrap().dir);
    assert_eq!(hub.count("GET", "/revision/main"), before + 3);
    assert!(message(model("ours/other", &hub.options())).contains("429"));
}

#[test]
fn refusals_are_said_at_once() {
    for status in [401, 403, 404] {
        for path in ["/revision/main", COMMIT, "/model.safetensors"] {
            let hub = Hub::with_demo();
            hub.always("GET", path, Fault::Status(status));
            let lines = Arc::new(Mutex::new(Vec::new()));
            let sink = lines.clone();
            let log: Log = Arc::new(move |line: &str| sink.lock().unwrap().push(line.to_owned()));
            let said = message(model("ours/demo", &HubOptions { attempts: 5, log: Some(log), ..hub.options() }));
            assert_eq!(hub.count("GET", path), 1, "{status} {path}: {said}");
            let words = if status == 404 { "there is no model" } else { &status.to_string() };
            assert!(said.contains(words), "{said}");
            assert!(!lines.lock().unwrap().iter().any(|line| line.contains("again")));
        }
    }
}

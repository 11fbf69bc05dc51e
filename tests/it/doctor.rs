//! `doctor`, `completions` and `man`.

use crate::program::Place;
use serde_json::Value;
use std::fs;
use std::process::{Command, Stdio};

/// State and text of what was found about a subject.
fn about(said: &str, subject: &str) -> (String, String) {
    let found: Value = serde_json::from_str(said).expect("JSON");
    let findings = found["findings"].as_array().expect("findings");
    let finding = findings.iter().find(|finding| finding["subject"] == subject).expect("the subject");
    let text = |key: &str| finding[key].as_str().unwrap_or_default().to_string();
    (text("state"), format!("{} {}", text("found"), text("advice")))
}

#[test]
fn every_finding_that_is_not_well_says_what_to_do() {
    let place = Place::new();
    let page = place.run("doctor").fine().stdout;
    for subject in ["version", "processor", "threads", "memory", "GPU", "temporary files", "cache", "token", "hub"] {
        assert!(page.lines().any(|line| line.starts_with(subject)), "{subject}: {page}");
    }
    assert!(page.lines().all(|line| line.chars().count() <= 80), "{page}");
    let said = place.run("doctor --json").fine().stdout;
    let (state, text) = about(&said, "hub");
    assert_eq!(state, "note");
    assert!(text.contains("--offline"), "{text}");
    let (state, text) = about(&said, "token");
    assert!(state == "note" && text.contains("HF_TOKEN"), "{text}");
}

#[test]
fn a_cache_that_cannot_be_written_fails_the_check() {
    let place = Place::new();
    let file = place.write("file", "no folder").display().to_string();
    let said = place.run_in("doctor --json", &[("HF_HUB_CACHE", &format!("{file}/cache"))]).check_failed(&["cache"]);
    assert_eq!(about(&said.stdout, "cache").0, "problem");
    let said = place.run_in("doctor --json", &[("TMPDIR", &format!("{file}/tmp"))]).check_failed(&["temporary files"]);
    assert!(about(&said.stdout, "temporary files").1.contains("TMPDIR"));
}

#[test]
fn a_token_is_named_and_never_shown() {
    let place = Place::new();
    let said = place.run_in("doctor", &[("HF_TOKEN", "hf_secret")]).fine();
    assert!(said.stdout.contains("environment") && !format!("{}{}", said.stdout, said.stderr).contains("secret"));
    place.write("home/token", "hf_secret");
    let said = place.run("doctor").fine();
    assert!(said.stdout.contains("home/token") && !format!("{}{}", said.stdout, said.stderr).contains("secret"));
}

#[test]
#[cfg(feature = "hub")]
fn the_hub_is_asked_once_and_what_it_answers_is_said() {
    use crate::hub::server::{Fault, Hub};
    let (place, hub) = (Place::new(), Hub::start());
    let environment = [("HF_HUB_OFFLINE", "0"), ("HF_ENDPOINT", hub.endpoint.as_str())];
    hub.fault("GET", "/api/models", Fault::json(serde_json::json!([])));
    let (state, text) = about(&place.run_in("doctor --json", &environment).fine().stdout, "hub");
    assert!(state == "fine" && text.contains(&hub.endpoint), "{text}");
    hub.fault("GET", "/api/models", Fault::page(503, &[], "down"));
    let (state, text) = about(&place.run_in("doctor --json", &environment).fine().stdout, "hub");
    assert!(state == "note" && text.contains("503"), "{text}");
    assert_eq!(hub.requests(), 2, "one request each");
}

#[test]
fn completions_are_scripts_that_know_the_options() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = place.run(&format!("completions {shell}")).fine().stdout;
        assert!(script.contains("max-ppl-increase") && script.contains("elastic"), "{shell}");
        if shell == "bash" {
            place.write("softlm.bash", &script);
            let status = Command::new("bash").args(["-n", "softlm.bash"]).current_dir(place.path("")).status();
            assert!(status.expect("bash").success());
        }
    }
    place.run("completions tcsh").refused_by_usage("tcsh");
}

#[test]
fn there_is_a_manual_page_for_every_command() {
    let place = Place::new();
    place.run("man pages").fine();
    let help = place.run("--help").fine().stdout;
    let (_, commands) = help.split_once("Commands:").expect("commands");
    let commands = commands.lines().skip(1).take_while(|line| !line.is_empty());
    let names = commands.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    let mut pages = 1;
    for name in names {
        let page = fs::read_to_string(place.path(&format!("pages/softlm-{name}.1"))).expect("a page");
        assert!(page.contains(&format!(".TH softlm-{name} 1")), "{name}: {}", &page[..200]);
        pages += 1;
    }
    assert_eq!(fs::read_dir(place.path("pages")).expect("a folder").count(), pages);
    let page = place.run("man").fine().stdout;
    assert!(page.contains(".TH softlm 1") && page.contains("softlm\\-compress(1)"), "{page}");
    let closed = place.command("man").stdout(Stdio::null()).spawn().expect("the program starts").wait();
    assert!(closed.expect("an end").success());
    place.write("file", "no folder");
    place.run("man file").refused(&["file"]);
}

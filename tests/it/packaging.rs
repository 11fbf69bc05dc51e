//! The GitHub action and the container file, as far as they run without GitHub and without containers.

use crate::program::{FAST, Place};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs the action's script as GitHub does.
fn action(place: &Place, arguments: &str) -> Output {
    Command::new("bash")
        .arg(repository().join(".github/action/run.sh"))
        .current_dir(place.path(""))
        .env("SOFTLM", env!("CARGO_BIN_EXE_softlm"))
        .env("SOFTLM_ACTION_RUN", arguments)
        .env("GITHUB_OUTPUT", place.path("output"))
        .env("GITHUB_STEP_SUMMARY", place.path("summary"))
        .env("RUNNER_TEMP", place.path("temp"))
        .output()
        .expect("bash")
}

#[test]
#[cfg(target_os = "linux")]
fn the_action_passes_results_and_failed_checks_on() {
    let place = Place::new();
    fs::create_dir(place.path("temp")).unwrap();
    let out = place.path("a b");
    let fine = action(&place, &format!("compress demo --method svd {FAST} -o '{}'", out.display()));
    assert!(fine.status.success(), "{}", String::from_utf8_lossy(&fine.stderr));
    assert!(out.join("config.json").exists(), "quotes hold words together");
    let output = String::from_utf8(place.read("output")).unwrap();
    let json = PathBuf::from(output.trim().strip_prefix("json=").expect("the output of the step"));
    let report: serde_json::Value = serde_json::from_slice(&fs::read(json).unwrap()).expect("one JSON value");
    assert_eq!(report["method"], "svd");
    let failed = action(&place, &format!("eval '{}' --ppl sample --max-windows 2 --max-ppl 1.5", out.display()));
    assert_eq!(failed.status.code(), Some(1), "{}", String::from_utf8_lossy(&failed.stderr));
    let summary = String::from_utf8(place.read("summary")).unwrap();
    assert!(summary.contains("softlm compress: exit status 0") && summary.contains("softlm eval: exit status 1"));
    // Words are arguments, whatever a shell would make of them.
    let odd = action(&place, "eval $(touch${IFS}pwned) --ppl sample");
    assert!(odd.status.code() == Some(2) && !place.path("pwned").exists());
    let yml = fs::read_to_string(repository().join(".github/action/action.yml")).unwrap();
    for variable in ["SOFTLM_ACTION_RUN: ${{ inputs.run }}", "SOFTLM_ACTION_SOURCE:", ".github/action/run.sh"] {
        assert!(yml.contains(variable), "{variable}");
    }
}

#[test]
fn the_container_has_what_a_build_reads() {
    let file = fs::read_to_string(repository().join(".github/container/Containerfile")).unwrap();
    let mut copied: Vec<&str> = Vec::new();
    for line in file.lines().filter_map(|line| line.strip_prefix("COPY ")).filter(|line| !line.starts_with("--from")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        copied.extend(&words[..words.len() - 1]);
    }
    for name in &copied {
        assert!(repository().join(name).exists(), "{name} is copied and not there");
    }
    // What Cargo.toml names has to be in the image, or the build fails there.
    let manifest = fs::read_to_string(repository().join("Cargo.toml")).unwrap();
    let manifest: toml::Table = manifest.parse().unwrap();
    let package = &manifest["package"];
    for key in ["readme", "build"] {
        let name = package[key].as_str().unwrap();
        assert!(copied.iter().any(|copied| Path::new(name).starts_with(copied)), "{key} = {name}");
    }
    assert!(manifest.contains_key("bench") && copied.contains(&"benches") && copied.contains(&"Cargo.lock"));
}

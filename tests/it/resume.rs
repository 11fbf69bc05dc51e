//! Runs that are killed, interrupted or run into each other, and what becomes of their work.

use crate::program::{FAST, Place, finish, quickly};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Long enough to be met in the middle of its work.
const LONG: &str = "--method rom --calib-windows 8 --window 256 --ppl none";

/// Numbers that look random and are the same every time.
fn scattered(seed: &mut u64) -> f64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 40) as f64 / (1u64 << 24) as f64
}

/// Names and sizes of what is in a folder.
fn listing(dir: &Path) -> Vec<(OsString, u64)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut all: Vec<_> =
        entries.map(|entry| (entry.file_name(), entry.metadata().map_or(0, |found| found.len()))).collect();
    all.sort();
    all
}

/// Kills a run when its work has changed so many times; whether it was still running.
fn kill_after(changes: usize, place: &Place, line: &str) -> bool {
    let mut child = place.command(line).spawn().expect("the program starts");
    let work = place.path("out.softlm-work");
    let (mut seen, mut last) = (0, listing(&work));
    let over = loop {
        if child.try_wait().expect("a child").is_some() {
            break true;
        }
        let now = listing(&work);
        seen += usize::from(now != last);
        if seen >= changes {
            break false;
        }
        last = now;
        std::thread::sleep(Duration::from_micros(500));
    };
    child.kill().expect("killed");
    child.wait().expect("a child");
    !over
}

/// Kills a run at scattered moments, again and again on the same work, lets it finish and compares the result with
/// that of a run that was left alone.
fn kill_and_finish(method: &str, rounds: usize, kills: usize) {
    let place = Place::new();
    let line = format!("compress demo {} --keep 0.6 {FAST} --ppl none", quickly(method));
    place.run(&format!("{line} -o undisturbed")).fine();
    let line = format!("{line} -o out");
    let mut seed = 7 + method.len() as u64;
    let mut resumed = 0;
    for round in 0..10 * rounds {
        // Where this process gets little time every kill may come too late; then there are more rounds.
        if round >= rounds && resumed > 0 {
            break;
        }
        for _ in 0..kills {
            // Some die at once, some near the end: resumed runs have less to do.
            if !kill_after(1 + (8.0 * scattered(&mut seed)) as usize, &place, &line) {
                break;
            }
        }
        // Whatever was left, the same command ends well: it may have died with its output finished.
        let said = place.run(&line).fine();
        resumed += usize::from(said.stderr.contains("continuing an interrupted run"));
        place.run("verify out --against demo").fine();
        for file in ["model.safetensors", "config.json", "tokenizer.json"] {
            let (disturbed, undisturbed) =
                (place.read(&format!("out/{file}")), place.read(&format!("undisturbed/{file}")));
            assert!(disturbed == undisturbed, "{method}, round {round}: {file} differs");
        }
        assert!(!place.path("out.softlm-work").exists());
        fs::remove_dir_all(place.path("out")).unwrap();
    }
    assert!(resumed > 0, "{method}: no run was met in the middle");
}

#[test]
fn rom_survives_being_killed_anywhere() {
    kill_and_finish("rom", 2, 4);
}

#[test]
fn auto_survives_being_killed_anywhere() {
    kill_and_finish("auto", 2, 5);
}

#[test]
fn whiten_survives_being_killed_anywhere() {
    kill_and_finish("whiten", 2, 5);
}

#[test]
fn lorap_survives_being_killed_anywhere() {
    kill_and_finish("lorap", 2, 4);
}

#[test]
fn soft_survives_being_killed_anywhere() {
    kill_and_finish("soft", 2, 5);
}

#[test]
fn soco_survives_being_killed_anywhere() {
    kill_and_finish("soco", 2, 5);
}

#[test]
fn an_output_is_no_model_before_its_report_is_there() {
    let place = Place::new();
    let line = "compress demo --method svd --keep 0.6 --ppl sample --eval-window 128 -o out";
    let mut child = place.command(line).spawn().expect("the program starts");
    // Weights are all there while they are measured.
    place.wait_for("out.softlm-work/out/config.json.unfinished");
    child.kill().expect("killed");
    child.wait().expect("a child");
    let assembled = place.path("out.softlm-work/out");
    assert!(!place.path("out").exists(), "the run was faster than the test: give it more to measure");
    assert!(assembled.join("model.safetensors").exists() && !assembled.join("config.json").exists());
    place.run("eval out.softlm-work/out --ppl sample").refused(&["out.softlm-work/out", "config.json"]);
    place.run(line).fine();
    place.run("verify out --against demo").fine();
    assert!(!place.path("out.softlm-work").exists() && !place.path("out/config.json.unfinished").exists());
}

#[test]
fn an_interrupted_run_says_so_and_goes_on() {
    let place = Place::new();
    place.run(&format!("compress demo {LONG} -o undisturbed")).fine();
    for signal in [Signal::INT, Signal::TERM] {
        let child = place.command(&format!("compress demo {LONG} -o out")).spawn().expect("the program starts");
        place.wait_for("out.softlm-work/block-00000.safetensors");
        kill_process(Pid::from_child(&child), signal).expect("a signal");
        let said = finish(child);
        assert_eq!((said.code, said.stdout.as_str()), (130, ""), "{}", said.stderr);
        assert!(said.stderr.contains("interrupted: ") && said.stderr.contains("hint: "), "{}", said.stderr);
        assert!(!said.stderr.contains("error"), "{}", said.stderr);
        assert!(!place.path("out").exists() && place.path("out.softlm-work/block-00000.safetensors").exists());

        let said = place.run(&format!("compress demo {LONG} -o out")).fine();
        assert!(said.stderr.contains("continuing an interrupted run"), "{}", said.stderr);
        assert!(place.read("out/model.safetensors") == place.read("undisturbed/model.safetensors"));
        let report: serde_json::Value = serde_json::from_slice(&place.read("out/report.json")).unwrap();
        assert_eq!(report["cost"]["resumed"], true);
        fs::remove_dir_all(place.path("out")).unwrap();
    }
}

#[test]
fn unfinished_work_of_another_recipe_is_not_lost_by_accident() {
    let place = Place::new();
    let mut child = place.command(&format!("compress demo {LONG} --keep 0.6 -o out")).spawn().unwrap();
    place.wait_for("out.softlm-work/block-00001.safetensors");

    // While one works, no other may.
    place.run(&format!("compress demo {LONG} --keep 0.6 -o out")).refused(&["another softlm is working on out"]);
    place
        .run(&format!("compress demo {LONG} --keep 0.5 -o out --force"))
        .refused(&["another softlm is working on out"]);
    child.kill().unwrap();
    child.wait().unwrap();

    let other = format!("compress demo {LONG} --keep 0.5 -o out");
    place.run(&other).refused(&["out.softlm-work", "unfinished run with other options", "--force"]);
    assert!(place.path("out.softlm-work/block-00001.safetensors").exists(), "it is still there");
    place.run(&format!("{other} --force")).fine();
    place.run(&format!("{other}2")).fine();
    assert!(place.read("out/model.safetensors") == place.read("out2/model.safetensors"), "nothing of it was used");
}

#[test]
fn an_output_is_replaced_only_by_a_finished_one() {
    let place = Place::new();
    place.run(&format!("compress demo --method svd {FAST} --ppl none -o out")).fine();
    let before = place.read("out/model.safetensors");
    let line = format!("compress demo {LONG} -o out --force");
    let mut child = place.command(&line).spawn().unwrap();
    place.wait_for("out.softlm-work/block-00002.safetensors");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(place.read("out/model.safetensors") == before);
    let said = place.run(&line).fine();
    assert!(said.stderr.contains("continuing an interrupted run"), "{}", said.stderr);
    assert!(place.read("out/model.safetensors") != before);
    place.run("verify out").fine();
}

#[test]
fn interrupted_statistics_are_completed() {
    let place = Place::new();
    let line = "calibrate demo --calib-windows 8 --window 256";
    place.run(&format!("{line} -o undisturbed")).fine();
    let mut child = place.command(&format!("{line} -o stats")).spawn().unwrap();
    place.wait_for("stats/block-00000.safetensors");
    child.kill().unwrap();
    child.wait().unwrap();
    place.run(&format!("{line} -o stats")).fine();
    for index in 0..4 {
        let file = format!("block-{index:05}.safetensors");
        assert!(place.read(&format!("stats/{file}")) == place.read(&format!("undisturbed/{file}")), "{file}");
    }
}

#[test]
fn a_damaged_work_file_is_made_again() {
    let place = Place::new();
    let line = "compress demo --method whiten --keep 0.6 --calib-windows 8 --window 256 --ppl none";
    place.run(&format!("{line} -o undisturbed")).fine();
    let line = format!("{line} -o out");
    let decompositions = "out.softlm-work/decompositions-00000.safetensors";
    for (round, length) in [0, 5, 1000, 20_000].into_iter().enumerate() {
        let mut child = place.command(&line).spawn().expect("the program starts");
        place.wait_for(decompositions);
        child.kill().expect("killed");
        child.wait().expect("a child");
        fs::OpenOptions::new()
            .write(true)
            .open(place.path(decompositions))
            .expect("a file")
            .set_len(length)
            .expect("cut");
        let said = place.run(&line).fine();
        assert!(
            said.stderr.contains("damaged work is done again: decompositions-00000.safetensors"),
            "{round}: {}",
            said.stderr
        );
        assert!(place.read("out/model.safetensors") == place.read("undisturbed/model.safetensors"), "{round}");
        fs::remove_dir_all(place.path("out")).expect("removed");
    }
}

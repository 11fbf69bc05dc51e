//! Which model an output, its original and statistics belong to: whatever is read decides whether it may be used.

use crate::program::{FAST, Place, Said, change_config, change_weights, copy_folder, finish};
use serde_json::{Value, json};
use softlm::checkpoint::{Source, differences};
use std::fs;
use std::path::Path;

const EVAL: &str = "--window 64 --max-windows 2";

/// Makes the weights of a folder others.
fn retrain(folder: &Path) {
    change_weights(folder, |all| all.values_mut().for_each(|(_, _, data)| data[0] ^= 1));
}

/// The program in a folder of the place.
fn run_at(place: &Place, folder: &str, line: &str) -> Said {
    finish(place.command(line).current_dir(place.path(folder)).spawn().expect("the program starts"))
}

/// `a/model` and its output `a/out`, named from inside `a`.
fn output_in_a(place: &Place) {
    fs::create_dir(place.path("a")).expect("a folder");
    place.demo_folder("a/model");
    run_at(place, "a", &format!("compress model --method svd --keep 0.8 --ppl none {FAST} -o out")).fine();
}

#[test]
fn an_output_records_its_original_and_itself() {
    let place = Place::new();
    output_in_a(&place);
    let report = place.report("a/out");
    let identity = |folder: &str| Source::open(&place.path(folder)).expect("a model").identity().expect("readable");
    assert_eq!(report.model.identity, identity("a/model"));
    assert_eq!(report.output, Some(identity("a/out")));
    let json: Value = serde_json::from_slice(&place.read("a/out/report.json")).expect("JSON");
    assert_eq!(json["model"]["kind"], "folder");
    let files = json["output"]["files"].as_array().expect("files");
    assert_eq!(files[0]["file"], "config.json");
    assert!(files.iter().any(|file| file["file"] == "tokenizer.json"), "{files:?}");
    // sha256 as every other program computes it.
    assert_eq!(json["model"]["weights"][0]["sha256"].as_str().map(str::len), Some(64));
    place.run(&format!("compress demo --method svd --ppl none {FAST} -o of-demo")).fine();
    let json: Value = serde_json::from_slice(&place.read("of-demo/report.json")).expect("JSON");
    assert_eq!(json["model"]["kind"], "built-in");
}

#[test]
fn another_model_in_the_originals_place_is_refused() {
    let place = Place::new();
    output_in_a(&place);
    fs::create_dir(place.path("b")).expect("a folder");
    retrain(&place.demo_folder("b/model"));
    run_at(&place, "a", &format!("eval out {EVAL}")).fine();
    for line in [format!("eval ../a/out {EVAL} --max-ppl-increase 1000%"), "verify ../a/out".to_string()] {
        let naming = ["model is not the model that ../a/out was made from", "model.safetensors", "--base PATH"];
        run_at(&place, "b", &line).refused(&naming);
        run_at(&place, "b", &format!("{line} --base ../a/model")).fine();
        run_at(&place, "b", &format!("{line} --base model")).refused(&naming);
        let said = run_at(&place, "b", &format!("{line} --base model --against model"));
        assert!(said.code == 2 && said.stderr.contains("--against"), "{}", said.stderr);
    }
    // On purpose any model will do.
    run_at(&place, "b", &format!("eval ../a/out {EVAL} --against model")).fine();
    run_at(&place, "b", "verify ../a/out --against model").fine();
    // The same weights under another configuration are another model.
    change_config(&place.path("a/model"), "rope_theta", json!(77.0));
    for line in [format!("eval out {EVAL}"), "verify out".to_string()] {
        run_at(&place, "a", &line).refused(&["config.json", "--base PATH"]);
    }
    run_at(&place, "a", &format!("eval model {EVAL} --base model")).refused(&["--base", "model is no output"]);
}

#[test]
fn an_original_that_is_gone_is_not_looked_for_on_the_hub() {
    let place = Place::new();
    output_in_a(&place);
    fs::rename(place.path("a/model"), place.path("a/elsewhere")).expect("renamed");
    let said = run_at(&place, "a", &format!("eval out {EVAL}")).refused(&["there is no folder model", "--base PATH"]);
    assert!(!said.stderr.contains("cache"), "{}", said.stderr);
    let said = run_at(&place, "a", "verify out").fine();
    assert!(said.stdout.contains("checked alone"), "{}", said.stdout);
    assert!(said.stderr.contains("there is no folder model") && !said.stderr.contains("cache"), "{}", said.stderr);
    let said = run_at(&place, "a", "verify out --base elsewhere").fine();
    assert!(said.stdout.contains("compared with elsewhere"), "{}", said.stdout);
    run_at(&place, "a", &format!("eval out {EVAL} --base elsewhere")).fine();
    run_at(&place, "a", "verify out --base nowhere/at/all").refused(&["nowhere/at/all"]);
}

#[test]
fn an_output_that_was_changed_is_not_what_it_says() {
    let place = Place::new();
    output_in_a(&place);
    let changed = |name: &str, file: &str, change: &dyn Fn(&Path)| {
        copy_folder(&place.path("a/out"), &place.path(&format!("a/{name}")));
        change(&place.path(&format!("a/{name}/{file}")));
        let said = run_at(&place, "a", &format!("verify {name}"));
        assert_eq!(said.code, 1, "{name}: {}{}", said.stdout, said.stderr);
        assert!(said.stdout.contains(&format!("problem: {file} ")), "{name}: {}", said.stdout);
        let json = run_at(&place, "a", &format!("verify {name} --json"));
        let json: Value = serde_json::from_str(&json.stdout).expect("JSON");
        assert_eq!(json["as_recorded"], false, "{json}");
        run_at(&place, "a", &format!("eval {name} {EVAL}")).refused(&[name, file]);
        // Whoever changed it on purpose can say so.
        fs::remove_file(place.path(&format!("a/{name}/report.json"))).expect("removed");
        let said = run_at(&place, "a", &format!("eval {name} {EVAL}"));
        assert!(said.stderr.contains("does not record its own hashes"), "{name}: {}", said.stderr);
    };
    changed("flipped", "model.safetensors", &|path| {
        let mut bytes = fs::read(path).expect("weights");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).expect("written");
    });
    changed("configured", "config.json", &|path| {
        change_config(path.parent().expect("a folder"), "rope_theta", json!(77.0));
    });
    changed("retokenised", "tokenizer.json", &|path| {
        let text = fs::read_to_string(path).expect("a tokenizer");
        fs::write(path, text + "\n").expect("written");
    });
    let json: Value = serde_json::from_str(&run_at(&place, "a", "verify out --json").fine().stdout).expect("JSON");
    assert_eq!((&json["as_recorded"], &json["against"]), (&json!(true), &json!("model")));
}

#[test]
fn outputs_of_the_first_version_are_read() {
    let place = Place::new();
    output_in_a(&place);
    let path = place.path("a/out/report.json");
    let mut report: Value = serde_json::from_slice(&fs::read(&path).expect("a report")).expect("JSON");
    report.as_object_mut().expect("an object").remove("output");
    let model = report["model"].as_object_mut().expect("an object");
    model.remove("kind");
    model.remove("files");
    fs::write(&path, report.to_string()).expect("written");
    let said = run_at(&place, "a", &format!("eval out {EVAL}")).fine();
    assert!(
        said.stderr.contains("no hash of config.json") && said.stderr.contains("its own hashes"),
        "{}",
        said.stderr
    );
    let said = run_at(&place, "a", "verify out").fine();
    assert!(said.stdout.contains("does not record its own hashes"), "{}", said.stdout);
    run_at(&place, "a", "inspect out").fine();
    // The weights were always recorded.
    retrain(&place.path("a/model"));
    run_at(&place, "a", &format!("eval out {EVAL}")).refused(&["model.safetensors", "--base PATH"]);
    // Without any report the name is all there is.
    fs::remove_file(&path).expect("removed");
    let said = run_at(&place, "a", &format!("eval out {EVAL}")).fine();
    assert!(said.stderr.contains("no report.json"), "{}", said.stderr);
    // And it still names a folder.
    fs::remove_dir_all(place.path("a/model")).expect("removed");
    let said = run_at(&place, "a", &format!("eval out {EVAL}")).refused(&["there is no folder model"]);
    assert!(!said.stderr.contains("cache"), "{}", said.stderr);
}

#[test]
fn an_interrupted_run_goes_on_with_the_same_files_only() {
    let place = Place::new();
    let folder = place.demo_folder("m");
    let line = "compress m --method rom --calib-windows 8 --window 256 --ppl none -o out";
    let mut child = place.command(line).spawn().expect("the program starts");
    place.wait_for("out.softlm-work/block-00000.safetensors");
    child.kill().expect("killed");
    child.wait().expect("a child");
    let refused = |what: &str| {
        let said = place.run(line).refused(&["out.softlm-work", "--force"]);
        assert!(!said.stderr.contains("continuing"), "{what}: {}", said.stderr);
        assert!(place.path("out.softlm-work/block-00000.safetensors").exists(), "{what}: the work is still there");
    };
    for (file, key) in [("config.json", "rope_theta"), ("tokenizer_config.json", "model_max_length")] {
        let before = fs::read(folder.join(file)).expect("a file");
        let mut settings: Value = serde_json::from_slice(&before).expect("JSON");
        settings[key] = json!(500);
        fs::write(folder.join(file), settings.to_string()).expect("written");
        refused(file);
        fs::write(folder.join(file), before).expect("written");
    }
    // A file that decides how text is read and was not there.
    fs::write(folder.join("added_tokens.json"), "{}").expect("written");
    refused("added_tokens.json");
    fs::remove_file(folder.join("added_tokens.json")).expect("removed");
    // One that decides nothing may come and go.
    fs::write(folder.join("README.md"), "a model").expect("written");
    let said = place.run(line).fine();
    assert!(said.stderr.contains("continuing an interrupted run"), "{}", said.stderr);
}

#[test]
fn statistics_belong_to_weights_settings_and_tokenizer() {
    let place = Place::new();
    let folder = place.demo_folder("m");
    let text = "--calib-windows 3 --window 64";
    place.run(&format!("calibrate m {text} -o stats")).fine();
    let origin: Value = serde_json::from_slice(&place.read("stats/stats.json")).expect("JSON");
    assert_eq!((&origin["format"], &origin["softlm"]), (&json!(3), &json!(env!("CARGO_PKG_VERSION"))));
    let whiten = format!("compress m --method whiten --allocation uniform --keep 0.6 --ppl none {text}");
    place.run(&format!("{whiten} --stats stats -o fine")).fine();

    let config = place.read("m/config.json");
    change_config(&folder, "rope_theta", json!(500.0));
    place.run(&format!("{whiten} --stats stats -o x")).refused(&["stats", "config.json", "collect statistics"]);
    place.run(&format!("calibrate m {text} -o stats")).refused(&["stats", "config.json"]);
    place.run(&format!("calibrate m {text} -o others")).fine();
    place.run("calibrate --merge stats,others -o sum").refused(&["stats", "others", "config.json"]);
    place.write("m/config.json", &config);

    let tokenizer = place.read("m/tokenizer.json");
    place.write("m/tokenizer.json", [&tokenizer[..], b"\n"].concat());
    place.run(&format!("{whiten} --stats stats -o x")).refused(&["stats", "tokenizer.json"]);
    place.write("m/tokenizer.json", &tokenizer);

    // Another name of the same model.
    fs::rename(&folder, place.path("n")).expect("renamed");
    place.run(&format!("calibrate n {text} -o stats")).fine();
    place.run(&format!("calibrate n {text} --seed 1 -o more")).fine();
    place.run("calibrate --merge stats,more -o sum").fine();

    // The first format did not record what it depends on, the second had no checksums.
    for (format, says) in [(1, "config.json"), (2, "no checksums"), (4, "reads 3")] {
        let mut other = origin.clone();
        other["format"] = json!(format);
        place.write("stats/stats.json", other.to_string());
        place.run("inspect stats").refused(&[&format!("format {format}"), says]);
    }
    place.write("stats/stats.json", "{}");
    place.run("inspect stats").refused(&["stats.json", "does not describe statistics"]);
}

#[test]
fn a_run_goes_on_with_the_statistics_it_began_with() {
    let place = Place::new();
    let text = "--calib-windows 8 --window 256";
    place.run(&format!("calibrate demo {text} -o stats")).fine();
    let line = format!("compress demo --method soco --steps 20 --batch 2 --ppl none {text} --stats stats -o out");
    let mut child = place.command(&line).spawn().expect("the program starts");
    place.wait_for("out.softlm-work/decompositions-00000.safetensors");
    child.kill().expect("killed");
    child.wait().expect("a child");
    fs::remove_dir_all(place.path("stats")).expect("removed");
    place.run(&format!("calibrate demo {text} --seed 5 -o stats")).fine();
    place.run(&line).refused(&["out.softlm-work", "--force"]);
    // Of the same text: the same numbers.
    fs::remove_dir_all(place.path("stats")).expect("removed");
    place.run(&format!("calibrate demo {text} -o stats")).fine();
    let said = place.run(&line).fine();
    assert!(said.stderr.contains("continuing an interrupted run"), "{}", said.stderr);
}

#[test]
fn shards_are_hashed_each() {
    let place = Place::new();
    let line = "compress demo --method svd --ppl none --max-shard-size 300kB -o out";
    place.run(&format!("{line} {FAST}")).fine();
    let report = place.report("out");
    let own = report.output.expect("recorded");
    assert!(own.weights.len() > 2, "{:?}", own.weights);
    let found = Source::open(&place.path("out")).expect("an output").identity().expect("readable");
    assert_eq!(differences(&own.weights, &found.weights), Vec::<String>::new());
    let second = place.path("out").join(&own.weights[1].file);
    let mut bytes = fs::read(&second).expect("a shard");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&second, bytes).expect("written");
    let said = place.run("verify out");
    assert!(said.code == 1 && said.stdout.contains(&own.weights[1].file), "{}", said.stdout);
}

#[test]
fn an_output_without_its_section_is_no_model_of_another_kind() {
    let place = Place::new();
    output_in_a(&place);
    let without = |name: &str, change: &dyn Fn(&mut Value)| {
        copy_folder(&place.path("a/out"), &place.path(&format!("a/{name}")));
        let path = place.path(&format!("a/{name}/config.json"));
        let mut config: Value = serde_json::from_slice(&fs::read(&path).expect("a config")).expect("JSON");
        change(&mut config);
        fs::write(path, config.to_string()).expect("written");
    };
    without("bare", &|config| drop(config.as_object_mut().expect("an object").remove("softlm")));
    without("later", &|config| config["softlm"]["format"] = json!(3));
    for (name, naming) in [("bare", "no `softlm` section"), ("later", "format 3")] {
        for line in [format!("eval {name} {EVAL}"), format!("verify {name}"), format!("export {name} --to dense -o x")]
        {
            run_at(&place, "a", &line).refused(&[name, naming]);
        }
    }
    // Made to look like the original, it is still not what its report says.
    without("claims", &|config| {
        config["model_type"] = json!("llama");
        config.as_object_mut().expect("an object").remove("softlm");
    });
    let said = run_at(&place, "a", "verify claims");
    assert!(said.code == 1 && said.stdout.contains("problem: config.json "), "{}{}", said.stdout, said.stderr);
}

#[test]
fn what_is_damaged_is_not_exported() {
    let place = Place::new();
    output_in_a(&place);
    retrain(&place.path("a/out"));
    run_at(&place, "a", "export out --to dense -o dense")
        .refused(&["out is not as it was written", "model.safetensors"]);
    assert!(!place.path("a/dense").exists());
}

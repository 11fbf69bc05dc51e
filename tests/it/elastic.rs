//! Elastic outputs: any size cut from one is what compressing to that size gives, to the last byte, and what does not belong
//! together is refused.

use crate::program::{FAST, Place};
use serde_json::json;
use softlm::checkpoint::{Dtype, NamedTensor, TensorFile, write_sealed};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

#[test]
fn every_size_is_what_compressing_to_it_gives() {
    let place = Place::new();
    for (name, options) in
        [("auto", "--dtype f32"), ("plain", "--gradients false"), ("whiten", "--method whiten --weight unit")]
    {
        let line = format!("compress demo {options} {FAST}");
        place.run(&format!("{line} --elastic 0.6,0.9,0.4 -o {name}")).fine();
        // The output is a model of the largest size.
        place.run(&format!("verify {name} --against demo")).fine();
        place.run(&format!("{line} --keep 0.9 -o {name}-0.9")).fine();
        assert!(place.weights(name) == place.weights(&format!("{name}-0.9")), "{name}");
        let trials = place.report(name).allocation.trials;
        assert_eq!(trials.iter().map(|trial| trial.keep).collect::<Vec<_>>(), [0.6, 0.9, 0.4], "{name}");
        let rise = |output: &str| {
            let rows = place.report(output).evaluation;
            rows[0].after.perplexity.ppl / rows[0].before.perplexity.ppl - 1.0
        };
        assert!((trials[1].increase - rise(name)).abs() < 1e-9, "{name}: {trials:?}");

        for keep in ["0.4", "0.73"] {
            place.run(&format!("cut {name} --keep {keep}")).fine();
            let (cut, direct) = (format!("{name}-{keep}"), format!("{name}-direct-{keep}"));
            place.run(&format!("{line} --keep {keep} -o {direct}")).fine();
            assert!(place.weights(&cut) == place.weights(&direct), "{name} at {keep}");
            place.run(&format!("verify {cut} --against demo")).fine();
            let (cut, direct) = (place.report(&cut), place.report(&direct));
            assert_eq!((cut.evaluation, cut.calibration), (direct.evaluation, direct.calibration), "{name} at {keep}");
        }
        // Another way to ask, another corpus; a second time nothing is done.
        place.run(&format!("cut {name} --target-bytes 1.5MB --ppl none -o {name}-bytes")).fine();
        assert!(place.weights(&format!("{name}-bytes")).len() < 1_520_000);
        let again = place.run(&format!("cut {name} --target-bytes 1.5MB --ppl none -o {name}-bytes")).fine();
        assert!(again.stderr.contains("nothing was done"), "{}", again.stderr);
        place.run(&format!("cut {name} --max-ppl-increase 400% -o {name}-good")).fine();
        let good = place.report(&format!("{name}-good"));
        assert!(good.allocation.keep_reached < 0.9 && rise(&format!("{name}-good")) <= 4.0);
    }
}

#[test]
fn the_survey_is_the_same_every_time() {
    let place = Place::new();
    for options in ["", "--method whiten --weight unit"] {
        let line = format!("compress demo {options} {FAST} --ppl none --elastic 0.8,0.5 --force");
        place.run(&format!("{line} --threads 1 -o one")).fine();
        place.run(&format!("{line} --threads 2 -o two")).fine();
        let names = fs::read_dir(place.path("one/survey")).expect("a survey");
        let names: Vec<String> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert!(names.len() > 4, "{names:?}");
        for name in names {
            let of = |output: &str| place.read(&format!("{output}/survey/{name}"));
            assert!(of("one") == of("two"), "{options}: {name}");
        }
    }
}

#[test]
fn an_elastic_output_moves_and_is_replaced_as_a_whole() {
    let place = Place::new();
    let original = place.demo_folder("original");
    let line = format!("compress {} {FAST} --ppl none -o out", original.display());
    place.run(&format!("{line} --elastic 0.8,0.5")).fine();
    fs::rename(place.path("out"), place.path("moved")).expect("moved");
    place.run("cut moved --keep 0.6 -o six").fine();
    let six = place.weights("six");
    fs::rename(&original, place.path("elsewhere")).expect("moved");
    place.run("cut moved --keep 0.6 -o lost").refused(&["original"]);
    place.run("cut moved --keep 0.6 --base elsewhere -o found").fine();
    assert!(six == place.weights("found"));

    // What was cut from it is no elastic output, and nothing of the survey stays where another output takes its place.
    place.run("cut six --keep 0.5 -o none").refused(&["six", "--elastic"]);
    fs::rename(place.path("elsewhere"), &original).expect("moved back");
    fs::rename(place.path("moved"), place.path("out")).expect("moved back");
    let said = place.run(&format!("{line} --keep 0.7 --force")).fine();
    assert!(!place.path("out/survey").exists(), "{}", said.stderr);
}

#[test]
fn damage_and_another_original_are_refused() {
    let place = Place::new();
    place.run(&format!("compress demo {FAST} --ppl none --elastic 0.8,0.5 -o out")).fine();
    let other = place.demo_folder("other");
    let mut config: serde_json::Value = serde_json::from_slice(&place.read("other/config.json")).expect("JSON");
    config["rms_norm_eps"] = 0.5.into();
    fs::write(other.join("config.json"), config.to_string()).expect("written");
    place.run("cut out --keep 0.6 --base other -o cut").refused(&["other", "config.json"]);
    place.run("cut out --keep 1.5 -o cut").refused(&["--keep 1.5"]);
    place.run("cut out -o cut").refused(&["--keep"]);
    place.run("cut none --keep 0.5 -o cut").refused(&["none"]);

    for name in ["decompositions-00001.safetensors", "weights.safetensors", "gradients-00000.safetensors"] {
        let path = place.path(&format!("out/survey/{name}"));
        let whole = fs::read(&path).expect("a file");
        let mut damaged = whole.clone();
        *damaged.last_mut().expect("bytes") ^= 1;
        fs::write(&path, &damaged).expect("written");
        place.run("cut out --keep 0.6 -o cut").refused(&[name, "damaged"]);
        fs::remove_file(&path).expect("removed");
        place.run("cut out --keep 0.6 -o cut").refused(&[name, "missing"]);
        fs::write(&path, &whole).expect("written");
    }
    let origin = place.path("out/survey/survey.json");
    let whole: serde_json::Value = serde_json::from_slice(&fs::read(&origin).expect("a file")).expect("JSON");
    for (pointer, value) in
        [("/windows/rows/0/ids/5", json!(4_000_000)), ("/windows/window", json!(7)), ("/windows/rows", json!([]))]
    {
        let mut damaged = whole.clone();
        *damaged.pointer_mut(pointer).expect("a place") = value;
        fs::write(&origin, damaged.to_string()).expect("written");
        place.run("cut out --keep 0.6 -o cut").refused(&["survey.json", "damaged"]);
    }
    fs::write(&origin, whole.to_string()).expect("written");

    // Sealed, but of another shape: what comes from others need not be what softlm writes.
    let cases = [
        ("decompositions-00001", "attn.q.a", vec![0.0; 3], vec![3]),
        ("decompositions-00001", "attn.q.total", vec![0.0; 3], vec![3]),
        ("decompositions-00001", "attn.k.b", vec![0.0; 4], vec![2, 2]),
        ("decompositions-00002", "mlp.down.gram", vec![0.0; 4], vec![2, 2]),
        ("decompositions-00002", "mlp.down.order", vec![1e9; 352], vec![352]),
        ("decompositions-00002", "attn.o.gram", vec![0.0; 6], vec![2, 3]),
        ("gradients-00003", "attn.o", vec![0.0; 4], vec![2, 2]),
    ];
    for (file, tensor, values, shape) in cases {
        let path = place.path(&format!("out/survey/{file}.safetensors"));
        let whole = fs::read(&path).expect("a file");
        reseal(&path, tensor, &values, &shape);
        place.run("cut out --keep 0.4 -o cut").refused(&[file, tensor, "damaged"]);
        fs::write(&path, whole).expect("written");
    }
    fs::write(&origin, "{").expect("written");
    place.run("cut out --keep 0.6 -o cut").refused(&["survey.json", "damaged"]);
    assert!(!place.path("cut").exists());
}

/// Writes the file again with another tensor under this name.
fn reseal(path: &Path, name: &str, values: &[f64], shape: &[usize]) {
    let file = TensorFile::open(path).expect("a file");
    let mut tensors: Vec<NamedTensor> = Vec::new();
    for other in file.names() {
        let info = file.info(other).expect("listed");
        tensors.push(if other != name {
            NamedTensor::new(other, info.dtype, info.shape.clone(), file.bytes(other).expect("bytes").to_vec())
        } else if info.dtype == Dtype::F64 {
            NamedTensor::f64(name, shape.to_vec(), values)
        } else {
            NamedTensor::f32(name, shape.to_vec(), &values.iter().map(|x| *x as f32).collect::<Vec<_>>())
        });
    }
    write_sealed(path, &tensors, &BTreeMap::new()).expect("written");
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let place = Place::new();
    for (options, what) in [
        ("--elastic 0.9,1.5", "1.5"),
        ("--elastic 0,0.5", "0"),
        ("--elastic 0.8,nan", "NaN"),
        ("--elastic 0.8 --method rom", "rom"),
        ("--elastic 0.8 --method lorap", "lorap"),
        ("--elastic 0.8 --method whiten", "--weight energy"),
        ("--elastic 0.8 --heal 4", "--heal"),
    ] {
        place.run(&format!("compress demo {FAST} {options} -o out")).refused(&["--elastic", what]);
    }
    // Known from shapes, so before anything is decomposed.
    let said = place.run(&format!("compress demo {FAST} --elastic 0.8,0.0001 -o out")).refused(&["0.0001"]);
    assert!(!said.stderr.contains("decomposing"), "{}", said.stderr);
    for options in ["--elastic 0.8 --keep 0.7", "--elastic 0.8,x", "--elastic 0.8 --max-ppl-increase 5%"] {
        place.run(&format!("compress demo {FAST} {options} -o out")).refused_by_usage("--elastic");
    }
}

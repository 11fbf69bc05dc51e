//! `softlm synthetic`: checkpoints of a configuration's shapes.

use crate::program::Place;
use candle_core::{DType, Device, Tensor};
use softlm::checkpoint::Source;
use softlm::linalg::{Mat, thin_svd};
use softlm::model::{Model, Output};
use std::collections::BTreeMap;
use std::path::Path;

/// Names and shapes of what is stored and read.
fn read_tensors(source: &Source) -> BTreeMap<String, Vec<usize>> {
    let model = Model::load(source.clone(), &Device::Cpu).expect("a model");
    let unused: Vec<&str> = model.unused_tensors();
    let shape = |name: &str| source.info(name).expect("stored").shape.clone();
    source.names().filter(|name| !unused.contains(name)).map(|name| (name.to_string(), shape(name))).collect()
}

/// Every family that there is a model of: the same tensors in the same shapes, and a forward pass without NaN.
#[test]
fn what_is_written_has_the_tensors_of_the_real_model() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models");
    let mut families = 0;
    for entry in std::fs::read_dir(models).expect("models") {
        let real = entry.expect("an entry").path();
        let source = Source::open(&real).expect("a checkpoint");
        let model = Model::load(source.clone(), &Device::Cpu).expect("a model");
        // Stored without its usual prefix, or with its head alone: a new checkpoint has the usual names.
        let place = Place::new();
        place.write("config.json", std::fs::read(real.join("config.json")).expect("its configuration"));
        // The demo's knows more tokens than these models do.
        place.write("tokenizer.json", "{}");
        place.run("synthetic config.json -o made --dtype f32").fine();
        let made = Source::open(Path::new(&place.path("made"))).expect("a checkpoint");
        let (wanted, found) = (read_tensors(&source), read_tensors(&made));
        let missing: Vec<_> = wanted.iter().filter(|(name, _)| !found.contains_key(*name)).collect();
        // Which head an encoder has is said by its tensors alone.
        assert!(missing.is_empty() || model.output() == Output::MaskedToken, "{}: {missing:?}", real.display());
        for (name, shape) in &found {
            assert_eq!(wanted.get(name), Some(shape), "{}: {name}", real.display());
        }
        let made = Model::load(made, &Device::Cpu).expect("a model");
        let mut states = made.embed(&[&[1, 2, 3, 4, 5]]).expect("states");
        for index in 0..model.blocks() {
            states = made.block(index).unwrap().forward(&states, &mut ()).expect("finite").expect("whole");
        }
        families += 1;
    }
    assert!(families > 10, "{families}");
}

#[test]
fn singular_values_fall_and_the_seed_decides_the_bytes() {
    let place = Place::new();
    place.write("config.json", std::fs::read("src/demo/config.json").expect("the demo's configuration"));
    let made = |out: &str, flags: &str| {
        place.run(&format!("synthetic config.json -o {out} --blocks 1 {flags}")).fine();
        std::fs::read(place.path(&format!("{out}/model.safetensors"))).expect("weights")
    };
    let one = made("one", "--threads 1");
    assert!(one == made("two", "--threads 3"));
    assert!(one != made("other", "--seed 1"));
    let source = Source::open(Path::new(&place.path("one"))).expect("a checkpoint");
    let name = "model.layers.0.mlp.gate_proj.weight";
    let shape = source.info(name).expect("stored").shape.clone();
    let weight: Tensor = source.tensor(name, &shape, DType::F32, &Device::Cpu).expect("a tensor");
    let values: Vec<f32> = weight.flatten_all().unwrap().to_vec1().unwrap();
    let mean_square = values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / values.len() as f64;
    assert!((mean_square * shape[1] as f64 - 1.0).abs() < 0.3, "{mean_square}");
    let sigma = thin_svd(&Mat::from_f32_rows(shape[0], shape[1], &values), "a weight").expect("a decomposition").s;
    let energy = |values: &[f64]| values.iter().map(|s| s * s).sum::<f64>();
    let eighth = energy(&sigma[..sigma.len() / 8]) / energy(&sigma);
    // Normal factors of this shape give 0.44 with nothing between them, 0.70 with k^-1/2 and 0.97 with 1/k.
    assert!((eighth - 0.70).abs() < 0.05, "{eighth}");
}

#[test]
fn what_cannot_be_is_refused_and_leaves_nothing() {
    let place = Place::new();
    place.write("config.json", std::fs::read("src/demo/config.json").expect("the demo's configuration"));
    place.write(
        "small.json",
        r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 100, "n_positions": 64}"#,
    );
    place.write("unknown.json", r#"{"model_type": "abacus", "num_hidden_layers": 2}"#);
    place.write("list.json", "[1]");
    for (line, naming) in [
        ("synthetic small.json -o out", "a vocabulary of 100"),
        ("synthetic unknown.json -o out", "abacus"),
        ("synthetic list.json -o out", "list.json"),
        ("synthetic nowhere.json -o out", "nowhere.json"),
    ] {
        place.run(line).refused(&[naming]);
        assert!(!Path::new(&place.path("out")).exists(), "{line}");
    }
    place.run("synthetic config.json -o out").fine();
    place.run("synthetic config.json -o out").refused(&["is there already"]);
    place.run("eval out --max-windows 1 --window 16").fine();
}

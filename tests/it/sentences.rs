//! Folders of sentence-transformers: embeddings against the library itself (`tests/golden/sentences.json`), what cannot act, and
//! that outputs keep every module.

use crate::program::{Place, copy_folder};
use candle_core::Device;
use serde_json::{Value, json};
use softlm::checkpoint::{NamedTensor, Source, write_tensors};
use softlm::error::UserError;
use softlm::eval::Modules;
use softlm::model::Model;
use softlm::pipeline::tokenizer;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn golden() -> Value {
    serde_json::from_slice(&fs::read(here().join("sentences.json")).expect("the reference")).expect("JSON")
}

fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        number => vec![number.as_f64().expect("a number")],
    }
}

/// Writes the folder of a case.
fn build(case: &Value, folder: &Path) {
    copy_folder(&here().join("encoders/bert-tiny-bare"), folder);
    for (name, content) in case["files"].as_object().expect("files") {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
        fs::write(path, content.to_string()).expect("writable");
    }
    for (place, tensors) in case["tensors"].as_object().expect("tensors") {
        let tensor = |(name, values): (&String, &Value)| -> NamedTensor {
            let rows = values.as_array().expect("rows");
            let shape = rows[0].as_array().map_or(vec![rows.len()], |row| vec![rows.len(), row.len()]);
            let values: Vec<f32> = numbers(values).iter().map(|&x| x as f32).collect();
            NamedTensor::f32(name.clone(), shape, &values)
        };
        let tensors: Vec<NamedTensor> = tensors.as_object().expect("tensors").iter().map(tensor).collect();
        write_tensors(&folder.join(format!("{place}_Dense/model.safetensors")), &tensors, &BTreeMap::new())
            .expect("written");
    }
}

fn open(folder: &Path) -> Model {
    Model::load(Source::open(folder).expect("a checkpoint"), &Device::Cpu).expect("a model")
}

#[test]
fn embeddings_are_those_of_sentence_transformers() {
    let golden = golden();
    let place = tempfile::tempdir().expect("a folder");
    for (name, case) in golden["cases"].as_object().expect("cases") {
        let folder = place.path().join(name);
        build(case, &folder);
        let model = open(&folder);
        let modules = Modules::read(model.source()).expect(name);
        let length = case["files"]["sentence_bert_config.json"]["max_seq_length"].as_u64().unwrap_or(64);
        let encoder = tokenizer(model.source()).and_then(|t| t.encoder(length as usize)).expect("an encoder");
        let texts = golden["texts"].as_array().expect("texts");
        let mut found = Vec::new();
        for (text, expected) in texts.iter().zip(case["embeddings"].as_array().expect("embeddings")) {
            let sequence = encoder.encode(&modules.prompted(text.as_str().expect("a text")), None).expect("ids");
            let x = model.embed_typed(&[&sequence.ids], Some(&[&sequence.types])).expect("embedded");
            let states = (0..model.blocks()).fold(x, |x, index| {
                model.block(index).expect("a block").forward(&x, &mut ()).expect("a pass").expect("nothing stops it")
            });
            let embedding = modules.embed(&states.get(0).expect("a row")).expect("embedded");
            let expected = numbers(expected);
            let largest = expected.iter().fold(0f64, |m, x| m.max(x.abs()));
            let off = embedding.iter().zip(&expected).map(|(a, b)| (a - b).abs() / largest).fold(0.0, f64::max);
            assert!(embedding.len() == expected.len() && off < 1e-5, "{name}, {text}: off by {off:.1e}");
            found.push(embedding);
        }
        let (similarity, expected) = (modules.similarity(&found[0], &found[1]), case["similarity"].as_f64().unwrap());
        assert!((similarity / expected - 1.0).abs() < 1e-5, "{name}: {similarity} for {expected}");
    }
}

#[test]
fn modules_that_cannot_act_are_refused_by_name() {
    let golden = golden();
    let place = tempfile::tempdir().expect("a folder");
    let mut count = 0;
    let mut said = |change: &dyn Fn(&Path)| {
        count += 1;
        let folder = place.path().join(count.to_string());
        build(&golden["cases"]["dense"], &folder);
        change(&folder);
        let error = Modules::read(open(&folder).source()).expect_err("not supported");
        let user = error.downcast_ref::<UserError>().unwrap_or_else(|| panic!("not a user error: {error:#}"));
        format!("{user} / {}", user.hint_text().expect("a hint"))
    };
    let edit = |folder: &Path, name: &str, edit: &dyn Fn(&mut Value)| {
        let path = folder.join(name);
        let mut value = fs::read(&path).map_or(json!({}), |bytes| serde_json::from_slice(&bytes).expect("JSON"));
        edit(&mut value);
        fs::write(&path, value.to_string()).expect("writable");
    };
    let (list, dense, pooling) = ("modules.json", "2_Dense/config.json", "1_Pooling/config.json");
    let settings = "config_sentence_transformers.json";
    for (name, key, value, naming) in [
        (list, "/2/type", json!("sentence_transformers.models.LayerNorm"), "LayerNorm in place 2"),
        (list, "/1/type", json!("sentence_transformers.models.WordEmbeddings"), "WordEmbeddings in place 1"),
        (list, "/0/path", json!("0_Transformer"), "the folder 0_Transformer"),
        (dense, "/activation_function", json!("torch.nn.modules.activation.Softmax"), "Softmax"),
        (dense, "/activation_function", json!("mine.Tanh"), "mine.Tanh"),
        (dense, "/module_input_name", json!("token_embeddings"), "token_embeddings"),
        (dense, "/in_features", json!(25), "takes 25 numbers, but 24 come in"),
        (dense, "/out_features", json!(6), "but [6] is expected"),
        (dense, "/scale", json!(2), "`scale`"),
        (pooling, "/pooling_mode_median", json!(true), "pooling_mode_median"),
        (pooling, "/pooling_mode", json!("sum"), "\"sum\""),
        (settings, "/similarity_fn_name", json!("angle"), "angle"),
        (settings, "/default_prompt_name", json!("query"), "\"query\""),
    ] {
        let said = said(&|folder| {
            edit(folder, name, &|whole| match whole.pointer_mut(key) {
                Some(place) => *place = value.clone(),
                None => whole[&key[1..]] = value.clone(),
            });
        });
        assert!(said.contains(naming), "{name} {key}: {said}");
    }
    let gone = said(&|folder| fs::remove_file(folder.join(pooling)).expect("there"));
    assert!(gone.contains(pooling), "{gone}");
    let pickled = said(&|folder| {
        fs::rename(folder.join("2_Dense/model.safetensors"), folder.join("2_Dense/pytorch_model.bin")).expect("there");
    });
    assert!(pickled.contains("2_Dense/pytorch_model.bin") && pickled.contains("pickle"), "{pickled}");
    let pointer = said(&|folder| {
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
        fs::write(folder.join("2_Dense/model.safetensors"), pointer).expect("writable");
    });
    assert!(pointer.contains("2_Dense/model.safetensors") && pointer.contains("Git LFS"), "{pointer}");
}

#[test]
fn outputs_keep_every_module_and_are_measured_with_them() {
    let place = Place::new();
    build(&golden()["cases"]["two dense"], &place.path("model"));
    place.write(
        "p.tsv",
        "sentence1\tsentence2\tscore\nthe film was good\tit is good\t4\nhe is bad\tthe end\t1\na b c\ta b d\t3\n",
    );
    let fast = "--calib-windows 8 --window 32 --eval-window 32 --max-windows 4";
    place.run(&format!("compress model --method svd --keep 0.9 {fast} -o out")).fine();
    for file in
        ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "3_Dense/model.safetensors"]
    {
        assert_eq!(place.read(&format!("out/{file}")), place.read(&format!("model/{file}")), "{file}");
    }
    place.run("verify out --against model").fine();
    let said = place.run("eval out --glue stsb=p.tsv --ppl sample --window 32 --max-windows 4 --json").fine();
    let found: Value = serde_json::from_str(&said.stdout).expect("JSON");
    let name = "first+max-pooled states, Dense 6 (GELU), Dense 4 (Identity)";
    assert_eq!(found["glue"][0]["predictions"], format!("cosine of {name}"));
    assert_eq!(found["fidelity"][0]["pooling"], name.replace("-pooled states", ""));
    assert!(found["fidelity"][0]["cosine"].as_f64().is_some_and(|x| x > 0.5 && x < 1.0), "{found}");
    fs::remove_file(place.path("model/2_Dense/model.safetensors")).expect("there");
    place.run(&format!("compress model --method svd {fast} -o other")).refused(&["2_Dense/model.safetensors"]);
    assert!(!place.path("other").exists());
}

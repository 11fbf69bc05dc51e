//! Memory of files that are larger than what is fuzzed: headers and indexes of very many entries.

use crate::targets::golden;
use crate::targets::memory::{limit, measured};
use crate::targets::place::Place;
use candle_core::Device;
use serde_json::{Map, Value, json};
use softlm::checkpoint::{Source, TensorFile};
use softlm::model::Model;
use std::fmt::Write;

const TENSORS: usize = 200_000;

/// A file of so many tensors of one byte, those of a step within the numbers.
fn many(numbers: impl Iterator<Item = usize>) -> Vec<u8> {
    let mut json = String::from("{");
    for (at, number) in numbers.enumerate() {
        let comma = if at > 0 { "," } else { "" };
        let end = at + 1;
        let _ = write!(
            json,
            r#"{comma}"model.layers.{number}.weight":{{"dtype":"U8","shape":[1],"data_offsets":[{at},{end}]}}"#
        );
    }
    json.push('}');
    let data = json.matches("dtype").count();
    [&(json.len() as u64).to_le_bytes(), json.as_bytes(), &vec![0; data]].concat()
}

/// One whose header is this.
fn header(json: &str) -> Vec<u8> {
    [&(json.len() as u64).to_le_bytes(), json.as_bytes()].concat()
}

#[test]
fn a_header_of_very_many_tensors_takes_its_size_twice_at_most() {
    let place = Place::new();
    place.file("config.json", b"{}");
    let file = many(0..TENSORS);
    place.file("model.safetensors", &file);
    let (source, peak) = measured(|| Source::open(place.path()).expect("opened"));
    assert!(peak <= 2 * file.len(), "{peak} bytes of memory for {} bytes", file.len());
    assert_eq!(source.names().count(), TENSORS);
    assert_eq!(source.numbers_behind("model.layers.").count(), TENSORS);
    let info = source.info("model.layers.4711.weight").expect("listed");
    assert_eq!((&info.shape[..], info.bytes()), (&[1][..], 1));
    let (_, cloned) = measured(|| source.clone());
    assert!(cloned < 1 << 16, "a clone took {cloned} bytes");
}

#[test]
fn an_index_of_very_many_tensors_too() {
    let place = Place::new();
    place.file("config.json", b"{}");
    let shard = |number: usize| if number.is_multiple_of(2) { "a.safetensors" } else { "b.safetensors" };
    let [a, b] = [0, 1].map(|first| many((first..TENSORS).step_by(2)));
    place.file("a.safetensors", &a);
    place.file("b.safetensors", &b);
    let mut index = format!(r#"{{"metadata":{{"total_size":{TENSORS}}},"weight_map":{{"#);
    for number in 0..TENSORS {
        let comma = if number > 0 { "," } else { "" };
        let _ = write!(index, r#"{comma}"model.layers.{number}.weight":"{}""#, shard(number));
    }
    index.push_str("}}");
    place.file("model.safetensors.index.json", index.as_bytes());
    let size = a.len() + b.len() + index.len();
    let (source, peak) = measured(|| Source::open(place.path()).expect("opened"));
    assert!(peak <= 2 * size, "{peak} bytes of memory for {size} bytes");
    let (problems, peak) = measured(|| source.index_problems());
    assert_eq!(problems, Vec::<String>::new());
    assert!(peak < 1 << 16, "{peak} bytes to compare");
}

#[test]
fn what_no_header_has_is_refused_before_it_takes_memory() {
    let place = Place::new();
    let ones = vec!["1"; 5_000_000].join(",");
    let strings: String = (0..700_000).map(|i| format!(r#""{i}":"","#)).collect();
    let nested = "[".repeat(5_000_000);
    for (name, json) in [
        ("dimensions", format!(r#"{{"w":{{"dtype":"F32","shape":[{ones}],"data_offsets":[0,4]}}}}"#)),
        ("strings", format!(r#"{{"__metadata__":{{{strings}"x":""}}}}"#)),
        ("nesting", format!(r#"{{"w":{{"dtype":"F32","other":{nested}"#)),
        ("a name", format!(r#"{{"{}":{{"dtype":"F32","shape":[1],"data_offsets":[0,5]}}}}"#, "n".repeat(8_000_000))),
    ] {
        let file = header(&json);
        let path = place.file("x.safetensors", &file);
        let (opened, peak) = measured(|| TensorFile::open(&path).map(drop));
        assert!(opened.is_err(), "{name}");
        assert!(peak <= limit(file.len()), "{name}: {peak} bytes of memory for {} bytes", file.len());
    }
}

/// A file of F16 tensors of these shapes, all zeros.
fn zeros(tensors: impl Iterator<Item = (String, Vec<usize>)>) -> Vec<u8> {
    let (mut json, mut end) = (String::from("{"), 0);
    for (name, shape) in tensors {
        let (comma, start) = (if end > 0 { "," } else { "" }, end);
        end += 2 * shape.iter().product::<usize>();
        let _ = write!(json, r#"{comma}"{name}":{{"dtype":"F16","shape":{shape:?},"data_offsets":[{start},{end}]}}"#);
    }
    json.push('}');
    [&(json.len() as u64).to_le_bytes(), json.as_bytes(), &vec![0; end]].concat()
}

#[test]
fn blocks_and_experts_are_not_made_for_a_tensor_each() {
    let embedding = ("model.embed_tokens.weight".to_string(), vec![96, 24]);
    let blocks = (0..TENSORS).map(|i| (format!("model.layers.{i}.x"), vec![1]));
    let many = 60_000;
    let router = ("model.layers.0.block_sparse_moe.gate.weight".to_string(), vec![many, 24]);
    let experts = (0..many).map(|i| (format!("model.layers.0.block_sparse_moe.experts.{i}.w1.weight"), vec![1]));
    let experts = experts.chain([("model.layers.1.x".to_string(), vec![1]), router]);
    for (model, key, count, tensors) in [
        ("llama-tiny-bias", "num_hidden_layers", TENSORS, blocks.chain([embedding.clone()]).collect::<Vec<_>>()),
        ("mixtral-tiny", "num_local_experts", many, experts.chain([embedding]).collect()),
    ] {
        let place = Place::new();
        let config = golden::read(&format!("models/{model}/config.json"));
        let mut config: Map<String, Value> = serde_json::from_slice(&config).expect("JSON");
        config.insert(key.to_string(), json!(count));
        place.file("config.json", Value::Object(config).to_string().as_bytes());
        let file = zeros(tensors.into_iter());
        place.file("model.safetensors", &file);
        let source = Source::open(place.path()).expect("opened");
        let (loaded, peak) = measured(|| Model::load(source, &Device::Cpu).map(drop));
        let error = format!("{:#}", loaded.expect_err("more than there can be"));
        assert!(error.contains(&format!("`{key}` = {count}")) && error.contains("supported"), "{error}");
        assert!(peak <= limit(file.len()), "{model}: {peak} bytes of memory for {} bytes", file.len());
    }
}

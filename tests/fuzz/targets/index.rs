//! A folder of a model whose weights are spread over shards. What is accepted has every tensor that the index lists, where
//! the index has it.

use super::place::Place;
use super::{Target, header, mutate, parts, refused};
use softlm::checkpoint::Source;
use softlm::pipeline::checkpoint_sizes;

pub const TARGET: Target = Target { name: "index", seeds, mutate: mutate::files, run };

const INDEX: &str = "model.safetensors.index.json";
/// Names that are written as they are, and names whose content is a header.
const FILES: [&str; 4] = ["config.json", "model.safetensors", INDEX, "a.safetensors"];
const HEADERS: [(&str, &str); 3] =
    [("a.header", "a.safetensors"), ("b.header", "b.safetensors"), ("c.header", "sub/c.safetensors")];

fn seeds() -> Vec<Vec<u8>> {
    let tensor = |name: &str| format!(r#"{{"{name}":{{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}}}"#);
    let index = |size: &str, map: &str| format!(r#"{{"metadata":{{"total_size":{size}}},"weight_map":{{{map}}}}}"#);
    let config = ("config.json", r#"{"model_type":"any"}"#.to_string());
    let three = [
        config.clone(),
        (INDEX, index("12", r#""x":"a.safetensors","y":"b.safetensors","layers.0.z":"sub/c.safetensors""#)),
        ("a.header", tensor("x")),
        ("b.header", tensor("y")),
        ("c.header", tensor("layers.0.z")),
    ];
    let incomplete = [config.clone(), (INDEX, index("4.0", r#""x":"a.safetensors""#)), ("a.header", tensor("x"))];
    let bare = [config, (INDEX, r#"{"weight_map":{"x":"a.safetensors"}}"#.into()), ("a.header", tensor("x"))];
    vec![parts::join(&three), parts::join(&incomplete), parts::join(&bare)]
}

fn run(input: &[u8], place: &Place) -> bool {
    place.clear(&[]);
    let parts = parts::split(input);
    for name in FILES {
        if let Some(content) = parts::find(&parts, name) {
            place.file(name, content);
        }
    }
    for (part, name) in HEADERS {
        if let Some(json) = parts::find(&parts, part) {
            place.file(name, &header::file(json, &vec![0; header::data_of(json)]));
        }
    }
    let source = match Source::open(place.path()) {
        Ok(source) => source,
        Err(error) => return refused(&error),
    };
    let files = source.files();
    assert!(files.iter().all(|file| place.path().join(&file.name).exists()), "shards lie inside the folder");
    let mut total = 0;
    let names: Vec<&str> = source.names().collect();
    assert!(names.is_sorted_by(|a, b| a < b), "names are sorted and unique");
    for name in &names {
        let info = source.info(name).expect("listed");
        assert_eq!(source.bytes(name).expect("within its file").len(), info.bytes());
        assert!(source.is_stored(name) && source.has_prefix(name));
        total += info.bytes() as u64;
    }
    assert_eq!(checkpoint_sizes(&source).1, total);
    source.index_problems();
    assert!(source.numbers_behind("layers.").count() <= names.len());
    true
}

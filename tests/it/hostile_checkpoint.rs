//! Damaged and malicious checkpoints: each is refused with a message that names the culprit and a hint, without a panic
//! and without more memory than the file has.

use candle_core::{DType, Device};
use half::f16;
use softlm::checkpoint::{Dtype, NamedTensor, Source, TensorFile, write_tensors};
use softlm::error::UserError;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// A folder with a valid config.json and nothing else.
fn folder() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), r#"{"model_type": "any"}"#).unwrap();
    dir
}

/// A safetensors file of this header and this many zero bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn folder_with(weights: &[u8]) -> TempDir {
    let dir = folder();
    fs::write(dir.path().join("model.safetensors"), weights).unwrap();
    dir
}

/// A folder with an index and shards of one f32 tensor each: (file, tensor).
fn sharded(index: &str, shards: &[(&str, &str)]) -> TempDir {
    let dir = folder();
    fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    for (file, tensor) in shards {
        let tensors = [NamedTensor::f32(*tensor, [1], &[0.0])];
        write_tensors(&dir.path().join(file), &tensors, &BTreeMap::new()).unwrap();
    }
    dir
}

/// The error has all these parts in its message and comes with a hint.
fn assert_says(error: &anyhow::Error, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    let hint = error.downcast_ref::<UserError>().and_then(UserError::hint_text);
    assert!(hint.is_some_and(|hint| hint.len() > 10), "no hint: {text}");
}

fn assert_refused(dir: &Path, parts: &[&str]) {
    match Source::open(dir) {
        Ok(_) => panic!("opened although it should say {parts:?}"),
        Err(error) => assert_says(&error, parts),
    }
}

fn assert_weights_refused(weights: &[u8], parts: &[&str]) {
    assert_refused(folder_with(weights).path(), &[&["model.safetensors"], parts].concat());
}

const GOOD: &str = r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;

#[test]
fn the_pattern_of_these_tests_opens_when_sound() {
    let dir = folder_with(&file(GOOD, 8));
    assert_eq!(Source::open(dir.path()).unwrap().names().collect::<Vec<_>>(), ["w"]);
}

#[test]
fn a_missing_folder() {
    assert_refused(Path::new("/no/such/model"), &["/no/such/model"]);
}

#[test]
fn a_file_instead_of_a_folder() {
    let dir = folder();
    assert_refused(&dir.path().join("config.json"), &["config.json", "is a file"]);
}

#[test]
fn a_missing_config() {
    let dir = tempfile::tempdir().unwrap();
    assert_refused(dir.path(), &["has no config.json"]);
}

#[test]
fn a_config_that_is_no_json_object() {
    for text in ["{", "[]", "", "\u{feff}", "{\u{feff}}", "null"] {
        let dir = folder_with(&file(GOOD, 8));
        fs::write(dir.path().join("config.json"), text).unwrap();
        assert_refused(dir.path(), &["config.json", "not a JSON object"]);
    }
}

#[test]
fn no_weights_at_all() {
    assert_refused(folder().path(), &["has no weights"]);
}

#[test]
fn pickles_are_not_opened() {
    for name in ["pytorch_model.bin", "model.pt", "consolidated.00.pth"] {
        let dir = folder();
        // A file that cannot be read proves that refusing does not read it.
        fs::create_dir(dir.path().join(name)).unwrap();
        assert_refused(dir.path(), &[name, "pickle"]);
        let error = Source::open(dir.path()).err().unwrap();
        assert!(error.downcast_ref::<UserError>().unwrap().hint_text().unwrap().contains("safe_serialization=True"));
    }
}

#[test]
fn gguf_is_refused() {
    let dir = folder();
    fs::write(dir.path().join("model.q4.gguf"), "GGUF").unwrap();
    assert_refused(dir.path(), &["model.q4.gguf"]);
}

#[test]
fn safetensors_under_an_unknown_name() {
    let dir = folder();
    fs::write(dir.path().join("weights.safetensors"), file(GOOD, 8)).unwrap();
    assert_refused(dir.path(), &["weights.safetensors"]);
}

#[test]
fn a_pointer_of_git_lfs() {
    assert_weights_refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5\n", &["Git LFS"]);
}

#[test]
fn files_cut_at_any_byte() {
    let whole = file(GOOD, 8);
    for length in 0..whole.len() {
        assert_weights_refused(&whole[..length], &[]);
    }
    assert_weights_refused(&whole[..whole.len() - 1], &["tensor w", "0..8", "7 bytes"]);
    assert_weights_refused(&whole[..20], &["header of 54 bytes", "20"]);
    assert_weights_refused(&[], &["0 bytes"]);
}

#[test]
fn a_header_length_of_2_to_the_60() {
    for length in [1u64 << 60, u64::MAX, 1 << 32] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend([b' '; 64]);
        assert_weights_refused(&bytes, &[&length.to_string()]);
    }
}

#[test]
fn a_real_header_of_more_than_100_mb() {
    let dir = folder();
    let path = dir.path().join("model.safetensors");
    fs::write(&path, 200_000_000u64.to_le_bytes()).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(300_000_000).unwrap();
    assert_refused(dir.path(), &["200000000"]);
}

#[test]
fn headers_that_are_no_json() {
    for header in ["{", "[]", "nonsense", r#"{"w":3}"#, r#"{"w":{"dtype":"F32"}}"#, "\u{0}", r#"{"w":null}"#] {
        assert_weights_refused(&file(header, 8), &["invalid header"]);
    }
    let named = r#"{"layer.7":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#;
    assert_weights_refused(&file(named, 4), &["layer.7", "-1"]);
    let deep = "[".repeat(100_000);
    assert_weights_refused(&file(&deep, 0), &["invalid header"]);
    let mut not_text = file(GOOD, 8);
    not_text[10] = 0xff;
    assert_weights_refused(&not_text, &["invalid header"]);
}

#[test]
fn overlapping_tensors() {
    let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    assert_weights_refused(&file(header, 12), &["tensor b overlaps a by 4 bytes"]);
    let same = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    assert_weights_refused(&file(same, 8), &["overlaps a by 8 bytes"]);
}

#[test]
fn holes() {
    let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[2],"data_offsets":[9,11]}}"#;
    assert_weights_refused(&file(header, 11), &["1 bytes between a and tensor b"]);
    let first = r#"{"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}"#;
    assert_weights_refused(&file(first, 4), &["2 bytes between the header and tensor b"]);
    assert_weights_refused(&file(GOOD, 13), &["5 bytes after w"]);
}

#[test]
fn offsets_out_of_range() {
    for offsets in ["[8,16]", "[8,0]", "[0,18446744073709551615]", "[18446744073709551608,18446744073709551615]"] {
        let header = format!(r#"{{"w":{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}}}"#);
        assert_weights_refused(&file(&header, 8), &["tensor w", "8 bytes"]);
    }
}

#[test]
fn shapes_that_do_not_fit_or_overflow() {
    for shape in ["[3]", "[]", "[2,2]", "[0]", "[4294967296,4294967296,4]", "[9223372036854775808,2]"] {
        let header = format!(r#"{{"w":{{"dtype":"F32","shape":{shape},"data_offsets":[0,8]}}}}"#);
        assert_weights_refused(&file(&header, 8), &["tensor w", "does not fit its 8 bytes"]);
    }
}

#[test]
fn an_unknown_dtype() {
    let header = r#"{"w":{"dtype":"F128","shape":[1],"data_offsets":[0,16]}}"#;
    assert_weights_refused(&file(header, 16), &["tensor w", "F128"]);
}

#[test]
fn a_name_twice_in_one_header() {
    let header = r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#;
    assert_weights_refused(&file(header, 16), &["tensor w twice"]);
    let metadata = r#"{"__metadata__":{},"__metadata__":{}}"#;
    assert_weights_refused(&file(metadata, 0), &["__metadata__"]);
}

#[test]
fn metadata_of_other_types() {
    assert_weights_refused(&file(r#"{"__metadata__":{"a":1}}"#, 0), &["__metadata__"]);
}

#[test]
fn a_missing_shard() {
    let dir = sharded(r#"{"weight_map":{"a":"s1.safetensors","b":"s2.safetensors"}}"#, &[("s1.safetensors", "a")]);
    assert_refused(dir.path(), &["s2.safetensors"]);
}

#[test]
fn a_tensor_that_its_shard_lacks() {
    let dir = sharded(r#"{"weight_map":{"a":"s1.safetensors","b":"s1.safetensors"}}"#, &[("s1.safetensors", "a")]);
    assert_refused(dir.path(), &["s1.safetensors", "tensor b"]);
}

#[test]
fn a_tensor_in_two_shards() {
    let dir = sharded(
        r#"{"weight_map":{"a":"s1.safetensors","b":"s2.safetensors"}}"#,
        &[("s1.safetensors", "a"), ("s2.safetensors", "b")],
    );
    let tensors = ["a", "b"].map(|name| NamedTensor::f32(name, [1], &[0.0]));
    write_tensors(&dir.path().join("s2.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    assert_refused(dir.path(), &["tensor a is stored twice", "s1.safetensors", "s2.safetensors"]);
}

#[test]
fn a_tensor_twice_in_the_index() {
    let index = r#"{"weight_map":{"a":"s1.safetensors","a":"s2.safetensors"}}"#;
    let dir = sharded(index, &[("s1.safetensors", "a"), ("s2.safetensors", "a")]);
    assert_refused(dir.path(), &["tensor a twice", "s1.safetensors", "s2.safetensors"]);
}

#[test]
fn an_index_that_leads_out_of_the_folder() {
    for shard in ["../s1.safetensors", "/etc/passwd", "", "a/../../b"] {
        let dir = sharded(&format!(r#"{{"weight_map":{{"a":"{shard}"}}}}"#), &[]);
        assert_refused(dir.path(), &["outside its folder", shard]);
    }
}

#[test]
fn an_index_that_is_no_index() {
    for index in ["{", "[]", "{}", r#"{"weight_map":["a"]}"#, r#"{"weight_map":{"a":1}}"#] {
        assert_refused(sharded(index, &[]).path(), &["model.safetensors.index.json", "not a valid index"]);
    }
    assert_refused(sharded(r#"{"weight_map":{}}"#, &[]).path(), &["lists no tensor"]);
}

/// One tensor of four values as f16, opened.
fn values(values: [f32; 4]) -> (TempDir, Source) {
    let dir = folder();
    let data = values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
    let ints = NamedTensor::new("ids", Dtype::I64, [2], vec![0; 16]);
    let tensors = [NamedTensor::new("w", Dtype::F16, [2, 2], data), ints];
    write_tensors(&dir.path().join("model.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    let source = Source::open(dir.path()).unwrap();
    (dir, source)
}

#[test]
fn nan_and_infinity_are_found_when_loaded() {
    for (bad, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let (_dir, source) = values([0.0, 1.0, bad, 3.0]);
        for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
            let error = source.tensor("w", &[2, 2], dtype, &Device::Cpu).unwrap_err();
            assert_says(&error, &["tensor w", shown, "[1, 0]"]);
        }
        assert_says(&source.rows("w", &[0, 1], 2, DType::F32, &Device::Cpu).unwrap_err(), &["w", shown, "[1, 0]"]);
        assert!(source.rows("w", &[0, 0], 2, DType::F32, &Device::Cpu).is_ok());
    }
}

#[test]
fn a_wrong_shape_a_wrong_type_and_a_missing_tensor() {
    let (_dir, source) = values([0.0; 4]);
    let load = |name: &str, shape: &[usize]| source.tensor(name, shape, DType::F32, &Device::Cpu).unwrap_err();
    assert_says(&load("w", &[4]), &["tensor w", "[2, 2]", "[4]"]);
    assert_says(&load("ids", &[2]), &["tensor ids", "I64"]);
    assert_says(&load("gone", &[2]), &["no tensor gone"]);
    assert!(source.bytes("gone").is_err());
}

#[test]
fn a_vocabulary_larger_than_the_embedding() {
    let (_dir, source) = values([0.0; 4]);
    let error = source.rows("w", &[1, 2], 2, DType::F32, &Device::Cpu).unwrap_err();
    assert_says(&error, &["token id 2", "w", "2 rows"]);
    assert_says(&source.rows("w", &[0], 3, DType::F32, &Device::Cpu).unwrap_err(), &["w", "[2, 2]", "3"]);
    assert_says(&source.rows("ids", &[0], 2, DType::F32, &Device::Cpu).unwrap_err(), &["ids", "[2]"]);
}

#[test]
fn side_files_stay_inside_the_folder() {
    let (_dir, source) = values([0.0; 4]);
    assert_says(&source.side_file("../x").unwrap_err(), &["../x"]);
    assert!(source.side_file("tokenizer.json").unwrap().is_none());
}

#[test]
fn a_single_file_that_is_missing_or_no_file() {
    let error = TensorFile::open(Path::new("/no/such/block.safetensors")).err().unwrap();
    assert_says(&error, &["/no/such/block.safetensors"]);
    let dir = folder();
    fs::create_dir(dir.path().join("model.safetensors")).unwrap();
    assert_refused(dir.path(), &["model.safetensors"]);
}

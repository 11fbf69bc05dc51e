//! A safetensors file. What is accepted is what its header says, is read the same by the format's own crate, and comes back
//! when it is written again.

use super::mutate::{self, Random};
use super::place::Place;
use super::{Target, golden, refused};
use safetensors::SafeTensors;
use softlm::checkpoint::{NamedTensor, TensorFile, write_sealed, write_tensors};
use std::collections::BTreeMap;

pub const TARGET: Target = Target { name: "header", seeds, mutate: change, run };

/// Files up to this size are written again.
const WRITTEN: usize = 16 << 10;

fn seeds() -> Vec<Vec<u8>> {
    let small = [
        (r#"{}"#, 0),
        (r#"{"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}"#, 24),
        (
            r#"{"b":{"dtype":"BF16","shape":[],"data_offsets":[8,10]},"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]},
              "c":{"dtype":"F4","shape":[4],"data_offsets":[10,12]},"d":{"dtype":"F8_E4M3","shape":[0,7],"data_offsets":[12,12]}}"#,
            12,
        ),
    ];
    let mut seeds: Vec<Vec<u8>> = small.iter().map(|(json, data)| file(json.as_bytes(), &vec![1; *data])).collect();
    let (_, json) = golden::described(&golden::root().join("models/gpt2-tiny"));
    let data = data_of(&json);
    seeds.push(file(&json, &vec![0; data]));
    seeds
}

/// Mostly changes the header's JSON and keeps its length right.
fn change(input: &mut Vec<u8>, random: &mut Random, seeds: &[Vec<u8>]) {
    let json = json_of(input);
    if json.is_empty() || random.below(4) == 0 {
        return mutate::bytes(input, random, seeds);
    }
    let data = input[8 + json.len()..].to_vec();
    let mut json = json.to_vec();
    mutate::json(&mut json, random, &seeds.iter().map(|seed| json_of(seed).to_vec()).collect::<Vec<_>>());
    *input = file(&json, &data);
}

fn run(input: &[u8], place: &Place) -> bool {
    place.clear(&["again", "sealed"]);
    let file = match TensorFile::open(&place.file("model.safetensors", input)) {
        Ok(file) => file,
        Err(error) => return refused(&error),
    };
    let theirs = SafeTensors::deserialize(input).expect("what is accepted is what the format's crate accepts");
    let names: Vec<&str> = file.names().collect();
    assert!(names.is_sorted_by(|a, b| a < b), "names are sorted and unique");
    assert_eq!(names.len(), theirs.len());
    let mut data = 0;
    for name in &names {
        let (info, view) = (file.info(name).expect("listed"), theirs.tensor(name).expect("theirs too"));
        let bytes = file.bytes(name).expect("within the file");
        assert_eq!((info.dtype, &info.shape[..]), (view.dtype(), view.shape()));
        assert_eq!(bytes, view.data());
        assert_eq!(info.bytes() * 8, info.elements() * info.dtype.bitsize());
        data += bytes.len();
    }
    assert_eq!(8 + json_of(input).len() + data, file.size());
    if input.len() <= WRITTEN {
        let mut tensors: Vec<NamedTensor> = names.iter().map(|name| file.read(name).expect("listed")).collect();
        let again = place.path().join("again");
        write_tensors(&again, &tensors, file.metadata()).expect("written");
        same(&TensorFile::open(&again).expect("what was written is read"), &tensors, file.metadata());
        let sealed = place.path().join("sealed");
        tensors.reverse();
        write_sealed(&sealed, &tensors, &BTreeMap::new()).expect("written");
        TensorFile::open_sealed(&sealed).expect("its checksum fits");
    }
    true
}

fn same(file: &TensorFile, tensors: &[NamedTensor], metadata: &BTreeMap<String, String>) {
    assert_eq!(file.metadata(), metadata);
    assert_eq!(file.names().count(), tensors.len());
    for tensor in tensors {
        assert_eq!(file.read(&tensor.name).expect("written"), *tensor);
    }
}

/// The JSON of the header of a file; nothing if there is none.
pub fn json_of(file: &[u8]) -> &[u8] {
    let Some((length, rest)) = file.split_first_chunk() else { return &[] };
    rest.get(..u64::from_le_bytes(*length).min(rest.len() as u64 + 1) as usize).unwrap_or_default()
}

/// A file of this header and data.
pub fn file(json: &[u8], data: &[u8]) -> Vec<u8> {
    [&(json.len() as u64).to_le_bytes(), json, data].concat()
}

/// The bytes of data that a header speaks of, if they are few.
pub fn data_of(json: &[u8]) -> usize {
    const MOST: u64 = 8 << 20;
    let header: serde_json::Value = serde_json::from_slice(json).unwrap_or_default();
    let ends = header.as_object().into_iter().flatten().filter_map(|(_, tensor)| tensor["data_offsets"][1].as_u64());
    ends.max().filter(|end| *end <= MOST).unwrap_or(0) as usize
}

//! The header of one safetensors file, checked before anything trusts it.
//!
//! A file is: header length n (u64, little-endian), n bytes of JSON, data. The JSON maps each tensor's name to dtype,
//! shape and the byte range it holds in the data; the ranges must tile the data without overlap or hole.

use super::TensorInfo;
use super::lfs::refuse_pointer;
use crate::user_bail;
use anyhow::Result;
use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use std::collections::{BTreeMap, HashSet};
use std::fmt;

/// No real header comes near this; parsing a larger one would only help an attacker.
const MAX_HEADER: u64 = 100_000_000;
const LENGTH_FIELD: usize = 8;
pub(super) const DAMAGED: &str = "the file is damaged or was not copied completely: download or copy it again";

/// What a header says, tensors in the order in which their data lies.
#[derive(Debug)]
pub(super) struct Header {
    pub tensors: Vec<(String, TensorInfo)>,
    pub metadata: BTreeMap<String, String>,
}

/// Reads and checks the header of a whole file given as bytes; only the header's part of them is touched. `file` is how
/// errors name it.
pub(super) fn parse(file: &str, bytes: &[u8]) -> Result<Header> {
    let size = bytes.len();
    refuse_pointer(file, bytes)?;
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_FIELD>() else {
        user_bail!("{file} is {size} bytes long, too short for a safetensors file"; "{DAMAGED}");
    };
    let length = u64::from_le_bytes(*length);
    if length > rest.len() as u64 {
        user_bail!("{file} announces a header of {length} bytes, but the whole file has {size}"; "{DAMAGED}");
    }
    if length > MAX_HEADER {
        user_bail!("{file} has a header of {length} bytes; at most {MAX_HEADER} are accepted"; "{DAMAGED}");
    }
    let (json, data) = rest.split_at(length as usize);
    let raw: RawHeader = match serde_json::from_slice(json) {
        Ok(raw) => raw,
        Err(error) => user_bail!("{file} has an invalid header: {error}"; "{DAMAGED}"),
    };
    let mut names = HashSet::new();
    if let Some((name, _)) = raw.tensors.iter().find(|(name, _)| !names.insert(name.as_str())) {
        user_bail!("{file} lists tensor {name} twice"; "write the checkpoint again with each tensor stored once");
    }
    let data_start = LENGTH_FIELD + json.len();
    let mut tensors = Vec::with_capacity(raw.tensors.len());
    for (name, tensor) in raw.tensors {
        tensors.push((tensor.check(file, &name, data_start, data.len())?, name));
    }
    tensors.sort_by_key(|(info, _)| (info.range.start, info.range.end));
    check_tiling(file, &tensors, data_start, size)?;
    let tensors = tensors.into_iter().map(|(info, name)| (name, info)).collect();
    Ok(Header { tensors, metadata: raw.metadata })
}

/// Checks that the ranges cover the data exactly once.
fn check_tiling(file: &str, tensors: &[(TensorInfo, String)], data_start: usize, size: usize) -> Result<()> {
    let mut end = data_start;
    let mut before = "the header";
    for (info, name) in tensors {
        let start = info.range.start;
        if start < end {
            let shared = end - start;
            user_bail!("{file}: tensor {name} overlaps {before} by {shared} bytes"; "{DAMAGED}");
        }
        if start > end {
            let gap = start - end;
            user_bail!("{file}: {gap} bytes between {before} and tensor {name} belong to no tensor"; "{DAMAGED}");
        }
        end = info.range.end;
        before = name;
    }
    if end != size {
        let rest = size - end;
        user_bail!("{file}: {rest} bytes after {before} belong to no tensor"; "{DAMAGED}");
    }
    Ok(())
}

/// One tensor as the JSON has it.
#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl RawTensor {
    /// Checks the tensor against itself and against the data's length; the result's range counts from the file's start.
    fn check(self, file: &str, name: &str, data_start: usize, data: usize) -> Result<TensorInfo> {
        let RawTensor { dtype, shape, data_offsets: (start, end) } = self;
        let Ok(dtype) = serde_json::from_value::<Dtype>(dtype.as_str().into()) else {
            user_bail!(
                "{file}: tensor {name} has the unknown dtype {dtype:?}";
                "convert the checkpoint to BF16, F16 or F32"
            );
        };
        if start > end || end > data {
            user_bail!(
                "{file}: tensor {name} lies at bytes {start}..{end} of the data, which has {data} bytes";
                "{DAMAGED}"
            );
        }
        let bits = shape.iter().try_fold(dtype.bitsize(), |product, &dim| product.checked_mul(dim));
        let held = end - start;
        if bits.is_none_or(|bits| bits % 8 != 0 || bits / 8 != held) {
            user_bail!(
                "{file}: tensor {name} of dtype {dtype} and shape {shape:?} does not fit its {held} bytes";
                "{DAMAGED}"
            );
        }
        Ok(TensorInfo { dtype, shape, file: 0, range: data_start + start..data_start + end })
    }
}

/// The header's JSON with names as they come, repeated ones included: a map type would drop them silently.
struct RawHeader {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, RawTensor)>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut metadata: Option<BTreeMap<String, String>> = None;
                let mut tensors = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    let named = |error| A::Error::custom(format!("{name}: {error}"));
                    if name != "__metadata__" {
                        let tensor = map.next_value().map_err(named)?;
                        tensors.push((name, tensor));
                    } else if metadata.is_none() {
                        metadata = Some(map.next_value::<Option<_>>().map_err(named)?.unwrap_or_default());
                    } else {
                        return Err(A::Error::duplicate_field("__metadata__"));
                    }
                }
                Ok(RawHeader { metadata: metadata.unwrap_or_default(), tensors })
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// A JSON object of strings as pairs in file order, repeated keys included.
pub(super) struct Pairs(pub Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor;
        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(PairsVisitor)
    }
}

/// The bytes that come before the data: length field and JSON, padded with spaces so that the data starts at a multiple
/// of 8. `tensors` are name, dtype, shape and length in bytes, in the order in which their data will follow.
pub(super) fn build<'a>(
    metadata: &BTreeMap<String, String>,
    tensors: impl Iterator<Item = (&'a str, Dtype, &'a [usize], usize)>,
) -> Vec<u8> {
    let mut json = serde_json::Map::new();
    json.insert("__metadata__".into(), serde_json::json!(metadata));
    let mut start = 0;
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [start, start + bytes];
        json.insert(
            name.into(),
            serde_json::json!({ "dtype": dtype.to_string(), "shape": shape, "data_offsets": offsets }),
        );
        start += bytes;
    }
    let mut json = serde_json::Value::Object(json).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut json);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_headers_parse_and_are_aligned() {
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string()), ("é\"".into(), "x\n".into())]);
        for extra in 0..9 {
            let name = "n".repeat(extra);
            let tensors = [("a\"b", Dtype::I64, vec![2, 2], 32), (name.as_str(), Dtype::BF16, vec![0, 7], 0)];
            let mut bytes = build(&metadata, tensors.iter().map(|t| (t.0, t.1, &t.2[..], t.3)));
            assert_eq!(bytes.len() % 8, 0);
            let start = bytes.len();
            bytes.resize(start + 32, 0);
            let header = parse("file", &bytes).unwrap();
            assert_eq!(header.metadata, metadata);
            let (found, info) = &header.tensors[0];
            assert_eq!((found.as_str(), info.dtype, &info.shape[..]), ("a\"b", Dtype::I64, &[2, 2][..]));
            assert_eq!(info.range, start..start + 32);
            assert_eq!(header.tensors[1].1.shape, [0, 7]);
        }
    }

    #[test]
    fn the_crate_of_the_format_reads_built_headers() {
        let shape = [3usize, 1];
        let mut bytes = build(&BTreeMap::new(), [("w", Dtype::F32, &shape[..], 12)].into_iter());
        bytes.extend([1u8; 12]);
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.tensor("w").unwrap().shape(), shape);
    }
}

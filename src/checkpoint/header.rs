//! The header of one safetensors file, checked before anything trusts it.
//!
//! A file is: header length n (u64, little-endian), n bytes of JSON, data. The JSON maps each tensor's name to dtype,
//! shape and the byte range it holds in the data; the ranges must tile the data without overlap or hole.

use super::TensorInfo;
use super::lfs::refuse_pointer;
use super::names::{NameTable, NameTableBuilder};
use crate::user_bail;
use anyhow::{Error, Result};
use safetensors::Dtype;
use serde::Deserialize;
use serde::de::value::{Error as NotADtype, StrDeserializer};
use serde::de::{DeserializeSeed, Deserializer, Error as _, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

/// No real header comes near this; parsing a larger one would only help an attacker.
const MAX_HEADER: u64 = 100_000_000;
/// Dimensions of a tensor: NumPy and PyTorch have no more.
const MOST_DIMENSIONS: usize = 64;
/// Free-form strings: real headers have a handful.
const MOST_STRINGS: usize = 1 << 16;
const LENGTH_FIELD: usize = 8;
const METADATA: &str = "__metadata__";
pub(super) const DAMAGED: &str = "the file is damaged or was not copied completely: download or copy it again";

/// What a header says.
#[derive(Debug)]
pub(super) struct Header {
    pub tensors: NameTable<TensorInfo>,
    pub metadata: BTreeMap<String, String>,
    /// Where the data begins.
    pub end: usize,
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
    let end = LENGTH_FIELD + json.len();
    let mut reader = Reader {
        data_start: end,
        data: data.len(),
        file,
        tensors: NameTableBuilder::new(),
        metadata: None,
        fault: None,
    };
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let read = deserializer.deserialize_map(&mut reader).and_then(|()| deserializer.end());
    if let Some(fault) = reader.fault {
        return Err(fault);
    }
    if let Err(error) = read {
        user_bail!("{file} has an invalid header: {error}"; "{DAMAGED}");
    }
    let tensors = match reader.tensors.finish() {
        Ok(tensors) => tensors,
        Err(twice) => {
            user_bail!("{file} lists tensor {} twice", twice.name; "write the checkpoint again with each tensor stored once")
        }
    };
    check_tiling(file, &tensors, end, size)?;
    Ok(Header { tensors, metadata: reader.metadata.unwrap_or_default(), end })
}

/// Checks that the ranges cover the data exactly once.
fn check_tiling(file: &str, tensors: &NameTable<TensorInfo>, data_start: usize, size: usize) -> Result<()> {
    let mut order: Vec<u32> = (0..tensors.len() as u32).collect();
    order.sort_by_key(|&at| {
        let range = &tensors.at(at as usize).1.range;
        (range.start, range.end)
    });
    let mut end = data_start;
    let mut before = "the header";
    for at in order {
        let (name, info) = tensors.at(at as usize);
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
struct RawTensor<'j> {
    #[serde(borrow)]
    dtype: Cow<'j, str>,
    shape: Shape,
    data_offsets: (usize, usize),
}

impl RawTensor<'_> {
    /// Checks the tensor against itself and against the data's length; the result's range counts from the file's start.
    fn check(self, file: &str, name: &str, data_start: usize, data: usize) -> Result<TensorInfo> {
        let RawTensor { dtype, shape: Shape(shape), data_offsets: (start, end) } = self;
        let text: StrDeserializer<NotADtype> = dtype.as_ref().into_deserializer();
        let Ok(dtype) = Dtype::deserialize(text) else {
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

/// A shape, of no more memory than it needs.
struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dimensions;
        impl<'de> Visitor<'de> for Dimensions {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "at most {MOST_DIMENSIONS} dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
                let (mut dimensions, mut count) = ([0; MOST_DIMENSIONS], 0);
                while let Some(dimension) = list.next_element()? {
                    let Some(place) = dimensions.get_mut(count) else {
                        return Err(A::Error::invalid_length(count + 1, &self));
                    };
                    *place = dimension;
                    count += 1;
                }
                Ok(Shape(dimensions[..count].to_vec()))
            }
        }
        deserializer.deserialize_seq(Dimensions)
    }
}

/// The free-form strings.
struct Strings(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Strings;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "an object of at most {MOST_STRINGS} strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strings, A::Error> {
                let mut strings = BTreeMap::new();
                while let Some((key, text)) = map.next_entry()? {
                    strings.insert(key, text);
                    if strings.len() > MOST_STRINGS {
                        return Err(A::Error::invalid_length(strings.len(), &self));
                    }
                }
                Ok(Strings(strings))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// Puts a header's JSON into a table, tensor by tensor, repeated names included: a map type would drop them silently.
struct Reader<'f> {
    file: &'f str,
    data_start: usize,
    data: usize,
    tensors: NameTableBuilder<TensorInfo>,
    metadata: Option<BTreeMap<String, String>>,
    /// What is wrong with a tensor, which says more than that the JSON cannot be read.
    fault: Option<Error>,
}

impl<'de> Visitor<'de> for &mut Reader<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_key_seed(Append(self.tensors.name()))?.is_some() {
            let name = self.tensors.pending();
            if name == METADATA {
                self.tensors.drop_pending();
                if self.metadata.is_some() {
                    return Err(A::Error::duplicate_field(METADATA));
                }
                let strings: Option<Strings> = map.next_value().map_err(|error| named(METADATA, error))?;
                self.metadata = Some(strings.map(|strings| strings.0).unwrap_or_default());
                continue;
            }
            let tensor: RawTensor = map.next_value().map_err(|error| named(name, error))?;
            match tensor.check(self.file, name, self.data_start, self.data) {
                Ok(info) => {
                    // Names are part of a header, whose length is bounded.
                    self.tensors.push(info);
                }
                Err(fault) => {
                    self.fault = Some(fault);
                    return Err(A::Error::custom("a tensor contradicts itself"));
                }
            }
        }
        Ok(())
    }
}

fn named<E: serde::de::Error>(name: &str, error: E) -> E {
    E::custom(format!("{name}: {error}"))
}

/// Writes a string of JSON behind another one.
pub(super) struct Append<'s>(pub &'s mut String);

impl<'de> DeserializeSeed<'de> for Append<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Append<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.0.push_str(text);
        Ok(())
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
            assert_eq!((header.end, header.tensors.len()), (start, 2));
            let info = header.tensors.get("a\"b").unwrap();
            assert_eq!((info.dtype, &info.shape[..]), (Dtype::I64, &[2, 2][..]));
            assert_eq!(info.range, start..start + 32);
            assert_eq!(header.tensors.get(&name).unwrap().shape, [0, 7]);
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

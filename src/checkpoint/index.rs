//! `model.safetensors.index.json`: which shard holds which tensor.

use super::file::TensorFile;
use super::folder::{BOM, INDEX};
use super::header::{Append, DAMAGED};
use super::lfs::refuse_pointer;
use super::names::{NameTable, NameTableBuilder};
use super::read::read_settings;
use super::source::Source;
use crate::hub::is_inside;
use crate::user_bail;
use anyhow::Result;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// The index of a sharded checkpoint.
pub(super) struct Index {
    /// `metadata.total_size`, if it says.
    total_size: Option<u64>,
    /// File names of the shards, sorted, each once.
    shards: Vec<String>,
    /// Tensor name to place in `shards`.
    tensors: NameTable<u32>,
}

impl Index {
    /// Reads the index `path` and checks it against itself.
    pub fn read(path: &Path) -> Result<Arc<Index>> {
        let shown = path.display();
        let bytes = read_settings(path)?;
        refuse_pointer(&shown.to_string(), &bytes)?;
        let raw: Raw = match serde_json::from_slice(bytes.strip_prefix(BOM).unwrap_or(&bytes)) {
            Ok(raw) => raw,
            Err(error) => user_bail!("{shown} is not a valid index: {error}"; "{DAMAGED}"),
        };
        let WeightMap { shards, tensors } = raw.weight_map;
        if let Some(shard) = shards.keys().find(|shard| !is_inside(shard)) {
            user_bail!(
                "{shown} names {shard:?}, a file outside its folder";
                "a shard must lie beside the index; do not trust this checkpoint"
            );
        }
        // As they came, then as they are sorted.
        let mut place = vec![0; shards.len()];
        let mut names = Vec::with_capacity(shards.len());
        for (sorted, (name, came)) in shards.into_iter().enumerate() {
            place[came as usize] = sorted as u32;
            names.push(name);
        }
        let mut tensors = match tensors.finish() {
            Ok(tensors) => tensors,
            Err(twice) => {
                let [first, second] = [twice.first, twice.second].map(|came| &names[place[came as usize] as usize]);
                user_bail!(
                    "{shown} lists tensor {} twice, in {first} and in {second}", twice.name;
                    "write the checkpoint again with each tensor stored once"
                )
            }
        };
        if tensors.len() == 0 {
            user_bail!("{shown} lists no tensor"; "{DAMAGED}");
        }
        tensors.values_mut().for_each(|shard| *shard = place[*shard as usize]);
        Ok(Arc::new(Index { total_size: raw.metadata.total_size.0, shards: names, tensors }))
    }

    /// File names of the shards, sorted.
    pub fn shards(&self) -> &[String] {
        &self.shards
    }

    /// Fails unless each tensor is in its shard; `files` are opened in the order of [`shards`](Self::shards).
    pub fn check(&self, files: &[TensorFile]) -> Result<()> {
        for (tensor, &shard) in self.tensors.iter() {
            if files[shard as usize].info(tensor).is_none() {
                let shard = &self.shards[shard as usize];
                user_bail!("{INDEX} says that {shard} holds tensor {tensor}, but it does not"; "{DAMAGED}");
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    metadata: Metadata,
    weight_map: WeightMap,
}

#[derive(Deserialize, Default)]
struct Metadata {
    #[serde(default)]
    total_size: Size,
}

/// A number of bytes, which some writers store as a float; what is no number says nothing.
#[derive(Default)]
struct Size(Option<u64>);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl<'de> Visitor<'de> for Number {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a number of bytes")
            }

            fn visit_u64<E>(self, n: u64) -> Result<Size, E> {
                Ok(Size(Some(n)))
            }

            fn visit_i64<E>(self, n: i64) -> Result<Size, E> {
                Ok(Size(u64::try_from(n).ok()))
            }

            fn visit_f64<E>(self, n: f64) -> Result<Size, E> {
                Ok(Size(Some(n as u64)))
            }

            fn visit_bool<E>(self, _: bool) -> Result<Size, E> {
                Ok(Size(None))
            }

            fn visit_str<E>(self, _: &str) -> Result<Size, E> {
                Ok(Size(None))
            }

            fn visit_unit<E>(self) -> Result<Size, E> {
                Ok(Size(None))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Size, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Size(None))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Size, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Size(None))
            }
        }
        deserializer.deserialize_any(Number)
    }
}

/// The map as it comes, repeated names included.
struct WeightMap {
    /// File names of the shards, in the order in which they come first.
    shards: BTreeMap<String, u32>,
    tensors: NameTableBuilder<u32>,
}

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut read = WeightMap { shards: BTreeMap::new(), tensors: NameTableBuilder::new() };
                while map.next_key_seed(Append(read.tensors.name()))?.is_some() {
                    let shard = map.next_value_seed(Shard(&mut read.shards))?;
                    if !read.tensors.push(shard) {
                        return Err(A::Error::custom("its names are too long"));
                    }
                }
                Ok(read)
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// The number of a shard, which is new if its name is.
struct Shard<'s>(&'s mut BTreeMap<String, u32>);

impl<'de> DeserializeSeed<'de> for Shard<'_> {
    type Value = u32;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<u32, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Shard<'_> {
    type Value = u32;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("the name of a shard")
    }

    fn visit_str<E>(self, name: &str) -> Result<u32, E> {
        if let Some(&known) = self.0.get(name) {
            return Ok(known);
        }
        let new = self.0.len() as u32;
        self.0.insert(name.to_string(), new);
        Ok(new)
    }
}

impl Source {
    /// One sentence for everything that is wrong with the index of a sharded checkpoint: it lists every tensor, each in
    /// the shard that holds it, and their total size.
    pub fn index_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let Some(index) = &self.index else { return problems };
        let mut total = 0;
        for name in self.names() {
            let Some(info) = self.info(name) else { continue };
            total += info.bytes() as u64;
            // Opening has checked the other direction: what is listed is there.
            if index.tensors.get(name).is_none() {
                let file = self.file_of(info).name();
                problems.push(format!("{name} lies in {file}, but the index does not list it."));
            }
        }
        match index.total_size {
            Some(size) if size == total => {}
            Some(size) => {
                problems.push(format!("The index gives {size} bytes in total, but the tensors have {total}."));
            }
            None => problems.push(format!("The index has no metadata.total_size; the tensors have {total} bytes.")),
        }
        problems
    }
}

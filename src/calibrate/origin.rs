//! What statistics were made from.

use crate::checkpoint::{Identity, Source, differences, open_file};
use crate::compute::Compute;
use crate::error::UserError;
use crate::hash::sha256;
use crate::ops::ProductType;
use crate::user_bail;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::Read;
use std::path::Path;

/// Format 2 kept no checksums, and looked finished while it was being filled.
pub const FORMAT: u32 = 3;
/// Bytes of a description, at most: a block takes about 70 and a text about 150.
const LARGEST: u64 = 2 << 20;
const AGAIN: &str = "collect the statistics again, into a new folder";

/// What a folder of statistics was made from: everything that decides the numbers in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// Version of this format.
    pub format: u32,
    /// Version of softlm that collected them.
    pub softlm: String,
    /// The model, as the user named it.
    pub model: String,
    /// Hashes of its files: everything that the statistics depend on beside the text.
    #[serde(flatten)]
    pub identity: Identity,
    /// Number of blocks.
    pub blocks: usize,
    /// What text went in, one entry per merged run.
    pub texts: Vec<String>,
    /// Tokens that were summed.
    pub tokens: u64,
    /// Tokens whose activations were kept to measure errors on.
    pub heldout: u64,
    /// The statistics that these are the sum of: the fingerprint of each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<String>,
    /// What products of activations were computed in, where that was not f32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub products: Option<ProductType>,
}

impl Origin {
    /// Describes statistics of `source` over `text`, which has so many `tokens` beside those held out.
    pub fn new(source: &Source, blocks: usize, text: String, tokens: usize, heldout: usize) -> Result<Self> {
        Ok(Self {
            format: FORMAT,
            softlm: env!("CARGO_PKG_VERSION").to_string(),
            model: source.label().to_string(),
            identity: source.identity()?,
            blocks,
            texts: vec![text],
            tokens: tokens as u64,
            heldout: heldout as u64,
            parts: Vec::new(),
            products: None,
        })
    }

    /// The same, computed as `compute` says.
    pub fn computed(self, compute: &Compute) -> Self {
        let products = compute.products();
        Self { products: (products != ProductType::F32).then_some(products), ..self }
    }

    /// Whether the same statistics would come out. The model may be named in another way.
    pub fn is_same(&self, other: &Self) -> bool {
        *self == Self { model: self.model.clone(), ..other.clone() }
    }

    /// A hash of all that [`Origin::is_same`] compares, hexadecimal.
    pub fn id(&self) -> Result<String> {
        let nameless = Self { model: String::new(), ..self.clone() };
        Ok(sha256(serde_json::to_string(&nameless)?))
    }

    /// Every file by which the two models differ.
    pub(super) fn differences(&self, other: &Self) -> Vec<String> {
        let mut all = differences(&self.identity.weights, &other.identity.weights);
        all.extend(differences(&self.identity.files, &other.identity.files));
        if all.is_empty() && self.blocks != other.blocks {
            all.push(format!("the number of blocks is {}, not {}", other.blocks, self.blocks));
        }
        if all.is_empty() && self.products != other.products {
            let [other, own] = [other, self].map(|origin| origin.products.unwrap_or(ProductType::F32).name());
            all.push(format!("products are computed in {other}, not {own}"));
        }
        all
    }
}

/// The file that describes a folder of statistics.
#[derive(Serialize, Deserialize)]
pub(super) struct Description {
    #[serde(flatten)]
    pub origin: Origin,
    /// The checksum of every block's file, once all are there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checksums: Vec<String>,
}

impl Description {
    /// Reads the description `path` of a folder that is `finished` or not.
    pub fn read(path: &Path, finished: bool) -> Result<Self> {
        let shown = path.display();
        let undescribed =
            |why: String| UserError::new(format!("{shown} does not describe statistics: {why}")).hint(AGAIN);
        let mut text = String::new();
        let file = open_file(path)?;
        // What a file says of its size is not what some of them hold.
        let read = file.take(LARGEST + 1).read_to_string(&mut text);
        read.map_err(|error| undescribed(error.to_string()))?;
        if text.len() as u64 > LARGEST {
            return Err(undescribed(format!("it has more than {LARGEST} bytes")).into());
        }
        let stored: Value = serde_json::from_str(&text).map_err(|error| undescribed(error.to_string()))?;
        match stored["format"].as_u64() {
            Some(1) => user_bail!(
                "{shown} has format 1, which does not record the config.json and the tokenizer it was made with";
                "{AGAIN}"
            ),
            Some(2) => user_bail!("{shown} has format 2, of softlm 0.2, which keeps no checksums"; "{AGAIN}"),
            Some(format) if format != u64::from(FORMAT) => {
                user_bail!("{shown} has format {format}, this version of softlm reads {FORMAT}"; "{AGAIN}")
            }
            _ => {}
        }
        let read: Self = serde_json::from_value(stored).map_err(|error| undescribed(error.to_string()))?;
        let Self { origin, checksums } = &read;
        if finished && checksums.len() != origin.blocks {
            let why = format!("it speaks of {} blocks and has the checksums of {}", origin.blocks, checksums.len());
            return Err(undescribed(why).into());
        }
        Ok(read)
    }

    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn statistics_computed_in_another_type_are_others() {
        let f32 =
            Origin::new(&Source::demo(), 4, "a text".into(), 10, 5).unwrap().computed(&Compute::from(&Device::Cpu));
        let tf32 = Origin { products: Some(ProductType::Tf32), ..f32.clone() };
        assert!(f32.is_same(&f32.clone()) && f32.differences(&f32).is_empty() && !f32.is_same(&tf32));
        assert_eq!(tf32.differences(&f32), ["products are computed in f32, not tf32"]);
        assert!(!serde_json::to_string(&f32).unwrap().contains("products"));
        let read: Origin = serde_json::from_str(&serde_json::to_string(&tf32).unwrap()).unwrap();
        assert_eq!(read, tf32);
    }
}

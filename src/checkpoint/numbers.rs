//! Where stored weights are no numbers.

use super::convert;
use super::source::{Source, place};
use anyhow::Result;
use std::fmt;

/// Bytes checked before their pages are given back.
const STRIDE: usize = 4 << 20;

/// An element that is NaN, infinite or beyond f32.
#[derive(Debug, Clone, PartialEq)]
pub struct NotFinite {
    /// Its place in the tensor.
    pub place: Vec<usize>,
    /// What is stored there.
    pub value: f64,
}

impl NotFinite {
    /// The row it is in: its place along the first dimension.
    pub fn row(&self) -> usize {
        self.place.first().copied().unwrap_or(0)
    }
}

/// `NaN at [3, 7]`
impl fmt::Display for NotFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, value } = self;
        match value.is_finite() {
            true => write!(f, "{value:e} at {place:?}, beyond what f32 can hold"),
            false => write!(f, "{value} at {place:?}"),
        }
    }
}

impl Source {
    /// The first element of each row of a tensor that is no finite f32, for at most `most` rows. None for a tensor that
    /// is not stored as floating point. Reads the tensor once, in the memory of one stride.
    pub fn not_finite(&self, name: &str, most: usize) -> Result<Vec<NotFinite>> {
        let (file, info) = self.locate(name)?;
        let mut found = Vec::new();
        let Some(size) = convert::float_size(info.dtype) else { return Ok(found) };
        let (elements, row) = (info.elements(), info.shape.iter().skip(1).product::<usize>().max(1));
        let mut next = 0;
        while next < elements && found.len() < most {
            let end = elements.min(next + STRIDE / size);
            let range = info.range.start + next * size..info.range.start + end * size;
            let bad = convert::first_bad(info.dtype, file.at(range.clone()));
            file.release(range);
            next = match bad {
                None => end,
                Some(bad) => {
                    let index = next + bad.index;
                    found.push(NotFinite { place: place(&info.shape, index), value: bad.stored });
                    (index / row + 1) * row
                }
            };
        }
        Ok(found)
    }
}

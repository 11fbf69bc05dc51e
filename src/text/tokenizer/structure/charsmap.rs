//! SentencePiece's compiled normaliser: a trie as a double array of numbers, and the strings that its leaves point at.
//!
//! The library goes through the array wherever its numbers lead, so every state that a text can reach is visited here.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// How many bytes a byte of text may become.
///
/// # Errors
/// If the map is cut, or leads out of itself.
pub(super) fn growth(map: &str) -> Result<u64, String> {
    let padding = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let bytes =
        GeneralPurpose::new(&STANDARD, padding).decode(map).map_err(|error| format!("is not base64: {error}"))?;
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or("is cut: it has no length")?;
    let length = u32::from_le_bytes(*length) as usize / 4 * 4;
    let (array, strings) = rest
        .split_at_checked(length)
        .ok_or_else(|| format!("is cut: its trie should have {length} bytes, but {} are left", rest.len()))?;
    let strings = std::str::from_utf8(strings).map_err(|_| "has strings that are not UTF-8")?;
    let array: Vec<usize> = array.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit) as usize).collect();
    walk(&array, strings, &ends(strings)).ok_or_else(|| "leads out of itself".to_string())
}

/// Where the string that begins at each byte ends: in front of the next zero.
fn ends(strings: &str) -> Vec<usize> {
    let mut ends = vec![strings.len(); strings.len() + 1];
    for (at, byte) in strings.bytes().enumerate().rev() {
        ends[at] = if byte == 0 { at } else { ends[at + 1] };
    }
    ends
}

/// Visits every state. `None` if one leads out of the array or a leaf out of the strings.
fn walk(array: &[usize], strings: &str, ends: &[usize]) -> Option<u64> {
    let mut growth = 1;
    let mut seen = vec![false; array.len()];
    let root = offset(*array.first()?);
    // States of the same depth one after the other, so that the first way to one is the shortest.
    let (mut states, mut depth) = (vec![root], 0u64);
    while !states.is_empty() {
        depth += 1;
        let mut next = Vec::new();
        for state in states {
            for byte in 1..=255 {
                let at = state ^ byte;
                let unit = *array.get(at)?;
                if unit & (1 << 31 | 0xff) != byte {
                    continue;
                }
                let child = at ^ offset(unit);
                if unit >> 8 & 1 == 1 {
                    let start = array.get(child)? & ((1 << 31) - 1);
                    if !strings.is_char_boundary(start) {
                        return None;
                    }
                    growth = growth.max(((ends[start] - start) as u64).div_ceil(depth));
                }
                // A state outside has no children inside either: asking for one is what fails.
                if !std::mem::replace(seen.get_mut(child)?, true) {
                    next.push(child);
                }
            }
        }
        states = next;
    }
    Some(growth)
}

fn offset(unit: usize) -> usize {
    (unit >> 10) << ((unit & (1 << 9)) >> 6)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A map of one block: `key` becomes `text`.
    fn map(key: u8, text: &str, value: u32) -> Vec<u8> {
        let mut array = [0u32; 512];
        // The root's children are at 256 ^ byte; the leaf of the one is at 1 ^ (256 ^ byte).
        array[0] = 256 << 10;
        array[256 ^ usize::from(key)] = 1 << 10 | 1 << 8 | u32::from(key);
        array[256 ^ usize::from(key) ^ 1] = value | 1 << 31;
        let mut bytes = 2048u32.to_le_bytes().to_vec();
        bytes.extend(array.iter().flat_map(|unit| unit.to_le_bytes()));
        bytes.extend(text.bytes());
        bytes
    }

    fn of(bytes: &[u8]) -> Result<u64, String> {
        growth(&base64::engine::general_purpose::STANDARD.encode(bytes))
    }

    #[test]
    fn growth_is_that_of_the_longest_string() {
        assert_eq!(of(&map(b'a', "xyz\0", 0)).unwrap(), 3);
        assert_eq!(of(&map(b'a', "xyz\0", 3)).unwrap(), 1);
        assert_eq!(of(&map(b'a', "xyz", 1)).unwrap(), 2);
    }

    #[test]
    fn what_leads_out_is_refused() {
        for (bytes, said) in [
            (map(b'a', "xyz\0", 5), "out of itself"),
            (map(b'a', "é\0", 1), "out of itself"),
            (map(b'a', "xyz\0", 0)[..1000].to_vec(), "996 are left"),
            (vec![0; 4], "out of itself"),
            (vec![0, 0], "no length"),
            (vec![0xff; 4], "cut"),
            ([&4u32.to_le_bytes()[..], &(1u32 << 10).to_le_bytes()].concat(), "out of itself"),
        ] {
            let found = of(&bytes).unwrap_err();
            assert!(found.contains(said), "{found}");
        }
        assert!(growth("AAAA").unwrap_err().contains("cut"));
        assert!(growth("/////w==").unwrap_err().contains("cut"));
        assert!(growth("%").unwrap_err().contains("base64"));
    }
}

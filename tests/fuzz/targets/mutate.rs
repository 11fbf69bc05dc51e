//! Changes of inputs, the same for the same seed: of bytes, of JSON by its values, and of inputs of several files.

use super::parts;
use std::ops::Range;

/// No input grows beyond this.
const LONGEST: usize = 128 << 10;

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`, or 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(self.below(items.len()))
    }

    /// A range within `length`, more often a short one.
    fn range(&mut self, length: usize) -> Range<usize> {
        let start = self.below(length + 1);
        let most = if self.below(3) > 0 { (length - start).min(16) } else { length - start };
        start..start + self.below(most + 1)
    }
}

/// Changes bytes.
pub fn bytes(input: &mut Vec<u8>, random: &mut Random, seeds: &[Vec<u8>]) {
    for _ in 0..1 + random.below(3) {
        change_bytes(input, random, seeds);
    }
    input.truncate(LONGEST);
}

fn change_bytes(input: &mut Vec<u8>, random: &mut Random, seeds: &[Vec<u8>]) {
    let at = random.below(input.len());
    let range = random.range(input.len());
    match random.below(9) {
        0 | 1 if !input.is_empty() => input[at] ^= 1 << random.below(8),
        2 if !input.is_empty() => {
            input[at] = *random
                .pick(&[0, 1, 0x7f, 0x80, 0xc0, 0xff, b'"', b'{', b'[', b',', b'\n', b'\t', b'-', b'9'])
                .unwrap_or(&0);
        }
        3 => drop(input.drain(range)),
        4 => {
            let copy = input[range].to_vec();
            input.splice(at..at, copy);
        }
        5 => input.truncate(at),
        6 => {
            // As a length or count would be stored.
            let number =
                random.pick(NUMBERS).and_then(|text| text.parse::<u64>().ok()).unwrap_or(at as u64).to_le_bytes();
            let number = &number[..*random.pick(&[1, 2, 4, 8]).unwrap_or(&8)];
            let place = if random.below(3) == 0 { 0 } else { at };
            input.splice(place..(place + number.len()).min(input.len()), number.iter().copied());
        }
        7 => {
            if let Some(other) = random.pick(seeds) {
                let piece = other[random.range(other.len())].to_vec();
                input.splice(range, piece);
            }
        }
        _ => {
            let text = random.pick(STRINGS).copied().unwrap_or_default();
            input.splice(at..at, text.bytes());
        }
    }
}

const NUMBERS: &[&str] = &[
    "0",
    "-0",
    "1",
    "-1",
    "2",
    "7",
    "255",
    "256",
    "65535",
    "65536",
    "1000000",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "4611686018427387904",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "0.5",
    "-0.5",
    "1e-320",
    "1e38",
    "3.5e38",
    "1e308",
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "-Infinity",
    "1.0",
    "2.0",
    "1e3",
];

const STRINGS: &[&str] = &[
    "",
    " ",
    "a",
    "\u{0}",
    "\u{feff}",
    "\u{202e}",
    "\n",
    "\t",
    "é",
    "\u{1f600}",
    "../x",
    "/dev/zero",
    "/etc/passwd",
    ".",
    "..",
    "a/b",
    "a\\b",
    "{}",
    "[]",
    "null",
    "true",
    "%s%n",
    "F32",
    "BF16",
    "I64",
    "Sequence",
    "Split",
    "ByteLevel",
    "llama",
    "gpt2",
    "softlm",
    "$&",
    "(a+)+",
    "[[:alpha:]",
    "\\p{L}",
    "<s>",
    "__metadata__",
];

const VALUES: &[&str] = &[
    "null",
    "true",
    "false",
    "{}",
    "[]",
    "[[]]",
    "[0]",
    "[null]",
    "{\"a\":1}",
    "{\"\":null}",
    "\"\\ud800\"",
    "\"\\u0000\"",
    "[1,2,3]",
    "[-1]",
    "[0,0]",
    "[18446744073709551615,2]",
    "[\"a\"]",
    "\"NaN\"",
    "\"Infinity\"",
    "\"12\"",
    "\"-1\"",
];

/// Changes values of a JSON text; what is no JSON is changed as bytes.
pub fn json(input: &mut Vec<u8>, random: &mut Random, seeds: &[Vec<u8>]) {
    for _ in 0..1 + random.below(3) {
        let found = values(input);
        let before = input.len();
        if found.is_empty() || random.below(10) == 0 {
            change_bytes(input, random, seeds);
        } else {
            change_json(input, &found, random, seeds);
        }
        if input.len() > LONGEST && input.len() > before {
            input.truncate(LONGEST);
        }
    }
}

fn change_json(input: &mut Vec<u8>, found: &[Found], random: &mut Random, seeds: &[Vec<u8>]) {
    let Some(chosen) = random.pick(found) else { return };
    let (value, whole) = (chosen.value.clone(), chosen.whole.clone());
    match random.below(11) {
        0 | 1 => drop(input.splice(value, hostile(random))),
        // A number near the one that was there.
        2 => {
            let text = String::from_utf8_lossy(&input[value.clone()]).into_owned();
            let near = match (text.parse::<i64>(), text.parse::<f64>()) {
                (Ok(n), _) => {
                    let change = *random.pick(&[1, -1, 2, 8, 100, -100]).unwrap_or(&1);
                    if random.below(2) == 0 {
                        n.wrapping_add(change).to_string()
                    } else {
                        n.wrapping_mul(change).to_string()
                    }
                }
                (_, Ok(x)) => format!("{:e}", x * *random.pick(&[-1.0, 1e10, 1e-10, 0.5]).unwrap_or(&1.0)),
                _ => return drop(input.splice(value, hostile(random))),
            };
            drop(input.splice(value, near.into_bytes()));
        }
        // Gone, with one of the commas around it.
        3 | 4 => {
            let behind = input[whole.end..].iter().position(|byte| !byte.is_ascii_whitespace()).map(|i| whole.end + i);
            let before = input[..whole.start].iter().rposition(|byte| !byte.is_ascii_whitespace());
            let range = match (behind, before) {
                (Some(i), _) if input[i] == b',' => whole.start..i + 1,
                (_, Some(i)) if input[i] == b',' => i..whole.end,
                _ => whole,
            };
            drop(input.drain(range));
        }
        // Twice, keys too.
        5 => {
            let copy = [&input[whole.clone()], b","].concat();
            let times = if random.below(8) == 0 { 50 } else { 1 };
            drop(input.splice(whole.start..whole.start, copy.repeat(times)));
        }
        // Another value of this text.
        6 | 7 => {
            let other = random.pick(found).map(|other| input[other.value.clone()].to_vec());
            drop(input.splice(value, other.unwrap_or_default()));
        }
        // A value, or a key with one, of another text.
        8 => {
            let Some(seed) = random.pick(seeds) else { return };
            let others = values(seed);
            let Some(other) = random.pick(&others) else { return };
            let (range, place) = if other.whole != other.value && whole != value {
                (other.whole.clone(), whole)
            } else {
                (other.value.clone(), value)
            };
            drop(input.splice(place, seed[range].iter().copied()));
        }
        9 => {
            let deep = *random.pick(&[1, 2, 9, 100, 126, 130, 5000]).unwrap_or(&1);
            let (open, close) = *random.pick(&[("[", "]"), ("{\"a\":", "}")]).unwrap_or(&("[", "]"));
            let inner = String::from_utf8_lossy(&input[value.clone()]).into_owned();
            drop(input.splice(value, format!("{}{inner}{}", open.repeat(deep), close.repeat(deep)).into_bytes()));
        }
        // Another key.
        _ => {
            let key = random.pick(STRINGS).copied().unwrap_or_default();
            if whole != value {
                drop(input.splice(whole.start + 1..whole.start + 1, key.bytes()));
            } else if input[value.start] == b'"' {
                drop(input.splice(value.start + 1..value.start + 1, key.bytes()));
            }
        }
    }
}

/// A value that is seldom meant.
fn hostile(random: &mut Random) -> Vec<u8> {
    match random.below(8) {
        0..4 => random.pick(NUMBERS).copied().unwrap_or_default().into(),
        4 | 5 => serde_json::to_vec(random.pick(STRINGS).copied().unwrap_or_default()).unwrap_or_default(),
        6 => random.pick(VALUES).copied().unwrap_or_default().into(),
        _ => {
            let long = *random.pick(&[100, 1000, 5000]).unwrap_or(&100);
            let text = random.pick(STRINGS).copied().unwrap_or_default();
            serde_json::to_vec(&text.repeat(long / text.len().max(1))).unwrap_or_default()
        }
    }
}

/// Where a value stands, alone and with the key in front of it.
struct Found {
    value: Range<usize>,
    whole: Range<usize>,
}

/// The values of a text that may be JSON, in the order in which they end.
fn values(text: &[u8]) -> Vec<Found> {
    let mut found = Vec::new();
    // The places where containers begin, and of the key that is waiting for its value in each.
    let mut open: Vec<(usize, Option<usize>)> = vec![(0, None)];
    let mut i = 0;
    while i < text.len() {
        let start = i;
        match text[i] {
            b'"' => {
                i += 1;
                while i < text.len() && text[i] != b'"' {
                    i += if text[i] == b'\\' { 2 } else { 1 };
                }
                i = (i + 1).min(text.len());
                let behind = text[i..].iter().find(|byte| !byte.is_ascii_whitespace());
                if let (Some(b':'), Some((_, key))) = (behind, open.last_mut()) {
                    *key = Some(start);
                    continue;
                }
            }
            b'{' | b'[' => {
                open.push((i, None));
                i += 1;
                continue;
            }
            b'}' | b']' if open.len() > 1 => {
                i += 1;
                let (begin, _) = open.pop().unwrap_or_default();
                close(&mut found, &mut open, begin, i);
                continue;
            }
            byte if byte.is_ascii_alphanumeric() || byte == b'-' => {
                while i < text.len() && (text[i].is_ascii_alphanumeric() || b"+-.".contains(&text[i])) {
                    i += 1;
                }
            }
            _ => {
                i += 1;
                continue;
            }
        }
        close(&mut found, &mut open, start, i);
    }
    found
}

fn close(found: &mut Vec<Found>, open: &mut [(usize, Option<usize>)], start: usize, end: usize) {
    let key = open.last_mut().and_then(|(_, key)| key.take());
    found.push(Found { value: start..end, whole: key.unwrap_or(start)..end });
}

/// Changes one of several files, by what it looks like, or which there are.
pub fn files(input: &mut Vec<u8>, random: &mut Random, seeds: &[Vec<u8>]) {
    let split = |input: &[u8]| -> Vec<(String, Vec<u8>)> {
        parts::split(input).into_iter().map(|(name, content)| (name.to_string(), content.to_vec())).collect()
    };
    let mut own = split(input);
    if own.is_empty() || random.below(20) == 0 {
        return bytes(input, random, seeds);
    }
    let other = random.pick(seeds).map(|seed| split(seed)).unwrap_or_default();
    let at = random.below(own.len());
    match random.below(16) {
        0 => drop(own.remove(at)),
        1 => own.extend(random.pick(&other).cloned()),
        2 => {
            if let Some((name, _)) = random.pick(&other) {
                own[at].0 = name.clone();
            }
        }
        _ => {
            let (name, content) = &mut own[at];
            let alike: Vec<Vec<u8>> =
                other.iter().filter(|(other, _)| other == name).map(|(_, content)| content.clone()).collect();
            let looks = content.iter().find(|byte| !byte.is_ascii_whitespace());
            if matches!(looks, Some(b'{' | b'[')) {
                json(content, random, &alike)
            } else {
                bytes(content, random, &alike)
            }
        }
    }
    *input = parts::join(&own);
}

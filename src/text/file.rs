//! Local files: what they hold decides how they are read, not only what they are called.
//!
//! Texts may come from anywhere that ends, pipes included, and are read once. How much is read is bounded by the memory
//! there is, never by what a file says of itself.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{self, BufRead, Read};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use serde_json::Value;

use crate::checkpoint::refuse_pointer;
use crate::error::UserError;
use crate::memory;
use crate::user_bail;

/// How every parquet file begins.
const PARQUET: &[u8] = b"PAR1";
/// Endings of files that are text whatever they look like.
const TEXT: &[&str] = &["txt", "text", "md"];
/// Endings of files that hold JSON or nothing.
const JSON: &[&str] = &["json", "jsonl", "ndjson"];
const ROW: &str = "each line, or each item of one array, must be an object like {\"text\": \"...\"}";

/// Bytes of text that are read at most where the system does not tell how much memory there is, or has more.
const MOST: u64 = 32 << 30;
/// Bytes of a prompt at most.
const PROMPT: u64 = 64 << 20;
/// Bytes that are read at once.
const PART: u64 = 1 << 20;

/// What a file holds.
pub(super) enum Content {
    /// Text as it stands in the file, without the byte order mark.
    Text(String),
    /// Values of a JSON Lines file or of one JSON array, and where each is.
    Json(Vec<(String, Value)>),
    /// A parquet file, which [`parquet`](super::parquet) reads.
    Parquet,
}

/// Reads the file `path`.
///
/// # Errors
/// A [`UserError`] for what cannot be read, is not UTF-8, or is called JSON and is none.
pub(super) fn read(path: &Path) -> Result<Content> {
    content(&path.display().to_string(), path, bytes(path)?)
}

/// What bytes are that errors call `what` and whose kind the ending of `path` may tell.
pub(super) fn content(what: &str, path: &Path, bytes: Vec<u8>) -> Result<Content> {
    if bytes.starts_with(PARQUET) {
        return Ok(Content::Parquet);
    }
    let text = decode(what, bytes)?;
    let ends = |ends: &[&str]| path.extension().is_some_and(|e| ends.iter().any(|end| e.eq_ignore_ascii_case(end)));
    if ends(TEXT) {
        return Ok(Content::Text(text));
    }
    if ends(JSON) {
        return json(what, &text).map(Content::Json);
    }
    // A text may begin with a brace: it is JSON only if all of it is.
    let may_be = text.trim_start().starts_with(['{', '[']);
    match may_be.then(|| json(what, &text)) {
        Some(Ok(rows)) if rows.iter().all(|(_, value)| value.is_object() || value.is_string()) => {
            Ok(Content::Json(rows))
        }
        _ => Ok(Content::Text(text)),
    }
}

/// A prompt that comes from `from`, which errors call `what`: text without an end would fill all memory.
///
/// # Errors
/// A [`UserError`] for what is no UTF-8 and for more than 64 MiB.
pub fn prompt(what: &str, from: impl Read) -> Result<String> {
    decode(what, bounded(what, from, 0, PROMPT)?)
}

/// The bytes of a file; of one that is no text perhaps only the first, which say so.
pub(super) fn bytes(path: &Path) -> Result<Vec<u8>> {
    let shown = path.display();
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => UserError::new(format!("there is no text file {shown}")).hint("check the path"),
        _ => UserError::new(format!("cannot read {shown}: {error}")).hint("check that you may read it"),
    };
    // Before it is opened, since that alone can change a device; and then again, since names can change.
    let metadata = path.metadata().map_err(unreadable)?;
    refuse_devices(path, &metadata)?;
    let what = shown.to_string();
    if !metadata.is_file() {
        // To open a pipe is to wait for who writes to it.
        return once(&what, || bounded(&what, File::open(path).map_err(unreadable)?, 0, most()));
    }
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    refuse_devices(path, &metadata)?;
    bounded(&what, file, metadata.len(), most())
}

/// The bytes of standard input.
pub(super) fn standard_input() -> Result<Vec<u8>> {
    once("-", || bounded("standard input", io::stdin().lock(), 0, most()))
}

/// What `read` gives, and the next time the same again: a pipe can be read only once, but be wanted for calibration and
/// evaluation.
fn once(name: &str, read: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
    static READ: Mutex<BTreeMap<String, Vec<u8>>> = Mutex::new(BTreeMap::new());
    let mut all = READ.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(bytes) = all.get(name) {
        return Ok(bytes.clone());
    }
    let bytes = read()?;
    all.insert(name.to_string(), bytes.clone());
    Ok(bytes)
}

fn refuse_devices(path: &Path, metadata: &Metadata) -> Result<()> {
    let shown = path.display();
    if metadata.is_dir() {
        user_bail!(
            "{shown} is a folder, not a text";
            "name one text file in it, or pipe several through cat and name -"
        );
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = metadata.file_type();
        if kind.is_char_device() || kind.is_block_device() || kind.is_socket() {
            user_bail!("{shown} is a device, not a text"; "name a file; standard input is named -");
        }
    }
    Ok(())
}

/// How many bytes of text are read at most: half of the memory that is free, as far as the system tells.
pub(super) fn most() -> u64 {
    memory::available().map_or(MOST, |free| (free / 2).min(MOST))
}

/// Reads to the end, which must come within `most` bytes. `size` is how many are expected. What is not text is not read on
/// as soon as its first part shows it.
pub(super) fn bounded(what: &str, mut from: impl Read, size: u64, most: u64) -> Result<Vec<u8>> {
    let too_long = |bytes: u64| {
        UserError::new(format!("{what} has {bytes} bytes or more, and {most} of text at most are read into memory"))
            .hint("give a part of it, for example what head -c leaves of it")
    };
    if size > most {
        return Err(too_long(size).into());
    }
    let mut bytes = Vec::with_capacity(size as usize);
    loop {
        let before = bytes.len();
        if let Err(error) = from.by_ref().take(PART).read_to_end(&mut bytes) {
            user_bail!("cannot read {what}: {error}"; "check that you may read it");
        }
        if bytes.len() as u64 > most {
            return Err(too_long(bytes.len() as u64).into());
        }
        let ends = ((bytes.len() - before) as u64) < PART;
        if ends || before == 0 && no_text(&bytes) {
            return Ok(bytes);
        }
    }
}

/// Whether bytes cannot be the beginning of a text.
fn no_text(bytes: &[u8]) -> bool {
    let damaged = || std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_some());
    bytes.starts_with(PARQUET) || is_wide(bytes) || damaged()
}

/// The lines of something unpacked, without their ends; none is longer than `most` bytes.
pub(super) fn lines(mut from: impl BufRead, most: u64) -> impl Iterator<Item = io::Result<String>> {
    std::iter::from_fn(move || {
        let mut line = String::new();
        match from.by_ref().take(most).read_line(&mut line) {
            Ok(0) => return None,
            Ok(read) if read as u64 == most && !line.ends_with('\n') => {
                return Some(Err(io::Error::other(format!("a line has {most} bytes or more"))));
            }
            Ok(_) => {}
            Err(error) => return Some(Err(error)),
        }
        if line.ends_with('\n') {
            line.pop();
            if line.ends_with('\r') {
                line.pop();
            }
        }
        Some(Ok(line))
    })
}

/// UTF-8 without its byte order mark.
fn decode(what: &str, bytes: Vec<u8>) -> Result<String> {
    refuse_pointer(what, &bytes)?;
    if is_wide(&bytes) {
        user_bail!("{what} is UTF-16 text"; "convert it first: iconv -f UTF-16 -t UTF-8 FILE > NEW");
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        UserError::new(format!("{what} is not UTF-8 text: byte {at} does not belong to any character"))
            .hint("convert it first, for example with iconv -t UTF-8; compressed files must be unpacked")
    })?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_string(),
        None => text,
    })
}

/// Whether bytes are UTF-16. Without a mark it is full of zeros, which no text has.
fn is_wide(bytes: &[u8]) -> bool {
    let marked = bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]);
    marked || bytes.iter().filter(|&&byte| byte == 0).count() > bytes.len() / 4
}

/// The values of a text that holds nothing else: JSON Lines, or the items of a single array.
fn json(what: &str, text: &str) -> Result<Vec<(String, Value)>> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let (mut rows, mut offset) = (Vec::new(), 0);
    let mut lines = Lines { text, seen: 0, line: 1 };
    loop {
        let place = format!("{what}, line {}", lines.at(offset));
        match values.next() {
            None => break,
            Some(Ok(value)) => rows.push((place, value)),
            Some(Err(error)) => user_bail!("{place} is not JSON: {error}"; "{ROW}"),
        }
        offset = values.byte_offset();
    }
    if let [(_, Value::Array(_))] = rows.as_slice()
        && let Some((_, Value::Array(items))) = rows.pop()
    {
        rows = items.into_iter().enumerate().map(|(i, item)| (format!("{what}, item {}", i + 1), item)).collect();
    }
    Ok(rows)
}

/// Line numbers of ascending places.
struct Lines<'t> {
    text: &'t str,
    seen: usize,
    line: usize,
}

impl Lines<'_> {
    /// The line of the first character from `offset` on that is no white space.
    fn at(&mut self, offset: usize) -> usize {
        let start = self.text.len() - self.text[offset..].trim_start().len();
        self.line += self.text[self.seen..start].matches('\n').count();
        self.seen = start;
        self.line
    }
}

/// The document that one JSON value is: an object's `text`, or a string.
pub(super) fn document(place: &str, value: Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text),
        Value::Object(mut object) => match object.remove("text") {
            Some(Value::String(text)) => Ok(text),
            _ => user_bail!("{place} has no text field"; "{ROW}"),
        },
        _ => user_bail!("{place} is neither an object nor a string"; "{ROW}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(name: &str, bytes: &[u8]) -> Result<Vec<String>> {
        match content(name, Path::new(name), bytes.to_vec())? {
            Content::Text(text) => Ok(vec![text]),
            Content::Json(rows) => rows.into_iter().map(|(place, value)| document(&place, value)).collect(),
            Content::Parquet => panic!("{name} is no parquet file"),
        }
    }

    #[test]
    fn what_does_not_end_is_not_read_on() {
        let bounded = |from: &mut dyn Read| bounded("it", from, 0, 3 << 20).map_err(|error| error.to_string());
        assert_eq!(bounded(&mut "é".repeat(1 << 20).as_bytes()).unwrap().len(), 2 << 20);
        assert!(bounded(&mut io::repeat(b'y')).unwrap_err().contains("3145728"));
        // What is no text is not read further than that shows.
        for byte in [0, 0xff] {
            let read = bounded(&mut io::repeat(byte)).unwrap();
            assert_eq!(read.len() as u64, PART);
            assert!(content("it", Path::new(""), read).is_err());
        }
        let claims = super::bounded("it", &b"x"[..], 1 << 60, 3 << 20).unwrap_err();
        assert!(claims.to_string().contains("1152921504606846976"), "{claims}");
    }

    #[test]
    fn lines_have_an_end() {
        let all = |text: &str| lines(text.as_bytes(), 4).collect::<io::Result<Vec<_>>>();
        assert_eq!(all("abc\n\nd\r\nabc").unwrap(), ["abc", "", "d", "abc"]);
        assert!(all("abcde").is_err() && all("ab\nabcd\n").is_err());
    }

    #[test]
    fn json_is_read_whatever_it_is_called() {
        let lines = "{\"text\": \"one\\n\"}\n\n{\"id\": 2, \"text\": \"two\"}\n";
        let array = "\n[\n  {\"text\": \"one\\n\"},\n  {\"text\": \"two\", \"id\": 2}\n]\n";
        let strings = "[\"one\\n\", \"two\"]";
        for content in [lines, array, strings, &format!("\u{feff}{lines}")] {
            for name in ["a.json", "a.jsonl", "a.NDJSON", "a", "a.data"] {
                assert_eq!(documents(name, content.as_bytes()).unwrap(), ["one\n", "two"], "{name}: {content}");
            }
            assert_eq!(documents("a.txt", content.as_bytes()).unwrap(), [content.trim_start_matches('\u{feff}')]);
        }
        let pretty = "{\n  \"text\": \"one\",\n  \"more\": [1]\n}";
        assert_eq!(documents("a.json", pretty.as_bytes()).unwrap(), ["one"]);
    }

    #[test]
    fn text_that_begins_like_json_is_text() {
        for text in ["{not json}\n", "[1] A reference.\n", "{\"text\": \"a\"}\nand then prose\n", "[1, 2]", "", "12"] {
            assert_eq!(documents("notes", text.as_bytes()).unwrap(), [text]);
        }
    }

    #[test]
    fn mistakes_name_the_place() {
        let message = |name: &str, bytes: &[u8]| {
            let error = documents(name, bytes).unwrap_err();
            let user = error.downcast_ref::<UserError>().unwrap_or_else(|| panic!("{error:?}"));
            format!("{user} / {}", user.hint_text().expect("a hint"))
        };
        assert!(message("a.json", b"{\"text\": \"a\"}\n\n  hello\n").contains("a.json, line 3 is not JSON"));
        assert!(message("a.json", b"{\"text\": \"a\"}\n{\"txt\": 1}").contains("line 2 has no text field"));
        assert!(message("a.json", b"[{\"text\": \"a\"}, 7]").contains("item 2 is neither"));
        assert!(message("a", b"{\"txt\": \"a\"}").contains("line 1 has no text field"));
        assert!(message("a.json", b"plain").contains("line 1 is not JSON"));
        assert!(message("a.txt", b"caf\xe9").contains("byte 3"));
        let wide: Vec<u8> = "text".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert!(message("a.txt", &wide).contains("UTF-16"));
        assert!(message("a.txt", &[&[0xff, 0xfe], &wide[..]].concat()).contains("UTF-16"));
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
        assert!(message("a.txt", pointer).contains("Git LFS"));
    }
}

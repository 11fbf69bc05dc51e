//! Local files: what they hold decides how they are read, not only what they are called.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::Result;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::{Map, Value};

use crate::checkpoint::refuse_pointer;
use crate::error::UserError;
use crate::user_bail;

/// How every parquet file begins.
const PARQUET: &[u8] = b"PAR1";
/// Endings of files that are text whatever they look like.
const TEXT: &[&str] = &["txt", "text", "md"];
/// Endings of files that hold JSON or nothing.
const JSON: &[&str] = &["json", "jsonl", "ndjson"];
const ROW: &str = "each line, or each item of one array, must be an object like {\"text\": \"...\"}";

/// What a file holds.
pub(super) enum Content {
    /// Text as it stands in the file, without the byte order mark.
    Text(String),
    /// Values of a JSON Lines file or of one JSON array, and where each is.
    Json(Vec<(String, Value)>),
    /// A parquet file.
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

fn bytes(path: &Path) -> Result<Vec<u8>> {
    let shown = path.display();
    if path.is_dir() {
        user_bail!(
            "{shown} is a folder, not a text";
            "name one text file in it, or pipe several through cat and name -"
        );
    }
    let mut bytes = Vec::new();
    match File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)) {
        Ok(_) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            user_bail!("there is no text file {shown}"; "check the path")
        }
        Err(error) => user_bail!("cannot read {shown}: {error}"; "check that you may read it"),
    }
}

/// UTF-8 without its byte order mark.
fn decode(what: &str, bytes: Vec<u8>) -> Result<String> {
    refuse_pointer(what, &bytes)?;
    let marked = bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]);
    // UTF-16 without a mark is full of zeros, which no text has.
    if marked || bytes.iter().filter(|&&byte| byte == 0).count() > bytes.len() / 4 {
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

/// All strings of one column of a parquet file, in row order.
pub(super) fn parquet_column(path: &Path, column: &str) -> Result<Vec<String>> {
    let reader = SerializedFileReader::new(File::open(path)?)?;
    let schema = reader.metadata().file_metadata().schema();
    let Some(field) = schema.get_fields().iter().find(|field| field.name() == column) else {
        let columns: Vec<&str> = schema.get_fields().iter().map(|field| field.name()).collect();
        user_bail!(
            "{} has no column {column:?}, but {}", path.display(), columns.join(", ");
            "the text must be in a column called {column}"
        );
    };
    let only = Type::group_type_builder(schema.name()).with_fields(vec![field.clone()]).build()?;
    let mut documents = Vec::new();
    for (index, row) in reader.get_row_iter(Some(only))?.enumerate() {
        match row?.into_columns().pop() {
            Some((_, Field::Str(text))) => documents.push(text),
            _ => user_bail!(
                "{}, row {index} has no string in column {column:?}", path.display();
                "every row must have a text, if only an empty one"
            ),
        }
    }
    Ok(documents)
}

/// The rows of a parquet file, columns by name. What is neither text nor number is null.
pub(super) fn parquet_rows(path: &Path) -> Result<Vec<Map<String, Value>>> {
    let reader = SerializedFileReader::new(File::open(path)?)?;
    let fields = |row: Row| row.into_columns().into_iter().map(|(name, field)| (name, value(field))).collect();
    reader.get_row_iter(None)?.map(|row| Ok(fields(row?))).collect()
}

fn value(field: Field) -> Value {
    match field {
        Field::Str(text) => text.into(),
        // By its shortest decimal form: as f64 a score of 3.2 would be 3.2000000476837160.
        Field::Float(x) => x.to_string().into(),
        Field::Double(x) => x.into(),
        Field::Int(x) => x.into(),
        Field::Long(x) => x.into(),
        _ => Value::Null,
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

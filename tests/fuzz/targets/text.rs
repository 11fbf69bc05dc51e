//! Text files: JSON Lines, JSON, parquet and plain text. What is accepted has words in it, and not more than the file held.

use super::place::Place;
use super::{Target, mutate, parts, refused};
use softlm::hub::HubOptions;
use softlm::text::{Split, load};

pub const TARGET: Target = Target { name: "text", seeds, mutate: mutate::files, run };

/// What a file is called.
pub const NAMES: [&str; 7] = ["a", "a.txt", "a.json", "a.jsonl", "a.csv", "a.tsv", "a.parquet"];

fn seeds() -> Vec<Vec<u8>> {
    let lines = "{\"text\": \"one\\n\"}\n\n{\"id\": 2, \"text\": \"two \\u00e9\"}\n";
    let array = "[\n  {\"text\": \"one\\n\", \"more\": [1, {}]},\n  \"two\"\n]\n";
    let texts = [
        ("a.jsonl", lines),
        ("a", lines),
        ("a.json", array),
        ("a", array),
        ("a.txt", "\u{feff}Words.\r\n\r\n[1] more é\n"),
        ("a", "{not json}"),
        ("a.json", "{\"text\": \"one\"}"),
    ];
    let mut seeds: Vec<Vec<u8>> = texts.iter().map(|text| parts::join(&[*text])).collect();
    seeds.push(parts::join(&[("a.parquet", parquet(&[("text", &["one", "two words", "", "three"])]))]));
    seeds
}

/// A parquet file of columns of text.
pub fn parquet(columns: &[(&str, &[&str])]) -> Vec<u8> {
    use ::parquet::data_type::{ByteArray, ByteArrayType};
    use ::parquet::file::writer::SerializedFileWriter;
    use ::parquet::schema::parser::parse_message_type;
    let fields: String = columns.iter().map(|(name, _)| format!("required binary {name} (UTF8); ")).collect();
    let schema = parse_message_type(&format!("message rows {{ {fields} }}")).expect("a schema");
    let mut file = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut file, schema.into(), Default::default()).expect("a file");
    let mut group = writer.next_row_group().expect("a group");
    for (_, texts) in columns {
        let values: Vec<ByteArray> = texts.iter().map(|text| (*text).into()).collect();
        let mut column = group.next_column().expect("next").expect("a column");
        column.typed::<ByteArrayType>().write_batch(&values, None, None).expect("written");
        column.close().expect("closed");
    }
    group.close().expect("closed");
    writer.close().expect("closed");
    file
}

fn run(input: &[u8], place: &Place) -> bool {
    place.clear(&[]);
    let parts = parts::split(input);
    let Some((name, content)) = parts.iter().find(|(name, _)| NAMES.contains(name)) else { return false };
    let path = place.file(name, content);
    let corpus = match load(&path.display().to_string(), Split::Evaluation, &HubOptions::default()) {
        Ok(corpus) => corpus,
        Err(error) => return refused(&error),
    };
    assert!(corpus.documents.iter().any(|document| !document.trim().is_empty()));
    assert_eq!((corpus.name.as_str(), corpus.sha256.len()), (*name, 64));
    if !content.starts_with(b"PAR1") {
        let bytes: usize = corpus.documents.iter().map(String::len).sum();
        assert!(bytes <= content.len(), "{bytes} bytes of text of {}", content.len());
    }
    true
}

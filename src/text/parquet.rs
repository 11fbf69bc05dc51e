//! Parquet files: a column of texts, or all rows.
//!
//! The parquet library takes a file at its word in places: what is checked here is what it would allocate for.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::Result;
use parquet::basic::Type as Physical;
use parquet::bloom_filter::Sbbf;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result as Parquet};
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::record::Field;
use parquet::record::reader::RowIter;
use parquet::schema::types::Type;
use serde_json::{Map, Value};

use super::boundary::guarded;
use super::file::most;
use super::thrift;
use crate::error::UserError;
use crate::user_bail;

/// What a parquet file holds, or one column of it, as `read` takes it out: the file may say anything of itself.
fn parquet<T>(path: &Path, column: Option<&str>, read: impl FnOnce(&Checked) -> Result<T>) -> Result<T> {
    let shown = path.display();
    if !path.metadata()?.is_file() {
        user_bail!("{shown} is a parquet file in a pipe"; "name the file itself: its end has to be read first");
    }
    let (what, hint) = (format!("cannot read {shown}"), "download or copy it again");
    let result = guarded(&what, hint, || {
        let mut file = File::open(path)?;
        if !thrift::is_sound(&footer(&mut file)?) {
            user_bail!("{what}: its footer claims more than it holds"; "{hint}");
        }
        let reader = SerializedFileReader::new(file)?;
        let chunks = reader.metadata().row_groups().iter().flat_map(|group| group.columns());
        let wanted = chunks.filter(|chunk| {
            column.is_none_or(|column| chunk.column_path().parts().first().is_some_and(|name| name == column))
        });
        let claimed = wanted.fold(0u64, |sum, chunk| sum.saturating_add(chunk.uncompressed_size().max(0) as u64));
        fits(path, claimed)?;
        read(&Checked(reader))
    });
    result.map_err(|error| match error.is::<UserError>() {
        true => error,
        // The library's own words.
        false => UserError::new(format!("{what}: {error:#}")).hint(hint).into(),
    })
}

/// What describes the file at its end: a structure, its length in four bytes, and the four bytes that the file begins with.
fn footer(file: &mut File) -> Result<Vec<u8>> {
    const END: u64 = 8;
    let size = file.metadata()?.len();
    let mut end = [0; END as usize];
    file.seek(SeekFrom::Start(size.saturating_sub(END)))?;
    file.read_exact(&mut end)?;
    let length = u64::from(u32::from_le_bytes([end[0], end[1], end[2], end[3]])).min(size.saturating_sub(END));
    let mut footer = vec![0; length as usize];
    file.seek(SeekFrom::Start(size - END - length))?;
    file.read_exact(&mut footer)?;
    file.rewind()?;
    Ok(footer)
}

/// Refuses more bytes than there may be.
fn fits(path: &Path, bytes: u64) -> Result<()> {
    let most = most();
    if bytes > most {
        let shown = path.display();
        user_bail!(
            "{shown} has {bytes} bytes or more when it is unpacked, and {most} of text at most are read into memory";
            "give a part of it"
        );
    }
    Ok(())
}

/// All strings of one column of a parquet file, in row order.
pub(super) fn parquet_column(path: &Path, column: &str) -> Result<Vec<String>> {
    parquet(path, Some(column), |reader| {
        let schema = reader.metadata().file_metadata().schema();
        let Some(field) = schema.get_fields().iter().find(|field| field.name() == column) else {
            let columns: Vec<&str> = schema.get_fields().iter().map(|field| field.name()).collect();
            user_bail!(
                "{} has no column {column:?}, but {}", path.display(), columns.join(", ");
                "the text must be in a column called {column}"
            );
        };
        let only = Type::group_type_builder(schema.name()).with_fields(vec![field.clone()]).build()?;
        let (mut documents, mut bytes) = (Vec::new(), 0);
        for (index, row) in reader.get_row_iter(Some(only))?.enumerate() {
            let Some((_, Field::Str(text))) = row?.into_columns().pop() else {
                user_bail!(
                    "{}, row {index} has no string in column {column:?}", path.display();
                    "every row must have a text, if only an empty one"
                )
            };
            bytes += text.len() as u64;
            if index % 1024 == 0 {
                fits(path, bytes)?;
            }
            documents.push(text);
        }
        Ok(documents)
    })
}

/// The rows of a parquet file, columns by name. What is no text, number, truth value, list or group of such is null.
pub(super) fn parquet_rows(path: &Path) -> Result<Vec<Map<String, Value>>> {
    parquet(path, None, |reader| {
        let (mut rows, mut bytes) = (Vec::new(), 0);
        for (index, row) in reader.get_row_iter(None)?.enumerate() {
            let fields = row?.into_columns().into_iter().map(|(name, field)| (name, value(field)));
            let fields: Map<String, Value> = fields.collect();
            // Few bytes of a file can stand for the same text in very many rows.
            bytes += fields.values().map(text_bytes).sum::<u64>();
            if index % 1024 == 0 {
                fits(path, bytes)?;
            }
            rows.push(fields);
        }
        Ok(rows)
    })
}

fn value(field: Field) -> Value {
    match field {
        Field::Str(text) => text.into(),
        // By its shortest decimal form: as f64 a score of 3.2 would be 3.2000000476837160.
        Field::Float(x) => x.to_string().into(),
        Field::Double(x) => x.into(),
        Field::Int(x) => x.into(),
        Field::Long(x) => x.into(),
        Field::Bool(x) => x.into(),
        Field::ListInternal(list) => list.elements().iter().cloned().map(value).collect(),
        Field::Group(row) => row.into_columns().into_iter().map(|(name, field)| (name, value(field))).collect(),
        _ => Value::Null,
    }
}

/// Bytes of all text in a value.
fn text_bytes(value: &Value) -> u64 {
    match value {
        Value::String(text) => text.len() as u64,
        Value::Array(items) => items.iter().map(text_bytes).sum(),
        Value::Object(fields) => fields.values().map(text_bytes).sum(),
        _ => 0,
    }
}

/// A file whose pages are checked before they are decoded.
struct Checked(SerializedFileReader<File>);

impl FileReader for Checked {
    fn metadata(&self) -> &ParquetMetaData {
        self.0.metadata()
    }

    fn num_row_groups(&self) -> usize {
        self.0.num_row_groups()
    }

    fn get_row_group(&self, i: usize) -> Parquet<Box<dyn RowGroupReader + '_>> {
        Ok(Box::new(CheckedGroup(self.0.get_row_group(i)?)))
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Parquet<RowIter<'_>> {
        RowIter::from_file(projection, self)
    }
}

struct CheckedGroup<'r>(Box<dyn RowGroupReader + 'r>);

impl RowGroupReader for CheckedGroup<'_> {
    fn metadata(&self) -> &RowGroupMetaData {
        self.0.metadata()
    }

    fn num_columns(&self) -> usize {
        self.0.num_columns()
    }

    fn get_column_page_reader(&self, i: usize) -> Parquet<Box<dyn PageReader>> {
        let column = self.metadata().column(i).column_descr();
        // A dictionary has its values one after the other, strings behind four bytes of length.
        let least = match column.physical_type() {
            Physical::INT64 | Physical::DOUBLE => 8,
            Physical::INT96 => 12,
            Physical::FIXED_LEN_BYTE_ARRAY => column.type_length().max(1) as u64,
            Physical::BOOLEAN => 1,
            Physical::INT32 | Physical::FLOAT | Physical::BYTE_ARRAY => 4,
        };
        Ok(Box::new(CheckedPages { pages: self.0.get_column_page_reader(i)?, least }))
    }

    fn get_column_bloom_filter(&self, i: usize) -> Option<&Sbbf> {
        self.0.get_column_bloom_filter(i)
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Parquet<RowIter<'_>> {
        RowIter::from_row_group(projection, self)
    }
}

struct CheckedPages {
    pages: Box<dyn PageReader>,
    /// Bytes of a value of a dictionary at least.
    least: u64,
}

impl PageReader for CheckedPages {
    fn get_next_page(&mut self) -> Parquet<Option<Page>> {
        let page = self.pages.get_next_page()?;
        if let Some(Page::DictionaryPage { buf, num_values, .. }) = &page
            && u64::from(*num_values) * self.least > buf.len() as u64
        {
            let claim = format!("a dictionary of {} bytes claims {num_values} values", buf.len());
            return Err(ParquetError::General(claim));
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Parquet<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Parquet<()> {
        self.pages.skip_next_page()
    }
}

impl Iterator for CheckedPages {
    type Item = Parquet<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use std::sync::Arc;

    #[test]
    fn a_dictionary_that_claims_more_than_it_holds_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a.parquet");
        let schema = Arc::new(parse_message_type("message m { required binary text (UTF8); }").unwrap());
        let properties = Arc::new(WriterProperties::builder().build());
        let mut writer = SerializedFileWriter::new(File::create(&path).unwrap(), schema, properties).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let texts = ["so good", "so bad", "so good"].map(ByteArray::from);
        column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
        assert_eq!(parquet_column(&path, "text").unwrap(), ["so good", "so bad", "so good"]);
        assert_eq!(parquet_rows(&path).unwrap().len(), 3);

        // The header of its page: two values, plain.
        let mut bytes = std::fs::read(&path).unwrap();
        let header = [0x4c, 0x15, 4, 0x15, 0];
        let at = bytes.windows(header.len()).position(|part| part == header).expect("a dictionary page");
        bytes[at + 2] = 126;
        std::fs::write(&path, bytes).unwrap();
        for refused in [parquet_column(&path, "text").map(drop), parquet_rows(&path).map(drop)] {
            let error = refused.unwrap_err().to_string();
            assert!(error.contains("claims 63 values"), "{error}");
        }
    }
}

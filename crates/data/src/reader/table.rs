//! Comma- and tab-separated values, whose first line names the columns. Every value is text.

use std::io::BufRead;
use std::ops::Range;
use std::path::{Path, PathBuf};

use csv::{Reader, ReaderBuilder, StringRecord};
use serde_json::Value;

use super::open::{self, BOM, Bytes};
use super::{CHUNK_BYTES, CHUNK_ROWS, Column, Counted, Fields, Rows, Wanted, places};
use crate::error::{Error, Result};

pub(super) struct TableRows {
    path: PathBuf,
    table: Reader<Bytes>,
    places: Vec<Option<usize>>,
    counted: Counted,
}

impl TableRows {
    pub(super) fn open(path: &Path, wanted: &[Wanted], range: &Range<usize>) -> Result<Self> {
        let (table, columns) = open(path)?;
        Ok(Self { path: path.into(), places: places(path, wanted, &columns)?, table, counted: Counted::new(range) })
    }
}

impl Rows for TableRows {
    fn next_chunk(&mut self) -> Result<Option<Vec<Fields>>> {
        let (mut chunk, mut bytes) = (Vec::new(), 0);
        let mut record = StringRecord::new();
        while self.counted.goes_on() && chunk.len() < CHUNK_ROWS && bytes < CHUNK_BYTES {
            if !self.table.read_record(&mut record).map_err(|error| wrong(&self.path, &error))? {
                break;
            }
            if self.counted.take() {
                bytes += record.as_slice().len() as u64;
                let field =
                    |place: &Option<usize>| place.and_then(|it| record.get(it)).map_or(Value::Null, Value::from);
                chunk.push(self.places.iter().map(field).collect());
            }
        }
        Ok(if chunk.is_empty() { None } else { Some(chunk) })
    }

    fn seen(&self) -> usize {
        self.counted.seen
    }
}

pub(super) fn columns(path: &Path) -> Result<Vec<Column>> {
    Ok(open(path)?.1)
}

fn open(path: &Path) -> Result<(Reader<Bytes>, Vec<Column>)> {
    let mut bytes = open::bytes(path)?;
    let head = bytes.fill_buf().map_err(|source| Error::Read { path: path.into(), source })?;
    let mark = if head.starts_with(BOM) { BOM.len() } else { 0 };
    let delimiter = delimiter(&head[mark..]);
    bytes.consume(mark);
    let mut table = ReaderBuilder::new().delimiter(delimiter).from_reader(bytes);
    let names = table.headers().map_err(|error| wrong(path, &error))?;
    let columns = names.iter().map(|name| Column { name: name.to_owned(), kind: "string".into() }).collect();
    Ok((table, columns))
}

/// That of comma, tab and semicolon which the first line has most of.
fn delimiter(head: &[u8]) -> u8 {
    let line = head.split(|it| *it == b'\n').next().unwrap_or_default();
    let count = |delimiter: u8| line.iter().filter(|it| **it == delimiter).count();
    *b";\t,".iter().max_by_key(|it| count(**it)).unwrap_or(&b',')
}

fn wrong(path: &Path, error: &csv::Error) -> Error {
    let line = error.position().map_or(0, csv::Position::line);
    let reason = match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!(
                "{len} values, where the first line names {expected_len} columns; a value that holds the separator or a line end stands in double quotes"
            )
        }
        csv::ErrorKind::Utf8 { .. } => "not UTF-8; save the file as UTF-8".into(),
        _ => error.to_string(),
    };
    Error::Table { path: path.into(), line, reason }
}

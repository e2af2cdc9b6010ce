//! JSON Lines: one object a line. A key that a line leaves out is null there, as data frames have it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{CHUNK_ROWS, Column, Fields, list, open};
use crate::error::{Error, Result};

pub(super) const BOM: &[u8] = b"\xef\xbb\xbf";

/// A file without line ends would otherwise be read into memory whole.
const LONGEST_LINE: u64 = 64 << 20;

/// A chunk ends early when its lines reach this many bytes, so that long rows do not add up.
const CHUNK_BYTES: u64 = 16 << 20;

pub(crate) struct LineRows {
    lines: Lines,
    names: Vec<String>,
    range: Range<usize>,
    rows_seen: usize,
    columns_checked: bool,
}

impl LineRows {
    pub(super) fn open(path: &Path, names: &[&str], range: &Range<usize>) -> Result<Self> {
        Ok(Self {
            lines: Lines::open(path)?,
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            range: range.clone(),
            rows_seen: 0,
            columns_checked: false,
        })
    }

    pub(super) fn next_chunk(&mut self) -> Result<Option<Vec<Fields>>> {
        let mut chunk = Vec::new();
        let mut columns = Vec::new();
        let mut bytes = 0;
        while self.rows_seen < self.range.end && chunk.len() < CHUNK_ROWS && bytes < CHUNK_BYTES {
            if !self.lines.advance()? {
                self.check_end()?;
                break;
            }
            self.rows_seen += 1;
            if self.rows_seen > self.range.start {
                bytes += self.lines.line.len() as u64;
                chunk.push(self.fields(&mut columns)?);
            }
        }
        if !self.columns_checked && !chunk.is_empty() {
            self.check_columns(&columns)?;
        }
        Ok(if chunk.is_empty() { None } else { Some(chunk) })
    }

    fn fields(&self, columns: &mut Vec<Column>) -> Result<Fields> {
        let mut object = self.lines.object()?;
        if !self.columns_checked {
            note_columns(&object, columns);
        }
        let mut fields = Vec::with_capacity(self.names.len());
        for name in &self.names {
            fields.push(match object.get_mut(name).map(Value::take) {
                None | Some(Value::Null) => None,
                Some(Value::String(text)) => Some(text),
                Some(other) => {
                    let mut columns = Vec::new();
                    note_columns(&self.lines.object()?, &mut columns);
                    return Err(Error::ColumnType {
                        path: self.lines.path.clone(),
                        column: name.clone(),
                        found: kind(&other).into(),
                        line: Some(self.lines.number),
                        columns: list(&columns),
                    });
                }
            });
        }
        Ok(fields)
    }

    /// A name that none of the first rows has is a mistake of the caller, not a column of nulls.
    fn check_columns(&mut self, columns: &[Column]) -> Result<()> {
        self.columns_checked = true;
        match self.names.iter().find(|name| columns.iter().all(|column| column.name != **name)) {
            None => Ok(()),
            Some(name) => Err(Error::ColumnMissing {
                path: self.lines.path.clone(),
                column: name.clone(),
                columns: list(columns),
            }),
        }
    }

    fn check_end(&self) -> Result<()> {
        let (start, end, available) = (self.range.start, self.range.end, self.rows_seen as u64);
        let short = (end != usize::MAX && self.rows_seen < end) || (start > 0 && self.rows_seen <= start);
        if short { Err(Error::Rows { path: self.lines.path.clone(), start, end, available }) } else { Ok(()) }
    }
}

pub(super) fn columns(path: &Path) -> Result<Vec<Column>> {
    let mut lines = Lines::open(path)?;
    let mut columns = Vec::new();
    let mut rows = 0;
    while rows < CHUNK_ROWS && lines.advance()? {
        note_columns(&lines.object()?, &mut columns);
        rows += 1;
    }
    Ok(columns)
}

/// The first value that is not null names the type of a column.
fn note_columns(object: &Map<String, Value>, columns: &mut Vec<Column>) {
    for (name, value) in object {
        match columns.iter_mut().find(|column| column.name == *name) {
            Some(column) if column.kind == "null" => column.kind = kind(value).into(),
            Some(_) => {}
            None => columns.push(Column { name: name.clone(), kind: kind(value).into() }),
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Lines that are not blank, with their numbers.
struct Lines {
    path: PathBuf,
    file: BufReader<File>,
    line: Vec<u8>,
    number: u64,
}

impl Lines {
    fn open(path: &Path) -> Result<Self> {
        Ok(Self { path: path.into(), file: BufReader::new(open(path)?), line: Vec::new(), number: 0 })
    }

    /// False at the end of the file.
    fn advance(&mut self) -> Result<bool> {
        loop {
            self.line.clear();
            let mut bounded = self.file.by_ref().take(LONGEST_LINE + 1);
            let read = bounded.read_until(b'\n', &mut self.line);
            let read = read.map_err(|source| Error::Read { path: self.path.clone(), source })?;
            if read == 0 {
                return Ok(false);
            }
            self.number += 1;
            if read as u64 > LONGEST_LINE {
                return Err(self.wrong(format!("longer than {} MiB", LONGEST_LINE >> 20)));
            }
            if self.number == 1 && self.line.starts_with(BOM) {
                self.line.drain(..BOM.len());
            }
            // Without its line end, so that a line cut short is told as such.
            self.line.truncate(self.line.trim_ascii_end().len());
            if !self.line.is_empty() {
                return Ok(true);
            }
        }
    }

    fn object(&self) -> Result<Map<String, Value>> {
        match serde_json::from_slice(&self.line) {
            Ok(Value::Object(object)) => Ok(object),
            Ok(other) => Err(self.wrong(format!("found {} {}", article(&other), kind(&other)))),
            Err(error) => Err(self.wrong(self.reason(&error))),
        }
    }

    fn reason(&self, error: &serde_json::Error) -> String {
        if let Err(utf8) = std::str::from_utf8(&self.line) {
            return format!("not UTF-8 at byte {}", utf8.valid_up_to());
        }
        // The parser sees one line only, so the line number in its message would always be 1.
        let text = error.to_string();
        let what = text.split(" at line ").next().unwrap_or(&text);
        format!("not JSON: {what} at column {}", error.column())
    }

    fn wrong(&self, reason: String) -> Error {
        Error::Json { path: self.path.clone(), line: self.number, reason }
    }
}

fn article(value: &Value) -> &'static str {
    if matches!(value, Value::Array(_) | Value::Object(_)) { "an" } else { "a" }
}

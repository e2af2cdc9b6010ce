//! Rows from JSON objects, however these lie in the file. A key that an object leaves out is null there, as data frames have it.

use std::ops::Range;
use std::path::Path;

use serde_json::{Map, Value};

use super::{CHUNK_BYTES, CHUNK_ROWS, Column, Counted, Fields, Rows, Wanted, list, places};
use crate::error::{Error, Result};

/// A file of JSON objects.
pub(super) trait Objects {
    /// Goes on to the next object; false at the end of the file.
    fn advance(&mut self) -> Result<bool>;

    /// The object that was gone on to.
    fn object(&self) -> Result<Map<String, Value>>;

    /// Its bytes in the file.
    fn bytes(&self) -> u64;

    /// The line on which it stands, from 1.
    fn line(&self) -> u64;

    fn path(&self) -> &Path;
}

pub(super) struct ObjectRows<O> {
    objects: O,
    wanted: Vec<Wanted>,
    counted: Counted,
    columns_checked: bool,
}

impl<O: Objects> ObjectRows<O> {
    pub(super) fn new(objects: O, wanted: &[Wanted], range: &Range<usize>) -> Self {
        Self { objects, wanted: wanted.to_vec(), counted: Counted::new(range), columns_checked: false }
    }

    fn fields(&self, columns: &mut Vec<Column>) -> Result<Fields> {
        let mut object = self.objects.object()?;
        if !self.columns_checked {
            note_columns(&object, columns);
        }
        let mut fields = Vec::with_capacity(self.wanted.len());
        for wanted in &self.wanted {
            let value = object.get_mut(&wanted.name).map(Value::take).unwrap_or_default();
            if !wanted.kind.allows(&value) {
                let mut columns = Vec::new();
                note_columns(&self.objects.object()?, &mut columns);
                return Err(Error::ColumnType {
                    path: self.objects.path().into(),
                    column: wanted.name.clone(),
                    found: kind(&value).into(),
                    expected: wanted.kind.expected(),
                    line: Some(self.objects.line()),
                    columns: list(&columns).into(),
                });
            }
            fields.push(value);
        }
        Ok(fields)
    }
}

impl<O: Objects> Rows for ObjectRows<O> {
    fn next_chunk(&mut self) -> Result<Option<Vec<Fields>>> {
        let mut chunk = Vec::new();
        let mut columns = Vec::new();
        let mut bytes = 0;
        while self.counted.goes_on() && chunk.len() < CHUNK_ROWS && bytes < CHUNK_BYTES {
            if !self.objects.advance()? {
                break;
            }
            if self.counted.take() {
                bytes += self.objects.bytes();
                chunk.push(self.fields(&mut columns)?);
            }
        }
        if !self.columns_checked && !chunk.is_empty() {
            // A name that none of the first rows has is a mistake of the caller, not a column of nulls.
            self.columns_checked = true;
            places(self.objects.path(), &self.wanted, &columns)?;
        }
        Ok(if chunk.is_empty() { None } else { Some(chunk) })
    }

    fn seen(&self) -> usize {
        self.counted.seen
    }
}

pub(super) fn columns(mut objects: impl Objects) -> Result<Vec<Column>> {
    let mut columns = Vec::new();
    let mut rows = 0;
    while rows < CHUNK_ROWS && objects.advance()? {
        note_columns(&objects.object()?, &mut columns);
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

/// A JSON value's type in JSON's words.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The object in some bytes of a file, or why there is none, with the line of the object that a reason within it is counted from.
pub(super) fn parse(bytes: &[u8], path: &Path, line: u64) -> Result<Map<String, Value>> {
    let wrong = |line: u64, reason: String| Error::Json { path: path.into(), line, reason };
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => {
            let article = if matches!(other, Value::Array(_)) { "an" } else { "a" };
            Err(wrong(line, format!("found {article} {}", kind(&other))))
        }
        Err(error) => {
            if let Err(utf8) = std::str::from_utf8(bytes) {
                return Err(wrong(line, format!("not UTF-8 at byte {}", utf8.valid_up_to())));
            }
            // The parser counts lines from the object on.
            let text = error.to_string();
            let what = text.split(" at line ").next().unwrap_or(&text);
            let within = line + (error.line() as u64).saturating_sub(1);
            Err(wrong(within, format!("not JSON: {what} at column {}", error.column())))
        }
    }
}

//! Plain text: a row a line, in a column `text`, as the text loader of Hugging Face's datasets has it.

use std::ops::Range;
use std::path::Path;

use serde_json::Value;

use super::jsonl::Lines;
use super::objects::Objects;
use super::{CHUNK_BYTES, CHUNK_ROWS, Column, Counted, Fields, Rows, Wanted, places};
use crate::error::Result;

pub(super) struct TextRows {
    lines: Lines,
    places: Vec<Option<usize>>,
    counted: Counted,
}

pub(super) fn column() -> Column {
    Column { name: "text".into(), kind: "a line".into() }
}

impl TextRows {
    pub(super) fn open(path: &Path, wanted: &[Wanted], range: &Range<usize>) -> Result<Self> {
        let places = places(path, wanted, &[column()])?;
        Ok(Self { lines: Lines::open(path)?, places, counted: Counted::new(range) })
    }
}

impl Rows for TextRows {
    fn next_chunk(&mut self) -> Result<Option<Vec<Fields>>> {
        let (mut chunk, mut bytes) = (Vec::new(), 0);
        while self.counted.goes_on() && chunk.len() < CHUNK_ROWS && bytes < CHUNK_BYTES {
            if !self.lines.advance()? {
                break;
            }
            if self.counted.take() {
                bytes += self.lines.bytes();
                let text = str::from_utf8(self.lines.text());
                let text = text.map_err(|e| self.lines.wrong(format!("not UTF-8 at byte {}", e.valid_up_to())))?;
                let field = |place: &Option<usize>| place.map_or(Value::Null, |_| Value::from(text));
                chunk.push(self.places.iter().map(field).collect());
            }
        }
        Ok(if chunk.is_empty() { None } else { Some(chunk) })
    }

    fn seen(&self) -> usize {
        self.counted.seen
    }
}

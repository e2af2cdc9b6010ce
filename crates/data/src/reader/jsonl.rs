//! JSON Lines: one object a line.

use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::objects::{self, Objects};
use super::open::{self, BOM, Bytes};
use super::{Format, LONGEST_ROW};
use crate::error::{Error, Result};

/// Lines that are not blank, with their numbers.
pub(super) struct Lines {
    path: PathBuf,
    file: Bytes,
    line: Vec<u8>,
    number: u64,
}

impl Lines {
    pub(super) fn open(path: &Path) -> Result<Self> {
        Ok(Self { path: path.into(), file: open::bytes(path)?, line: Vec::new(), number: 0 })
    }

    /// The line, which need not be JSON.
    pub(super) fn text(&self) -> &[u8] {
        &self.line
    }

    pub(super) fn wrong(&self, reason: String) -> Error {
        Error::Json { path: self.path.clone(), line: self.number, reason }
    }
}

impl Objects for Lines {
    fn advance(&mut self) -> Result<bool> {
        loop {
            self.line.clear();
            let mut bounded = self.file.by_ref().take(LONGEST_ROW + 1);
            let read = bounded.read_until(b'\n', &mut self.line);
            let read = read.map_err(|source| Error::Read { path: self.path.clone(), source })?;
            if read == 0 {
                return Ok(false);
            }
            self.number += 1;
            if read as u64 > LONGEST_ROW {
                return Err(self.wrong(format!("longer than {} MiB", LONGEST_ROW >> 20)));
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
        objects::parse(&self.line, &self.path, self.number)
    }

    fn bytes(&self) -> u64 {
        self.line.len() as u64
    }

    fn line(&self) -> u64 {
        self.number
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// What a file is that begins with an object: one object a line, unless the first line holds only the beginning of one, or all
/// there is, with the rows inside.
pub(super) fn or_document(path: &Path) -> Result<Format> {
    let named_lines = ["jsonl", "ndjson"].contains(&open::extension(path).as_str());
    if named_lines {
        return Ok(Format::Lines);
    }
    let mut lines = Lines::open(path)?;
    // A first line that cannot be read is reported when the rows are.
    let Ok(true) = lines.advance() else { return Ok(Format::Lines) };
    match serde_json::from_slice::<IgnoredAny>(&lines.line) {
        Err(error) if error.is_eof() && matches!(lines.advance(), Ok(true)) => Ok(Format::Document),
        Err(_) => Ok(Format::Lines),
        Ok(_) => {
            let object = objects::parse(&lines.line, path, 1);
            let alone = object.is_ok_and(|it| super::document::rows_within(&it).is_some());
            Ok(if alone && !matches!(lines.advance(), Ok(true)) { Format::Document } else { Format::Lines })
        }
    }
}

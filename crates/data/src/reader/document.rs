//! JSON that is not laid out in lines: an array of objects, objects one after another that take several lines each, or an object that
//! holds the array under a name such as `data`.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::LONGEST_ROW;
use super::objects::{self, Objects};
use super::open::{self, BOM, Bytes};
use crate::error::{Error, Result};

/// Names under which an object holds the rows, if nothing but such an object is in the file.
const CONTAINERS: [&str; 6] = ["data", "rows", "train", "examples", "instances", "items"];

pub(super) struct Document {
    path: PathBuf,
    bytes: Bytes,
    /// Whether the objects stand in an array.
    in_array: bool,
    begun: bool,
    ended: bool,
    /// The current line, from 1.
    at_line: u64,
    /// The current object, and the line on which it begins.
    text: Vec<u8>,
    line: u64,
    /// The rows of an object that holds them all, in reverse.
    held: Option<Vec<Map<String, Value>>>,
}

/// The array of rows in an object that holds all of a file.
pub(super) fn rows_within(object: &Map<String, Value>) -> Option<&Vec<Value>> {
    let mut arrays = object.iter().filter(|it| CONTAINERS.contains(&it.0.as_str())).filter_map(|it| it.1.as_array());
    let rows = arrays.next().filter(|it| !it.is_empty() && it.iter().all(Value::is_object))?;
    arrays.next().is_none().then_some(rows)
}

impl Document {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let bytes = open::bytes(path)?;
        let mut document = Self {
            path: path.into(),
            bytes,
            in_array: false,
            begun: false,
            ended: false,
            at_line: 1,
            text: Vec::new(),
            line: 1,
            held: None,
        };
        document.begin()?;
        Ok(document)
    }

    /// Goes past what stands before the first object. An object alone in the file may hold the rows.
    fn begin(&mut self) -> Result<()> {
        if self.buffer()?.starts_with(BOM) {
            self.bytes.consume(BOM.len());
        }
        if self.skip_white()? == Some(b'[') {
            self.bytes.consume(1);
            self.in_array = true;
            return Ok(());
        }
        if !self.read_value()? {
            return Ok(());
        }
        let first = objects::parse(&self.text, &self.path, self.line)?;
        if self.skip_white()?.is_none()
            && let Some(rows) = rows_within(&first)
        {
            self.held = Some(rows.iter().rev().filter_map(|it| it.as_object().cloned()).collect());
        } else {
            // Was read already, and is the first row.
            self.begun = true;
        }
        Ok(())
    }

    fn buffer(&mut self) -> Result<&[u8]> {
        self.bytes.fill_buf().map_err(|source| Error::Read { path: self.path.clone(), source })
    }

    /// The next byte that is no white space, which is not consumed.
    fn skip_white(&mut self) -> Result<Option<u8>> {
        loop {
            let buffer = self.buffer()?;
            if buffer.is_empty() {
                return Ok(None);
            }
            let white = buffer.iter().take_while(|it| it.is_ascii_whitespace()).count();
            let lines = buffer[..white].iter().filter(|it| **it == b'\n').count() as u64;
            let found = buffer.get(white).copied();
            self.bytes.consume(white);
            self.at_line += lines;
            if found.is_some() {
                return Ok(found);
            }
        }
    }

    /// Takes the next value into `text`; false if there is none. Ends where its brackets are closed, or, without any, before what
    /// cannot belong to it.
    fn read_value(&mut self) -> Result<bool> {
        self.text.clear();
        if self.skip_white()?.is_none() {
            return Ok(false);
        }
        self.line = self.at_line;
        let (mut depth, mut in_text, mut escaped) = (0usize, false, false);
        loop {
            let buffer = self.bytes.fill_buf().map_err(|source| Error::Read { path: self.path.clone(), source })?;
            let (mut taken, mut done) = (0, buffer.is_empty());
            for &byte in buffer {
                if depth == 0 && !in_text && (b",]}".contains(&byte) || byte.is_ascii_whitespace()) {
                    done = true;
                    break;
                }
                taken += 1;
                self.at_line += u64::from(byte == b'\n');
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' if in_text => escaped = true,
                    b'"' => in_text = !in_text,
                    b'{' | b'[' if !in_text => depth += 1,
                    b'}' | b']' if !in_text => depth -= 1,
                    _ => {}
                }
                if depth == 0 && !in_text && b"}]\"".contains(&byte) {
                    done = true;
                    break;
                }
            }
            self.text.extend_from_slice(&buffer[..taken]);
            self.bytes.consume(taken);
            if self.text.len() as u64 > LONGEST_ROW {
                let limit = LONGEST_ROW >> 20;
                return Err(
                    self.wrong(format!("an object longer than {limit} MiB; write a list of rows, or one a line"))
                );
            }
            if done {
                return Ok(true);
            }
        }
    }

    fn wrong(&self, reason: String) -> Error {
        Error::Json { path: self.path.clone(), line: self.at_line, reason }
    }

    /// Goes past what separates the elements of an array; false at its end.
    fn next_element(&mut self) -> Result<bool> {
        let first = !std::mem::replace(&mut self.begun, true);
        match self.skip_white()? {
            Some(b']') => {
                self.bytes.consume(1);
                match self.skip_white()? {
                    None => {
                        self.ended = true;
                        Ok(false)
                    }
                    Some(byte) => Err(self.wrong(format!("{:?} after the end of the array of rows", char::from(byte)))),
                }
            }
            Some(b',') if !first => {
                self.bytes.consume(1);
                Ok(true)
            }
            Some(_) if first => Ok(true),
            Some(byte) => Err(self.wrong(format!("{:?} where `,` or `]` is expected", char::from(byte)))),
            None => Err(self.wrong("the file ends inside the array of rows".into())),
        }
    }
}

impl Objects for Document {
    fn advance(&mut self) -> Result<bool> {
        if let Some(held) = &mut self.held {
            // The first call finds the last of the reversed rows; each other one drops it.
            if std::mem::replace(&mut self.begun, true) {
                held.pop();
            }
            return Ok(!held.is_empty());
        }
        if self.ended {
            return Ok(false);
        }
        if self.in_array {
            return Ok(self.next_element()? && self.read_value()?);
        }
        if std::mem::take(&mut self.begun) {
            return Ok(true);
        }
        self.read_value()
    }

    fn object(&self) -> Result<Map<String, Value>> {
        match &self.held {
            Some(rows) => Ok(rows.last().cloned().unwrap_or_default()),
            None => objects::parse(&self.text, &self.path, self.line),
        }
    }

    fn bytes(&self) -> u64 {
        self.text.len() as u64
    }

    fn line(&self) -> u64 {
        self.line
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

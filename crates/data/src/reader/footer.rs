//! The footer of a parquet file, looked at before the parquet reader sees it: that one goes into a schema by calling itself, so that one
//! that is nested deep enough would end the program.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

/// Columns of conversations are nested five deep.
const DEEPEST: usize = 100;
/// What stands behind the footer: its length, and the magic.
const TRAILER: u64 = 8;
/// The types of a footer's fields by their numbers, from 1, and the number of its schema. The parquet reader takes a field for what its
/// number says, whatever type stands there; so one of another type is refused, and a second schema.
const FOOTER: [u8; 7] = [I32, LIST, I64, LIST, LIST, BINARY, LIST];
const SCHEMA: i64 = 2;
/// The same of an element of the schema, with the number of its children.
const ELEMENT: [u8; 10] = [I32, I32, I32, BINARY, I32, I32, I32, I32, I32, STRUCT];
const CHILDREN: i64 = 5;

/// That the schema of a file is not nested too deeply; `Err` says how it is. Whatever else is wrong is left to the reader.
pub(super) fn check(mut file: &File) -> io::Result<Result<(), String>> {
    let length = file.metadata()?.len();
    let Some(end) = length.checked_sub(TRAILER) else { return Ok(Ok(())) };
    let mut trailer = [0; TRAILER as usize];
    file.seek(SeekFrom::Start(end))?;
    file.read_exact(&mut trailer)?;
    let size = u64::from(u32::from_le_bytes([trailer[0], trailer[1], trailer[2], trailer[3]]));
    let Some(begin) = end.checked_sub(size) else { return Ok(Ok(())) };
    let mut footer = vec![0; size as usize];
    file.seek(SeekFrom::Start(begin))?;
    file.read_exact(&mut footer)?;
    Ok(match depth(&footer) {
        None => Err("its footer is not to be understood".into()),
        Some(deep) if deep > DEEPEST => Err(format!("its columns are nested more than {DEEPEST} deep")),
        Some(_) => Ok(()),
    })
}

/// How deeply the schema in a footer is nested, as far as is asked; `None` where it cannot be followed.
fn depth(footer: &[u8]) -> Option<usize> {
    let mut rest = Compact(footer);
    let (mut last, mut deepest) = (0, None);
    while let Some(kind) = rest.field(&mut last)? {
        if !is_of_type(&FOOTER, last, kind) || (last == SCHEMA && deepest.is_some()) {
            return None;
        }
        if last == SCHEMA {
            deepest = Some(rest.schema()?);
        } else {
            rest.skip(kind, 0)?;
        }
        if deepest > Some(DEEPEST) {
            break;
        }
    }
    deepest
}

/// Whether a field has the type that one of its number has; of others nobody knows.
fn is_of_type(types: &[u8], number: i64, kind: u8) -> bool {
    let at = usize::try_from(number - 1).ok();
    at.and_then(|it| types.get(it)).is_none_or(|it| *it == kind)
}

/// What is left of a message in Thrift's compact protocol.
struct Compact<'a>(&'a [u8]);

impl Compact<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn bytes(&mut self, count: u64) -> Option<()> {
        self.0 = self.0.get(usize::try_from(count).ok()?..)?;
        Some(())
    }

    /// Seven bits a byte, the lowest first.
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    /// With the sign in the lowest bit.
    fn number(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// The type of the next field, whose number follows from that of the last; none at the end.
    fn field(&mut self, last: &mut i64) -> Option<Option<u8>> {
        let head = self.byte()?;
        if head & 0x0f == 0 {
            return Some(None);
        }
        *last = if head >> 4 == 0 { self.number()? } else { last.checked_add(i64::from(head >> 4))? };
        Some(Some(head & 0x0f))
    }

    /// The length of a list, and the type of its elements.
    fn list(&mut self) -> Option<(u64, u8)> {
        let head = self.byte()?;
        let count = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
        Some((count, head & 0x0f))
    }

    /// The depth of a list of elements, each of which is followed by its children.
    fn schema(&mut self) -> Option<usize> {
        let (count, kind) = self.list()?;
        let (mut open, mut deepest) = (Vec::new(), 0);
        if kind != STRUCT {
            return None;
        }
        for _ in 0..count {
            let (mut last, mut children) = (0, 0);
            while let Some(kind) = self.field(&mut last)? {
                if !is_of_type(&ELEMENT, last, kind) {
                    return None;
                }
                if last == CHILDREN {
                    // As the reader has it.
                    children = self.number()? as i32;
                } else {
                    self.skip(kind, 0)?;
                }
            }
            while open.last() == Some(&0) {
                open.pop();
            }
            if let Some(left) = open.last_mut() {
                *left -= 1;
            }
            if children > 0 {
                open.push(children);
            }
            deepest = deepest.max(open.len());
            if deepest > DEEPEST {
                break;
            }
        }
        Some(deepest)
    }

    /// An element of a list: there, a truth value takes a byte.
    fn element(&mut self, kind: u8, depth: usize) -> Option<()> {
        if kind <= FALSE { self.bytes(1) } else { self.skip(kind, depth) }
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        if depth > DEEPEST {
            return None;
        }
        match kind {
            TRUE | FALSE => {}
            I8 => self.bytes(1)?,
            I16..=I64 => drop(self.varint()?),
            DOUBLE => self.bytes(8)?,
            BINARY => {
                let count = self.varint()?;
                self.bytes(count)?;
            }
            LIST | SET => {
                let (count, kind) = self.list()?;
                for _ in 0..count {
                    self.element(kind, depth + 1)?;
                }
            }
            MAP => {
                let count = self.varint()?;
                let kinds = if count > 0 { self.byte()? } else { 0 };
                for _ in 0..count {
                    self.element(kinds >> 4, depth + 1)?;
                    self.element(kinds & 0x0f, depth + 1)?;
                }
            }
            STRUCT => {
                let mut last = 0;
                while let Some(kind) = self.field(&mut last)? {
                    self.skip(kind, depth + 1)?;
                }
            }
            _ => return None,
        }
        Some(())
    }
}

const TRUE: u8 = 1;
const FALSE: u8 = 2;
const I8: u8 = 3;
const I16: u8 = 4;
const I32: u8 = 5;
const I64: u8 = 6;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const MAP: u8 = 11;
const STRUCT: u8 = 12;

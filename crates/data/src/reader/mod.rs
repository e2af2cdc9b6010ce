//! Data files as chunks of rows of strings, a bounded number of rows at a time, whatever the size of the file.

mod jsonl;
mod parquet;

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use crate::error::{Error, Result};

/// Rows tokenised at once: enough to keep many cores busy, little enough to forget about.
pub(crate) const CHUNK_ROWS: usize = 256;

/// The wanted fields of one row, in the order of the names given to [`Rows::open`].
pub(crate) type Fields = Vec<Option<String>>;

/// A column of a data file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type, in the words of the file's format ("Utf8", "Int64"; "string", "number").
    pub kind: String,
}

/// The columns of a data file, in the file's order: of a JSON Lines file those of its first 256 rows.
///
/// # Errors
/// A file that is missing, of another format, or corrupt at its start.
pub fn columns(path: &Path) -> Result<Vec<Column>> {
    match detect(path)? {
        Format::Parquet => parquet::columns(path),
        Format::Lines => jsonl::columns(path),
    }
}

/// An open data file.
pub(crate) enum Rows {
    Parquet(parquet::ParquetRows),
    Lines(jsonl::LineRows),
}

impl Rows {
    pub(crate) fn open(path: &Path, names: &[&str], range: &Range<usize>) -> Result<Self> {
        Ok(match detect(path)? {
            Format::Parquet => Self::Parquet(parquet::ParquetRows::open(path, names, range)?),
            Format::Lines => Self::Lines(jsonl::LineRows::open(path, names, range)?),
        })
    }

    /// The next rows, at most [`CHUNK_ROWS`]; none at the end.
    pub(crate) fn next_chunk(&mut self) -> Result<Option<Vec<Fields>>> {
        match self {
            Self::Parquet(rows) => rows.next_chunk(),
            Self::Lines(rows) => rows.next_chunk(),
        }
    }
}

enum Format {
    Parquet,
    Lines,
}

/// The first bytes decide, then the name: a parquet file called `.jsonl` is still a parquet file.
fn detect(path: &Path) -> Result<Format> {
    let wrong = |reason: &str| Err(Error::Format { path: path.into(), reason: reason.into() });
    let mut file = open(path)?;
    let mut head = Vec::new();
    file.by_ref().take(64).read_to_end(&mut head).map_err(|source| Error::Read { path: path.into(), source })?;
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    let text = head.strip_prefix(jsonl::BOM).unwrap_or(&head);
    match (text.iter().find(|byte| !byte.is_ascii_whitespace()), extension.as_str()) {
        _ if head.is_empty() => wrong("the file is empty"),
        _ if head.starts_with(b"PAR1") => Ok(Format::Parquet),
        (_, "parquet") => Err(Error::CorruptParquet {
            path: path.into(),
            row_group: None,
            reason: "it does not begin with the bytes PAR1".into(),
        }),
        (Some(b'['), "json" | "jsonl" | "ndjson") => wrong("one JSON array over the whole file"),
        (Some(b'{'), _) | (_, "json" | "jsonl" | "ndjson") => Ok(Format::Lines),
        _ => wrong("of an unknown format"),
    }
}

/// A pipe would be waited for without end, and could not be read twice.
fn open(path: &Path) -> Result<File> {
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => Error::Missing { path: path.into() },
        _ => Error::Read { path: path.into(), source },
    };
    let what = std::fs::metadata(path).map_err(failed)?;
    if !what.is_file() {
        let found = if what.is_dir() { "a folder" } else { "a pipe or a device" };
        return Err(Error::Format { path: path.into(), reason: format!("{found}, where one data file is expected") });
    }
    File::open(path).map_err(failed)
}

/// `text: Utf8, label: Int64`, for messages.
fn list(columns: &[Column]) -> String {
    const SHOWN: usize = 40;
    let mut names: Vec<String> = columns.iter().take(SHOWN).map(|c| format!("{}: {}", c.name, c.kind)).collect();
    if columns.len() > SHOWN {
        names.push(format!("and {} more", columns.len() - SHOWN));
    }
    if names.is_empty() { "(none)".into() } else { names.join(", ") }
}

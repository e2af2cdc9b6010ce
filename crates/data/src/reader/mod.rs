//! Data files as chunks of rows, a bounded number of rows at a time, whatever the size of the file.
//!
//! A reader gives the wanted columns of each row as JSON values: every format that holds lists and objects has them there, and a
//! text is a string in all of them.

mod arrow;
mod cells;
mod document;
mod footer;
mod jsonl;
mod objects;
mod open;
mod parquet;
mod table;
mod text;

use std::ops::Range;
use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use open::BOM;

pub(crate) use objects::kind;

/// Rows tokenised at once: enough to keep many cores busy, little enough to forget about.
pub(crate) const CHUNK_ROWS: usize = 256;

/// A chunk ends early when its rows reach this many bytes, so that long rows do not add up.
const CHUNK_BYTES: u64 = 16 << 20;

/// The longest row: a file without line ends would otherwise be read into memory whole.
const LONGEST_ROW: u64 = 64 << 20;

/// The wanted columns of one row, in the order of those given to [`open`]; null where the row has none.
pub(crate) type Fields = Vec<Value>;

/// What a column has to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Strings.
    Text,
    /// Strings or lists.
    List,
}

impl Kind {
    /// For messages.
    fn expected(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::List => "text or a list",
        }
    }

    fn allows(self, value: &Value) -> bool {
        value.is_null() || value.is_string() || (self == Self::List && value.is_array())
    }
}

/// A column that is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// Whether a file may lack it; it is null then.
    pub(crate) optional: bool,
}

/// A column of a data file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type, in the words of the file's format ("Utf8", "Int64"; "string", "number").
    pub kind: String,
}

/// The columns of a data file, in the file's order: of a file of JSON those of its first 256 rows.
///
/// # Errors
/// A file that is missing, of another format, or corrupt at its start.
pub fn columns(path: &Path) -> Result<Vec<Column>> {
    match detect(path)? {
        Format::Parquet => parquet::columns(path),
        Format::Arrow => arrow::columns(path),
        Format::Lines => objects::columns(jsonl::Lines::open(path)?),
        Format::Document => objects::columns(document::Document::open(path)?),
        Format::Table => table::columns(path),
        Format::Text => Ok(vec![text::column()]),
    }
}

/// How many rows a file has, if it tells without being read.
pub(crate) fn count(path: &Path) -> Result<Option<usize>> {
    Ok(if detect(path)? == Format::Parquet { Some(parquet::count(path)?) } else { None })
}

/// Rows of one file, from first to last.
pub(crate) trait Rows {
    /// The next rows, at most [`CHUNK_ROWS`]; none at the end of the file or of the wanted range, which may go past it.
    fn next_chunk(&mut self) -> Result<Option<Vec<Fields>>>;

    /// After the end: how many rows the file has, or those up to the end of the range.
    fn seen(&self) -> usize;
}

/// Opens those rows of a file that lie in a range.
pub(crate) fn open(path: &Path, wanted: &[Wanted], range: &Range<usize>) -> Result<Box<dyn Rows>> {
    Ok(match detect(path)? {
        Format::Parquet => Box::new(parquet::ParquetRows::open(path, wanted, range)?),
        Format::Arrow => Box::new(arrow::ArrowRows::open(path, wanted, range)?),
        Format::Lines => Box::new(objects::ObjectRows::new(jsonl::Lines::open(path)?, wanted, range)),
        Format::Document => Box::new(objects::ObjectRows::new(document::Document::open(path)?, wanted, range)),
        Format::Table => Box::new(table::TableRows::open(path, wanted, range)?),
        Format::Text => Box::new(text::TextRows::open(path, wanted, range)?),
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Parquet,
    Arrow,
    Lines,
    Document,
    Table,
    Text,
}

/// The names by which a file is taken for data in a folder.
pub(crate) const EXTENSIONS: [&str; 10] =
    ["parquet", "jsonl", "ndjson", "json", "csv", "tsv", "arrow", "feather", "ipc", "txt"];

/// Whether a file's name is that of a data file.
pub(crate) fn is_named_as_data(path: &Path) -> bool {
    EXTENSIONS.contains(&open::extension(path).as_str())
}

/// The first bytes decide, then the name: a parquet file called `.jsonl` is still a parquet file.
fn detect(path: &Path) -> Result<Format> {
    let wrong = |reason: &str| Err(Error::Format { path: path.into(), reason: reason.into() });
    let head = open::head(path, 64)?;
    let extension = open::extension(path);
    let text = head.strip_prefix(BOM).unwrap_or(&head);
    let first = text.iter().find(|byte| !byte.is_ascii_whitespace());
    match (first, extension.as_str()) {
        _ if head.is_empty() => wrong("the file is empty"),
        _ if head.starts_with(b"PAR1") => Ok(Format::Parquet),
        _ if head.starts_with(b"ARROW1") || head.starts_with(b"\xff\xff\xff\xff") => Ok(Format::Arrow),
        (_, "parquet") => Err(Error::CorruptParquet {
            path: path.into(),
            row_group: None,
            reason: "it does not begin with the bytes PAR1".into(),
        }),
        (_, "csv" | "tsv") => Ok(Format::Table),
        (_, "txt") => Ok(Format::Text),
        (Some(b'['), "jsonl" | "ndjson") => Ok(Format::Lines),
        (Some(b'['), _) => Ok(Format::Document),
        (Some(b'{'), _) => jsonl::or_document(path),
        (_, "json" | "jsonl" | "ndjson") => Ok(Format::Lines),
        _ if head.starts_with(b"version https://git-lfs") => {
            wrong("a pointer of Git LFS, not the data; run `git lfs pull` where it is from")
        }
        _ => wrong("of an unknown format"),
    }
}

/// `text: Utf8, label: Int64`, for messages.
pub(crate) fn list(columns: &[Column]) -> String {
    const SHOWN: usize = 40;
    let mut names: Vec<String> = columns.iter().take(SHOWN).map(|c| format!("{}: {}", c.name, c.kind)).collect();
    if columns.len() > SHOWN {
        names.push(format!("and {} more", columns.len() - SHOWN));
    }
    if names.is_empty() { "(none)".into() } else { names.join(", ") }
}

/// Where the wanted columns stand among those of a file.
fn places(path: &Path, wanted: &[Wanted], columns: &[Column]) -> Result<Vec<Option<usize>>> {
    let place = |it: &Wanted| match columns.iter().position(|column| column.name == it.name) {
        None if !it.optional => {
            Err(Error::ColumnMissing { path: path.into(), column: it.name.clone(), columns: list(columns) })
        }
        found => Ok(found),
    };
    wanted.iter().map(place).collect()
}

/// Counts the rows of a file that is read from its beginning, and picks those of a range.
struct Counted {
    range: Range<usize>,
    seen: usize,
}

impl Counted {
    fn new(range: &Range<usize>) -> Self {
        Self { range: range.clone(), seen: 0 }
    }

    /// Whether there may be more to come.
    fn goes_on(&self) -> bool {
        self.seen < self.range.end
    }

    /// Counts one row; whether it is wanted.
    fn take(&mut self) -> bool {
        self.seen += 1;
        self.seen > self.range.start
    }

    /// Of so many rows that come next, those that are wanted.
    fn take_some(&mut self, count: usize) -> Range<usize> {
        let first = self.seen;
        self.seen += count;
        let within = |row: usize| row.clamp(first, first + count) - first;
        within(self.range.start)..within(self.range.end).max(within(self.range.start))
    }
}

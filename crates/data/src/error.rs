//! The one error type of this crate: each message names the file and the place in it, what was expected, what came,
//! and what to do.

use std::path::PathBuf;

use crate::report::Report;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong between a file and a batch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The path does not exist.
    #[error("{}: no such file; check the path of the data or the model folder", path.display())]
    Missing {
        /// The path asked for.
        path: PathBuf,
    },
    /// The operating system refused to read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Neither parquet nor JSON Lines.
    #[error("{}: {reason}; a data file is parquet (.parquet) or JSON Lines (.jsonl, .json: one object a line)", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        reason: String,
    },
    /// A parquet file whose bytes contradict themselves.
    #[error("{}: corrupt parquet file{}: {reason}; fetch or write the file again", path.display(), place("row group", *row_group))]
    CorruptParquet {
        /// The file.
        path: PathBuf,
        /// The row group being read, if the footer was already understood.
        row_group: Option<usize>,
        /// What the reader found.
        reason: String,
    },
    /// A line that is not a JSON object.
    #[error("{}: line {line}: {reason}; each line must be one JSON object", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: u64,
        /// What the parser found.
        reason: String,
    },
    /// A column that the file does not have.
    #[error("{}: no column {column:?}; the columns are {columns}", path.display())]
    ColumnMissing {
        /// The file.
        path: PathBuf,
        /// The name asked for.
        column: String,
        /// Names and types that exist.
        columns: String,
    },
    /// A column that holds something other than strings.
    #[error("{}{}: column {column:?} holds {found} where text is expected; the columns are {columns}", path.display(), place("line", *line))]
    ColumnType {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// Its type.
        found: String,
        /// Line number from 1, in a JSON Lines file.
        line: Option<u64>,
        /// Names and types that exist.
        columns: String,
    },
    /// A row range that reaches past the end of the file, or holds nothing.
    #[error("{}: rows {start}..{} asked for, but the file has {available} rows", path.display(), bound(*end))]
    Rows {
        /// The file.
        path: PathBuf,
        /// First row asked for, from 0.
        start: usize,
        /// One past the last row asked for; `usize::MAX` for the end of the file.
        end: usize,
        /// Rows in the file.
        available: u64,
    },
    /// Nothing is left to train on.
    #[error("{}: no usable rows: {report}", path.display())]
    NoUsableRows {
        /// The file.
        path: PathBuf,
        /// Where the rows went.
        report: Box<Report>,
    },
    /// A setting that makes no sense.
    #[error("{setting}: {reason}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// Why, and what would do.
        reason: String,
    },
    /// `tokenizer.json` or a file beside it cannot be understood.
    #[error("{}: not a usable tokenizer: {reason}; copy the tokenizer files of the model again", path.display())]
    CorruptTokenizer {
        /// The file.
        path: PathBuf,
        /// What the parser found.
        reason: String,
    },
    /// A tokenizer made for another model.
    #[error(
        "the tokenizer has token id {largest_id}, but the model's vocabulary has only {model_vocab} entries (largest id {}); \
         use the tokenizer.json that belongs to this model", model_vocab.saturating_sub(1)
    )]
    VocabMismatch {
        /// Largest id that the tokenizer can produce.
        largest_id: u32,
        /// Rows of the model's embedding.
        model_vocab: usize,
    },
    /// A special token that the settings need and the tokenizer lacks.
    #[error("the tokenizer has no {role} token, which {needed_for}; name one in tokenizer_config.json")]
    NoSpecialToken {
        /// What it stands for: "eos".
        role: &'static str,
        /// What needs it.
        needed_for: &'static str,
    },
    /// The tokenizer refused a text.
    #[error("{place}: the tokenizer cannot encode this text: {reason}")]
    Encode {
        /// File and row, or "text".
        place: String,
        /// Its reason.
        reason: String,
    },
    /// The tokenizer could not turn ids into text.
    #[error("the tokenizer cannot decode these {count} ids: {reason}")]
    Decode {
        /// How many ids.
        count: usize,
        /// Its reason.
        reason: String,
    },
}

fn place<N: std::fmt::Display>(what: &str, number: Option<N>) -> String {
    number.map(|n| format!(": {what} {n}")).unwrap_or_default()
}

fn bound(end: usize) -> String {
    if end == usize::MAX { String::new() } else { end.to_string() }
}

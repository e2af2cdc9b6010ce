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
    /// No file of rows.
    #[error("{}: {reason}; a data file is parquet (.parquet), JSON (.jsonl, .json), Arrow (.arrow), a table (.csv, .tsv) or text (.txt)", path.display())]
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
    /// A row that is not a JSON object.
    #[error("{}: line {line}: {reason}; each row must be one JSON object, on a line of its own or in a list", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: u64,
        /// What the parser found.
        reason: String,
    },
    /// A line of a table that has no row.
    #[error("{}: line {line}: {reason}", path.display())]
    Table {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: u64,
        /// What the parser found, and what to do.
        reason: String,
    },
    /// An Arrow file whose bytes contradict themselves.
    #[error("{}: corrupt Arrow file: {reason}; fetch or write the file again", path.display())]
    CorruptArrow {
        /// The file.
        path: PathBuf,
        /// What the reader found.
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
    #[error("{}{}: column {column:?} holds {found} where {expected} is expected; the columns are {columns}", path.display(), place("line", *line))]
    ColumnType {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// Its type.
        found: Box<str>,
        /// What it has to hold.
        expected: &'static str,
        /// Line number from 1, in a JSON Lines file.
        line: Option<u64>,
        /// Names and types that exist.
        columns: Box<str>,
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
    /// A row whose columns do not hold what they should.
    #[error("{place}: {reason}; mend the row, or leave it out")]
    Row {
        /// File and row.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A chat template that cannot be used, or that refuses a conversation.
    #[error("{}chat template {template}{}: {reason}", before(place), at_line(*line))]
    Template {
        /// File and row of the conversation; empty if none is at fault.
        place: String,
        /// Where the template is from.
        template: String,
        /// Its line, from 1.
        line: Option<usize>,
        /// Its own words, or what failed.
        reason: String,
    },
    /// Conversations, and nothing that writes them.
    #[error(
        "the rows are conversations, and there is no chat template to write them as text: the model has none; give one"
    )]
    NoTemplate,
    /// Columns of which no layout is known.
    #[error(
        "no column \"text\", and none of the other layouts that are known: messages or conversations; prompt and completion; instruction and \
         output or response; question and answer. The columns are {columns}; say what they hold, as in prompt=question,completion=answer"
    )]
    NoLayout {
        /// Names and types that exist.
        columns: String,
    },
    /// A row that is longer than the longest example, where none may be.
    #[error(
        "{place}: {tokens} tokens, of which an example may have {max_length}; raise max_length, or say what becomes of longer rows"
    )]
    TooLong {
        /// File and row.
        place: String,
        /// Its length.
        tokens: u64,
        /// The longest length.
        max_length: usize,
    },
    /// Nothing is left to train on.
    #[error("{}: no usable rows: {report}", path.display())]
    NoUsableRows {
        /// The file.
        path: PathBuf,
        /// Where the rows went.
        report: Box<Report>,
    },
    /// More tokens than there is memory for.
    #[error(
        "{}: the tokens of the first {rows} rows take {} MiB, and {} MiB of memory can be had; take fewer rows, or read them as training goes \
         (streaming)", path.display(), bytes >> 20, limit >> 20
    )]
    TooLarge {
        /// The file that was being read.
        path: PathBuf,
        /// Rows read so far, of all files.
        rows: u64,
        /// What was made of them, in bytes.
        bytes: usize,
        /// Most bytes that there may be.
        limit: usize,
    },
    /// Too many rows that teach nothing, or not what they should.
    #[error(
        "{}: of the first {} rows {} teach nothing, or not what they should ({report}); more than a share of {allowed} is not allowed \
         (max_doubtful_rows)", path.display(), report.rows_read, report.doubtful()
    )]
    Doubtful {
        /// The file that was being read.
        path: PathBuf,
        /// Where the rows went.
        report: Box<Report>,
        /// The share that is allowed.
        allowed: f64,
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

fn before(place: &str) -> String {
    if place.is_empty() { String::new() } else { format!("{place}: ") }
}

fn at_line(line: Option<usize>) -> String {
    line.map(|it| format!(", line {it}")).unwrap_or_default()
}

fn bound(end: usize) -> String {
    if end == usize::MAX { String::new() } else { end.to_string() }
}

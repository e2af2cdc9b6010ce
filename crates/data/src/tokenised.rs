//! The rows of some files as a tokenizer and settings make them, each known by its contents.

use rayon::prelude::*;
use twox_hash::XxHash3_64;

use crate::config::DataConfig;
use crate::dataset::Dataset;
use crate::encode::{Encoded, Encoder};
use crate::error::{Error, Result};
use crate::files::{AllRows, DataFiles, Place};
use crate::reader::Fields;
use crate::report::Report;
use crate::tokenizer::Tokenizer;

/// What was made of the rows of some files.
#[derive(Debug, Clone, PartialEq)]
pub struct Tokenised {
    /// The examples, in file order.
    pub dataset: Dataset,
    /// Where the rows went.
    pub report: Report,
    /// For each example the hash of what its row's columns hold: the same wherever the row stands.
    pub(crate) keys: Vec<u64>,
}

impl Tokenised {
    /// Reads data files, as [`Dataset::load_all`] does.
    ///
    /// # Errors
    /// Those of [`Dataset::load_all`].
    pub fn read(files: &DataFiles, tokenizer: &Tokenizer, config: &DataConfig) -> Result<Self> {
        Self::read_within(files, tokenizer, config, usize::MAX)
    }

    /// As [`read`](Self::read), as long as what is made takes no more than so many bytes.
    ///
    /// # Errors
    /// Those of [`Dataset::load_all`], and more tokens than that.
    pub fn read_within(files: &DataFiles, tokenizer: &Tokenizer, config: &DataConfig, limit: usize) -> Result<Self> {
        let encoder = Encoder::new(tokenizer, config)?;
        let mut rows = AllRows::new(files, config.columns.wanted(), config.rows.clone().unwrap_or(0..usize::MAX));
        let mut made = Self::empty();
        while let Some((first, chunk)) = rows.next_chunk()? {
            made.add(&encoder, &first, chunk)?;
            if made.dataset.bytes() > limit {
                let rows = made.report.rows_read;
                return Err(Error::TooLarge { path: first.path, rows, bytes: made.dataset.bytes(), limit });
            }
        }
        if made.dataset.is_empty() {
            let path = files.paths().first().cloned().unwrap_or_default();
            return Err(Error::NoUsableRows { path, report: Box::new(made.report) });
        }
        made.dataset.shrink();
        Ok(made)
    }

    pub(crate) fn empty() -> Self {
        Self { dataset: Dataset::empty(), report: Report::default(), keys: Vec::new() }
    }

    /// Tokenises rows on the threads of the current rayon pool, and puts them after the others; `first` says where the first stands.
    pub(crate) fn add(&mut self, encoder: &Encoder<'_>, first: &Place, rows: Vec<Fields>) -> Result<()> {
        let encode = |fields: Fields| (key(&fields), encoder.encode(fields));
        let encoded: Vec<(u64, Result<Encoded>)> = rows.into_par_iter().map(encode).collect();
        for (row, (key, encoded)) in encoded.into_iter().enumerate() {
            let encoded = encoded.map_err(|error| located(error, first, row as u64))?;
            self.report.add(&encoded.report);
            for example in &encoded.examples {
                self.dataset.push(&example.ids, &example.mask);
                self.keys.push(key);
            }
        }
        Ok(())
    }
}

/// The hash of what the columns of a row hold, by xxHash's definition, so that it is the same in every version.
fn key(fields: &Fields) -> u64 {
    // What was read from text can be written as text.
    XxHash3_64::oneshot(&serde_json::to_vec(fields).unwrap_or_default())
}

/// Names the row, of which what went wrong with it knows nothing.
pub(crate) fn located(error: Error, first: &Place, row: u64) -> Error {
    let here = format!("{}: row {}", first.path.display(), first.row + row);
    match error {
        Error::Encode { reason, .. } => Error::Encode { place: here, reason },
        Error::Row { reason, .. } => Error::Row { place: here, reason },
        Error::TooLong { tokens, max_length, .. } => Error::TooLong { place: here, tokens, max_length },
        Error::Template { template, line, reason, .. } => Error::Template { place: here, template, line, reason },
        other => other,
    }
}

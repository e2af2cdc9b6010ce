//! Tokenised rows in memory: 4 bytes and one bit a token, whatever text they came from.

use std::fmt;
use std::path::Path;

use rayon::prelude::*;

use crate::config::DataConfig;
use crate::encode::{Encoded, Encoder};
use crate::error::{Error, Result};
use crate::files::{AllRows, DataFiles, Place};
use crate::mixture::Source;
use crate::report::Report;
use crate::tokenizer::Tokenizer;

/// One example of one's own making, for [`Dataset::from_examples`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Whether each token is to be predicted; as long as `ids`.
    pub mask: Vec<bool>,
}

/// Tokenised rows in file order.
#[derive(Clone, PartialEq)]
pub struct Dataset {
    ids: Vec<u32>,
    /// Bit `t` of the whole: token `t` of `ids` is to be predicted.
    mask: Vec<u64>,
    /// Where each row begins, and the end of the last.
    offsets: Vec<usize>,
    /// The sources of a mixture, one after the other; none where an epoch takes each row once.
    pub(crate) sources: Vec<Source>,
}

impl Dataset {
    /// Reads one data file and tokenises it; see [`load_all`](Self::load_all).
    ///
    /// # Errors
    /// Those of [`load_all`](Self::load_all).
    pub fn load(path: &Path, tokenizer: &Tokenizer, config: &DataConfig) -> Result<(Self, Report)> {
        Self::load_all(&DataFiles::one(path), tokenizer, config)
    }

    /// Reads data files, one after the other, and tokenises their rows on the threads of the current rayon pool. Holds at most
    /// 256 rows of text at a time. The result does not depend on the number of threads.
    ///
    /// # Errors
    /// A file that is missing, of another format or corrupt; a column that is not there or holds something else; a row range past
    /// the end; a conversation that cannot be understood or that the template refuses; no usable row; a tokenizer without the
    /// end-of-text token where it is to be appended.
    pub fn load_all(files: &DataFiles, tokenizer: &Tokenizer, config: &DataConfig) -> Result<(Self, Report)> {
        let encoder = Encoder::new(tokenizer, config)?;
        let mut rows = AllRows::new(files, config.columns.wanted(), config.rows.clone().unwrap_or(0..usize::MAX));
        let mut dataset = Self::empty();
        let mut report = Report::default();
        while let Some((first, chunk)) = rows.next_chunk()? {
            let encoded: Vec<Result<Encoded>> = chunk.into_par_iter().map(|fields| encoder.encode(fields)).collect();
            for (row, encoded) in encoded.into_iter().enumerate() {
                let encoded = encoded.map_err(|error| located(error, &first, row as u64))?;
                report.add(&encoded.report);
                encoded.examples.iter().for_each(|it| dataset.push(&it.ids, &it.mask));
            }
        }
        if dataset.is_empty() {
            let path = files.paths().first().cloned().unwrap_or_default();
            return Err(Error::NoUsableRows { path, report: Box::new(report) });
        }
        dataset.ids.shrink_to_fit();
        Ok((dataset, report))
    }

    /// A dataset of examples rendered elsewhere.
    ///
    /// # Errors
    /// An example whose mask and ids differ in length, or that trains no token.
    pub fn from_examples(examples: impl IntoIterator<Item = Example>) -> Result<Self> {
        let mut dataset = Self::empty();
        for (index, Example { ids, mask }) in examples.into_iter().enumerate() {
            let wrong = |reason| Error::Setting { setting: "examples", reason };
            if ids.len() != mask.len() {
                let (ids, mask) = (ids.len(), mask.len());
                return Err(wrong(format!("example {index} has {ids} ids and {mask} mask values; give one for each")));
            }
            if !mask.iter().skip(1).any(|&trained| trained) {
                return Err(wrong(format!("example {index} has no token that is trained; leave it out")));
            }
            dataset.push(&ids, &mask);
        }
        Ok(dataset)
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether there is no example.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens in all examples.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Resident bytes of ids, mask and offsets.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.ids[..]) + size_of_val(&self.mask[..]) + size_of_val(&self.offsets[..])
    }

    /// Tokens of one example.
    ///
    /// # Panics
    /// If `index` is not below [`len`](Self::len).
    pub fn length(&self, index: usize) -> usize {
        self.offsets[index + 1] - self.offsets[index]
    }

    /// Tokens of the longest example.
    pub fn longest(&self) -> usize {
        (0..self.len()).map(|index| self.length(index)).max().unwrap_or(0)
    }

    /// One example.
    ///
    /// # Panics
    /// If `index` is not below [`len`](Self::len).
    pub fn row(&self, index: usize) -> Row<'_> {
        let (start, end) = (self.offsets[index], self.offsets[index + 1]);
        Row { ids: &self.ids[start..end], mask: &self.mask, start }
    }

    /// All examples in file order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = Row<'_>> {
        (0..self.len()).map(|index| self.row(index))
    }

    pub(crate) fn empty() -> Self {
        Self { ids: Vec::new(), mask: Vec::new(), offsets: vec![0], sources: Vec::new() }
    }

    /// Puts the rows of another after its own.
    pub(crate) fn append(&mut self, other: &Dataset) {
        self.ids.reserve_exact(other.ids.len());
        for row in other.rows() {
            let mask: Vec<bool> = (0..row.ids.len()).map(|t| row.trained(t)).collect();
            self.push(row.ids, &mask);
        }
    }

    fn push(&mut self, ids: &[u32], mask: &[bool]) {
        assert_eq!(ids.len(), mask.len(), "each id has one mask bit");
        for (&id, &trained) in ids.iter().zip(mask) {
            let bit = self.ids.len();
            if bit.is_multiple_of(64) {
                self.mask.push(0);
            }
            self.mask[bit / 64] |= u64::from(trained) << (bit % 64);
            self.ids.push(id);
        }
        self.offsets.push(self.ids.len());
    }
}

impl fmt::Debug for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dataset({} examples, {} tokens)", self.len(), self.tokens())
    }
}

/// One example of a [`Dataset`].
#[derive(Clone, Copy)]
pub struct Row<'d> {
    /// Token ids.
    pub ids: &'d [u32],
    mask: &'d [u64],
    start: usize,
}

impl Row<'_> {
    /// Whether token `t` is to be predicted. The first token of a row never is, whatever this says: nothing precedes it.
    ///
    /// # Panics
    /// If `t` is not below the length of the row.
    pub fn trained(&self, t: usize) -> bool {
        assert!(t < self.ids.len(), "token {t} of a row of {}", self.ids.len());
        let bit = self.start + t;
        self.mask[bit / 64] >> (bit % 64) & 1 == 1
    }

    /// What position `t` should predict: token `t + 1`, or [`IGNORE`](crate::IGNORE).
    ///
    /// # Panics
    /// If `t` is not below the length of the row.
    pub fn target(&self, t: usize) -> u32 {
        let next = t + 1;
        assert!(t < self.ids.len(), "position {t} of a row of {}", self.ids.len());
        if next < self.ids.len() && self.trained(next) { self.ids[next] } else { crate::IGNORE }
    }
}

impl fmt::Debug for Row<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries((0..self.ids.len()).map(|t| (self.ids[t], self.trained(t)))).finish()
    }
}

/// Names the row, of which what went wrong with it knows nothing.
fn located(error: Error, first: &Place, row: u64) -> Error {
    let here = format!("{}: row {}", first.path.display(), first.row + row);
    match error {
        Error::Encode { reason, .. } => Error::Encode { place: here, reason },
        Error::Row { reason, .. } => Error::Row { place: here, reason },
        Error::TooLong { tokens, max_length, .. } => Error::TooLong { place: here, tokens, max_length },
        Error::Template { template, line, reason, .. } => Error::Template { place: here, template, line, reason },
        other => other,
    }
}

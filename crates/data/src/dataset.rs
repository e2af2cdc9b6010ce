//! Tokenised rows in memory: 4 bytes and one bit a token, whatever text they came from.

use std::fmt;
use std::path::Path;

use crate::config::DataConfig;
use crate::error::{Error, Result};
use crate::files::DataFiles;
use crate::mixture::Source;
use crate::report::Report;
use crate::tokenised::Tokenised;
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
        let Tokenised { dataset, report, .. } = Tokenised::read(files, tokenizer, config)?;
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

    /// Gives back what is larger than it has to be.
    pub(crate) fn shrink(&mut self) {
        self.ids.shrink_to_fit();
        self.mask.shrink_to_fit();
        self.offsets.shrink_to_fit();
    }

    /// Takes some of the examples out, in their order.
    pub(crate) fn take_out(&mut self, out: impl Fn(usize) -> bool) -> Dataset {
        let mut taken = Self::empty();
        let mut offsets = vec![0];
        let mut at = 0;
        for index in 0..self.len() {
            let place = self.offsets[index]..self.offsets[index + 1];
            if out(index) {
                let row = self.row(index);
                let mask: Vec<bool> = (0..row.ids.len()).map(|t| row.trained(t)).collect();
                taken.push(row.ids, &mask);
                continue;
            }
            // What stays moves up, so that nothing is held twice.
            for (to, from) in (at..).zip(place.clone()) {
                let bit = self.mask[from / 64] >> (from % 64) & 1;
                self.mask[to / 64] = self.mask[to / 64] & !(1 << (to % 64)) | bit << (to % 64);
            }
            self.ids.copy_within(place.clone(), at);
            at += place.len();
            offsets.push(at);
        }
        self.ids.truncate(at);
        self.mask.truncate(at.div_ceil(64));
        if let Some(last) = self.mask.last_mut().filter(|_| at % 64 > 0) {
            *last &= (1 << (at % 64)) - 1;
        }
        self.offsets = offsets;
        self.shrink();
        taken
    }

    /// Ids, mask, and the length of each row.
    pub(crate) fn raw(&self) -> (&[u32], &[u64], impl ExactSizeIterator<Item = usize>) {
        (&self.ids, &self.mask, (0..self.len()).map(|it| self.length(it)))
    }

    /// From what [`raw`](Self::raw) gave; none if it does not fit together.
    pub(crate) fn from_raw(ids: Vec<u32>, mask: Vec<u64>, lengths: &[usize]) -> Option<Self> {
        let mut offsets = Vec::with_capacity(lengths.len() + 1);
        offsets.push(0usize);
        for length in lengths {
            offsets.push(offsets.last()?.checked_add(*length)?);
        }
        let fits = offsets.last() == Some(&ids.len()) && mask.len() == ids.len().div_ceil(64);
        (fits && !lengths.contains(&0)).then_some(Self { ids, mask, offsets, sources: Vec::new() })
    }

    pub(crate) fn push(&mut self, ids: &[u32], mask: &[bool]) {
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

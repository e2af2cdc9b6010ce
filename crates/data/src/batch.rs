//! Batches without padding, in an order that depends on nothing but seed, epoch and position.

use crate::IGNORE;
use crate::dataset::Dataset;
use crate::epoch::{self, Epoch};
use crate::error::{Error, Result};

/// Sequences one after the other, without padding between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Token ids `(tokens)`: those of the first sequence, then those of the second.
    pub ids: Vec<u32>,
    /// What each token predicts `(tokens)`: the next token of its sequence, or [`IGNORE`]. The last token of a sequence
    /// never predicts the first of the next one.
    pub targets: Vec<u32>,
    /// Tokens of each sequence.
    pub lengths: Vec<usize>,
    /// Tokens of all sequences.
    pub tokens: usize,
    /// Targets that count in the loss.
    pub trained: usize,
    /// Which example of the dataset each sequence is.
    pub rows: Vec<usize>,
}

/// Whether a row of a batch is one example or as many as fit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Packing {
    /// A row is an example.
    #[default]
    Off,
    /// A row is several examples, packed best-fit decreasing; all examples of an epoch take part. They stay sequences of
    /// their own, and none is cut.
    On {
        /// Most tokens in a row; no example may be longer.
        max_length: usize,
    },
}

/// How a dataset is cut into batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchConfig {
    /// Rows a batch: examples, or packed rows of examples.
    pub batch_size: usize,
    /// Seed of a new order each epoch; `None`: file order (of packed rows, by their earliest example).
    pub shuffle: Option<u64>,
    /// Whether the last batch of an epoch is left out if it has fewer than `batch_size` rows. With shuffling those are
    /// other rows in every epoch.
    pub drop_last: bool,
    /// Whether examples share rows.
    pub packing: Packing,
}

/// A place in the endless sequence of batches; all that resuming needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Passes over the data completed.
    pub epoch: u64,
    /// Of a [`Stream`](crate::Stream), rows of this pass that were behind when the present ones were read; else 0.
    pub row: usize,
    /// Batches of this pass completed; of a stream, of the rows that were read together.
    pub batch: usize,
}

impl Dataset {
    /// The given examples as one batch.
    ///
    /// # Panics
    /// If `examples` is empty or holds an index that is not below [`len`](Self::len).
    pub fn collate(&self, examples: &[usize]) -> Batch {
        assert!(!examples.is_empty(), "a batch has at least one sequence");
        let lengths: Vec<usize> = examples.iter().map(|&example| self.length(example)).collect();
        let tokens = lengths.iter().sum();
        let (mut ids, mut targets) = (Vec::with_capacity(tokens), Vec::with_capacity(tokens));
        for &example in examples {
            let row = self.row(example);
            ids.extend_from_slice(row.ids);
            targets.extend((0..row.ids.len()).map(|t| row.target(t)));
        }
        let trained = targets.iter().filter(|&&target| target != IGNORE).count();
        Batch { ids, targets, lengths, tokens, trained, rows: examples.to_vec() }
    }

    /// Batches from a position on, pass after pass without end: cut it with `take`, or stop at a
    /// [position](Batches::next_position). Beginning at a position gives exactly what an uninterrupted run would see
    /// there: the rows of a pass are computed from the seed and the number of the pass when it begins.
    ///
    /// # Errors
    /// Those of [`epoch_size`](Self::epoch_size), and a position past the end of its pass.
    pub fn batches(&self, config: &BatchConfig, from: Position) -> Result<Batches<'_>> {
        self.check(config)?;
        let epoch = Epoch::new(self, config, from.epoch);
        let per_epoch = epoch::batches(epoch.rows(), config)?;
        if from.batch > per_epoch {
            let reason = format!("batch {} of a pass that has {per_epoch}; was the data file changed?", from.batch);
            return Err(Error::Setting { setting: "position", reason });
        }
        Ok(Batches { dataset: self, config: *config, per_epoch, epoch, at: from })
    }

    /// One pass in file order, every example once: for evaluation. As many examples make a batch as have at most `tokens`
    /// tokens together; one that has more stands alone.
    pub fn in_order(&self, tokens: usize) -> impl Iterator<Item = Batch> {
        let mut next = 0;
        std::iter::from_fn(move || {
            let (first, mut left) = (next, tokens);
            while next < self.len() && (next == first || self.length(next) <= left) {
                left = left.saturating_sub(self.length(next));
                next += 1;
            }
            (first < next).then(|| self.collate(&(first..next).collect::<Vec<_>>()))
        })
    }
}

/// Endless iterator over batches; see [`Dataset::batches`].
#[derive(Debug, Clone)]
pub struct Batches<'d> {
    dataset: &'d Dataset,
    config: BatchConfig,
    per_epoch: usize,
    epoch: Epoch,
    at: Position,
}

impl Batches<'_> {
    /// Where the next batch stands. After the last batch of a pass this is the start of the next pass.
    pub fn next_position(&self) -> Position {
        match self.at.batch < self.per_epoch {
            true => self.at,
            false => Position { epoch: self.at.epoch + 1, row: 0, batch: 0 },
        }
    }

    /// Batches in one pass, which every pass has.
    pub fn per_epoch(&self) -> usize {
        self.per_epoch
    }
}

impl Iterator for Batches<'_> {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let at = self.next_position();
        if at.epoch != self.at.epoch {
            let rows = self.epoch.rows();
            self.epoch = Epoch::new(self.dataset, &self.config, at.epoch);
            assert_eq!(self.epoch.rows(), rows, "every pass has as many rows as the one before");
        }
        let start = at.batch * self.config.batch_size;
        let end = (start + self.config.batch_size).min(self.epoch.rows());
        self.at = Position { batch: at.batch + 1, ..at };
        Some(self.dataset.collate(&self.epoch.examples(start..end)))
    }
}

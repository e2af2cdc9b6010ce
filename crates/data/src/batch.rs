//! Rows to rectangular batches, in an order that depends on nothing but seed, epoch and position.

use crate::IGNORE;
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::shuffle::permutation;

/// Rows padded on the right to the longest of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Token ids `(batch, time)`, row-major, short rows filled with the pad id.
    pub ids: Vec<u32>,
    /// What each position predicts `(batch, time)`: the next token of its row, or [`IGNORE`].
    pub targets: Vec<u32>,
    /// Rows.
    pub batch: usize,
    /// Positions a row: the longest row.
    pub time: usize,
    /// Tokens of each row, padding not counted.
    pub lengths: Vec<usize>,
    /// Tokens of all rows, padding not counted.
    pub tokens: usize,
    /// Targets that count in the loss.
    pub trained: usize,
    /// Which examples of the dataset these are.
    pub rows: Vec<usize>,
}

/// How a dataset is cut into batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchConfig {
    /// Rows a batch.
    pub batch_size: usize,
    /// Seed of a new order each epoch; `None`: file order.
    pub shuffle: Option<u64>,
    /// Whether the last, smaller batch of an epoch is left out.
    pub drop_last: bool,
}

/// A place in the endless sequence of batches; all that resuming needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Passes over the data completed.
    pub epoch: u64,
    /// Batches of this pass completed.
    pub batch: usize,
}

impl Dataset {
    /// The given rows as one batch.
    ///
    /// # Panics
    /// If `rows` is empty or holds an index that is not below [`len`](Self::len).
    pub fn collate(&self, rows: &[usize]) -> Batch {
        assert!(!rows.is_empty(), "a batch has at least one row");
        let lengths: Vec<usize> = rows.iter().map(|&row| self.row(row).ids.len()).collect();
        let time = lengths.iter().copied().max().unwrap_or_default();
        let mut ids = Vec::with_capacity(rows.len() * time);
        let mut targets = Vec::with_capacity(rows.len() * time);
        for (index, &row) in rows.iter().enumerate() {
            let row = self.row(row);
            ids.extend_from_slice(row.ids);
            targets.extend((0..row.ids.len()).map(|t| row.target(t)));
            ids.resize((index + 1) * time, self.pad());
            targets.resize((index + 1) * time, IGNORE);
        }
        let trained = targets.iter().filter(|&&target| target != IGNORE).count();
        let tokens = lengths.iter().sum();
        Batch { ids, targets, batch: rows.len(), time, lengths, tokens, trained, rows: rows.to_vec() }
    }

    /// Batches in one pass over the data.
    pub fn batches_per_epoch(&self, config: &BatchConfig) -> usize {
        match config.drop_last {
            true => self.len() / config.batch_size.max(1),
            false => self.len().div_ceil(config.batch_size.max(1)),
        }
    }

    /// Batches from a position on, pass after pass without end: cut it with `take`, or stop at a
    /// [position](Batches::next_position). Beginning at a position gives exactly what an uninterrupted run would see there.
    ///
    /// # Errors
    /// A batch size of 0; no batch in a pass; a position past the end of its pass.
    pub fn batches(&self, config: &BatchConfig, from: Position) -> Result<Batches<'_>> {
        let setting = |setting, reason| Err(Error::Setting { setting, reason });
        if config.batch_size == 0 {
            return setting("batch_size", "0 rows make no batch; at least 1 is needed".into());
        }
        let per_epoch = self.batches_per_epoch(config);
        if per_epoch == 0 {
            let (rows, size) = (self.len(), config.batch_size);
            let reason = format!("{rows} examples make no batch of {size}; use a smaller batch, or keep the last one");
            return setting("batch_size", reason);
        }
        if from.batch > per_epoch {
            let reason = format!("batch {} of a pass that has {per_epoch}; was the data file changed?", from.batch);
            return setting("position", reason);
        }
        let order = self.order(config, from.epoch);
        Ok(Batches { dataset: self, config: *config, per_epoch, order, at: from })
    }

    /// One pass in file order, every row once: for evaluation.
    ///
    /// # Errors
    /// A batch size of 0.
    pub fn in_order(&self, batch_size: usize) -> Result<std::iter::Take<Batches<'_>>> {
        let config = BatchConfig { batch_size, shuffle: None, drop_last: false };
        Ok(self.batches(&config, Position::default())?.take(self.batches_per_epoch(&config)))
    }

    /// Empty stands for file order.
    fn order(&self, config: &BatchConfig, epoch: u64) -> Vec<usize> {
        config.shuffle.map(|seed| permutation(self.len(), seed, epoch)).unwrap_or_default()
    }
}

/// Endless iterator over batches; see [`Dataset::batches`].
#[derive(Debug, Clone)]
pub struct Batches<'d> {
    dataset: &'d Dataset,
    config: BatchConfig,
    per_epoch: usize,
    order: Vec<usize>,
    at: Position,
}

impl Batches<'_> {
    /// Where the next batch stands. After the last batch of a pass this is the start of the next pass.
    pub fn next_position(&self) -> Position {
        match self.at.batch < self.per_epoch {
            true => self.at,
            false => Position { epoch: self.at.epoch + 1, batch: 0 },
        }
    }

    /// Batches in one pass.
    pub fn per_epoch(&self) -> usize {
        self.per_epoch
    }
}

impl Iterator for Batches<'_> {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let at = self.next_position();
        if at.epoch != self.at.epoch {
            self.order = self.dataset.order(&self.config, at.epoch);
        }
        let start = at.batch * self.config.batch_size;
        let end = (start + self.config.batch_size).min(self.dataset.len());
        let rows: Vec<usize> = match self.order.is_empty() {
            true => (start..end).collect(),
            false => self.order[start..end].to_vec(),
        };
        self.at = Position { epoch: at.epoch, batch: at.batch + 1 };
        Some(self.dataset.collate(&rows))
    }
}

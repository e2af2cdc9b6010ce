//! Rows that are read as training goes, for data sets larger than memory.
//!
//! A pool of threads of its own reads so many rows, tokenises them, and makes batches of them in an order drawn anew, while those before are
//! trained on. So memory holds two such buffers, whatever there is on disk, and rows are shuffled within a buffer (and, where there
//! are several files, these in each pass). A place in a stream is the row with which its buffer began and the batch in it: going on reads
//! one buffer again, and no row before it is tokenised.

use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use crate::batch::{Batch, BatchConfig, Packing, Position};
use crate::config::DataConfig;
use crate::dataset::Dataset;
use crate::encode::Encoder;
use crate::epoch::{self, Epoch};
use crate::error::{Error, Result};
use crate::files::{AllRows, DataFiles, Place};
use crate::reader::{CHUNK_ROWS, Fields};
use crate::report::Report;
use crate::shuffle::permutation;
use crate::tokenised::Tokenised;
use crate::tokenizer::Tokenizer;

/// How a stream is read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StreamConfig {
    /// Rows that are read, and shuffled, together.
    pub buffer: usize,
    /// The share of [doubtful](Report::doubtful) rows that is allowed, of all that were read, once these are a thousand or a pass.
    pub doubtful: f64,
}

/// Rows that are read as they are needed.
#[derive(Debug, Clone)]
pub struct Stream(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    files: DataFiles,
    tokenizer: Tokenizer,
    data: DataConfig,
    config: StreamConfig,
    rows: Option<usize>,
    /// Of the rows that were handed out.
    report: Mutex<Report>,
}

/// Below so many rows a share says little.
const ROWS_FOR_A_SHARE: u64 = 1000;

/// Sets the order of files apart from those of rows.
const FILES: u64 = 0x2545_f491_4f6c_dd1d;

impl Stream {
    /// Of the rows of some files.
    ///
    /// # Errors
    /// Settings that make no sense, and what opening the files and reading their first rows shows.
    pub fn open(
        files: DataFiles,
        tokenizer: Tokenizer,
        data: DataConfig,
        config: StreamConfig,
    ) -> Result<(Self, Report)> {
        if config.buffer == 0 {
            let reason = "0 rows cannot be read at a time; at least 1 is needed".into();
            return Err(Error::Setting { setting: "shuffle_buffer", reason });
        }
        let counted = files.count()?;
        let range = data.rows.clone().unwrap_or(0..usize::MAX);
        let rows = counted.map(|it| range.end.min(it).saturating_sub(range.start));
        let shared = Shared { files, tokenizer, data, config, rows, report: Mutex::default() };
        let first = shared.probe()?;
        Ok((Self(Arc::new(shared)), first))
    }

    /// Rows of a pass, with those that cannot be used; none where the files do not tell.
    pub fn rows(&self) -> Option<usize> {
        self.0.rows
    }

    /// Where the rows went that were handed out so far.
    pub fn report(&self) -> Report {
        *self.0.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The most that two buffers take in memory, while rows are not split.
    pub fn bytes(&self) -> usize {
        Self::bytes_of(self.0.rows.unwrap_or(usize::MAX).min(self.0.config.buffer), self.0.data.max_length)
    }

    /// The most that two buffers of so many rows take.
    pub fn bytes_of(buffer: usize, max_length: usize) -> usize {
        // Ids, a bit each, an offset, and what the contents are known by.
        2 * buffer * (max_length * 33 / 8 + 2 * size_of::<usize>())
    }

    /// Batches of a pass in which every row becomes one example; none where that cannot be known.
    pub fn batches_per_pass(&self, config: &BatchConfig) -> Option<usize> {
        let rows = self.0.rows.filter(|_| config.packing == Packing::Off)?;
        let of =
            |rows: usize| if config.drop_last { rows / config.batch_size } else { rows.div_ceil(config.batch_size) };
        Some(rows / self.0.config.buffer * of(self.0.config.buffer) + of(rows % self.0.config.buffer))
    }

    /// Batches from a place on, pass after pass without end.
    ///
    /// # Errors
    /// What reading the first of them shows, and a place that this stream does not have.
    pub fn batches(&self, config: &BatchConfig, from: Position) -> Result<StreamBatches> {
        if config.batch_size == 0 {
            return Err(Error::Setting {
                setting: "batch_size",
                reason: "0 rows make no batch; at least 1 is needed".into(),
            });
        }
        // Whoever sends waits until the block is taken: one is there, and one is trained on.
        let (sender, blocks) = sync_channel(0);
        let (shared, config) = (self.0.clone(), *config);
        // Threads of its own: those that train wait for it, and it could not wait for them.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(rayon::current_num_threads());
        let pool = pool.thread_name(|it| format!("rows-{it}")).panic_handler(|_| ()).build();
        let pool =
            pool.map_err(|error| Error::Setting { setting: "threads", reason: format!("{error}; use fewer") })?;
        pool.spawn(move || {
            if let Err(error) = shared.send_blocks(&config, (from.epoch, from.row), &sender) {
                let _ = sender.send(Err(error));
            }
        });
        let mut batches = StreamBatches { shared: self.0.clone(), blocks, config, block: None, batch: 0 };
        batches.take_block()?;
        let (block, found) = (batches.block(), Position { batch: 0, ..batches.position() });
        if from.batch > 0 && (found != Position { batch: 0, ..from } || from.batch > block.batches) {
            let reason = format!("batch {} after row {} is not there; was a data file changed?", from.batch, from.row);
            return Err(Error::Setting { setting: "position", reason });
        }
        batches.batch = from.batch;
        Ok(batches)
    }
}

/// Rows that were read together, as batches.
struct Block {
    dataset: Dataset,
    order: Epoch,
    batches: usize,
    pass: u64,
    /// Its rows in the pass, among them those that cannot be used.
    rows: Range<usize>,
    /// Of all rows up to its end.
    report: Report,
}

impl Shared {
    fn range(&self) -> Range<usize> {
        self.data.rows.clone().unwrap_or(0..usize::MAX)
    }

    /// The first rows, so that what is wrong with all is said at once.
    fn probe(&self) -> Result<Report> {
        let encoder = Encoder::new(&self.tokenizer, &self.data)?;
        let mut rows = AllRows::new(&self.files, self.data.columns.wanted(), self.range());
        let mut made = Tokenised::empty();
        if let Some((first, chunk)) = rows.next_chunk()? {
            made.add(&encoder, &first, chunk)?;
        }
        Ok(made.report)
    }

    /// The files in the order of a pass. A range of rows counts through them in their own.
    fn order(&self, config: &BatchConfig, pass: u64) -> DataFiles {
        match config.shuffle {
            Some(seed) if self.data.rows.is_none() => {
                self.files.reordered(&permutation(self.files.paths().len(), seed ^ FILES, pass))
            }
            _ => self.files.clone(),
        }
    }

    /// Sends blocks until nobody takes them.
    fn send_blocks(
        &self,
        config: &BatchConfig,
        (mut pass, mut row): (u64, usize),
        to: &SyncSender<Result<Block>>,
    ) -> Result<()> {
        let encoder = Encoder::new(&self.tokenizer, &self.data)?;
        let mut report = Report::default();
        loop {
            let files = self.order(config, pass);
            let rows = AllRows::new(&files, self.data.columns.wanted(), self.range()).skipping(row);
            let mut rows = Portions { rows, left: None };
            let mut useful = row > 0;
            while let Some((made, place, count)) = rows.block(&encoder, self.config.buffer)? {
                report.add(&made.report);
                self.check(&report, &place, rows.are_over()?)?;
                let block = Block::new(made.dataset, config, (pass, row..row + count), report);
                row += count;
                if let Some(block) = block {
                    useful = true;
                    if to.send(Ok(block)).is_err() {
                        return Ok(());
                    }
                }
            }
            if !useful {
                let path = self.files.paths().first().cloned().unwrap_or_default();
                return Err(Error::NoUsableRows { path, report: Box::new(report) });
            }
            (pass, row) = (pass + 1, 0);
        }
    }

    fn check(&self, report: &Report, place: &Place, ends: bool) -> Result<()> {
        let share = report.doubtful() as f64 / report.rows_read.max(1) as f64;
        if share <= self.config.doubtful || (report.rows_read < ROWS_FOR_A_SHARE && !ends) {
            return Ok(());
        }
        Err(Error::Doubtful { path: place.path.clone(), report: Box::new(*report), allowed: self.config.doubtful })
    }
}

/// Rows in portions of a number of one's own.
struct Portions<'a> {
    rows: AllRows<'a>,
    /// What was read beyond the portion before.
    left: Option<(Place, Vec<Fields>)>,
}

impl Portions<'_> {
    /// The next rows, where the last of them came from, and how many they are: fewer than asked for at the end, none after it.
    fn block(&mut self, encoder: &Encoder<'_>, wanted: usize) -> Result<Option<(Tokenised, Place, usize)>> {
        let mut made = Tokenised::empty();
        let (mut count, mut last) = (0, None);
        while count < wanted {
            let next = match self.left.take() {
                Some(left) => Some(left),
                None => self.rows.next_chunk()?,
            };
            let Some((place, mut chunk)) = next else { break };
            let taken = chunk.len().min(wanted - count).min(CHUNK_ROWS);
            let rest = chunk.split_off(taken);
            if !rest.is_empty() {
                self.left = Some((Place { row: place.row + taken as u64, ..place.clone() }, rest));
            }
            made.add(encoder, &place, chunk)?;
            (count, last) = (count + taken, Some(place));
        }
        Ok(last.map(|place| (made, place, count)))
    }

    /// Whether there is no portion left, for which the next rows are read.
    fn are_over(&mut self) -> Result<bool> {
        if self.left.is_none() {
            self.left = self.rows.next_chunk()?;
        }
        Ok(self.left.is_none())
    }
}

impl Block {
    /// None of rows that give no batch.
    fn new(dataset: Dataset, config: &BatchConfig, (pass, rows): (u64, Range<usize>), report: Report) -> Option<Self> {
        // Another order for each block of each pass.
        let order = Epoch::new(&dataset, config, pass << 40 | rows.start as u64);
        let batches = epoch::batches(order.rows(), config).ok()?;
        Some(Self { dataset, order, batches, pass, rows, report })
    }
}

/// Endless batches of a [`Stream`].
pub struct StreamBatches {
    shared: Arc<Shared>,
    blocks: Receiver<Result<Block>>,
    config: BatchConfig,
    block: Option<Block>,
    /// Batches of the block completed.
    batch: usize,
}

impl StreamBatches {
    /// The next batch.
    ///
    /// # Errors
    /// What reading shows: of a row, with its place.
    pub fn next_batch(&mut self) -> Result<Batch> {
        if self.batch == self.block().batches {
            self.take_block()?;
        }
        let (block, first) = (self.block(), self.batch * self.config.batch_size);
        let rows = first..(first + self.config.batch_size).min(block.order.rows());
        let batch = block.dataset.collate(&block.order.examples(rows));
        self.batch += 1;
        Ok(batch)
    }

    /// Where the next batch stands.
    pub fn position(&self) -> Position {
        let Block { pass, rows, batches, .. } = self.block();
        match self.batch < *batches {
            true => Position { epoch: *pass, row: rows.start, batch: self.batch },
            false => Position { epoch: *pass, row: rows.end, batch: 0 },
        }
    }

    /// Passes so far, with the part of the present one where the rows are counted.
    pub fn passes(&self) -> f64 {
        let Block { pass, rows, batches, .. } = self.block();
        let row = rows.start as f64 + rows.len() as f64 * self.batch as f64 / *batches as f64;
        *pass as f64 + self.shared.rows.map_or(0.0, |it| row / it.max(1) as f64)
    }

    fn block(&self) -> &Block {
        self.block.as_ref().expect("the first block is taken when the batches are made")
    }

    fn take_block(&mut self) -> Result<()> {
        let block = self.blocks.recv().expect("the thread that reads ends with an error, or after this end did")?;
        *self.shared.report.lock().unwrap_or_else(PoisonError::into_inner) = block.report;
        (self.block, self.batch) = (Some(block), 0);
        Ok(())
    }
}

/// Rows to train on: in memory, or read as they are needed.
#[derive(Debug, Clone, Copy)]
pub enum Examples<'a> {
    /// In memory.
    Held(&'a Dataset),
    /// Read as they are needed.
    Streamed(&'a Stream),
}

impl<'a> From<&'a Dataset> for Examples<'a> {
    fn from(from: &'a Dataset) -> Self {
        Self::Held(from)
    }
}

impl<'a> From<&'a Stream> for Examples<'a> {
    fn from(from: &'a Stream) -> Self {
        Self::Streamed(from)
    }
}

impl<'a> Examples<'a> {
    /// How many, for knowing them by: of a stream, the rows of a pass, or 0 where they are not counted.
    pub fn count(self) -> usize {
        match self {
            Self::Held(dataset) => dataset.len(),
            Self::Streamed(stream) => stream.rows().unwrap_or(0),
        }
    }

    /// Batches of a pass; of a stream, if every row becomes one example, and none where that cannot be known.
    ///
    /// # Errors
    /// Those of [`Dataset::epoch_size`].
    pub fn batches_per_pass(self, config: &BatchConfig) -> Result<Option<usize>> {
        Ok(match self {
            Self::Held(dataset) => Some(dataset.epoch_size(config)?.batches),
            Self::Streamed(stream) => stream.batches_per_pass(config),
        })
    }

    /// Batches from a place on.
    ///
    /// # Errors
    /// Those of [`Dataset::batches`] and [`Stream::batches`].
    pub fn batches(self, config: &BatchConfig, from: Position) -> Result<Feed<'a>> {
        Ok(match self {
            Self::Held(dataset) => Feed::Held(dataset.batches(config, from)?),
            Self::Streamed(stream) => Feed::Streamed {
                batches: Box::new(stream.batches(config, from)?),
                per_pass: stream.batches_per_pass(config),
            },
        })
    }
}

/// Batches without end, whatever they come from.
pub enum Feed<'a> {
    /// Of what is in memory.
    Held(crate::Batches<'a>),
    /// Of what is read.
    Streamed {
        /// The batches.
        batches: Box<StreamBatches>,
        /// How many a pass has, if that is known.
        per_pass: Option<usize>,
    },
}

impl Feed<'_> {
    /// The next batches, so many at most: the last group of a pass over what is in memory may have fewer.
    ///
    /// # Errors
    /// What reading shows.
    pub fn next_group(&mut self, size: usize) -> Result<Vec<Batch>> {
        // Whoever asks for more than there are asks for a pass.
        let mut group = Vec::new();
        while group.len() < size {
            match self {
                Self::Held(batches) if !group.is_empty() && batches.next_position().batch == 0 => break,
                Self::Held(batches) => group.extend(batches.next()),
                Self::Streamed { batches, .. } => group.push(batches.next_batch()?),
            }
        }
        Ok(group)
    }

    /// Where the next batch stands.
    pub fn position(&self) -> Position {
        match self {
            Self::Held(batches) => batches.next_position(),
            Self::Streamed { batches, .. } => batches.position(),
        }
    }

    /// Batches of a pass, if that is known.
    pub fn per_pass(&self) -> Option<usize> {
        match self {
            Self::Held(batches) => Some(batches.per_epoch()),
            Self::Streamed { per_pass, .. } => *per_pass,
        }
    }

    /// Passes so far, with the part of the present one if that is known.
    pub fn passes(&self) -> f64 {
        match self {
            Self::Held(batches) => {
                let at = batches.next_position();
                at.epoch as f64 + at.batch as f64 / batches.per_epoch() as f64
            }
            Self::Streamed { batches, .. } => batches.passes(),
        }
    }
}

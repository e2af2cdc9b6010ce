//! One pass over the data: which examples stand in which row, in an order that depends on nothing but the seed and the
//! number of the pass.

use std::cmp::Reverse;
use std::ops::Range;

use crate::batch::{BatchConfig, Packing};
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::mixture::{self, Share, Source};
use crate::packing::Rows;
use crate::shuffle::permutation;

/// What a pass comes to. Each pass of a configuration comes to the same: its order changes, its size does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochSize {
    /// Rows: as many as examples, or fewer if they are packed.
    pub rows: usize,
    /// Batches.
    pub batches: usize,
    /// Tokens in all rows; of a mixture, on average.
    pub tokens: usize,
    /// Lengths of the sequences of the largest batch that an order can give: that of the rows with most tokens.
    pub largest: Vec<usize>,
    /// What it takes of each source of a mixture.
    pub shares: Vec<Share>,
}

/// The rows of one pass, in the order in which they are taken.
#[derive(Debug, Clone)]
pub(crate) enum Epoch {
    /// A row an example, in the order of the file.
    File(Range<usize>),
    /// A row an example.
    Single(Vec<usize>),
    /// Several examples a row.
    Packed(Rows),
}

/// Sets the permutation of the packed rows apart from that of the examples.
const ROWS: u64 = 0x9ac4_ed20_705e_ed01;

impl Epoch {
    /// The pass number `epoch`; examples are no longer than the rows.
    pub(crate) fn new(dataset: &Dataset, config: &BatchConfig, epoch: u64) -> Self {
        match dataset.sources[..] {
            [] => Self::of(dataset, 0..dataset.len(), config, epoch),
            _ => Self::Packed(mixture::epoch(dataset, config, epoch)),
        }
    }

    /// A pass over some of the examples.
    pub(crate) fn of(dataset: &Dataset, some: Range<usize>, config: &BatchConfig, epoch: u64) -> Self {
        let shuffled = |seed| permutation(some.len(), seed, epoch).into_iter().map(|it| some.start + it).collect();
        let order: Option<Vec<usize>> = config.shuffle.map(shuffled);
        let Packing::On { max_length } = config.packing else {
            return order.map_or(Self::File(some), Self::Single);
        };
        let order = order.unwrap_or_else(|| some.collect());
        let rows = Rows::best_fit_decreasing(&order, |example| dataset.length(example), max_length);
        Self::Packed(match config.shuffle {
            Some(seed) => rows.reordered(&permutation(rows.len(), seed ^ ROWS, epoch)),
            None => rows.in_file_order(),
        })
    }

    pub(crate) fn rows(&self) -> usize {
        match self {
            Self::File(rows) => rows.len(),
            Self::Single(order) => order.len(),
            Self::Packed(rows) => rows.len(),
        }
    }

    /// The examples of some rows, one row after the other.
    pub(crate) fn examples(&self, rows: Range<usize>) -> Vec<usize> {
        match self {
            Self::File(all) => (all.start + rows.start..all.start + rows.end).collect(),
            Self::Single(order) => order[rows].to_vec(),
            Self::Packed(packed) => packed.examples(rows).to_vec(),
        }
    }
}

impl Dataset {
    /// What a pass over the data comes to.
    ///
    /// # Errors
    /// A batch size of 0; no batch in a pass; an example that is longer than the rows into which it should be packed; a source of a
    /// mixture of which no row would be taken.
    pub fn epoch_size(&self, config: &BatchConfig) -> Result<EpochSize> {
        self.check(config)?;
        // The rows' lengths are those of any order; see the packing.
        let in_order = BatchConfig { shuffle: None, ..*config };
        let shares = mixture::shares(self, &in_order);
        if let Some(number) = shares.iter().position(|it| it.taken == 0) {
            let rows = shares.iter().map(|it| it.rows).sum::<usize>();
            let reason = format!(
                "source {} of it gets no row in an epoch of {rows}; give it a larger weight, or leave it out",
                number + 1
            );
            return Err(Error::Setting { setting: "mixture", reason });
        }
        let mut size = EpochSize { rows: 0, batches: 0, tokens: 0, largest: Vec::new(), shares };
        let mut fullest: Vec<(usize, Vec<usize>)> = Vec::new();
        let whole = [Source { examples: 0..self.len(), weight: 1.0 }];
        let sources = if self.sources.is_empty() { &whole[..] } else { &self.sources };
        for (number, source) in sources.iter().enumerate() {
            let pass = Epoch::of(self, source.examples.clone(), &in_order, 0);
            let tokens = |row: usize| pass.examples(row..row + 1).iter().map(|&it| self.length(it)).sum::<usize>();
            let mut rows: Vec<(usize, usize)> = (0..pass.rows()).map(|row| (tokens(row), row)).collect();
            let all: usize = rows.iter().map(|it| it.0).sum();
            // As often as a pass may have it.
            let (taken, often) =
                size.shares.get(number).map_or((rows.len(), 1), |it| (it.taken, mixture::most_often(it)));
            size.rows += taken;
            size.tokens +=
                if taken == rows.len() { all } else { (all as f64 / rows.len() as f64 * taken as f64) as usize };
            rows.sort_unstable_by_key(|it| Reverse(*it));
            for (tokens, row) in rows.into_iter().take(config.batch_size) {
                let lengths: Vec<usize> = pass.examples(row..row + 1).iter().map(|&it| self.length(it)).collect();
                fullest.extend(std::iter::repeat_n((tokens, lengths), often.min(config.batch_size)));
            }
        }
        size.batches = batches(size.rows, config)?;
        fullest.sort_by_key(|it| Reverse(it.0));
        size.largest = fullest.into_iter().take(config.batch_size).flat_map(|it| it.1).collect();
        Ok(size)
    }

    /// Whether a configuration makes sense for this data.
    pub(crate) fn check(&self, config: &BatchConfig) -> Result<()> {
        if config.batch_size == 0 {
            return Err(Error::Setting {
                setting: "batch_size",
                reason: "0 rows make no batch; at least 1 is needed".into(),
            });
        }
        let Packing::On { max_length } = config.packing else { return Ok(()) };
        match (0..self.len()).find(|&example| self.length(example) > max_length) {
            None => Ok(()),
            Some(example) => Err(Error::Setting {
                setting: "packing",
                reason: format!(
                    "example {example} has {} tokens and does not fit a row of {max_length}; cut the examples to that \
                     length, or make the rows longer",
                    self.length(example)
                ),
            }),
        }
    }
}

/// Batches in a pass of so many rows, of which there must be one.
pub(crate) fn batches(rows: usize, config: &BatchConfig) -> Result<usize> {
    let size = config.batch_size;
    let batches = if config.drop_last { rows / size } else { rows.div_ceil(size) };
    if batches > 0 {
        return Ok(batches);
    }
    let what = if config.packing == Packing::Off { "examples" } else { "packed rows" };
    let reason = format!("{rows} {what} make no batch of {size}; use a smaller batch, or keep the last one");
    Err(Error::Setting { setting: "batch_size", reason })
}

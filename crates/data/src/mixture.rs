//! Mixtures: sources of which an epoch takes shares that somebody chose, whatever the number of rows that each has.
//!
//! An epoch has as many rows as all sources have together, and of each its share of them. A source goes on where the epoch before left
//! it, pass after pass over its own rows, each of which is shuffled anew: so a small source comes several times an epoch, and a large
//! one is not seen twice before all of it was seen once. In which order the sources take turns is drawn anew in each epoch. That is
//! what drawing a source for each row by its probability gives on average, without its luck: the number of rows of a source is exact.
//!
//! A row is what a batch is made of: an example, or with packing several of one source, so that shares are then those of packed rows.

use std::ops::Range;

use crate::batch::BatchConfig;
use crate::dataset::Dataset;
use crate::epoch::Epoch;
use crate::error::{Error, Result};
use crate::packing::Rows;
use crate::shuffle::permutation;

/// A source of a mixture.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Source {
    /// Its examples.
    pub(crate) examples: Range<usize>,
    /// Its part of the whole, relative to those of the others.
    pub(crate) weight: f64,
}

/// What an epoch takes of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Examples of the source.
    pub examples: usize,
    /// Its rows: examples, or packed rows of them.
    pub rows: usize,
    /// Rows that each epoch takes of it, which may be more than it has.
    pub taken: usize,
}

/// Sets the order in which sources take turns apart from the orders of their rows.
const TURNS: u64 = 0x51ed_270b_9d3e_7a4d;

/// The path or name of a source, and the number after its last colon, if what stands there is one: `a.parquet:0.7`.
///
/// # Errors
/// A number that is no weight.
pub fn parse_weight(text: &str) -> Result<(&str, Option<f64>)> {
    let Some((name, last)) = text.rsplit_once(':') else { return Ok((text, None)) };
    // A split may be called `nan` or `infinity`.
    let number = last.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)).then(|| last.parse::<f64>().ok());
    match number.flatten() {
        None => Ok((text, None)),
        Some(weight) if weight > 0.0 && weight.is_finite() && !name.is_empty() => Ok((name, Some(weight))),
        Some(_) => Err(Error::Setting {
            setting: "data",
            reason: format!(
                "{text:?}: a weight is a number above 0, as in {name}:0.7; leave a source out to take none of it"
            ),
        }),
    }
}

impl Dataset {
    /// Puts sources together, each with its weight; only what the weights are relative to each other counts.
    ///
    /// # Errors
    /// A weight that is not above 0, a source without rows.
    pub fn mixed(sources: Vec<(Dataset, f64)>) -> Result<Self> {
        let mut all = Self::empty();
        let mut parts = Vec::with_capacity(sources.len());
        for (number, (source, weight)) in sources.into_iter().enumerate() {
            let wrong = |reason| Err(Error::Setting { setting: "mixture", reason });
            if !(weight > 0.0 && weight.is_finite()) {
                return wrong(format!("source {} has the weight {weight}; a weight is above 0", number + 1));
            }
            if source.is_empty() {
                return wrong(format!("source {} has no rows; leave it out", number + 1));
            }
            let first = all.len();
            if first == 0 {
                all = source
            } else {
                all.append(&source)
            }
            parts.push(Source { examples: first..all.len(), weight });
        }
        all.sources = parts;
        Ok(all)
    }
}

/// What an epoch takes of each source.
pub(crate) fn shares(dataset: &Dataset, config: &BatchConfig) -> Vec<Share> {
    let passes = dataset.sources.iter().enumerate().map(|it| pass(dataset, config, it, 0).rows());
    let rows: Vec<usize> = passes.collect();
    let taken = quotas(&dataset.sources, rows.iter().sum());
    let share =
        |((source, rows), taken): ((&Source, usize), usize)| Share { examples: source.examples.len(), rows, taken };
    dataset.sources.iter().zip(rows).zip(taken).map(share).collect()
}

/// The rows of epoch number `epoch`.
pub(crate) fn epoch(dataset: &Dataset, config: &BatchConfig, epoch: u64) -> Rows {
    let shares = shares(dataset, config);
    let mut streams: Vec<Stream<'_>> = Vec::with_capacity(shares.len());
    for (source, share) in shares.iter().enumerate() {
        streams.push(Stream { dataset, config, source, rows: share.rows, at: epoch * share.taken as u64, pass: None });
    }
    let mut rows = Rows::default();
    for source in turns(&shares, config.shuffle, epoch) {
        rows.push(&streams[source].next_row());
    }
    rows
}

/// The rows of one source, pass after pass.
struct Stream<'a> {
    dataset: &'a Dataset,
    config: &'a BatchConfig,
    source: usize,
    /// Rows of a pass.
    rows: usize,
    /// Rows of all passes that came before.
    at: u64,
    pass: Option<(u64, Epoch)>,
}

impl Stream<'_> {
    fn next_row(&mut self) -> Vec<usize> {
        let (number, row) = (self.at / self.rows as u64, (self.at % self.rows as u64) as usize);
        if self.pass.as_ref().is_none_or(|it| it.0 != number) {
            let source = (self.source, &self.dataset.sources[self.source]);
            self.pass = Some((number, pass(self.dataset, self.config, source, number)));
        }
        self.at += 1;
        let Some((_, pass)) = &self.pass else { unreachable!("it was made just now") };
        pass.examples(row..row + 1)
    }
}

/// A pass over a source, in an order that is not that of another source with as many rows.
fn pass(dataset: &Dataset, config: &BatchConfig, (number, source): (usize, &Source), pass: u64) -> Epoch {
    let shuffle = config.shuffle.map(|seed| seed.wrapping_add((number as u64).wrapping_mul(TURNS)));
    Epoch::of(dataset, source.examples.clone(), &BatchConfig { shuffle, ..*config }, pass)
}

/// Whose turn it is at each row of an epoch: drawn, or without shuffling as evenly as whole rows allow.
fn turns(shares: &[Share], shuffle: Option<u64>, epoch: u64) -> Vec<usize> {
    let mut turns: Vec<usize> = Vec::new();
    for (source, share) in shares.iter().enumerate() {
        turns.extend(std::iter::repeat_n(source, share.taken));
    }
    if let Some(seed) = shuffle {
        return permutation(turns.len(), seed ^ TURNS, epoch).into_iter().map(|at| turns[at]).collect();
    }
    let mut due: Vec<(f64, usize)> = Vec::with_capacity(turns.len());
    for (source, share) in shares.iter().enumerate() {
        due.extend((0..share.taken).map(|row| ((row as f64 + 0.5) / share.taken as f64, source)));
    }
    due.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    due.into_iter().map(|it| it.1).collect()
}

/// `total` rows by weight: each source its share rounded down, and one more for those that lost most by that.
fn quotas(sources: &[Source], total: usize) -> Vec<usize> {
    let sum: f64 = sources.iter().map(|it| it.weight).sum();
    let exact: Vec<f64> = sources.iter().map(|it| it.weight / sum * total as f64).collect();
    let mut quotas: Vec<usize> = exact.iter().map(|it| *it as usize).collect();
    let mut by_loss: Vec<usize> = (0..exact.len()).collect();
    by_loss.sort_by(|&a, &b| exact[b].fract().total_cmp(&exact[a].fract()).then(a.cmp(&b)));
    let left = total.saturating_sub(quotas.iter().sum());
    by_loss.into_iter().cycle().take(left).for_each(|it| quotas[it] += 1);
    quotas
}

/// The most that one row of a source can come in an epoch that takes so many of so many rows: the epoch may begin and end within a pass.
pub(crate) fn most_often(share: &Share) -> usize {
    match share.taken {
        0 | 1 => share.taken,
        taken => (taken - 2) / share.rows + 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_the_number_after_the_last_colon() {
        for (text, expected) in [
            ("a.parquet:0.7", ("a.parquet", Some(0.7))),
            ("a/b:train:3", ("a/b:train", Some(3.0))),
            ("a/b@main:set/test", ("a/b@main:set/test", None)),
            ("a/b:nan", ("a/b:nan", None)),
            ("a/b:infinity", ("a/b:infinity", None)),
            ("a:1e-2", ("a", Some(0.01))),
            ("a:.5", ("a", Some(0.5))),
            ("a:2nd", ("a:2nd", None)),
            ("a", ("a", None)),
        ] {
            assert_eq!(parse_weight(text).unwrap(), expected, "{text}");
        }
        for text in ["a:0", "a:-1", "a:+0.0", ":0.5", "a:1e999"] {
            let message = parse_weight(text).unwrap_err().to_string();
            assert!(message.contains("above 0") && message.contains(text), "{message}");
        }
    }

    #[test]
    fn shares_add_up() {
        let of = |weights: &[f64], total| {
            let sources: Vec<Source> = weights.iter().map(|&weight| Source { examples: 0..1, weight }).collect();
            quotas(&sources, total)
        };
        assert_eq!(of(&[0.7, 0.3], 10), [7, 3]);
        assert_eq!(of(&[1.0, 1.0, 1.0], 10), [4, 3, 3]);
        assert_eq!(of(&[2.0, 1.0], 1), [1, 0]);
        assert_eq!(of(&[1e-9, 1e9], 100), [0, 100]);
    }

    #[test]
    fn turns_are_even_where_nothing_is_shuffled() {
        let shares = [6, 3].map(|taken| Share { examples: 9, rows: 9, taken });
        assert_eq!(turns(&shares, None, 0), [0, 1, 0, 0, 1, 0, 0, 1, 0]);
        assert_eq!(turns(&[3, 1].map(|taken| Share { examples: 9, rows: 9, taken }), None, 0), [0, 0, 1, 0]);
        let many = [60, 30].map(|taken| Share { examples: 90, rows: 90, taken });
        let seeds: std::collections::HashSet<Vec<usize>> = (0..4).map(|seed| turns(&many, Some(seed), 0)).collect();
        assert_eq!(seeds.len(), 4);
        let drawn = turns(&shares, Some(1), 0);
        assert_eq!(drawn.iter().filter(|it| **it == 0).count(), 6);
        assert_ne!(drawn, turns(&shares, Some(1), 1));
    }

    #[test]
    fn a_row_comes_as_often_as_the_borders_of_passes_allow() {
        let most = |taken, rows| most_often(&Share { examples: rows, rows, taken });
        assert_eq!(
            [most(0, 5), most(1, 5), most(2, 5), most(5, 5), most(6, 5), most(7, 5), most(6, 1)],
            [0, 1, 2, 2, 2, 3, 6]
        );
    }
}

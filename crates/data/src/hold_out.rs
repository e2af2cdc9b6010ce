//! Rows that are kept from training, to measure on, chosen by what they say.
//!
//! The hash of a row decides, and nothing beside it: not where the row stands, nor what other rows there are. So a row stays on its
//! side when rows are added or files are taken in another order, and rows that say the same are on the same side, where they cannot
//! be learned here and asked for there.

use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::tokenised::Tokenised;

/// How many rows are held out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum HoldOut {
    /// About this share of them; new rows change the side of no other.
    Share(f64),
    /// As many examples, and those that say the same as one of them.
    Rows(usize),
}

impl HoldOut {
    /// A share if the number is below 1, else a number of rows.
    ///
    /// # Errors
    /// Anything else.
    pub fn parse(number: f64) -> Result<Self> {
        match number {
            it if it > 0.0 && it < 1.0 => Ok(Self::Share(it)),
            it if it >= 1.0 && it.fract() == 0.0 && it < 1e15 => Ok(Self::Rows(it as usize)),
            it => Err(wrong(format!(
                "{it} is neither a share of the rows, between 0 and 1, nor a whole number of them; write 0.05 or 500, for example"
            ))),
        }
    }

    /// Takes examples out of what was made of all sources.
    ///
    /// # Errors
    /// If none would be held out, or a source would have none left.
    pub fn take(self, sources: &mut [Tokenised]) -> Result<Dataset> {
        let mut keys: Vec<u64> = sources.iter().flat_map(|it| it.keys.iter().copied()).collect();
        keys.sort_unstable();
        let below = match self {
            Self::Share(share) => (share * 2f64.powi(64)) as u64,
            // With those that are equal to the last of them.
            Self::Rows(rows) => match rows.checked_sub(1).and_then(|it| keys.get(it)) {
                Some(last) if rows < keys.len() => last.saturating_add(1),
                _ => return Err(wrong(format!("{rows} rows are to be held out of {}; take fewer", keys.len()))),
            },
        };
        let mut held_out = Dataset::empty();
        for (number, source) in sources.iter_mut().enumerate() {
            let taken = source.dataset.take_out(|it| source.keys[it] < below);
            source.keys.retain(|it| *it >= below);
            if source.dataset.is_empty() {
                return Err(wrong(format!(
                    "of source {} no row would be left to train on; hold fewer out",
                    number + 1
                )));
            }
            source.report.hold_out(&taken);
            held_out.append(&taken);
        }
        if held_out.is_empty() {
            return Err(wrong(format!(
                "of {} examples none would be held out; hold more out, or give a number of rows",
                keys.len()
            )));
        }
        Ok(held_out)
    }
}

fn wrong(reason: String) -> Error {
    Error::Setting { setting: "eval_split", reason }
}

//! The best state of a run by its held-out loss, and when to give up waiting for a better one.

use serde::{Deserialize, Serialize};

/// When a run ends early, as transformers' `EarlyStoppingCallback` has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EarlyStopping {
    /// Evaluations in a row that are no better than the best before them, after which the run ends: `early_stopping_patience`.
    pub patience: usize,
    /// By how much a loss has to be lower to count as better here: `early_stopping_threshold`.
    pub threshold: f64,
}

/// What the evaluations of a run have come to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// The step after which the held-out loss was lowest.
    pub step: usize,
    /// That loss.
    pub loss: f64,
    /// Evaluations in a row that were no better, by the threshold of early stopping.
    pub since: usize,
}

impl Best {
    /// What it is when step `step` has this loss; of equal ones the first stays the best.
    pub(crate) fn with(best: Option<Best>, step: usize, loss: f64, threshold: f64) -> Best {
        let Some(best) = best else { return Best { step, loss, since: 0 } };
        let better = loss < best.loss;
        let since = if better && best.loss - loss > threshold { 0 } else { best.since + 1 };
        if better { Best { step, loss, since } } else { Best { since, ..best } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Losses one after the other, and after each: the best step, and how long ago something better came.
    fn told(threshold: f64, losses: &[f64]) -> Vec<(usize, usize)> {
        let mut best = None;
        let mut take = |(at, loss): (usize, &f64)| {
            let now = Best::with(best, at + 1, *loss, threshold);
            best = Some(now);
            (now.step, now.since)
        };
        losses.iter().enumerate().map(&mut take).collect()
    }

    #[test]
    fn the_lowest_is_the_best_and_of_equal_ones_the_first() {
        assert_eq!(told(0.0, &[3.0, 2.0, 2.0, 2.5, 1.0]), [(1, 0), (2, 0), (2, 1), (2, 2), (5, 0)]);
    }

    /// As transformers compares: with the best of all, which a small gain moves without ending the wait.
    #[test]
    fn a_gain_within_the_threshold_is_kept_and_still_counts_as_waiting() {
        assert_eq!(told(0.5, &[3.0, 2.75, 2.5, 1.75]), [(1, 0), (2, 1), (3, 2), (4, 0)]);
    }
}

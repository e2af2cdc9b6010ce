//! What a run tells: a console, a log, a report and a server listen alike, and the run itself prints nothing.

use crate::{Best, BoxError, Error, EvalLoss};
use std::{path::Path, time::Duration};

/// Something that happened in a run, in this order: `Started`; for each step `Begins` and `Step`, then, where they are due,
/// `Evaluating` batch by batch and `Evaluated`, then `Saved`; at last `Interrupted`, or, perhaps after `GaveUp` and `Restored`,
/// `Ended`. A run that fails ends without either.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Steps `first + 1` to `total` will follow.
    Started {
        /// Steps taken before; 0 unless the run goes on from a checkpoint.
        first: usize,
        /// Steps of the whole run.
        total: usize,
    },
    /// A step is about to be taken.
    Begins {
        /// Which, counted from 1.
        step: usize,
    },
    /// A step is done.
    Step(&'a StepReport),
    /// Some held-out examples were measured.
    Evaluating {
        /// Examples measured so far.
        done: usize,
        /// Examples in all.
        of: usize,
    },
    /// The held-out loss after a step.
    Evaluated {
        /// The step.
        step: usize,
        /// What was found.
        loss: EvalLoss,
    },
    /// A checkpoint is whole.
    Saved {
        /// The step after which it stands.
        step: usize,
        /// Its folder.
        path: &'a Path,
    },
    /// A checkpoint that is one too many could not be removed. The new one is whole, and the run goes on.
    NotRemoved {
        /// Why.
        error: &'a Error,
    },
    /// The run was asked to stop, and did so after a step.
    Interrupted {
        /// The step.
        step: usize,
    },
    /// Early stopping ended the run, for nothing better came.
    GaveUp {
        /// The last step taken.
        step: usize,
        /// Steps that there would have been.
        total: usize,
        /// The best of those that were measured, and how many evaluations ago.
        best: Best,
    },
    /// The parameters are those of the best state again.
    Restored {
        /// Which.
        best: Best,
    },
    /// All steps were taken that there were to take.
    Ended {
        /// How many.
        steps: usize,
        /// The one with the lowest held-out loss, if it was measured.
        best: Option<Best>,
    },
}

/// A step that is done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Which, counted from 1.
    pub step: usize,
    /// Passes over the data so far, with the part of the present one.
    pub epoch: f64,
    /// The objective over all micro-batches.
    pub loss: f32,
    /// The learning rate that it was taken with.
    pub learning_rate: f64,
    /// Global norm of the gradient before clipping; not finite if the step was skipped for its loss scale.
    pub grad_norm: f32,
    /// Tokens of all micro-batches.
    pub tokens: usize,
    /// Time from its first micro-batch to its last parameter.
    pub took: Duration,
    /// Whether the held-out loss is measured next.
    pub evaluates: bool,
}

/// Somebody who wants to know what happens in a run.
pub trait Observer {
    /// Takes in an event.
    ///
    /// # Errors
    /// Whatever keeps it from doing so; the run then fails with it.
    fn event(&mut self, event: &Event<'_>) -> Result<(), BoxError>;
}

impl<F: FnMut(&Event<'_>) -> Result<(), BoxError>> Observer for F {
    fn event(&mut self, event: &Event<'_>) -> Result<(), BoxError> {
        self(event)
    }
}

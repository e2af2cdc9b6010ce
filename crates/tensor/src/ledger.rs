//! The books of a dry run: tensors that have a shape and a size but no memory, and the work that ops would do on them.
//!
//! A dry run goes through the real code, so what it counts is what the run will do. Only the loops are left out.

use crate::{DType, Effort, pages::footprint};
use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Counts the bytes of dry tensors, and the work done on them.
///
/// A ledger stands for host memory; a GPU has its own way of not being there, `Gpu::dry`.
#[derive(Default)]
pub struct Ledger(Mutex<Books>);

#[derive(Default)]
struct Books {
    live: usize,
    peak: usize,
    effort: Effort,
}

impl Ledger {
    /// Empty books.
    pub fn new() -> Arc<Ledger> {
        Arc::default()
    }

    /// Bytes of the tensors that exist now.
    pub fn live(&self) -> usize {
        self.books().live
    }

    /// The most that [`Ledger::live`] has been since the start or the last [`Ledger::reset_peak`].
    pub fn peak(&self) -> usize {
        self.books().peak
    }

    /// Starts a new measurement of the peak.
    pub fn reset_peak(&self) {
        let mut it = self.books();
        it.peak = it.live;
    }

    /// Counts memory that an op holds for a moment beside its tensors.
    pub fn pass(&self, bytes: usize) {
        let mut it = self.books();
        it.peak = it.peak.max(it.live + bytes);
    }

    /// Counts one run of an op.
    pub fn count(&self, operations: u64, bytes: u64) {
        let effort = &mut self.books().effort;
        effort.launches += 1;
        effort.operations += operations;
        effort.bytes += bytes;
    }

    /// What was counted so far; a launch is a run of an op.
    pub fn effort(&self) -> Effort {
        self.books().effort
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ledger({} bytes live, {} at most)", self.live(), self.peak())
    }
}

/// The storage of a dry tensor: counted, not held.
#[derive(Debug)]
pub(crate) struct DryBuffer {
    ledger: Arc<Ledger>,
    bytes: usize,
    dtype: DType,
}

impl DryBuffer {
    pub(crate) fn new(ledger: &Arc<Ledger>, len: usize, dtype: DType) -> DryBuffer {
        let bytes = footprint(len * dtype.size());
        let mut books = ledger.books();
        books.live += bytes;
        books.peak = books.peak.max(books.live);
        drop(books);
        DryBuffer { ledger: ledger.clone(), bytes, dtype }
    }

    pub(crate) fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }
}

impl Drop for DryBuffer {
    fn drop(&mut self) {
        self.ledger.books().live -= self.bytes;
    }
}

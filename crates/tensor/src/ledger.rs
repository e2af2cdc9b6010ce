//! The books of a dry run: tensors that have a shape and a size but no memory, and the work that ops would do on them.
//!
//! A dry run goes through the real code, so what it counts is what the run will do. Only the loops are left out.

use crate::DType;
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// What an op costs: the terms of a roofline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Times it ran.
    pub calls: u64,
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes read and written.
    pub bytes: u64,
}

/// Counts the bytes of dry tensors, and the work done on them.
#[derive(Default)]
pub struct Ledger {
    books: Mutex<Books>,
    of_gpu: bool,
}

#[derive(Default)]
struct Books {
    live: usize,
    peak: usize,
    work: BTreeMap<&'static str, Work>,
}

impl Ledger {
    /// Empty books of a run in host memory.
    pub fn new() -> Arc<Ledger> {
        Arc::default()
    }

    /// Empty books of a run on a GPU: ops go through that half of theirs.
    pub fn of_gpu() -> Arc<Ledger> {
        Arc::new(Ledger { of_gpu: true, ..Ledger::default() })
    }

    /// Whether the run would be on a GPU.
    pub fn is_of_gpu(&self) -> bool {
        self.of_gpu
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
    pub fn count(&self, op: &'static str, flops: u64, bytes: u64) {
        let mut it = self.books();
        let work = it.work.entry(op).or_default();
        work.calls += 1;
        work.flops += flops;
        work.bytes += bytes;
    }

    /// What was counted, op by op.
    pub fn work(&self) -> BTreeMap<&'static str, Work> {
        self.books().work.clone()
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
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
        let bytes = len * dtype.size();
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

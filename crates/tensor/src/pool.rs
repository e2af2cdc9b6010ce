//! Recycled buffers. A training step allocates the same sizes again and again; fresh pages from the system cost a page
//! fault each, recycled ones cost nothing.
//!
//! The pool never raises the footprint: what it caches together with what is live stays below the highest live
//! footprint seen. Buffers that would go beyond are freed.

use crate::{DType, Element, storage::Buffer};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Bytes held by tensors and by the pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Bytes of all tensors that exist now.
    pub live: usize,
    /// The highest value of `live` since the start or the last [`reset_peak`].
    pub peak: usize,
    /// Bytes kept for reuse.
    pub cached: usize,
}

#[derive(Default)]
struct Pool {
    stats: PoolStats,
    free: BTreeMap<(u8, usize), Vec<Buffer>>,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { stats: PoolStats { live: 0, peak: 0, cached: 0 }, free: BTreeMap::new() });

/// Smaller buffers are left to the allocator.
const MIN_POOLED_BYTES: usize = 4096;

/// Bytes held now, at the peak, and cached.
pub fn stats() -> PoolStats {
    pool().stats
}

/// Starts a new measurement of the peak.
pub fn reset_peak() {
    let mut it = pool();
    it.stats.peak = it.stats.live;
}

/// Frees everything that is kept for reuse.
pub fn trim() {
    let mut it = pool();
    it.stats.cached = 0;
    let freed = std::mem::take(&mut it.free);
    drop(it);
    drop(freed);
}

/// A buffer of `len` elements with unspecified contents (poisoned in debug builds).
pub(crate) fn take<T: Element>(len: usize) -> Vec<T> {
    let bytes = len * T::DTYPE.size();
    let recycled = if bytes < MIN_POOLED_BYTES { None } else { pool().reuse(T::DTYPE, bytes) };
    adopt(bytes);
    let mut data = recycled.and_then(T::into_vec).unwrap_or_default();
    if data.len() >= len {
        data.truncate(len);
    } else if data.is_empty() {
        data = vec![T::default(); len];
    } else {
        data.resize(len, T::default());
    }
    if cfg!(debug_assertions) {
        data.fill(T::POISON);
    }
    data
}

/// Memory beside the tensors, such as packed operands of products: part of the footprint while this lives.
#[derive(Debug)]
pub struct Held(usize);

/// Counts so many bytes beside the tensors.
pub fn hold(bytes: usize) -> Held {
    adopt(bytes);
    Held(bytes)
}

impl Drop for Held {
    fn drop(&mut self) {
        pool().stats.live -= self.0;
    }
}

/// Counts bytes that a new tensor took over.
pub(crate) fn adopt(bytes: usize) {
    let mut it = pool();
    it.stats.live += bytes;
    it.stats.peak = it.stats.peak.max(it.stats.live);
}

/// Takes back a dropped tensor's buffer: kept for reuse, or freed.
pub(crate) fn give_back(buffer: Buffer) {
    let (bytes, capacity) = match &buffer {
        Buffer::F32(it) => (it.len() * 4, it.capacity() * 4),
        Buffer::Bf16(it) => (it.len() * 2, it.capacity() * 2),
        Buffer::F16(it) => (it.len() * 2, it.capacity() * 2),
        Buffer::U8(it) => (it.len(), it.capacity()),
        Buffer::U32(it) => (it.len() * 4, it.capacity() * 4),
    };
    let mut it = pool();
    it.stats.live -= bytes;
    if capacity >= MIN_POOLED_BYTES && it.stats.live + it.stats.cached + capacity <= it.stats.peak {
        it.stats.cached += capacity;
        it.free.entry((key(buffer.dtype()), capacity)).or_default().push(buffer);
    }
}

impl Pool {
    /// The smallest fitting buffer, unless it is more than twice as large as needed.
    fn reuse(&mut self, dtype: DType, bytes: usize) -> Option<Buffer> {
        let (&at, list) = self.free.range_mut((key(dtype), bytes)..=(key(dtype), bytes * 2)).next()?;
        let buffer = list.pop();
        if list.is_empty() {
            self.free.remove(&at);
        }
        self.stats.cached -= at.1;
        buffer
    }
}

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

fn key(dtype: DType) -> u8 {
    dtype as u8
}

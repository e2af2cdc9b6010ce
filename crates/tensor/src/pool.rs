//! Recycled buffers. A training step allocates the same sizes again and again; fresh pages from the system cost a page
//! fault each, recycled ones cost nothing.
//!
//! The pool never raises the footprint: what it caches together with what is live stays below the highest live
//! footprint seen. A buffer that would go beyond is freed, and so are the oldest ones when tensors of other sizes take their place.

use crate::{
    DType, Element,
    pages::{deserves_pages, footprint},
    storage::Buffer,
};
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
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
    /// The most that `live` and `cached` have been together, since the start or the last [`reset_peak`].
    pub footprint: usize,
}

struct Pool {
    stats: PoolStats,
    free: BTreeMap<(Kind, usize), Vec<Idle>>,
    given_back: u64,
}

/// A buffer that waits for its next user.
struct Idle {
    buffer: Buffer,
    /// Its number among all that were given back.
    since: u64,
}

/// Which buffers can stand for each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Vectors of a dtype.
    Of(u8),
    /// Pages, which hold any.
    Pages,
}

static POOL: Mutex<Pool> = Mutex::new(Pool::EMPTY);

/// Smaller buffers are left to the allocator.
const MIN_POOLED_BYTES: usize = 4096;

/// A buffer may be larger than needed by this part of what is needed: the rest of it is held and unused.
const SLACK: usize = 8;

/// Bytes held now, at the peak, and cached.
pub fn stats() -> PoolStats {
    POOL.with(|it| it.stats)
}

/// Starts a new measurement of the peak, with nothing cached.
pub fn reset_peak() {
    POOL.reset_peak();
}

/// Frees everything that is kept for reuse.
pub fn trim() {
    POOL.trim();
}

/// A buffer of `len` elements with unspecified contents (poisoned in debug builds).
pub(crate) fn take<T: Element>(len: usize) -> Buffer {
    POOL.take::<T>(len)
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
        POOL.release(self.0);
    }
}

/// Counts bytes that a new tensor took over.
pub(crate) fn adopt(bytes: usize) {
    POOL.adopt(bytes);
}

/// Takes back a dropped tensor's buffer: kept for reuse, or freed.
pub(crate) fn give_back(buffer: Buffer) {
    POOL.give_back(buffer);
}

/// A pool that threads share: behind the standard lock, or in tests behind one that is given to threads in every order.
///
/// No memory is asked for and none given back to the system while the lock is held.
trait Shared {
    /// What one thread does while no other sees the pool.
    fn with<R>(&self, f: impl FnOnce(&mut Pool) -> R) -> R;

    fn take<T: Element>(&self, len: usize) -> Buffer {
        let bytes = footprint(len * T::DTYPE.size());
        let (recycled, freed) = self.with(|it| {
            let recycled = if bytes < MIN_POOLED_BYTES { None } else { it.reuse(Kind::of(T::DTYPE, bytes), bytes) };
            let freed = it.adopt(recycled.as_ref().map_or(bytes, Buffer::held));
            (recycled, freed)
        });
        // Before pages are asked for in their place.
        drop(freed);
        let mut buffer = recycled.map_or_else(|| Buffer::new::<T>(len), |it| T::resized(it, len));
        if cfg!(debug_assertions)
            && let Some(data) = T::slice_mut(&mut buffer)
        {
            data.fill(T::POISON);
        }
        buffer
    }

    fn adopt(&self, bytes: usize) {
        let freed = self.with(|it| it.adopt(bytes));
        drop(freed);
    }

    fn release(&self, bytes: usize) {
        self.with(|it| it.stats.live -= bytes);
    }

    fn give_back(&self, buffer: Buffer) {
        let unwanted = self.with(|it| it.give_back(buffer));
        drop(unwanted);
    }

    fn trim(&self) {
        let freed = self.with(Pool::trim);
        drop(freed);
    }

    fn reset_peak(&self) {
        // At one time: what somebody gave back in between would be kept above the new peak.
        let freed = self.with(|it| {
            let freed = it.trim();
            (it.stats.peak, it.stats.footprint) = (it.stats.live, it.stats.live);
            freed
        });
        drop(freed);
    }
}

impl Shared for Mutex<Pool> {
    fn with<R>(&self, f: impl FnOnce(&mut Pool) -> R) -> R {
        f(&mut self.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Kind {
    /// Of a buffer that takes so many bytes.
    fn of(dtype: DType, bytes: usize) -> Kind {
        if deserves_pages(bytes) { Kind::Pages } else { Kind::Of(dtype as u8) }
    }
}

impl Pool {
    const EMPTY: Pool =
        Pool { stats: PoolStats { live: 0, peak: 0, cached: 0, footprint: 0 }, free: BTreeMap::new(), given_back: 0 };

    /// The smallest buffer that fits without much to spare, of those the last that was used.
    fn reuse(&mut self, kind: Kind, bytes: usize) -> Option<Buffer> {
        let (&at, _) = self.free.range((kind, bytes)..=(kind, bytes + bytes / SLACK)).next()?;
        self.remove(at, |it| it.pop())
    }

    /// Counts bytes in use, and gives what is no longer to be cached.
    fn adopt(&mut self, bytes: usize) -> Vec<Buffer> {
        self.stats.live += bytes;
        self.stats.peak = self.stats.peak.max(self.stats.live);
        let mut freed = Vec::new();
        while self.stats.live + self.stats.cached > self.stats.peak {
            let oldest = self.free.iter().min_by_key(|it| it.1.first().map(|it| it.since)).map(|it| *it.0);
            let Some(buffer) = oldest.and_then(|at| self.remove(at, |it| Some(it.remove(0)))) else { break };
            freed.push(buffer);
        }
        self.stats.footprint = self.stats.footprint.max(self.stats.live + self.stats.cached);
        freed
    }

    /// Keeps a buffer for its next user, or gives it back to be freed.
    fn give_back(&mut self, buffer: Buffer) -> Option<Buffer> {
        let held = buffer.held();
        self.stats.live -= held;
        let kind = if let Buffer::Pages(_) = buffer { Kind::Pages } else { Kind::Of(buffer.dtype() as u8) };
        // A large vector, which came from outside, is nothing that anybody will ask for.
        let wanted = held >= MIN_POOLED_BYTES && kind == Kind::of(buffer.dtype(), held);
        if !wanted || self.stats.live + self.stats.cached + held > self.stats.peak {
            return Some(buffer);
        }
        self.stats.cached += held;
        self.given_back += 1;
        let since = self.given_back;
        self.free.entry((kind, held)).or_default().push(Idle { buffer, since });
        None
    }

    /// Forgets all buffers, which the caller frees.
    fn trim(&mut self) -> BTreeMap<(Kind, usize), Vec<Idle>> {
        self.stats.cached = 0;
        std::mem::take(&mut self.free)
    }

    fn remove(&mut self, at: (Kind, usize), choose: impl FnOnce(&mut Vec<Idle>) -> Option<Idle>) -> Option<Buffer> {
        let list = self.free.get_mut(&at)?;
        let found = choose(list)?;
        if list.is_empty() {
            self.free.remove(&at);
        }
        self.stats.cached -= at.1;
        Some(found.buffer)
    }
}

#[cfg(test)]
mod interleavings;

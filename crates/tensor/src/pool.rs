//! Recycled memory. A training step allocates nearly the same sizes again and again; fresh pages from the system cost a page
//! fault each, recycled ones cost nothing.
//!
//! Large buffers are ranges of an arena, which joins what was freed and cuts it for other sizes; smaller ones are vectors that wait for
//! their like. The pool hardly raises the footprint: what it caches together with what is live stays below the highest live
//! footprint seen and a 64th of it. What would go beyond is given back to the system, the longest unused first.

use crate::{
    DType, Element,
    arena::Arena,
    mmap::Range,
    pages::{Pages, deserves_pages, footprint},
    storage::Buffer,
};
use std::{
    alloc::{Layout, handle_alloc_error},
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
    /// By dtype and bytes.
    vectors: BTreeMap<(u8, usize), Vec<Idle>>,
    arena: Arena,
    given_back: u64,
}

/// A vector that waits for its next user.
struct Idle {
    buffer: Buffer,
    /// Its number among all that were given back.
    since: u64,
}

/// What goes back to the system, once the lock is open.
#[derive(Default)]
struct Unwanted {
    vectors: Vec<Buffer>,
    ranges: Vec<Range>,
}

static POOL: Mutex<Pool> = Mutex::new(Pool::EMPTY);

/// Smaller buffers are left to the allocator.
const MIN_POOLED_BYTES: usize = 4096;

/// A vector may be larger than needed by this part of what is needed: the rest of it is held and unused.
const SLACK: usize = 8;

/// What is cached beside what is live may reach beyond the peak by this part of it. Without it all that is cached would go back whenever
/// the peak is reached, and what no buffer fits comes again as page faults.
const SPARE: usize = 64;

impl PoolStats {
    /// What may be held at most, as long as no more is live at once.
    pub fn limit(&self) -> usize {
        self.peak + self.peak / SPARE
    }
}

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
        let bytes = len * T::DTYPE.size();
        let mut buffer = if deserves_pages(bytes) {
            Buffer::Pages(Pages::new(self.take_range(footprint(bytes)), T::DTYPE, bytes))
        } else {
            self.take_vector::<T>(len)
        };
        if cfg!(debug_assertions)
            && let Some(data) = T::slice_mut(&mut buffer)
        {
            data.fill(T::POISON);
        }
        buffer
    }

    fn take_vector<T: Element>(&self, len: usize) -> Buffer {
        let bytes = len * T::DTYPE.size();
        let (recycled, unwanted) = self.with(|it| {
            let recycled = if bytes < MIN_POOLED_BYTES { None } else { it.reuse(T::DTYPE, bytes) };
            let unwanted = it.adopt(recycled.as_ref().map_or(bytes, Buffer::held));
            (recycled, unwanted)
        });
        // Before memory is asked for in its place.
        self.free(unwanted);
        recycled.map_or_else(|| T::buffer(vec![T::default(); len]), |it| T::resized(it, len))
    }

    fn take_range(&self, bytes: usize) -> Range {
        loop {
            let found = self.with(|it| {
                let range = it.take_range(bytes)?;
                Some((range, it.adopt(bytes)))
            });
            if let Some((range, unwanted)) = found {
                self.free(unwanted);
                return range;
            }
            let generous = self.with(|it| it.arena.growth(bytes));
            let segment = Range::map(generous).or_else(|| Range::map(bytes)).unwrap_or_else(|| {
                // What a vector does that gets no memory: the program's allocator may have something to say.
                drop(Vec::<u8>::with_capacity(bytes));
                handle_alloc_error(Layout::array::<u8>(bytes).expect("a size that was asked for is a size"))
            });
            self.with(|it| it.arena.add(segment));
        }
    }

    fn adopt(&self, bytes: usize) {
        let unwanted = self.with(|it| it.adopt(bytes));
        self.free(unwanted);
    }

    fn release(&self, bytes: usize) {
        self.with(|it| it.stats.live -= bytes);
    }

    fn give_back(&self, buffer: Buffer) {
        let unwanted = self.with(|it| it.give_back(buffer));
        self.free(unwanted);
    }

    fn trim(&self) {
        let unwanted = self.with(Pool::trim);
        self.free(unwanted);
    }

    fn reset_peak(&self) {
        // At one time: what somebody gave back in between would be kept above the new peak.
        let unwanted = self.with(|it| {
            let unwanted = it.trim();
            (it.stats.peak, it.stats.footprint) = (it.stats.live, it.stats.live);
            unwanted
        });
        self.free(unwanted);
    }

    fn free(&self, unwanted: Unwanted) {
        drop(unwanted.vectors);
        for mut range in unwanted.ranges {
            range.discard();
            let unused = self.with(|it| it.arena.give_back_discarded(range));
            drop(unused);
        }
    }
}

impl Shared for Mutex<Pool> {
    fn with<R>(&self, f: impl FnOnce(&mut Pool) -> R) -> R {
        f(&mut self.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Pool {
    const EMPTY: Pool = Pool {
        stats: PoolStats { live: 0, peak: 0, cached: 0, footprint: 0 },
        vectors: BTreeMap::new(),
        arena: Arena::EMPTY,
        given_back: 0,
    };

    /// The smallest vector that fits without much to spare, of those the last that was used.
    fn reuse(&mut self, dtype: DType, bytes: usize) -> Option<Buffer> {
        let like = dtype as u8;
        let (&at, _) = self.vectors.range((like, bytes)..=(like, bytes + bytes / SLACK)).next()?;
        self.remove(at, |it| it.pop())
    }

    /// Free pages, if there are so many beside each other.
    fn take_range(&mut self, bytes: usize) -> Option<Range> {
        let before = self.arena.cached();
        let range = self.arena.take(bytes);
        self.stats.cached -= before - self.arena.cached();
        range
    }

    /// Counts bytes in use, and gives what is no longer to be cached.
    fn adopt(&mut self, bytes: usize) -> Unwanted {
        self.stats.live += bytes;
        self.stats.peak = self.stats.peak.max(self.stats.live);
        let unwanted = self.evict();
        self.stats.footprint = self.stats.footprint.max(self.stats.live + self.stats.cached);
        unwanted
    }

    /// What lies above the limit, the longest unused first.
    fn evict(&mut self) -> Unwanted {
        let mut unwanted = Unwanted::default();
        while let Some(excess) =
            (self.stats.live + self.stats.cached).checked_sub(self.stats.limit()).filter(|it| *it > 0)
        {
            let oldest = self.vectors.iter().filter_map(|it| Some((it.1.first()?.since, *it.0))).min();
            match (oldest, self.arena.oldest()) {
                (Some((since, at)), range) if range.is_none_or(|it| since < it) => {
                    unwanted.vectors.extend(self.remove(at, |it| Some(it.remove(0))));
                }
                (_, Some(_)) => {
                    let range = self.arena.evict(excess);
                    self.stats.cached -= range.as_ref().map_or(0, Range::len);
                    unwanted.ranges.extend(range);
                }
                _ => break,
            }
        }
        unwanted
    }

    /// Keeps a buffer for its next user, or gives it back to be freed.
    fn give_back(&mut self, buffer: Buffer) -> Unwanted {
        let held = buffer.held();
        self.stats.live -= held;
        self.given_back += 1;
        let since = self.given_back;
        match buffer {
            Buffer::Pages(pages) => self.arena.give_back(pages.into_range(), since),
            // A large vector, which came from outside, is nothing that anybody will ask for.
            _ if held < MIN_POOLED_BYTES || deserves_pages(held) => {
                return Unwanted { vectors: vec![buffer], ranges: Vec::new() };
            }
            _ => self.vectors.entry((buffer.dtype() as u8, held)).or_default().push(Idle { buffer, since }),
        }
        self.stats.cached += held;
        self.evict()
    }

    /// Forgets all that is cached, which the caller frees.
    fn trim(&mut self) -> Unwanted {
        self.stats.cached = 0;
        let vectors = std::mem::take(&mut self.vectors).into_values().flatten().map(|it| it.buffer).collect();
        Unwanted { vectors, ranges: self.arena.evict_all() }
    }

    fn remove(&mut self, at: (u8, usize), choose: impl FnOnce(&mut Vec<Idle>) -> Option<Idle>) -> Option<Buffer> {
        let list = self.vectors.get_mut(&at)?;
        let found = choose(list)?;
        if list.is_empty() {
            self.vectors.remove(&at);
        }
        self.stats.cached -= at.1;
        Some(found.buffer)
    }
}

#[cfg(test)]
mod interleavings;

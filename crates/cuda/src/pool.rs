//! Which memory of a device a buffer gets: a policy without a device, so that a plan can follow it step by step.
//!
//! The driver gives segments. A buffer gets the smallest free piece that holds it; the rest of the piece stays free where it is large
//! enough to be of use, and what comes back is joined with its free neighbours. Small and large buffers have segments of their own,
//! so that a small one that stays does not keep a large piece from being whole again; and so have workspaces, which come and go with every
//! product and are the largest: what is cut out of the place of one and stays would have the next one take another. Choices depend on sizes and
//! on the order of calls, never on addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::error::Error;

/// Sizes are rounded up to this, which is also how the driver aligns.
const GRAIN: usize = 512;
/// The largest buffer that shares segments with other small ones.
const SMALL: usize = 8 << 20;
/// A rest of a piece for large ones that is no larger stays with it.
const OF_NO_USE: usize = 1 << 20;
/// Segments are a multiple of this.
const SEGMENT: usize = 2 << 20;
/// A segment for small buffers is as large as this part of what they have already, up to a limit: few ends that fit nothing, and little that
/// nobody needs.
const GROWTH: usize = 16;
const MOST_SHARED: usize = 32 << 20;

/// What a buffer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Anything.
    Data,
    /// An operand of one product, of which there are two at a time.
    Workspace,
}

/// Classes of segments: for small buffers, for large ones, for workspaces.
const CLASSES: usize = 3;

impl Purpose {
    fn class(self, size: usize) -> usize {
        match self {
            Purpose::Workspace => 2,
            Purpose::Data => usize::from(size > SMALL),
        }
    }
}

/// Bytes on the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// In buffers that exist now.
    pub live: usize,
    /// The most that `live` has been.
    pub peak: usize,
    /// Kept for reuse: what was taken from the driver and is in no buffer.
    pub cached: usize,
    /// Taken from the driver: `live` and `cached`.
    pub reserved: usize,
    /// The most that `reserved` has been.
    pub peak_reserved: usize,
}

/// A piece of a segment that a buffer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Block {
    /// Its address.
    pub ptr: u64,
    /// Its size: what was asked for, rounded up.
    pub size: usize,
    segment: u32,
    offset: usize,
}

struct Piece {
    size: usize,
    free: bool,
}

struct Segment {
    base: u64,
    size: usize,
    class: usize,
    /// By where they begin; they fill the segment.
    pieces: BTreeMap<usize, Piece>,
}

/// The segments of a device and who has which part of them.
pub struct Pool {
    segments: BTreeMap<u32, Segment>,
    made: u32,
    /// Free pieces, by class. Size, segment, offset.
    free: [BTreeSet<(usize, u32, usize)>; CLASSES],
    /// Bytes of the segments of each class.
    taken: [usize; CLASSES],
    stats: MemoryStats,
    keeps: bool,
    /// A sum over the blocks in use.
    signature: u64,
    /// How many segments were given up.
    trims: u64,
}

impl Default for Pool {
    fn default() -> Pool {
        Pool::new(true)
    }
}

impl Pool {
    /// An empty pool. One that keeps nothing takes each buffer from the driver and gives it straight back, so that a memory checker
    /// sees where each ends.
    pub fn new(keeps: bool) -> Pool {
        Pool {
            segments: BTreeMap::new(),
            made: 0,
            free: Default::default(),
            taken: Default::default(),
            stats: MemoryStats::default(),
            keeps,
            signature: 0,
            trims: 0,
        }
    }

    /// A number for the memory that is in use and that which is not: the same buffers asked for from here on come to lie where they did when
    /// it was the same before.
    pub fn signature(&self) -> u64 {
        self.signature.wrapping_add(hash(&(self.trims, self.made)))
    }

    /// Bytes in use, kept and taken.
    pub fn stats(&self) -> MemoryStats {
        self.stats
    }

    /// The size of the block that a buffer of so many bytes gets in a pool that keeps memory.
    pub fn rounded(bytes: usize) -> usize {
        bytes.max(1).next_multiple_of(GRAIN)
    }

    /// Memory for a buffer. `fresh` takes a segment of a size from the driver, and is asked only if no free piece is large enough: for a smaller
    /// one once more, if it has not as much as would be of use.
    ///
    /// # Errors
    /// What `fresh` returns.
    pub fn alloc(
        &mut self,
        (bytes, purpose): (usize, Purpose),
        fresh: impl FnMut(usize) -> Result<u64, Error>,
    ) -> Result<Block, Error> {
        // What is its driver's own ends where it ends.
        let size = if self.keeps { Pool::rounded(bytes) } else { bytes.max(1) };
        let class = purpose.class(size);
        let (segment, offset) = match self.free[class].range((size, 0, 0)..).next().copied() {
            Some((whole, segment, offset)) => {
                self.free[class].remove(&(whole, segment, offset));
                (segment, offset)
            }
            None => (self.segment(class, size, fresh)?, 0),
        };
        let size = self.take(class, segment, offset, size);
        self.stats.live += size;
        self.stats.peak = self.stats.peak.max(self.stats.live);
        self.stats.cached = self.stats.reserved - self.stats.live;
        let block = Block { ptr: self.segments[&segment].base + offset as u64, size, segment, offset };
        self.signature = self.signature.wrapping_add(hash(&block));
        Ok(block)
    }

    /// A segment that holds so many bytes.
    fn segment(
        &mut self,
        class: usize,
        bytes: usize,
        mut fresh: impl FnMut(usize) -> Result<u64, Error>,
    ) -> Result<u32, Error> {
        let shared = if class == 0 { (self.taken[0] / GROWTH).min(MOST_SHARED) } else { 0 };
        let needed = if self.keeps { bytes.next_multiple_of(SEGMENT) } else { bytes };
        let wanted = if self.keeps { needed.max(shared.next_multiple_of(SEGMENT)) } else { needed };
        // What would be of use later is not insisted on.
        let (base, size) = match fresh(wanted) {
            Err(_) if wanted > needed => (fresh(needed)?, needed),
            found => (found?, wanted),
        };
        let id = self.made;
        self.made += 1;
        let pieces = BTreeMap::from([(0, Piece { size, free: true })]);
        self.segments.insert(id, Segment { base, size, class, pieces });
        self.taken[class] += size;
        self.stats.reserved += size;
        self.stats.peak_reserved = self.stats.peak_reserved.max(self.stats.reserved);
        Ok(id)
    }

    /// Marks the beginning of a free piece as used, and gives its size: a rest that is too small to be of use goes with it.
    fn take(&mut self, class: usize, id: u32, offset: usize, size: usize) -> usize {
        let segment = self.segments.get_mut(&id).expect("the segment of a free piece is there");
        let piece = segment.pieces.get_mut(&offset).expect("a free piece is there");
        piece.free = false;
        let rest = piece.size - size;
        if rest <= if class == 0 { 0 } else { OF_NO_USE } {
            return piece.size;
        }
        piece.size = size;
        segment.pieces.insert(offset + size, Piece { size: rest, free: true });
        self.free[class].insert((rest, id, offset + size));
        size
    }

    /// Takes a block back. Gives the address of its segment if that is to be given back to the driver now.
    pub fn free(&mut self, block: Block) -> Option<u64> {
        self.signature = self.signature.wrapping_sub(hash(&block));
        let id = block.segment;
        let segment = self.segments.get_mut(&id).expect("the segment of a block is there");
        let class = segment.class;
        let mut offset = block.offset;
        let mut size = segment.pieces.remove(&offset).expect("a block is a piece of its segment").size;
        if let Some(next) = segment.pieces.get(&(offset + size)).filter(|it| it.free).map(|it| it.size) {
            segment.pieces.remove(&(offset + size));
            self.free[class].remove(&(next, id, offset + size));
            size += next;
        }
        let before = segment.pieces.range(..offset).next_back().filter(|it| it.1.free).map(|(at, it)| (*at, it.size));
        if let Some((at, previous)) = before {
            segment.pieces.remove(&at);
            self.free[class].remove(&(previous, id, at));
            (offset, size) = (at, size + previous);
        }
        segment.pieces.insert(offset, Piece { size, free: true });
        self.free[class].insert((size, id, offset));
        self.stats.live -= block.size;
        self.stats.cached = self.stats.reserved - self.stats.live;
        if self.keeps { None } else { self.trim().pop() }
    }

    /// Gives up every segment that no buffer has a part of, and names their addresses for the driver.
    pub fn trim(&mut self) -> Vec<u64> {
        (0..CLASSES).flat_map(|class| self.trim_class(class)).collect()
    }

    /// Gives up segments that were for smaller workspaces than this, if it has to have a new one, and names their addresses for the driver.
    pub fn outgrown(&mut self, bytes: usize) -> Vec<u64> {
        let class = Purpose::Workspace.class(bytes);
        let fits = self.free[class].last().is_some_and(|it| it.0 >= Pool::rounded(bytes));
        if fits { Vec::new() } else { self.trim_class(class) }
    }

    fn trim_class(&mut self, class: usize) -> Vec<u64> {
        let whole = |it: &(usize, u32, usize)| self.segments[&it.1].size == it.0;
        let whole: Vec<_> = self.free[class].iter().copied().filter(whole).collect();
        let mut given_up = Vec::new();
        for key in whole {
            self.free[class].remove(&key);
            let segment = self.segments.remove(&key.1).expect("the segment of a free piece is there");
            self.taken[class] -= segment.size;
            self.stats.reserved -= segment.size;
            given_up.push(segment.base);
        }
        self.trims += given_up.len() as u64;
        self.stats.cached = self.stats.reserved - self.stats.live;
        given_up
    }
}

pub(crate) fn hash(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// A driver that gives address after address, with gaps.
    fn fresh(base: &mut u64) -> impl FnMut(usize) -> Result<u64, Error> + '_ {
        |size| {
            *base += size as u64 + 4096;
            Ok(*base - size as u64)
        }
    }

    fn no_more(_: usize) -> Result<u64, Error> {
        Err(Error::NoDevice)
    }

    fn data(bytes: usize) -> (usize, Purpose) {
        (bytes, Purpose::Data)
    }

    #[test]
    fn the_smallest_piece_that_fits_is_split_and_joined_again() {
        let (mut pool, mut base) = (Pool::default(), 1 << 30);
        let [large, middle] = [90 * MIB, 40 * MIB].map(|it| pool.alloc(data(it), fresh(&mut base)).unwrap());
        pool.free(large);
        pool.free(middle);
        let first = pool.alloc(data(15 * MIB), no_more).unwrap();
        assert_eq!(first.ptr, middle.ptr, "the best fit");
        let second = pool.alloc(data(25 * MIB), no_more).unwrap();
        assert_eq!(second.ptr, middle.ptr + 15 * MIB as u64, "its rest");
        let third = pool.alloc(data(25 * MIB), no_more).unwrap();
        assert_eq!(third.ptr, large.ptr);
        for it in [first, third, second] {
            pool.free(it);
        }
        // Both are whole again.
        assert_eq!(pool.alloc(data(90 * MIB), no_more).unwrap().ptr, large.ptr);
        assert_eq!(pool.alloc(data(40 * MIB), no_more).unwrap().ptr, middle.ptr);
        let stats = pool.stats();
        assert_eq!((stats.live, stats.cached, stats.reserved), (130 * MIB, 0, 130 * MIB));
        assert_eq!((stats.peak, stats.peak_reserved), (130 * MIB, 130 * MIB));
    }

    #[test]
    fn a_rest_of_no_use_stays_with_the_block_and_small_buffers_stay_among_themselves() {
        let (mut pool, mut base) = (Pool::default(), 1 << 30);
        let odd = pool.alloc(data(36 * MIB - 1000), fresh(&mut base)).unwrap();
        assert_eq!(odd.size, 36 * MIB, "a rest of one grain is not kept");
        pool.free(odd);
        let small = pool.alloc(data(100), fresh(&mut base)).unwrap();
        assert_eq!(small.size, GRAIN);
        assert_eq!(pool.stats().reserved, 38 * MIB, "the large piece was not broken for it");
        assert_eq!(pool.alloc(data(36 * MIB), no_more).unwrap().ptr, odd.ptr);
        assert_eq!(pool.alloc(data(MIB), no_more).unwrap().ptr, small.ptr + GRAIN as u64);
    }

    #[test]
    fn buffers_of_a_few_mib_share_segments_that_grow_with_what_they_have() {
        let (mut pool, mut base) = (Pool::default(), 1 << 30);
        // The scales of a matrix of 22016 x 8192 elements, of which there are many, and a factor of rank 16.
        let [scales, factor] = [22016 * 8192 / 64, 22016 * 16 * 4];
        for _ in 0..240 {
            for bytes in [scales, factor] {
                pool.alloc(data(bytes), fresh(&mut base)).unwrap();
            }
        }
        let stats = pool.stats();
        assert!(
            stats.cached <= stats.live / GROWTH + MOST_SHARED && stats.live == 240 * (scales + factor),
            "{stats:?}"
        );
    }

    #[test]
    fn a_driver_that_has_not_as_much_as_would_be_of_use_is_asked_for_what_is_needed() {
        let (mut pool, mut base) = (Pool::default(), 1 << 30);
        for _ in 0..40 {
            pool.alloc(data(8 * MIB), fresh(&mut base)).unwrap();
        }
        let asked = std::cell::RefCell::new(Vec::new());
        let at_most_8 = |size: usize| {
            asked.borrow_mut().push(size);
            if size > 8 * MIB { Err(Error::NoDevice) } else { Ok(1 << 20) }
        };
        while pool.alloc(data(8 * MIB), no_more).is_ok() {}
        let reserved = pool.stats().reserved;
        assert_eq!(pool.alloc(data(8 * MIB), at_most_8).unwrap().ptr, 1 << 20);
        assert_eq!(*asked.borrow(), [(reserved / GROWTH).next_multiple_of(SEGMENT), 8 * MIB]);
        assert_eq!(pool.stats().reserved, reserved + 8 * MIB);
    }

    #[test]
    fn workspaces_have_segments_that_nothing_else_is_cut_out_of() {
        let (mut pool, mut base) = (Pool::default(), 1 << 30);
        let workspace = |pool: &mut Pool, bytes: usize, base: &mut u64| {
            let given_up = pool.outgrown(bytes);
            (pool.alloc((bytes, Purpose::Workspace), fresh(base)).unwrap(), given_up)
        };
        let (first, _) = workspace(&mut pool, 130 * MIB, &mut base);
        let (second, _) = workspace(&mut pool, 130 * MIB, &mut base);
        pool.free(first);
        let data = pool.alloc(data(32 * MIB), fresh(&mut base)).unwrap();
        assert!(![first.ptr, second.ptr].contains(&data.ptr));
        // A larger one takes the place of what was outgrown.
        let (third, given_up) = workspace(&mut pool, 344 * MIB, &mut base);
        assert_eq!(given_up, [first.ptr]);
        pool.free(second);
        let (fourth, given_up) = workspace(&mut pool, 345 * MIB, &mut base);
        assert_eq!(given_up, [second.ptr]);
        assert_eq!(pool.stats().reserved, (32 + 344 + 346) * MIB);
        pool.free(third);
        // A smaller one leaves all as it is.
        assert_eq!(workspace(&mut pool, 130 * MIB, &mut base), (Block { size: 130 * MIB, ..third }, vec![]));
        pool.free(fourth);
        assert_eq!(workspace(&mut pool, 345 * MIB, &mut base).0.ptr, fourth.ptr);
        assert_eq!(pool.stats().reserved, (32 + 344 + 346) * MIB);
    }

    #[test]
    fn only_segments_without_buffers_go_back() {
        let (mut pool, mut base) = (Pool::default(), 1 << 30);
        let [kept, other] = [20 * MIB, 40 * MIB].map(|it| pool.alloc(data(it), fresh(&mut base)).unwrap());
        pool.free(other);
        assert_eq!(pool.trim(), [other.ptr]);
        assert_eq!(pool.stats().reserved, 20 * MIB);
        assert!(pool.alloc(data(40 * MIB), no_more).is_err());
        assert_eq!(pool.stats().live, 20 * MIB, "a failure changes nothing");
        pool.free(kept);
        assert_eq!(pool.trim(), [kept.ptr]);
        assert_eq!(pool.stats().peak_reserved, 60 * MIB);
        assert_eq!(pool.stats().reserved, 0);
    }

    #[test]
    fn a_pool_that_keeps_nothing_gives_each_buffer_a_segment_of_its_size() {
        let (mut pool, mut base) = (Pool::new(false), 1 << 30);
        let [a, b] = [700, 3 * MIB].map(|it| pool.alloc(data(it), fresh(&mut base)).unwrap());
        assert_eq!(pool.stats().reserved, 700 + 3 * MIB);
        assert_eq!(pool.free(a), Some(a.ptr));
        assert_eq!(pool.free(b), Some(b.ptr));
        assert_eq!(pool.stats().reserved, 0);
    }

    /// Buffers of all sizes come and go; gives where each came to lie, counted from its segment's beginning.
    fn wander(mut base: u64) -> Vec<(u32, usize, usize)> {
        let (mut pool, mut live, mut places) = (Pool::default(), Vec::<Block>::new(), Vec::new());
        let mut state = 7u64;
        let mut next = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        for _ in 0..4000 {
            if !live.is_empty() && (live.len() > 60 || next(5) < 2) {
                let it = live.swap_remove(next(live.len()));
                pool.free(it);
            } else {
                let most = 1 << next(25);
                let bytes = 1 + next(most);
                let purpose = if next(4) == 0 { Purpose::Workspace } else { Purpose::Data };
                let it = pool.alloc((bytes, purpose), fresh(&mut base)).unwrap();
                let overlaps = |o: &Block| it.ptr < o.ptr + o.size as u64 && o.ptr < it.ptr + it.size as u64;
                assert!(it.size >= bytes && !live.iter().any(overlaps), "{it:?}");
                places.push((it.segment, it.offset, it.size));
                live.push(it);
            }
            let stats = pool.stats();
            assert_eq!(stats.live, live.iter().map(|it| it.size).sum::<usize>());
            assert_eq!(stats.live + stats.cached, stats.reserved);
        }
        live.drain(..).for_each(|it| assert_eq!(pool.free(it), None));
        let segments = pool.segments.len();
        assert_eq!(pool.trim().len(), segments, "every segment is whole again");
        places
    }

    #[test]
    fn the_same_memory_in_use_has_the_same_signature() {
        let (mut pool, mut base) = (Pool::default(), 1 << 30);
        let kept = pool.alloc(data(30 * MIB), fresh(&mut base)).unwrap();
        pool.alloc(data(60 * MIB), fresh(&mut base)).map(|it| pool.free(it)).unwrap();
        let before = pool.signature();
        let [a, b] = [MIB, 45 * MIB].map(|it| pool.alloc(data(it), fresh(&mut base)).unwrap());
        assert_ne!(pool.signature(), before);
        pool.free(b);
        pool.free(a);
        assert_ne!(pool.signature(), before, "there is a segment more, which a buffer may get");
        let before = pool.signature();
        let again = [MIB, 45 * MIB].map(|it| pool.alloc(data(it), no_more).unwrap());
        assert_eq!(again, [a, b], "the same memory");
        again.into_iter().for_each(|it| assert_eq!(pool.free(it), None));
        assert_eq!(pool.signature(), before);
        pool.free(kept);
        let other = pool.alloc(data(30 * MIB), no_more).unwrap();
        assert_eq!((pool.signature() == before, other == kept), (true, true), "who holds it does not matter");
        pool.trim();
        assert_ne!(pool.signature(), before, "what was given up may come back elsewhere");
    }

    #[test]
    fn blocks_never_overlap_and_addresses_decide_nothing() {
        assert_eq!(wander(1 << 20), wander(u64::MAX / 2));
    }
}

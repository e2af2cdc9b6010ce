//! Which pages of a few large mappings are free. Steps of other lengths ask for other sizes; what they gave back is joined and cut anew,
//! so that pages which were written once serve all of them, and none has to be asked of the system again.
//!
//! Nothing here calls the system: who has the lock of the pool holds nobody up.

use crate::mmap::{PAGE_BYTES, Range};
use std::collections::BTreeMap;

/// Free ranges of all mappings.
pub(crate) struct Arena {
    /// By address. Neighbours differ in whether they hold memory.
    free: BTreeMap<usize, Idle>,
    /// Free bytes that hold memory.
    cached: usize,
    /// Bytes of all mappings.
    mapped: usize,
}

struct Idle {
    range: Range,
    /// When a part of it was last given back, if it holds memory; None if it would have to be asked for.
    since: Option<u64>,
}

/// The least that is mapped at a time.
const SEGMENT_BYTES: usize = 32 << 20;
/// So many times as much is mapped already as is added at a time: larger mappings leave fewer ends that fit nothing.
const GROWTH: usize = 4;

impl Arena {
    pub(crate) const EMPTY: Arena = Arena { free: BTreeMap::new(), cached: 0, mapped: 0 };

    /// Free bytes that hold memory.
    pub(crate) fn cached(&self) -> usize {
        self.cached
    }

    /// What to map for a range that nothing free has room for: preferably so much; at least `len`.
    pub(crate) fn growth(&self, len: usize) -> usize {
        let generous = SEGMENT_BYTES.max(self.mapped / GROWTH).next_multiple_of(SEGMENT_BYTES);
        len.max(generous)
    }

    /// A new mapping.
    pub(crate) fn add(&mut self, segment: Range) {
        self.mapped += segment.len();
        self.insert(Idle { range: segment, since: None });
    }

    /// So many bytes: of what holds memory the smallest piece that has room, else the first pieces beside each other that have.
    pub(crate) fn take(&mut self, len: usize) -> Option<Range> {
        let fitting = self.free.iter().filter(|it| it.1.since.is_some() && it.1.range.len() >= len);
        let best = fitting.min_by_key(|it| it.1.range.len()).map(|it| *it.0);
        let mut at = best.or_else(|| self.first_run(len))?;
        let mut found: Option<Range> = None;
        loop {
            let missing = len - found.as_ref().map_or(0, Range::len);
            let Idle { range, since } = self.remove(at);
            at += range.len();
            let (piece, rest) = if range.len() > missing {
                let (piece, rest) = range.split(missing);
                (piece, Some(rest))
            } else {
                (range, None)
            };
            if let Some(range) = rest {
                self.put(Idle { range, since });
            }
            let all = match found {
                Some(before) => before.join(piece),
                None => piece,
            };
            if all.len() == len {
                return Some(all);
            }
            found = Some(all);
        }
    }

    /// Takes a range back that holds memory.
    pub(crate) fn give_back(&mut self, range: Range, now: u64) {
        self.insert(Idle { range, since: Some(now) });
    }

    /// Takes a range back that was discarded. What comes back is a mapping of which nothing is in use.
    pub(crate) fn give_back_discarded(&mut self, range: Range) -> Option<Range> {
        let at = self.insert(Idle { range, since: None });
        if !self.free[&at].range.is_whole() {
            return None;
        }
        let whole = self.remove(at).range;
        self.mapped -= whole.len();
        Some(whole)
    }

    /// When the range was given back that lies idle the longest.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.free.values().filter_map(|it| it.since).min()
    }

    /// The end of what lies idle the longest, `most` bytes of it if it has more, and what fills their page; to be discarded.
    pub(crate) fn evict(&mut self, most: usize) -> Option<Range> {
        let at = self.free.iter().filter_map(|it| Some((it.1.since?, *it.0))).min()?.1;
        let Idle { range, since } = self.remove(at);
        let most = most.min(range.len()).next_multiple_of(PAGE_BYTES);
        if range.len() == most {
            return Some(range);
        }
        let kept = range.len() - most;
        let (kept, gone) = range.split(kept);
        self.put(Idle { range: kept, since });
        Some(gone)
    }

    /// All that is free and holds memory, to be discarded.
    pub(crate) fn evict_all(&mut self) -> Vec<Range> {
        std::iter::from_fn(|| self.evict(usize::MAX)).collect()
    }

    /// Where pieces beside each other begin that have so many bytes together.
    fn first_run(&self, len: usize) -> Option<usize> {
        let mut run: Option<(usize, usize, &Range)> = None;
        for (&at, Idle { range, .. }) in &self.free {
            let (begin, before) = match run {
                Some((begin, before, last)) if last.meets(range) => (begin, before),
                _ => (at, 0),
            };
            if before + range.len() >= len {
                return Some(begin);
            }
            run = Some((begin, before + range.len(), range));
        }
        None
    }

    /// Joins a range with its neighbours if they are as it is; where it begins then.
    fn insert(&mut self, mut idle: Idle) -> usize {
        let at = idle.range.address();
        let before = self.free.range(..at).next_back().map(|it| *it.0);
        if let Some(before) = before.filter(|it| self.free[it].goes_with(&idle)) {
            idle = self.remove(before).join(idle);
        }
        let after = idle.range.address() + idle.range.len();
        if self.free.get(&after).is_some_and(|it| idle.goes_with(it)) {
            idle = idle.join(self.remove(after));
        }
        self.put(idle)
    }

    fn put(&mut self, idle: Idle) -> usize {
        let at = idle.range.address();
        self.cached += idle.cached();
        self.free.insert(at, idle);
        at
    }

    fn remove(&mut self, at: usize) -> Idle {
        let idle = self.free.remove(&at).expect("a range begins here");
        self.cached -= idle.cached();
        idle
    }
}

impl Idle {
    fn cached(&self) -> usize {
        if self.since.is_some() { self.range.len() } else { 0 }
    }

    fn goes_with(&self, next: &Idle) -> bool {
        self.since.is_some() == next.since.is_some() && self.range.meets(&next.range)
    }

    fn join(self, next: Idle) -> Idle {
        Idle { range: self.range.join(next.range), since: self.since.max(next.since) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(pages: usize) -> Range {
        Range::map(pages * PAGE_BYTES).unwrap()
    }

    fn arena(segments: &[usize]) -> Arena {
        let mut arena = Arena::EMPTY;
        segments.iter().for_each(|it| arena.add(map(*it)));
        arena
    }

    impl Arena {
        /// What holds at any time.
        fn check(&self) {
            let holding = self.free.values().filter(|it| it.since.is_some()).map(|it| it.range.len()).sum::<usize>();
            assert_eq!(self.cached, holding);
            for (at, it) in &self.free {
                assert_eq!(*at, it.range.address());
            }
            for ((_, a), (_, b)) in self.free.iter().zip(self.free.iter().skip(1)) {
                assert!(
                    a.range.address() + a.range.len() <= b.range.address(),
                    "ranges overlap: {:?} {:?}",
                    a.range,
                    b.range
                );
                assert!(!a.goes_with(b), "neighbours are not joined: {:?} {:?}", a.range, b.range);
            }
        }
    }

    #[test]
    fn what_was_written_is_used_again_before_anything_else() {
        let mut arena = arena(&[16]);
        let used = [4, 2, 3].map(|it| arena.take(it * PAGE_BYTES).unwrap());
        let at = used.each_ref().map(Range::address);
        used.into_iter().enumerate().filter(|it| it.0 != 1).for_each(|(i, it)| arena.give_back(it, i as u64));
        assert_eq!(arena.cached(), 7 * PAGE_BYTES);
        // The smaller hole, though the larger one lies before it.
        let small = arena.take(3 * PAGE_BYTES).unwrap();
        assert_eq!(small.address(), at[2]);
        // No hole has room: one, and what was never used behind it, where they are neighbours.
        arena.give_back(small, 9);
        let large = arena.take(6 * PAGE_BYTES).unwrap();
        assert_eq!((large.address(), arena.cached()), (at[2], 4 * PAGE_BYTES));
    }

    #[test]
    fn pieces_of_two_mappings_serve_nobody_together() {
        let mut arena = arena(&[4, 4]);
        assert!(arena.take(5 * PAGE_BYTES).is_none());
        assert!(
            arena.take(4 * PAGE_BYTES).is_some()
                && arena.take(4 * PAGE_BYTES).is_some()
                && arena.take(PAGE_BYTES).is_none()
        );
    }

    #[test]
    fn the_longest_idle_goes_first_and_from_its_end() {
        let mut arena = arena(&[8]);
        let [a, b, c] = [2, 1, 2].map(|it| arena.take(it * PAGE_BYTES).unwrap());
        let at = c.address();
        arena.give_back(c, 1);
        arena.give_back(a, 2);
        assert_eq!(arena.oldest(), Some(1));
        let gone = arena.evict(1).unwrap();
        assert_eq!((gone.address(), gone.len()), (at + PAGE_BYTES, PAGE_BYTES));
        assert!(arena.give_back_discarded(gone).is_none());
        arena.give_back(b, 3);
        // All are one range now, which was used just now.
        assert_eq!((arena.oldest(), arena.cached()), (Some(3), 4 * PAGE_BYTES));
        let all = arena.evict_all();
        assert_eq!((all.len(), all[0].len(), arena.cached()), (1, 4 * PAGE_BYTES, 0));
        let whole =
            all.into_iter().find_map(|it| arena.give_back_discarded(it)).expect("nothing of the mapping is in use");
        assert!(whole.is_whole() && arena.free.is_empty() && arena.mapped == 0);
    }

    proptest! {
        #[test]
        fn nobody_gets_what_somebody_has(steps in prop::collection::vec((0usize..8, 1usize..12, any::<prop::sample::Index>()), 1..200)) {
            let mut arena = arena(&[24, 7]);
            let mut held: Vec<(Range, u8)> = Vec::new();
            let mut discarded: Vec<Range> = Vec::new();
            for (now, (what, pages, which)) in steps.into_iter().enumerate() {
                let mark = now as u8;
                match what {
                    0..4 => {
                        if let Some(mut range) = arena.take(pages * PAGE_BYTES) {
                            prop_assert_eq!(range.len(), pages * PAGE_BYTES);
                            range.bytes_mut().fill(mark);
                            held.push((range, mark));
                        } else {
                            arena.add(map(pages + 3));
                        }
                    }
                    4..6 if !held.is_empty() => {
                        let (range, mark) = held.swap_remove(which.index(held.len()));
                        prop_assert!(range.bytes().iter().all(|it| *it == mark), "somebody wrote into it");
                        arena.give_back(range, now as u64);
                    }
                    6 => discarded.extend(arena.evict(pages * PAGE_BYTES)),
                    7 => {
                        for mut range in discarded.drain(..) {
                            range.discard();
                            drop(arena.give_back_discarded(range));
                        }
                    }
                    _ => {}
                }
                arena.check();
                let free: usize = arena.free.values().map(|it| it.range.len()).sum();
                let others: usize = held.iter().map(|it| it.0.len()).chain(discarded.iter().map(Range::len)).sum();
                prop_assert_eq!(free + others, arena.mapped, "bytes are lost");
            }
        }
    }
}

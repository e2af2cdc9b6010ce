//! Which page leaves memory when another must come in: a pure state machine, without I/O, clock or threads.
//!
//! # Why the most recently used page leaves
//! An optimizer scans its state from the first page to the last, once a step, for ever. Under such a cyclic scan the page
//! that was used last is the one that is needed *latest*, so the common rule (the least recently used page leaves) is the
//! worst possible: with `F` frames for `N > F` pages it evicts every page just before its turn and never hits once. The
//! optimal rule (evict what is needed furthest in the future) is here the opposite, most recently used first. About `F - 1`
//! pages then stay where they are and one frame streams the rest: `N - F` or `N - F + 1` fetches a step, where the least
//! recently used rule needs `N`. A state that is four thirds of its budget pages a quarter and a bit, not all of it.
//!
//! # What it keeps track of
//! A page is *zero* (never written: it can be made, not read), *spilled*, or *resident*, where resident pages know whether
//! they were written since they came (dirty) and whether the second tier holds a copy. So a page that was only read leaves
//! without a write, and a page that nobody wrote never touches the disk.
//!
//! The caller performs the [`Moves`] that it is given, in order (evict, then fetch), and what it does them with is its own
//! affair: a file here, pinned host memory for a GPU.

use std::{collections::BTreeMap, ops::Range};

/// What a touch is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The page is only looked at.
    Read,
    /// The page will be changed, and so must be written back before its frame is given away.
    Write,
}

/// A page that leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evict {
    /// The page.
    pub page: usize,
    /// Whether its content must be copied to the second tier first.
    pub write_back: bool,
}

/// A page that comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetch {
    /// The page.
    pub page: usize,
    /// Whether to read it from the second tier; if not, the page is all zeros.
    pub read: bool,
}

/// What to do so that a page is in `frame`: first the eviction, then the fetch. Both concern this one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moves {
    /// The frame that holds the page afterwards.
    pub frame: usize,
    /// The page to take out of the frame.
    pub evict: Option<Evict>,
    /// The page to bring into the frame; absent when it is there already.
    pub fetch: Option<Fetch>,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    Zero,
    Spilled,
    Resident { frame: usize, stamp: u64, dirty: bool, copied: bool },
}

/// `pages` pages, at most `frames` of them resident.
#[derive(Debug, Clone)]
pub struct Policy {
    places: Vec<Place>,
    frames: usize,
    /// Resident pages by their last use.
    recency: BTreeMap<u64, usize>,
    clock: u64,
}

impl Policy {
    /// All pages are zero, none is resident. Panics if there are pages and no frame.
    pub fn new(pages: usize, frames: usize) -> Self {
        assert!(frames > 0 || pages == 0, "a policy for {pages} pages needs at least one frame");
        Self { places: vec![Place::Zero; pages], frames, recency: BTreeMap::new(), clock: 0 }
    }

    /// Makes `page` resident and the most recently used one.
    pub fn touch(&mut self, page: usize, access: Access) -> Moves {
        let moves = self.admit(page, 0..0).expect("with nothing to keep, some frame is always available");
        let Place::Resident { stamp, dirty, .. } = &mut self.places[page] else {
            unreachable!("a page that was admitted is resident");
        };
        self.recency.remove(stamp);
        *stamp = self.clock;
        *dirty |= access == Access::Write;
        self.recency.insert(self.clock, page);
        self.clock += 1;
        moves
    }

    /// Makes `page` resident ahead of its touch, without evicting any page in `keep` (the ones being worked on).
    /// `None` if there is nothing to do or no frame to do it in.
    pub fn prefetch(&mut self, page: usize, keep: Range<usize>) -> Option<Moves> {
        if self.is_resident(page) { None } else { self.admit(page, keep) }
    }

    /// Whether `page` is in a frame.
    pub fn is_resident(&self, page: usize) -> bool {
        matches!(self.places[page], Place::Resident { .. })
    }

    /// The frame of a resident page.
    pub fn frame(&self, page: usize) -> Option<usize> {
        match self.places[page] {
            Place::Resident { frame, .. } => Some(frame),
            Place::Zero | Place::Spilled => None,
        }
    }

    /// Number of resident pages.
    pub fn resident(&self) -> usize {
        self.recency.len()
    }

    fn admit(&mut self, page: usize, keep: Range<usize>) -> Option<Moves> {
        let read = match self.places[page] {
            Place::Resident { frame, .. } => return Some(Moves { frame, evict: None, fetch: None }),
            Place::Spilled => true,
            Place::Zero => false,
        };
        // Frames are handed out in order and never become free again: an eviction passes its frame on at once.
        let (frame, evict) = if self.resident() < self.frames {
            (self.resident(), None)
        } else {
            let victim = self.recency.values().rev().copied().find(|p| !keep.contains(p))?;
            let (frame, evict) = self.evict(victim);
            (frame, Some(evict))
        };
        self.places[page] = Place::Resident { frame, stamp: self.clock, dirty: false, copied: read };
        self.recency.insert(self.clock, page);
        self.clock += 1;
        Some(Moves { frame, evict, fetch: Some(Fetch { page, read }) })
    }

    fn evict(&mut self, page: usize) -> (usize, Evict) {
        let Place::Resident { frame, stamp, dirty, copied } = self.places[page] else {
            unreachable!("a victim is chosen among resident pages");
        };
        self.recency.remove(&stamp);
        self.places[page] = if dirty || copied { Place::Spilled } else { Place::Zero };
        (frame, Evict { page, write_back: dirty })
    }
}

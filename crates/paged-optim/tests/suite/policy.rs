//! The policy on its own: whatever is asked of it, no page is lost, and the budget holds.

use halfbyte_paged_optim::policy::{Access, Moves, Policy};
use proptest::prelude::*;

/// Two tiers that hold a version number for each page and do what the policy says.
struct Tiers {
    policy: Policy,
    frames: Vec<Option<(usize, u32)>>,
    disk: Vec<Option<u32>>,
    /// What each page should hold.
    versions: Vec<u32>,
    fetches: usize,
    reads: usize,
    writes: usize,
}

impl Tiers {
    fn new(pages: usize, frames: usize) -> Self {
        Self {
            policy: Policy::new(pages, frames),
            frames: vec![None; frames],
            disk: vec![None; pages],
            versions: vec![0; pages],
            fetches: 0,
            reads: 0,
            writes: 0,
        }
    }

    fn perform(&mut self, moves: Moves) {
        let slot = &mut self.frames[moves.frame];
        if let Some(evict) = moves.evict {
            let (page, version) = slot.take().expect("only an occupied frame is vacated");
            assert_eq!(page, evict.page, "the page that leaves is the one in the frame");
            if evict.write_back {
                assert_ne!(self.disk[page], Some(version), "an unchanged page is not written again");
                self.disk[page] = Some(version);
                self.writes += 1;
            }
        }
        if let Some(fetch) = moves.fetch {
            assert_eq!(*slot, None, "a page comes into an empty frame");
            let version = if fetch.read { self.disk[fetch.page].expect("only what was written is read") } else { 0 };
            *slot = Some((fetch.page, version));
            self.fetches += 1;
            self.reads += usize::from(fetch.read);
        }
    }

    fn touch(&mut self, page: usize, access: Access) {
        let moves = self.policy.touch(page, access);
        self.perform(moves);
        assert_eq!(self.frames[moves.frame], Some((page, self.versions[page])), "touched: resident, with its content");
        if access == Access::Write {
            self.versions[page] += 1;
            self.frames[moves.frame] = Some((page, self.versions[page]));
        }
    }

    fn prefetch(&mut self, page: usize, keep: std::ops::Range<usize>) -> bool {
        let Some(moves) = self.policy.prefetch(page, keep.clone()) else { return false };
        assert!(moves.evict.is_none_or(|e| !keep.contains(&e.page)), "pages in work stay");
        self.perform(moves);
        true
    }

    fn check(&self) {
        let resident = self.frames.iter().flatten().count();
        assert_eq!(resident, self.policy.resident());
        assert!(resident <= self.frames.len());
        for (frame, held) in self.frames.iter().enumerate() {
            if let Some((page, _)) = held {
                assert_eq!(self.policy.frame(*page), Some(frame));
            }
        }
    }
}

proptest! {
    #[test]
    fn no_page_is_lost_and_the_budget_holds(
        pages in 1usize..12,
        frames in 1usize..8,
        ops in prop::collection::vec((0usize..12, 0u8..3, 0usize..12, 0usize..4), 0..200),
    ) {
        let mut tiers = Tiers::new(pages, frames);
        for (page, op, keep, len) in ops {
            match op {
                0 => tiers.touch(page % pages, Access::Read),
                1 => tiers.touch(page % pages, Access::Write),
                _ => { tiers.prefetch(page % pages, keep..keep + len); }
            }
            tiers.check();
        }
        for page in 0..pages {
            tiers.touch(page, Access::Read);
        }
    }

    #[test]
    fn a_scan_within_the_budget_never_evicts(pages in 1usize..20, spare in 0usize..3, rounds in 1usize..4) {
        let mut tiers = Tiers::new(pages, pages + spare);
        for _ in 0..rounds {
            (0..pages).for_each(|p| tiers.touch(p, Access::Write));
        }
        prop_assert_eq!((tiers.fetches, tiers.reads, tiers.writes), (pages, 0, 0));
    }

    #[test]
    fn a_cyclic_scan_keeps_all_but_one_frame(pages in 2usize..40, frames in 1usize..40, ahead: bool) {
        prop_assume!(frames < pages);
        let mut tiers = Tiers::new(pages, frames);
        for round in 0..5 {
            let before = tiers.fetches;
            for p in 0..pages {
                tiers.touch(p, Access::Write);
                if ahead && p + 1 < pages {
                    tiers.prefetch(p + 1, p..p + 1);
                }
            }
            // The page being worked on stays while the next one comes: a frame less is left for the fixed part.
            let most = (pages - frames + 1 + usize::from(ahead)).min(pages);
            prop_assert!(round == 0 || tiers.fetches - before <= most, "{} of {pages}", tiers.fetches - before);
        }
    }

    #[test]
    fn reading_alone_moves_nothing_to_disk(pages in 1usize..20, frames in 1usize..6, scan in prop::collection::vec(0usize..20, 0..60)) {
        let mut tiers = Tiers::new(pages, frames);
        scan.iter().for_each(|p| tiers.touch(p % pages, Access::Read));
        prop_assert_eq!((tiers.reads, tiers.writes), (0, 0));
    }
}

#[test]
fn a_page_that_was_only_read_since_it_came_is_not_written_back() {
    let mut tiers = Tiers::new(2, 1);
    tiers.touch(0, Access::Write);
    for page in [1, 0, 1, 0, 1] {
        tiers.touch(page, Access::Read);
    }
    assert_eq!((tiers.writes, tiers.reads), (1, 2));
}

#[test]
fn with_one_frame_nothing_is_fetched_ahead() {
    let mut tiers = Tiers::new(3, 1);
    tiers.touch(0, Access::Write);
    assert!(!tiers.prefetch(1, 0..1));
    assert!(tiers.prefetch(1, 2..3), "a frame that nobody works on is free to take");
}

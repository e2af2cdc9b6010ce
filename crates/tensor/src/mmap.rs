//! Exclusive ranges of mapped memory, which can be cut and joined again: each byte of a mapping is in one range at most.

use memmap2::{MmapOptions, MmapRaw};
use std::{fmt, sync::Arc};

/// Bytes of a page, as far as this crate cares: what ranges begin and end with a multiple of.
pub(crate) const PAGE_BYTES: usize = 4096;

/// Some whole pages of a mapping, owned alone.
pub(crate) struct Range {
    map: Arc<MmapRaw>,
    start: usize,
    len: usize,
}

impl Range {
    /// A mapping of so many bytes, all of them zero, which take no memory before they are written. None if the system refuses.
    pub(crate) fn map(len: usize) -> Option<Range> {
        assert!(len > 0 && len.is_multiple_of(PAGE_BYTES), "whole pages, not {len} bytes");
        let map = MmapOptions::new().len(len).no_reserve_swap().map_anon().ok()?;
        Some(Range { map: Arc::new(map.into()), start: 0, len })
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where it begins among all memory.
    pub(crate) fn address(&self) -> usize {
        self.map.as_ptr() as usize + self.start
    }

    /// Whether it is all that was mapped at a time.
    pub(crate) fn is_whole(&self) -> bool {
        self.len == self.map.len()
    }

    /// Whether `next` begins where this ends, in the same mapping.
    pub(crate) fn meets(&self, next: &Range) -> bool {
        Arc::ptr_eq(&self.map, &next.map) && self.start + self.len == next.start
    }

    /// The first `at` bytes and the others.
    ///
    /// # Panics
    /// If one of them would hold nothing, or parts of pages.
    pub(crate) fn split(self, at: usize) -> (Range, Range) {
        assert!(0 < at && at < self.len && at.is_multiple_of(PAGE_BYTES), "{at} of {} bytes", self.len);
        let rest = Range { map: Arc::clone(&self.map), start: self.start + at, len: self.len - at };
        (Range { len: at, ..self }, rest)
    }

    /// This and what follows it as one.
    ///
    /// # Panics
    /// If they do not meet.
    pub(crate) fn join(self, next: Range) -> Range {
        assert!(self.meets(&next), "ranges that lie apart");
        Range { len: self.len + next.len, ..self }
    }

    /// Gives the memory back and keeps the addresses. What it held is lost.
    pub(crate) fn discard(&mut self) {
        #[cfg(unix)]
        {
            // SAFETY: the range is in the mapping and owned alone, so nobody reads what this changes; private and anonymous, it reads as
            // zeros or as it was, and nothing says what a range holds.
            let done =
                unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, self.start, self.len) };
            debug_assert!(done.is_ok(), "{done:?}");
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping lives as long as this does and holds these bytes, of which no other range has any.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(self.start), self.len) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; and as who calls this has the range alone, nobody reads them.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().add(self.start), self.len) }
    }
}

impl fmt::Debug for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Range({:#x} + {:#x})", self.address(), self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_a_range_hold_what_was_written_into_it() {
        let mut whole = Range::map(4 * PAGE_BYTES).unwrap();
        assert!(whole.is_whole() && whole.bytes().iter().all(|it| *it == 0));
        whole.bytes_mut()[PAGE_BYTES] = 1;
        let (first, rest) = whole.split(PAGE_BYTES);
        let (mut second, others) = rest.split(PAGE_BYTES);
        assert!(first.meets(&second) && second.meets(&others) && !first.meets(&others) && !second.meets(&first));
        assert_eq!((second.bytes()[0], second.len(), second.address()), (1, PAGE_BYTES, first.address() + PAGE_BYTES));
        second.bytes_mut()[1] = 2;
        let whole = first.join(second).join(others);
        assert!(whole.is_whole());
        assert_eq!(whole.bytes()[PAGE_BYTES..][..3], [1, 2, 0]);
    }

    #[test]
    fn ranges_of_two_mappings_never_meet() {
        let (a, b) = (Range::map(PAGE_BYTES).unwrap(), Range::map(PAGE_BYTES).unwrap());
        assert!(!a.meets(&b) && !b.meets(&a));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_discarded_is_gone_and_what_lies_beside_it_is_not() {
        let mut whole = Range::map(3 * PAGE_BYTES).unwrap();
        whole.bytes_mut().fill(7);
        let (first, rest) = whole.split(PAGE_BYTES);
        let (mut second, third) = rest.split(PAGE_BYTES);
        second.discard();
        assert!(second.bytes().iter().all(|it| *it == 0));
        assert!(first.bytes().iter().chain(third.bytes()).all(|it| *it == 7));
    }
}

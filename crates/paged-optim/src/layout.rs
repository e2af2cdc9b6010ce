//! Where an element's state lives: the one place that knows what a page looks like.
//!
//! The elements of all parameters stand in one row, in the order of registration. Page `p` holds the state of elements
//! `p * E .. (p + 1) * E`, both moments of each, first all `m`, then all `v`:
//!
//! ```text
//!  page 0: m[0..E] v[0..E] | page 1: m[E..2E] v[E..2E] | ... | last page: as many as are left
//! ```
//!
//! Keeping both moments of an element in one page means that a step needs one page at a time, so that any budget of one
//! page or more works. Other state formats (8-bit codes with their scales) change this file and the update, nothing else:
//! the arena and the policy move words and do not look inside.

use std::ops::Range;

use crate::{Moment, ParamSpec};

/// Bytes of state of one element: two moments in f32.
pub(crate) const BYTES_PER_ELEMENT: usize = 8;
/// Words (of four bytes) of state of one element.
const WORDS_PER_ELEMENT: usize = 2;

/// The arena's geometry.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// First element of each parameter, and the total at the end.
    starts: Vec<usize>,
    page_elements: usize,
}

/// A part of a parameter's state that lies within one page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) page: usize,
    /// Elements, counted from the page's first.
    pub(crate) within: Range<usize>,
    /// First element, counted from the parameter's first.
    pub(crate) offset: usize,
}

impl Layout {
    /// Pages of `page_bytes`; `None` when the total does not fit the address space.
    pub(crate) fn new(specs: &[ParamSpec], page_bytes: usize) -> Option<Self> {
        let mut starts = vec![0usize];
        for spec in specs {
            starts.push(starts[starts.len() - 1].checked_add(spec.len)?);
        }
        let total = starts[starts.len() - 1];
        total.checked_mul(BYTES_PER_ELEMENT)?.checked_add(page_bytes)?;
        // A state smaller than a page is one page of its own size.
        let page_elements = (page_bytes / BYTES_PER_ELEMENT).min(total).max(1);
        Some(Self { starts, page_elements })
    }

    pub(crate) fn elements(&self) -> usize {
        self.starts[self.starts.len() - 1]
    }

    pub(crate) fn state_bytes(&self) -> usize {
        self.elements() * BYTES_PER_ELEMENT
    }

    pub(crate) fn pages(&self) -> usize {
        self.elements().div_ceil(self.page_elements)
    }

    /// Elements whose state is in `page`.
    pub(crate) fn page_len(&self, page: usize) -> usize {
        self.page_elements.min(self.elements() - page * self.page_elements)
    }

    /// Words that `page` occupies.
    pub(crate) fn page_words(&self, page: usize) -> usize {
        self.page_len(page) * WORDS_PER_ELEMENT
    }

    /// Words of a frame: of the largest page.
    pub(crate) fn frame_words(&self) -> usize {
        self.page_elements * WORDS_PER_ELEMENT
    }

    /// The pieces of a parameter's state, ascending.
    pub(crate) fn spans(&self, param: usize) -> impl Iterator<Item = Span> + use<> {
        let (start, end, size) = (self.starts[param], self.starts[param + 1], self.page_elements);
        let mut at = start;
        std::iter::from_fn(move || {
            (at < end).then(|| {
                let page = at / size;
                let stop = end.min((page + 1) * size);
                let span = Span { page, within: at - page * size..stop - page * size, offset: at - start };
                at = stop;
                span
            })
        })
    }

    /// Where one moment of `within` stands among the words of `page`.
    pub(crate) fn words(&self, page: usize, moment: Moment, within: Range<usize>) -> Range<usize> {
        let lane = match moment {
            Moment::First => 0,
            Moment::Second => self.page_len(page),
        };
        lane + within.start..lane + within.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(lens: &[usize], page_bytes: usize) -> Layout {
        let specs: Vec<_> = lens.iter().map(|&len| ParamSpec { name: String::new(), len, decay: true }).collect();
        Layout::new(&specs, page_bytes).expect("fits")
    }

    #[test]
    fn spans_cover_each_parameter_once() {
        let l = layout(&[5, 0, 3, 9], 32); // four elements a page
        assert_eq!((l.pages(), l.page_len(4), l.page_words(4), l.state_bytes()), (5, 1, 2, 136));
        let got: Vec<_> = (0..4).flat_map(|p| l.spans(p)).map(|s| (s.page, s.within, s.offset)).collect();
        let want = vec![(0, 0..4, 0), (1, 0..1, 4), (1, 1..4, 0), (2, 0..4, 0), (3, 0..4, 4), (4, 0..1, 8)];
        assert_eq!(got, want);
    }

    #[test]
    fn lanes_do_not_overlap_in_a_short_page() {
        let l = layout(&[6], 32);
        assert_eq!(l.words(1, Moment::First, 0..2), 0..2);
        assert_eq!(l.words(1, Moment::Second, 0..2), 2..4);
    }

    #[test]
    fn a_small_state_is_one_page_and_none_is_no_page() {
        assert_eq!((layout(&[3], 1 << 20).pages(), layout(&[3], 1 << 20).frame_words()), (1, 6));
        assert_eq!(layout(&[], 1 << 20).pages(), 0);
    }

    #[test]
    fn a_total_beyond_the_address_space_is_refused() {
        let spec = |n: usize| ParamSpec { name: String::new(), len: n, decay: true };
        assert!(Layout::new(&[spec(usize::MAX), spec(2)], 64).is_none());
        assert!(Layout::new(&[spec(usize::MAX / 4)], 64).is_none());
    }
}

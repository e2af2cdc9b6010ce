//! Where an element's state lives: the one place that knows what a page looks like.
//!
//! The state of all parameters stands in one row, in the order of registration, cut into pages. What a page holds of one
//! parameter is a span, first all of one part, then all of the next:
//!
//! ```text
//!  F32:         m[0..n] v[0..n]
//!  Blockwise8:  codes of m, codes of v (a byte each, 256 a block), absmax of m, absmax of v (one a block)
//! ```
//!
//! Keeping all parts of an element in one page means that a step needs one page at a time, so that any budget of one page or
//! more works. Blocks are never cut. The arena and the policy move words and do not look inside.

use std::{ops::Range, sync::Arc};

use crate::{ParamSpec, StateFormat, StatePart, format::BLOCK};

/// Bytes of a word, what the arena counts in.
pub(crate) const WORD: usize = 4;

/// The arena's geometry. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    spans: Arc<[Span]>,
    /// Words of each page that are in use.
    page_words: Arc<[usize]>,
    /// The first span of each parameter, and the end.
    first_of_param: Arc<[usize]>,
    /// The first span of each page, and the end.
    first_of_page: Arc<[usize]>,
    frame_words: usize,
}

/// A part of a parameter's state that lies within one page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) page: usize,
    pub(crate) param: usize,
    pub(crate) format: StateFormat,
    /// First word, counted from the page's.
    at: usize,
    /// First element, counted from the parameter's.
    pub(crate) offset: usize,
    /// Elements.
    pub(crate) len: usize,
}

impl Span {
    /// Words of all parts together.
    pub(crate) fn words(&self) -> usize {
        self.format.bytes(self.len) / WORD
    }

    /// Where a part stands among the bytes of the page.
    pub(crate) fn bytes(&self, part: StatePart) -> Range<usize> {
        let blocks = self.len.div_ceil(BLOCK);
        let (start, len) = match (self.format, part) {
            (StateFormat::F32, StatePart::First) => (0, WORD * self.len),
            (StateFormat::F32, _) => (WORD * self.len, WORD * self.len),
            (_, StatePart::First) => (0, self.len),
            (_, StatePart::Second) => (blocks * BLOCK, self.len),
            (_, StatePart::FirstAbsmax) => (2 * blocks * BLOCK, WORD * blocks),
            (_, StatePart::SecondAbsmax) => (2 * blocks * BLOCK + WORD * blocks, WORD * blocks),
        };
        let start = WORD * self.at + start;
        start..start + len
    }

    /// The first element of the part's own tensor that is here.
    pub(crate) fn first(&self, part: StatePart) -> usize {
        if part.is_absmax() { self.offset / BLOCK } else { self.offset }
    }
}

impl Layout {
    /// Pages of `page_bytes`, enough for a block; `None` when the total does not fit the address space.
    pub(crate) fn new(specs: &[ParamSpec], page_bytes: usize) -> Option<Self> {
        let mut total = 0usize;
        for spec in specs {
            total = total.checked_add(spec.state.checked_bytes(spec.len)?)?;
        }
        total.checked_add(page_bytes)?;
        // A state smaller than a page is one page of its own size.
        let frame_words = page_bytes.min(total) / WORD;
        let (mut spans, mut page_words, mut used) = (Vec::new(), Vec::new(), 0);
        let (mut first_of_param, mut first_of_page) = (Vec::new(), vec![0]);
        for (param, spec) in specs.iter().enumerate() {
            first_of_param.push(spans.len());
            let mut offset = 0;
            while offset < spec.len {
                let len = spec.state.elements((frame_words - used) * WORD).min(spec.len - offset);
                if len == 0 {
                    page_words.push(std::mem::take(&mut used));
                    first_of_page.push(spans.len());
                    continue;
                }
                let span = Span { page: page_words.len(), param, format: spec.state, at: used, offset, len };
                used += span.words();
                offset += len;
                spans.push(span);
            }
        }
        if used > 0 {
            page_words.push(used);
            first_of_page.push(spans.len());
        }
        first_of_param.push(spans.len());
        let (spans, page_words) = (spans.into(), page_words.into());
        let (first_of_param, first_of_page) = (first_of_param.into(), first_of_page.into());
        Some(Self { spans, page_words, first_of_param, first_of_page, frame_words })
    }

    pub(crate) fn state_bytes(&self) -> usize {
        self.page_words.iter().sum::<usize>() * WORD
    }

    pub(crate) fn pages(&self) -> usize {
        self.page_words.len()
    }

    /// Words that `page` occupies.
    pub(crate) fn page_words(&self, page: usize) -> usize {
        self.page_words[page]
    }

    /// Words of a frame: of the largest page.
    pub(crate) fn frame_words(&self) -> usize {
        self.frame_words
    }

    /// The pieces of a parameter's state, ascending.
    pub(crate) fn of_param(&self, param: usize) -> &[Span] {
        &self.spans[self.first_of_param[param]..self.first_of_param[param + 1]]
    }

    /// What a page holds, in order.
    pub(crate) fn of_page(&self, page: usize) -> &[Span] {
        &self.spans[self.first_of_page[page]..self.first_of_page[page + 1]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(len: usize, state: StateFormat) -> ParamSpec {
        ParamSpec { name: String::new(), len, decay: true, state }
    }

    fn layout(lens: &[usize], page_bytes: usize) -> Layout {
        let specs: Vec<_> = lens.iter().map(|&len| spec(len, StateFormat::F32)).collect();
        Layout::new(&specs, page_bytes).expect("fits")
    }

    #[test]
    fn spans_cover_each_parameter_once() {
        let l = layout(&[5, 0, 3, 9], 32); // four elements a page
        assert_eq!((l.pages(), l.page_words(4), l.state_bytes()), (5, 2, 136));
        let got: Vec<_> = (0..4).flat_map(|p| l.of_param(p)).map(|s| (s.page, s.at, s.offset, s.len)).collect();
        let want = vec![(0, 0, 0, 4), (1, 0, 4, 1), (1, 2, 0, 3), (2, 0, 0, 4), (3, 0, 4, 4), (4, 0, 8, 1)];
        assert_eq!(got, want);
        let by_page: Vec<_> = (0..5).flat_map(|p| l.of_page(p)).collect();
        assert_eq!(by_page, (0..4).flat_map(|p| l.of_param(p)).collect::<Vec<_>>());
    }

    #[test]
    fn blocks_are_whole_and_parts_do_not_overlap() {
        let specs = [spec(10, StateFormat::F32), spec(700, StateFormat::Blockwise8), spec(3, StateFormat::F32)];
        let l = Layout::new(&specs, 1200).expect("fits");
        // 80 bytes, then two blocks of 520; the third, of 188 elements, and the last parameter on the next page.
        assert_eq!((l.pages(), l.page_words(0), l.page_words(1)), (2, 280, 136));
        let spans = l.of_param(1);
        assert_eq!(
            spans.iter().map(|s| (s.page, s.at, s.offset, s.len)).collect::<Vec<_>>(),
            [(0, 20, 0, 512), (1, 0, 512, 188)]
        );
        let ranges: Vec<_> = StatePart::of(StateFormat::Blockwise8).iter().map(|&p| spans[1].bytes(p)).collect();
        assert_eq!(ranges, [0..188, 256..444, 512..516, 516..520]);
        assert_eq!(spans[1].first(StatePart::SecondAbsmax), 2);
    }

    #[test]
    fn a_small_state_is_one_page_and_none_is_no_page() {
        assert_eq!((layout(&[3], 1 << 20).pages(), layout(&[3], 1 << 20).frame_words()), (1, 6));
        assert_eq!(layout(&[], 1 << 20).pages(), 0);
    }

    #[test]
    fn a_total_beyond_the_address_space_is_refused() {
        for state in [StateFormat::F32, StateFormat::Blockwise8] {
            assert!(Layout::new(&[spec(usize::MAX, state), spec(2, state)], 1024).is_none());
        }
        assert!(Layout::new(&[spec(usize::MAX / 4, StateFormat::F32)], 64).is_none());
    }
}

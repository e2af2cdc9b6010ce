//! What a batch looks like, said once: the sequences of a flat row of tokens, one after the other, with no padding between them.
//!
//! Made once a micro-batch on the host; each op asks for the copy on its device, which is made once as well. Several short texts in
//! one row (packing), a batch of unequal texts, the prompts of many users and the next tokens of many texts are all of this form.

use crate::kv_pages::{KvPages, PAGE};
use halfbyte_cuda::Gpu;
use halfbyte_tensor::{Device, Error, Result, Tensor, cuda};
use std::sync::{Arc, OnceLock};

/// One sequence: rows of the batch, and the keys they meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its first row in the batch.
    pub first: usize,
    /// Its rows.
    pub count: usize,
    /// The row of its first key in the batch itself; of a sequence that goes on from a cache, which of the [pages](Layout::pages) its first
    /// is.
    pub first_key: usize,
    /// Keys before its first row: the position of that row.
    pub past: usize,
}

/// The sequences of a batch. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Layout(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    segments: Vec<Segment>,
    positions: Vec<u32>,
    longest: usize,
    furthest: usize,
    pages: Option<Pages>,
    positions_on_gpu: OnceLock<Tensor>,
    segments_on_gpu: OnceLock<Tensor>,
}

/// The pages of sequences that go on from a cache.
#[derive(Debug)]
struct Pages {
    /// Their numbers, of one sequence after the other, from its first token on.
    numbers: Vec<u32>,
    met: OnceLock<Met>,
}

/// What was found when a layout was first used with pages.
#[derive(Debug)]
struct Met {
    /// Whose they are.
    id: u64,
    /// How many each sequence has forgotten.
    forgotten: Vec<usize>,
}

/// In place of the number of a page whose tokens no query sees any more.
pub const FORGOTTEN: u32 = u32::MAX;

impl Layout {
    /// Sequences of these lengths, each from position 0, attending to themselves.
    ///
    /// # Errors
    /// If there is no sequence, or one is empty.
    pub fn new(lengths: &[usize]) -> Result<Layout> {
        let mut first = 0;
        let segments = lengths.iter().map(|&count| {
            let it = Segment { first, count, first_key: first, past: 0 };
            first += count;
            it
        });
        Layout::of(segments.collect(), None)
    }

    /// New rows of sequences whose earlier keys and values lie in a cache: for each the number of new rows, of rows before them, and the
    /// pages of all of them, [`PAGE`] rows a page from the first on, of which some at the beginning may be [`FORGOTTEN`]. A layout that
    /// no cache is used with needs no pages.
    ///
    /// # Errors
    /// If there is no sequence, or one is empty.
    pub fn resumed(sequences: &[(usize, usize, &[u32])]) -> Result<Layout> {
        let (mut first, mut first_key) = (0, 0);
        let segments = sequences.iter().map(|&(count, past, pages)| {
            let it = Segment { first, count, first_key, past };
            first += count;
            first_key += pages.len();
            it
        });
        let numbers = sequences.iter().flat_map(|it| it.2).copied().collect();
        Layout::of(segments.collect(), Some(Pages { numbers, met: OnceLock::new() }))
    }

    fn of(segments: Vec<Segment>, pages: Option<Pages>) -> Result<Layout> {
        if segments.is_empty() || segments.iter().any(|it| it.count == 0) {
            let lengths: Vec<usize> = segments.iter().map(|it| it.count).collect();
            let message =
                format!("expected at least one sequence, each of at least one token, got lengths {lengths:?}");
            return Err(Error::invalid("layout", message));
        }
        let positions = segments.iter().flat_map(|it| it.past as u32..(it.past + it.count) as u32).collect();
        let longest = segments.iter().map(|it| it.count).max().unwrap_or(0);
        let furthest = segments.iter().map(|it| it.past + it.count).max().unwrap_or(0);
        let (positions_on_gpu, segments_on_gpu) = (OnceLock::new(), OnceLock::new());
        Ok(Layout(Arc::new(Inner { segments, positions, longest, furthest, pages, positions_on_gpu, segments_on_gpu })))
    }

    /// The sequences, in the order of their rows.
    pub fn segments(&self) -> &[Segment] {
        &self.0.segments
    }

    /// The number of sequences.
    pub fn sequences(&self) -> usize {
        self.0.segments.len()
    }

    /// The number of rows.
    pub fn tokens(&self) -> usize {
        self.0.positions.len()
    }

    /// The position of every row in its sequence.
    pub fn positions(&self) -> &[u32] {
        &self.0.positions
    }

    /// Rows of the longest sequence.
    pub fn longest(&self) -> usize {
        self.0.longest
    }

    /// One more than the highest position.
    pub fn furthest(&self) -> usize {
        self.0.furthest
    }

    /// The pages of a cache that the sequences go on from, one sequence after the other; none where they attend to themselves.
    pub fn pages(&self) -> Option<&[u32]> {
        self.0.pages.as_ref().map(|it| it.numbers.as_slice())
    }

    /// Pairs of a query and a key that it sees, over all sequences: what attention's products are counted by.
    pub fn visible_pairs(&self, window: Option<usize>) -> usize {
        let seen = |position: usize| window.map_or(position + 1, |it| it.min(position + 1));
        self.0.positions.iter().map(|it| seen(*it as usize)).sum()
    }

    /// Sends positions and segments of a layout without pages to a device now, not when they are first needed there.
    ///
    /// # Errors
    /// If a GPU reports one.
    pub fn send(&self, device: &Device) -> Result<()> {
        if let Device::Cuda(gpu) = device {
            self.positions_on(gpu)?;
            self.segments_on(gpu)?;
        }
        Ok(())
    }

    /// Keys that some query sees, over all sequences.
    pub(crate) fn visible_keys(&self, window: Option<usize>) -> usize {
        self.0.segments.iter().map(|it| it.past + it.count - first_seen(it, window)).sum()
    }

    /// The page that holds a token of a sequence.
    pub(crate) fn page_of(&self, segment: &Segment, token: usize) -> u32 {
        self.0.pages.as_ref().map_or(FORGOTTEN, |it| it.numbers[segment.first_key + token / PAGE])
    }

    /// Refuses pages in which the sequences do not have a place for their new rows and all that these see, within a window or without.
    ///
    /// A layout stays with the pages that it was first used with, of which a GPU is told the addresses.
    pub(crate) fn check_pages(&self, op: &'static str, pages: &KvPages, window: Option<usize>) -> Result<()> {
        let refuse = |message: &str| Err(Error::invalid(op, message));
        let Some(own) = &self.0.pages else {
            return refuse(
                "expected a layout whose sequences go on from a cache, got one whose sequences meet their own keys",
            );
        };
        if own.met.get().is_none() {
            let forgotten = self.forgotten(&own.numbers, pages.len());
            let Some(forgotten) = forgotten else {
                let (needed, there) = (self.furthest().div_ceil(PAGE), pages.len());
                let message =
                    format!("expected up to {needed} pages a sequence, of the {there} that there are, got {own:?}");
                return refuse(&message);
            };
            let _ = own.met.set(Met { id: pages.id(), forgotten });
        }
        let Some(met) = own.met.get().filter(|it| it.id == pages.id()) else {
            return refuse("the layout was used with the pages of another cache before; make one for each");
        };
        let mut all = self.0.segments.iter().zip(&met.forgotten);
        match all.find(|(segment, forgotten)| *forgotten * PAGE > first_seen(segment, window)) {
            Some((segment, _)) => refuse(&format!("a page was forgotten that {segment:?} sees")),
            None => Ok(()),
        }
    }

    /// How many pages each sequence has forgotten, if it has all others and they are there.
    fn forgotten(&self, numbers: &[u32], there: usize) -> Option<Vec<usize>> {
        let segments = &self.0.segments;
        let ends = segments.iter().skip(1).map(|it| it.first_key).chain([numbers.len()]);
        let of = |(segment, end): (&Segment, usize)| {
            let own = &numbers[segment.first_key..end];
            let forgotten = own.iter().take_while(|it| **it == FORGOTTEN).count();
            let all = own.len() >= (segment.past + segment.count).div_ceil(PAGE);
            (all && own[forgotten..].iter().all(|it| (*it as usize) < there)).then_some(forgotten)
        };
        segments.iter().zip(ends).map(of).collect()
    }

    /// Sends positions, segments and pages of a layout with pages to a device now, not when they are first needed there.
    ///
    /// # Errors
    /// If a GPU reports one, or the layout does not fit the pages, within a window or without.
    pub fn send_with(&self, device: &Device, pages: &KvPages, window: Option<usize>) -> Result<()> {
        if let Device::Cuda(gpu) = device {
            self.check_pages("layout", pages, window)?;
            self.positions_on(gpu)?;
            self.segments_and_pages_on(gpu, pages)?;
        }
        Ok(())
    }

    /// The positions on a GPU, `(tokens)` u32.
    pub(crate) fn positions_on(&self, gpu: &Arc<Gpu>) -> Result<&Tensor> {
        crate::ids::once(&self.0.positions_on_gpu, || cuda::upload_u32(gpu, &self.0.positions))
    }

    /// The segments on a GPU, `(sequences, 4)` u32: first, count, first key, past.
    pub(crate) fn segments_on(&self, gpu: &Arc<Gpu>) -> Result<&Tensor> {
        crate::ids::once(&self.0.segments_on_gpu, || cuda::upload_u32(gpu, &self.segment_words()))
    }

    /// The segments on a GPU, and behind them the address of every page, two words each, 0 for one that was forgotten. The pages were
    /// [checked](Self::check_pages).
    pub(crate) fn segments_and_pages_on(&self, gpu: &Arc<Gpu>, pages: &KvPages) -> Result<&Tensor> {
        crate::ids::once(&self.0.segments_on_gpu, || {
            let address = |it: &u32| if *it == FORGOTTEN { 0 } else { pages.address(*it) };
            let addresses = self.pages().unwrap_or_default().iter().map(address);
            let mut words = self.segment_words();
            words.extend(addresses.flat_map(|it| [it as u32, (it >> 32) as u32]));
            cuda::upload_u32(gpu, &words)
        })
    }

    fn segment_words(&self) -> Vec<u32> {
        let of = |it: &Segment| [it.first, it.count, it.first_key, it.past].map(|it| it as u32);
        self.0.segments.iter().flat_map(of).collect()
    }
}

/// The first key that some row of a sequence sees.
fn first_seen(segment: &Segment, window: Option<usize>) -> usize {
    window.map_or(0, |it| (segment.past + 1).saturating_sub(it))
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_tensor::DType;

    #[test]
    fn sequences_lie_one_after_the_other_and_count_from_zero() {
        let it = Layout::new(&[3, 1, 2]).unwrap();
        assert_eq!(it.positions(), [0, 1, 2, 0, 0, 1]);
        assert_eq!(it.segments()[2], Segment { first: 4, count: 2, first_key: 4, past: 0 });
        assert_eq!((it.tokens(), it.sequences(), it.longest(), it.furthest(), it.pages()), (6, 3, 3, 3, None));
        assert_eq!(it.visible_pairs(None), 6 + 1 + 3);
        assert_eq!(it.visible_pairs(Some(2)), 5 + 1 + 3);
    }

    #[test]
    fn resumed_sequences_count_on_and_meet_the_keys_of_their_pages() {
        let it = Layout::resumed(&[(1, 70, &[5, 2]), (2, 0, &[3])]).unwrap();
        assert_eq!(it.positions(), [70, 0, 1]);
        assert_eq!(it.segments()[1], Segment { first: 1, count: 2, first_key: 2, past: 0 });
        assert_eq!((it.longest(), it.furthest(), it.pages()), (2, 71, Some(&[5, 2, 3][..])));
        let [first, second] = [0, 1].map(|i| it.segments()[i]);
        assert_eq!([it.page_of(&first, 63), it.page_of(&first, 64), it.page_of(&second, 1)], [5, 2, 3]);
        assert_eq!((it.visible_keys(None), it.visible_keys(Some(5))), (71 + 2, 5 + 2));
    }

    #[test]
    fn empty_sequences_are_refused() {
        assert!(Layout::new(&[]).is_err());
        let message = Layout::new(&[2, 0]).unwrap_err().to_string();
        assert_eq!(message, "layout: expected at least one sequence, each of at least one token, got lengths [2, 0]");
    }

    #[test]
    fn pages_that_do_not_hold_the_sequences_are_refused() {
        let pages = |count: usize| {
            let mut it = KvPages::new(1, 4);
            it.grow(&Tensor::zeros(&[1, 4], DType::F32), count);
            it
        };
        let (two, other) = (pages(2), pages(2));
        let asked = |layout: &Layout, pages: &KvPages, window: Option<usize>| {
            layout.check_pages("asked", pages, window).map_err(|e| e.to_string())
        };
        let layout = |numbers: &[u32]| Layout::resumed(&[(1, 70, numbers)]).unwrap();
        let it = layout(&[1, 0]);
        assert_eq!(asked(&it, &two, None), Ok(()));
        assert!(asked(&it, &other, None).unwrap_err().contains("another cache"));
        assert!(asked(&layout(&[1]), &two, None).unwrap_err().contains("up to 2 pages"));
        assert!(asked(&layout(&[1, 2]), &two, None).unwrap_err().contains("of the 2 that there are"));
        assert!(asked(&layout(&[0, FORGOTTEN]), &two, None).is_err());
        let it = layout(&[FORGOTTEN, 1]);
        // The query at 70 sees from 64 on.
        assert_eq!(asked(&it, &two, Some(7)), Ok(()));
        assert!(asked(&it, &two, Some(8)).unwrap_err().contains("was forgotten"));
        assert!(asked(&it, &two, None).is_err());
        assert!(asked(&Layout::new(&[1]).unwrap(), &two, None).unwrap_err().contains("their own keys"));
    }
}

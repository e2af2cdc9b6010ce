//! What a batch looks like, said once: the sequences of a flat row of tokens, one after the other, with no padding between them.
//!
//! Made once a micro-batch on the host; each op asks for the copy on its device, which is made once as well. Several short texts in
//! one row (packing), a batch of unequal texts, the prompts of many users and the next tokens of many texts are all of this form.

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
    /// The row of its first key: in the batch itself, or in a cache.
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
    on_gpu: OnceLock<OnGpu>,
}

#[derive(Debug)]
struct OnGpu {
    positions: Tensor,
    segments: Tensor,
}

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
        Layout::of(segments.collect())
    }

    /// New rows of sequences whose earlier keys and values lie in a cache: for each the number of new rows, of rows before them, and the
    /// row of the cache where the sequence's keys begin.
    ///
    /// # Errors
    /// If there is no sequence, or one is empty.
    pub fn resumed(sequences: &[(usize, usize, usize)]) -> Result<Layout> {
        let mut first = 0;
        let segments = sequences.iter().map(|&(count, past, first_key)| {
            let it = Segment { first, count, first_key, past };
            first += count;
            it
        });
        Layout::of(segments.collect())
    }

    fn of(segments: Vec<Segment>) -> Result<Layout> {
        if segments.is_empty() || segments.iter().any(|it| it.count == 0) {
            let lengths: Vec<usize> = segments.iter().map(|it| it.count).collect();
            let message =
                format!("expected at least one sequence, each of at least one token, got lengths {lengths:?}");
            return Err(Error::invalid("layout", message));
        }
        let positions = segments.iter().flat_map(|it| it.past as u32..(it.past + it.count) as u32).collect();
        let longest = segments.iter().map(|it| it.count).max().unwrap_or(0);
        let furthest = segments.iter().map(|it| it.past + it.count).max().unwrap_or(0);
        Ok(Layout(Arc::new(Inner { segments, positions, longest, furthest, on_gpu: OnceLock::new() })))
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

    /// One more than the last row of keys that a sequence meets.
    pub fn key_rows(&self) -> usize {
        self.0.segments.iter().map(|it| it.first_key + it.past + it.count).max().unwrap_or(0)
    }

    /// Pairs of a query and a key that it sees, over all sequences: what attention's products are counted by.
    pub fn visible_pairs(&self, window: Option<usize>) -> usize {
        let seen = |position: usize| window.map_or(position + 1, |it| it.min(position + 1));
        self.0.positions.iter().map(|it| seen(*it as usize)).sum()
    }

    /// Sends it to a device now, not when it is first needed there.
    ///
    /// # Errors
    /// If a GPU reports one.
    pub fn send(&self, device: &Device) -> Result<()> {
        if let Device::Cuda(gpu) = device {
            self.on(gpu)?;
        }
        Ok(())
    }

    /// The positions on a GPU, `(tokens)` u32.
    pub(crate) fn positions_on(&self, gpu: &Arc<Gpu>) -> Result<&Tensor> {
        Ok(&self.on(gpu)?.positions)
    }

    /// The segments on a GPU, `(sequences, 4)` u32: first, count, first key, past.
    pub(crate) fn segments_on(&self, gpu: &Arc<Gpu>) -> Result<&Tensor> {
        Ok(&self.on(gpu)?.segments)
    }

    fn on(&self, gpu: &Arc<Gpu>) -> Result<&OnGpu> {
        crate::ids::once(&self.0.on_gpu, || {
            let of = |it: &Segment| [it.first, it.count, it.first_key, it.past].map(|it| it as u32);
            let segments: Vec<u32> = self.0.segments.iter().flat_map(of).collect();
            let positions = cuda::upload_u32(gpu, &self.0.positions)?;
            Ok(OnGpu { positions, segments: cuda::upload_u32(gpu, &segments)? })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_lie_one_after_the_other_and_count_from_zero() {
        let it = Layout::new(&[3, 1, 2]).unwrap();
        assert_eq!(it.positions(), [0, 1, 2, 0, 0, 1]);
        assert_eq!(it.segments()[2], Segment { first: 4, count: 2, first_key: 4, past: 0 });
        assert_eq!((it.tokens(), it.sequences(), it.longest(), it.furthest(), it.key_rows()), (6, 3, 3, 3, 6));
        assert_eq!(it.visible_pairs(None), 6 + 1 + 3);
        assert_eq!(it.visible_pairs(Some(2)), 5 + 1 + 3);
    }

    #[test]
    fn resumed_sequences_count_on_and_meet_the_keys_of_their_cache() {
        let it = Layout::resumed(&[(1, 7, 0), (2, 0, 64)]).unwrap();
        assert_eq!(it.positions(), [7, 0, 1]);
        assert_eq!(it.segments()[1], Segment { first: 1, count: 2, first_key: 64, past: 0 });
        assert_eq!((it.longest(), it.furthest(), it.key_rows()), (2, 8, 66));
    }

    #[test]
    fn empty_sequences_are_refused() {
        assert!(Layout::new(&[]).is_err());
        let message = Layout::new(&[2, 0]).unwrap_err().to_string();
        assert_eq!(message, "layout: expected at least one sequence, each of at least one token, got lengths [2, 0]");
    }
}

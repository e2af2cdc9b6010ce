//! Keys and values of the tokens that sequences have seen, in pages of [`PAGE`] tokens: which pages a sequence has, a [`Layout`] says.
//!
//! A page holds all layers, `(layers, 2, PAGE, channels)`: of every layer the keys and behind them the values. Pages are made some at a
//! time, in a tensor of their own, and stay where they are; so a device finds them by their addresses.

mod cuda;
#[cfg(test)]
pub(crate) mod tests;

use crate::{
    layout::{Layout, Segment},
    place::{Cost, fill},
};
use halfbyte_autograd::Result;
use halfbyte_tensor::{Device, Element, Error, Place, Tensor, with_float};
use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Tokens of a page: so many that no tile of keys begins within one and ends in another, unless it is whole pages, and so few that a text has
/// little that it does not use. As in the kernels.
pub const PAGE: usize = 64;

/// Bytes up to which pages are made beyond those that are wanted, so that they come in pieces of a size for which memory has little waste.
const RESERVE: usize = 16 << 20;

/// Memory of pages, numbered from 0, for layers of one width.
#[derive(Debug)]
pub struct KvPages {
    /// Nobody else's, for layouts to know these pages again.
    id: u64,
    layers: usize,
    channels: usize,
    /// Each `(pages * layers * 2 * PAGE, channels)`.
    slabs: Vec<Tensor>,
    /// In which slab each page is, and the how manieth there.
    places: Vec<(u32, u32)>,
}

/// Keys, or values, of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    Keys,
    Values,
}

impl KvPages {
    /// No page yet, for so many layers with so many channels of keys and as many of values.
    pub fn new(layers: usize, channels: usize) -> KvPages {
        static MADE: AtomicU64 = AtomicU64::new(0);
        KvPages { id: MADE.fetch_add(1, Ordering::Relaxed), layers, channels, slabs: Vec::new(), places: Vec::new() }
    }

    /// The number of pages.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Where they are, if there is one.
    pub fn device(&self) -> Option<Device> {
        self.slabs.first().map(Tensor::device)
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.slabs.iter().map(Tensor::bytes).sum()
    }

    /// Makes pages until there are so many: the first ones on the device of `like` and in its dtype, the others beside them. What the pages
    /// that were there hold stays where it is.
    pub fn grow(&mut self, like: &Tensor, count: usize) {
        let missing = count.saturating_sub(self.len());
        if missing == 0 {
            return;
        }
        let like = self.slabs.first().unwrap_or(like);
        let rows = self.rows_a_page();
        let reserve = (self.len() / 8).min(RESERVE / (rows * self.channels * like.dtype().size()).max(1));
        let made = missing.max(reserve);
        let slab = like.scratch_like(&[made * rows, self.channels], like.dtype());
        let number = self.slabs.len() as u32;
        self.places.extend((0..made as u32).map(|it| (number, it)));
        self.slabs.push(slab);
    }

    /// As [`grow`](Self::grow), where there are pages already.
    ///
    /// # Panics
    /// If there is none.
    pub fn grow_on(&mut self, count: usize) {
        let like = self.slabs.first().cloned().expect("the first pages come with the first keys");
        self.grow(&like, count);
    }

    /// Copies what a page holds over another one.
    ///
    /// # Errors
    /// If a GPU reports one.
    ///
    /// # Panics
    /// If either is not there.
    pub fn copy(&mut self, from: u32, to: u32) -> Result<()> {
        let rows = self.rows_a_page();
        let (slab, at) = self.places[from as usize];
        let page = self.slabs[slab as usize].rows_at(at as usize * rows, rows)?;
        let (slab, at) = self.places[to as usize];
        Ok(self.slabs[slab as usize].put_rows(at as usize * rows, &page)?)
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn channels(&self) -> usize {
        self.channels
    }

    /// Where a page lies on a GPU.
    pub(crate) fn address(&self, page: u32) -> u64 {
        let (slab, at) = self.places[page as usize];
        let slab = &self.slabs[slab as usize];
        halfbyte_tensor::cuda::ptr(slab)
            + (at as usize * self.rows_a_page() * self.channels * slab.dtype().size()) as u64
    }

    /// Elements of a page before a layer's keys, behind which its values follow.
    pub(crate) fn offset(&self, layer: usize) -> usize {
        self.first_row(0, layer, Half::Keys) * self.channels
    }

    /// Bytes of the keys and values of so many tokens in one layer.
    pub(crate) fn bytes_of(&self, tokens: usize) -> usize {
        2 * tokens * self.channels * self.slabs.first().map_or(0, |it| it.dtype().size())
    }

    /// The rows from a token's on, up to the last that is wanted or that its page has.
    pub(crate) fn run<T: Element>(
        &self,
        (layout, segment): (&Layout, &Segment),
        (layer, half): (usize, Half),
        tokens: Range<usize>,
    ) -> &[T] {
        let (slab, at) = self.places[layout.page_of(segment, tokens.start) as usize];
        let first = self.first_row(at as usize, layer, half) + tokens.start % PAGE;
        let count = tokens.len().min(PAGE - tokens.start % PAGE);
        &self.slabs[slab as usize].data::<T>()[first * self.channels..][..count * self.channels]
    }

    /// Refuses a layer that is not there, pages that a layout does not fit, and what lies elsewhere than they do or has another dtype.
    pub(crate) fn check(
        &self,
        op: &'static str,
        at: &Tensor,
        layer: usize,
        (layout, window): (&Layout, Option<usize>),
    ) -> Result<()> {
        layout.check_pages(op, self, window)?;
        let slab = self.slabs.first().unwrap_or(at);
        let together = match (slab.place(), at.place()) {
            (Place::Host, Place::Host) | (Place::Dry(_), Place::Dry(_)) => true,
            (Place::Gpu(a), Place::Gpu(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        if layer >= self.layers || !together || slab.dtype() != at.dtype() {
            let message = format!(
                "expected pages of more than {layer} layers, beside the operands and in {} as they, got {} layers in {}",
                at.dtype(),
                self.layers,
                slab.dtype()
            );
            return Err(Error::invalid(op, message).into());
        }
        Ok(())
    }

    fn rows_a_page(&self) -> usize {
        self.layers * 2 * PAGE
    }

    fn first_row(&self, at: usize, layer: usize, half: Half) -> usize {
        at * self.rows_a_page() + (2 * layer + half as usize) * PAGE
    }

    /// Copies rows of a batch to the places of tokens.
    fn put<T: Element>(&mut self, (layout, segment): (&Layout, &Segment), (layer, half): (usize, Half), rows: &Tensor) {
        let (channels, end) = (self.channels, segment.past + segment.count);
        let mut token = segment.past;
        while token < end {
            let (slab, at) = self.places[layout.page_of(segment, token) as usize];
            let count = (end - token).min(PAGE - token % PAGE);
            let to = self.first_row(at as usize, layer, half) + token % PAGE;
            let from = segment.first + token - segment.past;
            let from = &rows.data::<T>()[from * channels..][..count * channels];
            self.slabs[slab as usize].data_mut::<T>()[to * channels..][..count * channels].copy_from_slice(from);
            token += count;
        }
    }
}

/// Writes the keys and values `rows (tokens, channels)` of a layout's new tokens where its sequences have them in a layer.
///
/// Fails if the rows do not fit the layout, or the layout does not fit the pages.
pub fn append_rows((pages, layer): (&mut KvPages, usize), rows: [&Tensor; 2], layout: &Layout) -> Result<()> {
    check_rows((pages, layer), rows, layout)?;
    let cost = Cost::of(0, &[rows[0], rows[1], rows[0], rows[1]]);
    let host = |pages: &mut &mut KvPages| {
        for (half, rows) in [Half::Keys, Half::Values].into_iter().zip(rows) {
            for it in layout.segments() {
                with_float!(rows.dtype(), T, pages.put::<T>((layout, it), (layer, half), rows));
            }
        }
        Ok(())
    };
    fill(rows[0], cost, pages, host, |gpu, pages| cuda::append(gpu, (pages, layer), rows, layout))?;
    Ok(())
}

/// Refuses rows that do not fit the layout or the pages, and pages that the layout does not fit.
pub(crate) fn check_rows((pages, layer): (&KvPages, usize), rows: [&Tensor; 2], layout: &Layout) -> Result<()> {
    for rows in rows {
        crate::product::check_float("cache rows", rows)?;
        let (tokens, channels) = (layout.tokens(), pages.channels);
        if rows.shape() != [tokens, channels] {
            let expected = format!("rows ({tokens}, {channels}), one a token of the layout");
            return Err(Error::shape("cache rows", expected, rows.shape()).into());
        }
        // A token sees itself.
        pages.check("cache rows", rows, layer, (layout, Some(1)))?;
    }
    Ok(())
}

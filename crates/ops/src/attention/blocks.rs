//! What forward and backward share: which rows, heads and keys a piece of work covers, its operands, and the small
//! products over them.
//!
//! A piece of work is a sequence and a key/value head with all its query heads, so that sums over queries (dk, dv) stay
//! within one piece and need no atomics. The query heads are stacked, row `h * block + i`, into one tall operand.

use super::AttentionShape;
use crate::{
    kv_pages::{Half, KvPages},
    layout::{Layout, Segment},
    product,
};
use halfbyte_matmul::{Dense, Element, Operand, Out, Product, matmul};
use halfbyte_tensor::{Float, Tensor};
use std::ops::Range;

/// Queries of a block.
pub(super) const QUERIES: usize = 64;
/// Keys of a block.
pub(super) const KEYS: usize = 128;

/// An element of activations, as a tensor and as an operand of a product.
pub(super) trait Activation: Float + Element {}
impl<T: Float + Element> Activation for T {}

/// The operands, row-major, and the sequences in them.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a, T> {
    pub(super) q: &'a [T],
    pub(super) k: Rows<'a, T>,
    pub(super) v: Rows<'a, T>,
    pub(super) shape: &'a AttentionShape,
    pub(super) layout: &'a Layout,
    /// A score a head that joins every softmax.
    pub(super) sinks: Option<&'a [f32]>,
}

/// The keys, or the values.
#[derive(Clone, Copy)]
pub(super) enum Rows<'a, T> {
    /// A row for each of the batch.
    Batch(&'a [T]),
    /// Of a layer of a cache.
    Pages(&'a KvPages, (usize, Half)),
}

/// A sequence and one of its key/value heads.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    pub(super) segment: Segment,
    pub(super) head: usize,
}

impl<'a, T: Float> Inputs<'a, T> {
    pub(super) fn new([q, k, v]: [&'a Tensor; 3], shape: &'a AttentionShape, layout: &'a Layout) -> Self {
        Inputs { q: q.data(), k: Rows::Batch(k.data()), v: Rows::Batch(v.data()), shape, layout, sinks: None }
    }

    /// Queries that meet the keys and values in a layer of a cache.
    pub(super) fn cached(
        q: &'a Tensor,
        (pages, layer): (&'a KvPages, usize),
        shape: &'a AttentionShape,
        layout: &'a Layout,
    ) -> Self {
        let [k, v] = [Half::Keys, Half::Values].map(|half| Rows::Pages(pages, (layer, half)));
        Inputs { q: q.data(), k, v, shape, layout, sinks: None }
    }

    pub(super) fn with_sinks(self, sinks: Option<&'a Tensor>) -> Self {
        Inputs { sinks: sinks.map(Tensor::data), ..self }
    }

    pub(super) fn piece(&self, i: usize) -> Piece {
        Piece { segment: self.layout.segments()[i / self.shape.kv_heads], head: i % self.shape.kv_heads }
    }

    /// Columns of all query heads of a piece.
    pub(super) fn width(&self) -> usize {
        self.shape.group() * self.shape.head_dim
    }

    /// The keys or values (whichever `x` holds) of a piece, from the first block that a query sees up to those of the last query:
    /// `(rows, head_dim)`. What no query sees of that block is zero.
    pub(super) fn keys(&self, x: Rows<'_, T>, piece: Piece) -> Vec<T> {
        let AttentionShape { kv_heads, head_dim: d, window, .. } = *self.shape;
        let (begin, end) = (piece.first_block(window), piece.segment.past + piece.segment.count);
        let mut rows = vec![T::default(); (end - begin) * d];
        for (first, run) in self.runs(x, piece.segment, piece.visible(0, window).start..end) {
            let count = run.len() / (kv_heads * d);
            gather(run, (kv_heads * d, piece.head * d), 0..count, (d, &mut rows[(first - begin) * d..][..count * d]));
        }
        rows
    }

    /// Rows of some keys or values of a sequence, as far as they lie one behind the other: each time the number of the first and the rows.
    #[inline(always)]
    pub(super) fn runs<'x>(
        &self,
        x: Rows<'x, T>,
        segment: Segment,
        all: Range<usize>,
    ) -> impl Iterator<Item = (usize, &'x [T])> + use<'x, 'a, T> {
        let (stride, layout) = (self.shape.kv_heads * self.shape.head_dim, self.layout);
        let mut next = all.start;
        std::iter::from_fn(move || {
            if next >= all.end {
                return None;
            }
            let first = next;
            let run = match x {
                Rows::Batch(x) => &x[(segment.first_key + first) * stride..][..(all.end - first) * stride],
                Rows::Pages(pages, of) => pages.run((layout, &segment), of, first..all.end),
            };
            next += run.len() / stride;
            Some((first, run))
        })
    }

    /// A block of rows of `x` (shaped as the queries) for all query heads of a piece, stacked `(group * block, d)`.
    pub(super) fn queries(&self, x: &[T], piece: Piece, block: Range<usize>, stacked: &mut Vec<T>) {
        let AttentionShape { heads, head_dim: d, .. } = *self.shape;
        let group = self.shape.group();
        stacked.resize(group * block.len() * d, T::default());
        let first = piece.segment.first;
        for (h, rows) in stacked.chunks_mut(block.len() * d).enumerate() {
            let column = (piece.head * group + h) * d;
            gather(x, (heads * d, column), first + block.start..first + block.end, (d, rows));
        }
    }
}

impl Piece {
    /// Where the first block of keys begins that a query sees.
    pub(super) fn first_block(&self, window: Option<usize>) -> usize {
        self.visible(0, window).start / KEYS * KEYS
    }

    /// The blocks of keys that any query of a block sees.
    pub(super) fn key_blocks(
        &self,
        block: &Range<usize>,
        window: Option<usize>,
    ) -> impl Iterator<Item = Range<usize>> + use<> {
        let first = self.visible(block.start, window).start / KEYS * KEYS;
        let end = self.visible(block.end - 1, window).end;
        (first..end).step_by(KEYS).map(move |it| it..end.min(it + KEYS))
    }

    /// Which of the keys of a block a query sees, relative to the block; perhaps none.
    pub(super) fn visible_in(&self, query: usize, window: Option<usize>, keys: &Range<usize>) -> Range<usize> {
        let all = self.visible(query, window);
        let (first, end) = (all.start.max(keys.start), all.end.min(keys.end));
        if first < end { first - keys.start..end - keys.start } else { 0..0 }
    }

    /// The keys that a query sees.
    pub(super) fn visible(&self, query: usize, window: Option<usize>) -> Range<usize> {
        let end = self.segment.past + query + 1;
        window.map_or(0, |it| end.saturating_sub(it))..end
    }
}

/// `0..count` in blocks.
pub(super) fn blocks(count: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..count).step_by(size).map(move |it| it..count.min(it + size))
}

/// Deals the columns of a `(tokens, kv_heads * width)` matrix out to its pieces: for each a slice of every row.
pub(super) fn deal<'a, T>(
    data: Option<&'a mut [T]>,
    (layout, kv_heads): (&Layout, usize),
    width: usize,
) -> Vec<Vec<&'a mut [T]>> {
    let mut pieces: Vec<Vec<&mut [T]>> = Vec::new();
    pieces.resize_with(layout.sequences() * kv_heads, Vec::new);
    let mut rows = data.into_iter().flat_map(|it| it.chunks_mut(kv_heads * width));
    for (segment, pieces) in layout.segments().iter().zip(pieces.chunks_mut(kv_heads)) {
        for row in rows.by_ref().take(segment.count) {
            for (piece, values) in pieces.iter_mut().zip(row.chunks_mut(width)) {
                piece.push(values);
            }
        }
    }
    pieces
}

/// Cuts numbers, one a row and query head, into those of each piece: `group` heads of `count` rows, one head after the other.
pub(super) fn deal_numbers<'a>(mut data: &'a mut [f32], inputs: (&Layout, &AttentionShape)) -> Vec<&'a mut [f32]> {
    let (layout, shape) = inputs;
    let mut pieces = Vec::with_capacity(layout.sequences() * shape.kv_heads);
    for segment in layout.segments() {
        for _ in 0..shape.kv_heads {
            let (piece, rest) = data.split_at_mut(shape.group() * segment.count);
            pieces.push(piece);
            data = rest;
        }
    }
    pieces
}

/// A row-major matrix `(rows, cols)` as an operand, perhaps transposed.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a, T> {
    data: &'a [T],
    cols: usize,
    transposed: bool,
}

impl<'a, T: Element> Matrix<'a, T> {
    pub(super) fn new(data: &'a [T], cols: usize) -> Self {
        Matrix { data, cols, transposed: false }
    }

    pub(super) fn t(self) -> Self {
        Matrix { transposed: true, ..self }
    }

    fn dense(&self) -> Dense<'a, T> {
        Dense::new(self.data.len() / self.cols, self.cols, self.data)
    }
}

/// `out = alpha a b`, added to what `out` holds if `accumulate`, as products over activations `T` are computed: for
/// bf16 the probabilities and their slopes are rounded to bf16 on the way in.
pub(super) fn multiply<T: Activation, A: Element, B: Element>(
    (a, b): (Matrix<'_, A>, Matrix<'_, B>),
    (alpha, accumulate): (f32, bool),
    out: &mut [f32],
) {
    let (da, db) = (a.dense(), b.dense());
    let operand = |source, transposed| {
        let it = Operand::new(source);
        if transposed { it.t() } else { it }
    };
    let product = Product::new(operand(&da, a.transposed), operand(&db, b.transposed), product::compute(T::DTYPE));
    matmul(&Product { alpha, accumulate, ..product }, Out::F32(out));
}

fn gather<T: Copy>(x: &[T], (stride, column): (usize, usize), rows: Range<usize>, (d, out): (usize, &mut [T])) {
    for (row, out) in rows.zip(out.chunks_mut(d)) {
        out.copy_from_slice(&x[row * stride + column..][..d]);
    }
}

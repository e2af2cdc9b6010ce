//! Packing: an operand's elements in the order in which the inner loop reads them.
//!
//! A panel is `lanes` rows of op(a) or columns of op(b) side by side: word row `q` of lane `i` is `panel[q * lanes + i]`.
//! Two layouts of the source lead there. Where lanes are stored rows, groups of sixteen rows are transposed; where lanes
//! are stored columns, pieces of rows are copied as they are. Either way the pieces first become f32 or bf16, which is
//! where a quantised source is decoded.

use half::bf16;

use crate::buffers::Pieces;
use crate::kernels::{GROUP, Isa, Kernel, Operands, STEP, Slot, WordRow};
use crate::product::{Operand, Trans};
use crate::reader::Reader;

/// Elements of a row that are decoded at once: sixteen such pieces and their panel rows fit a first-level cache.
const PIECE: usize = 256;

/// Rows that are asked for before they are dealt out: a strip takes a part of each, which no processor guesses.
pub(crate) const ROWS_AHEAD: usize = 16;

/// One side of a product, seen as lanes times k.
pub(crate) struct Side<'a> {
    reader: Reader<'a>,
    /// Whether a lane is a stored row (else a stored column).
    lanes_are_rows: bool,
    /// Lanes in all.
    lanes: usize,
    /// Lanes of a panel.
    pub(crate) width: usize,
    operands: Operands,
    /// Whether panels are tiles of a left operand, whose lanes lie row by row.
    laid: bool,
    isa: &'static Isa,
}

/// A range of k, in elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) len: usize,
}

impl<'a> Side<'a> {
    /// The left operand: lanes are rows of op(a).
    pub(crate) fn left(kernel: &'static Kernel, a: &Operand<'a>) -> Self {
        let laid = kernel.operands == Operands::Bf16Tiles;
        Self { laid, ..Self::new(kernel, a, kernel.mr, a.trans == Trans::No, a.dims().0) }
    }

    /// The right operand: lanes are columns of op(b).
    pub(crate) fn right(kernel: &'static Kernel, b: &Operand<'a>) -> Self {
        Self::new(kernel, b, kernel.nr, b.trans == Trans::Yes, b.dims().1)
    }

    fn new(kernel: &'static Kernel, o: &Operand<'a>, width: usize, lanes_are_rows: bool, lanes: usize) -> Self {
        let reader = Reader::new(o, kernel.isa);
        Self { reader, lanes_are_rows, lanes, width, operands: kernel.operands, laid: false, isa: kernel.isa }
    }

    /// Whether neighbouring panels should be packed together: pieces of rows then are longer.
    pub(crate) fn packs_across_panels(&self) -> bool {
        !self.lanes_are_rows
    }

    /// Packs the panels of lanes `first..first + panels * width` over `span`. Lanes past the end are zero.
    pub(crate) fn pack(&self, first: usize, span: Span, out: &mut Panels<'_>, pieces: &mut Pieces) {
        pieces.f32s.resize(pieces.f32s.len().max(GROUP * PIECE), 0.0);
        pieces.bf16s.resize(pieces.bf16s.len().max(GROUP * PIECE), bf16::ZERO);
        let words = self.operands.words(span.len);
        if words == 0 {
            return;
        }
        if self.lanes_are_rows && self.laid {
            self.lay_rows(first, span, out, &mut pieces.bf16s);
            return;
        }
        if self.lanes_are_rows {
            for p in 0..out.count {
                let panel = &mut out.words[p * out.stride..][..words * self.width];
                for lane in (0..self.width).step_by(GROUP).rev() {
                    self.transpose_group(first + p * self.width, lane, span, (panel, pieces));
                }
            }
        } else if self.operands.are_bf16() {
            self.copy_pairs(first, span, out, &mut pieces.bf16s);
        } else {
            self.copy_rows(first, span, out, &mut pieces.f32s);
        }
        if self.operands == Operands::Bf16Tiles {
            self.finish_steps(span, out);
        }
    }

    /// Copies pieces of stored rows into the lanes of left panels of tiles.
    fn lay_rows(&self, first: usize, span: Span, out: &mut Panels<'_>, space: &mut [bf16]) {
        for p in 0..out.count {
            let panel = &mut out.words[p * out.stride..][..self.operands.words(span.len) * self.width];
            for lane in 0..self.width {
                let row = first + p * self.width + lane;
                for from in (0..span.len).step_by(PIECE) {
                    let len = PIECE.min(span.len - from);
                    let piece = if row < self.lanes {
                        self.reader.bf16((row, span.start + from), len, space)
                    } else {
                        &ZEROS_BF16[..len]
                    };
                    self.isa.lay_pairs(piece, &mut panel[self.operands.words(from) * self.width + lane * STEP..]);
                }
            }
        }
    }

    /// Fills the last step with zeros, and turns the steps of left panels.
    fn finish_steps(&self, span: Span, out: &mut Panels<'_>) {
        for p in 0..out.count {
            let panel = &mut out.words[p * out.stride..][..self.operands.words(span.len) * self.width];
            panel[span.len.div_ceil(2) * self.width..].fill(0);
            if self.laid {
                let (steps, _) = panel.as_chunks_mut();
                steps.iter_mut().for_each(|step| self.isa.turn_step(step));
            }
        }
    }

    /// Transposes stored rows `first + lane..` (sixteen at most) into lanes `lane..` of a panel.
    fn transpose_group(&self, first: usize, lane: usize, span: Span, (panel, pieces): (&mut [u32], &mut Pieces)) {
        let end = (first + lane + GROUP).min(first + self.width).min(self.lanes);
        let rows = end.saturating_sub(first + lane);
        // Rows that are stored as they are needed are read in one go, and those of the next panel asked for meanwhile.
        let whole = self.operands.are_bf16() && rows == GROUP.min(self.width - lane);
        let ahead = if whole { self.reader.apart_as_bf16(self.width) } else { 0 };
        let piece = if ahead > 0 { span.len.max(1) } else { PIECE };
        for from in (0..span.len).step_by(piece) {
            let (len, col) = (piece.min(span.len - from), span.start + from);
            let words = &mut panel[self.operands.words(from) * self.width..];
            let slot = Slot { panel: words, width: self.width, lane, ahead };
            let at = |i: usize| (first + lane + i, col);
            if self.operands.are_bf16() {
                // Lanes past the panel's are not stored, whatever they hold.
                let other = if ahead > 0 { self.reader.bf16(at(0), len, &mut []) } else { &ZEROS_BF16[..len] };
                let mut group = [other; GROUP];
                for ((i, g), space) in group.iter_mut().take(rows).enumerate().zip(pieces.bf16s.chunks_mut(PIECE)) {
                    *g = self.reader.bf16(at(i), len, space);
                }
                self.isa.transpose_bf16(&group, slot);
            } else {
                let round = self.operands == Operands::RoundedF32;
                let mut group = [&ZEROS_F32[..len]; GROUP];
                for ((i, g), space) in group.iter_mut().take(rows).enumerate().zip(pieces.f32s.chunks_mut(PIECE)) {
                    *g = self.reader.f32(at(i), len, round, space);
                }
                self.isa.transpose_f32(&group, slot);
            }
        }
    }

    /// Copies pieces of stored rows `span` into word rows.
    fn copy_rows(&self, first: usize, span: Span, out: &mut Panels<'_>, space: &mut Vec<f32>) {
        let valid = (out.count * self.width).min(self.lanes - first);
        space.resize(space.len().max(valid), 0.0);
        let round = self.operands == Operands::RoundedF32;
        for q in 0..span.len {
            let row = self.reader.f32((span.start + q, first), valid, round, space);
            self.isa.deal_f32(row, self.row(out, q, span.len));
        }
    }

    /// Copies pieces of two stored rows at a time into rows of pairs.
    fn copy_pairs(&self, first: usize, span: Span, out: &mut Panels<'_>, space: &mut Vec<bf16>) {
        let words = span.len.div_ceil(2);
        let valid = (out.count * self.width).min(self.lanes - first);
        let blocks = self.reader.lut4().filter(|(blocks, _)| {
            valid == out.count * self.width && self.width == 32 && self.isa.deals_lut4(blocks, first)
        });
        space.resize(space.len().max(2 * valid), bf16::ZERO);
        let (space0, space1) = space.split_at_mut(valid);
        for q in 0..words {
            let row = span.start + 2 * q;
            if let (Some((blocks, start)), true) = (&blocks, 2 * q + 1 < span.len) {
                let at = [row, row + 1].map(|row| start + row * blocks.cols + first);
                self.isa.deal_lut4(blocks, at, self.row(out, q, words));
                continue;
            }
            let even = self.reader.bf16((row, first), valid, space0);
            let odd = if 2 * q + 1 < span.len {
                self.reader.bf16((row + 1, first), valid, space1)
            } else {
                space1.fill(bf16::ZERO);
                &space1[..valid]
            };
            self.isa.deal_pairs((even, odd), self.row(out, q, words));
        }
    }

    fn row<'o>(&self, out: &'o mut Panels<'_>, q: usize, words: usize) -> WordRow<'o> {
        let rest = &mut out.words[q * self.width..];
        let ahead = self.reader.apart_as_bf16(ROWS_AHEAD);
        WordRow { words: rest, width: self.width, stride: out.stride, count: out.count, spill: q + 1 < words, ahead }
    }
}

/// Panels to be packed, `stride` words from one to the next.
pub(crate) struct Panels<'a> {
    pub(crate) words: &'a mut [u32],
    pub(crate) stride: usize,
    pub(crate) count: usize,
}

static ZEROS_F32: [f32; PIECE] = [0.0; PIECE];
static ZEROS_BF16: [bf16; PIECE] = [bf16::ZERO; PIECE];

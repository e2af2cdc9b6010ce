//! Reads pieces of an operand's rows in the element type that a kernel wants, without a copy where storage allows.

use half::bf16;
use half::slice::HalfFloatSliceExt;

use crate::kernels::{self, Dots, Isa, Stored};
use crate::product::{Compute, Operand};
use crate::sources::{Lut4, Source, View};

/// Reads row `row` of a matrix, as [`Source::read_f32`] does and with its bits, by the loops of this processor.
///
/// # Panics
/// If there is no such row, or `out` is longer than one.
pub fn read_row(source: &dyn Source, row: usize, out: &mut [f32]) {
    assert!(
        row < source.rows() && out.len() <= source.cols(),
        "row {row} of {}, {} elements",
        source.rows(),
        out.len()
    );
    Reader::new(&Operand::new(source), kernels::select(Compute::F32).isa).fill_f32((row, 0), false, out);
}

/// A matrix with its view looked up once.
pub(crate) struct Reader<'a> {
    source: &'a dyn Source,
    view: View<'a>,
    cols: usize,
    /// The stored row that counts as row 0.
    first: usize,
    isa: &'static Isa,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(operand: &Operand<'a>, isa: &'static Isa) -> Self {
        let source = operand.source;
        let (view, len) = (source.as_view(), source.rows() * source.cols());
        let stored = match view {
            View::F32(d) => d.len(),
            View::Bf16(d) => d.len(),
            View::F16(d) => d.len(),
            View::Lut4(l) => l.rows * l.cols,
            View::Rows8(r) => r.rows * r.cols,
            View::Other => len,
        };
        assert_eq!(stored, len, "a source's view must hold as many elements as its dimensions say");
        Self { source, view, cols: source.cols(), first: operand.rows.0, isa }
    }

    /// The flat index of the first element of row 0.
    pub(crate) fn first_element(&self) -> usize {
        self.first * self.cols
    }

    /// Whether [`Reader::bf16`] costs no more than [`Reader::f32`], so that a bf16 product should stay in bf16.
    pub(crate) fn cheap_as_bf16(&self) -> bool {
        matches!(self.view, View::Bf16(_) | View::Lut4(_))
    }

    /// How far apart so many rows begin, where [`Reader::bf16`] hands out what is stored; 0 elsewhere.
    pub(crate) fn apart_as_bf16(&self, rows: usize) -> usize {
        if matches!(self.view, View::Bf16(_)) { rows * self.cols } else { 0 }
    }

    /// The 4-bit blocks that this reads, and where row 0 begins in them.
    pub(crate) fn lut4(&self) -> Option<(Lut4<'a>, usize)> {
        let View::Lut4(blocks) = self.view else { return None };
        Some((blocks, self.first * self.cols))
    }

    /// `len` elements of row `row` from column `col`, rounded to bf16 if `round`; `space` (at least `len` long) is used
    /// where the elements are not stored as they are needed.
    pub(crate) fn f32<'s>(
        &'s self,
        (row, col): (usize, usize),
        len: usize,
        round: bool,
        space: &'s mut [f32],
    ) -> &'s [f32] {
        let start = (self.first + row) * self.cols + col;
        if let (View::F32(d), false) = (self.view, round) {
            return &d[start..start + len];
        }
        let out = &mut space[..len];
        self.fill_f32((row, col), round, out);
        out
    }

    /// As [`Reader::f32`], always into `out`.
    pub(crate) fn fill_f32(&self, (row, col): (usize, usize), round: bool, out: &mut [f32]) {
        let (start, len) = ((self.first + row) * self.cols + col, out.len());
        match self.view {
            View::F32(d) => out.copy_from_slice(&d[start..start + len]),
            View::Bf16(d) => return self.isa.widen(&d[start..start + len], out),
            View::F16(d) => d[start..start + len].convert_to_f32_slice(out),
            View::Lut4(l) => return self.isa.lut4_f32(&l, start, out, round),
            View::Rows8(r) => r.read_f32(self.first + row, col, out),
            View::Other if round => {
                // The source's own rounding counts, should it have one.
                let mut chunk = [bf16::ZERO; 64];
                for (i, piece) in out.chunks_mut(chunk.len()).enumerate() {
                    let values = &mut chunk[..piece.len()];
                    self.source.read_bf16(self.first + row, col + i * 64, values);
                    self.isa.widen(values, piece);
                }
                return;
            }
            View::Other => self.source.read_f32(self.first + row, col, out),
        }
        if round {
            self.isa.round_in_place(out);
        }
    }

    /// Adds the dot product of each of rows `x` (laid out for these dots) and `len` elements of row `row + r` from column `col` to
    /// `out[r * x.len() + i]`, for as many rows as `out` has place for.
    pub(crate) fn dots(
        &self,
        dots: &Dots,
        (x, len): (&[&[bf16]], usize),
        (row, col): (usize, usize),
        (space, out): (&mut [bf16], &mut [f32]),
    ) {
        let at = Stored { start: (self.first + row) * self.cols + col, stride: self.cols, rows: out.len() / x.len() };
        match self.view {
            View::Lut4(l) => dots.lut4(x, len, &l, at, out),
            View::Bf16(d) => dots.dense(x, len, d, at, out),
            _ => {
                for (r, out) in out.chunks_mut(x.len()).enumerate() {
                    let row = self.bf16((row + r, col), len, space);
                    dots.dense(x, len, row, Stored { start: 0, stride: 0, rows: 1 }, out);
                }
            }
        }
    }

    /// `len` elements of row `row` from column `col`, rounded to bf16.
    pub(crate) fn bf16<'s>(&'s self, (row, col): (usize, usize), len: usize, space: &'s mut [bf16]) -> &'s [bf16] {
        let start = (self.first + row) * self.cols + col;
        if let View::Bf16(d) = self.view {
            return &d[start..start + len];
        }
        let out = &mut space[..len];
        match self.view {
            View::F32(d) => self.isa.round(&d[start..start + len], out),
            View::Lut4(l) => self.isa.lut4_bf16(&l, start, out),
            View::F16(_) | View::Rows8(_) => {
                let mut chunk = [0.0f32; 64];
                for (i, piece) in out.chunks_mut(chunk.len()).enumerate() {
                    let values = &mut chunk[..piece.len()];
                    self.fill_f32((row, col + i * 64), false, values);
                    self.isa.round(values, piece);
                }
            }
            View::Bf16(_) | View::Other => self.source.read_bf16(self.first + row, col, out),
        }
        out
    }
}

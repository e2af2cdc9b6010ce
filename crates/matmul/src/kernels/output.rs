//! Writing tiles into the output: the only place where threads share a mutable slice.

use half::{bf16, f16};

use super::portable::bf16_bits;
use crate::product::Out;

/// The output matrix, shared by the threads of a product. Each element belongs to one tile, and a tile to one thread.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(super) data: Pointer,
    len: usize,
    /// Columns of the matrix.
    cols: usize,
    /// Row and column of the product that the first element stands for.
    origin: (usize, usize),
    lifetime: std::marker::PhantomData<&'a mut f32>,
}

/// Where the output begins.
#[derive(Clone, Copy)]
pub(super) enum Pointer {
    F32(*mut f32),
    Bf16(*mut bf16),
    F16(*mut f16),
}

// SAFETY: the pointer comes from an exclusive borrow that outlives the `Target`, and threads write disjoint tiles of it.
unsafe impl Send for Target<'_> {}
// SAFETY: as above.
unsafe impl Sync for Target<'_> {}

/// What happens to a sum on its way out: out = alpha * sum + bias \[+ out\].
#[derive(Clone, Copy)]
pub(crate) struct Epilogue<'a> {
    pub(crate) alpha: f32,
    /// One value a column of the whole output.
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) accumulate: bool,
}

/// Sums and where they belong: row `i`, column `j` of the tile is `sums[i * stride + j]`.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a> {
    pub(crate) sums: &'a [f32],
    pub(crate) stride: usize,
    pub(crate) rows: (usize, usize),
    pub(crate) cols: (usize, usize),
}

impl<'a> Target<'a> {
    /// `out` as a matrix of `cols` columns.
    pub(crate) fn new(out: Out<'a>, cols: usize) -> Self {
        let (data, len) = match out {
            Out::F32(o) => (Pointer::F32(o.as_mut_ptr()), o.len()),
            Out::Bf16(o) => (Pointer::Bf16(o.as_mut_ptr()), o.len()),
            Out::F16(o) => (Pointer::F16(o.as_mut_ptr()), o.len()),
        };
        Self { data, len, cols, origin: (0, 0), lifetime: std::marker::PhantomData }
    }

    /// This matrix as the part of a product that begins at (`row`, `col`).
    pub(crate) fn shifted(self, row: usize, col: usize) -> Self {
        Self { origin: (row, col), ..self }
    }

    pub(crate) fn is_f32(&self) -> bool {
        matches!(self.data, Pointer::F32(_))
    }
}

/// Where a whole tile of a bf16 output begins.
#[cfg_attr(
    not(any(test, target_arch = "x86_64")),
    expect(dead_code, reason = "only AVX-512 has tiles that leave rounded")
)]
#[derive(Clone, Copy)]
pub(crate) struct Corner {
    pub(super) first: *mut bf16,
    /// Elements from one row to the next.
    pub(super) stride: usize,
}

/// A tile's place in the output: element (r, c) of the tile's columns is `data[r * stride + first + c]`.
pub(super) struct Place {
    pub(super) rows: (usize, usize),
    pub(super) first: usize,
    pub(super) width: usize,
    pub(super) stride: usize,
}

impl Target<'_> {
    /// Where sums of a tile of these extents can be rounded to, with nothing else done to them; `None` where the output is no bf16, or
    /// the tile reaches beyond its end.
    pub(crate) fn corner(&self, rows: (usize, usize), cols: (usize, usize), epilogue: &Epilogue<'_>) -> Option<Corner> {
        let Pointer::Bf16(first) = self.data else { return None };
        let Epilogue { alpha, bias, accumulate } = *epilogue;
        let inside = cols.1 <= self.cols + self.origin.1 && (rows.1 - self.origin.0) * self.cols <= self.len;
        if (alpha, bias, accumulate) != (1.0, None, false) || !inside {
            return None;
        }
        let at = self.place(&Tile { sums: &[], stride: 0, rows, cols });
        // SAFETY: `place` found it inside.
        Some(Corner { first: unsafe { first.add(at.rows.0 * at.stride + at.first) }, stride: at.stride })
    }

    /// The place of a tile.
    ///
    /// # Panics
    /// If it lies outside.
    #[inline(always)]
    pub(super) fn place(&self, tile: &Tile<'_>) -> Place {
        let (row, col) = self.origin;
        let ((r0, r1), (c0, c1)) = ((tile.rows.0 - row, tile.rows.1 - row), (tile.cols.0 - col, tile.cols.1 - col));
        assert!(
            r0 <= r1 && c0 <= c1 && c1 <= self.cols && r1 * self.cols <= self.len,
            "a tile must lie inside the output"
        );
        Place { rows: (r0, r1), first: c0, width: c1 - c0, stride: self.cols }
    }
}

/// Writes the tile: rows `rows.0..rows.1` and columns `cols.0..cols.1` of the product.
#[inline(always)]
pub(super) fn store(target: &Target<'_>, tile: Tile<'_>, epilogue: &Epilogue<'_>) {
    let Place { rows: (r0, r1), first, width: n, stride } = target.place(&tile);
    let bias = epilogue.bias.map(|b| &b[tile.cols.0..tile.cols.1]);
    for r in r0..r1 {
        let sums = &tile.sums[(r - r0) * tile.stride..][..n];
        let at = r * stride + first;
        // SAFETY: at + n <= len, as `place` checked, and no other thread holds this part of the row.
        unsafe {
            match target.data {
                Pointer::F32(p) => {
                    store_row(sums, std::slice::from_raw_parts_mut(p.add(at), n), bias, epilogue, (|x| x, |x| x));
                }
                Pointer::Bf16(p) => {
                    let out = std::slice::from_raw_parts_mut(p.add(at), n);
                    let widen = |x: bf16| f32::from_bits(u32::from(x.to_bits()) << 16);
                    store_row(sums, out, bias, epilogue, (widen, |x| bf16::from_bits(bf16_bits(x))));
                }
                Pointer::F16(p) => {
                    let out = std::slice::from_raw_parts_mut(p.add(at), n);
                    store_row(sums, out, bias, epilogue, (f16::to_f32, f16::from_f32));
                }
            }
        }
    }
}

#[inline(always)]
fn store_row<T: Copy>(
    sums: &[f32],
    out: &mut [T],
    bias: Option<&[f32]>,
    e: &Epilogue<'_>,
    (to_f32, from_f32): (impl Fn(T) -> f32, impl Fn(f32) -> T),
) {
    match (bias, e.accumulate) {
        (None, false) => {
            for (o, s) in out.iter_mut().zip(sums) {
                *o = from_f32(e.alpha * s);
            }
        }
        (None, true) => {
            for (o, s) in out.iter_mut().zip(sums) {
                *o = from_f32(e.alpha * s + to_f32(*o));
            }
        }
        (Some(bias), false) => {
            for ((o, s), b) in out.iter_mut().zip(sums).zip(bias) {
                *o = from_f32(e.alpha * s + b);
            }
        }
        (Some(bias), true) => {
            for ((o, s), b) in out.iter_mut().zip(sums).zip(bias) {
                *o = from_f32(e.alpha * s + b + to_f32(*o));
            }
        }
    }
}

//! Products with few rows: generation reads every weight for one token, so packing would cost more than it saves.
//!
//! The right operand is read row by row as it lies in memory, decoded into a piece that stays in the first-level cache.

use half::bf16;

use crate::buffers::with_buffers;
use crate::fork;
use crate::kernels::{Dots, Epilogue, Kernel, Operands, Target, Tile};
use crate::product::{Compute, Out, Product, Trans};
use crate::reader::Reader;

/// Rows of the left operand up to which this path is taken, whatever the kernel.
const FEW_ROWS: usize = 4;
/// The same where the processor multiplies rows of bf16. What more there are than are under way at a time find the weights in the nearest
/// cache.
const MAX_ROWS: usize = 8;
/// Rows of the left operand of which dot products in bf16 are under way at a time.
const DOT_ROWS: usize = 4;

/// Elements of a row that are decoded at once.
const PIECE: usize = 512;
/// Elements of a row that are decoded at once where the processor multiplies bf16: a multiple of what dot products take in a step.
const LONG_PIECE: usize = 4096;
/// Columns of the output that one piece of work covers at most.
const STRIP: usize = 1024;
/// Stored rows that are multiplied together.
const TOGETHER: usize = 16;
/// A strip is a multiple of so many columns.
const COLUMNS: usize = 16;
/// As `STRIP`, where a strip is a piece of each stored row.
const WIDE_STRIP: usize = 256;

/// One product of the sum.
struct Job<'a> {
    b: Reader<'a>,
    /// Whether an output is a dot product with a stored row of b.
    by_rows: bool,
    kernel: &'static Kernel,
    /// Left operand, (m, k), as f32.
    a: &'a [f32],
    /// The left operand as bf16, each row laid out for the dot products beside it, where the processor multiplies that.
    pairs: Option<(Dots, Vec<bf16>)>,
    m: usize,
    k: usize,
    round: bool,
}

/// Rows of the left operand beyond which this path is never taken.
pub(crate) fn most_rows(kernel: &Kernel) -> usize {
    if kernel.isa.dots.is_some() && kernel.operands.are_bf16() { MAX_ROWS } else { FEW_ROWS }
}

/// Whether this path is the one for a product.
pub(crate) fn takes(kernel: &Kernel, p: &Product<'_>) -> bool {
    let rows = p.a.dims().0;
    rows <= FEW_ROWS || rows <= most_rows(kernel) && p.terms().all(|(_, b)| b.trans == Trans::Yes)
}

pub(crate) fn run(kernel: &'static Kernel, p: &Product<'_>, out: Out<'_>) {
    let (m, n) = (p.a.dims().0, p.b.dims().1);
    let round = p.compute == Compute::Bf16;
    debug_assert_eq!(round, kernel.operands != Operands::F32);
    let epilogue = Epilogue { alpha: p.alpha, bias: p.bias, accumulate: p.accumulate };
    let target = Target::new(out, n);
    let inner: usize = p.terms().map(|(a, _)| a.dims().1).sum();
    with_buffers(|buffers| {
        let mut left = buffers.panels.floats(m * inner);
        let mut jobs = Vec::new();
        for (a, b) in p.terms() {
            let k = a.dims().1;
            let (own, rest) = left.split_at_mut(m * k);
            read_left(&Reader::new(a, kernel.isa), a.trans, (m, k, round), own);
            let by_rows = b.trans == Trans::Yes;
            let pairs = kernel.isa.dots.filter(|_| by_rows && kernel.operands.are_bf16()).map(|dots| {
                let stride = k.next_multiple_of(dots.step);
                let mut pairs = vec![bf16::ZERO; m * stride];
                for (row, pairs) in own.chunks(k.max(1)).zip(pairs.chunks_mut(stride.max(1))) {
                    kernel.isa.round(row, &mut pairs[..k]);
                    (dots.lay_out)(pairs);
                }
                (dots, pairs)
            });
            jobs.push(Job { b: Reader::new(b, kernel.isa), by_rows, kernel, a: own, pairs, m, k, round });
            left = rest;
        }
        let strip = if jobs.iter().all(|it| it.by_rows) {
            // Every thread gets a few, so that one that comes late does not hold up the others.
            n.div_ceil(4 * fork::threads()).next_multiple_of(COLUMNS).min(STRIP)
        } else {
            WIDE_STRIP
        };
        let work = |i: usize| {
            let cols = (i * strip, n.min((i + 1) * strip));
            with_buffers(|own| {
                let sums = own.tiles.floats(m * strip);
                own.pieces.f32s.resize(own.pieces.f32s.len().max(PIECE), 0.0);
                own.pieces.bf16s.resize(own.pieces.bf16s.len().max(LONG_PIECE), bf16::ZERO);
                sums.fill(0.0);
                for job in &jobs {
                    fork::point();
                    if job.by_rows {
                        job.dots(cols, strip, (sums, &mut own.pieces))
                    } else {
                        job.axpys(cols, strip, (sums, &mut own.pieces))
                    }
                }
                kernel.isa.store(&target, Tile { sums, stride: strip, rows: (0, m), cols }, &epilogue);
            });
        };
        fork::each(n.div_ceil(strip), (1 << 15) / (strip * inner.max(1)) + 1, work);
    });
}

/// Reads op(a) (m, k) into `out`.
fn read_left(a: &Reader<'_>, trans: Trans, (m, k, round): (usize, usize, bool), out: &mut [f32]) {
    if k == 0 {
        return;
    }
    if trans == Trans::No {
        for (i, row) in out.chunks_mut(k).enumerate() {
            a.fill_f32((i, 0), round, row);
        }
        return;
    }
    let mut column = [0.0; MAX_ROWS];
    for j in 0..k {
        a.fill_f32((j, 0), round, &mut column[..m]);
        for (i, v) in column[..m].iter().enumerate() {
            out[i * k + j] = *v;
        }
    }
}

type Work<'w> = (&'w mut [f32], &'w mut crate::buffers::Pieces);

impl Job<'_> {
    /// Each output is a dot product with a stored row of b.
    fn dots(&self, (c0, c1): (usize, usize), stride: usize, (sums, pieces): Work<'_>) {
        if let Some((dots, a)) = &self.pairs {
            let padded = self.k.next_multiple_of(dots.step).max(1);
            let mut found = [0.0; DOT_ROWS * TOGETHER];
            for c in (c0..c1).step_by(TOGETHER) {
                for first in (0..self.m).step_by(DOT_ROWS) {
                    let rows = DOT_ROWS.min(self.m - first);
                    let found = &mut found[..rows * TOGETHER.min(c1 - c)];
                    found.fill(0.0);
                    for from in (0..self.k).step_by(LONG_PIECE) {
                        let len = LONG_PIECE.min(self.k - from);
                        let mut x: [&[bf16]; DOT_ROWS] = [&[]; DOT_ROWS];
                        for (x, row) in x[..rows].iter_mut().zip(a.chunks(padded).skip(first)) {
                            *x = &row[from..][..len.next_multiple_of(dots.step)];
                        }
                        self.b.dots(dots, (&x[..rows], len), (c, from), (&mut pieces.bf16s, &mut *found));
                    }
                    for (r, of_row) in found.chunks(rows).enumerate() {
                        for (i, v) in of_row.iter().enumerate() {
                            sums[(first + i) * stride + c - c0 + r] += v;
                        }
                    }
                }
            }
            return;
        }
        for c in c0..c1 {
            for from in (0..self.k).step_by(PIECE) {
                let len = PIECE.min(self.k - from);
                let x = |i: usize| &self.a[i * self.k + from..][..len];
                if self.round && self.b.cheap_as_bf16() {
                    let w = self.b.bf16((c, from), len, &mut pieces.bf16s);
                    for i in 0..self.m {
                        sums[i * stride + c - c0] += self.kernel.isa.dot_bf16(x(i), w);
                    }
                } else {
                    let w = self.b.f32((c, from), len, self.round, &mut pieces.f32s);
                    for i in 0..self.m {
                        sums[i * stride + c - c0] += self.kernel.isa.dot_f32(x(i), w);
                    }
                }
            }
        }
    }

    /// Every stored row of b is added to the outputs, times its element of the left operand.
    fn axpys(&self, (c0, c1): (usize, usize), stride: usize, (sums, pieces): Work<'_>) {
        let len = c1 - c0;
        for q in 0..self.k {
            if self.round && self.b.cheap_as_bf16() {
                let w = self.b.bf16((q, c0), len, &mut pieces.bf16s);
                for i in 0..self.m {
                    self.kernel.isa.axpy_bf16(self.a[i * self.k + q], w, &mut sums[i * stride..][..len]);
                }
            } else {
                let w = self.b.f32((q, c0), len, self.round, &mut pieces.f32s);
                for i in 0..self.m {
                    self.kernel.isa.axpy_f32(self.a[i * self.k + q], w, &mut sums[i * stride..][..len]);
                }
            }
        }
    }
}

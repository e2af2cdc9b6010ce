//! Dot products of a few rows with stored rows, as generation needs them: weights go from memory through a register into
//! the sums, 4-bit codes included.
//!
//! A row is taken 64 elements at a time, 32 for each of two sum registers, whatever the source and however many rows are
//! taken together: so a quantised row gives the bits of its decoded values.

use std::arch::x86_64::*;

use half::bf16;

use super::avx512_isa::{block_bf16, decode32, look_up, lut4_bf16};
use super::isa::Stored;
use crate::sources::{Lut4, Scales4};

/// Elements of a register.
const HALF: usize = 32;
/// Elements of a step.
const STEP: usize = 2 * HALF;
/// Stored rows of 4-bit codes that are taken together, to have enough sums under way.
const ROWS: usize = 4;
/// Elements that are decoded at once where blocks and steps do not coincide.
const PIECE: usize = 512;
/// Scales of stored rows that are decoded together.
const SCALES: usize = 256;

/// Calls a function with the rows of the left operand as an array.
macro_rules! with_rows {
    ($x:expr, |$rows:ident| $body:expr) => {
        match *$x {
            [a] => {
                let $rows = [a];
                $body
            }
            [a, b] => {
                let $rows = [a, b];
                $body
            }
            [a, b, c] => {
                let $rows = [a, b, c];
                $body
            }
            [a, b, c, d] => {
                let $rows = [a, b, c, d];
                $body
            }
            _ => unreachable!("one to four rows are multiplied here"),
        }
    };
}

/// `out[r][i] += x[i] . w[r]` for stored rows `w`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512bf16")]
pub(super) fn dense(x: &[&[bf16]], w: &[bf16], at: Stored, out: &mut [f32]) {
    let (len, m) = (x[0].len(), x.len());
    // One after the other: wide rows come from memory, which is fastest in the order in which it lies.
    with_rows!(x, |x| {
        for r in 0..at.rows {
            let w = &w[at.start + r * at.stride..][..len];
            add(dots::<_, 1>(x, len, |_, at, left| halves(w, at, left)), &mut out[r * m..]);
        }
    });
}

/// Dot products of each row of `x` with stored rows of 4-bit blocks, decoded on the way.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512bf16")]
pub(super) fn lut4(x: &[&[bf16]], l: &Lut4<'_>, at: Stored, out: &mut [f32]) {
    let (len, m) = (x[0].len(), x.len());
    let blocks = len.div_ceil(l.block_size);
    let aligned = l.block_size.is_power_of_two()
        && l.block_size >= STEP
        && at.start.is_multiple_of(l.block_size)
        && at.stride.is_multiple_of(l.block_size);
    if !aligned || blocks * ROWS > SCALES {
        let mut decoded = vec![bf16::ZERO; len];
        for r in 0..at.rows {
            for (i, piece) in decoded.chunks_mut(PIECE).enumerate() {
                lut4_bf16(l, at.start + r * at.stride + i * PIECE, piece);
            }
            dense(x, &decoded, Stored { start: 0, stride: 0, rows: 1 }, &mut out[r * m..]);
        }
        return;
    }
    // SAFETY: the table holds 16 floats.
    let values = unsafe { _mm512_loadu_ps(l.table.as_ptr()) };
    let shift = l.block_size.trailing_zeros();
    let mut scales = [0.0f32; SCALES];
    let mut group = Group { number: None, scales: [0.0; 256] };
    with_rows!(x, |x| {
        let mut r = 0;
        while r < at.rows {
            let together = if m == 1 && r + ROWS <= at.rows { ROWS } else { 1 };
            let mut packed = [&l.packed[..0]; ROWS];
            for (i, packed) in packed.iter_mut().take(together).enumerate() {
                let start = at.start + (r + i) * at.stride;
                *packed = &l.packed[start / 2..(start + len).div_ceil(2)];
            }
            decode_scales(
                &l.scales,
                &mut group,
                ((at.start + r * at.stride) >> shift, at.stride >> shift),
                &mut scales,
                (together, blocks),
            );
            let step = |i: usize, at: usize, left: usize| {
                let table = block_bf16(values, scales[i * blocks + (at >> shift)]);
                if left == STEP {
                    let bytes = &packed[i][at / 2..][..STEP / 2];
                    // SAFETY: the slice holds 32 bytes.
                    let [low, high] = unsafe { [0, 16].map(|b| _mm_loadu_si128(bytes.as_ptr().add(b).cast())) };
                    return [look_up(table, low), look_up(table, high)];
                }
                [(at, left.min(HALF)), (at + HALF, left.saturating_sub(HALF))]
                    .map(|(at, left)| decode32(table, packed[i], at, left))
            };
            if together == ROWS {
                add(dots::<_, ROWS>(x, len, step), &mut out[r * m..]);
            } else {
                add(dots::<_, 1>(x, len, step), &mut out[r * m..]);
            }
            r += together;
        }
    });
}

/// The scales of `blocks` blocks from `first` on, and of as many from every further multiple of `stride` on.
fn decode_scales(
    s: &Scales4<'_>,
    group: &mut Group,
    (first, stride): (usize, usize),
    out: &mut [f32],
    (rows, blocks): (usize, usize),
) {
    // Rows that follow each other are one run.
    let (runs, len) = if stride == blocks { (1, rows * blocks) } else { (rows, blocks) };
    for (i, out) in out.chunks_mut(len.max(1)).take(runs).enumerate() {
        let at = first + i * stride;
        let Scales4::Double { codes, map, nested_absmax, nested_block_size, offset } = *s else {
            s.fill(at, out);
            continue;
        };
        let (mut at, mut out) = (at, &mut out[..len]);
        while !out.is_empty() {
            let number = at / nested_block_size;
            let (run, rest) = out.split_at_mut(((number + 1) * nested_block_size - at).min(out.len()));
            let scales = group.scales(number, map, nested_absmax[number], offset);
            for (out, code) in run.iter_mut().zip(&codes[at..]) {
                *out = scales[usize::from(*code)];
            }
            (at, out) = (at + run.len(), rest);
        }
    }
}

/// What each code of a scale stands for in one group of blocks. A group has about as many blocks as there are codes, and computing
/// all of them at full width takes less time than gathering those that occur.
struct Group {
    number: Option<usize>,
    scales: [f32; 256],
}

impl Group {
    fn scales(&mut self, number: usize, map: &[f32; 256], nested: f32, offset: f32) -> &[f32; 256] {
        if self.number != Some(number) {
            self.number = Some(number);
            for (scale, value) in self.scales.iter_mut().zip(map) {
                *scale = value * nested + offset;
            }
        }
        &self.scales
    }
}

/// `out[r][i] += sums[i][r]`.
fn add<const M: usize, const R: usize>(sums: [[f32; R]; M], out: &mut [f32]) {
    for (i, sums) in sums.iter().enumerate() {
        for (r, sum) in sums.iter().enumerate() {
            out[r * M + i] += sum;
        }
    }
}

/// `step(r, at, left)` gives elements `at..at + left` (64 at most) of stored row `r`, then zeros.
#[inline(always)]
fn dots<const M: usize, const R: usize>(
    x: [&[bf16]; M],
    len: usize,
    step: impl Fn(usize, usize, usize) -> [__m512i; 2],
) -> [[f32; R]; M] {
    assert!(x.iter().all(|it| it.len() >= len), "both sides of a dot product must be of one length");
    // SAFETY: only functions that enable the instruction set inline this one; 64 elements from `at` lie below `len`.
    unsafe {
        let mut sums = [[[_mm512_setzero_ps(); 2]; R]; M];
        let mut at = 0;
        while at + STEP <= len {
            for r in 0..R {
                let w = step(r, at, STEP);
                for (sums, x) in sums.iter_mut().zip(x) {
                    let x = x.as_ptr().add(at);
                    sums[r][0] = multiply(sums[r][0], _mm512_loadu_si512(x.cast()), w[0]);
                    sums[r][1] = multiply(sums[r][1], _mm512_loadu_si512(x.add(HALF).cast()), w[1]);
                }
            }
            at += STEP;
        }
        if at < len {
            for r in 0..R {
                let w = step(r, at, len - at);
                for (sums, x) in sums.iter_mut().zip(x) {
                    let x = halves(x, at, len - at);
                    sums[r] = [multiply(sums[r][0], x[0], w[0]), multiply(sums[r][1], x[1], w[1])];
                }
            }
        }
        let mut found = [[0.0; R]; M];
        for (found, sums) in found.iter_mut().zip(&sums) {
            for (found, [a, b]) in found.iter_mut().zip(sums) {
                *found = _mm512_reduce_add_ps(_mm512_add_ps(*a, *b));
            }
        }
        found
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply(sums: __m512, a: __m512i, b: __m512i) -> __m512 {
    // SAFETY: all these types are 512 bits.
    unsafe {
        _mm512_dpbf16_ps(sums, std::mem::transmute::<__m512i, __m512bh>(a), std::mem::transmute::<__m512i, __m512bh>(b))
    }
}

/// Elements `at..at + left` (64 at most) of a row, then zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn halves(row: &[bf16], at: usize, left: usize) -> [__m512i; 2] {
    let row = &row[at..at + left];
    // SAFETY: the slice holds what is read, by its length or by the masks; a pointer past its end is not read.
    unsafe {
        if left == STEP {
            return [0, HALF].map(|i| _mm512_loadu_si512(row.as_ptr().add(i).cast()));
        }
        [(0, left.min(HALF)), (HALF, left.saturating_sub(HALF))].map(|(at, left)| {
            let mask = if left == HALF { u32::MAX } else { (1 << left) - 1 };
            _mm512_maskz_loadu_epi16(mask, row.as_ptr().wrapping_add(at).cast())
        })
    }
}

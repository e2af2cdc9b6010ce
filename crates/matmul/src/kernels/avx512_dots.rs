//! Dot products of a few rows with stored rows, as generation needs them: weights go from memory through a register into
//! the sums, 4-bit codes included.
//!
//! A row is taken 64 elements at a time, those of even number for one sum register and the others for a second, which is how nibbles lie
//! in bytes; whatever the source and however many rows are taken together. So a quantised row gives the bits of its decoded values.

use std::arch::x86_64::*;

use half::bf16;

use super::avx512_isa::{block_bf16, lut4_bf16};
use super::isa::Stored;
use crate::sources::{Lut4, Scales4};

/// Elements of a register.
const HALF: usize = 32;
/// Elements of a step.
pub(super) const STEP: usize = 2 * HALF;
/// Stored rows of 4-bit codes that are taken together, to have enough sums under way.
const ROWS: usize = 4;
/// Elements that are decoded at once where blocks and steps do not coincide.
const PIECE: usize = 512;
/// So many bytes of codes are asked for before they are needed: short rows, four at a time, are no order that a processor foresees.
const AHEAD: usize = 4096;
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

/// Lays a row of the left operand out as the products here read it: of each 64 elements first those of even number, then the others.
/// Its length is a multiple of 64.
pub(super) fn lay_out(row: &mut [bf16]) {
    for step in row.chunks_exact_mut(STEP) {
        let as_it_was: [bf16; STEP] = std::array::from_fn(|i| step[i]);
        for (i, pair) in as_it_was.chunks_exact(2).enumerate() {
            (step[i], step[HALF + i]) = (pair[0], pair[1]);
        }
    }
}

/// `out[r][i] += x[i] . w[r]` for stored rows `w` of `len` elements.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512bf16")]
pub(super) fn dense(x: &[&[bf16]], len: usize, w: &[bf16], at: Stored, out: &mut [f32]) {
    let m = x.len();
    // One after the other: wide rows come from memory, which is fastest in the order in which it lies.
    with_rows!(x, |x| {
        for r in 0..at.rows {
            let w = &w[at.start + r * at.stride..][..len];
            add(dots::<_, 1>(x, len, |_, at, left| parted(w, at, left)), &mut out[r * m..]);
        }
    });
}

/// Dot products of each row of `x` with stored rows of 4-bit blocks, decoded on the way.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512bf16")]
pub(super) fn lut4(x: &[&[bf16]], len: usize, l: &Lut4<'_>, at: Stored, out: &mut [f32]) {
    let m = x.len();
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
            dense(x, len, &decoded, Stored { start: 0, stride: 0, rows: 1 }, &mut out[r * m..]);
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
            let enough =
                scales.len() >= together * blocks && packed[..together].iter().all(|it| it.len() >= len.div_ceil(2));
            assert!(enough, "scales and codes must cover the elements read");
            let step = |i: usize, at: usize, left: usize| {
                // SAFETY: `i < together` and `at < len`, for which there are scales and codes by the assertion; a hint may point anywhere.
                let (scale, codes) = unsafe {
                    let bytes = packed.get_unchecked(i).as_ptr().add(at / 2);
                    if at.is_multiple_of(2 * STEP) {
                        _mm_prefetch::<_MM_HINT_T0>(bytes.wrapping_add(AHEAD).cast());
                    }
                    let mask = if left == STEP { u32::MAX } else { (1 << left.div_ceil(2)) - 1 };
                    (*scales.get_unchecked(i * blocks + (at >> shift)), _mm256_maskz_loadu_epi8(mask, bytes.cast()))
                };
                look_up(block_bf16(values, scale), codes)
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

/// `step(r, at, left)` gives elements `at..at + left` (64 at most) of stored row `r`, parted, and anything finite after them.
#[inline(always)]
fn dots<const M: usize, const R: usize>(
    x: [&[bf16]; M],
    len: usize,
    step: impl Fn(usize, usize, usize) -> [__m512i; 2],
) -> [[f32; R]; M] {
    assert!(
        x.iter().all(|it| it.len() >= len.next_multiple_of(STEP)),
        "both sides of a dot product must be of one length"
    );
    // SAFETY: only functions that enable the instruction set inline this one; 64 elements from `at` are there by the assertion.
    unsafe {
        let mut sums = [[[_mm512_setzero_ps(); 2]; R]; M];
        let mut at = 0;
        while at + STEP <= len {
            (0..R).for_each(|r| add_step(&mut sums, r, step(r, at, STEP), x.map(|it| it.as_ptr().add(at))));
            at += STEP;
        }
        if at < len {
            (0..R).for_each(|r| add_step(&mut sums, r, step(r, at, len - at), x.map(|it| it.as_ptr().add(at))));
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

/// Adds the products of 64 elements of row `r` and each of `x`.
///
/// # Safety
/// 64 elements can be read from each of `x`, and who inlines this has the instruction set.
#[inline(always)]
unsafe fn add_step<const M: usize, const R: usize>(
    sums: &mut [[[__m512; 2]; R]; M],
    r: usize,
    w: [__m512i; 2],
    x: [*const bf16; M],
) {
    for (sums, x) in sums.iter_mut().zip(x) {
        // SAFETY: as the caller promises.
        unsafe {
            sums[r][0] = multiply(sums[r][0], _mm512_loadu_si512(x.cast()), w[0]);
            sums[r][1] = multiply(sums[r][1], _mm512_loadu_si512(x.add(HALF).cast()), w[1]);
        }
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

/// The values of 32 bytes of codes, first those of the high nibbles, which are the elements of even number.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn look_up(table: __m512i, codes: __m256i) -> [__m512i; 2] {
    let words = _mm512_cvtepu8_epi16(codes);
    [_mm512_srli_epi16(words, 4), words].map(|it| _mm512_permutexvar_epi16(it, table))
}

/// Elements `at..at + left` (64 at most) of a row, then zeros: those of even number, then the others.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn parted(row: &[bf16], at: usize, left: usize) -> [__m512i; 2] {
    let row = &row[at..at + left];
    let mask = if left == STEP { u64::MAX } else { (1 << left) - 1 };
    // SAFETY: the slice holds what is read, by the masks; a pointer past its end is not read.
    let [a, b] =
        unsafe { [0, HALF].map(|i| _mm512_maskz_loadu_epi16((mask >> i) as u32, row.as_ptr().wrapping_add(i).cast())) };
    [0, 1].map(|first| _mm512_permutex2var_epi16(a, parts(first), b))
}

/// Numbers of every second element of two registers.
#[inline]
#[target_feature(enable = "avx512f")]
fn parts(first: i32) -> __m512i {
    // Two numbers a lane: 0 and 2, 4 and 6, ...
    let lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    let steps = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(0x0004_0004));
    _mm512_add_epi32(steps, _mm512_set1_epi32(0x0002_0000 + first * 0x0001_0001))
}

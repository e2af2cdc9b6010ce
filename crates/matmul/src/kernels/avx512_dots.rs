//! Dot products of a few rows with one stored row, as generation needs them: weights go from memory through a register
//! into the sums, 4-bit codes included.
//!
//! A row is taken in groups of 32 elements; group `g` adds to sum register `g % 4`, whatever the source, so that a
//! quantised row gives the bits of its decoded values.

use std::arch::x86_64::*;

use half::bf16;

use super::avx512_isa::{block_bf16, decode32, lut4_bf16};
use crate::sources::Lut4;

/// Sum registers of a row: enough to hide the latency of a multiply-add.
const SUMS: usize = 4;
/// Elements of a group.
const GROUP: usize = 32;
/// Elements that are decoded at once where blocks and groups do not coincide.
const PIECE: usize = 512;

/// `out[i] += x[i] . w` for rows `x[i]` of the length of `w`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) fn dense(x: &[&[bf16]], w: &[bf16], out: &mut [f32]) {
    match *x {
        [a] => add(dots([a], w.len(), |at, left| load(w, at, left)), out),
        [a, b] => add(dots([a, b], w.len(), |at, left| load(w, at, left)), out),
        [a, b, c] => add(dots([a, b, c], w.len(), |at, left| load(w, at, left)), out),
        [a, b, c, d] => add(dots([a, b, c, d], w.len(), |at, left| load(w, at, left)), out),
        _ => unreachable!("one to four rows are multiplied here"),
    }
}

/// The same with elements `start..` of 4-bit blocks in the place of `w`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) fn lut4(x: &[&[bf16]], l: &Lut4<'_>, start: usize, out: &mut [f32]) {
    let len = x[0].len();
    if start.is_multiple_of(l.block_size) && l.block_size.is_multiple_of(SUMS * GROUP / 2) {
        let first = start / l.block_size;
        let packed = &l.packed[start / 2..(start + len).div_ceil(2)];
        // SAFETY: the table holds 16 floats.
        let values = unsafe { _mm512_loadu_ps(l.table.as_ptr()) };
        let mut table = _mm512_setzero_si512();
        let mut next = 0;
        let mut block = first;
        let group = |at: usize, left: usize| {
            if at == next {
                table = block_bf16(values, l.scales.get(block));
                (next, block) = (next + l.block_size, block + 1);
            }
            decode32(table, packed, at, left)
        };
        return match *x {
            [a] => add(dots([a], len, group), out),
            [a, b] => add(dots([a, b], len, group), out),
            [a, b, c] => add(dots([a, b, c], len, group), out),
            [a, b, c, d] => add(dots([a, b, c, d], len, group), out),
            _ => unreachable!("one to four rows are multiplied here"),
        };
    }
    let mut decoded = vec![bf16::ZERO; len];
    for (i, piece) in decoded.chunks_mut(PIECE).enumerate() {
        lut4_bf16(l, start + i * PIECE, piece);
    }
    dense(x, &decoded, out);
}

fn add<const M: usize>(sums: [f32; M], out: &mut [f32]) {
    for (o, s) in out.iter_mut().zip(sums) {
        *o += s;
    }
}

/// `group(at, left)` gives elements `at..at + 32` of the stored row, zeros from `left` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn dots<const M: usize>(x: [&[bf16]; M], len: usize, mut group: impl FnMut(usize, usize) -> __m512i) -> [f32; M] {
    assert!(x.iter().all(|it| it.len() >= len), "both sides of a dot product must be of one length");
    let mut sums = [[_mm512_setzero_ps(); SUMS]; M];
    let mut at = 0;
    while at + SUMS * GROUP <= len {
        for j in 0..SUMS {
            let w = group(at + j * GROUP, GROUP);
            for (sums, x) in sums.iter_mut().zip(x) {
                // SAFETY: elements at + j * 32 .. at + j * 32 + 32 lie below len.
                let x = unsafe { _mm512_loadu_si512(x.as_ptr().add(at + j * GROUP).cast()) };
                sums[j] = multiply(sums[j], x, w);
            }
        }
        at += SUMS * GROUP;
    }
    for j in 0..SUMS {
        let left = len.saturating_sub(at + j * GROUP).min(GROUP);
        if left > 0 {
            let w = group(at + j * GROUP, left);
            for (sums, x) in sums.iter_mut().zip(x) {
                sums[j] = multiply(sums[j], load(x, at + j * GROUP, left), w);
            }
        }
    }
    sums.map(|[a, b, c, d]| _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d))))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply(sums: __m512, a: __m512i, b: __m512i) -> __m512 {
    // SAFETY: all these types are 512 bits.
    unsafe {
        _mm512_dpbf16_ps(sums, std::mem::transmute::<__m512i, __m512bh>(a), std::mem::transmute::<__m512i, __m512bh>(b))
    }
}

/// The `left` elements (32 at most) of a row from `at` on, then zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load(row: &[bf16], at: usize, left: usize) -> __m512i {
    let row = &row[at..at + left];
    // SAFETY: the slice holds what is read, by its length or by the mask.
    unsafe {
        if left == GROUP {
            _mm512_loadu_si512(row.as_ptr().cast())
        } else {
            _mm512_maskz_loadu_epi16((1 << left) - 1, row.as_ptr().cast())
        }
    }
}

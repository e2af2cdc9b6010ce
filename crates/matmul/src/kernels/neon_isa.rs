//! NEON vector helpers around the tile kernels: packing, decoding 4-bit codes, dot products. Ends of rows and whatever the compiler
//! vectorises by itself are left to plain Rust.

use std::arch::aarch64::*;

use half::bf16;

use super::isa::{GROUP, Isa, Slot, WordRow};
use super::portable;
use crate::sources::Lut4;

pub(super) static ISA: Isa =
    Isa { transpose_f32, transpose_bf16, deal_pairs, lut4_f32, lut4_bf16, dot_f32, dot_bf16, ..portable::ISA };

/// Lanes of a register.
const LANES: usize = 4;

/// Transposes 4 by 4 words.
#[inline]
#[target_feature(enable = "neon")]
fn transpose4([a, b, c, d]: [uint32x4_t; 4]) -> [uint32x4_t; 4] {
    let (ab, cd) = ([vtrn1q_u32(a, b), vtrn2q_u32(a, b)], [vtrn1q_u32(c, d), vtrn2q_u32(c, d)]);
    let low = |x, y| vreinterpretq_u32_u64(vtrn1q_u64(vreinterpretq_u64_u32(x), vreinterpretq_u64_u32(y)));
    let high = |x, y| vreinterpretq_u32_u64(vtrn2q_u64(vreinterpretq_u64_u32(x), vreinterpretq_u64_u32(y)));
    [low(ab[0], cd[0]), low(ab[1], cd[1]), high(ab[0], cd[0]), high(ab[1], cd[1])]
}

/// Transposes the first `words` words of each row, a multiple of four, into the lanes that the slot has, whole registers of them.
/// `read` gives four words of a row from a word on.
#[inline]
#[target_feature(enable = "neon")]
fn transpose(words: usize, slot: &mut Slot<'_>, read: impl Fn(usize, usize) -> uint32x4_t) {
    let lanes = (slot.width - slot.lane).min(GROUP);
    assert!(
        words == 0 || (words - 1) * slot.width + slot.lane + lanes <= slot.panel.len(),
        "a group must fit its panel"
    );
    for lane in (0..lanes).step_by(LANES) {
        for q in (0..words).step_by(LANES) {
            let columns = transpose4([0, 1, 2, 3].map(|i| read(lane + i, q)));
            for (i, column) in columns.into_iter().enumerate() {
                let at = &mut slot.panel[(q + i) * slot.width + slot.lane + lane..][..LANES];
                // SAFETY: the slice holds 4 words.
                unsafe { vst1q_u32(at.as_mut_ptr(), column) };
            }
        }
    }
}

/// How many of `words` words [`transpose`] takes: all but the last few, unless lanes do not come in whole registers.
fn whole(words: usize, slot: &Slot<'_>) -> usize {
    let lanes = (slot.width - slot.lane).min(GROUP);
    if lanes.is_multiple_of(LANES) { words / LANES * LANES } else { 0 }
}

#[target_feature(enable = "neon")]
fn transpose_f32(rows: &[&[f32]; GROUP], mut slot: Slot<'_>) {
    let words = whole(rows[0].len(), &slot);
    transpose(words, &mut slot, |i, q| {
        let four = &rows[i][q..q + LANES];
        // SAFETY: the slice holds 4 floats.
        unsafe { vld1q_u32(four.as_ptr().cast()) }
    });
    portable::transpose_f32_from(words, rows, slot);
}

#[target_feature(enable = "neon")]
fn transpose_bf16(rows: &[&[bf16]; GROUP], mut slot: Slot<'_>) {
    let words = whole(rows[0].len() / 2, &slot);
    transpose(words, &mut slot, |i, q| {
        let four = &rows[i][2 * q..2 * (q + LANES)];
        // SAFETY: the slice holds 8 elements, which are 4 words.
        unsafe { vreinterpretq_u32_u16(vld1q_u16(four.as_ptr().cast())) }
    });
    portable::transpose_bf16_from(words, rows, slot);
}

#[target_feature(enable = "neon")]
fn deal_pairs((even, odd): (&[bf16], &[bf16]), out: WordRow<'_>) {
    let n = even.len().min(odd.len());
    let full = if out.width.is_multiple_of(LANES) { (n / out.width).min(out.count) } else { 0 };
    for p in 0..full {
        let words = &mut out.words[p * out.stride..][..out.width];
        let rows = even[p * out.width..].chunks_exact(LANES).zip(odd[p * out.width..].chunks_exact(LANES));
        for (four, (even, odd)) in words.chunks_exact_mut(LANES).zip(rows) {
            // SAFETY: each piece holds 4 elements, or words.
            unsafe {
                let (even, odd) = (vld1_u16(even.as_ptr().cast()), vld1_u16(odd.as_ptr().cast()));
                vst1q_u16(four.as_mut_ptr().cast(), vcombine_u16(vzip1_u16(even, odd), vzip2_u16(even, odd)));
            }
        }
    }
    portable::deal_pairs_from(full, (even, odd), out);
}

/// Codes of a register of packed bytes, in their order: the high nibble of a byte is first.
#[inline]
#[target_feature(enable = "neon")]
fn codes(packed: &[u8]) -> [uint8x16_t; 2] {
    assert!(packed.len() >= 16);
    // SAFETY: the slice holds 16 bytes.
    let bytes = unsafe { vld1q_u8(packed.as_ptr()) };
    let (high, low) = (vshrq_n_u8::<4>(bytes), vandq_u8(bytes, vdupq_n_u8(15)));
    [vzip1q_u8(high, low), vzip2q_u8(high, low)]
}

/// The values' bytes are looked up one by one and stored side by side.
#[target_feature(enable = "neon")]
fn run_bf16(table: &[bf16; 16], packed: &[u8], out: &mut [bf16]) {
    // SAFETY: the table holds 32 bytes.
    let uint8x16x2_t(low, high) = unsafe { vld2q_u8(table.as_ptr().cast()) };
    let (whole, _) = out.as_chunks_mut::<32>();
    let done = whole.len();
    for (out, packed) in whole.iter_mut().zip(packed.chunks_exact(16)) {
        for (codes, out) in codes(packed).into_iter().zip(out.chunks_exact_mut(16)) {
            let values = uint8x16x2_t(vqtbl1q_u8(low, codes), vqtbl1q_u8(high, codes));
            // SAFETY: the piece holds 32 bytes.
            unsafe { vst2q_u8(out.as_mut_ptr().cast(), values) };
        }
    }
    portable::look_up(16 * done, table, packed, out);
}

#[target_feature(enable = "neon")]
fn run_f32(table: &[f32; 16], packed: &[u8], out: &mut [f32]) {
    // SAFETY: the table holds 64 bytes.
    let uint8x16x4_t(b0, b1, b2, b3) = unsafe { vld4q_u8(table.as_ptr().cast()) };
    let (whole, _) = out.as_chunks_mut::<32>();
    let done = whole.len();
    for (out, packed) in whole.iter_mut().zip(packed.chunks_exact(16)) {
        for (codes, out) in codes(packed).into_iter().zip(out.chunks_exact_mut(16)) {
            let byte = |table| vqtbl1q_u8(table, codes);
            // SAFETY: the piece holds 64 bytes.
            unsafe { vst4q_u8(out.as_mut_ptr().cast(), uint8x16x4_t(byte(b0), byte(b1), byte(b2), byte(b3))) };
        }
    }
    portable::look_up(16 * done, table, packed, out);
}

#[target_feature(enable = "neon")]
fn lut4_f32(l: &Lut4<'_>, start: usize, out: &mut [f32], round: bool) {
    portable::lut4(l, start, out, |s| portable::block_f32(l.table, s, round), |t, p, o| run_f32(t, p, o));
}

#[target_feature(enable = "neon")]
fn lut4_bf16(l: &Lut4<'_>, start: usize, out: &mut [bf16]) {
    portable::lut4(l, start, out, |s| portable::block_bf16(l.table, s), |t, p, o| run_bf16(t, p, o));
}

/// Sums of products in 16 lanes; the rest is added at the end.
#[inline]
#[target_feature(enable = "neon")]
fn dot<T: Copy>(x: &[f32], y: &[T], load: impl Fn(&[T; 16]) -> [float32x4_t; 4], to_f32: impl Fn(T) -> f32) -> f32 {
    let ((xs, x), (ys, y)) = (x.as_chunks::<16>(), y.as_chunks::<16>());
    let mut sums = [vdupq_n_f32(0.0); 4];
    for (x, y) in xs.iter().zip(ys) {
        for (i, (sum, y)) in sums.iter_mut().zip(load(y)).enumerate() {
            // SAFETY: 4 floats from 4 i lie within the 16.
            *sum = vfmaq_f32(*sum, unsafe { vld1q_f32(x.as_ptr().add(LANES * i)) }, y);
        }
    }
    let rest: f32 = x.iter().zip(y).map(|(x, y)| x * to_f32(*y)).sum();
    let [a, b, c, d] = sums;
    vaddvq_f32(vaddq_f32(vaddq_f32(a, b), vaddq_f32(c, d))) + rest
}

#[target_feature(enable = "neon")]
fn dot_f32(x: &[f32], y: &[f32]) -> f32 {
    // SAFETY: 4 floats from 4 i lie within the 16.
    let load = |y: &[f32; 16]| [0, 1, 2, 3].map(|i| unsafe { vld1q_f32(y.as_ptr().add(LANES * i)) });
    dot(x, y, load, |v| v)
}

#[target_feature(enable = "neon")]
fn dot_bf16(x: &[f32], y: &[bf16]) -> f32 {
    let load = |y: &[bf16; 16]| {
        let halves = [0, 8].map(|i| {
            // SAFETY: 8 elements from i lie within the 16.
            let eight = unsafe { vld1q_u16(y.as_ptr().add(i).cast()) };
            [vshll_n_u16::<16>(vget_low_u16(eight)), vshll_high_n_u16::<16>(eight)].map(|it| vreinterpretq_f32_u32(it))
        });
        let [[a, b], [c, d]] = halves;
        [a, b, c, d]
    };
    dot(x, y, load, bf16::to_f32)
}

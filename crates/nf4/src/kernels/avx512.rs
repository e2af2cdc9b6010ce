//! AVX-512 F, BW and VL: a table of sixteen floats, or of sixteen halves, is one register, so a look-up is one
//! permutation.

use std::arch::x86_64::*;

use super::avx2::{self, decode_block, encode_block, pack_nibbles, round_f16, unpack_nibbles};
use super::portable::{self, for_each_block, for_each_run};
use super::{Kernels, Run};
use crate::code::Rule;

pub(super) static KERNELS: Kernels = Kernels {
    name: "avx512",
    encode4,
    decode4_f32,
    decode4_bf16,
    decode4_f16,
    absmax: avx2::absmax,
    widen_bf16: avx2::widen_bf16,
    narrow_bf16: avx2::narrow_bf16,
    encode_i8: avx2::encode_i8,
    decode_i8: avx2::decode_i8,
};

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl")]
fn encode4(x: &[f32], block_size: usize, rule: &Rule, packed: &mut [u8], absmaxes: &mut [f32]) {
    // The search asks for entries 0 to 14.
    let mut thresholds = [f32::INFINITY; 16];
    thresholds[..15].copy_from_slice(&rule.thresholds);
    // SAFETY: sixteen floats and sixteen bytes, unaligned.
    let (thresholds, nibbles) =
        unsafe { (_mm512_loadu_ps(thresholds.as_ptr()), _mm_loadu_si128(rule.nibbles.as_ptr().cast())) };
    let nan_as = _mm512_set1_ps(rule.nan_as);
    for_each_block(x, block_size, packed, absmaxes, |block, scale, bytes| {
        encode_block(block, bytes, |x, out| {
            // SAFETY: reads sixteen floats, and `x` has sixteen.
            let x = unsafe { _mm512_loadu_ps(x.as_ptr()) };
            let ranks = ranks(x, _mm512_set1_ps(scale), nan_as, thresholds);
            pack_nibbles(_mm_shuffle_epi8(nibbles, _mm512_cvtepi32_epi8(ranks)), out);
        });
    });
}

/// The ranks of sixteen values: a binary search whose thresholds are looked up by the rank so far.
#[target_feature(enable = "avx512f")]
fn ranks(x: __m512, scale: __m512, nan_as: __m512, thresholds: __m512) -> __m512i {
    // "Not less than", so that a NaN stays one.
    let normal = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(_mm512_abs_ps(x), _mm512_set1_ps(f32::MIN_POSITIVE));
    let v = _mm512_mul_ps(_mm512_maskz_mov_ps(normal, x), scale);
    let v = _mm512_mask_mov_ps(v, _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v), nan_as);
    let mut rank = _mm512_setzero_si512();
    for step in [8, 4, 2, 1] {
        let threshold = _mm512_permutexvar_ps(_mm512_add_epi32(rank, _mm512_set1_epi32(step - 1)), thresholds);
        let above = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(v, threshold);
        rank = _mm512_mask_add_epi32(rank, above, rank, _mm512_set1_epi32(step));
    }
    rank
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl")]
fn decode4_f32(run: Run<'_>, out: &mut [f32]) {
    for_each_run(run, out, |bytes, table, out| {
        // SAFETY: reads sixteen floats, and the table has sixteen.
        let values = unsafe { _mm512_loadu_ps(table.as_ptr()) };
        decode_block(bytes, table, out, |input, out| {
            let (a, b) = unpack_nibbles(input);
            // SAFETY: two stores of sixteen floats are the 32 that `out` has.
            unsafe {
                let out = out.as_mut_ptr();
                _mm512_storeu_ps(out, _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(a), values));
                _mm512_storeu_ps(out.add(16), _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(b), values));
            }
        });
    });
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl")]
fn decode4_bf16(run: Run<'_>, out: &mut [u16]) {
    for_each_run(run, out, |bytes, table, out| decode_u16(bytes, &portable::rounded_code(table), out));
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl")]
fn decode4_f16(run: Run<'_>, out: &mut [u16]) {
    for_each_run(run, out, |bytes, table, out| decode_u16(bytes, &round_f16(table), out));
}

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
fn decode_u16(bytes: &[u8], table: &[u16; 16], out: &mut [u16]) {
    // SAFETY: reads sixteen halves, and the table has sixteen.
    let values = unsafe { _mm256_loadu_si256(table.as_ptr().cast()) };
    decode_block(bytes, table, out, |input, out| {
        let (a, b) = unpack_nibbles(input);
        // SAFETY: two stores of sixteen halves are the 32 that `out` has.
        unsafe {
            let out = out.as_mut_ptr();
            _mm256_storeu_si256(out.cast(), _mm256_permutexvar_epi16(_mm256_cvtepu8_epi16(a), values));
            _mm256_storeu_si256(out.add(16).cast(), _mm256_permutexvar_epi16(_mm256_cvtepu8_epi16(b), values));
        }
    });
}

//! AVX2 and F16C.

use std::arch::x86_64::*;

use super::portable::{self, for_each_block, for_each_run};
use super::{Kernels, Run};
use crate::code::Rule;

pub(super) static KERNELS: Kernels = Kernels {
    name: "avx2",
    encode4,
    decode4_f32,
    decode4_bf16,
    decode4_f16,
    absmax,
    widen_bf16,
    narrow_bf16,
    encode_i8,
    decode_i8,
};

#[target_feature(enable = "avx2,f16c")]
pub(super) fn absmax(x: &[f32]) -> f32 {
    portable::absmax(x)
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn widen_bf16(x: &[u16], out: &mut [f32]) {
    portable::widen_bf16(x, out);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn narrow_bf16(x: &[f32], out: &mut [u16]) {
    portable::narrow_bf16(x, out);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn encode_i8(x: &[f32], scale: f32, out: &mut [i8]) {
    let (pieces, rest) = x.as_chunks::<16>();
    let (outs, rest_out) = out.as_chunks_mut::<16>();
    for (x, out) in pieces.iter().zip(outs) {
        // SAFETY: two loads of eight floats and a store of sixteen bytes; both arrays have sixteen elements.
        unsafe {
            let a = round_scaled(_mm256_loadu_ps(x.as_ptr()), scale);
            let b = round_scaled(_mm256_loadu_ps(x.as_ptr().add(8)), scale);
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(a, b));
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
        }
    }
    portable::encode_i8(rest, scale, rest_out);
}

/// Clamped to +-127 and rounded, ties to even; NaN to 0. (Clamping first changes nothing, as the bounds are integers.)
#[target_feature(enable = "avx2")]
fn round_scaled(x: __m256, scale: f32) -> __m256i {
    let v = _mm256_mul_ps(x, _mm256_set1_ps(scale));
    let v = _mm256_and_ps(v, _mm256_cmp_ps::<_CMP_ORD_Q>(v, v));
    let v = _mm256_min_ps(_mm256_max_ps(v, _mm256_set1_ps(-127.0)), _mm256_set1_ps(127.0));
    _mm256_cvtps_epi32(v)
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn decode_i8(codes: &[i8], absmax: f32, out: &mut [f32]) {
    portable::decode_i8(codes, absmax, out);
}

/// The thresholds laid out for a binary search: one comparison a level, the next threshold looked up by the rank so far.
struct Search {
    t7: __m256,
    t3: __m256,
    t11: __m256,
    /// Thresholds 1, 5, 9, 13, twice.
    level3: __m256,
    /// Thresholds 0, 2, 4, .. 14.
    level4: __m256,
    nan_as: __m256,
    nibbles: __m128i,
}

impl Search {
    #[target_feature(enable = "avx2")]
    fn new(rule: &Rule) -> Search {
        let t = &rule.thresholds;
        let n = rule.nibbles.map(|n| n as i8);
        Search {
            t7: _mm256_set1_ps(t[7]),
            t3: _mm256_set1_ps(t[3]),
            t11: _mm256_set1_ps(t[11]),
            level3: _mm256_setr_ps(t[1], t[5], t[9], t[13], t[1], t[5], t[9], t[13]),
            level4: _mm256_setr_ps(t[0], t[2], t[4], t[6], t[8], t[10], t[12], t[14]),
            nan_as: _mm256_set1_ps(rule.nan_as),
            nibbles: _mm_setr_epi8(
                n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11], n[12], n[13], n[14], n[15],
            ),
        }
    }

    /// The ranks of eight values.
    #[target_feature(enable = "avx2")]
    fn ranks(&self, x: __m256, scale: __m256) -> __m256i {
        let magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0), x);
        // "Not less than", so that a NaN stays one.
        let normal = _mm256_cmp_ps::<_CMP_NLT_UQ>(magnitude, _mm256_set1_ps(f32::MIN_POSITIVE));
        let v = _mm256_mul_ps(_mm256_and_ps(x, normal), scale);
        let v = _mm256_blendv_ps(v, self.nan_as, _mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
        // A comparison that holds is -1, so subtracting it counts; rank = 2 * rank + bit at each level.
        let above = _mm256_cmp_ps::<_CMP_GT_OQ>(v, self.t7);
        let threshold = _mm256_blendv_ps(self.t3, self.t11, above);
        let rank = _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_castps_si256(above));
        let above = _mm256_cmp_ps::<_CMP_GT_OQ>(v, threshold);
        let rank = _mm256_sub_epi32(_mm256_add_epi32(rank, rank), _mm256_castps_si256(above));
        let above = _mm256_cmp_ps::<_CMP_GT_OQ>(v, _mm256_permutevar8x32_ps(self.level3, rank));
        let rank = _mm256_sub_epi32(_mm256_add_epi32(rank, rank), _mm256_castps_si256(above));
        let above = _mm256_cmp_ps::<_CMP_GT_OQ>(v, _mm256_permutevar8x32_ps(self.level4, rank));
        _mm256_sub_epi32(_mm256_add_epi32(rank, rank), _mm256_castps_si256(above))
    }

    /// Sixteen values to eight bytes.
    #[target_feature(enable = "avx2")]
    fn encode16(&self, x: &[f32; 16], scale: __m256, out: &mut [u8; 8]) {
        // SAFETY: sixteen floats are two unaligned loads of eight.
        let (a, b) = unsafe { (_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))) };
        let (a, b) = (self.ranks(a, scale), self.ranks(b, scale));
        // Packing works within halves: 0-3 of a, 0-3 of b, 4-7 of a, 4-7 of b; put the quarters in order.
        let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(a, b));
        let ranks = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
        pack_nibbles(_mm_shuffle_epi8(self.nibbles, ranks), out);
    }
}

/// Sixteen bytes below 16 to eight bytes, the first of each pair in the high half.
#[target_feature(enable = "avx2")]
pub(super) fn pack_nibbles(nibbles: __m128i, out: &mut [u8; 8]) {
    let pairs = _mm_maddubs_epi16(nibbles, _mm_set1_epi16(0x0110)); // 16 * first + second
    let bytes = _mm_packus_epi16(pairs, pairs);
    // SAFETY: writes eight bytes, and `out` has eight.
    unsafe { _mm_storel_epi64(out.as_mut_ptr().cast(), bytes) }
}

#[target_feature(enable = "avx2,f16c")]
fn encode4(x: &[f32], block_size: usize, rule: &Rule, packed: &mut [u8], absmaxes: &mut [f32]) {
    let search = Search::new(rule);
    for_each_block(x, block_size, packed, absmaxes, |block, scale, bytes| {
        encode_block(block, bytes, |x, out| search.encode16(x, _mm256_set1_ps(scale), out));
    });
}

/// Cuts a block into sixteens; the end is filled up with 0.0, whose code is then also the spare nibble's.
#[inline(always)]
pub(super) fn encode_block(block: &[f32], bytes: &mut [u8], mut encode16: impl FnMut(&[f32; 16], &mut [u8; 8])) {
    let (values, rest) = block.as_chunks::<16>();
    let (outs, rest_out) = bytes.as_chunks_mut::<8>();
    for (x, out) in values.iter().zip(outs.iter_mut()) {
        encode16(x, out);
    }
    if !rest.is_empty() {
        let (mut last, mut out) = ([0.0; 16], [0; 8]);
        last[..rest.len()].copy_from_slice(rest);
        encode16(&last, &mut out);
        // With 15 values left the bytes are eight again, so they may already have been counted as a full piece.
        let target = if rest_out.is_empty() { &mut outs[values.len()][..] } else { rest_out };
        target.copy_from_slice(&out[..rest.len().div_ceil(2)]);
    }
}

/// Sixteen bytes to their 32 nibbles in the order of the elements.
#[target_feature(enable = "avx2")]
pub(super) fn unpack_nibbles(bytes: &[u8; 16]) -> (__m128i, __m128i) {
    // SAFETY: reads sixteen bytes, and `bytes` has sixteen.
    let bytes = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
    let mask = _mm_set1_epi8(15);
    let (high, low) = (_mm_and_si128(_mm_srli_epi16::<4>(bytes), mask), _mm_and_si128(bytes, mask));
    (_mm_unpacklo_epi8(high, low), _mm_unpackhi_epi8(high, low))
}

/// Cuts a block into 32 elements; what is left is looked up one by one.
#[inline(always)]
pub(super) fn decode_block<T: Copy>(
    bytes: &[u8],
    table: &[T; 16],
    out: &mut [T],
    mut decode32: impl FnMut(&[u8; 16], &mut [T; 32]),
) {
    let (pieces, rest) = out.as_chunks_mut::<32>();
    let (inputs, _) = bytes.as_chunks::<16>();
    let done = pieces.len() * 16;
    for (input, piece) in inputs.iter().zip(pieces) {
        decode32(input, piece);
    }
    portable::look_up(&bytes[done..], table, rest);
}

#[target_feature(enable = "avx2,f16c")]
fn decode4_f32(run: Run<'_>, out: &mut [f32]) {
    for_each_run(run, out, |bytes, table, out| {
        // SAFETY: a table of sixteen floats is two unaligned loads of eight.
        let values = unsafe { (_mm256_loadu_ps(table.as_ptr()), _mm256_loadu_ps(table.as_ptr().add(8))) };
        decode_block(bytes, table, out, |input, out| {
            let (a, b) = unpack_nibbles(input);
            // SAFETY: four stores of eight floats are the 32 that `out` has.
            unsafe {
                let out = out.as_mut_ptr();
                _mm256_storeu_ps(out, look_up8(a, values));
                _mm256_storeu_ps(out.add(8), look_up8(_mm_srli_si128::<8>(a), values));
                _mm256_storeu_ps(out.add(16), look_up8(b, values));
                _mm256_storeu_ps(out.add(24), look_up8(_mm_srli_si128::<8>(b), values));
            }
        });
    });
}

/// The values of the first eight nibbles.
#[target_feature(enable = "avx2")]
fn look_up8(nibbles: __m128i, (low, high): (__m256, __m256)) -> __m256 {
    let index = _mm256_cvtepu8_epi32(nibbles);
    // The permutation looks at bits 0-2; bit 3, moved to the sign, chooses between the halves.
    let upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index));
    _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, index), _mm256_permutevar8x32_ps(high, index), upper)
}

#[target_feature(enable = "avx2,f16c")]
fn decode4_bf16(run: Run<'_>, out: &mut [u16]) {
    for_each_run(run, out, |bytes, table, out| decode_u16(bytes, &portable::rounded_code(table), out));
}

#[target_feature(enable = "avx2,f16c")]
fn decode4_f16(run: Run<'_>, out: &mut [u16]) {
    for_each_run(run, out, |bytes, table, out| decode_u16(bytes, &round_f16(table), out));
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn round_f16(table: &[f32; 16]) -> [u16; 16] {
    let mut rounded = [0; 16];
    for (x, out) in table.chunks_exact(8).zip(rounded.chunks_exact_mut(8)) {
        // SAFETY: reads eight floats of a chunk of eight, writes eight halves to a chunk of eight.
        unsafe {
            let half = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(x.as_ptr()));
            _mm_storeu_si128(out.as_mut_ptr().cast(), half);
        }
    }
    rounded
}

/// Low and high bytes are looked up apart, as a shuffle moves bytes, and put together again.
#[target_feature(enable = "avx2")]
fn decode_u16(bytes: &[u8], table: &[u16; 16], out: &mut [u16]) {
    // SAFETY: a table of sixteen halves is two unaligned loads of eight.
    let (a, b) = unsafe { (_mm_loadu_si128(table.as_ptr().cast()), _mm_loadu_si128(table.as_ptr().add(8).cast())) };
    let byte = _mm_set1_epi16(255);
    let low = _mm_packus_epi16(_mm_and_si128(a, byte), _mm_and_si128(b, byte));
    let high = _mm_packus_epi16(_mm_srli_epi16::<8>(a), _mm_srli_epi16::<8>(b));
    decode_block(bytes, table, out, |input, out| {
        let (a, b) = unpack_nibbles(input);
        let (al, ah) = (_mm_shuffle_epi8(low, a), _mm_shuffle_epi8(high, a));
        let (bl, bh) = (_mm_shuffle_epi8(low, b), _mm_shuffle_epi8(high, b));
        // SAFETY: four stores of eight halves are the 32 that `out` has.
        unsafe {
            let out = out.as_mut_ptr();
            _mm_storeu_si128(out.cast(), _mm_unpacklo_epi8(al, ah));
            _mm_storeu_si128(out.add(8).cast(), _mm_unpackhi_epi8(al, ah));
            _mm_storeu_si128(out.add(16).cast(), _mm_unpacklo_epi8(bl, bh));
            _mm_storeu_si128(out.add(24).cast(), _mm_unpackhi_epi8(bl, bh));
        }
    });
}

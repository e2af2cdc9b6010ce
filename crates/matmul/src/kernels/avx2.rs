//! AVX2 and FMA: the f32 tile kernel, and the vector helpers that the AVX-512 kernels use too.

use std::arch::x86_64::*;

use half::bf16;

use super::isa::{GROUP, Isa, Slot, WordRow};
use super::output::{self, Epilogue, Target, Tile};
use super::portable;
use super::tile::{Lanes, SPIN, spin, tile};
use super::{DEPTH, Kernel, Operands};
use crate::sources::Lut4;

/// Whether this machine runs what is in this module.
pub(super) fn detected() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

#[derive(Clone, Copy)]
struct Eight(__m256);

impl Lanes for Eight {
    const WIDTH: usize = 8;
    type Operand = __m256;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: AVX2 is present where `Lanes` of this type are used.
        Eight(unsafe { _mm256_setzero_ps() })
    }
    #[inline(always)]
    unsafe fn load_acc(p: *const f32) -> Self {
        // SAFETY: AVX2 is present, and the caller passes 8 readable floats.
        Eight(unsafe { _mm256_loadu_ps(p) })
    }
    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        // SAFETY: AVX2 is present.
        Eight(unsafe { _mm256_add_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn store_acc(self, p: *mut f32) {
        // SAFETY: AVX2 is present, and the caller passes 8 writable floats.
        unsafe { _mm256_storeu_ps(p, self.0) }
    }
    #[inline(always)]
    unsafe fn load(p: *const u32) -> __m256 {
        // SAFETY: AVX2 is present, and the caller passes 8 readable words.
        unsafe { _mm256_loadu_ps(p.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(p: *const u32) -> __m256 {
        // SAFETY: AVX2 is present, and the caller passes a readable word.
        unsafe { _mm256_broadcast_ss(&*p.cast()) }
    }
    #[inline(always)]
    unsafe fn mul_acc(self, a: __m256, b: __m256) -> Self {
        // SAFETY: FMA is present.
        Eight(unsafe { _mm256_fmadd_ps(a, b, self.0) })
    }
}

/// 12 sums, 2 operand registers and a broadcast: 15 of the 16 registers.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile_6x16(words: usize, a: *const u32, b: *const u32, c: *mut f32, add: bool) {
    // SAFETY: same contract, and the instruction set is enabled.
    unsafe { tile::<Eight, 6, 2, 2>(words, a, b, c, add) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn tile_6x16_narrow(words: usize, a: *const u32, b: *const u32, c: *mut f32, add: bool) {
    // SAFETY: same contract, and the instruction set is enabled.
    unsafe { tile::<Eight, 6, 1, 2>(words, a, b, c, add) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn spin_floats(rounds: usize) -> f32 {
    // SAFETY: the instruction set is enabled.
    unsafe { spin::<Eight>(rounds) }
}

pub(super) static F32: Kernel = Kernel {
    name: "avx2",
    mr: 6,
    nr: 16,
    depth: DEPTH,
    strip: 16,
    operands: Operands::F32,
    tile: tile_6x16,
    narrow: tile_6x16_narrow,
    rounded: None,
    thin: None,
    state: None,
    spin: spin_floats,
    spin_work: 16 * SPIN,
    isa: &ISA,
};
pub(super) static BF16: Kernel = Kernel {
    name: "avx2",
    mr: 6,
    nr: 16,
    depth: DEPTH,
    strip: 16,
    operands: Operands::RoundedF32,
    tile: tile_6x16,
    narrow: tile_6x16_narrow,
    rounded: None,
    thin: None,
    state: None,
    spin: spin_floats,
    spin_work: 16 * SPIN,
    isa: &ISA,
};

pub(super) static ISA: Isa = Isa {
    transpose_f32,
    transpose_bf16,
    lay_pairs: portable::lay_pairs,
    turn_step: portable::turn_step,
    deal_f32,
    deal_pairs,
    lut4_f32,
    lut4_bf16,
    widen,
    round,
    round_in_place,
    dot_f32,
    dot_bf16,
    axpy_f32,
    axpy_bf16,
    store,
    deal_lut4: None,
    dots: None,
};

/// Transposes 8 by 8 words.
#[target_feature(enable = "avx2")]
fn transpose8(r: [__m256i; 8]) -> [__m256i; 8] {
    let lo = |a, b| _mm256_unpacklo_epi32(a, b);
    let hi = |a, b| _mm256_unpackhi_epi32(a, b);
    let lo2 = |a, b| _mm256_unpacklo_epi64(a, b);
    let hi2 = |a, b| _mm256_unpackhi_epi64(a, b);
    let t = [
        lo(r[0], r[1]),
        hi(r[0], r[1]),
        lo(r[2], r[3]),
        hi(r[2], r[3]),
        lo(r[4], r[5]),
        hi(r[4], r[5]),
        lo(r[6], r[7]),
        hi(r[6], r[7]),
    ];
    let u = [
        lo2(t[0], t[2]),
        hi2(t[0], t[2]),
        lo2(t[1], t[3]),
        hi2(t[1], t[3]),
        lo2(t[4], t[6]),
        hi2(t[4], t[6]),
        lo2(t[5], t[7]),
        hi2(t[5], t[7]),
    ];
    [
        _mm256_permute2x128_si256::<0x20>(u[0], u[4]),
        _mm256_permute2x128_si256::<0x20>(u[1], u[5]),
        _mm256_permute2x128_si256::<0x20>(u[2], u[6]),
        _mm256_permute2x128_si256::<0x20>(u[3], u[7]),
        _mm256_permute2x128_si256::<0x31>(u[0], u[4]),
        _mm256_permute2x128_si256::<0x31>(u[1], u[5]),
        _mm256_permute2x128_si256::<0x31>(u[2], u[6]),
        _mm256_permute2x128_si256::<0x31>(u[3], u[7]),
    ]
}

/// Lanes that are transposed at once.
const HALF: usize = GROUP / 2;

/// The two halves of a group, the higher one first, as [`Slot`] asks.
fn halves<'r, 's, T>(rows: &[&'r [T]; GROUP], slot: Slot<'s>, mut f: impl FnMut(&[&'r [T]; HALF], Slot<'_>)) {
    let Slot { panel, width, lane, .. } = slot;
    let (low, high) = rows.split_at(HALF);
    for (rows, lane) in [(high, lane + HALF), (low, lane)] {
        if let (true, Ok(rows)) = (lane < width, rows.try_into()) {
            f(rows, Slot { panel, width, lane, ahead: 0 });
        }
    }
}

/// Transposes as many blocks of 8 words as fit, and returns the word rows done. Each row points at `words` words.
///
/// # Safety
/// Each pointer is readable for `words` words.
#[target_feature(enable = "avx2")]
unsafe fn transpose_words(rows: [*const u8; HALF], words: usize, slot: &mut Slot<'_>) -> usize {
    let mut q = 0;
    while q + 8 <= words && (q + 7) * slot.width + slot.lane + 8 <= slot.panel.len() {
        let mut block = [_mm256_setzero_si256(); 8];
        for (b, row) in block.iter_mut().zip(rows) {
            // SAFETY: words q..q + 8 of a row lie within its `words`.
            *b = unsafe { _mm256_loadu_si256(row.add(4 * q).cast()) };
        }
        for (i, column) in transpose8(block).into_iter().enumerate() {
            // SAFETY: (q + i) * width + lane + 8 <= panel.len() by the loop's condition.
            unsafe {
                let dst = slot.panel.as_mut_ptr().add((q + i) * slot.width + slot.lane);
                _mm256_storeu_si256(dst.cast(), column);
            }
        }
        q += 8;
    }
    q
}

#[target_feature(enable = "avx2")]
fn transpose_f32(rows: &[&[f32]; GROUP], slot: Slot<'_>) {
    let words = rows[0].len();
    assert!(rows.iter().all(|r| r.len() == words), "transposed rows must be of one length");
    halves(rows, slot, |rows, mut slot| {
        // SAFETY: every row is `words` floats long.
        let done = unsafe { transpose_words(rows.map(|r| r.as_ptr().cast()), words, &mut slot) };
        portable::transpose_f32_from(done, rows, slot);
    });
}

#[target_feature(enable = "avx2")]
fn transpose_bf16(rows: &[&[bf16]; GROUP], slot: Slot<'_>) {
    let len = rows[0].len();
    assert!(rows.iter().all(|r| r.len() == len), "transposed rows must be of one length");
    halves(rows, slot, |rows, mut slot| {
        // SAFETY: every row is at least 2 * (len / 2) elements long, that is len / 2 words.
        let done = unsafe { transpose_words(rows.map(|r| r.as_ptr().cast()), len / 2, &mut slot) };
        portable::transpose_bf16_from(done, rows, slot);
    });
}

#[target_feature(enable = "avx2")]
fn deal_f32(row: &[f32], out: WordRow<'_>) {
    portable::deal_f32(row, out);
}

/// 16 pairs a step. Panels of a width that is no multiple of 16 spill into their next word row, which is written later.
#[target_feature(enable = "avx2")]
fn deal_pairs((even, odd): (&[bf16], &[bf16]), out: WordRow<'_>) {
    let n = even.len().min(odd.len());
    let steps = out.width.next_multiple_of(16);
    let mut p = 0;
    while p < out.count
        && p * out.width + steps <= n
        && p * out.stride + steps <= out.words.len()
        && (steps == out.width || out.spill)
    {
        for j in (0..steps).step_by(16) {
            // SAFETY: 16 elements from p * width + j and 16 words from p * stride + j lie within the slices, by the
            // loop's conditions.
            unsafe {
                let from = p * out.width + j;
                // Quarters 0 2 1 3, so that the unpacked halves come out in order.
                let e = _mm256_loadu_si256(even.as_ptr().add(from).cast());
                let o = _mm256_loadu_si256(odd.as_ptr().add(from).cast());
                let e = _mm256_permute4x64_epi64::<0b11_01_10_00>(e);
                let o = _mm256_permute4x64_epi64::<0b11_01_10_00>(o);
                let dst: *mut __m256i = out.words.as_mut_ptr().add(p * out.stride + j).cast();
                _mm256_storeu_si256(dst, _mm256_unpacklo_epi16(e, o));
                _mm256_storeu_si256(dst.add(1), _mm256_unpackhi_epi16(e, o));
            }
        }
        p += 1;
    }
    portable::deal_pairs_from(p, (even, odd), out);
}

/// 16 nibbles of 8 bytes, high first, as bytes.
#[target_feature(enable = "avx2")]
fn nibbles(packed: __m128i) -> (__m128i, __m128i) {
    let mask = _mm_set1_epi8(15);
    let (high, low) = (_mm_and_si128(_mm_srli_epi16::<4>(packed), mask), _mm_and_si128(packed, mask));
    (_mm_unpacklo_epi8(high, low), _mm_unpackhi_epi8(high, low))
}

/// Looks 8 codes up: two permutations of 8 lanes each, chosen by bit 3.
#[target_feature(enable = "avx2")]
fn look_up_f32(low: __m256, high: __m256, codes: __m128i) -> __m256 {
    let codes = _mm256_cvtepu8_epi32(codes);
    let (x, y) = (_mm256_permutevar8x32_ps(low, codes), _mm256_permutevar8x32_ps(high, codes));
    _mm256_blendv_ps(x, y, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes)))
}

#[target_feature(enable = "avx2")]
fn run_f32(table: &[f32; 16], packed: &[u8], out: &mut [f32]) {
    assert!(packed.len() >= out.len().div_ceil(2), "4-bit codes must cover the elements read");
    // SAFETY: the table holds 16 floats.
    let (low, high) = unsafe { (_mm256_loadu_ps(table.as_ptr()), _mm256_loadu_ps(table.as_ptr().add(8))) };
    let mut byte = 0;
    while 2 * byte + 32 <= out.len() {
        // SAFETY: 16 bytes from `byte` and 32 floats from 2 * byte lie within the slices.
        unsafe {
            let (first, second) = nibbles(_mm_loadu_si128(packed.as_ptr().add(byte).cast()));
            let dst = out.as_mut_ptr().add(2 * byte);
            _mm256_storeu_ps(dst, look_up_f32(low, high, first));
            _mm256_storeu_ps(dst.add(8), look_up_f32(low, high, _mm_srli_si128::<8>(first)));
            _mm256_storeu_ps(dst.add(16), look_up_f32(low, high, second));
            _mm256_storeu_ps(dst.add(24), look_up_f32(low, high, _mm_srli_si128::<8>(second)));
        }
        byte += 16;
    }
    portable::look_up(byte, table, packed, out);
}

/// A bf16 is two bytes, so two byte shuffles look up a register of codes.
#[target_feature(enable = "avx2")]
fn run_bf16(table: &[bf16; 16], packed: &[u8], out: &mut [bf16]) {
    assert!(packed.len() >= out.len().div_ceil(2), "4-bit codes must cover the elements read");
    // SAFETY: the table holds 32 bytes.
    let (t0, t1) = unsafe {
        let p: *const __m128i = table.as_ptr().cast();
        (_mm_loadu_si128(p), _mm_loadu_si128(p.add(1)))
    };
    let byte_mask = _mm_set1_epi16(0xff);
    let low = _mm256_broadcastsi128_si256(_mm_packus_epi16(_mm_and_si128(t0, byte_mask), _mm_and_si128(t1, byte_mask)));
    let high = _mm256_broadcastsi128_si256(_mm_packus_epi16(_mm_srli_epi16::<8>(t0), _mm_srli_epi16::<8>(t1)));
    let mask = _mm256_set1_epi8(15);
    let mut byte = 0;
    while 2 * byte + 32 <= out.len() {
        // SAFETY: 16 bytes from `byte` and 32 elements from 2 * byte lie within the slices.
        unsafe {
            // Bytes 0-7 in the low half, 8-15 in the high half, each with a gap, as the unpacking works on halves.
            let p = _mm_loadu_si128(packed.as_ptr().add(byte).cast());
            let p = _mm256_permute4x64_epi64::<0b01_01_00_00>(_mm256_castsi128_si256(p));
            let (h, l) = (_mm256_and_si256(_mm256_srli_epi16::<4>(p), mask), _mm256_and_si256(p, mask));
            let codes = _mm256_unpacklo_epi8(h, l);
            let (x, y) = (_mm256_shuffle_epi8(low, codes), _mm256_shuffle_epi8(high, codes));
            let (first, second) = (_mm256_unpacklo_epi8(x, y), _mm256_unpackhi_epi8(x, y));
            let dst: *mut __m256i = out.as_mut_ptr().add(2 * byte).cast();
            _mm256_storeu_si256(dst, _mm256_permute2x128_si256::<0x20>(first, second));
            _mm256_storeu_si256(dst.add(1), _mm256_permute2x128_si256::<0x31>(first, second));
        }
        byte += 16;
    }
    portable::look_up(byte, table, packed, out);
}

/// Rounds 8 floats to bf16, left in the upper halves; the lower halves are rubbish.
#[target_feature(enable = "avx2")]
fn round_up(x: __m256) -> __m256i {
    let bits = _mm256_castps_si256(x);
    let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
    let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
    let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
    _mm256_blendv_epi8(rounded, quiet, nan)
}

/// The two registers of a table times a scale.
#[target_feature(enable = "avx2")]
fn scaled(table: &[f32; 16], scale: f32) -> (__m256, __m256) {
    let s = _mm256_set1_ps(scale);
    // SAFETY: the table holds 16 floats.
    let (low, high) = unsafe { (_mm256_loadu_ps(table.as_ptr()), _mm256_loadu_ps(table.as_ptr().add(8))) };
    (_mm256_mul_ps(low, s), _mm256_mul_ps(high, s))
}

#[target_feature(enable = "avx2")]
fn block_f32(table: &[f32; 16], scale: f32, round: bool) -> [f32; 16] {
    let (mut low, mut high) = scaled(table, scale);
    if round {
        let upper = _mm256_set1_epi32(0xffff_0000u32 as i32);
        low = _mm256_castsi256_ps(_mm256_and_si256(round_up(low), upper));
        high = _mm256_castsi256_ps(_mm256_and_si256(round_up(high), upper));
    }
    let mut out = [0.0f32; 16];
    // SAFETY: the array holds 16 floats.
    unsafe {
        _mm256_storeu_ps(out.as_mut_ptr(), low);
        _mm256_storeu_ps(out.as_mut_ptr().add(8), high);
    }
    out
}

#[target_feature(enable = "avx2")]
fn block_bf16(table: &[f32; 16], scale: f32) -> [bf16; 16] {
    let (low, high) = scaled(table, scale);
    let halves = _mm256_packus_epi32(_mm256_srli_epi32::<16>(round_up(low)), _mm256_srli_epi32::<16>(round_up(high)));
    let mut out = [bf16::ZERO; 16];
    // SAFETY: the array holds 16 elements of 2 bytes.
    unsafe {
        _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(halves));
    }
    out
}

#[target_feature(enable = "avx2")]
fn lut4_f32(l: &Lut4<'_>, start: usize, out: &mut [f32], round: bool) {
    portable::lut4(l, start, out, |s| block_f32(l.table, s, round), |t, p, o| run_f32(t, p, o));
}

#[target_feature(enable = "avx2")]
fn lut4_bf16(l: &Lut4<'_>, start: usize, out: &mut [bf16]) {
    portable::lut4(l, start, out, |s| block_bf16(l.table, s), |t, p, o| run_bf16(t, p, o));
}

#[target_feature(enable = "avx2")]
fn widen(x: &[bf16], out: &mut [f32]) {
    portable::widen(x, out);
}

#[target_feature(enable = "avx2")]
fn round(x: &[f32], out: &mut [bf16]) {
    portable::round(x, out);
}

#[target_feature(enable = "avx2")]
fn round_in_place(x: &mut [f32]) {
    portable::round_in_place(x);
}

#[target_feature(enable = "avx2,fma")]
fn dot_f32(x: &[f32], y: &[f32]) -> f32 {
    // SAFETY: the loader is called with offsets whose 8 elements lie within both slices.
    unsafe { dot(x, y, |p| _mm256_loadu_ps(p), |v| v) }
}

#[target_feature(enable = "avx2,fma")]
fn dot_bf16(x: &[f32], y: &[bf16]) -> f32 {
    let widen8 = |p: *const bf16| {
        // SAFETY: the caller of the loader passes 8 readable elements.
        let halves = unsafe { _mm_loadu_si128(p.cast()) };
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
    };
    // SAFETY: as in `dot_f32`.
    unsafe { dot(x, y, widen8, bf16::to_f32) }
}

/// Sum of products in 4 registers of 8 sums, then in a fixed order.
///
/// # Safety
/// `load` reads 8 elements from where it is pointed to and needs no more than AVX2.
#[target_feature(enable = "avx2,fma")]
unsafe fn dot<T: Copy>(x: &[f32], y: &[T], load: impl Fn(*const T) -> __m256, to_f32: impl Fn(T) -> f32) -> f32 {
    let n = x.len().min(y.len());
    let mut sums = [_mm256_setzero_ps(); 4];
    let mut i = 0;
    while i + 32 <= n {
        for (j, s) in sums.iter_mut().enumerate() {
            // SAFETY: elements i + 8 j .. i + 8 j + 8 lie below n.
            unsafe {
                *s = _mm256_fmadd_ps(_mm256_loadu_ps(x.as_ptr().add(i + 8 * j)), load(y.as_ptr().add(i + 8 * j)), *s)
            };
        }
        i += 32;
    }
    while i + 8 <= n {
        // SAFETY: elements i..i + 8 lie below n.
        unsafe { sums[0] = _mm256_fmadd_ps(_mm256_loadu_ps(x.as_ptr().add(i)), load(y.as_ptr().add(i)), sums[0]) };
        i += 8;
    }
    let sum = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
    let mut lanes = [0.0f32; 8];
    // SAFETY: the array holds 8 floats.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
    let mut total: f32 = lanes.iter().sum();
    for (&x, &y) in x[i..n].iter().zip(&y[i..n]) {
        total += x * to_f32(y);
    }
    total
}

#[target_feature(enable = "avx2")]
fn axpy_f32(s: f32, x: &[f32], y: &mut [f32]) {
    portable::axpy_f32(s, x, y);
}

#[target_feature(enable = "avx2")]
fn axpy_bf16(s: f32, x: &[bf16], y: &mut [f32]) {
    portable::axpy_bf16(s, x, y);
}

#[target_feature(enable = "avx2")]
fn store(target: &Target<'_>, tile: Tile<'_>, epilogue: &Epilogue<'_>) {
    output::store(target, tile, epilogue);
}

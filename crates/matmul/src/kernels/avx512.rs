//! AVX-512: f32 and bf16 tile kernels. The f32 kernels pack and decode with the AVX2 helpers.

use std::arch::x86_64::*;

use half::bf16;

use super::tile::{Lanes, Rounded, Rows, SPIN, spin, thin, tile, tile_rounded};
use super::{Corner, DEPTH, Kernel, Operands, Under, avx2, avx512_isa};

/// Whether this machine runs the f32 kernel.
pub(super) fn detected() -> bool {
    avx2::detected() && is_x86_feature_detected!("avx512f")
}

/// Whether this machine runs the bf16 kernel too.
pub(super) fn bf16_detected() -> bool {
    avx512_isa::detected()
}

macro_rules! sixteen {
    ($name:ident, $operand:ty, |$p:ident| load $load:expr, splat $splat:expr, |$s:ident, $a:ident, $b:ident| $mul:expr) => {
        #[derive(Clone, Copy)]
        struct $name(__m512);

        impl Lanes for $name {
            const WIDTH: usize = 16;
            type Operand = $operand;

            #[inline(always)]
            unsafe fn zero() -> Self {
                // SAFETY: AVX-512 is present where `Lanes` of this type are used.
                $name(unsafe { _mm512_setzero_ps() })
            }
            #[inline(always)]
            unsafe fn load_acc(p: *const f32) -> Self {
                // SAFETY: AVX-512 is present, and the caller passes 16 readable floats.
                $name(unsafe { _mm512_loadu_ps(p) })
            }
            #[inline(always)]
            unsafe fn plus(self, other: Self) -> Self {
                // SAFETY: AVX-512 is present.
                $name(unsafe { _mm512_add_ps(self.0, other.0) })
            }
            #[inline(always)]
            unsafe fn store_acc(self, p: *mut f32) {
                // SAFETY: AVX-512 is present, and the caller passes 16 writable floats.
                unsafe { _mm512_storeu_ps(p, self.0) }
            }
            #[inline(always)]
            unsafe fn load($p: *const u32) -> $operand {
                // SAFETY: AVX-512 is present, and the caller passes 16 readable words.
                unsafe { $load }
            }
            #[inline(always)]
            unsafe fn splat($p: *const u32) -> $operand {
                // SAFETY: AVX-512 is present, and the caller passes a readable word.
                unsafe { $splat }
            }
            #[inline(always)]
            unsafe fn mul_acc(self, $a: $operand, $b: $operand) -> Self {
                let $s = self.0;
                // SAFETY: the instruction set is present.
                $name(unsafe { $mul })
            }
        }
    };
}

sixteen!(Floats, __m512, |p| load _mm512_loadu_ps(p.cast()), splat _mm512_set1_ps(*p.cast()),
    |s, a, b| _mm512_fmadd_ps(a, b, s));
// A register of bf16 pairs is the same 512 bits under another type.
sixteen!(Pairs, __m512i, |p| load _mm512_loadu_si512(p.cast()), splat _mm512_set1_epi32(p.cast::<i32>().read()),
    |s, a, b| _mm512_dpbf16_ps(s, std::mem::transmute::<__m512i, __m512bh>(a), std::mem::transmute::<__m512i, __m512bh>(b)));

impl Rows for Floats {
    const EACH: usize = 1;

    #[inline(always)]
    unsafe fn read(first: *const u8, _: usize, _: usize, cols: usize) -> [__m512; 2] {
        // SAFETY: the masks cover the columns that the caller promises.
        unsafe {
            let first: *const f32 = first.cast();
            if cols == 32 {
                return [_mm512_loadu_ps(first), _mm512_loadu_ps(first.add(16))];
            }
            let mask = (1u32 << cols) - 1;
            [
                _mm512_maskz_loadu_ps(mask as u16, first),
                _mm512_maskz_loadu_ps((mask >> 16) as u16, first.wrapping_add(16)),
            ]
        }
    }
}

impl Rows for Pairs {
    const EACH: usize = 2;

    #[inline(always)]
    unsafe fn read(first: *const u8, stride: usize, rows: usize, cols: usize) -> [__m512i; 2] {
        // SAFETY: the mask covers the columns that the caller promises, in as many rows.
        unsafe {
            let mask = if cols == 32 { u32::MAX } else { (1u32 << cols) - 1 };
            let load = |p: *const u8| match cols {
                32 => _mm512_loadu_si512(p.cast()),
                _ => _mm512_maskz_loadu_epi16(mask, p.cast()),
            };
            let odd = if rows == 2 { load(first.add(stride)) } else { _mm512_setzero_si512() };
            avx512_isa::interleave(load(first), odd)
        }
    }
}

impl Rounded for Pairs {
    #[inline(always)]
    unsafe fn store_rounded([low, high]: [Self; 2], p: *mut bf16) {
        // SAFETY: the instruction set is present, and the caller passes 32 writable elements.
        unsafe {
            let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high.0, low.0));
            _mm512_storeu_si512(p.cast(), both);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn tile_bf16_rounded(words: usize, panels: (*const u32, *const u32), c: (*const f32, bool), out: Corner) {
    // SAFETY: same contract, and the instruction set is enabled.
    unsafe { tile_rounded::<Pairs, 14>(words, panels, c, out) }
}

#[target_feature(enable = "avx512f")]
unsafe fn thin_f32(a: (*const u32, usize), b: Under, c: (*mut f32, usize)) {
    // SAFETY: same contract, and the instruction set is enabled.
    unsafe { thin::<Floats>(a, b, c) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn thin_bf16(a: (*const u32, usize), b: Under, c: (*mut f32, usize)) {
    // SAFETY: same contract, and the instruction set is enabled.
    unsafe { thin::<Pairs>(a, b, c) }
}

/// 28 sums, 2 operand registers and a broadcast: 31 of the 32 registers.
#[target_feature(enable = "avx512f")]
unsafe fn tile_f32(words: usize, a: *const u32, b: *const u32, c: *mut f32, add: bool) {
    // SAFETY: same contract, and the instruction set is enabled.
    unsafe { tile::<Floats, 14, 2, 2>(words, a, b, c, add) }
}

#[target_feature(enable = "avx512f")]
unsafe fn tile_f32_narrow(words: usize, a: *const u32, b: *const u32, c: *mut f32, add: bool) {
    // SAFETY: same contract, and the instruction set is enabled.
    unsafe { tile::<Floats, 14, 1, 2>(words, a, b, c, add) }
}

#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn tile_bf16(words: usize, a: *const u32, b: *const u32, c: *mut f32, add: bool) {
    // SAFETY: same contract, and the instruction set is enabled.
    unsafe { tile::<Pairs, 14, 2, 2>(words, a, b, c, add) }
}

#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn tile_bf16_narrow(words: usize, a: *const u32, b: *const u32, c: *mut f32, add: bool) {
    // SAFETY: same contract, and the instruction set is enabled.
    unsafe { tile::<Pairs, 14, 1, 2>(words, a, b, c, add) }
}

#[target_feature(enable = "avx512f")]
unsafe fn spin_f32(rounds: usize) -> f32 {
    // SAFETY: the instruction set is enabled.
    unsafe { spin::<Floats>(rounds) }
}

#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn spin_bf16(rounds: usize) -> f32 {
    // SAFETY: the instruction set is enabled.
    unsafe { spin::<Pairs>(rounds) }
}

pub(super) static F32: Kernel = Kernel {
    name: "avx512",
    mr: 14,
    nr: 32,
    depth: DEPTH,
    strip: 32,
    operands: Operands::F32,
    tile: tile_f32,
    narrow: tile_f32_narrow,
    rounded: None,
    thin: Some(thin_f32),
    state: None,
    spin: spin_f32,
    spin_work: 32 * SPIN,
    isa: &avx2::ISA,
};
/// For machines without bf16 instructions.
pub(super) static ROUNDED: Kernel = Kernel {
    name: "avx512",
    mr: 14,
    nr: 32,
    depth: DEPTH,
    strip: 32,
    operands: Operands::RoundedF32,
    tile: tile_f32,
    narrow: tile_f32_narrow,
    rounded: None,
    thin: None,
    state: None,
    spin: spin_f32,
    spin_work: 32 * SPIN,
    isa: &avx2::ISA,
};
pub(super) static BF16: Kernel = Kernel {
    name: "avx512bf16",
    mr: 14,
    nr: 32,
    depth: DEPTH,
    strip: 32,
    operands: Operands::Bf16Pairs,
    tile: tile_bf16,
    narrow: tile_bf16_narrow,
    rounded: Some(tile_bf16_rounded),
    thin: Some(thin_bf16),
    state: None,
    spin: spin_bf16,
    spin_work: 64 * SPIN,
    isa: &avx512_isa::ISA,
};

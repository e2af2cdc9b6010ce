//! NEON: the f32 tile kernel that every 64-bit ARM runs, and one for bf16 on those with its matrix instruction.
//!
//! `bfmmla` multiplies two rows of four elements by two columns of four, into two by two sums. The panels are those of pairs: two
//! word rows, zipped, are rows or columns of four elements.

use std::arch::aarch64::*;
use std::arch::asm;

use super::tile::{Lanes, SPIN, spin, tile};
use super::{DEPTH, Kernel, Operands, neon_isa};

/// Rows and columns of a tile: 24 registers of sums, in f32 as 8 by 3, in bf16 as 4 by 6 of two by two.
const MR: usize = 8;
const NR: usize = 12;

/// Whether this machine multiplies matrices of bf16. NEON itself is there on every machine that this is compiled for.
pub(super) fn bf16_detected() -> bool {
    std::arch::is_aarch64_feature_detected!("bf16")
}

#[derive(Clone, Copy)]
struct Floats(float32x4_t);

impl Lanes for Floats {
    const WIDTH: usize = 4;
    type Operand = float32x4_t;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: NEON is always there.
        Floats(unsafe { vdupq_n_f32(0.0) })
    }
    #[inline(always)]
    unsafe fn load_acc(p: *const f32) -> Self {
        // SAFETY: the caller passes 4 readable floats.
        Floats(unsafe { vld1q_f32(p) })
    }
    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        // SAFETY: NEON is always there.
        Floats(unsafe { vaddq_f32(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn store_acc(self, p: *mut f32) {
        // SAFETY: the caller passes 4 writable floats.
        unsafe { vst1q_f32(p, self.0) }
    }
    #[inline(always)]
    unsafe fn load(p: *const u32) -> float32x4_t {
        // SAFETY: the caller passes 4 readable words.
        unsafe { vld1q_f32(p.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(p: *const u32) -> float32x4_t {
        // SAFETY: the caller passes a readable word.
        unsafe { vld1q_dup_f32(p.cast()) }
    }
    #[inline(always)]
    unsafe fn mul_acc(self, a: float32x4_t, b: float32x4_t) -> Self {
        // SAFETY: NEON is always there.
        Floats(unsafe { vfmaq_f32(self.0, a, b) })
    }
}

unsafe fn tile_f32(words: usize, a: *const u32, b: *const u32, c: *mut f32, add: bool) {
    // SAFETY: same contract; NEON is always there.
    unsafe { tile::<Floats, MR, 3, 3>(words, a, b, c, add) }
}

/// Eight columns: the first half and what else its registers hold.
unsafe fn tile_f32_narrow(words: usize, a: *const u32, b: *const u32, c: *mut f32, add: bool) {
    // SAFETY: same contract; NEON is always there.
    unsafe { tile::<Floats, MR, 2, 3>(words, a, b, c, add) }
}

unsafe fn spin_f32(rounds: usize) -> f32 {
    // SAFETY: NEON is always there.
    unsafe { spin::<Floats>(rounds) }
}

/// sums (2, 2) += a (2, 4) · b (2, 4)ᵀ: the intrinsic is unstable. Stands only where the feature is enabled.
macro_rules! bfmmla {
    ($sums:expr, $a:expr, $b:expr) => {
        asm!(
            "bfmmla {sums:v}.4s, {a:v}.8h, {b:v}.8h",
            sums = inout(vreg) $sums,
            a = in(vreg) $a,
            b = in(vreg) $b,
            options(pure, nomem, nostack, preserves_flags)
        )
    };
}

/// Four lanes of two word rows as two operands: lanes 0 and 1, lanes 2 and 3, each with four elements along k.
///
/// # Safety
/// There are 4 readable words in each row.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn zipped(first: *const u32, second: Option<*const u32>) -> [uint32x4_t; 2] {
    // SAFETY: the caller passes 4 readable words in each row.
    let (x, y) = unsafe { (vld1q_u32(first), second.map_or(vdupq_n_u32(0), |it| vld1q_u32(it))) };
    [vzip1q_u32(x, y), vzip2q_u32(x, y)]
}

/// The first `4 * QUADS` columns of c (8, 12) = \[c +\] a · b over `words` word rows of pairs.
///
/// # Safety
/// `a` holds words * 8 words, `b` words * 12 and `c` 96 floats; the processor has `bf16`.
#[target_feature(enable = "neon,bf16")]
unsafe fn tile_of<const QUADS: usize>(words: usize, a: *const u32, b: *const u32, c: *mut f32, add: bool) {
    // Of each two rows and four columns: columns 0 and 1, columns 2 and 3.
    let mut sums = [[[vdupq_n_f32(0.0); 2]; QUADS]; MR / 2];
    for q in (0..words).step_by(2) {
        let second = q + 1 < words;
        // SAFETY: word rows q and, where there is one, q + 1 of 8 and of 12 words lie within the panels; the feature is
        // enabled.
        unsafe {
            let (a, b) = (a.add(q * MR), b.add(q * NR));
            let [a01, a23] = zipped(a, second.then(|| a.add(MR)));
            let [a45, a67] = zipped(a.add(4), second.then(|| a.add(MR + 4)));
            for j in 0..QUADS {
                let [low, high] = zipped(b.add(4 * j), second.then(|| b.add(NR + 4 * j)));
                for (sums, a) in sums.iter_mut().zip([a01, a23, a45, a67]) {
                    bfmmla!(sums[j][0], a, low);
                    bfmmla!(sums[j][1], a, high);
                }
            }
        }
    }
    for (i, rows) in sums.iter().enumerate() {
        for (j, [low, high]) in rows.iter().enumerate() {
            let upper = vcombine_f32(vget_low_f32(*low), vget_low_f32(*high));
            let lower = vcombine_f32(vget_high_f32(*low), vget_high_f32(*high));
            for (row, sum) in [upper, lower].into_iter().enumerate() {
                // SAFETY: columns 4 j .. 4 j + 4 of row 2 i + row lie within the tile.
                unsafe {
                    let p = c.add((2 * i + row) * NR + 4 * j);
                    vst1q_f32(p, if add { vaddq_f32(sum, vld1q_f32(p)) } else { sum });
                }
            }
        }
    }
}

unsafe fn tile_bf16(words: usize, a: *const u32, b: *const u32, c: *mut f32, add: bool) {
    // SAFETY: same contract.
    unsafe { tile_of::<3>(words, a, b, c, add) }
}

unsafe fn tile_bf16_narrow(words: usize, a: *const u32, b: *const u32, c: *mut f32, add: bool) {
    // SAFETY: same contract.
    unsafe { tile_of::<2>(words, a, b, c, add) }
}

#[target_feature(enable = "neon,bf16")]
unsafe fn spin_bf16(rounds: usize) -> f32 {
    // 1.0 as bf16 in every element.
    let ones = vdupq_n_u32(std::hint::black_box(0x3f80_3f80));
    let mut sums = [vdupq_n_f32(0.0); SPIN];
    for _ in 0..rounds {
        for sum in &mut sums {
            // SAFETY: the feature is enabled.
            unsafe { bfmmla!(*sum, ones, ones) };
        }
    }
    sums.into_iter().map(|it| vaddvq_f32(it)).sum()
}

/// What all kernels here share.
const KERNEL: Kernel = Kernel {
    name: "neon",
    mr: MR,
    nr: NR,
    depth: DEPTH,
    strip: NR,
    operands: Operands::F32,
    tile: tile_f32,
    narrow: tile_f32_narrow,
    rounded: None,
    thin: None,
    state: None,
    spin: spin_f32,
    spin_work: 8 * SPIN,
    isa: &neon_isa::ISA,
};
pub(super) static F32: Kernel = KERNEL;
/// For machines without bf16 instructions.
pub(super) static ROUNDED: Kernel = Kernel { operands: Operands::RoundedF32, ..KERNEL };
pub(super) static BF16: Kernel = Kernel {
    name: "neonbf16",
    operands: Operands::Bf16Pairs,
    tile: tile_bf16,
    narrow: tile_bf16_narrow,
    spin: spin_bf16,
    spin_work: 32 * SPIN,
    ..KERNEL
};

//! Software models of the AVX-512 tile kernels, so that tests on any machine run their panel layouts and loops.

use super::tile::{Lanes, SPIN, spin, tile};
use super::{Isa, Kernel, Operands};

#[derive(Clone, Copy)]
struct Sixteen<const PAIRS: bool>([f32; 16]);

impl<const PAIRS: bool> Lanes for Sixteen<PAIRS> {
    const WIDTH: usize = 16;
    type Operand = [u32; 16];

    unsafe fn zero() -> Self {
        Sixteen([0.0; 16])
    }
    unsafe fn load_acc(p: *const f32) -> Self {
        // SAFETY: the caller passes 16 readable floats.
        Sixteen(unsafe { p.cast::<[f32; 16]>().read_unaligned() })
    }
    unsafe fn plus(self, other: Self) -> Self {
        Sixteen(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }
    unsafe fn store_acc(self, p: *mut f32) {
        // SAFETY: the caller passes 16 writable floats.
        unsafe { p.cast::<[f32; 16]>().write_unaligned(self.0) }
    }
    unsafe fn load(p: *const u32) -> [u32; 16] {
        // SAFETY: the caller passes 16 readable words.
        unsafe { p.cast::<[u32; 16]>().read_unaligned() }
    }
    unsafe fn splat(p: *const u32) -> [u32; 16] {
        // SAFETY: the caller passes a readable word.
        [unsafe { *p }; 16]
    }
    unsafe fn mul_acc(self, a: [u32; 16], b: [u32; 16]) -> Self {
        Sixteen(std::array::from_fn(|i| {
            if PAIRS {
                let (odd, even) = (|w: u32| f32::from_bits(w & 0xffff_0000), |w: u32| f32::from_bits(w << 16));
                self.0[i] + odd(a[i]) * odd(b[i]) + even(a[i]) * even(b[i])
            } else {
                self.0[i] + f32::from_bits(a[i]) * f32::from_bits(b[i])
            }
        }))
    }
}

unsafe fn tile_14x32<const PAIRS: bool>(words: usize, a: *const u32, b: *const u32, c: *mut f32, add: bool) {
    // SAFETY: same contract; plain arrays need no instruction set.
    unsafe { tile::<Sixteen<PAIRS>, 14, 2, 2>(words, a, b, c, add) }
}

unsafe fn tile_14x32_narrow<const PAIRS: bool>(words: usize, a: *const u32, b: *const u32, c: *mut f32, add: bool) {
    // SAFETY: same contract; plain arrays need no instruction set.
    unsafe { tile::<Sixteen<PAIRS>, 14, 1, 2>(words, a, b, c, add) }
}

unsafe fn spin_model(rounds: usize) -> f32 {
    // SAFETY: plain arrays need no instruction set.
    unsafe { spin::<Sixteen<false>>(rounds) }
}

/// The model of every AVX-512 kernel on top of the vector helpers `isa`.
pub(super) const fn kernel(name: &'static str, operands: Operands, isa: &'static Isa) -> Kernel {
    let tile = if matches!(operands, Operands::Bf16Pairs) { tile_14x32::<true> } else { tile_14x32::<false> };
    let narrow =
        if matches!(operands, Operands::Bf16Pairs) { tile_14x32_narrow::<true> } else { tile_14x32_narrow::<false> };
    Kernel { name, mr: 14, nr: 32, operands, tile, narrow, spin: spin_model, spin_work: 32 * SPIN, isa }
}

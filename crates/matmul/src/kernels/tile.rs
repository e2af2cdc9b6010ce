//! The inner loops, written once over a register type and compiled per instruction set.

#[cfg(any(test, target_arch = "x86_64"))]
use half::bf16;

#[cfg(any(test, target_arch = "x86_64"))]
use super::{THIN, Under, output::Corner};

/// A register of f32 sums and the operand registers that feed it.
///
/// Every method is inlined into a function that enables the instruction set, and may only be called where that set is
/// present.
pub(crate) trait Lanes: Copy {
    /// Lanes (f32 sums) in a register.
    const WIDTH: usize;
    /// A register of operand words.
    type Operand: Copy;

    unsafe fn zero() -> Self;
    /// Reads `WIDTH` floats.
    unsafe fn load_acc(p: *const f32) -> Self;
    /// self + other.
    unsafe fn plus(self, other: Self) -> Self;
    /// Writes `WIDTH` floats.
    unsafe fn store_acc(self, p: *mut f32);
    /// Reads `WIDTH` words.
    unsafe fn load(p: *const u32) -> Self::Operand;
    /// Reads one word into every lane.
    unsafe fn splat(p: *const u32) -> Self::Operand;
    /// self + a * b, over both elements of a word where words are pairs.
    unsafe fn mul_acc(self, a: Self::Operand, b: Self::Operand) -> Self;
}

/// a · b over `words` word rows: the first NV registers of each of MR rows, in the order in which everything here is summed.
///
/// # Safety
/// `a` holds words * MR words and `b` words * STRIDE * WIDTH words; NV is at most STRIDE; the instruction set of `L` is present.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "indices keep the sums in registers")]
unsafe fn sums<L: Lanes, const MR: usize, const NV: usize, const STRIDE: usize>(
    words: usize,
    a: *const u32,
    b: *const u32,
) -> [[L; NV]; MR] {
    // SAFETY: all offsets stay below the lengths that the caller promised: row q of `a` starts at q * MR, row q of `b`
    // at q * STRIDE * WIDTH.
    unsafe {
        let mut acc = [[L::zero(); NV]; MR];
        let (mut a, mut b) = (a, b);
        for _ in 0..words {
            let mut bv = [L::load(b); NV];
            for j in 1..NV {
                bv[j] = L::load(b.add(j * L::WIDTH));
            }
            for i in 0..MR {
                let av = L::splat(a.add(i));
                for j in 0..NV {
                    acc[i][j] = acc[i][j].mul_acc(av, bv[j]);
                }
            }
            a = a.add(MR);
            b = b.add(STRIDE * L::WIDTH);
        }
        acc
    }
}

/// The first NV registers of each row of c (MR, STRIDE * WIDTH) = \[c +\] a · b over `words` word rows.
///
/// # Safety
/// As of [`sums`]; `c` holds MR * STRIDE * WIDTH floats.
#[inline(always)]
pub(crate) unsafe fn tile<L: Lanes, const MR: usize, const NV: usize, const STRIDE: usize>(
    words: usize,
    a: *const u32,
    b: *const u32,
    c: *mut f32,
    add: bool,
) {
    // SAFETY: row i of `c` starts at i * STRIDE * WIDTH.
    unsafe {
        for (i, row) in sums::<L, MR, NV, STRIDE>(words, a, b).iter().enumerate() {
            for (j, &sum) in row.iter().enumerate() {
                let p = c.add((i * STRIDE + j) * L::WIDTH);
                let sum = if add { sum.plus(L::load_acc(p)) } else { sum };
                sum.store_acc(p);
            }
        }
    }
}

/// Sums that leave as bf16.
#[cfg(any(test, target_arch = "x86_64"))]
pub(crate) trait Rounded: Lanes {
    /// Writes two registers of sums, rounded, one after the other.
    unsafe fn store_rounded(sums: [Self; 2], p: *mut bf16);
}

/// \[c +\] a · b over `words` word rows, (MR, 2 WIDTH), rounded into rows of an output: what [`tile`] and a pass over its sums give.
///
/// # Safety
/// As of [`sums`]; `c` holds MR * 2 * WIDTH floats if `add`; `out` describes writable memory of that extent.
#[cfg(any(test, target_arch = "x86_64"))]
#[inline(always)]
pub(crate) unsafe fn tile_rounded<L: Rounded, const MR: usize>(
    words: usize,
    (a, b): (*const u32, *const u32),
    (c, add): (*const f32, bool),
    out: Corner,
) {
    // SAFETY: row i of `c` starts at i * 2 * WIDTH, that of the output at i * stride.
    unsafe {
        for (i, &[mut low, mut high]) in sums::<L, MR, 2, 2>(words, a, b).iter().enumerate() {
            if add {
                let p = c.add(i * 2 * L::WIDTH);
                (low, high) = (low.plus(L::load_acc(p)), high.plus(L::load_acc(p.add(L::WIDTH))));
            }
            L::store_rounded([low, high], out.first.add(i * out.stride));
        }
    }
}

/// Registers that can be filled from rows of a matrix as it is stored.
#[cfg(any(test, target_arch = "x86_64"))]
pub(crate) trait Rows: Lanes {
    /// Stored rows that a word row is made of: two where words are pairs.
    const EACH: usize;

    /// The words of two registers' lanes under `first`, from one or two stored rows `stride` bytes apart; a row that is absent is
    /// zero, and so are lanes from `cols` on, which are not read.
    unsafe fn read(first: *const u8, stride: usize, rows: usize, cols: usize) -> [Self::Operand; 2];
}

/// c (THIN, 2 WIDTH) += aᵀ · b over stored rows of b, of which nothing was packed: see [`Under`].
///
/// # Safety
/// `a` holds a word for each of THIN lanes every `a_stride` words, for as many word rows as `b` makes; `b` describes readable
/// memory; `c` holds 2 WIDTH floats every `c_stride`, THIN times; the instruction set of `L` is present.
#[cfg(any(test, target_arch = "x86_64"))]
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "indices keep the sums in registers")]
pub(crate) unsafe fn thin<L: Rows>((a, a_stride): (*const u32, usize), b: Under, (c, c_stride): (*mut f32, usize)) {
    // SAFETY: all offsets stay below what the caller promised.
    unsafe {
        let mut acc = [[L::zero(); 2]; THIN];
        for i in 0..THIN {
            for j in 0..2 {
                acc[i][j] = L::load_acc(c.add(i * c_stride + j * L::WIDTH));
            }
        }
        let (mut a, mut first, mut left) = (a, b.first, b.rows);
        while left > 0 {
            let rows = left.min(L::EACH);
            let bv = L::read(first, b.stride, rows, b.cols);
            for i in 0..THIN {
                let av = L::splat(a.add(i));
                for j in 0..2 {
                    acc[i][j] = acc[i][j].mul_acc(av, bv[j]);
                }
            }
            // What follows the last row is not read, and may lie outside.
            (a, first, left) = (a.wrapping_add(a_stride), first.wrapping_add(rows * b.stride), left - rows);
        }
        for i in 0..THIN {
            for j in 0..2 {
                acc[i][j].store_acc(c.add(i * c_stride + j * L::WIDTH));
            }
        }
    }
}

/// `rounds` times 12 independent multiply-adds that touch no memory: what bounds every product. Returns something that
/// depends on all of them.
///
/// # Safety
/// The instruction set of `L` is present.
#[inline(always)]
pub(crate) unsafe fn spin<L: Lanes>(rounds: usize) -> f32 {
    // 1.0 twice as bf16, close to 1 as f32.
    let words = std::hint::black_box([0x3f80_3f80u32; 16]);
    let mut last = [0.0f32; 16];
    // SAFETY: no register is wider than 16 words.
    unsafe {
        let (a, b) = (L::load(words.as_ptr()), L::splat(words.as_ptr()));
        let mut sums = [L::zero(); SPIN];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = sum.mul_acc(a, b);
            }
        }
        let mut total = L::zero();
        for sum in sums {
            total = total.plus(sum);
        }
        total.store_acc(last.as_mut_ptr());
    }
    last[0]
}

/// Multiply-adds of a round of [`spin`]: enough to hide their latency, few enough for 16 registers.
pub(crate) const SPIN: usize = 12;

//! The one inner loop, written once over a register type and compiled per instruction set.

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

/// The first NV registers of each row of c (MR, STRIDE * WIDTH) = \[c +\] a · b over `words` word rows.
///
/// # Safety
/// `a` holds words * MR words, `b` words * STRIDE * WIDTH words and `c` MR * STRIDE * WIDTH floats; NV is at most
/// STRIDE; the instruction set of `L` is present.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "indices keep the sums in registers")]
pub(crate) unsafe fn tile<L: Lanes, const MR: usize, const NV: usize, const STRIDE: usize>(
    words: usize,
    a: *const u32,
    b: *const u32,
    c: *mut f32,
    add: bool,
) {
    // SAFETY: all offsets stay below the lengths that the caller promised: row q of `a` starts at q * MR, row q of `b`
    // at q * STRIDE * WIDTH, row i of `c` at i * STRIDE * WIDTH.
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
        for (i, row) in acc.iter().enumerate() {
            for (j, &sum) in row.iter().enumerate() {
                let p = c.add((i * STRIDE + j) * L::WIDTH);
                let sum = if add { sum.plus(L::load_acc(p)) } else { sum };
                sum.store_acc(p);
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

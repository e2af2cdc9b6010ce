//! What a kernel is, and the kernels of each instruction set.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_dots;
#[cfg(target_arch = "x86_64")]
mod avx512_isa;
mod choice;
mod isa;
#[cfg(test)]
mod model;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_isa;
mod output;
mod portable;
mod tile;
pub(crate) mod words;

#[cfg(test)]
pub(crate) use choice::all;
pub(crate) use choice::select;
pub use choice::{available_kernels, kernel_name, register_peak, register_peaks};
pub(crate) use isa::{Dots, GROUP, Isa, Slot, Stored, WordRow};
pub(crate) use output::{Corner, Epilogue, Target, Tile};

/// How a kernel wants its operands in a panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operands {
    /// A word is one f32.
    F32,
    /// A word is one f32 that was rounded to bf16.
    RoundedF32,
    /// A word is two consecutive elements along k, as bf16, the first in the low half.
    Bf16Pairs,
    /// Pairs, in steps of 16 word rows of which the last is filled up with zeros. In a left panel the 16 words of a lane
    /// lie side by side: word `q` of lane `i` of a step is `step[i * 16 + q]`.
    Bf16Tiles,
}

impl Operands {
    /// Word rows that `k` elements take.
    pub(crate) fn words(self, k: usize) -> usize {
        match self {
            Operands::F32 | Operands::RoundedF32 => k,
            Operands::Bf16Pairs => k.div_ceil(2),
            Operands::Bf16Tiles => k.div_ceil(2 * STEP) * STEP,
        }
    }

    /// Elements of `words` word rows.
    pub(crate) fn elements(self, words: usize) -> usize {
        if self.are_bf16() { 2 * words } else { words }
    }

    /// Whether a word is a pair.
    pub(crate) fn are_bf16(self) -> bool {
        matches!(self, Operands::Bf16Pairs | Operands::Bf16Tiles)
    }

    /// k may be cut at multiples of so many word rows.
    pub(crate) fn granule(self) -> usize {
        if self == Operands::Bf16Tiles { STEP } else { 1 }
    }
}

/// Word rows that kernels on vector registers sum at once.
const DEPTH: usize = 384;

/// Word rows of a step of [`Operands::Bf16Tiles`].
pub(crate) const STEP: usize = 16;
/// Lanes of a left panel of [`Operands::Bf16Tiles`].
pub(crate) const TILE_LANES: usize = 32;

/// Words, panel of a, panel of b, tile of c, and whether to add to c.
pub(crate) type Multiply = unsafe fn(usize, *const u32, *const u32, *mut f32, bool);

/// Columns of a thin operand that are multiplied together, and stored columns that they meet.
pub(crate) const THIN: usize = 8;
pub(crate) const THIN_COLS: usize = 32;

/// Some columns of some rows of a matrix as it is stored.
#[cfg_attr(not(any(test, target_arch = "x86_64")), expect(dead_code, reason = "only AVX-512 has thin products"))]
#[derive(Clone, Copy)]
pub(crate) struct Under {
    first: *const u8,
    /// Bytes from one row to the next.
    stride: usize,
    rows: usize,
    /// At most [`THIN_COLS`].
    cols: usize,
}

impl Under {
    /// `cols` columns from `start` on of `rows` rows of `stored`, `stride` elements apart.
    ///
    /// # Panics
    /// If it has no such elements, or `cols` are more than [`THIN_COLS`].
    pub(crate) fn new<T>(stored: &[T], start: usize, stride: usize, (rows, cols): (usize, usize)) -> Under {
        assert!(0 < cols && cols <= THIN_COLS && rows > 0, "a thin product takes {THIN_COLS} columns at once");
        assert!(
            start + (rows - 1) * stride + cols <= stored.len(),
            "a thin product was handed rows that are too short"
        );
        Under { first: stored[start..].as_ptr().cast(), stride: stride * size_of::<T>(), rows, cols }
    }
}

/// c (THIN, THIN_COLS) += aᵀ · b: word rows of `a`, and floats of `c`, with what lies from one to the next.
pub(crate) type MultiplyThin = unsafe fn((*const u32, usize), Under, (*mut f32, usize));

/// out (mr, nr) = \[c +\] a · b, rounded: words, panels of a and b, tile of c and whether to add it.
pub(crate) type MultiplyRounded = unsafe fn(usize, (*const u32, *const u32), (*const f32, bool), Corner);

/// A tile kernel: c (mr, nr) = [c +] a · b over packed panels.
pub(crate) struct Kernel {
    pub(crate) name: &'static str,
    /// Rows of a tile: lanes of a packed panel of the left operand.
    pub(crate) mr: usize,
    /// Columns of a tile: lanes of a packed panel of the right operand.
    pub(crate) nr: usize,
    /// Word rows of k that are summed at once: a panel of the right operand then stays in a near cache.
    pub(crate) depth: usize,
    /// Columns of the right operand that a thread keeps while it goes through the left one. Where this is more than a tile,
    /// each panel of the left operand meets all of them before the next one does.
    pub(crate) strip: usize,
    pub(crate) operands: Operands,
    pub(crate) tile: Multiply,
    /// Multiplies for the first half of a tile's columns at least, and may leave the others as they are: for the end of a matrix.
    pub(crate) narrow: Multiply,
    /// Multiplies for a whole tile whose sums leave at once, rounded to bf16.
    pub(crate) rounded: Option<MultiplyRounded>,
    /// Multiplies a thin operand with rows of the other as they are stored, which are of the type that products take.
    pub(crate) thin: Option<MultiplyThin>,
    /// What a thread must do before and after it multiplies, if anything.
    pub(crate) state: Option<State>,
    /// Multiply-adds on registers alone, to measure the ceiling: see [`tile::spin`].
    pub(crate) spin: unsafe fn(usize) -> f32,
    /// Floating-point operations of one round of `spin`.
    pub(crate) spin_work: usize,
    pub(crate) isa: &'static Isa,
}

/// Registers that a thread sets up for a kernel, and gives back.
#[derive(Clone, Copy)]
pub(crate) struct State {
    pub(super) enter: unsafe fn(),
    pub(super) leave: unsafe fn(),
}

/// While this lives, its thread may multiply. It must not wait for other threads meanwhile: the pool would hand it other
/// work, which ends with the registers given back.
pub(crate) struct Ready {
    kernel: &'static Kernel,
    /// The registers are this thread's.
    not_send: std::marker::PhantomData<*const ()>,
}

impl Drop for Ready {
    fn drop(&mut self) {
        if let Some(state) = self.kernel.state {
            // SAFETY: made by `Kernel::ready`, so the instruction set is present.
            unsafe { (state.leave)() }
        }
    }
}

impl Kernel {
    /// Sets up this thread for [`Kernel::multiply`].
    pub(crate) fn ready(&'static self) -> Ready {
        if let Some(state) = self.state {
            // SAFETY: a kernel is handed out only where its instruction set is present.
            unsafe { (state.enter)() }
        }
        Ready { kernel: self, not_send: std::marker::PhantomData }
    }

    /// c (mr, nr) = \[c +\] a · b over `words` word rows of one panel each. Only the first `cols` columns are needed.
    pub(crate) fn multiply(
        &self,
        ready: &Ready,
        words: usize,
        a: &[u32],
        b: &[u32],
        c: &mut [f32],
        (cols, add): (usize, bool),
    ) {
        assert!(
            words.is_multiple_of(self.operands.granule())
                && a.len() >= words * self.mr
                && b.len() >= words * self.nr
                && c.len() >= self.mr * self.nr,
            "a tile kernel was handed panels that are too short"
        );
        assert!(std::ptr::eq(ready.kernel, self), "a thread must be ready for the kernel that it runs");
        let multiply = if 2 * cols <= self.nr { self.narrow } else { self.tile };
        // SAFETY: the lengths were just checked, the thread is ready, and a kernel is handed out only where its instruction
        // set is present.
        unsafe { multiply(words, a.as_ptr(), b.as_ptr(), c.as_mut_ptr(), add) }
    }

    /// A whole tile of an output: \[c +\] a · b over `words` word rows, rounded; where the kernel has [`Kernel::rounded`].
    pub(crate) fn multiply_rounded(
        &self,
        ready: &Ready,
        words: usize,
        (a, b): (&[u32], &[u32]),
        (c, add): (&[f32], bool),
        out: Corner,
    ) {
        let multiply = self.rounded.expect("asked for where it is present");
        assert!(
            a.len() >= words * self.mr && b.len() >= words * self.nr && c.len() >= self.mr * self.nr,
            "a tile kernel was handed panels that are too short"
        );
        assert!(std::ptr::eq(ready.kernel, self), "a thread must be ready for the kernel that it runs");
        // SAFETY: the lengths were just checked, the corner when it was made, for a tile that no other thread holds; the
        // thread is ready, and a kernel is handed out only where its instruction set is present.
        unsafe { multiply(words, (a.as_ptr(), b.as_ptr()), (c.as_ptr(), add), out) }
    }

    /// c (THIN, THIN_COLS), whose rows are `c_stride` apart, += aᵀ · b, where the kernel has [`Kernel::thin`].
    pub(crate) fn multiply_thin(&self, (a, a_stride): (&[u32], usize), b: Under, (c, c_stride): (&mut [f32], usize)) {
        let multiply = self.thin.expect("asked for where it is present");
        let words = b.rows.div_ceil(if self.operands.are_bf16() { 2 } else { 1 });
        assert!(
            (words - 1) * a_stride + THIN <= a.len() && (THIN - 1) * c_stride + THIN_COLS <= c.len(),
            "a thin product was handed operands that are too short"
        );
        // SAFETY: the lengths were just checked, those of `b` when it was made, and a kernel is handed out only where its
        // instruction set is present.
        unsafe { multiply((a.as_ptr(), a_stride), b, (c.as_mut_ptr(), c_stride)) }
    }
}

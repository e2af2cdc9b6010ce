//! The kernels of each instruction set, and the choice among them at run time.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_dots;
#[cfg(target_arch = "x86_64")]
mod avx512_isa;
mod isa;
#[cfg(test)]
mod model;
mod output;
mod portable;
mod tile;
pub(crate) mod words;

use std::sync::OnceLock;

pub(crate) use isa::{Dots, GROUP, Isa, Slot, Stored, WordRow};
pub(crate) use output::{Epilogue, Target, Tile};

use crate::product::Compute;

/// How a kernel wants its operands in a panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operands {
    /// A word is one f32.
    F32,
    /// A word is one f32 that was rounded to bf16.
    RoundedF32,
    /// A word is two consecutive elements along k, as bf16, the first in the low half.
    Bf16Pairs,
}

impl Operands {
    /// Word rows that `k` elements take.
    pub(crate) fn words(self, k: usize) -> usize {
        if self == Operands::Bf16Pairs { k.div_ceil(2) } else { k }
    }
}

/// Words, panel of a, panel of b, tile of c, and whether to add to c.
pub(crate) type Multiply = unsafe fn(usize, *const u32, *const u32, *mut f32, bool);

/// A tile kernel: c (mr, nr) = [c +] a · b over packed panels.
pub(crate) struct Kernel {
    pub(crate) name: &'static str,
    /// Rows of a tile: lanes of a packed panel of the left operand.
    pub(crate) mr: usize,
    /// Columns of a tile: lanes of a packed panel of the right operand.
    pub(crate) nr: usize,
    pub(crate) operands: Operands,
    pub(crate) tile: Multiply,
    /// Multiplies for the first half of a tile's columns and leaves the others as they are: for the end of a matrix.
    pub(crate) narrow: Multiply,
    /// Multiply-adds on registers alone, to measure the ceiling: see [`tile::spin`].
    pub(crate) spin: unsafe fn(usize) -> f32,
    /// Floating-point operations of one round of `spin`.
    pub(crate) spin_work: usize,
    pub(crate) isa: &'static Isa,
}

impl Kernel {
    /// c (mr, nr) = \[c +\] a · b over `words` word rows of one panel each. Only the first `cols` columns are needed.
    pub(crate) fn multiply(&self, words: usize, a: &[u32], b: &[u32], c: &mut [f32], (cols, add): (usize, bool)) {
        assert!(
            a.len() >= words * self.mr && b.len() >= words * self.nr && c.len() >= self.mr * self.nr,
            "a tile kernel was handed panels that are too short"
        );
        let multiply = if 2 * cols <= self.nr { self.narrow } else { self.tile };
        // SAFETY: the lengths were just checked, and a kernel is handed out only where its instruction set is present.
        unsafe { multiply(words, a.as_ptr(), b.as_ptr(), c.as_mut_ptr(), add) }
    }
}

/// The kernels that this machine runs for `compute`, best first.
pub(crate) fn all(compute: Compute) -> Vec<&'static Kernel> {
    let mut found: Vec<&'static Kernel> = Vec::new();
    let f32 = compute == Compute::F32;
    #[cfg(target_arch = "x86_64")]
    {
        if avx512::bf16_detected() && !f32 {
            found.push(&avx512::BF16);
        }
        if avx512::detected() {
            found.push(if f32 { &avx512::F32 } else { &avx512::ROUNDED });
        }
        if avx2::detected() {
            found.push(if f32 { &avx2::F32 } else { &avx2::BF16 });
        }
    }
    found.push(if f32 { &portable::F32 } else { &portable::BF16 });
    #[cfg(test)]
    found.extend(models(compute));
    found
}

/// Models of kernels that this machine may lack, with its own vector helpers and with the portable ones.
#[cfg(test)]
fn models(compute: Compute) -> Vec<&'static Kernel> {
    static PORTABLE: [Kernel; 2] = [
        model::kernel("model of avx512, portable", Operands::F32, &portable::ISA),
        model::kernel("model of avx512bf16, portable", Operands::Bf16Pairs, &portable::ISA),
    ];
    let pick = usize::from(compute == Compute::Bf16);
    #[cfg(target_arch = "x86_64")]
    if avx2::detected() {
        static AVX2: [Kernel; 2] = [
            model::kernel("model of avx512", Operands::F32, &avx2::ISA),
            model::kernel("model of avx512bf16", Operands::Bf16Pairs, &avx2::ISA),
        ];
        return vec![&AVX2[pick], &PORTABLE[pick]];
    }
    vec![&PORTABLE[pick]]
}

/// Environment variable that names the kernel to use.
const OVERRIDE: &str = "HALFBYTE_MATMUL_KERNEL";

/// The kernel for `compute`, chosen once.
pub(crate) fn select(compute: Compute) -> &'static Kernel {
    static CHOSEN: OnceLock<[&'static Kernel; 2]> = OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| {
        let wanted = std::env::var(OVERRIDE).ok();
        [Compute::F32, Compute::Bf16].map(|c| choose(wanted.as_deref(), c))
    });
    chosen[usize::from(compute == Compute::Bf16)]
}

fn choose(wanted: Option<&str>, compute: Compute) -> &'static Kernel {
    let kernels = all(compute);
    let Some(asked) = wanted.filter(|w| !w.is_empty()) else { return kernels[0] };
    // The bf16 kernel has an f32 sibling of another name on the same machine.
    let name = if compute == Compute::F32 && asked == "avx512bf16" { "avx512" } else { asked };
    let found = kernels.iter().find(|k| k.name == name);
    found.unwrap_or_else(|| {
        let have: Vec<&str> = all(Compute::Bf16).iter().map(|k| k.name).collect();
        panic!("{OVERRIDE}={asked}: this machine has no such kernel; it has {}", have.join(", "))
    })
}

/// Name of the kernel that products of `compute` use here: `avx512bf16`, `avx512`, `avx2` or `portable`.
///
/// The environment variable `HALFBYTE_MATMUL_KERNEL`, read once, overrides the choice.
///
/// # Panics
/// If that variable names a kernel that this machine does not have.
pub fn kernel_name(compute: Compute) -> &'static str {
    select(compute).name
}

/// Names of the kernels that this machine can run for `compute`, best first.
pub fn available_kernels(compute: Compute) -> Vec<&'static str> {
    all(compute).iter().map(|k| k.name).collect()
}

/// Floating-point operations per second of one core when the chosen kernel's multiply-adds run on registers alone: the
/// ceiling that a product of any shape is measured against. Takes a few tens of milliseconds.
pub fn register_peak(compute: Compute) -> f64 {
    let kernel = select(compute);
    let rounds = 20_000;
    let best = (0..300).map(|_| {
        let start = std::time::Instant::now();
        // SAFETY: a kernel is handed out only where its instruction set is present.
        std::hint::black_box(unsafe { (kernel.spin)(std::hint::black_box(rounds)) });
        (rounds * kernel.spin_work) as f64 / start.elapsed().as_secs_f64()
    });
    best.fold(0.0, f64::max)
}

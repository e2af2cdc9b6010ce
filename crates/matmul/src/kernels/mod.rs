//! The kernels of each instruction set, and the choice among them at run time.

mod isa;
mod output;
mod portable;
mod tile;
pub(crate) mod words;

use std::sync::OnceLock;

pub(crate) use isa::{GROUP, Isa, Slot};
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

/// A tile kernel: c (mr, nr) = [c +] a · b over packed panels.
pub(crate) struct Kernel {
    pub(crate) name: &'static str,
    /// Rows of a tile: lanes of a packed panel of the left operand.
    pub(crate) mr: usize,
    /// Columns of a tile: lanes of a packed panel of the right operand.
    pub(crate) nr: usize,
    pub(crate) operands: Operands,
    pub(crate) tile: unsafe fn(usize, *const u32, *const u32, *mut f32, bool),
    pub(crate) isa: &'static Isa,
}

impl Kernel {
    /// c (mr, nr) = \[c +\] a · b over `words` word rows of one panel each.
    pub(crate) fn multiply(&self, words: usize, a: &[u32], b: &[u32], c: &mut [f32], add: bool) {
        assert!(
            a.len() >= words * self.mr && b.len() >= words * self.nr && c.len() >= self.mr * self.nr,
            "a tile kernel was handed panels that are too short"
        );
        // SAFETY: the lengths were just checked, and a kernel is handed out only where its instruction set is present.
        unsafe { (self.tile)(words, a.as_ptr(), b.as_ptr(), c.as_mut_ptr(), add) }
    }
}

/// The kernels that this machine runs for `compute`, best first.
pub(crate) fn all(compute: Compute) -> Vec<&'static Kernel> {
    let mut found: Vec<&'static Kernel> = Vec::new();
    let f32 = compute == Compute::F32;
    found.push(if f32 { &portable::F32 } else { &portable::BF16 });
    found
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
    let Some(name) = wanted.filter(|w| !w.is_empty()) else { return kernels[0] };
    // The bf16 kernel has an f32 sibling of another name on the same machine.
    let name = if compute == Compute::F32 && name == "avx512bf16" { "avx512" } else { name };
    let found = kernels.iter().find(|k| k.name == name);
    found.unwrap_or_else(|| {
        let have: Vec<&str> = all(Compute::Bf16).iter().map(|k| k.name).collect();
        panic!("{OVERRIDE}={name}: this machine has no such kernel; it has {}", have.join(", "))
    })
}

/// Name of the kernel that products of `compute` use here: `avx512bf16`, `avx512`, `avx2`, `neon` or `portable`.
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

/// Floating-point operations per second of one core when the chosen tile kernel runs on panels that stay in the
/// first-level cache: the ceiling that a product of any shape is measured against.
pub fn register_peak(compute: Compute) -> f64 {
    let kernel = select(compute);
    let words = 256;
    let (mut a, mut b, mut c) = (words::Words::default(), words::Words::default(), words::Words::default());
    // 0x3f80_3f80 is 1.0 twice as bf16 and close to 1 as f32.
    a.words(words * kernel.mr).fill(0x3f80_3f80);
    b.words(words * kernel.nr).fill(0x3f80_3f80);
    let per_word = if kernel.operands == Operands::Bf16Pairs { 4.0 } else { 2.0 };
    let work = per_word * (kernel.mr * kernel.nr * words) as f64;
    let mut best = 0.0f64;
    for _ in 0..200 {
        let start = std::time::Instant::now();
        for _ in 0..100 {
            kernel.multiply(
                words,
                a.words(words * kernel.mr),
                b.words(words * kernel.nr),
                std::hint::black_box(c.floats(kernel.mr * kernel.nr)),
                false,
            );
        }
        best = best.max(100.0 * work / start.elapsed().as_secs_f64());
    }
    best
}

//! The matrix unit of recent Xeons (AMX): tiles of bf16 pairs, 1,024 multiply-adds an instruction.
//!
//! The compiler's own support is unstable, so tile instructions stand in `asm!`. Without that support the compiler never
//! names a tile register: what lives in tiles begins and ends within one `asm!`, and only the configuration outlives it.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

use super::{Kernel, Operands, STEP, State, avx512_isa};

/// Whether this machine runs the kernel: the processor has tiles for bf16, the operating system saves them, and this
/// process may use them. The permission is asked for once; it holds for threads that run already, too.
pub(super) fn detected() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        /// Tiles for bf16, and tiles at all, in edx of leaf 7.
        const WANTED: u32 = 1 << 22 | 1 << 24;
        cfg!(target_os = "linux")
            && avx512_isa::detected()
            && __cpuid_count(7, 0).edx & WANTED == WANTED
            && saved_by_the_system()
            && permitted()
    })
}

/// Whether the operating system saves the configuration and the contents of tiles (bits 17 and 18 of XCR0).
fn saved_by_the_system() -> bool {
    let osxsave = __cpuid_count(1, 0).ecx >> 27 & 1 == 1;
    if !osxsave {
        return false;
    }
    let low: u32;
    // SAFETY: the instruction exists where OSXSAVE is set, and writes these registers only.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _, options(nostack, nomem, preserves_flags));
    }
    low >> 17 & 0b11 == 0b11
}

/// Asks Linux for the larger register state. Without this the first tile instruction ends the process.
fn permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const TILE_DATA: u64 = 18;
    let result: i64;
    // SAFETY: a system call that takes two numbers, touches no memory of ours and destroys rcx and r11.
    unsafe {
        asm!("syscall", inlateout("rax") ARCH_PRCTL => result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") TILE_DATA,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result == 0
}

/// The operand of `ldtilecfg`.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row, a tile.
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Eight tiles of sixteen rows of 64 bytes.
static FULL: Config = Config {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Configures this thread's tiles.
unsafe fn configure() {
    // SAFETY: the caller has tiles, and the operand is 64 readable bytes.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &raw const FULL, out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack, preserves_flags, readonly));
    }
}

/// Gives this thread's tiles back: while they are in use, every change of threads saves 8 KiB more.
unsafe fn release() {
    // SAFETY: the caller has tiles.
    unsafe {
        asm!("tilerelease", out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _,
            out("tmm6") _, out("tmm7") _, options(nostack, preserves_flags, nomem));
    }
}

/// A tile function: `begin` by `add` makes the sums, `step` adds to them, `end` stores them. A step of the left panel is
/// 32 rows of 64 bytes, a step of the right one 16 word rows of 128.
macro_rules! tile_function {
    ($(#[$doc:meta])* $name:ident, zero $zero:literal, load $load:literal, step $step:literal, end $end:literal) => {
        $(#[$doc])*
        unsafe fn $name(words: usize, a: *const u32, b: *const u32, c: *mut f32, add: bool) {
            macro_rules! sum {
                ($begin:literal) => {
                    asm!($begin, "2:", $step, "add {a}, 2048", "add {b}, 2048", "sub {n}, 1", "jnz 2b", $end,
                        a = inout(reg) a => _, b = inout(reg) b => _, n = inout(reg) words / STEP => _, c = in(reg) c,
                        ra = in(reg) 64usize, rb = in(reg) 128usize, out("tmm0") _, out("tmm1") _, out("tmm2") _,
                        out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack))
                };
            }
            // SAFETY: the caller configured this thread's tiles, and passes panels of `words` word rows, whole steps, and
            // 32 rows of 32 sums.
            unsafe {
                match (words, add) {
                    (0, true) => {}
                    (0, false) => c.write_bytes(0, 32 * 32),
                    (_, false) => sum!($zero),
                    (_, true) => sum!($load),
                }
            }
        }
    };
}

tile_function! {
    /// Two by two tiles: four sums from four loads a step.
    tile,
    zero "tilezero tmm0
          tilezero tmm1
          tilezero tmm2
          tilezero tmm3",
    load "tileloadd tmm0, [{c}+{rb}*1]
          tileloadd tmm1, [{c}+{rb}*1+64]
          tileloadd tmm2, [{c}+{rb}*1+2048]
          tileloadd tmm3, [{c}+{rb}*1+2112]",
    step "tileloadd tmm4, [{a}+{ra}*1]
          tileloadd tmm6, [{b}+{rb}*1]
          tdpbf16ps tmm0, tmm4, tmm6
          tileloadd tmm7, [{b}+{rb}*1+64]
          tdpbf16ps tmm1, tmm4, tmm7
          tileloadd tmm5, [{a}+{ra}*1+1024]
          tdpbf16ps tmm2, tmm5, tmm6
          tdpbf16ps tmm3, tmm5, tmm7",
    end "tilestored [{c}+{rb}*1], tmm0
         tilestored [{c}+{rb}*1+64], tmm1
         tilestored [{c}+{rb}*1+2048], tmm2
         tilestored [{c}+{rb}*1+2112], tmm3"
}

tile_function! {
    /// The left half of the columns: two by one tiles.
    narrow,
    zero "tilezero tmm0
          tilezero tmm2",
    load "tileloadd tmm0, [{c}+{rb}*1]
          tileloadd tmm2, [{c}+{rb}*1+2048]",
    step "tileloadd tmm4, [{a}+{ra}*1]
          tileloadd tmm6, [{b}+{rb}*1]
          tdpbf16ps tmm0, tmm4, tmm6
          tileloadd tmm5, [{a}+{ra}*1+1024]
          tdpbf16ps tmm2, tmm5, tmm6",
    end "tilestored [{c}+{rb}*1], tmm0
         tilestored [{c}+{rb}*1+2048], tmm2"
}

/// `rounds` times four products of tiles. Their values are no round numbers: on zeros and ones the clock is a fifth higher.
unsafe fn spin(rounds: usize) -> f32 {
    let mut seed = 1u32;
    let tile: [u32; 256] = std::array::from_fn(|_| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Two numbers of either sign between a half and one.
        seed & 0x807f_807f | 0x3f00_3f00
    });
    let mut sums = [0.0f32; 256];
    // SAFETY: the caller has tiles; both arrays are sixteen rows of 64 bytes.
    unsafe {
        configure();
        asm!("tileloadd tmm4, [{a}+{s}*1]", "tileloadd tmm5, [{a}+{s}*1]", "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "2:", "tdpbf16ps tmm0, tmm4, tmm5", "tdpbf16ps tmm1, tmm4, tmm5", "tdpbf16ps tmm2, tmm4, tmm5",
            "tdpbf16ps tmm3, tmm4, tmm5", "sub {n}, 1", "jnz 2b", "tilestored [{c}+{s}*1], tmm3",
            a = in(reg) &raw const tile, c = in(reg) &raw mut sums, s = in(reg) 64usize,
            n = inout(reg) rounds.max(1) => _, out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, options(nostack));
        release();
    }
    sums[0]
}

pub(super) static BF16: Kernel = Kernel {
    name: "amx",
    mr: 32,
    nr: 32,
    operands: Operands::Bf16Tiles,
    tile,
    narrow,
    rounded: None,
    thin: None,
    // A panel of the right operand is 36 KiB.
    depth: 288,
    strip: 256,
    state: Some(State { enter: configure, leave: release }),
    spin,
    // Four products of 16 x 32 by 32 x 16.
    spin_work: 4 * 2 * 16 * 32 * 16,
    isa: &avx512_isa::ISA,
};

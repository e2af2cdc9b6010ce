//! Software models of the AVX-512, AMX and NEON tile kernels, so that tests on any machine run their panel layouts and loops.

use half::bf16;

use super::portable::bf16_bits;
use super::tile::{Lanes, Rounded, Rows, SPIN, spin, thin, tile, tile_rounded};
use super::{Corner, DEPTH, Isa, Kernel, MultiplyThin, Operands, STEP, TILE_LANES, Under};

#[derive(Clone, Copy)]
struct Model<const WIDTH: usize, const PAIRS: bool>([f32; WIDTH]);

type Sixteen<const PAIRS: bool> = Model<16, PAIRS>;
type Four<const PAIRS: bool> = Model<4, PAIRS>;

impl<const WIDTH: usize, const PAIRS: bool> Lanes for Model<WIDTH, PAIRS> {
    const WIDTH: usize = WIDTH;
    type Operand = [u32; WIDTH];

    unsafe fn zero() -> Self {
        Model([0.0; WIDTH])
    }
    unsafe fn load_acc(p: *const f32) -> Self {
        // SAFETY: the caller passes so many readable floats.
        Model(unsafe { p.cast::<[f32; WIDTH]>().read_unaligned() })
    }
    unsafe fn plus(self, other: Self) -> Self {
        Model(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }
    unsafe fn store_acc(self, p: *mut f32) {
        // SAFETY: the caller passes so many writable floats.
        unsafe { p.cast::<[f32; WIDTH]>().write_unaligned(self.0) }
    }
    unsafe fn load(p: *const u32) -> [u32; WIDTH] {
        // SAFETY: the caller passes so many readable words.
        unsafe { p.cast::<[u32; WIDTH]>().read_unaligned() }
    }
    unsafe fn splat(p: *const u32) -> [u32; WIDTH] {
        // SAFETY: the caller passes a readable word.
        [unsafe { *p }; WIDTH]
    }
    unsafe fn mul_acc(self, a: [u32; WIDTH], b: [u32; WIDTH]) -> Self {
        Model(std::array::from_fn(|i| {
            if PAIRS {
                let (odd, even) = (|w: u32| f32::from_bits(w & 0xffff_0000), |w: u32| f32::from_bits(w << 16));
                self.0[i] + odd(a[i]) * odd(b[i]) + even(a[i]) * even(b[i])
            } else {
                self.0[i] + f32::from_bits(a[i]) * f32::from_bits(b[i])
            }
        }))
    }
}

impl<const PAIRS: bool> Rows for Sixteen<PAIRS> {
    const EACH: usize = 1 + PAIRS as usize;

    unsafe fn read(first: *const u8, stride: usize, rows: usize, cols: usize) -> [[u32; 16]; 2] {
        // SAFETY: the caller promises so many columns in as many rows.
        let bf16 = |row: usize, at: usize| unsafe { first.add(row * stride).cast::<u16>().add(at).read_unaligned() };
        let word = |at: usize| match (at < cols, PAIRS) {
            (false, _) => 0,
            (true, true) => u32::from(bf16(0, at)) | if rows == 2 { u32::from(bf16(1, at)) << 16 } else { 0 },
            // SAFETY: as above.
            (true, false) => unsafe { first.cast::<u32>().add(at).read_unaligned() },
        };
        [0, 16].map(|from| std::array::from_fn(|i| word(from + i)))
    }
}

impl Rounded for Sixteen<true> {
    unsafe fn store_rounded(sums: [Self; 2], p: *mut bf16) {
        let all = sums.iter().flat_map(|it| it.0).enumerate();
        // SAFETY: the caller passes 32 writable elements.
        all.for_each(|(i, sum)| unsafe { p.add(i).write_unaligned(bf16::from_bits(bf16_bits(sum))) });
    }
}

unsafe fn tile_14x32_rounded(words: usize, panels: (*const u32, *const u32), c: (*const f32, bool), out: Corner) {
    // SAFETY: same contract; plain arrays need no instruction set.
    unsafe { tile_rounded::<Sixteen<true>, 14>(words, panels, c, out) }
}

unsafe fn thin_8x32<const PAIRS: bool>(a: (*const u32, usize), b: Under, c: (*mut f32, usize)) {
    // SAFETY: same contract; plain arrays need no instruction set.
    unsafe { thin::<Sixteen<PAIRS>>(a, b, c) }
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
    let thin = match operands {
        Operands::F32 => Some(thin_8x32::<false> as MultiplyThin),
        Operands::Bf16Pairs => Some(thin_8x32::<true> as MultiplyThin),
        _ => None,
    };
    Kernel {
        name,
        mr: 14,
        nr: 32,
        depth: DEPTH,
        strip: 32,
        operands,
        tile,
        narrow,
        rounded: if matches!(operands, Operands::Bf16Pairs) { Some(tile_14x32_rounded) } else { None },
        thin,
        state: None,
        spin: spin_model,
        spin_work: 32 * SPIN,
        isa,
    }
}

unsafe fn tile_8x12<const PAIRS: bool>(words: usize, a: *const u32, b: *const u32, c: *mut f32, add: bool) {
    // SAFETY: same contract; plain arrays need no instruction set.
    unsafe { tile::<Four<PAIRS>, 8, 3, 3>(words, a, b, c, add) }
}

unsafe fn tile_8x12_narrow<const PAIRS: bool>(words: usize, a: *const u32, b: *const u32, c: *mut f32, add: bool) {
    // SAFETY: same contract; plain arrays need no instruction set.
    unsafe { tile::<Four<PAIRS>, 8, 2, 3>(words, a, b, c, add) }
}

/// The model of a NEON kernel on top of the vector helpers `isa`: `bfmmla` adds two pairs, one after the other.
pub(super) const fn neon(name: &'static str, operands: Operands, isa: &'static Isa) -> Kernel {
    let pairs = matches!(operands, Operands::Bf16Pairs);
    Kernel {
        mr: 8,
        nr: 12,
        strip: 12,
        tile: if pairs { tile_8x12::<true> } else { tile_8x12::<false> },
        rounded: None,
        thin: None,
        narrow: if pairs { tile_8x12_narrow::<true> } else { tile_8x12_narrow::<false> },
        ..kernel(name, operands, isa)
    }
}

/// The matrix unit's order of sums: within a step of 32, even and odd terms are summed apart from zero; their sum is added
/// to what was there.
unsafe fn tile_32x32(words: usize, a: *const u32, b: *const u32, c: *mut f32, add: bool) {
    const PANEL: usize = STEP * TILE_LANES;
    // SAFETY: the caller passes `words` word rows of 32 lanes a panel, and 32 by 32 sums.
    let (a, b, c) = unsafe {
        (
            std::slice::from_raw_parts(a, words * TILE_LANES),
            std::slice::from_raw_parts(b, words * TILE_LANES),
            std::slice::from_raw_parts_mut(c, TILE_LANES * TILE_LANES),
        )
    };
    let (even, odd) = (|w: u32| f32::from_bits(w << 16), |w: u32| f32::from_bits(w & 0xffff_0000));
    for (i, row) in c.chunks_exact_mut(TILE_LANES).enumerate() {
        for (j, sum) in row.iter_mut().enumerate() {
            let mut total = if add { *sum } else { 0.0 };
            for (a, b) in a.chunks_exact(PANEL).zip(b.chunks_exact(PANEL)) {
                let (mut evens, mut odds) = (0.0f32, 0.0f32);
                for q in 0..STEP {
                    let (x, y) = (a[i * STEP + q], b[q * TILE_LANES + j]);
                    evens += even(x) * even(y);
                    odds += odd(x) * odd(y);
                }
                total += evens + odds;
            }
            *sum = total;
        }
    }
}

/// The model of the AMX kernel on top of the vector helpers `isa`.
pub(super) const fn tiles(name: &'static str, isa: &'static Isa) -> Kernel {
    Kernel {
        name,
        mr: TILE_LANES,
        nr: TILE_LANES,
        depth: DEPTH,
        strip: 2 * TILE_LANES,
        operands: Operands::Bf16Tiles,
        tile: tile_32x32,
        narrow: tile_32x32,
        rounded: None,
        thin: None,
        state: None,
        spin: spin_model,
        spin_work: 32 * SPIN,
        isa,
    }
}

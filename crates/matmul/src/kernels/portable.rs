//! Plain Rust: what every machine can run, and the bodies that other instruction sets recompile for themselves.

use half::bf16;

use super::isa::{GROUP, Isa, Slot, WordRow};
use super::output::{self, Epilogue, Target, Tile};
use super::tile::{Lanes, SPIN, spin, tile};
use super::{DEPTH, Kernel, Operands, STEP, TILE_LANES};
use crate::sources::Lut4;

/// 4 f32 lanes: what the baseline of every 64-bit machine holds in a register.
#[derive(Clone, Copy)]
struct Four([f32; 4]);

impl Lanes for Four {
    const WIDTH: usize = 4;
    type Operand = Four;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Four([0.0; 4])
    }
    #[inline(always)]
    unsafe fn load_acc(p: *const f32) -> Self {
        // SAFETY: the caller passes a pointer to at least 4 readable floats.
        Four(unsafe { p.cast::<[f32; 4]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        Four(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }
    #[inline(always)]
    unsafe fn store_acc(self, p: *mut f32) {
        // SAFETY: the caller passes a pointer to at least 4 writable floats.
        unsafe { p.cast::<[f32; 4]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn load(p: *const u32) -> Four {
        // SAFETY: the caller passes a pointer to at least 4 readable words.
        Four(unsafe { p.cast::<[f32; 4]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn splat(p: *const u32) -> Four {
        // SAFETY: the caller passes a readable pointer.
        Four([f32::from_bits(unsafe { *p }); 4])
    }
    #[inline(always)]
    unsafe fn mul_acc(self, a: Four, b: Four) -> Self {
        Four(std::array::from_fn(|i| self.0[i] + a.0[i] * b.0[i]))
    }
}

unsafe fn tile_4x8(words: usize, a: *const u32, b: *const u32, c: *mut f32, add: bool) {
    // SAFETY: same contract; `Four` needs no instruction set of its own.
    unsafe { tile::<Four, 4, 2, 2>(words, a, b, c, add) }
}

unsafe fn tile_4x8_narrow(words: usize, a: *const u32, b: *const u32, c: *mut f32, add: bool) {
    // SAFETY: same contract; `Four` needs no instruction set of its own.
    unsafe { tile::<Four, 4, 1, 2>(words, a, b, c, add) }
}

unsafe fn spin_floats(rounds: usize) -> f32 {
    // SAFETY: `Four` needs no instruction set of its own.
    unsafe { spin::<Four>(rounds) }
}

pub(crate) static F32: Kernel = Kernel {
    name: "portable",
    mr: 4,
    nr: 8,
    depth: DEPTH,
    strip: 8,
    operands: Operands::F32,
    tile: tile_4x8,
    narrow: tile_4x8_narrow,
    rounded: None,
    thin: None,
    state: None,
    spin: spin_floats,
    spin_work: 8 * SPIN,
    isa: &ISA,
};
pub(crate) static BF16: Kernel = Kernel {
    name: "portable",
    mr: 4,
    nr: 8,
    depth: DEPTH,
    strip: 8,
    operands: Operands::RoundedF32,
    tile: tile_4x8,
    narrow: tile_4x8_narrow,
    rounded: None,
    thin: None,
    state: None,
    spin: spin_floats,
    spin_work: 8 * SPIN,
    isa: &ISA,
};

pub(crate) static ISA: Isa = Isa {
    transpose_f32,
    transpose_bf16,
    lay_pairs,
    turn_step,
    deal_f32,
    deal_pairs,
    lut4_f32,
    lut4_bf16,
    widen,
    round,
    round_in_place,
    dot_f32,
    dot_bf16,
    axpy_f32,
    axpy_bf16,
    store,
    deal_lut4: None,
    dots: None,
};

/// Stores from word row `from` on.
#[inline(always)]
pub(super) fn transpose_f32_from(from: usize, rows: &[&[f32]], slot: Slot<'_>) {
    for q in from..rows[0].len() {
        let lanes = &mut slot.panel[q * slot.width + slot.lane..(q + 1) * slot.width];
        for (word, row) in lanes.iter_mut().zip(rows) {
            *word = row[q].to_bits();
        }
    }
}

/// Stores from word row `from` on.
#[inline(always)]
pub(super) fn transpose_bf16_from(from: usize, rows: &[&[bf16]], slot: Slot<'_>) {
    for q in from..rows[0].len().div_ceil(2) {
        let lanes = &mut slot.panel[q * slot.width + slot.lane..(q + 1) * slot.width];
        for (word, row) in lanes.iter_mut().zip(rows) {
            *word = pair(row[2 * q], row.get(2 * q + 1).copied().unwrap_or(bf16::ZERO));
        }
    }
}

fn transpose_f32(rows: &[&[f32]; GROUP], slot: Slot<'_>) {
    transpose_f32_from(0, rows, slot);
}

fn transpose_bf16(rows: &[&[bf16]; GROUP], slot: Slot<'_>) {
    transpose_bf16_from(0, rows, slot);
}

pub(super) fn lay_pairs(row: &[bf16], panel: &mut [u32]) {
    for (s, step) in row.chunks(2 * STEP).enumerate() {
        let words = &mut panel[s * STEP * TILE_LANES..][..STEP];
        for (q, word) in words.iter_mut().enumerate() {
            let at = |i: usize| step.get(2 * q + i).copied().unwrap_or(bf16::ZERO);
            *word = pair(at(0), at(1));
        }
    }
}

pub(super) fn turn_step(step: &mut [u32; STEP * TILE_LANES]) {
    let rows = *step;
    for (i, lane) in step.chunks_exact_mut(STEP).enumerate() {
        for (q, word) in lane.iter_mut().enumerate() {
            *word = rows[q * TILE_LANES + i];
        }
    }
}

#[inline(always)]
fn pair(even: bf16, odd: bf16) -> u32 {
    u32::from(even.to_bits()) | u32::from(odd.to_bits()) << 16
}

#[inline(always)]
pub(super) fn deal_f32(row: &[f32], out: WordRow<'_>) {
    // Copies of a fixed length become a few moves.
    match out.width {
        6 => deal_wide::<6>(row, out),
        8 => deal_wide::<8>(row, out),
        12 => deal_wide::<12>(row, out),
        14 => deal_wide::<14>(row, out),
        16 => deal_wide::<16>(row, out),
        32 => deal_wide::<32>(row, out),
        _ => deal_from(0, out, |i| row.get(i).map_or(0, |v| v.to_bits())),
    }
}

#[inline(always)]
fn deal_wide<const W: usize>(row: &[f32], mut out: WordRow<'_>) {
    let (pieces, _) = row.as_chunks::<W>();
    for (p, piece) in pieces.iter().enumerate() {
        let lanes: &mut [u32] = &mut out.words[p * out.stride..][..W];
        for (lane, v) in lanes.iter_mut().zip(piece) {
            *lane = v.to_bits();
        }
    }
    let done = pieces.len();
    out.count -= done.min(out.count);
    if out.count > 0 {
        out.words = &mut out.words[done * out.stride..];
        deal_from(0, out, |i| row.get(done * W + i).map_or(0, |v| v.to_bits()));
    }
}

#[inline(always)]
pub(super) fn deal_pairs((even, odd): (&[bf16], &[bf16]), out: WordRow<'_>) {
    deal_pairs_from(0, (even, odd), out);
}

/// From panel `from` on.
#[inline(always)]
pub(super) fn deal_pairs_from(from: usize, (even, odd): (&[bf16], &[bf16]), out: WordRow<'_>) {
    deal_from(from, out, |i| if i < even.len() { pair(even[i], odd[i]) } else { 0 });
}

#[inline(always)]
fn deal_from(from: usize, out: WordRow<'_>, word: impl Fn(usize) -> u32) {
    for p in from..out.count {
        for (i, lane) in out.words[p * out.stride..][..out.width].iter_mut().enumerate() {
            *lane = word(p * out.width + i);
        }
    }
}

/// f32 to bf16 bits, nearest, ties to even; a NaN stays one, quiet.
#[inline(always)]
pub(super) fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1))) >> 16;
    (if x.is_nan() { (bits >> 16) | 0x40 } else { rounded }) as u16
}

#[inline(always)]
pub(super) fn widen(x: &[bf16], out: &mut [f32]) {
    for (o, v) in out.iter_mut().zip(x) {
        *o = f32::from_bits(u32::from(v.to_bits()) << 16);
    }
}

#[inline(always)]
pub(super) fn round(x: &[f32], out: &mut [bf16]) {
    for (o, v) in out.iter_mut().zip(x) {
        *o = bf16::from_bits(bf16_bits(*v));
    }
}

#[inline(always)]
pub(super) fn round_in_place(x: &mut [f32]) {
    for v in x {
        *v = f32::from_bits(u32::from(bf16_bits(*v)) << 16);
    }
}

/// The 16 values of a block, since a block has one scale: decoding is then a pure look-up.
#[inline(always)]
pub(super) fn block_f32(table: &[f32; 16], scale: f32, round: bool) -> [f32; 16] {
    let mut values = table.map(|v| v * scale);
    if round {
        round_in_place(&mut values);
    }
    values
}

/// As [`block_f32`], rounded to bf16.
#[inline(always)]
pub(super) fn block_bf16(table: &[f32; 16], scale: f32) -> [bf16; 16] {
    table.map(|v| bf16::from_bits(bf16_bits(v * scale)))
}

/// Walks elements `start..start + out.len()` block by block. `run` decodes a whole number of elements from a byte
/// boundary; a first element in a low nibble is looked up here.
#[inline(always)]
pub(super) fn lut4<T: Copy>(
    l: &Lut4<'_>,
    start: usize,
    out: &mut [T],
    values: impl Fn(f32) -> [T; 16],
    run: impl Fn(&[T; 16], &[u8], &mut [T]),
) {
    let (mut at, mut out, mut block) = (start, out, start / l.block_size);
    while !out.is_empty() {
        let len = ((block + 1) * l.block_size - at).min(out.len());
        let (mut piece, rest) = out.split_at_mut(len);
        let table = values(l.scales.get(block));
        if at % 2 == 1 {
            piece[0] = table[usize::from(l.packed[at / 2] & 15)];
            piece = &mut piece[1..];
        }
        run(&table, &l.packed[at.div_ceil(2)..(at + len).div_ceil(2)], piece);
        at += len;
        block += 1;
        out = rest;
    }
}

/// Looks up elements from byte `from` on; an odd count ends with a high nibble.
#[inline(always)]
pub(super) fn look_up<T: Copy>(from: usize, table: &[T; 16], packed: &[u8], out: &mut [T]) {
    for (o, &byte) in out[2 * from..].chunks_mut(2).zip(&packed[from..]) {
        o[0] = table[usize::from(byte >> 4)];
        if let Some(second) = o.get_mut(1) {
            *second = table[usize::from(byte & 15)];
        }
    }
}

fn lut4_f32(l: &Lut4<'_>, start: usize, out: &mut [f32], round: bool) {
    lut4(l, start, out, |s| block_f32(l.table, s, round), |t, p, o| look_up(0, t, p, o));
}

pub(super) fn lut4_bf16(l: &Lut4<'_>, start: usize, out: &mut [bf16]) {
    lut4(l, start, out, |s| block_bf16(l.table, s), |t, p, o| look_up(0, t, p, o));
}

/// Independent sums in a dot product: enough to hide the latency of an addition.
const SUMS: usize = 16;

#[inline(always)]
fn dot<T: Copy>(x: &[f32], y: &[T], to_f32: impl Fn(T) -> f32) -> f32 {
    let mut sums = [0.0f32; SUMS];
    for (x, y) in x.chunks(SUMS).zip(y.chunks(SUMS)) {
        for (s, (&x, &y)) in sums.iter_mut().zip(x.iter().zip(y)) {
            *s += x * to_f32(y);
        }
    }
    sums.iter().sum()
}

fn dot_f32(x: &[f32], y: &[f32]) -> f32 {
    dot(x, y, |v| v)
}

fn dot_bf16(x: &[f32], y: &[bf16]) -> f32 {
    dot(x, y, bf16::to_f32)
}

#[inline(always)]
pub(super) fn axpy_f32(s: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += s * x;
    }
}

#[inline(always)]
pub(super) fn axpy_bf16(s: f32, x: &[bf16], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += s * f32::from_bits(u32::from(x.to_bits()) << 16);
    }
}

fn store(target: &Target<'_>, tile: Tile<'_>, epilogue: &Epilogue<'_>) {
    output::store(target, tile, epilogue);
}

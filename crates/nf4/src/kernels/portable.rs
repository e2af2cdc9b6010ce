//! The rule itself, in plain Rust. The vector sets compile the simple loops again with their own target features
//! (hence `inline(always)`), and replace those that the compiler does not vectorise.

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use super::{Kernels, Run};
use crate::code::Rule;

pub(crate) static KERNELS: Kernels = Kernels {
    name: "portable",
    encode4,
    decode4_f32,
    decode4_bf16,
    decode4_f16,
    absmax,
    widen_bf16,
    narrow_bf16,
    encode_i8,
    decode_i8,
};

const ABS: u32 = 0x7fff_ffff;
const INFINITY: u32 = 0x7f80_0000;

/// Magnitudes order like their bits, and a maximum of integers vectorises without worrying about NaN.
#[inline(always)]
pub(super) fn absmax(x: &[f32]) -> f32 {
    let mut max = 0u32;
    for &v in x {
        let bits = v.to_bits() & ABS;
        max = max.max(if bits > INFINITY { 0 } else { bits });
    }
    flush(f32::from_bits(max))
}

/// Subnormals to zero, as on the GPU, which is built to ignore them.
#[inline(always)]
pub(crate) fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0.0f32.copysign(x) } else { x }
}

/// 1 / absmax as the GPU sees it: infinite for 0 and zero when the quotient is subnormal (absmax above 2^126).
#[inline(always)]
pub(crate) fn reciprocal(absmax: f32) -> f32 {
    flush(1.0 / absmax)
}

/// Splits `x` into blocks, finds each absmax and hands `(block, 1 / absmax, bytes)` on.
#[inline(always)]
pub(super) fn for_each_block(
    x: &[f32],
    block_size: usize,
    packed: &mut [u8],
    absmaxes: &mut [f32],
    mut encode: impl FnMut(&[f32], f32, &mut [u8]),
) {
    let blocks = x.chunks(block_size).zip(packed.chunks_mut(block_size / 2)).zip(absmaxes);
    for ((block, bytes), slot) in blocks {
        *slot = absmax(block);
        encode(block, reciprocal(*slot), bytes);
    }
}

fn encode4(x: &[f32], block_size: usize, rule: &Rule, packed: &mut [u8], absmaxes: &mut [f32]) {
    for_each_block(x, block_size, packed, absmaxes, |block, scale, bytes| {
        for (pieces, out) in block.chunks(32).zip(bytes.chunks_mut(16)) {
            // An odd end is filled up with 0.0: the spare nibble is the code of zero.
            let mut values = [0.0; 32];
            values[..pieces.len()].copy_from_slice(pieces);
            let nibbles = ranks(&values, scale, rule).map(|rank| rule.nibbles[rank as usize & 15]);
            for (byte, pair) in out.iter_mut().zip(nibbles.chunks_exact(2)) {
                *byte = pair[0] << 4 | pair[1];
            }
        }
    });
}

/// Counts for each value the thresholds that it exceeds.
fn ranks(values: &[f32; 32], scale: f32, rule: &Rule) -> [u32; 32] {
    let scaled = values.map(|v| {
        let v = flush(v) * scale;
        if v.is_nan() { rule.nan_as } else { v }
    });
    let mut ranks = [0; 32];
    for threshold in rule.thresholds {
        for (rank, v) in ranks.iter_mut().zip(scaled) {
            *rank += u32::from(v > threshold);
        }
    }
    ranks
}

/// Sixteen values decide a whole block, so they are scaled and rounded once and then looked up.
#[inline(always)]
pub(super) fn scaled_code(code: &[f32; 16], absmax: f32) -> [f32; 16] {
    // A loop and not `map`, which is not inlined into functions with more target features.
    let mut scaled = *code;
    for value in &mut scaled {
        *value *= absmax;
    }
    scaled
}

/// Sixteen values in bf16.
#[inline(always)]
pub(super) fn rounded_code(table: &[f32; 16]) -> [u16; 16] {
    let mut rounded = [0; 16];
    narrow_bf16(table, &mut rounded);
    rounded
}

/// Hands each block on as `(bytes, its sixteen values, out)`.
#[inline(always)]
pub(super) fn for_each_run<T>(run: Run<'_>, out: &mut [T], mut decode: impl FnMut(&[u8], &[f32; 16], &mut [T])) {
    let blocks = out.chunks_mut(run.block_size).zip(run.packed.chunks(run.block_size / 2)).zip(run.scales);
    for ((out, bytes), &absmax) in blocks {
        decode(bytes, &scaled_code(run.code, absmax), out);
    }
}

/// High nibble first. There may be more bytes than `out` asks for.
#[inline(always)]
pub(super) fn look_up<T: Copy>(bytes: &[u8], table: &[T; 16], out: &mut [T]) {
    let whole = out.len() / 2;
    let mut pairs = out.chunks_exact_mut(2);
    for (pair, &byte) in pairs.by_ref().zip(bytes) {
        pair[0] = table[usize::from(byte >> 4)];
        pair[1] = table[usize::from(byte & 15)];
    }
    if let [last] = pairs.into_remainder() {
        *last = table[usize::from(bytes[whole] >> 4)];
    }
}

fn decode4_f32(run: Run<'_>, out: &mut [f32]) {
    for_each_run(run, out, look_up);
}

fn decode4_bf16(run: Run<'_>, out: &mut [u16]) {
    for_each_run(run, out, |bytes, table, out| look_up(bytes, &rounded_code(table), out));
}

fn decode4_f16(run: Run<'_>, out: &mut [u16]) {
    for_each_run(run, out, |bytes, table, out| {
        let mut rounded = [0; 16];
        rounded.reinterpret_cast_mut::<f16>().convert_from_f32_slice(table);
        look_up(bytes, &rounded, out);
    });
}

/// Round to nearest, ties to even; NaN stays NaN.
#[inline(always)]
pub(super) fn round_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
    if bits & ABS > INFINITY { (bits >> 16) as u16 | 0x40 } else { rounded }
}

#[inline(always)]
pub(super) fn narrow_bf16(x: &[f32], out: &mut [u16]) {
    for (o, &v) in out.iter_mut().zip(x) {
        *o = round_bf16(v);
    }
}

#[inline(always)]
pub(super) fn widen_bf16(x: &[u16], out: &mut [f32]) {
    for (o, &v) in out.iter_mut().zip(x) {
        *o = f32::from_bits(u32::from(v) << 16);
    }
}

#[inline(always)]
pub(super) fn encode_i8(x: &[f32], scale: f32, out: &mut [i8]) {
    for (o, &v) in out.iter_mut().zip(x) {
        // `as` takes NaN to 0.
        *o = (v * scale).round_ties_even().clamp(-127.0, 127.0) as i8;
    }
}

/// 1 / 127 as bitsandbytes writes it.
const INV_127: f32 = 7.874_016e-3;

#[inline(always)]
pub(super) fn decode_i8(codes: &[i8], absmax: f32, out: &mut [f32]) {
    for (o, &c) in out.iter_mut().zip(codes) {
        *o = f32::from(c) * absmax * INV_127;
    }
}

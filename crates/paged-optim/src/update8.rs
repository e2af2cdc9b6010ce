//! bitsandbytes' 8-bit AdamW, as its CUDA kernel computes it, block by block.

use halfbyte_nf4::blockwise8::{DynamicMap, dequantize_into, quantize_into};

use crate::{AdamWConfig, format::BLOCK};

/// One step's constants, in f32 where the kernel has them in f32.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Coefficients {
    pub(crate) beta1: f32,
    pub(crate) mix1: f32,
    pub(crate) beta2: f32,
    pub(crate) mix2: f32,
    /// `-lr sqrt(1 - beta2^t) / (1 - beta1^t)`
    pub(crate) step_size: f32,
    /// `eps sqrt(1 - beta2^t)`
    pub(crate) eps: f32,
    /// `1 - lr weight_decay`
    pub(crate) keep: f32,
}

impl Coefficients {
    /// For step `t`, counted from one.
    pub(crate) fn new(config: &AdamWConfig, lr: f64, t: u64) -> Self {
        let (beta1, beta2, lr) = (config.beta1 as f32, config.beta2 as f32, lr as f32);
        let correction = |beta: f32| 1.0 - f64::from(beta).powf(t as f64);
        let (first, second) = (correction(beta1) as f32, correction(beta2).sqrt() as f32);
        Self {
            beta1,
            mix1: 1.0 - beta1,
            beta2,
            mix2: 1.0 - beta2,
            step_size: -lr * second / first,
            eps: config.eps as f32 * second,
            keep: 1.0 - lr * config.weight_decay as f32,
        }
    }
}

/// The state of whole blocks: 256 codes a block, the last block's tail unused.
pub(crate) struct Blocks<'a> {
    pub(crate) codes: [&'a mut [u8]; 2],
    pub(crate) absmax: [&'a mut [f32]; 2],
}

/// One step:
///
/// ```text
/// m = beta1 m + (1 - beta1) g
/// v = beta2 v + (1 - beta2) g g
/// p = (p - lr sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps sqrt(1 - beta2^t))) (1 - lr wd)
/// ```
///
/// on moments decoded from their codes; the parameter sees the new moments before they are rounded to codes again. An
/// element whose gradient is not finite keeps its value and loses its moments.
pub(crate) fn adamw(value: &mut [f32], grad: &[f32], blocks: Blocks<'_>, decay: bool, c: &Coefficients) {
    let keep = if decay { c.keep } else { 1.0 };
    let [first, second] = blocks.codes;
    let [first_absmax, second_absmax] = blocks.absmax;
    let codes = first.chunks_mut(BLOCK).zip(second.chunks_mut(BLOCK));
    let absmax = first_absmax.chunks_mut(1).zip(second_absmax.chunks_mut(1));
    let pairs = value.chunks_mut(BLOCK).zip(grad.chunks(BLOCK));
    for (((value, grad), (first, second)), (first_absmax, second_absmax)) in pairs.zip(codes).zip(absmax) {
        let n = value.len();
        let (first, second) = (&mut first[..n], &mut second[..n]);
        let (mut m, mut v) = ([0.0f32; BLOCK], [0.0f32; BLOCK]);
        let (m, v) = (&mut m[..n], &mut v[..n]);
        decode(first, first_absmax, DynamicMap::Signed, m);
        decode(second, second_absmax, DynamicMap::Unsigned, v);
        for ((p, &g), (m, v)) in value.iter_mut().zip(grad).zip(m.iter_mut().zip(v.iter_mut())) {
            if !g.is_finite() {
                (*m, *v) = (0.0, 0.0);
                continue;
            }
            *m = *m * c.beta1 + c.mix1 * g;
            *v = *v * c.beta2 + c.mix2 * g * g;
            *p = (*p + c.step_size * (*m / (v.sqrt() + c.eps))) * keep;
        }
        encode(m, DynamicMap::Signed, first, first_absmax);
        encode(v, DynamicMap::Unsigned, second, second_absmax);
        keep_signs(m, first);
    }
}

/// The nearest entry of the map can have the other sign, or none: the neighbour on the right side is taken then, so that no
/// moment changes its direction by rounding.
fn keep_signs(m: &[f32], codes: &mut [u8]) {
    let values = DynamicMap::Signed.values();
    for (code, m) in codes.iter_mut().zip(m) {
        if values[usize::from(*code)].is_sign_negative() != m.is_sign_negative() {
            *code = if *m > 0.0 { code.wrapping_add(1) } else { code.wrapping_sub(1) };
        }
    }
}

const WHOLE: &str = "a block has its length and one absmax";

fn decode(codes: &[u8], absmax: &[f32], map: DynamicMap, out: &mut [f32]) {
    dequantize_into(codes, absmax, map, BLOCK, out).expect(WHOLE);
}

fn encode(x: &[f32], map: DynamicMap, codes: &mut [u8], absmax: &mut [f32]) {
    quantize_into(x, map, BLOCK, codes, absmax).expect(WHOLE);
}

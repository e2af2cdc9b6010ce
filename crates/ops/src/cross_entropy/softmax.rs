//! The loss of a row of logits, and its gradient in the row's place, in loops that the compiler vectorises.

use rayon::prelude::*;

/// Sums of so many terms are kept in f32 lanes; beyond, in f64.
const BLOCK: usize = 1024;
const LANES: usize = 16;

/// The loss of each row (`targets.len()` of them) of `logits`: `log(sum_j exp(l_j)) - l_target`.
///
/// Overwrites the row: with the gradient `softmax(l) - onehot(target)` if asked for, else with nothing of use.
pub(super) fn losses(logits: &mut [f32], targets: &[usize], gradient: bool) -> Vec<f64> {
    let vocab = logits.len() / targets.len();
    logits
        .par_chunks_mut(vocab)
        .zip(targets)
        .map(|(row, target)| {
            let (max, logit) = (maximum(row), row[*target]);
            let sum = exp_in_place(row, max);
            if gradient {
                let inverse = (1.0 / sum) as f32;
                row.iter_mut().for_each(|v| *v *= inverse);
                row[*target] -= 1.0;
            }
            f64::from(max) - f64::from(logit) + sum.ln()
        })
        .collect()
}

/// The largest element. A NaN is passed over here and shows in the sum of exponentials.
fn maximum(row: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (m, v) in lanes.iter_mut().zip(chunk) {
            *m = larger(*v, *m);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |m, v| larger(*v, m))
}

/// Replaces each `v` by `exp(v - max)` and gives the sum.
fn exp_in_place(row: &mut [f32], max: f32) -> f64 {
    let mut total = 0.0;
    for block in row.chunks_mut(BLOCK) {
        let mut lanes = [0.0f32; LANES];
        let mut chunks = block.chunks_exact_mut(LANES);
        for chunk in &mut chunks {
            for (s, v) in lanes.iter_mut().zip(chunk) {
                *v = exp_negative(*v - max);
                *s += *v;
            }
        }
        for (s, v) in lanes.iter_mut().zip(chunks.into_remainder()) {
            *v = exp_negative(*v - max);
            *s += *v;
        }
        total += lanes.iter().map(|s| f64::from(*s)).sum::<f64>();
    }
    total
}

/// `exp(x)` for `x <= 0`, within 2 ulp; 0 where the result would not be a normal number. A NaN stays one.
///
/// `exp(x) = 2^n exp(r)` with `n = round(x / ln 2)` and `|r| <= ln(2) / 2`. Adding [`SHIFT`] rounds to an integer, and
/// leaves it in the low bits, without an instruction that old processors lack.
#[inline(always)]
pub(super) fn exp_negative(x: f32) -> f32 {
    /// ln(2^-126).
    const LOWEST: f32 = -87.336_54;
    /// 1.5 * 2^23: the numbers from 2^23 to 2^24 are integers.
    const SHIFT: f32 = 12_582_912.0;
    /// ln 2 in two parts. The upper one has 9 bits, so its product with `n` is exact.
    const LN_2: (f32, f32) = (0.693_359_375, -2.121_944_4e-4);
    /// (exp(r) - 1 - r) / r^2, interpolated at the Chebyshev nodes; off by 1e-8 relative to exp(r) at most.
    const Q: [f32; 5] = [0.5, 0.166_665_76, 0.041_666_552, 0.008_363_233, 0.001_392_625];

    let clamped = if x < LOWEST { LOWEST } else { x };
    let shifted = clamped * std::f32::consts::LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    let r = (clamped - n * LN_2.0) - n * LN_2.1;
    let q = Q[0] + r * (Q[1] + r * (Q[2] + r * (Q[3] + r * Q[4])));
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    let y = (1.0 + (r + r * r * q)) * power;
    if x < LOWEST { 0.0 } else { y }
}

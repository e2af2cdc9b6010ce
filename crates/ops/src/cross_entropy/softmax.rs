//! The loss of a row of logits, and its gradient in the row's place, in loops that the compiler vectorises.

use super::Shaping;
use crate::exp::exp;
use halfbyte_tensor::vectorised;
use rayon::prelude::*;

/// Sums of so many terms are kept in f32 lanes; beyond, in f64.
const BLOCK: usize = 1024;
const LANES: usize = 16;

/// The loss of each row (`targets.len()` of them) of `logits`: `log(sum_j exp(l_j)) - l_target`.
///
/// Overwrites the row: with the gradient of products that met the factor of `shaping` already, `(softmax(l) - onehot(target)) dl`, if one
/// is given, else with nothing of use.
pub(super) fn losses(logits: &mut [f32], targets: &[usize], shaping: Option<Shaping>) -> Vec<f64> {
    let vocab = logits.len() / targets.len();
    logits
        .par_chunks_mut(vocab)
        .zip(targets)
        .map(|(row, target)| {
            vectorised!({
                let (max, logit) = (maximum(row), row[*target]);
                let capped = shaping.filter(|it| it.cap.is_some());
                let slopes: Vec<f32> = capped.map(|it| row.iter().map(|v| it.slope(*v)).collect()).unwrap_or_default();
                let sum = exp_in_place(row, max);
                if shaping.is_some() {
                    let inverse = (1.0 / sum) as f32;
                    row.iter_mut().for_each(|v| *v *= inverse);
                    row[*target] -= 1.0;
                    row.iter_mut().zip(&slopes).for_each(|(v, slope)| *v *= slope);
                }
                f64::from(max) - f64::from(logit) + sum.ln()
            })
        })
        .collect()
}

/// The largest element. A NaN is passed over here and shows in the sum of exponentials.
#[inline(always)]
pub(super) fn maximum(row: &[f32]) -> f32 {
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
#[inline(always)]
pub(super) fn exp_in_place(row: &mut [f32], max: f32) -> f64 {
    let mut total = 0.0;
    for block in row.chunks_mut(BLOCK) {
        let mut lanes = [0.0f32; LANES];
        let mut chunks = block.chunks_exact_mut(LANES);
        for chunk in &mut chunks {
            for (s, v) in lanes.iter_mut().zip(chunk) {
                *v = exp(*v - max);
                *s += *v;
            }
        }
        for (s, v) in lanes.iter_mut().zip(chunks.into_remainder()) {
            *v = exp(*v - max);
            *s += *v;
        }
        total += lanes.iter().map(|s| f64::from(*s)).sum::<f64>();
    }
    total
}

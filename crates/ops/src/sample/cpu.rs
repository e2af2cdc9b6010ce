use super::{Draw, NOTHING, Sampling};
use rayon::prelude::*;

/// Chooses for every row of `cols` logits; see [`sample`](super::sample).
pub(super) fn sample(
    logits: &mut [f32],
    (cols, vocab): (usize, usize),
    (how, draws): (&Sampling, &[Draw]),
    out: &mut [u32],
) {
    logits.par_chunks_mut(cols).zip(out).zip(draws).for_each(|((row, out), draw)| {
        if how.repetition_penalty != 1.0 {
            penalise(row, &draw.seen, how.repetition_penalty);
        }
        *out = if row.iter().all(|it| it.is_finite()) { pick(&row[..vocab], how, draw.bits) } else { NOTHING };
    });
}

fn penalise(row: &mut [f32], seen: &[u32], penalty: f32) {
    for id in seen {
        let logit = &mut row[*id as usize];
        *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
    }
}

fn pick(row: &[f32], how: &Sampling, bits: u32) -> u32 {
    if how.temperature <= 0.0 {
        return argmax(row);
    }
    let mut candidates: Vec<(u32, f32)> = (0u32..).zip(row.iter().map(|it| it / how.temperature)).collect();
    candidates.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if how.top_k > 0 {
        candidates.truncate(how.top_k);
    }
    let largest = candidates[0].1;
    let through: Vec<u64> = candidates
        .iter()
        .scan(0, |sum, it| {
            *sum += weight(it.1, largest);
            Some(*sum)
        })
        .collect();
    let mut all = through[through.len() - 1];
    if how.top_p < 1.0 {
        // The first that reaches it is the last that may be drawn.
        let wanted = ((f64::from(how.top_p) * all as f64).ceil() as u64).clamp(1, all);
        all = through[through.partition_point(|it| *it < wanted)];
    }
    let drawn = share(all, bits >> 8);
    candidates[through.partition_point(|it| *it <= drawn)].0
}

fn argmax(row: &[f32]) -> u32 {
    let mut best = 0;
    for (i, logit) in row.iter().enumerate() {
        if *logit > row[best] {
            best = i;
        }
    }
    best as u32
}

/// What a token of this logit weighs beside the largest, in units of 2^-40 of that.
fn weight(logit: f32, largest: f32) -> u64 {
    const WHOLE: f64 = (1u64 << 40) as f64;
    if logit == largest {
        return 1 << 40;
    }
    let below = f64::from(logit) - f64::from(largest);
    // Beyond that it is less than half a unit.
    if below > -30.0 { (below.exp() * WHOLE + 0.5) as u64 } else { 0 }
}

/// `all * part / 2^24`, rounded down, for a part below 2^24.
fn share(all: u64, part: u32) -> u64 {
    ((u128::from(all) * u128::from(part)) >> 24) as u64
}

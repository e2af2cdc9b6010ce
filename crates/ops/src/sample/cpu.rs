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
    let logit = |id: u32| row[id as usize] / how.temperature;
    let mut candidates: Vec<u64> = (0..row.len() as u32).map(|id| place(logit(id), id)).collect();
    if 0 < how.top_k && how.top_k < candidates.len() {
        candidates.select_nth_unstable(how.top_k);
        candidates.truncate(how.top_k);
    }
    candidates.sort_unstable();
    let candidates: Vec<u32> = candidates.into_iter().map(|it| it as u32).collect();
    let largest = logit(candidates[0]);
    let through: Vec<u64> = candidates
        .iter()
        .scan(0, |sum, it| {
            *sum += weight(logit(*it), largest);
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
    candidates[through.partition_point(|it| *it <= drawn)]
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

/// A number that is the smaller the larger the logit is, and for equal ones the smaller the id: whole numbers are sorted in a third of the
/// time that pairs take. The id is its lower half.
fn place(logit: f32, id: u32) -> u64 {
    // As `f32::total_cmp` has it: of negative numbers all bits but the sign's turned round.
    let bits = logit.to_bits() as i32;
    let rising = bits ^ ((bits >> 31) as u32 >> 1) as i32;
    u64::from(!(rising as u32 ^ 1 << 31)) << 32 | u64::from(id)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_in_the_order_of_falling_logits_and_then_of_ids() {
        let logits = [1.5, f32::MAX, -0.0, 0.0, f32::MIN, -1e-45, 1e-45, 1.5, -2.5, f32::MIN_POSITIVE];
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        ids.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
        let mut places: Vec<u64> = logits.iter().zip(0..).map(|(it, id)| place(*it, id)).collect();
        places.sort_unstable();
        assert_eq!(places.into_iter().map(|it| it as u32).collect::<Vec<_>>(), ids);
    }
}

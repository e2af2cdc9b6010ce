//! Choosing the next token from its logits, in the order that transformers applies the settings: repetition penalty,
//! temperature, top-k, top-p.

use crate::GenerateConfig;
use halfbyte_tensor::philox;

/// Picks a token. `seen` are the ids so far; the pick is a function of the logits, the settings, `seen.len()` and the number of
/// the sequence.
pub(crate) fn pick(logits: &mut [f32], seen: &[u32], config: &GenerateConfig, sequence: usize) -> u32 {
    penalise_repetition(logits, seen, config.repetition_penalty);
    if config.temperature <= 0.0 {
        return argmax(logits);
    }
    let mut candidates: Vec<(u32, f32)> = (0u32..).zip(logits.iter().map(|it| it / config.temperature)).collect();
    candidates.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if config.top_k > 0 {
        candidates.truncate(config.top_k.max(1));
    }
    let probabilities = softmax(&candidates);
    let kept = nucleus(&probabilities, config.top_p);
    let total: f64 = probabilities[..kept].iter().sum();
    let [bits, ..] = philox::quad(config.seed, SITE + ((sequence as u64) << 32), seen.len() as u64);
    let mut rest = f64::from(philox::unit(bits)) * total;
    for (i, p) in probabilities[..kept].iter().enumerate() {
        rest -= p;
        if rest < 0.0 {
            return candidates[i].0;
        }
    }
    candidates[kept - 1].0
}

/// Keeps sampling apart from other uses of the same seed.
const SITE: u64 = 0x5a3f_1e00;

fn penalise_repetition(logits: &mut [f32], seen: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut ids = seen.to_vec();
    ids.sort_unstable();
    ids.dedup();
    for id in ids {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
    }
}

fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    best as u32
}

/// Probabilities of candidates sorted by falling logit.
fn softmax(candidates: &[(u32, f32)]) -> Vec<f64> {
    let top = f64::from(candidates[0].1);
    let weights: Vec<f64> = candidates.iter().map(|it| (f64::from(it.1) - top).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|it| it / total).collect()
}

/// How many of the most probable tokens reach `top_p` together; at least one.
fn nucleus(probabilities: &[f64], top_p: f32) -> usize {
    let mut sum = 0.0;
    for (i, p) in probabilities.iter().enumerate() {
        sum += p;
        if sum >= f64::from(top_p) {
            return i + 1;
        }
    }
    probabilities.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(change: impl FnOnce(&mut GenerateConfig)) -> GenerateConfig {
        let mut config = GenerateConfig { temperature: 1.0, ..GenerateConfig::default() };
        change(&mut config);
        config
    }

    /// How often each of four tokens is picked over many positions.
    fn counts(logits: [f32; 4], config: &GenerateConfig) -> [usize; 4] {
        let mut counts = [0; 4];
        let mut seen = Vec::new();
        for _ in 0..4000 {
            seen.push(9);
            counts[pick(&mut logits.clone(), &seen, config, 0) as usize] += 1;
        }
        counts
    }

    #[test]
    fn zero_temperature_takes_the_largest_logit_and_the_first_of_equals() {
        let greedy = config(|it| it.temperature = 0.0);
        assert_eq!(pick(&mut [0.1, 2.0, 2.0, -1.0], &[], &greedy, 0), 1);
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        let logits = [4f32.ln(), 3f32.ln(), 2f32.ln(), 1f32.ln()];
        let counts = counts(logits, &config(|_| ()));
        // Five standard deviations of a binomial of 4000 draws are below 160.
        for (count, expected) in counts.iter().zip([1600usize, 1200, 800, 400]) {
            assert!(count.abs_diff(expected) < 160, "{counts:?}");
        }
    }

    #[test]
    fn texts_beside_each_other_are_drawn_apart() {
        let config = config(|_| ());
        let drawn =
            |sequence| (0..64).map(|it| pick(&mut [0.0; 100], &vec![9; it], &config, sequence)).collect::<Vec<_>>();
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(0), drawn(1));
    }

    #[test]
    fn top_k_and_top_p_leave_the_tail_out() {
        let logits = [4f32.ln(), 3f32.ln(), 2f32.ln(), 1f32.ln()];
        assert_eq!(counts(logits, &config(|it| it.top_k = 2))[2..], [0, 0]);
        let nucleus = counts(logits, &config(|it| it.top_p = 0.65));
        assert!(nucleus[0] > 0 && nucleus[1] > 0 && nucleus[2..] == [0, 0], "{nucleus:?}");
        assert_eq!(counts(logits, &config(|it| it.top_p = 0.0))[1..], [0, 0, 0], "one always stays");
    }

    #[test]
    fn the_penalty_lowers_what_was_seen_whatever_its_sign() {
        let greedy = config(|it| (it.temperature, it.repetition_penalty) = (0.0, 2.0));
        assert_eq!(pick(&mut [3.0, 2.0, -9.0, -9.0], &[0], &greedy, 0), 1);
        assert_eq!(pick(&mut [-3.0, -4.0, -9.0, -9.0], &[0], &greedy, 0), 1);
    }
}

//! How the next token is chosen from its logits; the choice itself is an op.

use crate::GenerateConfig;
use halfbyte_ops::{Draw, Sampling};
use halfbyte_tensor::philox;

/// Keeps sampling apart from other uses of the same seed.
const SITE: u64 = 0x5a3f_1e00;

impl GenerateConfig {
    pub(crate) fn sampling(&self) -> Sampling {
        let GenerateConfig { temperature, top_k, top_p, repetition_penalty, .. } = *self;
        Sampling { temperature, top_k, top_p, repetition_penalty }
    }

    /// What the choice after these ids depends on: the settings, how many they are, and the number of the text.
    pub(crate) fn draw(&self, seen: &[u32], number: usize) -> Draw {
        let text = (self.first_number + number) as u64;
        let [bits, ..] = philox::quad(self.seed, SITE + (text << 32), seen.len() as u64);
        let mut draw = Draw { bits, seen: Vec::new() };
        if self.repetition_penalty != 1.0 {
            draw.seen = seen.to_vec();
            draw.seen.sort_unstable();
            draw.seen.dedup();
        }
        draw
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_places_are_drawn_apart() {
        let config = GenerateConfig::default();
        let drawn = |number| (0..64).map(|it| config.draw(&vec![9; it], number).bits).collect::<Vec<_>>();
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(0), drawn(1));
        let later = GenerateConfig { first_number: 1, ..config.clone() };
        assert_eq!(later.draw(&[9], 2), config.draw(&[9], 3));
        assert_ne!(drawn(0)[1..], drawn(0)[..63]);
        let penalised = GenerateConfig { repetition_penalty: 1.1, ..config };
        assert_eq!(penalised.draw(&[9, 3, 9], 0).seen, [3, 9]);
    }
}

//! Learning rate by step: the schedules that transformers users know, with its formulas.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// The shape after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Stays at the base rate. With warm-up steps this is what transformers calls `constant_with_warmup`.
    #[serde(alias = "constant_with_warmup")]
    Constant,
    /// Falls on a line to zero at the last step.
    #[default]
    Linear,
    /// Falls on a cosine.
    Cosine {
        /// Waves until the last step; half a one ends in the valley.
        num_cycles: f64,
        /// The height of the valleys, as a share of the base rate.
        min_lr_rate: f64,
    },
    /// Falls on half a cosine to zero several times, and begins again at the base rate.
    CosineWithRestarts {
        /// How many times.
        num_cycles: f64,
    },
    /// Falls on a power of what is left.
    Polynomial {
        /// The power.
        power: f64,
        /// The rate at the last step.
        lr_end: f64,
    },
    /// Falls with the root of the steps, whatever their number.
    InverseSqrt {
        /// Steps after which the rate would be at its largest, the root's beginning; the warm-up, or 10,000, unless given.
        timescale: Option<u64>,
    },
    /// Stays at the base rate and falls over the last steps.
    WarmupStableDecay {
        /// Over how many.
        num_decay_steps: u64,
        /// Where the warm-up begins and the fall ends, as a share of the base rate.
        min_lr_ratio: f64,
        /// How it falls.
        decay_type: Decay,
    },
}

/// How the rate falls after it was stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Decay {
    /// On a line.
    #[serde(rename = "linear")]
    Linear,
    /// On half a cosine.
    #[default]
    #[serde(rename = "cosine")]
    Cosine,
    /// On one minus the root of what is gone.
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

impl Schedule {
    /// Half a cosine to zero: transformers' `cosine` without further arguments.
    pub const COSINE: Schedule = Schedule::Cosine { num_cycles: 0.5, min_lr_rate: 0.0 };
}

/// A base rate, a warm-up and a shape.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LrSchedule {
    /// The shape after the warm-up.
    pub kind: Schedule,
    /// The rate at the end of the warm-up, its largest value.
    pub base_lr: f64,
    /// Steps over which the rate rises from zero.
    pub warmup_steps: u64,
    /// Steps of the whole run, warm-up included.
    pub total_steps: u64,
}

impl LrSchedule {
    /// The rate of `step`, counted from zero. With a warm-up the first step's rate is zero, as in transformers. Past the
    /// last step a falling schedule stays where it ended.
    pub fn lr(&self, step: u64) -> f64 {
        self.base_lr * self.factor(step)
    }

    /// The rate over the base rate, in 0 to 1.
    fn factor(&self, step: u64) -> f64 {
        // during the warm-up: step / warmup
        if step < self.warmup_steps {
            let factor = step as f64 / self.warmup_steps as f64;
            return match self.kind {
                Schedule::WarmupStableDecay { min_lr_ratio, .. } => above(min_lr_ratio, factor),
                _ => factor,
            };
        }
        let (since, left) = (step - self.warmup_steps, self.total_steps.saturating_sub(step));
        let falling = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        // transformers lets cosines rise again past the end; here they stay down
        let progress = (since as f64 / falling).min(1.0);
        match self.kind {
            Schedule::Constant => 1.0,
            // (total - step) / (total - warmup)
            Schedule::Linear => left as f64 / falling,
            Schedule::Cosine { num_cycles, min_lr_rate } => above(min_lr_rate, cosine(2.0 * num_cycles * progress)),
            Schedule::CosineWithRestarts { .. } if left == 0 => 0.0,
            Schedule::CosineWithRestarts { num_cycles } => cosine((num_cycles * progress) % 1.0),
            Schedule::Polynomial { power, lr_end } => {
                let range = (self.base_lr - lr_end).max(0.0);
                let rate = range * (1.0 - progress).powf(power) + lr_end.min(self.base_lr);
                if self.base_lr > 0.0 { rate / self.base_lr } else { 0.0 }
            }
            Schedule::InverseSqrt { timescale } => {
                let scale = timescale.unwrap_or(if self.warmup_steps > 0 { self.warmup_steps } else { 10_000 });
                // 1 / sqrt((step + timescale - warmup) / timescale)
                let scale = scale.max(1) as f64;
                ((since as f64 + scale) / scale).sqrt().recip()
            }
            Schedule::WarmupStableDecay { num_decay_steps, min_lr_ratio, decay_type } => {
                let decay_steps = num_decay_steps.min(self.total_steps.saturating_sub(self.warmup_steps));
                if left > decay_steps {
                    return 1.0;
                }
                let gone = (decay_steps - left) as f64 / decay_steps.max(1) as f64;
                above(min_lr_ratio, decay_type.factor(gone))
            }
        }
    }
}

impl Decay {
    /// What is left of the rate when this share of the fall is gone.
    fn factor(self, gone: f64) -> f64 {
        match self {
            Decay::Linear => 1.0 - gone,
            Decay::Cosine => cosine(gone),
            Decay::OneMinusSqrt => 1.0 - gone.sqrt(),
        }
    }
}

/// (1 + cos(pi x)) / 2
fn cosine(x: f64) -> f64 {
    (0.5 * (1.0 + (PI * x).cos())).max(0.0)
}

/// A factor in 0 to 1, raised so that it ends at `floor`.
fn above(floor: f64, factor: f64) -> f64 {
    factor * (1.0 - floor) + floor
}

//! Learning rate by step: the schedules that transformers users know, with its formulas.

use std::{f64::consts::PI, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The shape after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Stays at the base rate. With warm-up steps this is what transformers calls `constant_with_warmup`.
    #[serde(alias = "constant_with_warmup")]
    Constant,
    /// Falls on a line to zero at the last step.
    #[default]
    Linear,
    /// Falls on half a cosine to zero at the last step.
    Cosine,
}

impl Schedule {
    /// All schedules.
    pub const ALL: [Self; 3] = [Self::Constant, Self::Linear, Self::Cosine];

    /// The name used in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::Linear => "linear",
            Self::Cosine => "cosine",
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A schedule's name that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown learning-rate schedule {0:?}: expected constant, linear or cosine")]
pub struct UnknownSchedule(pub String);

impl FromStr for Schedule {
    type Err = UnknownSchedule;

    fn from_str(name: &str) -> Result<Self, UnknownSchedule> {
        match name {
            "constant" | "constant_with_warmup" => Ok(Self::Constant),
            "linear" => Ok(Self::Linear),
            "cosine" => Ok(Self::Cosine),
            other => Err(UnknownSchedule(other.to_owned())),
        }
    }
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
    /// last step a falling schedule stays at zero.
    pub fn lr(&self, step: u64) -> f64 {
        self.base_lr * self.factor(step)
    }

    /// The rate over the base rate, in 0 to 1.
    fn factor(&self, step: u64) -> f64 {
        // during the warm-up: step / warmup
        if step < self.warmup_steps {
            return step as f64 / self.warmup_steps as f64;
        }
        let falling = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        match self.kind {
            Schedule::Constant => 1.0,
            // (total - step) / (total - warmup)
            Schedule::Linear => self.total_steps.saturating_sub(step) as f64 / falling,
            // (1 + cos(pi * progress)) / 2; transformers lets the cosine rise again past the end, here it stays down
            Schedule::Cosine => {
                let progress = ((step - self.warmup_steps) as f64 / falling).min(1.0);
                (0.5 * (1.0 + (PI * progress).cos())).max(0.0)
            }
        }
    }
}

//! When something happens in a run. What is said as a share of the run, or so many times an epoch, becomes steps here, once the
//! length of the data is known.

use super::settings::Settings;
use halfbyte_data::Examples;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, num::NonZeroUsize, str::FromStr};

/// How often something happens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cadence {
    /// Every so many steps; 0: never.
    Steps(usize),
    /// Whenever this share of the run is over, as in transformers.
    Share(f64),
    /// So many times an epoch.
    PerEpoch(NonZeroUsize),
}

impl Cadence {
    /// The same in steps, rounded up as transformers does.
    fn steps(self, per_epoch: usize, total: usize) -> usize {
        match self {
            Cadence::Steps(n) => n,
            Cadence::Share(share) => ((share * total as f64).ceil() as usize).max(1),
            Cadence::PerEpoch(times) => per_epoch.div_ceil(times.get()),
        }
    }

    /// Whether it is never.
    pub(super) fn is_never(self) -> bool {
        self == Cadence::Steps(0)
    }
}

impl FromStr for Cadence {
    type Err = String;

    fn from_str(text: &str) -> Result<Cadence, String> {
        let times = match text {
            "epoch" => Some("1"),
            _ => text.strip_suffix("/epoch"),
        };
        let found = match times {
            Some("0") => Some(Cadence::Steps(0)),
            Some(times) => times.parse().ok().map(Cadence::PerEpoch),
            None => text.parse().ok().map(Cadence::Steps).or_else(|| share(text)),
        };
        found.ok_or_else(|| {
            format!("{text:?} is neither a number of steps (500), nor a share of the run below 1 (0.1), nor a number of times an epoch (4/epoch, epoch)")
        })
    }
}

/// Numbers as Python and YAML write them: a whole one may have a point.
fn share(text: &str) -> Option<Cadence> {
    let number: f64 = text.parse().ok()?;
    if number > 0.0 && number < 1.0 {
        return Some(Cadence::Share(number));
    }
    (number >= 0.0 && number.fract() == 0.0 && number < 1e15).then_some(Cadence::Steps(number as usize))
}

impl fmt::Display for Cadence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cadence::Steps(n) => write!(f, "{n}"),
            Cadence::Share(share) => write!(f, "{share}"),
            Cadence::PerEpoch(times) => write!(f, "{times}/epoch"),
        }
    }
}

impl Serialize for Cadence {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Cadence::Steps(n) => to.serialize_u64(*n as u64),
            Cadence::Share(share) => to.serialize_f64(*share),
            Cadence::PerEpoch(_) => to.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Cadence {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Cadence, D::Error> {
        let text = match serde_json::Value::deserialize(from)? {
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        };
        text.parse().map_err(de::Error::custom)
    }
}

/// What happens at which steps of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rhythm {
    /// Steps over which the learning rate rises first.
    pub(super) warmup_steps: usize,
    pub(super) logging_steps: usize,
    pub(super) save_steps: usize,
    pub(super) eval_steps: usize,
}

impl Rhythm {
    pub(super) fn of(settings: &Settings, data: Examples<'_>) -> anyhow::Result<Rhythm> {
        let (per_epoch, total) = settings.steps(data)?;
        let steps = |it: Cadence| it.steps(per_epoch, total);
        let ratio = settings.args.warmup_ratio.unwrap_or(0.0);
        Ok(Rhythm {
            warmup_steps: settings.warmup_steps.map_or((ratio * total as f64).ceil() as usize, steps),
            logging_steps: steps(settings.logging_steps),
            save_steps: steps(settings.save_steps),
            eval_steps: steps(settings.eval_steps),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_shares_and_times_an_epoch() {
        let steps = |text: &str| text.parse::<Cadence>().unwrap().steps(25, 90);
        assert_eq!(
            ["500", "0", "20.0", "0.1", "0.001", "epoch", "4/epoch", "100/epoch", "0/epoch"].map(steps),
            [500, 0, 20, 9, 1, 25, 7, 1, 0]
        );
        for text in ["-1", "1.5", "often", "-1/epoch", "/epoch", "nan", ""] {
            let error = text.parse::<Cadence>().unwrap_err();
            assert!(error.contains("4/epoch"), "{error}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for text in ["500", "0.25", "\"4/epoch\""] {
            let cadence: Cadence = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&cadence).unwrap(), text);
        }
        assert_eq!(serde_json::from_str::<Cadence>("\"epoch\"").unwrap(), Cadence::PerEpoch(NonZeroUsize::MIN));
    }
}

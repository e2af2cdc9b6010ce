//! `--lr-scheduler-type` with `--lr-scheduler-kwargs`: the learning rate's fall, by transformers' names.

use super::{args::FinetuneArgs, values::SchedulerArg};
use crate::failure::user_error;
use halfbyte_paged_optim::{Decay, Schedule};
use serde_json::{Map, Value};

/// The schedule that the flags ask for, whose largest rate is `base_lr`.
///
/// # Errors
/// Arguments that are no JSON object, are not known to this schedule, are of another type or range, or lack one that it needs.
pub(super) fn schedule(args: &mut FinetuneArgs, base_lr: f64) -> anyhow::Result<Schedule> {
    let kind = *args.lr_scheduler_type.get_or_insert(SchedulerArg::Linear);
    let mut given = Given { kind, values: parse(args.lr_scheduler_kwargs.as_deref())? };
    let schedule = match kind {
        SchedulerArg::Constant => Schedule::Constant,
        SchedulerArg::Linear => Schedule::Linear,
        SchedulerArg::Cosine => Schedule::Cosine { num_cycles: given.number("num_cycles", 0.5)?, min_lr_rate: 0.0 },
        SchedulerArg::CosineWithMinLr => {
            let num_cycles = given.number("num_cycles", 0.5)?;
            Schedule::Cosine { num_cycles, min_lr_rate: given.floor(base_lr)? }
        }
        SchedulerArg::CosineWithRestarts => Schedule::CosineWithRestarts { num_cycles: given.number("num_cycles", 1.0)? },
        SchedulerArg::Polynomial => {
            let (power, lr_end) = (given.number("power", 1.0)?, given.number("lr_end", 1e-7)?);
            // As transformers refuses it; without a word the default end would be above a very small rate.
            if lr_end >= base_lr {
                return Err(user_error(format!(
                    "--lr-scheduler-kwargs: lr_end is {lr_end}, which is not below --learning-rate {base_lr}"
                )));
            }
            Schedule::Polynomial { power, lr_end }
        }
        SchedulerArg::InverseSqrt => Schedule::InverseSqrt { timescale: given.steps("timescale")? },
        SchedulerArg::WarmupStableDecay => Schedule::WarmupStableDecay {
            num_decay_steps: given.steps("num_decay_steps")?.ok_or_else(|| {
                given.wrong("num_decay_steps is missing: over how many of the last steps the rate falls, as in '{\"num_decay_steps\": 100}'")
            })?,
            min_lr_ratio: given.share("min_lr_ratio")?.unwrap_or(0.0),
            decay_type: given.decay()?,
        },
    };
    given.refuse_rest()?;
    Ok(schedule)
}

fn parse(text: Option<&str>) -> anyhow::Result<Map<String, Value>> {
    let Some(text) = text else { return Ok(Map::new()) };
    serde_json::from_str(text).map_err(|error| {
        user_error(format!("--lr-scheduler-kwargs must be a JSON object, such as '{{\"num_cycles\": 3}}': {error}"))
    })
}

/// The arguments that nobody has asked for yet.
struct Given {
    kind: SchedulerArg,
    values: Map<String, Value>,
}

impl Given {
    fn wrong(&self, what: &str) -> anyhow::Error {
        user_error(format!("--lr-scheduler-kwargs of {}: {what}", self.kind))
    }

    fn take<T>(&mut self, name: &str, wanted: &str, read: impl Fn(&Value) -> Option<T>) -> anyhow::Result<Option<T>> {
        match self.values.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match read(&value) {
                Some(found) => Ok(Some(found)),
                None => Err(self.wrong(&format!("{name} must be {wanted}, got {value}"))),
            },
        }
    }

    /// A number above zero.
    fn number(&mut self, name: &str, default: f64) -> anyhow::Result<f64> {
        let found = self.take(name, "a number above 0", |it| it.as_f64().filter(|it| *it > 0.0))?;
        Ok(found.unwrap_or(default))
    }

    fn share(&mut self, name: &str) -> anyhow::Result<Option<f64>> {
        self.take(name, "between 0 and 1", |it| it.as_f64().filter(|it| (0.0..=1.0).contains(it)))
    }

    fn steps(&mut self, name: &str) -> anyhow::Result<Option<u64>> {
        self.take(name, "a number of steps, at least 1", |it| it.as_u64().filter(|it| *it > 0))
    }

    fn decay(&mut self) -> anyhow::Result<Decay> {
        let read = |it: &Value| serde_json::from_value(it.clone()).ok();
        Ok(self.take("decay_type", "linear, cosine or 1-sqrt", read)?.unwrap_or_default())
    }

    /// `min_lr_rate`, or `min_lr` over the base rate.
    fn floor(&mut self, base_lr: f64) -> anyhow::Result<f64> {
        let most = format!("between 0 and --learning-rate {base_lr}");
        let lr = self.take("min_lr", &most, |it| it.as_f64().filter(|it| (0.0..=base_lr).contains(it)))?;
        match (lr, self.share("min_lr_rate")?) {
            (Some(lr), None) => Ok(if base_lr > 0.0 { lr / base_lr } else { 0.0 }),
            (None, Some(rate)) => Ok(rate),
            (Some(_), Some(_)) => Err(self.wrong("min_lr and min_lr_rate say the same in two ways; leave one out")),
            (None, None) => Err(self.wrong("min_lr or min_lr_rate is missing: where the rate ends")),
        }
    }

    fn refuse_rest(&self) -> anyhow::Result<()> {
        match self.values.keys().next() {
            None => Ok(()),
            Some(name) => Err(self.wrong(&format!("{name} is not known to it"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: SchedulerArg, kwargs: &str) -> Result<Schedule, String> {
        let (lr_scheduler_type, lr_scheduler_kwargs) = (Some(kind), Some(kwargs.to_owned()));
        let mut args = FinetuneArgs { lr_scheduler_type, lr_scheduler_kwargs, ..Default::default() };
        schedule(&mut args, 0.5).map_err(|it| it.to_string())
    }

    #[test]
    fn arguments_are_those_of_transformers() {
        use SchedulerArg as Arg;
        let restarts = Schedule::CosineWithRestarts { num_cycles: 3.0 };
        assert_eq!(of(Arg::CosineWithRestarts, r#"{"num_cycles": 3}"#), Ok(restarts));
        assert_eq!(of(Arg::Cosine, "{}"), Ok(Schedule::COSINE));
        let floor = Schedule::Cosine { num_cycles: 0.5, min_lr_rate: 0.1 };
        assert_eq!(of(Arg::CosineWithMinLr, r#"{"min_lr": 0.05}"#), Ok(floor));
        assert_eq!(of(Arg::CosineWithMinLr, r#"{"min_lr_rate": 0.1, "num_cycles": null}"#), Ok(floor));
        assert_eq!(of(Arg::Polynomial, "{}"), Ok(Schedule::Polynomial { power: 1.0, lr_end: 1e-7 }));
        assert_eq!(of(Arg::InverseSqrt, r#"{"timescale": 9}"#), Ok(Schedule::InverseSqrt { timescale: Some(9) }));
        let decay_type = Decay::OneMinusSqrt;
        assert_eq!(
            of(Arg::WarmupStableDecay, r#"{"num_decay_steps": 5, "decay_type": "1-sqrt"}"#),
            Ok(Schedule::WarmupStableDecay { num_decay_steps: 5, min_lr_ratio: 0.0, decay_type })
        );
    }

    #[test]
    fn arguments_that_are_none_are_named() {
        use SchedulerArg as Arg;
        for (kind, kwargs, words) in [
            (Arg::Linear, r#"{"power": 2}"#, "of linear: power is not known"),
            (Arg::Polynomial, r#"{"power": "2"}"#, "power must be a number above 0, got \"2\""),
            (Arg::Polynomial, r#"{"lr_end": 0.5}"#, "not below --learning-rate 0.5"),
            (Arg::CosineWithMinLr, "{}", "min_lr or min_lr_rate is missing"),
            (Arg::CosineWithMinLr, r#"{"min_lr": 1}"#, "between 0 and --learning-rate 0.5, got 1"),
            (Arg::CosineWithMinLr, r#"{"min_lr": 0.1, "min_lr_rate": 0.1}"#, "leave one out"),
            (Arg::WarmupStableDecay, "{}", "num_decay_steps is missing"),
            (Arg::WarmupStableDecay, r#"{"num_decay_steps": 0}"#, "at least 1, got 0"),
            (Arg::Cosine, "num_cycles=3", "must be a JSON object"),
        ] {
            let error = of(kind, kwargs).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}

//! Flags that say how the rows are divided and read, and which of them go together.

use super::{rhythm::Cadence, settings::Settings};
use crate::{failure::user_error, places};
use halfbyte_data::HoldOut;

impl Settings {
    /// What `--eval-split` asks for.
    pub(super) fn hold_out(&self) -> anyhow::Result<Option<HoldOut>> {
        let parse = |it: f64| HoldOut::parse(it).map_err(|error| user_error(format!("--eval-split: {error}")));
        self.args.eval_split.map(parse).transpose()
    }

    /// Whether there are held-out rows for a flag, of which `--eval-rows` speaks of those of a file.
    pub(super) fn holds_out(&self, flag: &str) -> bool {
        !self.args.eval_data.is_empty() || (self.args.eval_split.is_some() && flag != "--eval-rows")
    }

    pub(super) fn check_data(&self) -> anyhow::Result<()> {
        self.hold_out()?;
        if self.args.eval_split.is_some() && !self.args.eval_data.is_empty() {
            return Err(user_error(
                "--eval-split takes held-out rows from --data, and --eval-data names others; leave one out",
            ));
        }
        self.check_streaming()
    }

    fn check_streaming(&self) -> anyhow::Result<()> {
        if !self.args.streaming {
            return match self.args.shuffle_buffer {
                None => Ok(()),
                Some(rows) => Err(user_error(format!(
                    "--shuffle-buffer {rows} is of rows that are read as training goes, and without --streaming all of them are shuffled together; leave it out, or add --streaming"
                ))),
            };
        }
        if self.args.shuffle_buffer == Some(0) {
            return Err(user_error("--shuffle-buffer must be at least 1; --no-shuffle takes rows in file order"));
        }
        if self.args.eval_split.is_some() {
            return Err(user_error(
                "--eval-split needs all rows before the first step, and --streaming reads them as training goes; name held-out rows with --eval-data",
            ));
        }
        for named in &self.args.data {
            if let (name, Some(_)) = places::weighted(named)? {
                return Err(user_error(format!(
                    "--streaming reads one file after the other, and {} has a weight; leave the weights out, or mix in memory without --streaming",
                    name.display()
                )));
            }
        }
        Ok(())
    }

    /// Refuses what is due so many times an epoch, where nobody knows when that is over.
    pub(super) fn check_cadences(&self, batches_per_pass: Option<usize>) -> anyhow::Result<()> {
        let a = &self.args;
        let all = [
            ("--warmup-steps", a.warmup_steps),
            ("--logging-steps", a.logging_steps),
            ("--save-steps", a.save_steps),
            ("--eval-steps", a.eval_steps),
        ];
        let by_epoch = all.iter().find(|it| matches!(it.1, Some(Cadence::PerEpoch(_))));
        match (by_epoch, batches_per_pass) {
            (Some((flag, Some(cadence))), None) => Err(user_error(format!(
                "{flag} {cadence}: of rows that are read as training goes nobody knows when an epoch is over; give a number of steps"
            ))),
            _ => Ok(()),
        }
    }

    /// Rows that are read, and shuffled, together.
    pub(super) fn shuffle_buffer(&self) -> usize {
        self.args.shuffle_buffer.unwrap_or(10_000)
    }
}

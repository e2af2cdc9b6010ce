//! Flags that say how the rows are divided and read, and which of them go together.

use super::settings::Settings;
use crate::failure::user_error;
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
        Ok(())
    }
}

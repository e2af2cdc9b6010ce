//! What to read from a data file and how to make examples of it.

use std::ops::Range;
use std::sync::Arc;

use crate::chat::ChatTemplate;
use crate::columns::Columns;
use crate::error::{Error, Result};

/// Which of the tokens of a row are learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossOn {
    /// All.
    All,
    /// What the assistant says in all its turns, with the end of each; of other rows the answer and its end.
    Assistant,
    /// Of conversations the assistant's last turn.
    Last,
    /// All that comes after the prompt, where a row tells prompt and completion apart; else as [`Last`](Self::Last).
    Completion,
}

/// What becomes of a row that is longer than the longest example.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Excess {
    /// Its rest is cut off, and counted.
    #[default]
    Truncate,
    /// It is left out, and counted.
    Drop,
    /// It becomes several examples, each of which begins where the one before ended.
    Split,
    /// It is an error.
    Raise,
}

/// Settings of [`Dataset::load`](crate::Dataset::load).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataConfig {
    /// Which columns to read; only these are decoded.
    pub columns: Columns,
    /// Rows of the file, counted from 0 and including null and empty ones. An end of `usize::MAX` means the end of
    /// the file; any other end past it is an error.
    pub rows: Option<Range<usize>>,
    /// Longest example in tokens; the rest of a row is cut off and counted.
    pub max_length: usize,
    /// What becomes of longer rows.
    pub excess: Excess,
    /// Whether the end-of-text token closes each row that was not cut. `None`: off for text (as the tokenizer alone
    /// would have it) and conversations (which the template closes), on for other rows (or the model never learns to stop).
    pub append_eos: Option<bool>,
    /// What is learned. `None`: [`LossOn::Assistant`], and of text all. Of text nothing else is possible.
    pub loss_on: Option<LossOn>,
    /// Writes conversations; needed for nothing else.
    pub template: Option<Arc<ChatTemplate>>,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            columns: Columns::Text("text".into()),
            rows: None,
            max_length: 512,
            excess: Excess::Truncate,
            append_eos: None,
            loss_on: None,
            template: None,
        }
    }
}

impl DataConfig {
    /// Whether the end-of-text token closes each row that was not cut.
    pub fn appends_eos(&self) -> bool {
        self.append_eos.unwrap_or(matches!(self.columns, Columns::Instruction { .. } | Columns::Completion { .. }))
    }

    /// What is learned.
    pub fn learns(&self) -> LossOn {
        let default = if matches!(self.columns, Columns::Text(_)) { LossOn::All } else { LossOn::Assistant };
        self.loss_on.unwrap_or(default)
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.max_length < 2 {
            let reason = format!("{} tokens leave nothing to predict; at least 2 are needed", self.max_length);
            return Err(Error::Setting { setting: "max_length", reason });
        }
        if matches!(self.columns, Columns::Text(_)) && self.learns() != LossOn::All {
            let reason = "a row of text has no prompt and no answer; it is learned whole".into();
            return Err(Error::Setting { setting: "loss_on", reason });
        }
        if matches!(self.columns, Columns::Chat(_)) && self.template.is_none() {
            return Err(Error::NoTemplate);
        }
        match &self.rows {
            Some(rows) if rows.start >= rows.end => Err(Error::Setting {
                setting: "rows",
                reason: format!("the range {}..{} holds no row; the end must be larger", rows.start, rows.end),
            }),
            _ => Ok(()),
        }
    }
}

/// Reads a row range as people write it: `0..1000`, `..1000`, `500..` (to the end of the file).
///
/// # Errors
/// Anything else, and a range that holds no row.
pub fn parse_rows(text: &str) -> Result<Range<usize>> {
    let wrong = || Error::Setting {
        setting: "rows",
        reason: format!("{text:?} is not a range of rows; write START..END, for example 0..1000"),
    };
    let (start, end) = text.trim().split_once("..").ok_or_else(wrong)?;
    let number = |part: &str, default: usize| match part.trim() {
        "" => Ok(default),
        digits => digits.parse::<usize>().map_err(|_| wrong()),
    };
    let range = number(start, 0)?..number(end, usize::MAX)?;
    if range.is_empty() {
        return Err(wrong());
    }
    Ok(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_as_people_write_them() {
        assert_eq!(parse_rows("0..1000").unwrap(), 0..1000);
        assert_eq!(parse_rows(" ..7 ").unwrap(), 0..7);
        assert_eq!(parse_rows("5..").unwrap(), 5..usize::MAX);
        for wrong in ["", "5", "a..b", "5..5", "9..3", "1..=4", "-1..4", "1...4"] {
            let message = parse_rows(wrong).unwrap_err().to_string();
            assert!(message.contains("0..1000"), "{wrong}: {message}");
        }
    }

    #[test]
    fn settings_that_train_nothing_are_refused() {
        let check = |max_length, rows| DataConfig { max_length, rows, ..Default::default() }.check();
        assert!(check(2, None).is_ok());
        assert!(check(1, None).unwrap_err().to_string().contains("max_length"));
        assert!(check(8, Some(3..3)).unwrap_err().to_string().contains("3..3"));
    }
}

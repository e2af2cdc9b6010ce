//! What to read from a data file and how to make examples of it.

use std::fmt;
use std::ops::Range;

use crate::error::{Error, Result};

/// Which columns hold the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Columns {
    /// One column of plain text; every token is trained.
    Text(String),
    /// Instruction rows, laid out by [`instruction_prompt`](crate::instruction_prompt).
    Instruction {
        /// Column of the task.
        instruction: String,
        /// Column of the task's input; a null or empty value leaves the section out. `None`: no such column.
        input: Option<String>,
        /// Column of the answer.
        output: String,
    },
}

impl Columns {
    /// The columns `instruction`, `input` and `output`.
    pub fn instruction() -> Self {
        Self::Instruction { instruction: "instruction".into(), input: Some("input".into()), output: "output".into() }
    }

    /// How a row is laid out, with the names of the columns in braces where their texts go.
    pub fn template(&self) -> String {
        match self {
            Self::Text(text) => format!("{{{text}}}"),
            Self::Instruction { instruction, input, output } => {
                let braced = |name: &str| format!("{{{name}}}");
                let input = input.as_deref().map(braced);
                crate::instruction_prompt(&braced(instruction), input.as_deref()) + &braced(output)
            }
        }
    }

    /// Names in the order in which the renderer expects the fields of a row.
    pub(crate) fn names(&self) -> Vec<&str> {
        match self {
            Self::Text(text) => vec![text],
            Self::Instruction { instruction, input, output } => {
                [Some(instruction), Some(output), input.as_ref()].into_iter().flatten().map(String::as_str).collect()
            }
        }
    }
}

/// For people: `column text`, or `columns instruction, input, output`.
impl fmt::Display for Columns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "column {text}"),
            Self::Instruction { instruction, input, output } => {
                let input = input.as_ref().map_or_else(String::new, |it| format!(" {it},"));
                write!(f, "columns {instruction},{input} {output}")
            }
        }
    }
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
    /// Whether the end-of-text token closes each row that was not cut. `None`: off for text (as the tokenizer alone
    /// would have it), on for instruction rows (or the model never learns to stop).
    pub append_eos: Option<bool>,
    /// Whether the prompt of an instruction row counts in the loss too. Text rows always count whole.
    pub train_on_inputs: bool,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            columns: Columns::Text("text".into()),
            rows: None,
            max_length: 512,
            append_eos: None,
            train_on_inputs: false,
        }
    }
}

impl DataConfig {
    /// Whether the end-of-text token closes each row that was not cut.
    pub fn appends_eos(&self) -> bool {
        self.append_eos.unwrap_or(matches!(self.columns, Columns::Instruction { .. }))
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.max_length < 2 {
            let reason = format!("{} tokens leave nothing to predict; at least 2 are needed", self.max_length);
            return Err(Error::Setting { setting: "max_length", reason });
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

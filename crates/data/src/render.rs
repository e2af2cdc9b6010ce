//! The layout of instruction rows. Training and generation share it, so that a tuned model is asked in the very form
//! in which it was taught.

use std::ops::Range;

use serde_json::Value;

use crate::chat::{Conversation, Learned, Nothing, learned};
use crate::columns::Columns;
use crate::config::{DataConfig, LossOn};
use crate::error::{Error, Result};
use crate::reader::Fields;

/// Lays out a task for generation, up to where the answer begins.
///
/// ```
/// let prompt = halfbyte_data::instruction_prompt("Translate to French.", Some("cheese"));
/// assert_eq!(prompt, "### Instruction:\nTranslate to French.\n\n### Input:\ncheese\n\n### Response:\n");
/// ```
/// Without an input, or with a blank one, the input section is left out.
pub fn instruction_prompt(instruction: &str, input: Option<&str>) -> String {
    match input.filter(|text| !is_blank(text)) {
        Some(input) => format!("### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"),
        None => format!("### Instruction:\n{instruction}\n\n### Response:\n"),
    }
}

/// What one row of a file says.
pub(crate) enum Rendered {
    Null,
    Empty,
    Text(Text),
}

/// A row as text.
pub(crate) struct Text {
    pub(crate) text: String,
    /// Bytes of it that are learned, in order; `None` for all.
    pub(crate) learned: Option<Vec<Range<usize>>>,
    /// Whether the tokenizer puts around it what it puts around every text: a template writes that itself.
    pub(crate) surrounded: bool,
}

/// Lays a row out, whose fields come in the order of [`Columns::wanted`].
pub(crate) fn render(config: &DataConfig, mut fields: Fields) -> Result<Rendered> {
    let mut take = |index: usize| fields.get_mut(index).map(Value::take).unwrap_or_default();
    let plain = |text, answer: Option<usize>| {
        let learned =
            answer.filter(|_| config.learns() != LossOn::All).map(|it| std::iter::once(it..usize::MAX).collect());
        Rendered::Text(Text { text, learned, surrounded: true })
    };
    Ok(match &config.columns {
        Columns::Text(_) => match take(0) {
            Value::String(text) if is_blank(&text) => Rendered::Empty,
            Value::String(text) => plain(text, None),
            _ => Rendered::Null,
        },
        Columns::Instruction { .. } => match (take(0), take(1), take(2)) {
            (Value::String(task), Value::String(answer), _) if is_blank(&task) || is_blank(&answer) => Rendered::Empty,
            (Value::String(task), Value::String(answer), input) => {
                let prompt = instruction_prompt(&task, input.as_str());
                let start = prompt.len();
                plain(prompt + &answer, Some(start))
            }
            _ => Rendered::Null,
        },
        Columns::Completion { prompt, .. } => match (take(0), take(1)) {
            (Value::String(prompt), Value::String(answer)) if is_blank(&prompt) && is_blank(&answer) => Rendered::Empty,
            (Value::String(prompt), Value::String(answer)) => {
                let start = prompt.len();
                plain(prompt + &answer, Some(start))
            }
            (Value::Null, _) | (_, Value::Null) => Rendered::Null,
            (asked @ Value::Array(_), said @ Value::Array(_)) => {
                conversation(config, Conversation::of_parts(asked, said))?
            }
            _ => {
                let reason = format!(
                    "{prompt} and its completion are a text and a list; they are either both texts or both messages"
                );
                return Err(Error::Row { place: String::new(), reason });
            }
        },
        Columns::Chat(columns) => conversation(config, Conversation::of_row(columns, fields))?,
    })
}

fn conversation(config: &DataConfig, found: Result<Conversation, Nothing>) -> Result<Rendered> {
    let conversation = match found {
        Ok(it) => it,
        Err(Nothing::Null) => return Ok(Rendered::Null),
        Err(Nothing::Empty) => return Ok(Rendered::Empty),
        Err(Nothing::Wrong(reason)) => return Err(Error::Row { place: String::new(), reason }),
    };
    let template = config.template.as_ref().ok_or(Error::NoTemplate)?;
    let Learned { text, parts } = learned(template, &conversation, config.learns())?;
    let learned = (config.learns() != LossOn::All).then_some(parts);
    Ok(Rendered::Text(Text { text, learned, surrounded: false }))
}

fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}

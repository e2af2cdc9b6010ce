//! The layout of instruction rows. Training and generation share it, so that a tuned model is asked in the very form
//! in which it was taught.

use std::ops::Range;

use crate::config::Columns;

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
    /// The text and its bytes that are the answer (all of it for a row of plain text).
    Text {
        text: String,
        answer: Range<usize>,
    },
}

/// Fields come in the order of [`Columns::names`].
pub(crate) fn render(columns: &Columns, mut fields: Vec<Option<String>>) -> Rendered {
    let needed = match columns {
        Columns::Text(_) => 1,
        Columns::Instruction { .. } => 2,
    };
    if fields[..needed].iter().any(Option::is_none) {
        return Rendered::Null;
    }
    if fields[..needed].iter().flatten().any(|text| is_blank(text)) {
        return Rendered::Empty;
    }
    let mut take = |index: usize| fields.get_mut(index).and_then(Option::take).unwrap_or_default();
    match columns {
        Columns::Text(_) => {
            let text = take(0);
            let answer = 0..text.len();
            Rendered::Text { text, answer }
        }
        Columns::Instruction { .. } => {
            let mut text = instruction_prompt(&take(0), Some(&take(2)));
            let start = text.len();
            text.push_str(&take(1));
            let answer = start..text.len();
            Rendered::Text { text, answer }
        }
    }
}

fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}

//! Which bytes of a conversation's text are learned.
//!
//! Templates seldom say what of their text the assistant has written. It is found by rendering: what a template writes up to a turn,
//! with the prompt for an answer, ends where the turn begins, and what it writes up to and with the turn ends where the turn ends, its
//! end token included. Where earlier turns are written otherwise once others follow (thinking is taken out, the system message moves),
//! a mark in the turn's content shows where it came to stand.

use std::ops::Range;

use serde_json::Value;

use super::messages::{Conversation, role};
use super::template::ChatTemplate;
use crate::config::LossOn;
use crate::error::{Error, Result};

/// A conversation as text, and the bytes of it that are learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Learned {
    pub(crate) text: String,
    pub(crate) parts: Vec<Range<usize>>,
}

/// Put at the end or the beginning of a content, it is found again in the text.
const MARK: &str = "\u{10fffd}\u{f8fd}\u{10fffd}";

/// Writes a conversation.
pub(crate) fn learned(template: &ChatTemplate, conversation: &Conversation, loss_on: LossOn) -> Result<Learned> {
    let Conversation { messages, tools, completion } = conversation;
    let whole = template.text(messages, tools.as_ref(), false)?;
    let text = whole.text;
    let finder = Finder { template, messages, tools: tools.as_ref(), text: &text };
    let parts = match (loss_on, completion, whole.generation) {
        (LossOn::All, ..) => one(0..text.len()),
        (LossOn::Completion, Some(first), _) => one(finder.start(*first)?..text.len()),
        (_, _, Some(said)) => of_last(said, loss_on),
        (_, first, None) => {
            // What is asked is not learned, whoever says it.
            let turns = (first.unwrap_or(0)..messages.len()).filter(|at| role(&messages[*at]) == "assistant");
            finder.spans(&of_last(turns.collect(), loss_on))?
        }
    };
    Ok(Learned { text, parts })
}

fn one(part: Range<usize>) -> Vec<Range<usize>> {
    std::iter::once(part).collect()
}

fn of_last<T>(mut turns: Vec<T>, loss_on: LossOn) -> Vec<T> {
    if loss_on != LossOn::Assistant && turns.len() > 1 {
        turns.drain(..turns.len() - 1);
    }
    turns
}

struct Finder<'a> {
    template: &'a ChatTemplate,
    messages: &'a [Value],
    tools: Option<&'a Value>,
    text: &'a str,
}

impl Finder<'_> {
    fn spans(&self, turns: &[usize]) -> Result<Vec<Range<usize>>> {
        let mut spans: Vec<Range<usize>> = Vec::with_capacity(turns.len());
        for &turn in turns {
            let start = self.start(turn)?;
            let end = self.end(turn, start)?;
            if spans.last().is_some_and(|it| it.end > start) || end <= start {
                return Err(self.lost(turn));
            }
            spans.push(start..end);
        }
        Ok(spans)
    }

    /// What the template writes of the first messages. Some refuse an unfinished conversation, which is then of no help.
    fn prefix(&self, count: usize, prompt: bool) -> Option<String> {
        if count == 0 && !prompt {
            return Some(String::new());
        }
        self.template.render(&self.messages[..count], self.tools, prompt).ok()
    }

    /// Where the answer of a turn begins.
    fn start(&self, turn: usize) -> Result<usize> {
        let asked = self.prefix(turn, true);
        if let Some(asked) = asked.as_ref().filter(|it| self.text.starts_with(it.as_str())) {
            return Ok(asked.len());
        }
        // The prompt may hold what the turn as it is written leaves out, such as the beginning of a thought.
        let before = self.prefix(turn, false);
        if let (Some(asked), Some(before)) = (&asked, &before)
            && self.text.starts_with(before.as_str())
            && asked.starts_with(before.as_str())
        {
            return Ok(common(self.text, asked));
        }
        self.marked(turn, self.messages.len(), false).map(|it| it.0).ok_or_else(|| self.lost(turn))
    }

    /// Where a turn ends, with what closes it.
    fn end(&self, turn: usize, start: usize) -> Result<usize> {
        if turn + 1 == self.messages.len() {
            return Ok(self.text.len());
        }
        let until = self.prefix(turn + 1, false);
        if let Some(until) = until.filter(|it| it.len() > start && self.text.starts_with(it.as_str())) {
            return Ok(until.len());
        }
        // Where its content ends, and what comes after it when the conversation ends there.
        let found = || {
            let (end, _) = self.marked(turn, self.messages.len(), true)?;
            let (last_end, last) = self.marked(turn, turn + 1, true)?;
            let closing = &last[last_end..];
            self.text[end..].starts_with(closing).then_some(end + closing.len())
        };
        found().ok_or_else(|| self.lost(turn))
    }

    /// Where the content of a turn begins or ends in the text of the first messages, and that text, without the mark by which it was
    /// found.
    fn marked(&self, turn: usize, count: usize, at_end: bool) -> Option<(usize, String)> {
        let mut messages = self.messages[..count].to_vec();
        put_mark(messages.get_mut(turn)?.get_mut("content")?, at_end)?;
        let marked = self.template.render(&messages, self.tools, false).ok()?;
        let (before, after) = marked.split_once(MARK)?;
        let text = format!("{before}{after}");
        let is_the_text = count < self.messages.len() || text == self.text;
        (is_the_text && !after.contains(MARK)).then_some((before.len(), text))
    }

    fn lost(&self, turn: usize) -> Error {
        Error::Template {
            place: String::new(),
            template: self.template.origin().to_owned(),
            line: None,
            reason: format!(
                "which part of the text is message {turn} cannot be told: the template writes it otherwise when others follow, and does not \
                 mark it with {{% generation %}}; train on the last answer (loss_on last) or on all of the text (loss_on all)"
            ),
        }
    }
}

/// Templates often trim contents, so the mark stands inside of white space.
fn put_mark(content: &mut Value, at_end: bool) -> Option<()> {
    let text = match content {
        Value::String(text) => text,
        Value::Array(parts) => {
            let part = if at_end { parts.last_mut() } else { parts.first_mut() };
            match part?.get_mut("text")? {
                Value::String(text) => text,
                _ => return None,
            }
        }
        _ => return None,
    };
    let at = if at_end { text.trim_end().len() } else { text.len() - text.trim_start().len() };
    text.insert_str(at, MARK);
    Some(())
}

/// Bytes that two texts share at their beginning, in whole characters.
fn common(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|it| it.0.len_utf8()).sum()
}

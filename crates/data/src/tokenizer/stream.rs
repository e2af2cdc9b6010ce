//! Text of a generation while it grows.
//!
//! A token can end in the middle of a character, and a decoder may treat the first token of a text differently from
//! the rest. So the last tokens are decoded again with each new one, and text is handed out only once it is complete.

use super::Tokenizer;
use crate::error::Result;

/// What is still incomplete after so many tokens is broken for good. Far more than a character has bytes, because a
/// literal U+FFFD looks like an unfinished character until another one follows, and several may stand in a row.
const LONGEST_WAIT: usize = 64;

/// Incremental decoding; see [`Tokenizer::stream`].
#[derive(Debug)]
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    skip_special: bool,
    /// The tokens that the next piece of text is decoded from: `shown` of them are out already.
    window: Vec<u32>,
    shown: usize,
}

impl<'t> TextStream<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, window: Vec::new(), shown: 0 }
    }

    /// The text that this token completes; empty while a character is unfinished.
    ///
    /// # Errors
    /// A decoder that fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.window.push(id);
        let text = self.unseen()?;
        let waited = self.window.len() - self.shown;
        let unfinished = text.is_empty() || text.ends_with(char::REPLACEMENT_CHARACTER);
        if unfinished && waited < LONGEST_WAIT {
            return Ok(String::new());
        }
        self.window.drain(..self.shown);
        self.shown = self.window.len();
        Ok(text)
    }

    /// What is left at the end, such as the beginning of a character that never came.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish(self) -> Result<String> {
        self.unseen()
    }

    fn unseen(&self) -> Result<String> {
        let decode = |ids: &[u32]| self.tokenizer.decode(ids, self.skip_special);
        let (before, all) = (decode(&self.window[..self.shown])?, decode(&self.window)?);
        if let Some(rest) = all.strip_prefix(&before) {
            return Ok(rest.to_owned());
        }
        let broken = |text: &str| text.chars().filter(|it| *it == char::REPLACEMENT_CHARACTER).count();
        let shown = before.chars().count();
        let same_place: String = all.chars().take(shown).collect();
        if broken(&same_place) > broken(&before) {
            // A byte that does not go on a character broke those before it, too, which are out already as they were.
            return decode(&self.window[self.shown..]);
        }
        // A decoder that rewrites earlier text (spaces before punctuation) gives no common start: cut by length.
        Ok(all.chars().skip(shown).collect())
    }
}

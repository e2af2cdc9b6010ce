//! One row to ids and mask: the only place where it is decided which token is trained.

use crate::config::{Columns, DataConfig};
use crate::error::{Error, Result};
use crate::render::{Rendered, render};
use crate::report::Report;
use crate::tokenizer::Tokenizer;

/// Tokens beyond the wanted ones that a part of a long text must give, so that its end has no say in those that are wanted.
const MARGIN: usize = 64;

/// Of the rest of a long text only the number of tokens is of interest, which is counted in parts of so many bytes.
const PART_BYTES: usize = 1 << 16;

/// What one row became, with its share of the report.
pub(crate) struct Encoded {
    pub(crate) ids: Vec<u32>,
    /// `mask[t]`: whether token `t` is to be predicted.
    pub(crate) mask: Vec<bool>,
    pub(crate) report: Report,
}

/// Everything that encoding a row depends on.
pub(crate) struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    config: &'a DataConfig,
    eos: Option<u32>,
}

impl<'a> Encoder<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer, config: &'a DataConfig) -> Result<Self> {
        config.check()?;
        let eos = match config.appends_eos() {
            false => None,
            true => Some(tokenizer.eos().ok_or(Error::NoSpecialToken { role: "eos", needed_for: "append_eos adds" })?),
        };
        tokenizer.within(eos.as_slice())?;
        Ok(Self { tokenizer, config, eos })
    }

    /// A row that cannot be used comes back without ids, and its report says why.
    pub(crate) fn encode(&self, fields: Vec<Option<String>>) -> Result<Encoded> {
        let mut report = Report { rows_read: 1, ..Report::default() };
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        match render(&self.config.columns, fields) {
            Rendered::Null => report.null = 1,
            Rendered::Empty => report.empty = 1,
            Rendered::Text { text, answer } => {
                let rest;
                (ids, mask, rest) = self.tokens(&text, answer.start)?;
                self.close((&mut ids, &mut mask), rest, &mut report);
            }
        }
        Ok(Encoded { ids, mask, report })
    }

    /// Ids of the text with what the tokenizer puts around it, not yet cut; empty if the text itself has no token. Of a text that
    /// is much longer than what is wanted it is the beginning, and the tokens of the rest are counted: a tokenizer takes some
    /// two hundred bytes for each byte of text.
    fn tokens(&self, text: &str, answer_start: usize) -> Result<(Vec<u32>, Vec<bool>, u64)> {
        let whole = self.config.train_on_inputs || matches!(self.config.columns, Columns::Text(_));
        let wanted = self.config.max_length.saturating_add(MARGIN);
        let mut reach = wanted.saturating_mul(self.tokenizer.longest_token());
        let (body, trained, rest) = loop {
            let (head, rest) = cut(text, reach);
            let (body, trained) = self.body(head, whole, answer_start)?;
            if rest.is_empty() || body.len() >= wanted {
                break (body, trained, self.count(rest)?);
            }
            reach = reach.saturating_mul(2);
        };
        if body.is_empty() {
            return Ok((Vec::new(), Vec::new(), 0));
        }
        let (prefix, suffix) = (self.tokenizer.prefix(), self.tokenizer.suffix());
        let ids = [prefix, &body, suffix].concat();
        let mask = [vec![whole; prefix.len()], trained, vec![true; suffix.len()]].concat();
        Ok((ids, mask, rest))
    }

    /// Ids of a text, and which are trained.
    fn body(&self, text: &str, whole: bool, answer_start: usize) -> Result<(Vec<u32>, Vec<bool>)> {
        if whole {
            let ids = self.tokenizer.encode_plain(text)?;
            let trained = vec![true; ids.len()];
            return Ok((ids, trained));
        }
        // Prompt and answer are encoded together, as the text would be in the wild; a token belongs to the answer
        // if it reaches into it.
        let encoding = self.tokenizer.encode_with_offsets(text)?;
        let trained = encoding.get_offsets().iter().map(|&(_, end)| end > answer_start).collect();
        Ok((encoding.get_ids().to_vec(), trained))
    }

    /// Tokens of a text in parts, which may have a few more than the text as a whole.
    fn count(&self, mut text: &str) -> Result<u64> {
        let mut count = 0;
        while !text.is_empty() {
            let (part, rest) = cut(text, PART_BYTES);
            count += self.tokenizer.encode_plain(part)?.len() as u64;
            text = rest;
        }
        Ok(count)
    }

    /// Appends the end, cuts to the longest length, and counts; `rest` more tokens were cut off already.
    fn close(&self, (ids, mask): (&mut Vec<u32>, &mut Vec<bool>), rest: u64, report: &mut Report) {
        if ids.is_empty() {
            report.empty = 1;
            return;
        }
        if let Some(eos) = self.eos.filter(|eos| ids.last() != Some(eos)) {
            ids.push(eos);
            mask.push(true);
        }
        let longest = self.config.max_length;
        let cut = ids.len().saturating_sub(longest) as u64 + rest;
        ids.truncate(longest);
        mask.truncate(longest);
        report.truncated = u64::from(cut > 0);
        report.tokens_cut = cut;
        // The first token of a row is nobody's target.
        let trained = mask.iter().skip(1).filter(|&&trained| trained).count() as u64;
        if trained == 0 {
            report.untrained = 1;
            ids.clear();
            mask.clear();
            return;
        }
        report.rows_used = 1;
        report.tokens = ids.len() as u64;
        report.trained_tokens = trained;
        report.unfinished = u64::from(cut > 0 && (self.eos.is_some() || !self.tokenizer.suffix().is_empty()));
        let bos = self.tokenizer.bos();
        report.doubled_bos = u64::from(bos.is_some() && ids.first() == bos.as_ref() && ids.get(1) == bos.as_ref());
    }
}

/// A text in two, the first of at most `bytes` bytes (at least a character) and up to a white space, if there is one in its last
/// half.
fn cut(text: &str, bytes: usize) -> (&str, &str) {
    if text.len() <= bytes {
        return (text, "");
    }
    let mut end = bytes;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    if end == 0 {
        end = text.chars().next().map_or(0, char::len_utf8);
    }
    let at = text[..end].rfind(char::is_whitespace).filter(|it| *it > end / 2);
    text.split_at(at.unwrap_or(end))
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn a_text_is_cut_between_words_or_at_least_between_characters() {
        assert_eq!(cut("one two", 7), ("one two", ""));
        assert_eq!(cut("one two three", 9), ("one two", " three"));
        assert_eq!(cut("a long-winded-word", 9), ("a long-wi", "nded-word"));
        assert_eq!(cut("\u{e9}\u{e9}", 3), ("\u{e9}", "\u{e9}"));
        assert_eq!(cut("\u{1f600}!", 1), ("\u{1f600}", "!"));
    }
}

//! One row to ids and mask: the only place where it is decided which token is trained.

use std::collections::HashSet;

use crate::config::{DataConfig, Excess, LossOn};
use crate::error::{Error, Result};
use crate::reader::Fields;
use crate::render::{Rendered, Text, render};
use crate::report::Report;
use crate::tokenizer::Tokenizer;

/// Tokens beyond the wanted ones that a part of a long text must give, so that its end has no say in those that are wanted.
const MARGIN: usize = 64;

/// Of the rest of a long text only the number of tokens is of interest, which is counted in parts of so many bytes.
const PART_BYTES: usize = 1 << 16;

/// What one row became, with its share of the report.
pub(crate) struct Encoded {
    /// Its examples: one, unless it was split or is not used.
    pub(crate) examples: Vec<Tokens>,
    pub(crate) report: Report,
}

/// Ids, and whether each is to be predicted.
#[derive(Default)]
pub(crate) struct Tokens {
    pub(crate) ids: Vec<u32>,
    pub(crate) mask: Vec<bool>,
    /// Tokens of the rest of a row that was encoded up to here alone.
    rest: u64,
    /// Whether an answer ends without a token that only ends texts.
    unended: bool,
    /// The end-of-text token that is to close the row.
    eos: Option<u32>,
}

/// Everything that encoding a row depends on.
pub(crate) struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    config: &'a DataConfig,
    eos: Option<u32>,
    /// Tokens that are no text.
    special: HashSet<u32>,
}

impl<'a> Encoder<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer, config: &'a DataConfig) -> Result<Self> {
        config.check()?;
        let eos = match config.appends_eos() {
            false => None,
            true => Some(tokenizer.eos().ok_or(Error::NoSpecialToken { role: "eos", needed_for: "append_eos adds" })?),
        };
        tokenizer.within(eos.as_slice())?;
        Ok(Self { tokenizer, config, eos, special: tokenizer.special_ids() })
    }

    /// A row that cannot be used comes back without examples, and its report says why.
    pub(crate) fn encode(&self, fields: Fields) -> Result<Encoded> {
        let mut report = Report { rows_read: 1, ..Report::default() };
        let mut examples = Vec::new();
        match render(self.config, fields)? {
            Rendered::Null => report.null = 1,
            Rendered::Empty => report.empty = 1,
            Rendered::Text(text) => examples = self.close(self.tokens(&text)?, &mut report)?,
        }
        Ok(Encoded { examples, report })
    }

    /// Ids of the text with what the tokenizer puts around it, not yet cut; none if the text itself has no token. Of a text that
    /// is much longer than what is wanted it is the beginning, and the tokens of the rest are counted: a tokenizer takes some
    /// two hundred bytes for each byte of text.
    fn tokens(&self, text: &Text) -> Result<Tokens> {
        let wanted = match self.config.excess {
            Excess::Split => usize::MAX,
            _ => self.config.max_length.saturating_add(MARGIN),
        };
        let mut reach = wanted.saturating_mul(self.tokenizer.longest_token());
        let mut body = loop {
            let (head, rest) = cut(&text.text, reach);
            let mut body = self.body(head, text)?;
            if rest.is_empty() || body.ids.len() >= wanted {
                body.rest = self.count(rest)?;
                body.unended &= rest.is_empty();
                break body;
            }
            reach = reach.saturating_mul(2);
        };
        // A template closes what it writes, so only a wish adds to that.
        body.eos = self.eos.filter(|_| text.surrounded || self.config.append_eos == Some(true));
        if !body.ids.is_empty() && text.surrounded {
            let (prefix, suffix) = (self.tokenizer.prefix(), self.tokenizer.suffix());
            let whole = text.learned.is_none();
            body.ids = [prefix, &body.ids, suffix].concat();
            body.mask = [vec![whole; prefix.len()], body.mask, vec![true; suffix.len()]].concat();
        }
        Ok(body)
    }

    /// Ids of a text or the beginning of it, and which are learned.
    fn body(&self, head: &str, text: &Text) -> Result<Tokens> {
        let Some(learned) = &text.learned else {
            let ids = self.tokenizer.encode_plain(head)?;
            return Ok(Tokens { mask: vec![true; ids.len()], ids, ..Tokens::default() });
        };
        // Prompt and answer are encoded together, as the text would be in the wild; a token belongs to the answer
        // if it reaches into it.
        let encoding = self.tokenizer.encode_with_offsets(head)?;
        let ids = encoding.get_ids().to_vec();
        let mut mask = vec![false; ids.len()];
        let mut ended = vec![false; learned.len()];
        let mut part = 0;
        for (at, &(start, end)) in encoding.get_offsets().iter().enumerate() {
            while learned.get(part).is_some_and(|it| it.end <= start) {
                part += 1;
            }
            if learned.get(part).is_some_and(|it| end > it.start) {
                mask[at] = true;
                ended[part] |= self.special.contains(&ids[at]);
            }
        }
        let unended = !text.surrounded && self.config.learns() != LossOn::All && ended.contains(&false);
        Ok(Tokens { ids, mask, unended, ..Tokens::default() })
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

    /// Appends the end, does with what is too long what the settings say, and counts.
    fn close(&self, mut tokens: Tokens, report: &mut Report) -> Result<Vec<Tokens>> {
        if tokens.ids.is_empty() {
            report.empty = 1;
            return Ok(Vec::new());
        }
        if let Some(eos) = tokens.eos.filter(|eos| tokens.ids.last() != Some(eos)) {
            tokens.ids.push(eos);
            tokens.mask.push(true);
        }
        let longest = self.config.max_length;
        let too_many = tokens.ids.len().saturating_sub(longest) as u64 + tokens.rest;
        let (unended, is_closed) = (tokens.unended, tokens.eos.is_some() || !self.tokenizer.suffix().is_empty());
        let whole = vec![tokens];
        let mut examples = match self.config.excess {
            _ if too_many == 0 => whole,
            Excess::Truncate => {
                report.truncated = 1;
                report.tokens_cut = too_many;
                whole.into_iter().map(|it| it.piece(0, longest)).collect()
            }
            Excess::Drop => {
                report.dropped = 1;
                return Ok(Vec::new());
            }
            Excess::Split => {
                report.split = 1;
                whole.iter().flat_map(|it| (0..it.ids.len()).step_by(longest).map(|at| it.piece(at, longest))).collect()
            }
            Excess::Raise => {
                return Err(Error::TooLong {
                    place: String::new(),
                    tokens: longest as u64 + too_many,
                    max_length: longest,
                });
            }
        };
        examples.retain(|it| it.trained() > 0);
        let Some(first) = examples.first() else {
            report.untrained = 1;
            return Ok(examples);
        };
        let bos = self.tokenizer.bos();
        report.doubled_bos =
            u64::from(bos.is_some() && first.ids.first() == bos.as_ref() && first.ids.get(1) == bos.as_ref());
        report.rows_used = 1;
        report.tokens = examples.iter().map(|it| it.ids.len() as u64).sum();
        report.trained_tokens = examples.iter().map(Tokens::trained).sum();
        report.unfinished = u64::from(report.truncated > 0 && is_closed);
        report.unended = u64::from(unended && report.truncated == 0);
        Ok(examples)
    }
}

impl Tokens {
    /// Tokens from one on, so many at most.
    fn piece(&self, from: usize, longest: usize) -> Self {
        let to = self.ids.len().min(from + longest);
        Self { ids: self.ids[from..to].to_vec(), mask: self.mask[from..to].to_vec(), ..Self::default() }
    }

    /// How many are somebody's target, which the first never is.
    fn trained(&self) -> u64 {
        self.mask.iter().skip(1).filter(|&&trained| trained).count() as u64
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
        assert_eq!(cut("a long-winded-word", 10), ("a long-win", "ded-word"));
        assert_eq!(cut("half long-winded", 8), ("half lon", "g-winded"));
        assert_eq!(cut("\u{e9}\u{e9}", 3), ("\u{e9}", "\u{e9}"));
        assert_eq!(cut("\u{1f600}!", 1), ("\u{1f600}", "!"));
    }
}

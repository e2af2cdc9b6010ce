//! One row to ids and mask: the only place where it is decided which token is trained.

use crate::config::{Columns, DataConfig};
use crate::error::{Error, Result};
use crate::render::{Rendered, render};
use crate::report::Report;
use crate::tokenizer::Tokenizer;

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
                (ids, mask) = self.tokens(&text, answer.start)?;
                self.close(&mut ids, &mut mask, &mut report);
            }
        }
        Ok(Encoded { ids, mask, report })
    }

    /// Ids of the text with what the tokenizer puts around it, not yet cut; empty if the text itself has no token.
    fn tokens(&self, text: &str, answer_start: usize) -> Result<(Vec<u32>, Vec<bool>)> {
        let whole = self.config.train_on_inputs || matches!(self.config.columns, Columns::Text(_));
        let (body, trained) = if whole {
            let ids = self.tokenizer.encode_plain(text)?;
            let trained = vec![true; ids.len()];
            (ids, trained)
        } else {
            // Prompt and answer are encoded together, as the text would be in the wild; a token belongs to the answer
            // if it reaches into it.
            let encoding = self.tokenizer.encode_with_offsets(text)?;
            let trained = encoding.get_offsets().iter().map(|&(_, end)| end > answer_start).collect();
            (encoding.get_ids().to_vec(), trained)
        };
        if body.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        let (prefix, suffix) = (self.tokenizer.prefix(), self.tokenizer.suffix());
        let ids = [prefix, &body, suffix].concat();
        let mask = [vec![whole; prefix.len()], trained, vec![true; suffix.len()]].concat();
        Ok((ids, mask))
    }

    /// Appends the end, cuts to the longest length, and counts.
    fn close(&self, ids: &mut Vec<u32>, mask: &mut Vec<bool>, report: &mut Report) {
        if ids.is_empty() {
            report.empty = 1;
            return;
        }
        if let Some(eos) = self.eos.filter(|eos| ids.last() != Some(eos)) {
            ids.push(eos);
            mask.push(true);
        }
        let longest = self.config.max_length;
        let cut = ids.len().saturating_sub(longest) as u64;
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

//! Where the rows of a file went.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::dataset::{Dataset, Row};

/// Counts of one [`Dataset::load`](crate::Dataset::load).
///
/// `rows_read = rows_used + null + empty + untrained + dropped` always holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// Rows in the range asked for.
    pub rows_read: u64,
    /// Rows that became examples.
    pub rows_used: u64,
    /// Rows left out because a needed column is null.
    pub null: u64,
    /// Rows left out because a needed column is empty or white space, or because the tokenizer makes nothing of it.
    pub empty: u64,
    /// Rows left out because no token of them would be trained: a single token, or an answer wholly cut off.
    pub untrained: u64,
    /// Rows left out because they are longer than the longest example.
    pub dropped: u64,
    /// Rows that are longer than the longest example and became several.
    pub split: u64,
    /// Rows longer than the longest example; their rest was cut off.
    pub truncated: u64,
    /// Tokens cut off from those.
    pub tokens_cut: u64,
    /// Used rows that should end with the end-of-text token but were cut before it, so that it is not trained there.
    pub unfinished: u64,
    /// Used rows with an answer that no token of its own closes, so that the model does not learn to end it.
    pub unended: u64,
    /// Used rows that begin with the beginning-of-text token twice: the text holds one and the tokenizer adds another.
    pub doubled_bos: u64,
    /// Of the examples of used rows, those that are not trained on but measured on; see [`HoldOut`](crate::HoldOut).
    pub held_out: u64,
    /// Tokens in all examples that are trained on.
    pub tokens: u64,
    /// Tokens that are somebody's target.
    pub trained_tokens: u64,
}

impl Report {
    /// Adds what another counted.
    pub fn add(&mut self, other: &Report) {
        self.rows_read += other.rows_read;
        self.rows_used += other.rows_used;
        self.null += other.null;
        self.empty += other.empty;
        self.untrained += other.untrained;
        self.dropped += other.dropped;
        self.split += other.split;
        self.truncated += other.truncated;
        self.tokens_cut += other.tokens_cut;
        self.unfinished += other.unfinished;
        self.unended += other.unended;
        self.doubled_bos += other.doubled_bos;
        self.held_out += other.held_out;
        self.tokens += other.tokens;
        self.trained_tokens += other.trained_tokens;
    }

    /// Counts examples that are held out.
    pub(crate) fn hold_out(&mut self, taken: &Dataset) {
        self.held_out += taken.len() as u64;
        self.tokens -= taken.tokens() as u64;
        let trained = |row: Row<'_>| (1..row.ids.len()).filter(|t| row.trained(*t)).count() as u64;
        self.trained_tokens -= taken.rows().map(trained).sum::<u64>();
    }

    /// Rows that teach nothing, or not what they should: without a trained token, with a doubled beginning, with answers that are not
    /// closed.
    pub fn doubtful(&self) -> u64 {
        self.untrained + self.doubled_bos + self.unended
    }

    /// Sentences about what the person who made the file would want to know; none when all is well.
    pub fn warnings(&self) -> Vec<String> {
        let mut out = Vec::new();
        let mut say = |count: u64, sentence: &str| {
            if count > 0 {
                out.push(format!("{count} of {} rows {sentence}", self.rows_read));
            }
        };
        say(self.null, "are null and were left out");
        say(self.empty, "are empty and were left out");
        say(self.untrained, "have no trained token within the maximum length and were left out");
        say(self.dropped, "are longer than the maximum length and were left out");
        say(self.unended, "have an answer that no special token closes, so its end is not learned");
        say(self.unfinished, "were cut before their end, so the end-of-text token is not trained there");
        say(self.doubled_bos, "begin with the beginning-of-text token twice; remove it from the text");
        out
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows read, {} used", self.rows_read, self.rows_used)?;
        let parts = [
            (self.null, "null"),
            (self.empty, "empty"),
            (self.untrained, "without a trained token"),
            (self.dropped, "dropped as too long"),
            (self.split, "split"),
            (self.truncated, "truncated"),
            (self.unfinished, "cut before their end"),
            (self.unended, "with an answer that is not closed"),
            (self.doubled_bos, "with a doubled BOS"),
            (self.held_out, "held out"),
        ];
        for (count, what) in parts.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, ", {count} {what}")?;
        }
        write!(f, "; {} tokens, {} trained", self.tokens, self.trained_tokens)
    }
}

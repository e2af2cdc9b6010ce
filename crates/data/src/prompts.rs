//! Rows as texts that are to be continued: what a row asks, without its answer.

use std::sync::Arc;

use rayon::prelude::*;
use serde_json::Value;

use crate::chat::{ChatTemplate, Conversation, Nothing};
use crate::columns::{ChatColumns, Chosen, ColumnNames, Columns, Layout, Turns};
use crate::error::{Error, Result};
use crate::files::{AllRows, DataFiles};
use crate::reader::{Column, Fields, Wanted};
use crate::render::instruction_prompt;
use crate::tokenised::located;
use crate::tokenizer::Tokenizer;

/// How rows are read as prompts.
#[derive(Debug, Clone)]
pub struct PromptConfig {
    /// Which columns hold what; see [`Columns::choose_prompts`].
    pub columns: Columns,
    /// Only these rows; `None` for all.
    pub rows: Option<std::ops::Range<usize>>,
    /// Writes conversations, if the rows are some.
    pub template: Option<Arc<ChatTemplate>>,
    /// A system message for conversations that have none.
    pub system: Option<String>,
    /// A prompt has fewer tokens than this.
    pub limit: usize,
}

/// A text to be continued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// As it is written, without what the tokenizer puts before every text.
    pub text: String,
    /// Its tokens.
    pub ids: Vec<u32>,
}

/// A question, and where its answer would stand, by the names that data sets use.
const ANSWERS: [(&str, &[&str]); 4] = [
    ("prompt", &["completion", "response"]),
    ("instruction", &["output", "response"]),
    ("question", &["answer", "response"]),
    ("query", &["response"]),
];

impl Columns {
    /// As [`choose`](Self::choose), for rows that need no answer, and of which a text alone is the prompt of any layout.
    ///
    /// # Errors
    /// Those of [`choose`](Self::choose).
    pub fn choose_prompts(columns: &[Column], names: &ColumnNames, layout: Option<Layout>) -> Result<Chosen> {
        let mut all = columns.to_vec();
        let has = |name: &str| columns.iter().any(|it| it.name == name);
        for (prompt, answers) in ANSWERS {
            if has(prompt) && !answers.iter().any(|it| has(it)) {
                all.push(Column { name: answers[0].into(), kind: "string".into() });
            }
        }
        let chosen = Self::choose(&all, names, layout);
        let (Some(layout), true) = (layout, *names == ColumnNames::default()) else { return chosen };
        let known =
            chosen.as_ref().is_ok_and(|it| it.columns.wanted_prompts().iter().all(|it| it.optional || has(&it.name)));
        let Some(only) = ["text", "prompt"].into_iter().find(|it| has(it)).filter(|_| !known) else { return chosen };
        let (prompt, answer) = (only.to_owned(), "answer".to_owned());
        let columns = match layout {
            Layout::Text => Self::Text(prompt),
            Layout::Instruction => Self::Instruction { instruction: prompt, input: None, output: answer },
            Layout::Completion => Self::Completion { prompt, completion: answer },
            Layout::Chat => Self::Chat(ChatColumns {
                turns: Turns::Pair { prompt, input: None, answer },
                system: None,
                tools: None,
            }),
        };
        Ok(Chosen { columns, notes: Vec::new() })
    }

    /// For people: the columns that are read of prompts.
    pub fn of_prompts(&self) -> String {
        let names: Vec<String> = self.wanted_prompts().into_iter().map(|it| it.name).collect();
        format!("column{} {}", if names.len() == 1 { "" } else { "s" }, names.join(", "))
    }

    /// What is read of rows whose answers do not matter, in the order of [`wanted`](Self::wanted).
    fn wanted_prompts(&self) -> Vec<Wanted> {
        let mut wanted = self.wanted();
        if !matches!(self, Self::Text(_) | Self::Chat(ChatColumns { turns: Turns::Messages(_), .. })) {
            wanted.remove(1);
        }
        wanted
    }
}

impl Prompt {
    /// Reads the prompts of some files, in file order.
    ///
    /// # Errors
    /// Those of reading; a row that asks nothing or has too many tokens, by its number, from 0; no rows.
    pub fn read(files: &DataFiles, tokenizer: &Tokenizer, config: &PromptConfig) -> Result<Vec<Self>> {
        let range = config.rows.clone().unwrap_or(0..usize::MAX);
        let mut rows = AllRows::new(files, config.columns.wanted_prompts(), range);
        let mut all = Vec::new();
        while let Some((first, chunk)) = rows.next_chunk()? {
            let made: Vec<Result<Self>> = chunk.into_par_iter().map(|it| Self::of_row(it, tokenizer, config)).collect();
            for (row, made) in made.into_iter().enumerate() {
                all.push(made.map_err(|error| located(error, &first, row as u64))?);
            }
        }
        if all.is_empty() {
            let path = files.paths().first().cloned().unwrap_or_default();
            return Err(Error::Format { path, reason: "no rows, and so no prompt".into() });
        }
        Ok(all)
    }

    fn of_row(fields: Fields, tokenizer: &Tokenizer, config: &PromptConfig) -> Result<Self> {
        let wrong = |reason: String| Error::Row { place: String::new(), reason };
        let (text, surrounded) = match asked(config, fields) {
            Ok(Asked::Text(text)) => (text, true),
            Ok(Asked::Conversation(conversation)) => {
                let template = config.template.as_ref().ok_or(Error::NoTemplate)?;
                (template.render(&conversation.messages, conversation.tools.as_ref(), true)?, false)
            }
            Err(Nothing::Null) => return Err(wrong(format!("no prompt: {} is null", config.columns.of_prompts()))),
            Err(Nothing::Empty) => {
                return Err(wrong(format!("no prompt: {} has no text", config.columns.of_prompts())));
            }
            Err(Nothing::Wrong(reason)) => return Err(wrong(reason)),
        };
        let ids = if surrounded { tokenizer.encode_prompt(&text)? } else { tokenizer.encode_plain(&text)? };
        if ids.is_empty() || ids.len() >= config.limit {
            let (tokens, limit) = (ids.len(), config.limit);
            return Err(wrong(format!("a prompt of {tokens} tokens, and the model has positions for {limit}")));
        }
        Ok(Self { text, ids })
    }
}

/// What is asked.
enum Asked {
    Text(String),
    Conversation(Conversation),
}

fn asked(config: &PromptConfig, mut fields: Fields) -> Result<Asked, Nothing> {
    let mut take = |index: usize| fields.get_mut(index).map(Value::take).unwrap_or_default();
    let conversation = |mut it: Conversation| {
        if let Some(system) = &config.system {
            it.put_system(system.as_str().into());
        }
        Asked::Conversation(it)
    };
    match &config.columns {
        Columns::Text(_) => said(take(0)).map(Asked::Text),
        Columns::Instruction { .. } => {
            let (task, input) = (said(take(0))?, take(1));
            Ok(Asked::Text(instruction_prompt(&task, input.as_str())))
        }
        Columns::Completion { prompt, .. } => match take(0) {
            messages @ Value::Array(_) => Conversation::of_messages(messages, prompt).map(conversation),
            text => said(text).map(Asked::Text),
        },
        Columns::Chat(columns) => Conversation::question(columns, fields).map(conversation),
    }
}

/// A text that is one.
fn said(value: Value) -> Result<String, Nothing> {
    match value {
        Value::String(text) if text.trim().is_empty() => Err(Nothing::Empty),
        Value::String(text) => Ok(text),
        _ => Err(Nothing::Null),
    }
}

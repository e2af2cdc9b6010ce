//! A conversation under way: what was said, and the tokens that the model has seen of it.

use halfbyte_data::{ChatTemplate, Tokenizer};
use serde_json::{Value, json};

pub(super) struct Dialogue {
    template: ChatTemplate,
    messages: Vec<Value>,
    /// The text that stands for the messages and the last answer, and its tokens. The model's own tokens are kept: its answer as text
    /// could be cut into others.
    text: String,
    ids: Vec<u32>,
}

impl Dialogue {
    pub(super) fn new(template: ChatTemplate, system: Option<&str>) -> Dialogue {
        let messages = system.map(|it| json!({ "role": "system", "content": it })).into_iter().collect();
        Dialogue { template, messages, text: String::new(), ids: Vec::new() }
    }

    /// What writes the conversation.
    pub(super) fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// Has another template write the conversation, what was said before with it.
    pub(super) fn write_by(&mut self, template: ChatTemplate) {
        self.template = template;
        self.text.clear();
        self.ids.clear();
    }

    /// The tokens to be continued once the user has said something. If the template refuses it, nothing was said.
    pub(super) fn ask(&mut self, said: &str, tokenizer: &Tokenizer) -> anyhow::Result<Vec<u32>> {
        let mut messages = self.messages.clone();
        messages.push(json!({ "role": "user", "content": said }));
        let text = self.template.render(&messages, None, true)?;
        let ids = match text.strip_prefix(&self.text) {
            Some(more) if !self.text.is_empty() => [self.ids.clone(), tokenizer.encode_plain(more)?].concat(),
            // A template may write earlier turns otherwise than before, as without what was thought.
            _ => tokenizer.encode_plain(&text)?,
        };
        (self.messages, self.text, self.ids) = (messages, text, ids.clone());
        Ok(ids)
    }

    /// What was asked last, as the template writes it.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Takes the model's answer down: its tokens, and what they say.
    pub(super) fn answered(&mut self, ids: &[u32], said: &str, tokenizer: &Tokenizer) -> anyhow::Result<()> {
        self.messages.push(json!({ "role": "assistant", "content": said }));
        self.text += &tokenizer.decode(ids, false)?;
        self.ids.extend(ids);
        Ok(())
    }

    /// Forgets the last question and its answer; false if there is none.
    pub(super) fn undo(&mut self) -> bool {
        let last = self.messages.iter().rposition(|it| it["role"] == "user");
        if let Some(at) = last {
            self.messages.truncate(at);
        }
        // What is left is cut into tokens anew.
        self.text.clear();
        self.ids.clear();
        last.is_some()
    }

    /// Forgets all but a system message.
    pub(super) fn reset(&mut self) {
        while self.undo() {}
    }

    /// The messages as a row of a data file.
    pub(super) fn row(&self) -> String {
        json!({ "messages": self.messages }).to_string()
    }
}

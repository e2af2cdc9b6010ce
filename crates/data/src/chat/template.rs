//! A model's chat template, written as `transformers` would have it.

use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value, context};
use serde_json::{Map, Value as Json};

use super::{cycles::nested_namespace, python, tags};
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// Steps that one rendering may take: a template that counts to a billion ends with an error.
const FUEL: u64 = 50_000_000;

/// Stand around what a template says its assistant has written, until they are taken out again.
const BEGIN: &str = "\u{10fffd}\u{f8ff}\u{10fffd}";
const END: &str = "\u{10fffd}\u{f8fe}\u{10fffd}";

/// A Jinja template for conversations.
///
/// Rendering gives the text of transformers' `apply_chat_template(tokenize=False)`.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    origin: String,
    /// That of conversations with tools, if these have one of their own.
    with_tools: Option<String>,
    /// What a template may ask for beside the messages: the special tokens by role, and what the user adds.
    variables: Map<String, Json>,
    parts: bool,
}

/// A conversation as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Text {
    pub(super) text: String,
    /// Bytes that the template says its assistant has written; `None` if it does not say.
    pub(super) generation: Option<Vec<std::ops::Range<usize>>>,
}

const NAME: &str = "chat_template";
const TOOLS_NAME: &str = "tool_use";

/// Names under which a message holds what was thought before it, the standard one first.
const THOUGHTS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

impl ChatTemplate {
    /// The template of a folder: `chat_template.jinja`, else what `tokenizer_config.json` or `chat_template.json` hold under
    /// `chat_template`, of which a list is the templates `default` and `tool_use`.
    ///
    /// # Errors
    /// A file that cannot be read, and a template that is none.
    pub fn load(folder: &Path, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let path = folder.join("chat_template.jinja");
        if let Some(source) = crate::tokenizer::read_text(&path)? {
            return Self::new(source, &path.display().to_string(), tokenizer).map(Some);
        }
        for file in ["tokenizer_config.json", "chat_template.json"] {
            let path = folder.join(file);
            let Some(found) = crate::tokenizer::read_key(&path, "chat_template")? else { continue };
            let origin = path.display().to_string();
            return Self::of_value(found, &origin, tokenizer).map(Some);
        }
        Ok(None)
    }

    /// A text, or a list of them with names.
    fn of_value(value: Json, origin: &str, tokenizer: &Tokenizer) -> Result<Self> {
        let unusable = || Error::Template {
            place: String::new(),
            template: origin.to_owned(),
            line: None,
            reason: "chat_template is neither a text nor a list of texts with names, one of them `default`".into(),
        };
        match value {
            Json::String(source) => Self::new(source, origin, tokenizer),
            Json::Array(named) => {
                let of_name = |name: &str| {
                    let found = named.iter().find(|it| it.get("name").and_then(Json::as_str) == Some(name));
                    found.and_then(|it| it.get("template")).and_then(Json::as_str)
                };
                let mut template = Self::new(of_name("default").ok_or_else(unusable)?.to_owned(), origin, tokenizer)?;
                if let Some(source) = of_name(TOOLS_NAME) {
                    template.add(TOOLS_NAME, source)?;
                    template.with_tools = Some(source.to_owned());
                }
                Ok(template)
            }
            _ => Err(unusable()),
        }
    }

    /// A template by its text; `origin` is named where it fails. The special tokens are those of the tokenizer.
    ///
    /// # Errors
    /// A text that is no template, with its line.
    pub fn new(source: String, origin: &str, tokenizer: &Tokenizer) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("the usual delimiters"));
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.add_filter(tags::KEPT, tags::kept);
        environment.add_filter("__generation", |text: String| format!("{BEGIN}{text}{END}"));
        python::equip(&mut environment);
        let variables = tokenizer.token_texts().iter().map(|(k, v)| (k.clone(), Json::from(v.clone()))).collect();
        let mut template = Self {
            environment,
            source: source.clone(),
            origin: origin.to_owned(),
            with_tools: None,
            variables,
            parts: false,
        };
        template.add(NAME, &source)?;
        template.parts = template.takes_parts();
        Ok(template)
    }

    fn add(&mut self, name: &'static str, source: &str) -> Result<()> {
        let refused =
            |reason| Error::Template { place: String::new(), template: self.origin.clone(), line: None, reason };
        if let Some(nested) = nested_namespace(source) {
            return Err(refused(format!("it puts the namespace {nested} into a namespace, which could hold itself")));
        }
        tags::check(source).map_err(|long| refused(format!("it holds {long}")))?;
        let added = self.environment.add_template_owned(name, filters_for_generation(&tags::keeping(source)));
        added.map_err(|error| self.failed(&error))
    }

    /// The same template with further variables, such as `enable_thinking`.
    #[must_use]
    pub fn with_variables(mut self, variables: Map<String, Json>) -> Self {
        self.variables.extend(variables);
        self
    }

    /// Where it is from.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Its text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// That of conversations with tools, if these have one of their own.
    pub fn source_with_tools(&self) -> Option<&str> {
        self.with_tools.as_deref()
    }

    /// Whether another has the same text, whatever each is told beside the messages.
    pub fn same_text(&self, other: &Self) -> bool {
        self.source == other.source && self.with_tools == other.with_tools
    }

    /// Whether it takes today's date, so that a text is another one tomorrow.
    pub fn takes_the_date(&self) -> bool {
        self.source.contains("strftime_now")
    }

    /// A conversation as text. A message is an object with `role` and `content`, and whatever else the template looks at.
    ///
    /// # Errors
    /// What the template refuses, with its reason, and what fails in it, with the line.
    pub fn render(&self, messages: &[Json], tools: Option<&Json>, add_generation_prompt: bool) -> Result<String> {
        Ok(self.text(messages, tools, add_generation_prompt)?.text)
    }

    /// The tokens at which an answer ends: the first special one that the template writes behind it.
    ///
    /// # Errors
    /// A tokenizer that fails. A template that closes no answer, or refuses a question with its answer, gives none.
    pub fn end_ids(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        const ANSWER: &str = "halfbyte-answer";
        let messages = [
            serde_json::json!({ "role": "user", "content": "?" }),
            serde_json::json!({ "role": "assistant", "content": ANSWER }),
        ];
        let Ok(text) = self.render(&messages, None, false) else { return Ok(Vec::new()) };
        let Some((_, closing)) = text.rsplit_once(ANSWER) else { return Ok(Vec::new()) };
        let special = tokenizer.special_ids();
        Ok(tokenizer.encode_plain(closing)?.into_iter().find(|it| special.contains(it)).into_iter().collect())
    }

    pub(super) fn text(&self, messages: &[Json], tools: Option<&Json>, add_generation_prompt: bool) -> Result<Text> {
        let messages: Vec<Json> = messages.iter().map(|it| self.prepared(it)).collect();
        let name = if self.with_tools.is_some() && tools.is_some() { TOOLS_NAME } else { NAME };
        let given = context! {
            messages => Value::from(Serde(&messages)),
            tools => tools.map_or(Value::from(()), |it| Value::from(Serde(it))),
            documents => Value::from(()),
            add_generation_prompt,
            ..Value::from(Serde(&self.variables))
        };
        let rendered = self.environment.get_template(name).and_then(|it| it.render(given));
        Ok(unmarked(&rendered.map_err(|error| self.failed(&error))?, &self.source))
    }

    /// A message as the template knows it.
    fn prepared(&self, message: &Json) -> Json {
        let mut message = message.clone();
        let Some(object) = message.as_object_mut() else { return message };
        // What was thought goes by several names, of which a template looks at one.
        let thought = THOUGHTS.iter().find_map(|key| object.get(*key).filter(|it| !it.is_null())).cloned();
        if let Some(thought) = thought {
            object.entry("thinking").or_insert_with(|| thought.clone());
            object.insert("reasoning_content".into(), thought);
        }
        if let Some(parts) = object.get("content").and_then(Json::as_array).filter(|_| !self.parts) {
            let text: String = parts.iter().filter_map(|it| it.get("text").and_then(Json::as_str)).collect();
            object.insert("content".into(), text.into());
        }
        message
    }

    /// Whether contents may be lists of parts; else the texts of the parts are put together before.
    fn takes_parts(&self) -> bool {
        const PROBE: &str = "probe-of-parts";
        let message = serde_json::json!({ "role": "user", "content": [{ "type": "text", "text": PROBE }] });
        let given = context! {
            messages => Value::from(Serde([&message])),
            ..Value::from(Serde(&self.variables))
        };
        let rendered = self.environment.get_template(NAME).and_then(|it| it.render(given));
        // A template that knows no parts fails, or prints the list as one.
        rendered.is_ok_and(|text| {
            text.contains(PROBE) && !text.contains(&format!("'{PROBE}'")) && !text.contains(&format!("\"{PROBE}\""))
        })
    }

    fn failed(&self, error: &minijinja::Error) -> Error {
        let detail = error.detail().map_or_else(|| error.to_string(), str::to_owned);
        Error::Template { place: String::new(), template: self.origin.clone(), line: error.line(), reason: detail }
    }
}

/// The template's text decides, not what was made of it.
impl PartialEq for ChatTemplate {
    fn eq(&self, other: &Self) -> bool {
        self.same_text(other) && self.variables == other.variables
    }
}

impl Eq for ChatTemplate {}

/// `{% generation %}`, which transformers adds to Jinja to tell what an assistant has written, as a filter that marks it.
fn filters_for_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        // The end may not share its sign with the beginning.
        let Some(end) = tag[2..].find("%}").map(|it| it + 2) else { break };
        out.push_str(before);
        let inner = &tag[2..end];
        let word = inner.trim_matches(|c: char| c.is_whitespace() || "-+".contains(c));
        let replaced = match word {
            "generation" => inner.replace("generation", "filter __generation"),
            "endgeneration" => inner.replace("endgeneration", "endfilter"),
            _ => inner.to_owned(),
        };
        out.push_str("{%");
        out.push_str(&replaced);
        out.push_str("%}");
        rest = &tag[end + 2..];
    }
    out.push_str(rest);
    out
}

/// Takes the marks out.
fn unmarked(marked: &str, source: &str) -> Text {
    let (mut text, mut spans, mut rest) = (String::with_capacity(marked.len()), Vec::new(), marked);
    while let Some((before, after)) = rest.split_once(BEGIN) {
        text.push_str(before);
        let start = text.len();
        let (inside, after) = after.split_once(END).unwrap_or((after, ""));
        text.push_str(inside);
        spans.push(start..text.len());
        rest = after;
    }
    text.push_str(rest);
    let says = source.contains("endgeneration");
    Text { text, generation: says.then_some(spans) }
}

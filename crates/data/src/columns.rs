//! Which columns of a data file are read, and what a row of them is.

use std::collections::BTreeMap;
use std::fmt;

use crate::error::{Error, Result};
use crate::reader::{Column, Kind, Wanted};

/// Which columns hold what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Columns {
    /// One column of plain text; every token is trained.
    Text(String),
    /// Instruction rows, laid out by [`instruction_prompt`](crate::instruction_prompt).
    Instruction {
        /// Column of the task.
        instruction: String,
        /// Column of the task's input; a null or empty value leaves the section out. `None`: no such column.
        input: Option<String>,
        /// Column of the answer.
        output: String,
    },
    /// A prompt and what follows it, put together as they are; both may be lists of messages instead, which the model's template
    /// writes.
    Completion {
        /// Column of the prompt.
        prompt: String,
        /// Column of what is learned.
        completion: String,
    },
    /// Conversations, written by the model's template.
    Chat(ChatColumns),
}

/// Columns of conversations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatColumns {
    /// Who said what.
    pub turns: Turns,
    /// Column of a system message, for conversations that do not begin with one.
    pub system: Option<String>,
    /// Column of the tools that may be called.
    pub tools: Option<String>,
}

/// Where the turns of a conversation stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turns {
    /// A column of lists of messages: objects with `role` and `content`, or with `from` and `value`.
    Messages(String),
    /// A turn of the user and one of the assistant.
    Pair {
        /// Column of what the user says.
        prompt: String,
        /// Column of what goes on below it.
        input: Option<String>,
        /// Column of the answer.
        answer: String,
    },
}

/// The ways in which a row can be laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// [`Columns::Text`].
    Text,
    /// [`Columns::Instruction`].
    Instruction,
    /// [`Columns::Completion`].
    Completion,
    /// [`Columns::Chat`].
    Chat,
}

/// Columns by what they hold, as a user names them: `prompt=question,completion=answer`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ColumnNames(BTreeMap<&'static str, String>);

/// What a column can hold.
const ROLES: [&str; 9] =
    ["text", "instruction", "input", "output", "prompt", "completion", "messages", "system", "tools"];

impl ColumnNames {
    /// Reads `ROLE=COLUMN,ROLE=COLUMN`.
    ///
    /// # Errors
    /// A role that is not known, with the list of those that are, or one that is named twice.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |reason: String| Error::Setting { setting: "columns", reason };
        let mut names = BTreeMap::new();
        for pair in text.split(',').map(str::trim).filter(|it| !it.is_empty()) {
            let (role, column) = pair
                .split_once('=')
                .map(|it| (it.0.trim(), it.1.trim()))
                .filter(|it| !it.1.is_empty())
                .ok_or_else(|| wrong(format!("{pair:?} is no pair; write ROLE=COLUMN, as in prompt=question")))?;
            let known = ROLES.into_iter().find(|it| *it == role);
            let role =
                known.ok_or_else(|| wrong(format!("no column can be {role:?}; known are {}", ROLES.join(", "))))?;
            if names.insert(role, column.to_owned()).is_some() {
                return Err(wrong(format!("{role} is named twice")));
            }
        }
        Ok(Self(names))
    }

    /// With the column of the text.
    #[must_use]
    pub fn with_text(mut self, column: &str) -> Self {
        self.0.insert("text", column.to_owned());
        self
    }

    fn get(&self, role: &str) -> Option<&str> {
        self.0.get(role).map(String::as_str)
    }

    /// The layout that the named roles speak of.
    fn layout(&self) -> Result<Option<Layout>> {
        let mut found: Vec<Layout> = Vec::new();
        for role in self.0.keys() {
            let layout = match *role {
                "text" => Layout::Text,
                "instruction" | "output" | "input" => Layout::Instruction,
                "prompt" | "completion" => Layout::Completion,
                _ => Layout::Chat,
            };
            if !found.contains(&layout) {
                found.push(layout);
            }
        }
        // A system message or tools beside a pair make it a conversation.
        let others = found.iter().any(|it| *it != Layout::Chat);
        if found.contains(&Layout::Chat) && others && self.get("messages").is_none() && self.get("text").is_none() {
            return Ok(Some(Layout::Chat));
        }
        match found[..] {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            _ => {
                let names: Vec<&str> = self.0.keys().copied().collect();
                let reason = format!("{} do not go together; name the columns of one layout", names.join(", "));
                Err(Error::Setting { setting: "columns", reason })
            }
        }
    }
}

/// What was chosen, and what a user should know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// The columns.
    pub columns: Columns,
    /// Other columns that might have been meant.
    pub notes: Vec<String>,
}

/// Names under which a column of messages is found.
const MESSAGES: [&str; 3] = ["messages", "conversations", "conversation"];
/// Names of a task, its input and its answer.
const TASKS: [(&str, &str, &str); 2] = [("instruction", "input", "output"), ("instruction", "context", "response")];
/// Names of a question and its answer.
const QUESTIONS: [(&str, &str); 5] = [
    ("prompt", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("prompt", "completion"),
];
const SYSTEM: [&str; 2] = ["system", "system_prompt"];

/// Finds the columns of a layout among those that there are.
struct Search<'a> {
    columns: &'a [Column],
    names: &'a ColumnNames,
}

/// A prompt and its answer, whichever layout they get.
struct Pair {
    prompt: String,
    input: Option<String>,
    answer: String,
}

impl Pair {
    fn instruction(self) -> Columns {
        Columns::Instruction { instruction: self.prompt, input: self.input, output: self.answer }
    }

    fn turns(self) -> Turns {
        Turns::Pair { prompt: self.prompt, input: self.input, answer: self.answer }
    }
}

impl Columns {
    /// The columns `instruction`, `input` and `output`.
    pub fn instruction() -> Self {
        Self::Instruction { instruction: "instruction".into(), input: Some("input".into()), output: "output".into() }
    }

    /// Chooses among the columns of a file: as the names and the layout say, else by the names that data sets use. Lists of messages
    /// come first, then a column `text`, `prompt` with `completion`, a task with its answer, a question with its answer.
    ///
    /// # Errors
    /// Names that contradict each other or the layout, and columns of which no layout is known.
    pub fn choose(columns: &[Column], names: &ColumnNames, layout: Option<Layout>) -> Result<Chosen> {
        let search = Search { columns, names };
        let named = names.layout()?;
        if let (Some(named), Some(asked)) = (named, layout)
            && named != asked
            && asked != Layout::Chat
        {
            let reason = format!("the named columns are those of another layout than {asked}; leave one out");
            return Err(Error::Setting { setting: "columns", reason });
        }
        if let Some(layout) = layout.or(named) {
            return search.of_layout(layout).map(|columns| Chosen { columns, notes: Vec::new() });
        }
        let found = [
            search.messages(),
            search.text(),
            search.completion(),
            search.tasks().map(Pair::instruction),
            search.questions().map(Pair::instruction),
        ];
        let mut found = found.into_iter().flatten();
        let Some(chosen) = found.next() else { return Err(search.nothing()) };
        let others = found.find(|other| other.to_string() != chosen.to_string());
        let notes = others.map(|other| overlooked(&chosen, &other));
        Ok(Chosen { columns: chosen, notes: notes.into_iter().collect() })
    }

    /// How a row is laid out, with the names of the columns in braces where their texts go. `None` for conversations, which a
    /// template writes.
    pub fn template(&self) -> Option<String> {
        let braced = |name: &str| format!("{{{name}}}");
        match self {
            Self::Text(text) => Some(braced(text)),
            Self::Instruction { instruction, input, output } => {
                let input = input.as_deref().map(braced);
                Some(crate::instruction_prompt(&braced(instruction), input.as_deref()) + &braced(output))
            }
            Self::Completion { prompt, completion } => Some(braced(prompt) + &braced(completion)),
            Self::Chat(_) => None,
        }
    }

    /// Whether a row of these columns, whose types are given, is written by the model's template.
    pub fn are_conversations(&self, columns: &[Column]) -> bool {
        match self {
            Self::Chat(_) => true,
            Self::Completion { prompt, .. } => columns.iter().any(|it| it.name == *prompt && is_list(it)),
            _ => false,
        }
    }

    /// Whether a file of these columns has all that are needed.
    pub fn are_among(&self, columns: &[Column]) -> bool {
        self.wanted().iter().all(|wanted| wanted.optional || columns.iter().any(|it| it.name == wanted.name))
    }

    /// What is read, in the order in which a row is taken apart.
    pub(crate) fn wanted(&self) -> Vec<Wanted> {
        let text = |name: &str| Wanted { name: name.into(), kind: Kind::Text, optional: false };
        let list = |name: &str| Wanted { name: name.into(), kind: Kind::List, optional: false };
        match self {
            Self::Text(name) => vec![text(name)],
            Self::Instruction { instruction, input, output } => {
                [Some(instruction), Some(output), input.as_ref()].into_iter().flatten().map(|it| text(it)).collect()
            }
            Self::Completion { prompt, completion } => vec![list(prompt), list(completion)],
            Self::Chat(ChatColumns { turns, system, tools }) => {
                let mut wanted = match turns {
                    Turns::Messages(name) => vec![list(name)],
                    Turns::Pair { prompt, input, answer } => {
                        [Some(prompt), Some(answer), input.as_ref()].into_iter().flatten().map(|it| text(it)).collect()
                    }
                };
                wanted.extend(system.iter().map(|it| Wanted { optional: true, ..text(it) }));
                wanted.extend(tools.iter().map(|it| Wanted { optional: true, ..list(it) }));
                wanted
            }
        }
    }
}

impl Search<'_> {
    fn has(&self, name: &str) -> bool {
        self.columns.iter().any(|it| it.name == name)
    }

    fn of_layout(&self, layout: Layout) -> Result<Columns> {
        let name = |role: &str, default: &str| self.names.get(role).unwrap_or(default).to_owned();
        let found = match layout {
            Layout::Text => Some(Columns::Text(name("text", "text"))),
            Layout::Instruction if self.names.0.is_empty() => {
                let pair = self.tasks().or_else(|| self.questions());
                Some(pair.map_or_else(Columns::instruction, Pair::instruction))
            }
            Layout::Instruction => Some(self.named_pair("instruction", "output").instruction()),
            Layout::Completion => Some(Columns::Completion {
                prompt: name("prompt", "prompt"),
                completion: name("completion", "completion"),
            }),
            Layout::Chat => self.chat(),
        };
        found.ok_or_else(|| self.nothing())
    }

    fn named_pair(&self, prompt: &str, answer: &str) -> Pair {
        let name = |role: &str| self.names.get(role).unwrap_or(role).to_owned();
        let input = self.names.get("input").map(str::to_owned);
        Pair { prompt: name(prompt), input, answer: name(answer) }
    }

    fn chat(&self) -> Option<Columns> {
        let pair = [("prompt", "completion"), ("instruction", "output")];
        let named = pair.iter().find(|it| self.names.get(it.0).or(self.names.get(it.1)).is_some());
        let turns = match (self.names.get("messages"), named) {
            (Some(name), _) => Turns::Messages(name.to_owned()),
            (None, Some((prompt, answer))) => self.named_pair(prompt, answer).turns(),
            (None, None) => {
                let messages = MESSAGES.iter().find(|it| self.has(it)).map(|it| Turns::Messages((*it).to_owned()));
                messages.or_else(|| self.tasks().or_else(|| self.questions()).map(Pair::turns))?
            }
        };
        Some(self.conversations(turns))
    }

    fn conversations(&self, turns: Turns) -> Columns {
        let system = SYSTEM.iter().find(|it| self.has(it)).map(|it| (*it).to_owned());
        let tools = self.has("tools").then(|| "tools".to_owned());
        Columns::Chat(ChatColumns {
            turns,
            system: self.names.get("system").map(str::to_owned).or(system),
            tools: self.names.get("tools").map(str::to_owned).or(tools),
        })
    }

    /// A list under one of the usual names.
    fn messages(&self) -> Option<Columns> {
        let found = MESSAGES.iter().find_map(|name| self.columns.iter().find(|it| it.name == *name && is_list(it)))?;
        Some(self.conversations(Turns::Messages(found.name.clone())))
    }

    fn text(&self) -> Option<Columns> {
        self.has("text").then(|| Columns::Text("text".into()))
    }

    fn completion(&self) -> Option<Columns> {
        let both = self.has("prompt") && self.has("completion");
        both.then(|| Columns::Completion { prompt: "prompt".into(), completion: "completion".into() })
    }

    fn tasks(&self) -> Option<Pair> {
        let (task, input, answer) = TASKS.into_iter().find(|it| self.has(it.0) && self.has(it.2))?;
        let input = self.has(input).then(|| input.to_owned());
        Some(Pair { prompt: task.into(), input, answer: answer.into() })
    }

    fn questions(&self) -> Option<Pair> {
        let (question, answer) = QUESTIONS.into_iter().find(|it| self.has(it.0) && self.has(it.1))?;
        Some(Pair { prompt: question.into(), input: None, answer: answer.into() })
    }

    fn nothing(&self) -> Error {
        Error::NoLayout { columns: crate::reader::list(self.columns) }
    }
}

/// Whether a column's type is that of a list, in the words of any format.
fn is_list(column: &Column) -> bool {
    column.kind == "array" || column.kind.contains("List(")
}

fn overlooked(chosen: &Columns, other: &Columns) -> String {
    let end = if matches!(chosen, Columns::Text(_)) { ", so the prompt is trained, too, and no end" } else { "" };
    let layout = |columns: &Columns| match columns {
        Columns::Text(_) => Layout::Text,
        Columns::Instruction { .. } => Layout::Instruction,
        Columns::Completion { .. } => Layout::Completion,
        Columns::Chat(_) => Layout::Chat,
    };
    format!(
        "{chosen} taken, and {other} not looked at{end}; --layout {} takes the latter instead, --layout {} says that this is meant",
        layout(other),
        layout(chosen)
    )
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Instruction => "instruction",
            Self::Completion => "completion",
            Self::Chat => "chat",
        })
    }
}

/// For people: `column text`, or `columns instruction, input, output`.
impl fmt::Display for Columns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = match self {
            Self::Instruction { instruction, input, output } => {
                [Some(instruction), input.as_ref(), Some(output)].into_iter().flatten().cloned().collect()
            }
            Self::Chat(ChatColumns { turns: Turns::Pair { prompt, input, answer }, system, tools }) => {
                [Some(prompt), input.as_ref(), Some(answer), system.as_ref(), tools.as_ref()]
                    .into_iter()
                    .flatten()
                    .cloned()
                    .collect()
            }
            _ => self.wanted().into_iter().map(|it| it.name).collect(),
        };
        let plural = if names.len() == 1 { "" } else { "s" };
        write!(f, "column{plural} {}", names.join(", "))
    }
}

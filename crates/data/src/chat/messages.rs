//! What a row says of a conversation, in the form that templates expect: a list of messages with `role` and `content`.

use serde_json::{Map, Value, json};

use crate::columns::{ChatColumns, Turns};
use crate::reader::Fields;

/// The messages of a row, whatever its columns call them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Conversation {
    pub(crate) messages: Vec<Value>,
    /// Descriptions of tools.
    pub(crate) tools: Option<Value>,
    /// From this message on it is the completion of those before, where the row tells them apart.
    pub(crate) completion: Option<usize>,
}

/// A row that has none.
pub(crate) enum Nothing {
    Null,
    Empty,
    /// It has one that cannot be understood.
    Wrong(String),
}

impl From<String> for Nothing {
    fn from(reason: String) -> Self {
        Self::Wrong(reason)
    }
}

impl Conversation {
    /// From the fields in the order of [`Columns::wanted`](crate::Columns).
    pub(crate) fn of_row(columns: &ChatColumns, fields: Fields) -> Result<Self, Nothing> {
        let mut fields = fields.into_iter();
        let mut next = || fields.next().unwrap_or_default();
        let conversation = match &columns.turns {
            Turns::Messages(name) => Self::of_messages(next(), name)?,
            Turns::Pair { input, .. } => {
                let (prompt, answer) = (next(), next());
                let input = if input.is_some() { next() } else { Value::Null };
                Self::of_pair(prompt, input, answer)?
            }
        };
        conversation.beside(columns, fields)
    }

    /// What is asked, from the fields without that of an answer: of messages those before an answer that they end with.
    pub(crate) fn question(columns: &ChatColumns, fields: Fields) -> Result<Self, Nothing> {
        let mut fields = fields.into_iter();
        let mut next = || fields.next().unwrap_or_default();
        let mut conversation = match &columns.turns {
            Turns::Messages(name) => Self::of_messages(next(), name)?,
            Turns::Pair { input, .. } => {
                let prompt = next();
                let input = if input.is_some() { next() } else { Value::Null };
                Self { messages: vec![Self::asked(prompt, &input)?], tools: None, completion: None }
            }
        };
        if conversation.messages.last().is_some_and(|it| role(it) == "assistant") {
            conversation.messages.pop();
        }
        if conversation.messages.is_empty() {
            return Err("nothing comes before the answer".to_owned().into());
        }
        conversation.beside(columns, fields)
    }

    /// With what other columns say of it.
    fn beside(mut self, columns: &ChatColumns, mut rest: std::vec::IntoIter<Value>) -> Result<Self, Nothing> {
        let mut next = || rest.next().unwrap_or_default();
        if columns.system.is_some() {
            self.put_system(next());
        }
        if columns.tools.is_some() {
            self.tools = tools(next())?;
        }
        Ok(self)
    }

    /// Of a prompt and a completion that are lists of messages.
    pub(crate) fn of_parts(prompt: Value, completion: Value) -> Result<Self, Nothing> {
        let mut whole = Self::of_messages(prompt, "prompt")?;
        let first = whole.messages.len();
        whole.messages.extend(Self::of_messages(completion, "completion")?.messages);
        whole.completion = Some(first);
        Ok(whole)
    }

    pub(crate) fn of_messages(value: Value, column: &str) -> Result<Self, Nothing> {
        let items = match parsed(value, column)? {
            Value::Null => return Err(Nothing::Null),
            Value::Array(items) => items,
            other => {
                let kind = crate::reader::kind(&other);
                return Err(format!("column {column:?} holds {kind} where a list of messages is expected").into());
            }
        };
        if items.is_empty() {
            return Err(Nothing::Empty);
        }
        let messages = items.into_iter().enumerate().map(|(at, item)| {
            message(item).map_err(|reason| Nothing::Wrong(format!("message {at} of column {column:?}: {reason}")))
        });
        Ok(Self { messages: messages.collect::<Result<_, _>>()?, tools: None, completion: None })
    }

    fn of_pair(prompt: Value, input: Value, answer: Value) -> Result<Self, Nothing> {
        let (Value::String(_), Value::String(answer)) = (&prompt, answer) else { return Err(Nothing::Null) };
        if answer.trim().is_empty() {
            return Err(Nothing::Empty);
        }
        let messages = vec![Self::asked(prompt, &input)?, json!({ "role": "assistant", "content": answer })];
        Ok(Self { messages, tools: None, completion: Some(1) })
    }

    /// What a user says, and what goes on below it.
    fn asked(prompt: Value, input: &Value) -> Result<Value, Nothing> {
        let Value::String(mut prompt) = prompt else { return Err(Nothing::Null) };
        if prompt.trim().is_empty() {
            return Err(Nothing::Empty);
        }
        if let Some(input) = input.as_str().filter(|it| !it.trim().is_empty()) {
            prompt = format!("{prompt}\n{input}");
        }
        Ok(json!({ "role": "user", "content": prompt }))
    }

    /// A column of its own says what the system message is, unless the messages have one.
    pub(crate) fn put_system(&mut self, system: Value) {
        let Some(text) = system.as_str().filter(|it| !it.trim().is_empty()) else { return };
        if role(&self.messages[0]) != "system" {
            self.messages.insert(0, json!({ "role": "system", "content": text }));
            self.completion = self.completion.map(|it| it + 1);
        }
    }
}

/// Who speaks.
pub(crate) fn role(message: &Value) -> &str {
    message.get("role").and_then(Value::as_str).unwrap_or_default()
}

/// Lists that a table or a parquet file holds as text.
fn parsed(value: Value, column: &str) -> Result<Value, String> {
    let Value::String(text) = value else { return Ok(value) };
    if text.trim().is_empty() {
        return Ok(Value::Array(Vec::new()));
    }
    serde_json::from_str(&text)
        .map_err(|error| format!("column {column:?} holds a text that is no list of messages: {error}"))
}

fn tools(value: Value) -> Result<Option<Value>, String> {
    match parsed(value, "tools")? {
        Value::Null => Ok(None),
        Value::Array(items) if items.is_empty() => Ok(None),
        Value::Array(items) => Ok(Some(Value::Array(items))),
        _ => Err("column \"tools\" holds no list of descriptions".into()),
    }
}

/// One message: `role` and `content`, or `from` and `value` as ShareGPT has them.
fn message(value: Value) -> Result<Value, String> {
    let Value::Object(mut object) = value else {
        return Err(format!("{} where an object with role and content is expected", crate::reader::kind(&value)));
    };
    if !object.contains_key("role") && object.contains_key("from") {
        object = of_share_gpt(object)?;
    }
    // A key without a value is one that another row has.
    object.retain(|_, value| !value.is_null());
    let Some(Value::String(role)) = object.get("role") else {
        let keys: Vec<&str> = object.keys().map(String::as_str).collect();
        return Err(format!(
            "no role; it has {}, where role and content, or from and value, are expected",
            keys.join(", ")
        ));
    };
    if role.is_empty() {
        return Err("an empty role".into());
    }
    let called = object.contains_key("tool_calls");
    match object.get("content") {
        Some(Value::String(_)) => {}
        Some(Value::Array(parts)) => parts.iter().try_for_each(part)?,
        // Left out where tools are called.
        None if called => {}
        None => return Err("no content".into()),
        Some(other) => {
            return Err(format!("content is {} where a text is expected", crate::reader::kind(other)));
        }
    }
    check_calls(object.get("tool_calls"))?;
    Ok(Value::Object(object))
}

/// A part of a content: only texts are read.
fn part(part: &Value) -> Result<(), String> {
    match part.get("type").and_then(Value::as_str) {
        Some("text") if part.get("text").is_some_and(Value::is_string) => Ok(()),
        Some(kind) => Err(format!("content has a part of type {kind}; only texts can be trained")),
        None => Err("content has a part without a type".into()),
    }
}

fn check_calls(calls: Option<&Value>) -> Result<(), String> {
    let Some(calls) = calls else { return Ok(()) };
    let Some(calls) = calls.as_array() else { return Err("tool_calls is no list".into()) };
    for (at, call) in calls.iter().enumerate() {
        let function = call.get("function").unwrap_or(call);
        if !function.get("name").is_some_and(Value::is_string) {
            return Err(format!("tool call {at} names no function"));
        }
        if let Some(Value::String(text)) = function.get("arguments") {
            serde_json::from_str::<Value>(text)
                .map_err(|error| format!("tool call {at}: its arguments are no JSON: {error}"))?;
        }
    }
    Ok(())
}

/// `from` and `value` as `role` and `content`.
fn of_share_gpt(mut object: Map<String, Value>) -> Result<Map<String, Value>, String> {
    let from = object.shift_remove("from").unwrap_or_default();
    let value = object.shift_remove("value").unwrap_or_default();
    let Some(from) = from.as_str() else { return Err("from is no text".into()) };
    let role = match from {
        "human" | "user" => "user",
        "gpt" | "assistant" | "model" | "bot" | "chatgpt" | "function_call" => "assistant",
        "system" => "system",
        "tool" | "observation" | "function_response" => "tool",
        other => {
            return Err(format!(
                "from is {other:?}; known are human, gpt, system, tool, function_call and observation"
            ));
        }
    };
    let mut message = Map::new();
    message.insert("role".into(), role.into());
    if from == "function_call" {
        message.insert("content".into(), "".into());
        message.insert("tool_calls".into(), Value::Array(calls_of(&value)?));
    } else {
        message.insert("content".into(), value);
    }
    message.extend(object);
    Ok(message)
}

/// The calls in a text: an object with name and arguments, or a list of them.
fn calls_of(value: &Value) -> Result<Vec<Value>, String> {
    let text = value.as_str().unwrap_or_default();
    let parsed: Value =
        serde_json::from_str(text).map_err(|error| format!("a function_call that is no JSON: {error}"))?;
    let calls = match parsed {
        Value::Array(calls) => calls,
        one => vec![one],
    };
    Ok(calls.into_iter().map(|call| json!({ "type": "function", "function": call })).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: Value) -> Result<Vec<Value>, String> {
        match Conversation::of_messages(value, "messages") {
            Ok(it) => Ok(it.messages),
            Err(Nothing::Wrong(reason)) => Err(reason),
            Err(Nothing::Null) => Err("null".into()),
            Err(Nothing::Empty) => Err("empty".into()),
        }
    }

    #[test]
    fn both_spellings_of_a_message_are_one() {
        let share_gpt = json!([{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 1}]);
        let plain = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 1}]);
        assert_eq!(of(share_gpt), of(plain.clone()));
        assert_eq!(of(Value::from(plain.to_string())), of(plain));
        let called =
            of(json!([{"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"}])).unwrap();
        assert_eq!(called[0]["tool_calls"][0]["function"], json!({"name": "f", "arguments": {"x": 1}}));
    }

    #[test]
    fn what_is_no_message_is_named() {
        for (value, words) in [
            (json!([7]), "message 0 of column \"messages\": number"),
            (json!([{"speaker": "a"}]), "no role; it has speaker"),
            (json!([{"role": "user"}]), "no content"),
            (json!([{"role": "user", "content": 3}]), "content is number"),
            (json!([{"role": "user", "content": [{"type": "image"}]}]), "part of type image"),
            (json!([{"from": "alien", "value": "x"}]), "from is \"alien\""),
            (json!([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]), "no JSON"),
            (json!([{"from": "function_call", "value": "f(x)"}]), "function_call that is no JSON"),
            (json!("no list"), "no list of messages"),
            (json!([]), "empty"),
            (json!(null), "null"),
        ] {
            let reason = of(value.clone()).unwrap_err();
            assert!(reason.contains(words), "{value}: {reason}");
        }
    }
}

//! Tables of the keys of JSON files that other programs write, and what is done with each: a key that would change a result is never
//! passed over without a word.

use serde_json::{Map, Value};

/// What is done with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyUse {
    /// It is read.
    Read,
    /// It is read in files of these kinds. In the others the program that the file is made for passes it over, and so does the
    /// reader, with a word.
    ReadIn(&'static [&'static str]),
    /// It changes nothing here, for this reason.
    Irrelevant(&'static str),
    /// Anything but nothing (`null`, `false`, an empty list or object) is refused; what helps.
    Refused(&'static str),
    /// Anything but nothing is left out, with these words.
    LeftOut(&'static str),
}

/// The keys of a kind of file.
#[derive(Clone, Copy, Debug)]
pub struct KeyTable {
    /// Its name.
    pub file: &'static str,
    /// The keys, each once.
    pub keys: &'static [(&'static str, KeyUse)],
}

impl KeyTable {
    /// What is done with a key; `None` if it is not known.
    pub fn get(&self, key: &str) -> Option<KeyUse> {
        self.keys.iter().find(|it| it.0 == key).map(|it| it.1)
    }

    /// What a user should know of a file's keys; `kind` is what the file describes.
    ///
    /// # Errors
    /// A key that would change a result and is not supported, with the value and what helps.
    pub fn check(&self, values: &Map<String, Value>, kind: &str) -> Result<Vec<String>, String> {
        let file = self.file;
        let (mut notes, mut unknown, mut foreign) = (Vec::new(), Vec::new(), Vec::new());
        for (key, value) in values {
            match self.get(key) {
                None => unknown.push(key.as_str()),
                Some(_) if is_off(value) => {}
                Some(KeyUse::ReadIn(kinds)) if !kinds.contains(&kind) => foreign.push(key.as_str()),
                Some(KeyUse::Refused(help)) => return Err(format!("{key} is {value}, which is not supported; {help}")),
                Some(KeyUse::LeftOut(words)) => notes.push(format!("{file}: {key} is not used: {words}")),
                Some(KeyUse::Read | KeyUse::ReadIn(_) | KeyUse::Irrelevant(_)) => {}
            }
        }
        if !unknown.is_empty() {
            notes.push(format!("{file}: unknown keys ignored: {}", unknown.join(", ")));
        }
        if !foreign.is_empty() {
            let names = foreign.join(", ");
            notes.push(format!("{file}: without effect in a model of type {kind}, as in transformers: {names}"));
        }
        Ok(notes)
    }

    /// The table as text: a line for every key, with what is done with it.
    pub fn lines(&self) -> impl Iterator<Item = (&'static str, String)> {
        self.keys.iter().map(|(key, what)| {
            let what = match what {
                KeyUse::Read => "read".to_owned(),
                KeyUse::ReadIn(kinds) => format!("read in {}; named elsewhere", kinds.join(", ")),
                KeyUse::Irrelevant(why) => format!("irrelevant: {why}"),
                KeyUse::Refused(help) => format!("refused: {help}"),
                KeyUse::LeftOut(words) => format!("left out, with a warning: {words}"),
            };
            (*key, what)
        })
    }
}

/// What Python calls false, but for numbers and texts.
pub fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TABLE: KeyTable = KeyTable {
        file: "x.json",
        keys: &[
            ("size", KeyUse::Read),
            ("window", KeyUse::ReadIn(&["bay"])),
            ("mood", KeyUse::Irrelevant("nobody looks")),
            ("split", KeyUse::Refused("join it")),
            ("code", KeyUse::LeftOut("it is not run")),
        ],
    };

    fn told(values: Value, kind: &str) -> Result<String, String> {
        TABLE.check(values.as_object().unwrap(), kind).map(|it| it.join("\n"))
    }

    #[test]
    fn what_is_not_known_or_not_for_this_kind_is_named() {
        assert_eq!(told(json!({"size": 3, "window": null, "mood": "fine"}), "wall"), Ok(String::new()));
        assert_eq!(told(json!({"window": 4, "size": 1}), "bay"), Ok(String::new()));
        let foreign = told(json!({"window": 4}), "wall").unwrap();
        assert!(foreign.contains("type wall") && foreign.ends_with("window"), "{foreign}");
        assert!(told(json!({"scale": 2.0, "shift": null}), "bay").unwrap().ends_with("ignored: scale, shift"));
        assert!(told(json!({"code": {"A": "x.Y"}}), "bay").unwrap().contains("not run"));
    }

    #[test]
    fn what_would_change_results_is_refused_unless_it_is_off() {
        assert!(
            told(json!({"split": [1]}), "bay").unwrap_err().contains("split is [1], which is not supported; join it")
        );
        for off in [json!(null), json!(false), json!([]), json!({})] {
            assert_eq!(told(json!({"split": off, "code": off}), "bay"), Ok(String::new()));
        }
    }

    #[test]
    fn every_key_has_a_line() {
        let lines: Vec<(&str, String)> = TABLE.lines().collect();
        assert_eq!(lines.len(), 5);
        assert!(lines[1].1.contains("bay") && lines[3].1.starts_with("refused: join"), "{lines:?}");
    }
}

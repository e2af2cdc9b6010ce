//! A settings file in YAML as a table of JSON values, which says what it is in fewer ways.

use crate::failure::user_error;
use serde_json::{Map, Number, Value};
use std::{collections::HashMap, path::Path};
use yaml_rust2::{
    Yaml, YamlLoader,
    parser::{Event, Parser},
};

/// Tables and lists within each other, and values with what anchors stand for. No settings file has a tenth of either.
const DEEPEST: usize = 100;
const MOST_VALUES: u64 = 100_000;

/// The keys of the file, in its order.
///
/// # Errors
/// A file that cannot be read, that is no YAML (with the place), or holds something else than one table.
pub(super) fn read(path: &Path) -> anyhow::Result<Map<String, Value>> {
    let text = halfbyte_files::read_text(path)?;
    let wrong = |what: String| user_error(format!("{}: {what}", path.display()));
    if let Some(endless) = endless(&text) {
        return Err(wrong(endless));
    }
    let documents = YamlLoader::load_from_str(&text).map_err(|error| wrong(format!("is no YAML: {error}")))?;
    match documents.into_iter().map(value).collect::<Option<Vec<_>>>().as_deref() {
        Some([Value::Object(table)]) if !table.is_empty() => Ok(table.clone()),
        _ => Err(wrong("must be one table of settings, such as `learning_rate: 2e-4`".to_owned())),
    }
}

/// What the loader would follow without end: it goes into values by calling itself, and puts a copy of what an anchor stands for in each
/// of its places, so that some lines hold any number of values. What is no YAML is left to it.
fn endless(text: &str) -> Option<String> {
    let mut parser = Parser::new_from_str(text);
    let (mut open, mut sizes, mut all): (Vec<(usize, u64)>, HashMap<usize, u64>, u64) = Default::default();
    loop {
        let (anchor, size) = match parser.next_token().ok()?.0 {
            Event::StreamEnd => return None,
            Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _) => {
                open.push((anchor, all));
                (0, 1)
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let (anchor, before) = open.pop()?;
                sizes.insert(anchor, all - before);
                (0, 0)
            }
            Event::Scalar(_, _, anchor, _) => (anchor, 1),
            Event::Alias(anchor) => (0, sizes.get(&anchor).copied().unwrap_or(1)),
            _ => (0, 0),
        };
        all = all.saturating_add(size);
        sizes.insert(anchor, size);
        if open.len() > DEEPEST {
            return Some(format!("is nested more than {DEEPEST} deep"));
        }
        if all > MOST_VALUES {
            return Some(format!("holds more than {MOST_VALUES} values, with what its anchors stand for"));
        }
    }
}

fn value(from: Yaml) -> Option<Value> {
    Some(match from {
        Yaml::Null => Value::Null,
        Yaml::Boolean(it) => Value::Bool(it),
        Yaml::Integer(it) => it.into(),
        Yaml::Real(text) => match text.parse().ok().and_then(Number::from_f64) {
            Some(number) => Value::Number(number),
            None => Value::String(text),
        },
        Yaml::String(text) => Value::String(text),
        Yaml::Array(items) => Value::Array(items.into_iter().map(value).collect::<Option<_>>()?),
        Yaml::Hash(pairs) => {
            let pair = |(key, it): (Yaml, Yaml)| Some((scalar(&value(key)?)?, value(it)?));
            Value::Object(pairs.into_iter().map(pair).collect::<Option<_>>()?)
        }
        // What an anchor stood for was put in its place by the loader.
        Yaml::Alias(_) | Yaml::BadValue => return None,
    })
}

/// A single value as a flag has it; `None` of tables, lists and nothing.
pub(super) fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Whether a file says nothing by it: many list keys without a value.
pub(super) fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(pairs) => pairs.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("settings.yaml");
        std::fs::write(&path, text).unwrap();
        read(&path).map_or_else(|it| it.to_string(), |it| format!("{} keys", it.len()))
    }

    #[test]
    fn files_without_end_are_refused() {
        let deep = format!("a:\n  {}b", "- ".repeat(100_000));
        assert!(refused(&deep).contains("settings.yaml: is nested more than 100 deep"));
        let ten = |it: &str| [it; 10].join(", ");
        let levels: String = (1..12).map(|it| format!("a{it}: &a{it} [{}]\n", ten(&format!("*a{}", it - 1)))).collect();
        let laughs = format!("a0: &a0 [{}]\n{levels}", ten("lol"));
        assert!(refused(&laughs).contains("settings.yaml: holds more than 100000 values"));
        assert_eq!(refused("a: &a {b: [1, 2]}\nc: *a\nd: &d x\ne: [*d, *d]\n"), "4 keys");
        assert!(refused("a: &a [*a]\n").contains("settings.yaml"));
    }
}

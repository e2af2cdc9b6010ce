//! A settings file in YAML as a table of JSON values, which says what it is in fewer ways.

use crate::failure::user_error;
use serde_json::{Map, Number, Value};
use std::path::Path;
use yaml_rust2::{Yaml, YamlLoader};

/// The keys of the file, in its order.
///
/// # Errors
/// A file that cannot be read, that is no YAML (with the place), or holds something else than one table.
pub(super) fn read(path: &Path) -> anyhow::Result<Map<String, Value>> {
    let text = halfbyte_files::read_text(path)?;
    let wrong = |what: String| user_error(format!("{}: {what}", path.display()));
    let documents = YamlLoader::load_from_str(&text).map_err(|error| wrong(format!("is no YAML: {error}")))?;
    match documents.into_iter().map(value).collect::<Option<Vec<_>>>().as_deref() {
        Some([Value::Object(table)]) if !table.is_empty() => Ok(table.clone()),
        _ => Err(wrong("must be one table of settings, such as `learning_rate: 2e-4`".to_owned())),
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

//! `--config FILE.toml`: the flags as keys of a file, under those of the command line.

use super::args::FinetuneArgs;
use crate::failure::user_error;
use halfbyte_files::read_text;
use serde::Deserialize;
use std::path::Path;

impl FinetuneArgs {
    /// The flags, and under them the keys of `--config`.
    pub fn with_file(self) -> anyhow::Result<FinetuneArgs> {
        let Some(path) = self.config.clone() else { return Ok(self) };
        let mut merged = read_table(&path)?;
        let flags = toml::Table::try_from(&self).map_err(|e| user_error(e.to_string()))?;
        merged.extend(flags);
        let mut all: FinetuneArgs = merged.try_into().map_err(|e| user_error(format!("{}: {e}", path.display())))?;
        (all.overwrite, all.resume) = (self.overwrite, self.resume);
        Ok(all)
    }
}

/// One path is a text in a file of settings, as several are a list.
pub(super) mod one_or_many {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::path::PathBuf;

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Paths {
        One(PathBuf),
        Many(Vec<PathBuf>),
    }

    pub(in super::super) fn serialize<S: Serializer>(paths: &[PathBuf], to: S) -> Result<S::Ok, S::Error> {
        if let [one] = paths { one.serialize(to) } else { paths.serialize(to) }
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<PathBuf>, D::Error> {
        // Null stands in checkpoints of runs that had no held-out rows.
        Ok(match Option::<Paths>::deserialize(from)? {
            None => Vec::new(),
            Some(Paths::One(path)) => vec![path],
            Some(Paths::Many(paths)) => paths,
        })
    }
}

/// The keys of a file by their own names, whichever spelling the file has.
fn read_table(path: &Path) -> anyhow::Result<toml::Table> {
    let wrong = |e: String| user_error(format!("{}: {e}", path.display()));
    if path.extension().is_some_and(|it| it == "yaml" || it == "yml") {
        return Err(wrong(
            "is YAML; `halfbyte import-config FILE --output run.toml` makes of it what --config reads".to_owned(),
        ));
    }
    let text = read_text(path)?;
    // Parsed as flags, so that an unknown or ill-typed key is shown with its line.
    let flags: FinetuneArgs = toml::from_str(&underscored(&text)).map_err(|e| wrong(e.to_string()))?;
    toml::Table::try_from(flags).map_err(|e| wrong(e.to_string()))
}

/// Keys with `-` for `_`, as flags have it, are the same keys. Line by line, so that messages count them rightly; what is in a
/// table has names of its own.
fn underscored(text: &str) -> String {
    let mut in_table = false;
    let line = |line: &str| {
        in_table |= line.trim_start().starts_with('[');
        match line
            .split_once('=')
            .filter(|it| !in_table && it.0.trim().chars().all(|c| c.is_alphanumeric() || "-_".contains(c)))
        {
            Some((key, value)) => format!("{}={value}\n", key.replace('-', "_")),
            None => format!("{line}\n"),
        }
    };
    text.lines().map(line).collect()
}

/// A text, or as a file can also say it: a list of texts, a table of numbers.
pub(super) fn joined<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    use serde_json::Value;
    let plain = |it: Value| match it {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let found = match Value::deserialize(from)? {
        Value::Null => return Ok(None),
        Value::Array(items) => items.into_iter().map(plain).collect::<Option<Vec<_>>>().map(|it| it.join(",")),
        Value::Object(pairs) => {
            let pair = |(name, value): (String, Value)| Some(format!("{name}={}", plain(value)?));
            pairs.into_iter().map(pair).collect::<Option<Vec<_>>>().map(|it| it.join(","))
        }
        one => plain(one),
    };
    found.map(Some).ok_or_else(|| serde::de::Error::custom("expected a text, a list of texts or a table of numbers"))
}

/// JSON as a text, or as a file can also say it: a table.
pub(super) fn json<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    use serde_json::Value;
    Ok(match Value::deserialize(from)? {
        Value::Null => None,
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    })
}

//! Which ids are special, from the small JSON files beside `tokenizer.json`.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Special tokens by role. A role is `None` where no file names it, or names a token that the vocabulary lacks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Beginning of text.
    pub bos: Option<u32>,
    /// End of text.
    pub eos: Option<u32>,
    /// Padding: nothing here pads, but text that is decoded may hold it.
    pub pad: Option<u32>,
    /// Unknown word.
    pub unk: Option<u32>,
    /// Ids at which generation stops.
    pub stop: Vec<u32>,
}

/// The roles that special tokens have in transformers, in the order in which it adds the tokens to a vocabulary that lacks them.
pub(super) const ROLES: [&str; 7] = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"];

/// The settings of `tokenizer_config.json` with those of `special_tokens_map.json`, which win where both name something; if there is
/// an `added_tokens_decoder`, transformers 5 does not look at the map.
pub(super) fn merged(mut config: Settings, map: Settings) -> Settings {
    if config.values.contains_key("added_tokens_decoder") {
        return config;
    }
    for (key, value) in map.values {
        match (config.values.get_mut(&key), value) {
            (Some(Value::Array(listed)), Value::Array(more)) => {
                let new: Vec<Value> = more.into_iter().filter(|it| !listed.contains(it)).collect();
                listed.extend(new);
            }
            (_, value) => drop(config.values.insert(key, value)),
        }
    }
    config
}

/// Roles by the names of the settings; without a name that the vocabulary holds, by the ids of `generation_config.json` and
/// `config.json`.
pub(super) fn read(folder: &Path, config: &Settings, inner: &mut tokenizers::Tokenizer) -> Result<SpecialTokens> {
    let generation = Settings::read(folder.join("generation_config.json"))?;
    let model = Settings::read(folder.join("config.json"))?;
    let mut role = |name: &str| -> Result<Option<u32>> {
        let token = config.token(&format!("{name}_token"))?;
        if let Some(id) = token.as_deref().and_then(|token| inner.token_to_id(token)) {
            super::mark_special(inner, token.as_deref().unwrap_or_default(), &config.path)?;
            return Ok(Some(id));
        }
        let key = format!("{name}_token_id");
        let ids = generation.ids(&key)?;
        Ok(if ids.is_empty() { model.ids(&key)? } else { ids }.first().copied())
    };
    let (bos, eos, pad, unk) = (role("bos")?, role("eos")?, role("pad")?, role("unk")?);
    // A token that the vocabulary lacks stands for no id here, but a text that holds it must not be cut into pieces.
    for name in ROLES {
        if let Some(token) = config.token(&format!("{name}_token"))? {
            super::mark_special(inner, &token, &config.path)?;
        }
    }
    let mut stop = generation.ids("eos_token_id")?;
    if stop.is_empty() {
        stop = model.ids("eos_token_id")?;
    }
    stop.extend(eos.filter(|id| !stop.contains(id)));
    Ok(SpecialTokens { bos, eos, pad, unk, stop })
}

/// Where a flag of `tokenizer_config.json` says otherwise than `tokenizer.json` does with `prefix` and `suffix`, which is what
/// counts in transformers 5.
pub(super) fn contradictions(
    config: &Settings,
    special: &SpecialTokens,
    [prefix, suffix]: [&[u32]; 2],
) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    let sides = [
        ("add_bos_token", "beginning-of-text", "before", special.bos, prefix, ""),
        (
            "add_eos_token",
            "end-of-text",
            "after",
            special.eos,
            suffix,
            "; --append-eos on ends the rows of a training with it",
        ),
    ];
    for (key, name, place, id, around, remedy) in sides {
        let Some(id) = id else { continue };
        match (config.flag(key)?, around.contains(&id)) {
            (Some(true), false) => notes.push(format!(
                "tokenizer_config.json says {key} true, but tokenizer.json puts no {name} token {place} a text, and none is put there, as in transformers 5{remedy}"
            )),
            (Some(false), true) => notes.push(format!(
                "tokenizer_config.json says {key} false, but tokenizer.json puts the {name} token {place} every text, and there it is put, as in transformers 5; its post_processor decides"
            )),
            _ => {}
        }
    }
    Ok(notes)
}

/// One JSON object; an absent file is an empty one.
pub(super) struct Settings {
    pub(super) path: PathBuf,
    pub(super) values: Map<String, Value>,
}

impl Settings {
    pub(super) fn read(path: PathBuf) -> Result<Self> {
        let Some(bytes) = super::read(&path)? else { return Ok(Self { path, values: Map::new() }) };
        match serde_json::from_slice(&bytes) {
            Ok(values) => Ok(Self { path, values }),
            Err(error) => Err(Error::CorruptTokenizer { path, reason: error.to_string() }),
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// A token is written as a string or as an object with its text under `content`.
    pub(super) fn token(&self, key: &str) -> Result<Option<String>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let text = value.as_str().or_else(|| value.get("content").and_then(Value::as_str));
        text.map(|text| Some(text.to_owned())).ok_or_else(|| self.wrong(key, value, "a token"))
    }

    /// One id or a list of them.
    fn ids(&self, key: &str) -> Result<Vec<u32>> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        match self.get(key) {
            None => Some(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(id).collect::<Option<_>>(),
            // Some configurations write -1 for "none".
            Some(value) if value.as_i64() == Some(-1) => Some(Vec::new()),
            Some(value) => id(value).map(|id| vec![id]),
        }
        .ok_or_else(|| self.wrong(key, self.get(key).unwrap_or(&Value::Null), "a token id or a list of them"))
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => value.as_bool().map(Some).ok_or_else(|| self.wrong(key, value, "true or false")),
        }
    }

    pub(super) fn wrong(&self, key: &str, value: &Value, expected: &str) -> Error {
        let reason = format!("{key} is {value} where {expected} is expected");
        Error::CorruptTokenizer { path: self.path.clone(), reason }
    }
}

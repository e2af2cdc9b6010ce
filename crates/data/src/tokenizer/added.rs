//! Tokens that `tokenizer.json` does not know, from the files beside it: what was added to a vocabulary after the fact stands
//! there in folders of older versions, and text that holds such a token must not be cut into bytes.

use std::path::Path;

use serde_json::Value;
use tokenizers::AddedToken;

use super::special::{ROLES, Settings};
use crate::error::{Error, Result};

/// Adds the tokens of `added_tokens_decoder` (without it, of `added_tokens.json`) at their ids, as transformers does. Returned are the
/// additional special tokens, which come last.
pub(super) fn add(folder: &Path, config: &Settings, inner: &mut tokenizers::Tokenizer) -> Result<Vec<String>> {
    let decoder = config.get("added_tokens_decoder");
    let extra = named(config);
    let (path, mut listed) = match decoder {
        Some(decoder) => (config.path.clone(), of_decoder(config, decoder)?),
        None => {
            let plain = Settings::read(folder.join("added_tokens.json"))?;
            (plain.path.clone(), of_map(&plain, &extra)?)
        }
    };
    listed.sort_by_key(|it| it.0);
    for (id, token) in listed {
        let content = token.content.clone();
        let known = inner.token_to_id(&content);
        if inner.get_added_vocabulary().get_vocab().contains_key(&content) {
            continue;
        }
        put(inner, token, &path)?;
        let got = inner.token_to_id(&content);
        if known.is_none() && got != Some(id) {
            let got = got.map_or_else(|| "none".to_owned(), |it| it.to_string());
            let reason = format!(
                "it gives {content:?} the id {id}, but the vocabulary of tokenizer.json ends before, so that the token would get {got}"
            );
            return Err(Error::CorruptTokenizer { path, reason });
        }
    }
    Ok(extra)
}

/// The special tokens that have no role here, such as those of the masks of other models and those of images: in lists, or by name.
fn named(settings: &Settings) -> Vec<String> {
    const LISTS: [&str; 3] = ["additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens"];
    let mut found = Vec::new();
    for (key, value) in &settings.values {
        let listed = LISTS.contains(&key.as_str());
        match value {
            Value::Array(tokens) if listed => found.extend(tokens.iter().filter_map(text)),
            Value::Object(tokens) if listed => found.extend(tokens.values().filter_map(text)),
            token if key.strip_suffix("_token").is_some_and(|it| !ROLES.contains(&it)) => found.extend(text(token)),
            _ => {}
        }
    }
    found.into_iter().map(str::to_owned).collect()
}

fn put(inner: &mut tokenizers::Tokenizer, token: AddedToken, path: &Path) -> Result<()> {
    let added = if token.special { inner.add_special_tokens([token]) } else { inner.add_tokens([token]) };
    added.map(|_| ()).map_err(|error| Error::CorruptTokenizer { path: path.into(), reason: error.to_string() })
}

/// `{"301": {"content": "<|im_start|>", "special": true, ..}, ..}`
fn of_decoder(config: &Settings, decoder: &Value) -> Result<Vec<(u32, AddedToken)>> {
    let wrong = || config.wrong("added_tokens_decoder", decoder, "an object of tokens by their ids");
    let one = |(id, token): (&String, &Value)| {
        let flag = |key: &str| token.get(key).and_then(Value::as_bool);
        let special = flag("special").unwrap_or(false);
        let found = AddedToken::from(text(token)?, special)
            .single_word(flag("single_word").unwrap_or(false))
            .lstrip(flag("lstrip").unwrap_or(false))
            .rstrip(flag("rstrip").unwrap_or(false))
            .normalized(flag("normalized").unwrap_or(!special));
        Some((id.parse().ok()?, found))
    };
    decoder.as_object().ok_or_else(wrong)?.iter().map(|it| one(it).ok_or_else(wrong)).collect()
}

/// `{"<|im_start|>": 301, ..}`
fn of_map(map: &Settings, special: &[String]) -> Result<Vec<(u32, AddedToken)>> {
    let one = |(content, id): (&String, &Value)| {
        let id =
            id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| map.wrong(content, id, "a token id"))?;
        Ok((id, AddedToken::from(content.clone(), special.contains(content))))
    };
    map.values.iter().map(one).collect()
}

/// A token is written as a string or as an object with its text under `content`.
fn text(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content").and_then(Value::as_str))
}
